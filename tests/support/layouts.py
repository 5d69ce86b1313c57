"""The same values in every way that an array can lie in memory."""

import numpy as np


def _in_wider(a, index, width):
    """`a` as the part `index` of an array of NaN that is `width` times as wide."""
    wide = np.full([w * s for w, s in zip(width, a.shape, strict=True)], np.nan).astype(a.dtype)
    view = wide[index]
    view[...] = a
    return view


def _last(step):
    def relaid(a):
        k = a.shape[-1]
        index = slice(None, k) if step == 1 else slice(None, None, step)
        return _in_wider(a, (..., index), [1] * (a.ndim - 1) + [2 if step == 1 else abs(step)])

    return relaid


def _first(step):
    def relaid(a):
        return _in_wider(a, slice(None, None, step), [abs(step)] + [1] * (a.ndim - 1))

    return relaid


def _permuted(a):
    """Axes in another order in memory: neither C nor Fortran from 3 axes on."""
    order = [*range(1, a.ndim), 0]
    return np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))


def _read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def _unaligned(a):
    """At an odd address, as a field of packed records may be."""
    memory = np.empty(a.nbytes + 1, np.int8)
    view = memory[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def _records(a):
    """A field of packed records: the stride of the rows is no multiple of the item size."""
    fields = [("a", a.dtype, a.shape[1:]), ("b", np.int8)]
    records = np.zeros(a.shape[0], fields)
    records["a"] = a
    return records["a"]


# name -> function of an array that gives equal values, differently laid out
LAYOUTS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "permuted": _permuted,
    "columns [:, :k]": _last(1),
    "columns [:, ::2]": _last(2),
    "columns [:, ::-1]": _last(-1),
    "rows [::2]": _first(2),
    "rows [::-1]": _first(-1),
    "rows [::-2]": _first(-2),
    "unaligned": _unaligned,
    "records": _records,
    "read-only": _read_only,
    "swapped bytes": lambda a: a.astype(a.dtype.newbyteorder("S")),
}
# Where `out` may always lie, whatever the axis.
DENSE = ("C", "F", "permuted")


def attempt(call):
    """(what `call` returns, None), or (None, the message of its ValueError)."""
    try:
        return call(), None
    except ValueError as error:
        return None, str(error)
