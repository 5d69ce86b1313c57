"""How tests build Cython code of users."""

import shutil
from pathlib import Path

import fastce
from fastce import kernels

FOLDER = Path(kernels.__file__).parent / "cython"


def include_path(folder):
    """Cython looks for .pxd files in sys.path; those of an editable install are not there."""
    if Path(fastce.__file__).parent in FOLDER.parents:
        return []
    (folder / "fastce" / "kernels" / "cython").mkdir(parents=True)
    for pxd in FOLDER.glob("*.pxd"):
        shutil.copy(pxd, folder / "fastce" / "kernels" / "cython")
    return [str(folder)]
