"""Storage of numbers: float64, float32, float16 and bfloat16.

`storage_of` has, for one dtype, the loads and stores that convert to and from the compute type:
float64 for float64, else float32. A word is 16 bytes, the most that one instruction moves.
float16 and bfloat16 are never Numba values: their bits are unpacked when they are loaded.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np
from numba import types

from . import _ptx
from ._math import device, math_of

# Codes of the dtypes of small arrays: labels (negative: signed), weights, grad_loss. A kernel reads
# them one number at a time, so that branches on the dtype take no time that counts.
FLOAT_CODES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 3}
LABEL_CODES = {
    "int64": -8,
    "int32": -4,
    "int16": -2,
    "int8": -1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
}


@device
def load_label(address, index, code):
    """A label of any integer dtype, as int64. One of uint64 beyond that is negative."""
    if code == -8 or code == 8:
        return _ptx.load_i64(address + 8 * index)
    if code == -4:
        return np.int64(np.int32(_ptx.load_u32(address + 4 * index)))
    if code == 4:
        return np.int64(_ptx.load_u32(address + 4 * index))
    if code == -2:
        return np.int64(np.int16(_ptx.load_u16(address + 2 * index)))
    if code == 2:
        return np.int64(_ptx.load_u16(address + 2 * index))
    if code == -1:
        return np.int64(np.int8(_ptx.load_u8(address + index)))
    return np.int64(_ptx.load_u8(address + index))


@device
def load_number(address, index, code):
    """A number of any floating dtype, as float64."""
    if code == 8:
        return _ptx.load_f64(address + 8 * index)
    if code == 4:
        return np.float64(_ptx.load_f32(address + 4 * index))
    if code == 2:
        return np.float64(_ptx.half_to_f32(np.uint16(_ptx.load_u16(address + 2 * index))))
    return np.float64(_load_bfloat16(address + 2 * index))


@device
def _load_bfloat16(address):
    return _ptx.bits_to_f32(np.uint32(_ptx.load_u16(address) << 16))


@device
def _load_half(address):
    return _ptx.half_to_f32(np.uint16(_ptx.load_u16(address)))


@device
def _store_half(address, value):
    _ptx.store_u16(address, np.uint32(_ptx.pack_half(value, value) & 0xFFFF))


@device
def _store_bfloat16(address, value):
    _ptx.store_u16(address, np.uint32(_ptx.pack_bfloat16(value, value) & 0xFFFF))


@device
def _unpack_f64(word, v):
    v[0] = _ptx.bits_to_f64(word[0], word[1])
    v[1] = _ptx.bits_to_f64(word[2], word[3])


@device
def _unpack_f32(word, v):
    v[0] = _ptx.bits_to_f32(word[0])
    v[1] = _ptx.bits_to_f32(word[1])
    v[2] = _ptx.bits_to_f32(word[2])
    v[3] = _ptx.bits_to_f32(word[3])


def _unpack_pairs(low, high):
    """`low` and `high` give the two numbers of 16 bits that share 32."""

    @device
    def unpack(word, v):
        v[0] = low(word[0])
        v[1] = high(word[0])
        v[2] = low(word[1])
        v[3] = high(word[1])
        v[4] = low(word[2])
        v[5] = high(word[2])
        v[6] = low(word[3])
        v[7] = high(word[3])

    return unpack


@device
def _low_half(bits):
    return _ptx.half_to_f32(np.uint16(bits & 0xFFFF))


@device
def _high_half(bits):
    return _ptx.half_to_f32(np.uint16(bits >> 16))


@device
def _low_bfloat16(bits):
    return _ptx.bits_to_f32(np.uint32(bits << 16))


@device
def _high_bfloat16(bits):
    return _ptx.bits_to_f32(np.uint32(bits & 0xFFFF0000))


@device
def _store_word_f64(address, v):
    a, b = _ptx.f64_to_bits(v[0])
    c, d = _ptx.f64_to_bits(v[1])
    _ptx.store_word(address, a, b, c, d)


@device
def _store_word_f32(address, v):
    bits = _ptx.f32_to_bits
    _ptx.store_word(address, bits(v[0]), bits(v[1]), bits(v[2]), bits(v[3]))


def _store_pairs(pack):
    @device
    def store(address, v):
        _ptx.store_word(
            address, pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7])
        )

    return store


_PARTS = {
    "float64": (8, _ptx.load_f64, _ptx.store_f64, _unpack_f64, _store_word_f64),
    "float32": (4, _ptx.load_f32, _ptx.store_f32, _unpack_f32, _store_word_f32),
    "float16": (
        2,
        _load_half,
        _store_half,
        _unpack_pairs(_low_half, _high_half),
        _store_pairs(_ptx.pack_half),
    ),
    "bfloat16": (
        2,
        _load_bfloat16,
        _store_bfloat16,
        _unpack_pairs(_low_bfloat16, _high_bfloat16),
        _store_pairs(_ptx.pack_bfloat16),
    ),
}
# float32 whose products are those of tensor cores: a dtype of views only.
_PARTS["tfloat32"] = _PARTS["float32"]


@cache
def storage_of(name):
    """For a dtype: sizes, loads and stores, and the `_math` of its compute type."""
    size, load, store, unpack, store_word = _PARTS[name]
    real = np.float64 if name == "float64" else np.float32
    double = real is np.float64
    return SimpleNamespace(
        name=name,
        size=size,  # bytes
        per_word=16 // size,  # numbers in a word
        real=real,
        type=types.float64 if double else types.float32,
        real_size=8 if double else 4,
        load=load,
        store=store,
        unpack=unpack,
        store_word=store_word,
        get_number=_ptx.load_f64 if double else _ptx.load_f32,  # of the compute type
        put_number=_ptx.store_f64 if double else _ptx.store_f32,
        shared_load=_ptx.shared_load_f64 if double else _ptx.shared_load_f32,
        shared_store=_ptx.shared_store_f64 if double else _ptx.shared_store_f32,
        **vars(math_of(real, size == 2)),
    )
