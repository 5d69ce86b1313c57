"""Whether float32 may be multiplied by tensor cores."""

_allowed = False


def set_allow_tf32(allowed: bool) -> None:
    """Choose whether attention of float32 arrays on a GPU may use its tensor cores.

    They take 10 bits of each number's mantissa instead of 23 ("TF32"), and sum in float32: results
    have about three decimal digits, as those of float16 have, and come several times sooner. Arrays
    on the host are not concerned.

    Parameters
    ----------
    allowed : bool
        False until this is called.

    Raises
    ------
    TypeError
        If `allowed` is not a bool.

    Examples
    --------
    >>> import fastce
    >>> fastce.set_allow_tf32(False)
    """
    global _allowed
    if not isinstance(allowed, bool):
        raise TypeError(f"allowed must be True or False, got {allowed!r}")
    _allowed = allowed


def get_allow_tf32() -> bool:
    """What `set_allow_tf32` chose."""
    return _allowed
