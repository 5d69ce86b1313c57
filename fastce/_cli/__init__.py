"""The ``fastce`` command. Each sub-command is a file here with ``add_arguments`` and ``run``.

A file is imported when its sub-command is asked for, so that ``fastce --help`` stays quick.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from fastce._dispatch import kernel
from fastce._threads import get_num_threads
from fastce._version import __version__

COMMANDS = {
    "info": "versions, processor, threads, and each backend or why it cannot be used",
    "bench": "measure each op on this machine against the reference and its peers",
    "loss": "mean cross-entropy, perplexity and accuracy of logits in a file of any size",
}


class CommandError(Exception):
    """Input that cannot be used: its message is shown without a traceback, with exit status 1."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0: done. 1: the input or this installation cannot be used. 2: wrong command line.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser(argv[0] if argv else "").parse_args(argv)
    try:
        if args.command != "info":  # which shows wrong settings rather than stumbling over them
            _check_settings()
        status: int = import_module(f".{args.command}", __name__).run(args)
        sys.stdout.flush()
        return status
    except CommandError as error:
        print(f"fastce {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nfastce {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `fastce info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser(chosen: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastce",
        description="Softmax and cross-entropy kernels for NumPy arrays, from the command line.",
        epilog="exit status: 0 done, 1 input that cannot be used, 2 wrong command line",
    )
    parser.add_argument("--version", action="version", version=f"fastce {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if name == chosen:
            module = import_module(f".{name}", __name__)
            command.description = module.__doc__
            command.formatter_class = argparse.RawDescriptionHelpFormatter
            module.add_arguments(command)
    return parser


def _check_settings() -> None:
    """Find a wrong FASTCE_* variable before any work is done."""
    try:
        get_num_threads()
        kernel("cross_entropy", "cross_entropy")
    except (ValueError, ImportError) as error:
        raise CommandError(str(error)) from error
