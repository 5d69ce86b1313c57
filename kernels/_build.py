"""Compiles the Cython kernels of this folder, in fastce or in a package that it was copied into.

In the setup.py of that package, which lies at the top of its project:

    kernels = runpy.run_path("mine/numerics/_build.py")
    setup(..., **kernels["build"]("mine.numerics"))

Each cython/*.pyx becomes one C++ file, which is compiled once per instruction set level into a
folder of that level, e.g. cython/x86_64_v4/cross_entropy.*.so. Where there is no Cython or no
compiler, installation goes on without them: the package then has its other backends.

This file is run by its path, so it imports nothing of its package.
"""

import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

FOLDER = Path(os.path.relpath(Path(__file__).parent)) / "cython"  # setuptools wants it relative
SOURCES = (".pyx", ".pxd", ".pxi", ".h")
FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-g0"]
FLAGS += ["-finline-limit=20000"]


def build(package):
    """Arguments of ``setup()``: ``ext_modules``, and ``cmdclass`` with a ``build_ext``.

    `package` is the name under which this folder is installed, ``"fastce.kernels"`` for example.
    """
    try:
        import numpy
        from Cython.Build import cythonize
    except ImportError as error:
        print(f"{package}: the Cython kernels are left out, because {error}", file=sys.stderr)
        return {}
    isa = runpy.run_path(str(FOLDER / "_isa.py"))
    modules = list(
        _extensions(_translate(f"{package}.cython", cythonize), isa, numpy.get_include())
    )
    return {"ext_modules": modules, "cmdclass": {"build_ext": _build_per_level(modules, isa)}}


def _translate(package, cythonize):
    """One Extension for each .pyx, whose source is the C++ file."""
    from setuptools import Extension

    with tempfile.TemporaryDirectory() as temporary:
        # Cython looks for the .pxd of a module by the module's name, but the package need not have
        # its name in the source tree: fastce.kernels lies in kernels/.
        tree = Path(temporary, *package.split("."))
        tree.mkdir(parents=True)
        for pxd in FOLDER.glob("*.pxd"):
            shutil.copy(pxd, tree)
        return cythonize(
            [
                Extension(
                    f"{package}.{pyx.stem}", [str(pyx)], language="c++", include_dirs=[str(FOLDER)]
                )
                for pyx in sorted(FOLDER.glob("*.pyx"))
            ],
            include_path=[str(FOLDER), temporary],
            nthreads=os.cpu_count() or 1,
        )


def _extensions(modules, isa, numpy_headers):
    from setuptools import Extension

    for module in modules:
        package, _, name = module.name.rpartition(".")
        for level, (flags, _) in isa["levels"]().items():
            if name not in isa["ONLY"].get(level, (name,)):
                continue
            yield Extension(
                f"{package}.{level}.{name}",
                module.sources,
                language="c++",
                include_dirs=[*module.include_dirs, numpy_headers],
                define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
                extra_compile_args=FLAGS + flags,
                extra_link_args=["-fopenmp"],
                depends=[str(header) for header in FOLDER.glob("*.h")],
                optional=True,  # no compiler must not be fatal
            )


def _build_per_level(modules, isa):
    from setuptools.command.build_ext import build_ext

    names = {module.name for module in modules}

    class BuildPerLevel(build_ext):
        """Compiles the same C++ file several times: each level has its own object files."""

        def finalize_options(self):
            super().finalize_options()
            self.parallel = self.parallel or os.cpu_count()

        def build_extension(self, ext):
            if self.get_ext_fullname(ext.name) not in names:  # another one of this project
                super().build_extension(ext)
                return
            command = build_ext(self.distribution)
            command.__dict__.update(self.__dict__)  # build_temp differs; levels build in parallel
            command.build_temp = str(Path(self.build_temp, ext.name.split(".")[-2]))
            build_ext.build_extension(command, ext)

        def get_source_files(self):  # for an sdist; it would have the C++ files only
            sources = [str(path) for path in FOLDER.iterdir() if path.suffix in SOURCES]
            return [*super().get_source_files(), *sources]

        def copy_extensions_to_source(self):
            for level in isa["levels"]():  # an editable install does not make the folders
                (FOLDER / level).mkdir(exist_ok=True)
            super().copy_extensions_to_source()

    return BuildPerLevel
