"""Measure each op beside the other packages that are installed, each in its best form.

    python -m bench.peers [--quick] [--op NAME ...] [--peer NAME ...] [--plot FILE] [--json FILE]

The libraries alternate in one process, and every result is compared with fastce's before it is
timed. Ratios are the other library's time divided by fastce's: above 1, fastce is faster.
"""

import argparse
import sys
from functools import partial

from fastce._cli._output import CommandError
from fastce._cli._results import add_arguments_of, check_writable, run_all

from .cases import cases
from .measure import OURS, PACKAGES, installed, measure
from .report import draw_results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("bench.peers", description=__doc__.splitlines()[0])
    others = [name for name in PACKAGES if name != "fastce"]
    add_arguments_of(parser, [case.op for case in cases()])
    parser.add_argument("--peer", nargs="+", choices=others, metavar="NAME", default=others,
                        help=f"only these, of: {', '.join(map(repr, others))}")  # fmt: skip
    parser.add_argument("--plot", metavar="FILE", help="save a picture: .png, .svg or .pdf")
    args = parser.parse_args(argv)
    if args.plot and not args.plot.endswith((".png", ".svg", ".pdf")):
        parser.error(f"--plot: must end in .png, .svg or .pdf, got {args.plot}")
    try:
        if args.plot:
            check_writable(args.plot)
        versions, missing = installed(["fastce", *args.peer])
        for name, reason in missing.items():
            print(f"{name} is not installed: {reason}", file=sys.stderr)
        names = list(versions)
        versions = {n: v for n, v in versions.items() if n not in (*OURS, "torch by hand", "numpy")}
        facts, results = run_all(
            args, cases(args.quick), partial(measure, names), versions, names[1:]
        )
    except CommandError as error:
        print(f"bench.peers: {error}", file=sys.stderr)
        return 1
    if args.plot:
        draw_results(args.plot, facts, results)
    # Where its own backends disagree, fastce is wrong, and its speed worth nothing.
    return int(any(note.startswith(OURS) for result in results for note in result.notes))


if __name__ == "__main__":
    sys.exit(main())
