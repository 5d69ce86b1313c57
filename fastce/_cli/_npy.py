"""Arrays in .npy and .npz files, read block by block in bounded memory.

A block is read into memory that the next one reuses: as fast as mapping the file, and a file that
is cut meanwhile is an error, where a mapping would end the process (SIGBUS). A block that does not
lie in one piece (Fortran order, classes first) is gathered run by run. A compressed member of an
.npz can only be read from front to back: where blocks do not come in that order, it is unpacked
into a temporary file first. Of an archive, only the checksums of compressed members are verified.
"""

import itertools
import math
import os
import shutil
import struct
import tempfile
import tokenize
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

import numpy as np
from numpy.lib import format as npy

from ._output import CommandError

Index = tuple[slice, ...]
# Of a literal of Python that is parsed, and a dtype that is made of it.
HEADER_ERRORS = (
    ValueError, TypeError, LookupError, SyntaxError, MemoryError, RecursionError,
    tokenize.TokenError,
)  # fmt: skip


class ArrayFile:
    """One array in a file, of which blocks can be read. Made by `open_array`."""

    def __init__(self, name: str, file: IO[bytes], size: int, compressed: bool) -> None:
        """`file` stands at the .npy header, and `size` bytes are there from it on."""
        self.name, self._file, self.compressed = name, file, compressed
        header = file.tell()
        self.shape, self._fortran, self.dtype = _read_header(name, file)
        self._begin = self._place = file.tell()
        self._buffer = np.empty(0, np.uint8)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        if self.nbytes >= 2**63:
            raise CommandError(f"the header of {name} is damaged: no file holds so large a shape")
        there = size - (self._begin - header)
        if there < self.nbytes:
            raise CommandError(
                f"{name} is truncated: shape {self.shape} of {self.dtype} takes "
                f"{self.nbytes} bytes, {there} are there"
            )

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def block(self, index: Index) -> np.ndarray:
        """The elements at `index`, one slice per axis, until the next block is read."""
        order = -1 if self._fortran else 1  # Fortran order is C order with the axes reversed
        shape = self.shape[::order]
        ranges = [range(n)[s] for n, s in zip(shape, index[::order], strict=True)]
        starts, count = _runs(shape, ranges)
        size, run = len(starts) * count * self.dtype.itemsize, count * self.dtype.itemsize
        with _explained(self.name):
            if self.compressed and (len(starts) > 1 or starts[0] != self._offset()):
                self._unpack()
            if size > self._buffer.size:
                self._buffer = np.empty(size, np.uint8)
            flat = self._buffer[:size]
            for i, start in enumerate(starts):
                self._read(start, flat[i * run : (i + 1) * run])
            block = flat.view(self.dtype).reshape([len(r) for r in ranges])
        return block.T if self._fortran else block

    def _offset(self) -> int:
        """The element at which a compressed file stands."""
        return (self._place - self._begin) // self.dtype.itemsize

    def _read(self, start: int, out: np.ndarray) -> None:
        if not self.compressed:
            self._file.seek(self._begin + start * self.dtype.itemsize)
        rest = out.data
        self._place += len(rest)
        while rest:
            n = self._file.readinto(rest)  # type: ignore[attr-defined]
            if not n:
                raise CommandError(f"{self.name} is truncated")
            rest = rest[n:]

    def _unpack(self) -> None:
        plain = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._file.seek(self._begin)
            shutil.copyfileobj(self._file, plain, 1 << 20)
            plain.flush()
        except BaseException:
            plain.close()
            raise
        self._file.close()
        self._file, self._begin, self.compressed = plain, 0, False


def open_array(path: str, key: str | None = None) -> ArrayFile:
    """The array in an .npy file, or the one named `key` (if there are several) in an .npz."""
    with _explained(path), ExitStack() as undo:
        file: IO[bytes] = undo.enter_context(open(path, "rb", buffering=0))
        name, size, compressed = path, os.fstat(file.fileno()).st_size, False
        if file.read(2) == b"PK":
            with zipfile.ZipFile(path) as archive:
                member = _find_member(archive, path, key)
                name = f"{path}[{member.filename.removesuffix('.npy')}]"
                compressed = member.compress_type != zipfile.ZIP_STORED
                opened = undo.enter_context(archive.open(member))  # checks its local header
                if compressed:
                    file.close()
                    file, size = opened, member.file_size
                else:  # behind that header its bytes lie plainly in the archive
                    opened.close()
                    file.seek(member.header_offset + 26)
                    lengths = struct.unpack("<HH", file.read(4))
                    size = min(member.file_size, size - file.seek(sum(lengths), os.SEEK_CUR))
        elif key is not None:
            raise CommandError(f"{path} is not an .npz file: it has no array named {key!r}")
        else:
            file.seek(0)
        array = ArrayFile(name, file, size, compressed)
        undo.pop_all()
        return array


def row_blocks(shape: tuple[int, ...], axis: int, row_bytes: int, limit: int) -> Iterator[Index]:
    """Cut an array into blocks of whole rows, of at most `limit` bytes if one row fits.

    A row is what lies along `axis`. The blocks cut the first other axis; only where one step
    along that is too much, the next one.
    """
    others = [i for i in range(len(shape)) if i != axis]
    step_bytes = row_bytes * math.prod(shape[i] for i in others)
    fixed: list[int] = []  # axes of which a block has one element
    cut = axis  # a single row is not cut
    for cut in others:
        step_bytes //= shape[cut]
        if step_bytes <= limit or cut == others[-1]:
            break
        fixed.append(cut)
    step = max(1, limit // step_bytes) if others else shape[axis]
    for place in itertools.product(*(range(shape[i]) for i in fixed)):
        index = [slice(0, n) for n in shape]
        for i, at in zip(fixed, place, strict=True):
            index[i] = slice(at, at + 1)
        for start in range(0, shape[cut], step):
            index[cut] = slice(start, min(start + step, shape[cut]))
            yield tuple(index)


def _runs(shape: tuple[int, ...], ranges: list[range]) -> tuple[list[int], int]:
    """Where the contiguous runs of a block begin in a C-ordered array, and their length."""
    last = len(shape)
    count = 1
    while last:  # whole axes, then one in part
        last -= 1
        count *= len(ranges[last])
        if len(ranges[last]) < shape[last]:
            break
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    first = ranges[last].start * strides[last] if shape else 0
    starts = [
        first + sum(i * stride for i, stride in zip(place, strides[:last], strict=True))
        for place in itertools.product(*ranges[:last])
    ]
    return starts, count


def _read_header(name: str, file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    try:
        version = npy.read_magic(file)
        if version in readers:
            with warnings.catch_warnings(action="ignore"):  # of Python's parser
                shape, fortran, dtype = readers[version](file)
    except HEADER_ERRORS as error:
        raise CommandError(
            f"{name} is not an .npy or .npz file, or its header is damaged"
        ) from error
    if version not in readers:
        raise CommandError(f"{name} has .npy format version {version}, not 1.0 or 2.0")
    if dtype.hasobject:
        raise CommandError(f"{name} holds pickled Python objects, which are not loaded")
    if min(shape, default=1) < 1 or dtype.itemsize < 1:
        raise CommandError(f"{name} is empty: its shape is {shape}")
    return shape, fortran, dtype


def _find_member(archive: zipfile.ZipFile, path: str, key: str | None) -> zipfile.ZipInfo:
    held = archive.namelist()
    names = [n.removesuffix(".npy") for n in held if n.endswith(".npy")]
    if not names:
        is_torch = any(n.endswith("data.pkl") for n in held)
        hint = ": save each tensor of it with numpy.save(file, tensor.numpy())" if is_torch else ""
        what = "a file of PyTorch" if is_torch else "a zip archive without .npy arrays"
        raise CommandError(f"{path} is {what}, not an .npz file{hint}")
    if key is None and len(names) == 1:
        key = names[0]
    if key is None:
        raise CommandError(f"choose an array of {path} by its name: it has {', '.join(names)}")
    if key not in names:
        raise CommandError(f"{path} has no array named {key!r}: it has {', '.join(names)}")
    return archive.getinfo(f"{key}.npy")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """What goes wrong with a file, said in one line."""
    try:
        yield
    except CommandError:
        raise
    except OSError as error:
        hint = "; a Zarr store needs --dask" if isinstance(error, IsADirectoryError) else ""
        raise CommandError(f"cannot read {name}: {error.strerror or error}{hint}") from error
    except Exception as error:  # of zipfile and four decompressors, which name no common kind
        raise CommandError(f"cannot read {name}: {str(error)[:200]}") from error
