"""fastce over Dask arrays, in blocks of rows, of classes, or of keys: larger than any memory.

    import dask.array as da
    import fastce.dask as fd

    loss = fd.cross_entropy(logits, target)  # a Dask array; nothing is computed yet
    loss.compute()

Every function is lazy and gives Dask arrays. A task computes one block, or merges a few numbers of
each block of a row; no chunk is larger than those that come in. Blocks of whole rows are passed to
the function of the same name in `fastce`. A row whose classes lie in several chunks is never put
together: its blocks give (max, sum) states, which are merged exactly.

Each task runs on one thread of fastce, since Dask runs as many tasks as it has threads; for more,
``dask.config.set({"fastce.num-threads": 4})``. The same bits for any number of workers and threads.
"""

try:
    import dask.array  # noqa: F401
except ImportError as error:
    raise ImportError('fastce.dask needs Dask: pip install "dask[array,distributed]"') from error

from . import information
from ._attention import scaled_dot_product_attention
from ._cross_entropy import cross_entropy, cross_entropy_with_grad
from ._softmax import log_softmax, logsumexp, softmax

__all__ = [
    "cross_entropy",
    "cross_entropy_with_grad",
    "information",
    "log_softmax",
    "logsumexp",
    "scaled_dot_product_attention",
    "softmax",
]

for _name in __all__:  # help() and pickles name this module, not the private file
    if callable(globals()[_name]):
        globals()[_name].__module__ = __name__
