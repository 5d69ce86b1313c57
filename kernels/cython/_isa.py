"""Instruction set levels: which to build, which were built, which this processor has, which to use.

A .pyx is compiled once per level into a folder of that level's name; the package puts the folder
of the chosen one in front of its search path.
"""

import os
import platform
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

# Level -> compiler flags, and what /proc/cpuinfo must list. Lowest first.
X86_64 = {
    "x86_64_v2": (["-march=x86-64-v2"], "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3"),
    "x86_64_v3": (
        ["-march=x86-64-v3"],
        "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
    ),
    "x86_64_v4": (
        ["-march=x86-64-v4", "-mprefer-vector-width=512"],
        "avx512f avx512bw avx512cd avx512dq avx512vl",
    ),
    "x86_64_v4_bf16": (
        ["-march=x86-64-v4", "-mprefer-vector-width=512", "-mavx512bf16"],
        "avx512_bf16",
    ),
}
# A level that only some modules gain from; the others are taken from the level below.
ONLY = {"x86_64_v4_bf16": ("attention", "linear_cross_entropy")}
HOW_TO_BUILD = "build from source with FASTCE_BUILD_ISA=all"
# Elsewhere the compiler's default is compiled once: on aarch64 that has NEON.
GENERIC = {"generic": ([], "")}


def levels() -> dict[str, tuple[list[str], str]]:
    """The levels of this kind of processor, lowest first."""
    return X86_64 if platform.machine().lower() in ("x86_64", "amd64") else GENERIC


def supported() -> list[str]:
    """The levels that this processor has, lowest first."""
    flags = _processor_flags()
    names: list[str] = []
    for name, (_, needed) in levels().items():
        if names and not set(needed.split()) <= flags:
            break
        names.append(name)  # the lowest is assumed: it is from 2009
    return names


def to_build(choice: str) -> list[str]:
    """The levels to compile: ``all``, or names separated by commas, or ``native``: the best of this
    processor for each module, and the lowest.
    """
    if choice == "all":
        return list(levels())
    if choice == "native":
        names = supported()
        full = [name for name in names if name not in ONLY]
        return [name for name in names if name in (names[0], full[-1], names[-1])]
    chosen = choice.split(",")
    if not set(chosen) <= set(levels()):
        known = ", ".join(("all", "native", *levels()))
        raise ValueError(f"FASTCE_BUILD_ISA={choice!r}, but there are {known}")
    return [name for name in levels() if name in chosen]


def built() -> list[str]:
    """The levels that were compiled, lowest first. One that lacks modules of others is left out."""
    here, suffix = Path(__file__).parent, EXTENSION_SUFFIXES[0]
    found = {
        name: {path.name.partition(".")[0] for path in (here / name).glob(f"*{suffix}")}
        for name in levels()
    }
    every = set().union(*found.values())
    return [n for n, there in found.items() if there and there >= every & set(ONLY.get(n, every))]


def level() -> str:
    """The level to use: ``FASTCE_ISA``, else the best that was built and that the processor has."""
    names, compiled = supported(), built()
    chosen = os.environ.get("FASTCE_ISA")
    if chosen and chosen not in names:
        raise ValueError(f"FASTCE_ISA={chosen!r}, but this processor has {', '.join(names)}")
    candidates = [chosen] if chosen else names
    usable = [name for name in candidates if name in compiled]
    if compiled and not usable:  # without any, the import of a module fails
        missing = f"FASTCE_ISA={chosen!r}" if chosen else f"any of {', '.join(names)}"
        raise ImportError(f"{missing} was not built, only {', '.join(compiled)}: {HOW_TO_BUILD}")
    return (usable or candidates)[-1]


def folders() -> list[str]:
    """Where to look for a module, in order: the level to use, and below one that has only some."""
    names, chosen = supported(), level()
    if chosen not in ONLY:
        return [chosen]
    compiled = built() or names
    below = [n for n in names[: names.index(chosen)] if n in compiled and n not in ONLY]
    return [chosen, *below[-1:]]


def _processor_flags() -> set[str]:
    """Of the first processor; the kernel lists only what it lets programs use."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            for line in lines:
                if line.startswith("flags"):
                    return set(line.partition(":")[2].split())
    except OSError:  # not Linux: the lowest level
        pass
    return set()
