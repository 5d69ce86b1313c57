"""A GPU of NumPy arrays: runs the PTX of a kernel, to test it where there is no GPU.

All threads of all blocks go through the text together, each instruction one NumPy operation over
the threads that execute it: of all threads that can go on, those that are furthest behind. Threads
meet again where their paths do, and wait at barriers as on hardware. It models neither the time
that a GPU takes nor what `ptxas` makes of the text. But it is stricter than hardware:

- every access of memory is checked (`ptx_memory.py`);
- the lanes that a shuffle names must all take part, and the threads of a block in its barrier;
- ``ex2.approx`` may err by 2**-22 on hardware, and here does, one way or the other, but for whole
  numbers.

An instruction that no kernel has used yet is a KeyError. See the PTX ISA for what it does.
"""

import re

import numpy as np

from support.ptx_memory import Shared
from support.ptx_text import PTXError

TYPES = {
    "pred": np.bool_,
    **{f"{k}{n}": np.dtype(f"{'i' if k == 's' else 'u'}{n // 8}").type
       for k in "sub" for n in (8, 16, 32, 64)},
    "f32": np.float32,
    "f64": np.float64,
    "f16": np.uint16,
}  # fmt: skip

# --- arithmetic -------------------------------------------------------------------------------


def _fma(a, b, c):
    if a.dtype == np.float32:  # the product is exact in float64
        return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(
            np.float32
        )
    product, plain = a * b, a * b + c
    split = 134217729.0
    big = split * a
    a_high = big - (big - a)
    a_low = a - a_high
    big = split * b
    b_high = big - (big - b)
    b_low = b - b_high
    lost = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    back = plain - product
    lost = lost + ((product - (plain - back)) + (c - back))
    better = plain + lost
    return np.where(np.isfinite(better), better, plain)


def _fma_down(a, b, c):
    exact = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
    near = exact.astype(np.float32)
    return np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near)


def _add_towards(a, b, direction):
    """a + b of float32, rounded down (-1), up (1) or towards zero (0)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    total = a + b
    back = total - a
    lost = (a - (total - back)) + (b - back)
    near = total.astype(np.float32)
    off = (near.astype(np.float64) - total) - lost  # of near from what is exact
    if direction == 0:
        direction = -np.sign(total)
    past = off * direction < 0
    towards = np.copysign(np.float32(np.inf), direction).astype(np.float32)
    return np.where(past, np.nextafter(near, towards), near)


def _ex2_approx(a, ftz):
    exact = np.exp2(a.astype(np.float64))
    # As wrong as the instruction may be: up or down by the bits of its argument.
    sign = np.where(a.view(np.uint32) * np.uint32(2654435761) >> np.uint32(31), 1.0, -1.0)
    sign = np.where(a == np.rint(a), 0, sign)  # libdevice's tanh relies on that
    result = (exact * (1 + sign * 2.0**-22.5)).astype(np.float32)
    return np.where(np.abs(result) < 2.0**-126, np.float32(0), result) if ftz else result


def _mul_high(a, b):
    if a.itemsize == 4:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return (a.astype(wide) * b.astype(wide) >> wide(32)).astype(a.dtype)
    return np.array([int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)]).astype(a.dtype)


def _shift_left(a, n):
    bits = a.itemsize * 8
    return np.where(n < bits, a << np.minimum(n, bits - 1).astype(a.dtype), a.dtype.type(0))


def _shift_right(a, n):
    bits = a.itemsize * 8
    full = a.dtype.type(0) if a.dtype.kind == "u" else a >> a.dtype.type(bits - 1)
    return np.where(n < bits, a >> np.minimum(n, bits - 1).astype(a.dtype), full)


def _max_nan(a, b):
    return np.where(np.isnan(a) | np.isnan(b), np.nan, np.maximum(a, b)).astype(a.dtype)


def _bfloat16_bits(x):
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded)


def _convert(a, to, source, modes):
    if to == "f32" and source == "f16":
        return a.view(np.float16).astype(np.float32)
    if to == "f16":
        return a.astype(np.float16).view(np.uint16)
    to = TYPES[to]
    if np.dtype(to).kind == "f":
        if "sat" in modes:
            a = np.where(a > 0, np.minimum(a, 1), 0)  # NaN: 0
        if a.dtype.kind == "f" and np.dtype(to).kind == "f" and {"rni", "rmi", "rzi"} & set(modes):
            a = {"rni": np.rint, "rmi": np.floor, "rzi": np.trunc}[
                next(m for m in modes if m in ("rni", "rmi", "rzi"))
            ](a)
        return a.astype(to)
    if a.dtype.kind == "f":
        round_ = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
        a = round_[next(m for m in modes if m in round_)](a.astype(np.float64))
        limit = np.iinfo(to)
        a = np.where(np.isnan(a), 0, np.clip(a, float(limit.min), float(limit.max)))
        return a.astype(to)
    return a.astype(to)


def _listed(operand):
    """The registers in braces."""
    return [r.strip() for r in operand.strip("{}").split(",")]


def _halves(bits):
    return np.stack([bits & np.uint32(0xFFFF), bits >> np.uint32(16)], -1)


# What the tensor cores take the bits of a register for.
_TENSOR_NUMBERS = {
    "f16": lambda bits: _halves(bits).astype(np.uint16).view(np.float16).astype(np.float64),
    "bf16": lambda bits: (_halves(bits) << np.uint32(16)).view(np.float32).astype(np.float64),
    "tf32": lambda bits: (
        (bits & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)[..., None]
    ),
}
_COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal,
    "hi": np.greater, "hs": np.greater_equal,
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)), "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}  # fmt: skip
_FLOAT_MIN_MAX = {"min": np.fmin, "max": np.fmax}
_INT_MIN_MAX = {"min": np.minimum, "max": np.maximum}


def _compare(name, a, b):
    if name.endswith("u") and name[:-1] in _COMPARE:  # or unordered
        return _COMPARE[name[:-1]](a, b) | np.isnan(a) | np.isnan(b)
    if name == "ne" and a.dtype.kind == "f":
        return (a != b) & ~(np.isnan(a) | np.isnan(b))
    return _COMPARE[name](a, b)


_BINARY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "shl": _shift_left, "shr": _shift_right, "copysign": lambda a, b: np.copysign(b, a),
}  # fmt: skip
_UNARY = {
    "mov": lambda a: a, "neg": np.negative, "abs": np.abs, "not": np.invert,
    "sqrt": np.sqrt, "rcp": lambda a: 1 / a, "cvta": lambda a: a, "lg2": np.log2,
    "clz": lambda a: np.array([a.itemsize * 8 - int(x).bit_length() for x in a], np.uint32),
}  # fmt: skip


# --- the machine ------------------------------------------------------------------------------


class Launch:
    """One launch: registers and places of all threads, until they have all returned."""

    def __init__(self, program, memory, blocks, threads, shared, arguments):
        self.program, self.memory = program, memory
        self.width, self.height = threads if isinstance(threads, tuple) else (threads, 1)
        self.per_block = self.width * self.height
        if self.per_block % 32 or self.per_block > 1024:
            raise PTXError(f"a block of {self.per_block} threads")
        self.blocks = blocks
        self.count = blocks * self.per_block
        self.thread = np.arange(self.count)
        self.block = self.thread // self.per_block
        if len(program.parameters) != len(arguments):
            raise PTXError(f"{len(program.parameters)} parameters, {len(arguments)} arguments")
        self.parameters = {
            name: TYPES[type](argument % 2**64 if type[0] in "ub" else argument)
            for (type, name), argument in zip(program.parameters, arguments, strict=True)
        }
        self.shared = Shared(blocks, program.shared_size + shared, self.count)
        self.registers = {}
        self.place = np.zeros(self.count, np.int64)  # of each thread: its next instruction
        self.waits = np.zeros(self.count, bool)
        within = (self.thread % self.per_block).astype(np.uint32)
        every = np.ones(self.count, np.uint32)
        self.special = {
            "%tid.x": within % np.uint32(self.width),
            "%tid.y": within // np.uint32(self.width),
            "%tid.z": every - every,
            "%ntid.x": every * np.uint32(self.width),
            "%ntid.y": every * np.uint32(self.height),
            "%ntid.z": every,
            "%ctaid.x": self.block.astype(np.uint32),
            "%nctaid.x": every * np.uint32(blocks),
        }

    def run(self):
        done = len(self.program.code)
        starts, code = self.program.starts, self.program.code
        with np.errstate(all="ignore"):
            while True:
                ready = ~self.waits & (self.place < done)
                if not ready.any():
                    if self.waits.any():
                        self._release()
                        continue
                    return
                here = self.place[ready].min()
                now = np.flatnonzero(ready & (self.place == here))
                following = starts[np.searchsorted(starts, here, side="right") :]
                end = following[0] if len(following) else done
                meets = code[here].opcode[0] in ("bar", "barrier", "shfl")
                if meets:
                    self.waits[now] = True
                    self._release()
                    continue
                for at in range(here, end):
                    now = self._execute(code[at], at, now)
                self.place[now] = end

    def _release(self):
        """Let those go on whose whole warp, or block, has come to the same place."""
        code, done = self.program.code, len(self.program.code)
        alive = self.place < done
        waiting = np.flatnonzero(self.waits)
        progressed = False
        for place in np.unique(self.place[waiting]):
            one = code[place]
            shuffle = one.opcode[0] == "shfl"
            size = 32 if shuffle or "warp" in one.opcode else self.per_block
            group = self.thread // size
            there = self.waits & (self.place == place)
            named = slice(None) if size == 32 else alive  # a shuffle names all lanes of the warp
            expected = np.bincount(group[named], minlength=group[-1] + 1)
            complete = np.bincount(group[there], minlength=group[-1] + 1) == expected
            go = np.flatnonzero(there & complete[group])
            if not len(go):
                continue
            progressed = True
            if shuffle:
                self._execute(one, place, go)
            elif "warp" not in one.opcode:
                self.shared.barrier(np.unique(self.block[go]))
            else:
                self.shared.warp_barrier(np.unique(go >> 5))
            self.waits[go] = False
            self.place[go] = place + 1
        if not progressed and not (~self.waits & alive).any():
            raise PTXError("threads wait for each other for ever, at barriers or shuffles")

    def _get(self, operand, type, now):
        """The values of an operand for the threads `now`."""
        kind = TYPES[type]
        if operand in self.special:
            return self.special[operand][now].astype(kind)
        if operand == "%laneid":
            return (self.thread[now] % 32).astype(kind)
        if operand.startswith("%"):
            values = self.registers.get(operand)
            if values is None:
                raise PTXError(f"register {operand} is read before it is written")
            values = values[now]
            if values.dtype == kind:
                return values
            if values.itemsize == np.dtype(kind).itemsize:
                return values.view(kind)
            return values.astype(kind)  # the low bits of a wider register
        if operand in self.program.shared:
            return np.full(len(now), self.program.shared[operand], kind)
        if operand.startswith("0f"):
            value = np.uint32(int(operand[2:], 16)).view(np.float32)
        elif operand.startswith("0d"):
            value = np.uint64(int(operand[2:], 16)).view(np.float64)
        else:
            value = int(operand, 0)
            if np.dtype(kind).kind in "iu":
                value = np.array([value & (2 ** (8 * np.dtype(kind).itemsize) - 1)], np.uint64)
                value = value.astype(f"u{np.dtype(kind).itemsize}").view(kind)[0]
        return np.full(len(now), value, kind)

    def _set(self, register, values, now):
        if register == "_":
            return
        old = self.registers.get(register)
        if old is None or old.dtype != values.dtype:
            kind = values.dtype
            new = np.zeros(self.count, kind)
            if old is not None and old.itemsize == kind.itemsize:
                new = old.view(kind).copy()
            elif old is not None:
                new = old.astype(kind)
            old = self.registers[register] = new
        old[now] = values

    def _address(self, operand, now):
        """(addresses as integers, whether they name a parameter)"""
        inside = operand.strip("[]").strip()
        base, _, offset = inside.partition("+")
        base = base.strip()
        offset = int(offset) if offset else 0
        if base in self.parameters:
            return self.parameters[base], True
        if base in self.program.shared:
            return np.full(len(now), self.program.shared[base] + offset, np.int64), False
        values = self.registers[base][now]
        wide = values.view(np.int64) if values.itemsize == 8 else values.astype(np.uint32)
        return wide.astype(np.int64) + offset, False

    def _execute(self, one, at, now):
        """Run one instruction for the threads `now`; those that stay behind it."""
        name, *modes = one.opcode
        if one.guard:
            holds = self.registers[one.guard][now] == one.sense
            if name == "bra":
                self.place[now[holds]] = self.program.labels[one.operands[0]]
                return now[~holds]
            if name == "ret":
                self.place[now[holds]] = len(self.program.code)
                return now[~holds]
            self._do(one, name, modes, now[holds])
            return now
        if name == "bra":
            self.place[now] = self.program.labels[one.operands[0]]
            return now[:0]
        if name == "ret":
            self.place[now] = len(self.program.code)
            return now[:0]
        self._do(one, name, modes, now)
        return now

    def _do(self, one, name, modes, now):
        if not len(now):
            return
        special = getattr(self, f"_do_{name}", None)
        if special:
            special(one, modes, now)
            return
        if not modes:
            raise PTXError(f"an instruction that this machine does not know: {one.text}")
        to, *sources = one.operands
        type = modes[-1]
        towards = {"rm": -1, "rp": 1, "rz": 0}.get(modes[0])
        if towards is not None and name in ("add", "sub") and type == "f32":
            a, b = (self._get(s, type, now) for s in sources)
            values = _add_towards(a, b if name == "add" else -b, towards)
        elif towards is not None:
            raise PTXError(f"an instruction that this machine does not know: {one.text}")
        elif name in _BINARY:
            second = "u32" if name in ("shl", "shr") else type
            values = _BINARY[name](
                self._get(sources[0], type, now), self._get(sources[1], second, now)
            )
        elif name in ("min", "max"):
            a, b = (self._get(s, type, now) for s in sources)
            if "NaN" in modes:
                values = _max_nan(a, b)
            else:
                values = (_FLOAT_MIN_MAX if type[0] == "f" else _INT_MIN_MAX)[name](a, b)
        else:
            values = _UNARY[name](self._get(sources[0], type, now))
        self._set(to, values, now)

    def _do_mov(self, one, modes, now):
        to, source = one.operands
        type = modes[-1]
        if source.startswith("{"):
            low, high = (self._get(s, "b32", now) for s in _listed(source))
            both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
            self._set(to, both, now)
        elif to.startswith("{"):
            low, high = _listed(to)
            both = self._get(source, "b64", now)
            self._set(low, (both & np.uint64(0xFFFFFFFF)).astype(np.uint32), now)
            self._set(high, (both >> np.uint64(32)).astype(np.uint32), now)
        else:
            self._set(to, self._get(source, type, now), now)

    def _do_mul(self, one, modes, now):
        to, a, b = one.operands
        type = modes[-1]
        a, b = self._get(a, type, now), self._get(b, type, now)
        if "wide" in modes:
            wide = TYPES[f"{type[0]}64" if type.endswith("32") else f"{type[0]}32"]
            values = a.astype(wide) * b.astype(wide)
        else:
            values = _mul_high(a, b) if "hi" in modes else a * b
        self._set(to, values, now)

    def _do_mad(self, one, modes, now):
        to, a, b, c = one.operands
        type = modes[-1]
        a, b = self._get(a, type, now), self._get(b, type, now)
        if "wide" in modes:
            wide = f"{type[0]}64" if type.endswith("32") else f"{type[0]}32"
            a, b, type = a.astype(TYPES[wide]), b.astype(TYPES[wide]), wide
        self._set(to, a * b + self._get(c, type, now), now)

    def _do_fma(self, one, modes, now):
        to, *sources = one.operands
        a, b, c = (self._get(s, modes[-1], now) for s in sources)
        self._set(to, (_fma_down if "rm" in modes else _fma)(a, b, c), now)

    def _do_div(self, one, modes, now):
        to, *sources = one.operands
        a, b = (self._get(s, modes[-1], now) for s in sources)
        if modes[-1][0] == "f":
            values = a / b
        else:  # towards zero; by zero, anything
            b = np.where(b == 0, b.dtype.type(1), b)
            values = (a - np.fmod(a, b)) // b
        self._set(to, values, now)

    def _do_rem(self, one, modes, now):
        to, *sources = one.operands
        a, b = (self._get(s, modes[-1], now) for s in sources)
        self._set(to, np.fmod(a, np.where(b == 0, b.dtype.type(1), b)), now)

    def _do_ex2(self, one, modes, now):
        to, a = one.operands
        self._set(to, _ex2_approx(self._get(a, "f32", now), "ftz" in modes), now)

    def _do_cvt(self, one, modes, now):
        to, *sources = one.operands
        into, source = modes[-2:]
        if into == "tf32":  # to the nearest, ties away from zero
            bits = self._get(sources[0], "b32", now)
            self._set(to, (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000), now)
            return
        if into in ("f16x2", "bf16x2"):
            high, low = (self._get(s, "f32", now) for s in sources)
            if into == "bf16x2":
                bits = [_bfloat16_bits(x) for x in (low, high)]
            else:
                bits = [x.astype(np.float16).view(np.uint16).astype(np.uint32) for x in (low, high)]
            self._set(to, bits[0] | bits[1] << np.uint32(16), now)
            return
        values = _convert(self._get(sources[0], source, now), into, source, modes[:-2])
        self._set(to, values, now)

    def _do_bfi(self, one, modes, now):
        """Bits of a, put into b at a place."""
        to, a, b, place, length = one.operands
        type = modes[-1]
        place, length = int(place), int(length)
        mask = TYPES[type](((1 << length) - 1) << place)
        a, b = self._get(a, type, now), self._get(b, type, now)
        self._set(to, (a << TYPES[type](place)) & mask | b & ~mask, now)

    def _do_setp(self, one, modes, now):
        to, a, b, *more = one.operands
        values = _compare(modes[0], self._get(a, modes[-1], now), self._get(b, modes[-1], now))
        if more:  # joined with another predicate
            other = self._get(more[0].lstrip("!"), "pred", now)
            other = ~other if more[0].startswith("!") else other
            values = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[modes[1]](
                values, other
            )
        self._set(to, values, now)

    def _do_selp(self, one, modes, now):
        to, a, b, p = one.operands
        type = modes[-1]
        chosen = np.where(
            self._get(p, "pred", now), self._get(a, type, now), self._get(b, type, now)
        )
        self._set(to, chosen, now)

    def _checked(self, shared, where, size, text, now, reading):
        """The memory that is accessed, and the checked places in it."""
        if not shared:
            return self.memory, self.memory.check(where, size, text, reading)
        threads, blocks = self.thread[now], self.block[now]
        return self.shared, self.shared.check(where, size, text, threads, blocks, reading)

    def _do_ld(self, one, modes, now):
        to, address = one.operands
        type = modes[-1]
        registers = _listed(to)
        where, is_parameter = self._address(address, now)
        if is_parameter:
            self._set(to, np.full(len(now), where).view(TYPES[type]), now)
            return
        kind = TYPES[type]
        item = np.dtype(kind).itemsize
        size = item * len(registers)
        space, at = self._checked("shared" in modes, where, size, one.text, now, reading=True)
        for i, register in enumerate(registers):
            values = space.load(at, kind, i * item)
            if item < 4:
                values = values.astype(np.int32 if type[0] == "s" else np.uint32)
                values = values.astype(np.uint16) if register.startswith("%rs") else values
            self._set(register, values, now)

    def _do_st(self, one, modes, now):
        address, source = one.operands
        type = modes[-1]
        registers = _listed(source)
        where, _ = self._address(address, now)
        item = np.dtype(TYPES[type]).itemsize
        size = item * len(registers)
        space, at = self._checked("shared" in modes, where, size, one.text, now, reading=False)
        for i, register in enumerate(registers):
            wider = f"b{max(32, item * 8)}" if item < 4 and register.startswith("%r") else type
            if register.startswith("%rs"):
                wider = "b16"
            values = self._get(register, wider, now).astype(TYPES[type])
            space.store(at, values, i * item)

    def _do_cp(self, one, modes, now):
        """cp.async: at once, but it may not be read before the thread has waited."""
        threads = self.thread[now]
        if modes[1] == "commit_group":
            self.shared.group[threads] += 1
            return
        if modes[1] == "wait_group":
            self.shared.arrived[threads] = self.shared.group[threads] - int(one.operands[0])
            return
        if modes[1] == "wait_all":
            self.shared.group[threads] += 1
            self.shared.arrived[threads] = self.shared.group[threads]
            return
        if modes[:1] != ["async"] or modes[1] not in ("cg", "ca"):
            raise PTXError(f"an instruction that this machine does not know: {one.text}")
        to, source, size = one.operands[:3]
        size = int(size)
        into, _ = self._address(to, now)
        from_, _ = self._address(source, now)
        given = np.full(len(now), size)
        if len(one.operands) > 3:  # zeros behind so many bytes
            given = self._get(one.operands[3], "u32", now).astype(np.int64)
        if (given > size).any() or (from_ % size).any():
            raise PTXError(f"misaligned: {one.text}")
        there = self.shared.check(into, size, one.text, threads, self.block[now], reading=False)
        byte, column = there[:, None] + np.arange(size), np.arange(size)
        live = column < given[:, None]
        source = (from_[:, None] + column)[live]
        self.shared.bytes[byte] = 0
        self.shared.bytes[byte[live]] = self.memory.bytes[
            self.memory.check(source, 1, one.text, reading=True)
        ]
        self.shared.copy[byte] = self.shared.group[threads][:, None]

    def _warps(self, one, now):
        """How many whole warps these threads are: some instructions need all lanes."""
        whole = len(now) % 32 == 0
        if not whole or (now.reshape(-1, 32) - now[::32, None] // 32 * 32 != np.arange(32)).any():
            raise PTXError(f"not all lanes of a warp take part: {one.text}")
        return len(now) // 32

    def _do_ldmatrix(self, one, modes, now):
        """Four matrices of 8 rows of 16 bytes, whose addresses are in the lanes."""
        to, address = one.operands
        if "x4" not in modes:
            raise PTXError(f"an instruction that this machine does not know: {one.text}")
        warps = self._warps(one, now)
        where, _ = self._address(address, now)
        _, at = self._checked(True, where, 16, one.text, now, reading=True)
        rows = self.shared.bytes[at[:, None] + np.arange(16)].view(np.uint16)
        matrices = rows.reshape(warps, 4, 8, 8)
        if "trans" in modes:
            matrices = matrices.swapaxes(2, 3)
        pairs = np.ascontiguousarray(matrices).view(np.uint32).reshape(warps, 4, 32)
        for i, register in enumerate(_listed(to)):
            self._set(register, pairs[:, i].reshape(-1), now)

    def _do_mma(self, one, modes, now):
        """D = A B + C of whole warps, in the fragments of the PTX ISA."""
        d, a, b, c = map(_listed, one.operands)
        shape, kind = modes[2], modes[-2]
        if modes[3:5] != ["row", "col"] or shape not in ("m16n8k16", "m16n8k8"):
            raise PTXError(f"an instruction that this machine does not know: {one.text}")
        warps = self._warps(one, now)
        per_register = 2 if shape == "m16n8k16" else 1
        g, t = np.arange(32) >> 2, np.arange(32) & 3

        def numbers(register):
            bits = self._get(register, "b32", now).reshape(warps, 32)
            return _TENSOR_NUMBERS[kind](bits)  # (warps, 32, numbers in a register)

        depth = 8 * per_register
        left, right = np.zeros((warps, 16, depth)), np.zeros((warps, depth, 8))
        total = np.zeros((warps, 16, 8))
        for e in range(per_register):
            for i, register in enumerate(a):
                column = per_register * t + e + (i >> 1) * depth // 2
                left[:, g + 8 * (i & 1), column] = numbers(register)[..., e]
            for i, register in enumerate(b):
                right[:, per_register * t + e + i * depth // 2, g] = numbers(register)[..., e]
        for i, register in enumerate(c):
            values = self._get(register, "f32", now).reshape(warps, 32)
            total[:, g + 8 * (i >> 1), 2 * t + (i & 1)] = values
        total = (left @ right + total).astype(np.float32)
        for i, register in enumerate(d):
            self._set(register, total[:, g + 8 * (i >> 1), 2 * t + (i & 1)].reshape(-1), now)

    def _do_shfl(self, one, modes, now):
        to, source, lanes, _, mask = one.operands
        if not (self._get(mask, "u32", now) == 0xFFFFFFFF).all() or modes[1] != "bfly":
            raise PTXError(f"a shuffle that this machine does not know: {one.text}")
        to, _, valid = to.partition("|")
        values = self._get(source, "b32", now)
        all_values = np.zeros(self.count, np.uint32)
        all_values[now] = values
        partner = self.thread[now] ^ self._get(lanes, "u32", now).astype(np.int64)
        self._set(to, all_values[partner], now)
        if valid:
            self._set(valid, np.ones(len(now), bool), now)

    def _do_wgmma(self, one, modes, now):
        """D = A B + D of whole warpgroups, B and maybe A in shared memory. How descriptors, the
        128-byte swizzle and matrices with either side in front go together is read off the PTX ISA.
        """
        if modes[0] != "mma_async":
            return  # fences and waits: here everything is done at once
        warps = self._warps(one, now)
        if warps % 4 or (now[::128] % 128).any():
            raise PTXError(f"not all warps of a warpgroup take part: {one.text}")
        groups, shape, kind = warps // 4, modes[3], modes[-1]
        columns = int(re.fullmatch(r"m64n(\d+)k16", shape).group(1))
        d, a, b, scale, *immediates = one.operands
        if immediates[:2] != ["1", "1"] or not self._get(scale, "pred", now).all():
            raise PTXError(f"a product that this machine does not know: {one.text}")
        d = _listed(d)
        g, t = np.arange(128) % 32 >> 2, np.arange(128) & 3
        row = 16 * (np.arange(128) >> 5) + g
        if a.startswith("{"):
            left = np.zeros((groups, 64, 16))
            for i, register in enumerate(_listed(a)):
                numbers = _TENSOR_NUMBERS[kind](
                    self._get(register, "b32", now).reshape(groups, 128)
                )
                for e in range(2):
                    left[:, row + 8 * (i & 1), 2 * t + e + 8 * (i >> 1)] = numbers[..., e]
        else:
            left = self._described(one, a, kind, 64, immediates[2] == "1", now)
        right = self._described(one, b, kind, columns, immediates[-1] == "1", now)
        total = np.zeros((groups, 64, columns))
        places = [(row + 8 * (i >> 1 & 1), 8 * (i >> 2) + 2 * t + (i & 1)) for i in range(len(d))]
        for register, (r, c) in zip(d, places, strict=True):
            total[:, r, c] = self._get(register, "f32", now).reshape(groups, 128)
        total = (left @ right.swapaxes(1, 2) + total).astype(np.float32)
        for register, (r, c) in zip(d, places, strict=True):
            self._set(register, total[:, r, c].reshape(-1), now)

    def _described(self, one, operand, kind, rows, across, now):
        """The matrix of a descriptor, (warpgroups, rows, 16): rows, or with `across` the 16, lie
        side by side in memory.
        """
        described = self._get(operand, "b64", now)
        if (described.reshape(-1, 128) != described[::128, None]).any():
            raise PTXError(f"descriptors differ in a warpgroup: {one.text}")
        described = described[::128].astype(object)
        if {int(x) >> 62 for x in described} != {1}:
            raise PTXError(f"a layout that this machine does not know: {one.text}")
        starts, leading, stride = (
            np.array([(int(x) >> place & 0x3FFF) << 4 for x in described]) for place in (0, 16, 32)
        )
        r, k = np.arange(rows)[:, None], np.arange(16)[None]
        if across:
            inside = r % 64 * 2 + k % 8 * 128
            at = r // 64 * leading[:, None, None] + k // 8 * stride[:, None, None]
        else:
            inside = r % 8 * 128 + 2 * k
            at = r // 8 * stride[:, None, None] + 0 * k
        at = at + inside + starts[:, None, None]
        at ^= (at >> 7 & 7) << 4
        flat = at.reshape(-1)
        first = np.repeat(now[::128], rows * 16)
        where = self.shared.check(flat, 2, one.text, first, self.block[first], reading=True)
        bits = self.shared.bytes.view(np.uint16)[where // 2].astype(np.uint32)
        return _TENSOR_NUMBERS[kind](bits)[..., 0].reshape(at.shape)

    def _do_membar(self, one, modes, now):
        """Nothing: memory is in order here."""

    _do_fence = _do_membar
