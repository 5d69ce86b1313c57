"""Copies the kernels out of a checkout of fastce: python copy_kernels.py CHECKOUT."""

import shutil
import sys
from pathlib import Path

BUILT = ("__pycache__", "*.cpp", "*.so", "x86_64_*", "generic")
UNUSED = ("attention.*", "_attention_*", "_vector_math.*")  # in cython/: the largest of these

checkout = Path(sys.argv[1])
copy = Path(__file__).parent / "src" / "calibration" / "numerics"
shutil.rmtree(copy, ignore_errors=True)
shutil.copytree(checkout / "kernels", copy, ignore=shutil.ignore_patterns(*BUILT))
shutil.copy(checkout / "LICENSE", copy)
for pattern in UNUSED:
    for path in (copy / "cython").glob(pattern):
        path.unlink()
