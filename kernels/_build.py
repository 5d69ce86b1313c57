"""Compiles the Cython kernels of this folder, in fastce or in a package that it was copied into.

In the setup.py of that package, which lies at the top of its project:

    kernels = runpy.run_path("mine/numerics/_build.py")
    setup(..., **kernels["build"]("mine.numerics"))

Each cython/*.pyx becomes one C++ file, which is compiled once per instruction set level into a
folder of that level, e.g. cython/x86_64_v4/cross_entropy.*.so. Where there is no Cython or no
compiler, installation goes on without them: the package then has its other backends.

FASTCE_BUILD_ISA chooses the levels: `all`, `native` (the best of this processor, and the lowest),
or names separated by commas. A wheel may run elsewhere and gets all; a build in place (`pip install
--editable`, `setup.py build_ext --inplace`) gets the native ones, and compiles only what is stale.

This file is run by its path, so it imports nothing of its package.
"""

import os
import re
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

FOLDER = Path(os.path.relpath(Path(__file__).parent)) / "cython"  # setuptools wants it relative
SOURCES = (".pyx", ".pxd", ".pxi", ".h")
FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-std=c++17", "-g0"]
FLAGS += ["-finline-limit=20000", "-w"]  # 3,800 warnings about the code that Cython generates
FOR_TESTS = "._vector_math"  # left out of wheels


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
    translated = _translate(f"{package}.cython", cythonize)
    # The largest first, so that all processors are busy to the end.
    translated.sort(key=lambda module: -Path(module.sources[0]).stat().st_size)
    modules = list(_extensions(translated, isa, numpy.get_include()))
    return {"ext_modules": modules, "cmdclass": {"build_ext": _build_per_level(modules, isa)}}


def _translate(package, cythonize):
    """One Extension for each .pyx, whose source is the C++ file."""
    from setuptools import Extension

    def module(pyx, suffix):
        source = str(pyx.with_suffix(suffix))
        return Extension(
            f"{package}.{pyx.stem}", [source], language="c++", include_dirs=[str(FOLDER)]
        )

    pyxs = sorted(FOLDER.glob("*.pyx"))
    # Cython also compares with its own files and NumPy's, which pip installs anew for each build.
    stale = [pyx for pyx in pyxs if _is_stale(pyx.with_suffix(".cpp"), _included(pyx))]
    with tempfile.TemporaryDirectory() as temporary:
        # Cython looks for the .pxd of a module by the module's name, but the package need not have
        # its name in the source tree: fastce.kernels lies in kernels/.
        tree = Path(temporary, *package.split("."))
        tree.mkdir(parents=True)
        for pxd in FOLDER.glob("*.pxd"):
            shutil.copy(pxd, tree)
        translated = cythonize(
            [module(pyx, ".pyx") for pyx in stale],
            include_path=[str(FOLDER), temporary],
            nthreads=os.cpu_count() or 1,
            force=True,
        )
    return translated + [module(pyx, ".cpp") for pyx in pyxs if pyx not in stale]


def _included(source):
    """A file, its .pxd, and those that they include or cimport from, directly or not."""
    found, new = set(), {source, source.with_suffix(".pxd")}
    while new := {path for path in new - found if path.exists()}:
        found |= new
        text = "".join(path.read_text() for path in new)
        names = re.findall(r'^\s*include "(.+)"', text, re.MULTILINE)
        names += [
            f"{name}.pxd" for name in re.findall(r"^from \.(\w+) cimport", text, re.MULTILINE)
        ]
        new = {FOLDER / name for name in names}
    return found


def _is_stale(target, sources):
    """Whether one of the sources has changed since the target was made."""
    time = target.stat().st_mtime if target.exists() else -1
    return any(os.stat(source).st_mtime > time for source in sources)


def _extensions(modules, isa, numpy_headers):
    from setuptools import Extension

    depends = [*FOLDER.glob("*.h"), FOLDER / "_isa.py", FOLDER.parent / "_build.py"]
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
                depends=list(map(str, depends)),
                optional=True,  # no compiler must not be fatal
            )


def _build_per_level(modules, isa):
    from setuptools.command.build_ext import build_ext

    class BuildPerLevel(build_ext):
        """Compiles the same C++ file several times: each level has its own object files."""

        def finalize_options(self):
            super().finalize_options()
            self.parallel = self.parallel or os.cpu_count()
            self.in_place = self.inplace  # which run() resets
            choice = os.environ.get("FASTCE_BUILD_ISA") or ("native" if self.in_place else "all")
            chosen = isa["to_build"](choice)
            self.extensions = [
                ext
                for ext in self.extensions
                if ext not in modules
                or (_level(ext) in chosen and (self.in_place or not ext.name.endswith(FOR_TESTS)))
            ]

        def run(self):
            if self.in_place:  # of levels that are not built now, too: no old code runs
                for ext in modules:
                    if self.force or _is_stale(self._file(ext), [*ext.sources, *ext.depends]):
                        self._file(ext).unlink(missing_ok=True)
            super().run()

        def build_extension(self, ext):
            if ext not in modules:  # another one of this project
                super().build_extension(ext)
            elif self.in_place and self._file(ext).exists():
                target = Path(self.get_ext_fullpath(ext.name))  # from where setuptools copies it
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self._file(ext), target)
            else:
                command = build_ext(self.distribution)
                command.__dict__.update(self.__dict__)  # build_temp differs; levels are parallel
                command.build_temp = str(Path(self.build_temp, _level(ext)))
                build_ext.build_extension(command, ext)

        def _file(self, ext):
            """What a build in place makes."""
            return FOLDER / _level(ext) / Path(self.get_ext_filename(ext.name)).name

        def get_source_files(self):  # for an sdist; it would have the C++ files only
            sources = [str(path) for path in FOLDER.iterdir() if path.suffix in SOURCES]
            return [*super().get_source_files(), *sources]

        def copy_extensions_to_source(self):
            for level in isa["levels"]():  # an editable install does not make the folders
                (FOLDER / level).mkdir(exist_ok=True)
            super().copy_extensions_to_source()

    return BuildPerLevel


def _level(extension):
    return extension.name.split(".")[-2]
