"""Builds the Cython kernels; everything else is in pyproject.toml.

Each kernels/cython/*.pyx becomes one C++ file, which is compiled once per instruction set level
into a folder of that level, e.g. kernels/cython/x86_64_v4/cross_entropy.*.so. Where there is no
compiler, installation goes on without them: fastce then uses its other backends.
"""

import os
import runpy
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PACKAGE = "fastce.kernels.cython"
FOLDER = Path("kernels", "cython")
ISA = runpy.run_path(str(FOLDER / "_isa.py"))
LEVELS, ONLY = ISA["levels"](), ISA["ONLY"]
FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-g0"]
FLAGS += ["-finline-limit=20000"]


def extensions():
    sources = cythonize(
        [
            Extension(
                f"{PACKAGE}.{pyx.stem}", [str(pyx)], language="c++", include_dirs=[str(FOLDER)]
            )
            for pyx in sorted(FOLDER.glob("*.pyx"))
        ],
        include_path=[str(FOLDER)],
        nthreads=os.cpu_count() or 1,
    )
    for module in sources:
        name = module.name.rpartition(".")[2]
        for level, (flags, _) in LEVELS.items():
            if name not in ONLY.get(level, (name,)):
                continue
            yield Extension(
                f"{PACKAGE}.{level}.{name}",
                module.sources,
                language="c++",
                include_dirs=[*module.include_dirs, numpy.get_include()],
                define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
                extra_compile_args=FLAGS + flags,
                extra_link_args=["-fopenmp"],
                depends=[str(header) for header in FOLDER.glob("*.h")],
                optional=True,  # no compiler must not be fatal
            )


class BuildPerLevel(build_ext):
    """Compiles the same C++ file several times: each level has its own object files."""

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext):
        level = ext.name.split(".")[-2]
        command = build_ext(self.distribution)
        command.__dict__.update(self.__dict__)  # build_temp differs, and levels build in parallel
        command.build_temp = str(Path(self.build_temp, level))
        build_ext.build_extension(command, ext)

    def copy_extensions_to_source(self):
        for level in LEVELS:  # an editable install does not make the folders
            (FOLDER / level).mkdir(exist_ok=True)
        super().copy_extensions_to_source()


setup(ext_modules=list(extensions()), cmdclass={"build_ext": BuildPerLevel})
