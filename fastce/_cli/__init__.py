"""The ``fastce`` command. Each sub-command is a file here with ``add_arguments`` and ``run``.

A file is imported when its sub-command is asked for, so that ``fastce --help`` stays quick.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from fastce._runtime.dispatch import kernel
from fastce._runtime.threads import get_num_threads
from fastce._version import __version__

from ._output import CommandError, abandon, complain, printable

COMMANDS = {
    "info": "versions, processor, threads, and each backend or why it cannot be used",
    "bench": "measure each op on this machine beside the machine's limit and NumPy",
    "loss": "mean cross-entropy, perplexity and accuracy of logits in a file of any size",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0: done. 1: the input or this installation cannot be used. 2: wrong command line.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    name = f"fastce {argv[0]}" if argv and argv[0] in COMMANDS else "fastce"
    if sys.stderr is None:  # closed, as by `2>&-`; print(file=None) would write to stdout
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        if sys.stdout is None:
            raise CommandError("standard output is closed")
        if isinstance(sys.stdout, io.TextIOWrapper):  # where its encoding lacks a character
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # a failure at exit would be a traceback
    except CommandError as error:
        complain(f"{name}: {printable(str(error))}")
    except MemoryError as error:
        complain(f"{name}: not enough memory: {printable(str(error))}")
    except KeyboardInterrupt:
        complain(f"\n{name}: interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `fastce info | head -1`
        abandon(sys.stdout)
    except OSError as error:  # of a full disk, say: what is read raises CommandError
        abandon(sys.stdout)
        complain(f"{name}: {printable(str(error))}")
    return 1


def _run(argv: list[str]) -> int:
    parser = _parser(argv[0] if argv else "")
    if not argv:
        parser.print_help()
        return 0
    args = parser.parse_args(argv)
    if args.command != "info":  # which shows wrong settings rather than stumbling over them
        _check_settings()
    status: int = import_module(f".{args.command}", __name__).run(args)
    return status


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: Any = None) -> None:
        file.write(message)  # argparse's own passes over an OSError

    def error(self, message: str) -> NoReturn:
        complain(f"{self.format_usage()}{self.prog}: error: {printable(message)}")
        raise SystemExit(2)


def _parser(chosen: str) -> argparse.ArgumentParser:
    parser = _Parser(
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
