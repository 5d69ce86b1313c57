from Cython.Build import cythonize
from setuptools import Extension, setup

openmp = ["-fopenmp"]  # for prange; the kernels themselves need no flag, header or library
module = Extension("nbest", ["nbest.pyx"], extra_compile_args=openmp, extra_link_args=openmp)
setup(ext_modules=cythonize([module]))
