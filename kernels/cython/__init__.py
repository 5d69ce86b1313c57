"""Ahead-of-time CPU kernels over OpenMP threads, compiled once per instruction set level."""

from pathlib import Path

from . import _isa
from ._forks import OWNER as OWNER  # before any module, which would load libgomp

# Modules of the chosen level are found first, under the plain name: nothing else names a level.
__path__[:0] = [str(Path(__file__).parent / folder) for folder in _isa.folders()]
