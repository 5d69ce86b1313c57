"""Show versions, processor, instruction set level, threads, backends and optional packages."""

import argparse
import json
import os
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from fastce._runtime.config import VARIABLES, config

from ._output import CommandError, printable

# Distributions that fastce, its extras or its benchmarks can use.
PACKAGES = (
    "ml_dtypes", "numba", "numba-cuda", "rich", "matplotlib",
    "scipy", "scikit-learn", "torch", "jax", "pytest-benchmark", "asv",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    try:
        facts = config()
    except (ImportError, ValueError) as error:  # FASTCE_ISA, FASTCE_NUM_THREADS
        asked = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
        raise CommandError(f"{error} (set: {', '.join(asked)})") from error
    facts["packages"] = {name: _version(name) for name in PACKAGES}
    print(json.dumps(facts, indent=2) if args.json else "\n".join(_lines(facts)))
    return 0


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)  # without importing it
    except metadata.PackageNotFoundError:
        return None


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    for title, value in facts.items():
        if title in ("backends", "isa_levels"):
            entries = [f"{name:<17} {reason or 'available'}" for name, reason in value.items()]
        elif title == "numba_kernels":
            entries = [f"{seconds:>7}  {name}" for name, seconds in value.items()]
            none_yet = "nothing yet; the first call of each op and dtype compiles it"
            entries = entries or [none_yet if facts["backends"]["numba"] is None else "-"]
        elif title == "backend" and value == "reference" and facts["backends"]["cython"]:
            entries = ["reference, which is slow; Numba, or a C++ compiler, would help"]
        elif title == "packages":
            entries = [f"{name:<17} {found or 'not installed'}" for name, found in value.items()]
        elif isinstance(value, dict):
            entries = [f"{name}={setting}" for name, setting in value.items()] or ["-"]
        else:
            entries = [", ".join(value) if isinstance(value, list) else str(value)]
        for i, entry in enumerate(entries):
            yield f"{'' if i else title.replace('_', ' '):<13} {printable(entry)}"
