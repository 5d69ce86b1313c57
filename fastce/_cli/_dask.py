"""`fastce loss --dask`: the same numbers, computed by the workers of a Dask cluster.

A worker opens the files by itself, so each must see them under the path that was given.
"""

import argparse
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np

import fastce.dask as fd

from ._loss import RAW, check, numbers, results_of
from ._npy import open_array
from ._output import CommandError


class Blocks:
    """An array in an .npy or .npz file, as `da.from_array` takes it: it travels as its path."""

    def __init__(self, path: str, key: str | None) -> None:
        self.path, self.key = os.path.abspath(path), key
        with open_array(path, key) as array:
            self.name, self.shape, self.dtype = array.name, array.shape, array.dtype
            if array.compressed:  # and each block would begin anew
                raise CommandError(
                    f"{self.name} is compressed, and can only be read from front to back: "
                    "without --dask"
                )
        self.ndim = len(self.shape)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        with open_array(self.path, self.key) as array:
            array.dtype = self.stored
            block = array.block(index)
        return block if self.stored.kind in "iu" else numbers(block)

    def dask_array(self, axis: int | None, limit: float) -> da.Array:
        """In blocks of about `limit` bytes; of whole rows, if `axis` is that of the classes."""
        self.stored = self.dtype
        if self.stored.kind not in "iu":  # as `numbers` gives it
            self.dtype = np.dtype("f4") if self.stored == RAW else self.stored.newbyteorder("=")
        chunks: Any = tuple(-1 if i == axis else "auto" for i in range(self.ndim))
        chunks = da.core.normalize_chunks(chunks, self.shape, limit=int(limit), dtype=self.dtype)
        return da.from_array(self, chunks=chunks, asarray=False, name=False, meta=np.empty(0))


class Store:
    """A Zarr array. Each block opens it anew: a worker that does not see it fails, where the chunks
    of an array that was opened elsewhere would be missing, which for Zarr is to be zeros.
    """

    def __init__(self, path: str, key: str | None) -> None:
        self.path, self.key = path if "://" in path else os.path.abspath(path), key
        self.name = f"{path}[{key}]" if key else path
        try:
            array = self._open()
        except Exception as error:  # damaged metadata raise a dozen kinds
            raise CommandError(f"cannot read {self.name} as a Zarr array: {error}") from error
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
        self.chunks = array.shards or array.chunks
        if min(self.shape, default=1) < 1:
            raise CommandError(f"{self.name} is empty: its shape is {self.shape}")

    def _open(self) -> Any:
        import zarr

        return zarr.open_array(self.path, path=self.key, mode="r")

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return self._open()[index]

    def dask_array(self, axis: int | None, limit: float) -> da.Array:
        """In the chunks in which it is stored."""
        meta = np.empty(0, self.dtype)
        return da.from_array(self, chunks=self.chunks, asarray=False, name=False, meta=meta)


def run_on_cluster(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """The numbers, and the bytes of the logits."""
    from distributed import Client, LocalCluster

    logits, targets = _opened(args.logits, args.key_logits), _opened(args.targets, args.key_targets)
    axis = check(logits, targets, args)
    size, limit = math.prod(logits.shape) * logits.dtype.itemsize, args.chunk_mb * 1e6
    x = logits.dask_array(axis, limit)
    t = targets.dask_array(None, limit) if targets.shape != logits.shape else None
    t = targets.dask_array(axis, limit).rechunk(x.chunks) if t is None else t
    try:
        if args.dask == "local":
            with (
                LocalCluster(
                    threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
                ) as cluster,  # what a worker complains of comes as an exception, too
                Client(cluster),
            ):
                results = _computed(x, t, axis, args)
        else:
            with Client(args.dask):
                results = _computed(x, t, axis, args)
    except IndexError as error:  # of a label
        message = str(error).replace("(ignore_index", "(--ignore-index")
        raise CommandError(f"{targets.name}: {message}") from None
    except CommandError:  # of a file
        raise
    except Exception as error:  # of the network, a worker that is gone, or the codec of a chunk
        raise CommandError(f"--dask {args.dask}: {error}") from error
    return results, size


def _opened(path: str, key: str | None) -> Any:
    is_store = Path(path).is_dir() or path.rstrip("/").endswith(".zarr") or "://" in path
    return Store(path, key) if is_store else Blocks(path, key)


def _computed(x: da.Array, t: da.Array, axis: int, args: argparse.Namespace) -> dict[str, Any]:
    options = {"reduction": "none", "axis": axis, "ignore_index": args.ignore_index}
    loss = fd.cross_entropy(x, t, label_smoothing=args.label_smoothing, **options)
    plain = fd.cross_entropy(x, t, **options) if args.label_smoothing else loss
    nan = da.isnan(loss)
    if t.ndim < x.ndim:
        kept, label = t != args.ignore_index, t
    else:
        kept, label = da.ones_like(nan), da.argmax(t, axis)
    right = (da.argmax(x, axis) == label) & kept & ~nan
    sums = [a.sum(dtype=np.float64) for a in (loss, plain)]
    sums += [kept.sum(), right.sum(), nan.any(), nan.argmax()]
    began = time.perf_counter()  # a cluster of processes here takes seconds to start before this
    total, plain, counted, correct, any_nan, first_nan = dask.compute(*sums)
    first = [int(i) for i in np.unravel_index(first_nan, nan.shape)] if any_nan else None
    found = (float(total), float(plain), loss.size, int(counted), int(correct))
    results = results_of(*found, first)
    return results | {"seconds": time.perf_counter() - began}
