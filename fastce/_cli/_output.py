"""What the sub-commands print beside their results: errors in one line, and nothing that fails."""

import contextlib
import os
import sys
from typing import TextIO


class CommandError(Exception):
    """Input that cannot be used: its message is shown without a traceback, with exit status 1."""


def complain(message: str, end: str = "\n") -> None:
    """Print on stderr; where that fails, the message is lost and the exit status stays."""
    try:
        print(message, end=end, file=sys.stderr, flush=True)
    except OSError:
        abandon(sys.stderr)


def printable(text: str) -> str:
    """`text` on one line, without characters that a terminal obeys: names of files have any."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def abandon(stream: TextIO) -> None:
    """Discard what `stream` still holds, which Python tries to write once more at exit."""
    with contextlib.suppress(OSError):  # it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
