import runpy

from setuptools import setup

kernels = runpy.run_path("src/calibration/numerics/_build.py")
setup(**kernels["build"]("calibration.numerics"))
