"""Whether labels and lengths are checked where that costs a synchronisation with a GPU."""

_enabled = False


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
    global _enabled
    if not isinstance(enabled, bool):
        raise TypeError(f"enabled must be True or False, got {enabled!r}")
    _enabled = enabled


def get_validation() -> bool:
    """What `set_validation` chose."""
    return _enabled
