"""``python -m fastce``: the same as the ``fastce`` command."""

from fastce._cli import main

if __name__ == "__main__":
    raise SystemExit(main())
