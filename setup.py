"""Builds the Cython kernels; everything else is in pyproject.toml."""

import runpy

from setuptools import setup

kernels = runpy.run_path("kernels/_build.py")
setup(**kernels["build"]("fastce.kernels"))
