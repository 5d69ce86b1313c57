"""PTX instructions that Numba has no name for, as functions of device code.

All inline PTX is here and in `_tensor_cores.py`. Each function is one instruction, inlined where it
is called, so the PTX of a kernel has it as written here. Addresses are int64 numbers, which arrays
of any library have, and a launch takes less time for a number than for an array (`_launch.py`). See
the PTX ISA, sections 9.7.9 (moving data) and 9.7.3 (floats).

Values of a word, the 16 bytes that one instruction moves, are four uint32.
"""

from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic

_LLVM = {
    types.uint16: ir.IntType(16),
    types.uint32: ir.IntType(32),
    types.uint64: ir.IntType(64),
    types.int64: ir.IntType(64),
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
}
# The letter by which inline PTX asks for a register of that type.
_REGISTER = {
    types.uint16: "h",
    types.uint32: "r",
    types.uint64: "l",
    types.int64: "l",
    types.float32: "f",
    types.float64: "d",
}
WORD = types.UniTuple(types.uint32, 4)


def instruction(text, result, arguments, doc, *, pure=False, together=False, tied=0):
    """A device function that is the one PTX instruction `text`.

    ``result`` is None, a number type, or a tuple of them. The compiler may move, merge and drop
    ``pure`` instructions, but not the others. ``together``: it touches no memory, but may not be
    moved into a branch, as all lanes of the warp must take part. The first `tied` arguments are the
    old values of as many results, in the same registers.
    """
    outputs = tuple(result) if isinstance(result, types.BaseTuple) else (result,) if result else ()
    constraints = ["=" + _REGISTER[t] for t in outputs]
    constraints += [str(i) if i < tied else _REGISTER[t] for i, t in enumerate(arguments)]
    if not (pure or together):
        constraints.append("~{memory}")
    if not outputs:
        returned = ir.VoidType()
    elif len(outputs) == 1:
        returned = _LLVM[outputs[0]]
    else:
        returned = ir.LiteralStructType([_LLVM[t] for t in outputs])
    function = ir.FunctionType(returned, [_LLVM[t] for t in arguments])

    def codegen(context, builder, signature, values):
        assembly = ir.InlineAsm(function, text, ",".join(constraints), side_effect=not pure)
        answer = builder.call(assembly, values)
        if not outputs:
            return context.get_dummy_value()
        if len(outputs) == 1:
            return answer
        parts = [builder.extract_value(answer, i) for i in range(len(outputs))]
        return context.make_tuple(builder, signature.return_type, parts)

    signature = (result or types.void)(*arguments)
    # An intrinsic must name its parameters.
    names = ", ".join(f"x{i}" for i in range(len(arguments)))
    scope = {"signature": signature, "codegen": codegen}
    exec(f"def typer(typing, {names}):\n    return signature, codegen", scope)
    scope["typer"].__doc__ = doc
    return intrinsic(scope["typer"])


_I, _F, _D, _U, _L = types.int64, types.float32, types.float64, types.uint32, types.uint64

load_word = instruction(
    "ld.global.v4.u32 {$0, $1, $2, $3}, [$4];", WORD, [_I], "The 16 bytes at an aligned address."
)
store_word = instruction(
    "st.global.v4.u32 [$0], {$1, $2, $3, $4};", None, [_I, _U, _U, _U, _U], "Write 16 bytes."
)
load_u8 = instruction("ld.global.u8 $0, [$1];", _U, [_I], "One byte, unsigned.")
load_u16 = instruction("ld.global.u16 $0, [$1];", _U, [_I], "Two bytes, unsigned.")
load_u32 = instruction("ld.global.u32 $0, [$1];", _U, [_I], "Four bytes, unsigned.")
load_i64 = instruction("ld.global.u64 $0, [$1];", _I, [_I], "Eight bytes.")
load_f32 = instruction("ld.global.f32 $0, [$1];", _F, [_I], "A float32.")
load_f64 = instruction("ld.global.f64 $0, [$1];", _D, [_I], "A float64.")
store_u32 = instruction("st.global.u32 [$0], $1;", None, [_I, _U], "Write four bytes.")
store_u16 = instruction("st.global.u16 [$0], $1;", None, [_I, _U], "Write two bytes.")
store_i64 = instruction("st.global.u64 [$0], $1;", None, [_I, _I], "Write eight bytes.")
store_f32 = instruction("st.global.f32 [$0], $1;", None, [_I, _F], "Write a float32.")
store_f64 = instruction("st.global.f64 [$0], $1;", None, [_I, _D], "Write a float64.")

# Shared memory. Its addresses are those of its own window, 32 bits wide.
shared_load_word = instruction(
    "ld.shared.v4.u32 {$0, $1, $2, $3}, [$4];", WORD, [_U], "16 bytes of shared memory."
)
shared_load_f32 = instruction("ld.shared.f32 $0, [$1];", _F, [_U], "A float32 of shared memory.")
shared_load_f64 = instruction("ld.shared.f64 $0, [$1];", _D, [_U], "A float64 of shared memory.")
shared_load_f32_pair = instruction(
    "ld.shared.v2.f32 {$0, $1}, [$2];", types.UniTuple(_F, 2), [_U], "Two neighbours of float32."
)
shared_load_f64_pair = instruction(
    "ld.shared.v2.f64 {$0, $1}, [$2];", types.UniTuple(_D, 2), [_U], "Two neighbours of float64."
)
shared_load_u16 = instruction("ld.shared.u16 $0, [$1];", _U, [_U], "Two bytes, unsigned.")
shared_load_u32 = instruction("ld.shared.u32 $0, [$1];", _U, [_U], "Four bytes, unsigned.")
shared_load_i64 = instruction("ld.shared.u64 $0, [$1];", _I, [_U], "Eight bytes.")
shared_store_u16 = instruction("st.shared.u16 [$0], $1;", None, [_U, _U], "Write two bytes there.")
shared_store_u32 = instruction("st.shared.u32 [$0], $1;", None, [_U, _U], "Write four bytes there.")
shared_store_i64 = instruction("st.shared.u64 [$0], $1;", None, [_U, _I], "Eight bytes there.")
shared_store_f32 = instruction("st.shared.f32 [$0], $1;", None, [_U, _F], "Write a float32 there.")
shared_store_f64 = instruction("st.shared.f64 [$0], $1;", None, [_U, _D], "Write a float64 there.")
# .cg: through L2 only, as these bytes are not read a second time from global memory.
copy_word_async = instruction(
    "cp.async.cg.shared.global [$0], [$1], 16;",
    None,
    [_U, _I],
    "Begin to copy 16 bytes from global to shared memory.",
)
# The same for the first `bytes` of 16, and zeros for the others.
copy_part_async = instruction(
    "cp.async.cg.shared.global [$0], [$1], 16, $2;",
    None,
    [_U, _I, _U],
    "Begin to copy up to 16 bytes from global to shared memory, and zeros behind them.",
)
copy_f32_async = instruction(
    "cp.async.ca.shared.global [$0], [$1], 4, $2;",
    None,
    [_U, _I, _U],
    "Begin to copy a float32, or zero where 0 bytes are asked for.",
)
copy_f64_async = instruction(
    "cp.async.ca.shared.global [$0], [$1], 8, $2;",
    None,
    [_U, _I, _U],
    "Begin to copy a float64, or zero where 0 bytes are asked for.",
)


AHEAD = 8  # groups of copies that may be under way when `wait_for_copies` returns


def _statement(text, doc):
    """A device function that is an instruction without operands."""

    def typer(typing):
        def codegen(context, builder, signature, values):
            function = ir.FunctionType(ir.VoidType(), [])
            builder.call(ir.InlineAsm(function, text, "~{memory}", side_effect=True), [])
            return context.get_dummy_value()

        return types.void(), codegen

    typer.__doc__ = doc
    return intrinsic(typer)


group_copies = _statement(
    "cp.async.commit_group;",
    "Make a group of the copies that this thread has begun since the last.",
)
wait_for_copies = _statement(
    f"cp.async.wait_group {AHEAD};",
    "Wait until all groups of this thread but the last AHEAD have arrived, and let it read them.",
)

wait_for_all_copies = _statement(
    "cp.async.wait_all;", "Wait until all copies of this thread have arrived, and let it read them."
)
fence_for_tensor_cores = _statement(
    "fence.proxy.async.shared::cta;",
    "Show Hopper's tensor cores what this thread wrote, or waited for, in shared memory.",
)
keep_branch = _statement(
    "", "Nothing, which may not be moved: so a branch that is seldom taken is not made a select."
)


@intrinsic
def dynamic_shared(typing):
    """Address, in shared memory, of the bytes that the launch asked for."""

    def codegen(context, builder, signature, values):
        name, space = "fastce_dynamic_shared", 3
        module = builder.module
        if name in module.globals:
            memory = module.globals[name]
        else:
            memory = ir.GlobalVariable(module, ir.ArrayType(ir.IntType(8), 0), name, space)
            memory.linkage = "external"
            memory.align = 1024  # so that a swizzle by address is one by row
        return builder.ptrtoint(memory, ir.IntType(32))

    return types.uint32(), codegen


# max.f32 drops a NaN, this one keeps it. There is none for float64: see `_math.py`.
max_nan_f32 = instruction(
    "max.NaN.f32 $0, $1, $2;", _F, [_F, _F], "The larger, or NaN if one is NaN.", pure=True
)

exp2_approx = instruction(
    "ex2.approx.ftz.f32 $0, $1;", _F, [_F], "2**x, to 2 ULP; below 2**-126 it is 0.", pure=True
)
# Read again by every call: what is computed from it is not kept in registers between uses.
block_index = instruction("mov.u32 $0, %ctaid.x;", _U, [], "Number of the block.", together=True)
bits_to_f32 = instruction("mov.b32 $0, $1;", _F, [_U], "Float32 of these bits.", pure=True)
f32_to_bits = instruction("mov.b32 $0, $1;", _U, [_F], "Bits of a float32.", pure=True)
bits_to_f64 = instruction(
    "mov.b64 $0, {$1, $2};", _D, [_U, _U], "Float64 of a low and a high half.", pure=True
)
f64_to_bits = instruction(
    "mov.b64 {$0, $1}, $2;", types.UniTuple(_U, 2), [_D], "Low and high half.", pure=True
)
half_to_f32 = instruction(
    "cvt.f32.f16 $0, $1;", _F, [types.uint16], "Float32 of the float16 bits.", pure=True
)
pack_half = instruction(
    "cvt.rn.f16x2.f32 $0, $2, $1;", _U, [_F, _F], "Two float16, the first one low.", pure=True
)
pack_bfloat16 = instruction(
    "cvt.rn.bf16x2.f32 $0, $2, $1;", _U, [_F, _F], "Two bfloat16, the first one low.", pure=True
)
