"""Settings of the process that concern GPUs: TF32 and validation."""

_allow_tf32 = False  # whether float32 may be multiplied by tensor cores
_validation = False  # whether labels and lengths are checked where the host must wait for a GPU


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
    global _allow_tf32
    if not isinstance(allowed, bool):
        raise TypeError(f"allowed must be True or False, got {allowed!r}")
    _allow_tf32 = allowed


def get_allow_tf32() -> bool:
    """What `set_allow_tf32` chose."""
    return _allow_tf32


def set_validation(enabled: bool) -> None:
    """Choose whether labels out of range raise on backends where the check is expensive.

    CPU backends always check, at no noticeable cost, whatever is chosen here. A GPU backend
    would have to wait for the GPU; it gives NaN for such a row instead, unless validation is on.
    So it is with lengths of attention that are on the GPU: they are cut to what there is.

    Parameters
    ----------
    enabled : bool

    Examples
    --------
    >>> import fastce
    >>> fastce.set_validation(False)
    """
    global _validation
    if not isinstance(enabled, bool):
        raise TypeError(f"enabled must be True or False, got {enabled!r}")
    _validation = enabled


def get_validation() -> bool:
    """What `set_validation` chose."""
    return _validation
