"""Every CUDA kernel, in every configuration, as PTX and as machine code, without a GPU.

`ptxas` says what a kernel needs: local memory, spilled registers, registers. The instructions of
the inner loops are looked for in the PTX.
"""

import itertools
import re
import subprocess

import numpy as np
import pytest

pytest.importorskip("fastce.kernels.cuda", exc_type=ImportError)  # without numba-cuda
from cuda.pathfinder import find_nvidia_binary_utility
from support import simulated_gpu as sim
from support.ptx_machine import Launch
from support.ptx_memory import Memory
from support.ptx_text import Program, PTXError

from fastce.kernels.cuda import _device, _launch, _loss
from fastce.kernels.cuda import binary_cross_entropy as bce
from fastce.kernels.cuda import cross_entropy as ce
from fastce.kernels.cuda import log_softmax as ls
from fastce.kernels.cuda._softmax_loss.launch import kernels_of
from fastce.kernels.cuda._storage import storage_of
from fastce.kernels.cuda.attention import launch as attention_launch
from fastce.kernels.cuda.attention.backward import (
    backward_kv_of,
    backward_q_of,
    delta_of,
    norms_of,
    unbuffered_size,
)
from fastce.kernels.cuda.attention.extras import _fill_spans, _summing
from fastce.kernels.cuda.attention.forward import forward_of, merge_of
from fastce.kernels.cuda.attention.mask import mask_gradient_of
from fastce.kernels.cuda.attention.work import Problem

DTYPES = ("float64", "float32", "float16", "bfloat16")
ARCHITECTURES = ((8, 0), (9, 0))
# On the older one, the dtype whose instructions it lacks most of: a dtype is a minute of the tests.
of_dtypes = pytest.mark.parametrize(
    ("name", "cc"),
    [*((name, (9, 0)) for name in DTYPES), ("bfloat16", (8, 0))],
    ids=lambda value: value if isinstance(value, str) else f"sm_{value[0]}{value[1]}",
)
# The most registers of a thread, by shape of work and dtype. A multiprocessor has 65536: 64 are
# what 1024 threads can have, which is what the longest rows get (512 for float64).
REGISTERS = {"rows": 64, "tiles": 48, "columns": 48}
REGISTERS_F64 = {"rows": 104, "tiles": 64, "columns": 64}
REGISTERS_TRANSFORMED = {"rows": 104, "tiles": 72, "columns": 80}


def kernels(name):
    """(what it is, shape of work, kernel) of all kernels for one dtype."""
    families = {op: ls._forward(name, op) for op in ("logsumexp", "log_softmax", "softmax")}
    for op in "softmax_backward", "log_softmax_backward":
        families[op] = ls._backward(name, op)
    wide = ("wide",) if storage_of(name).size == 2 else ()
    for mode in "label", "smooth", "probs", *wide, "pick", "transform", "entropy":
        for grads in False, True:
            families[f"loss of {mode}{' with gradient' if grads else ''}"] = kernels_of(
                name, mode, grads
            )
    for what, family in families.items():
        for shape, kernel in vars(family).items():
            yield what, shape, kernel


def assemble(ptx, cc, cubin="/dev/null"):
    """What ptxas says of a kernel: bytes of stack, bytes spilled, registers."""
    ptxas = find_nvidia_binary_utility("ptxas")
    assert ptxas, "ptxas comes with the package nvidia-cuda-nvcc"
    done = subprocess.run(
        [ptxas, f"-arch=sm_{cc[0]}{cc[1]}", "-v", "-o", cubin, "-"],
        input=ptx, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "C75" not in done.stderr, done.stderr  # products of warpgroups one after the other
    stack, stores, loads = re.search(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr
    ).groups()
    registers = re.search(r"Used (\d+) registers", done.stderr).group(1)
    return int(stack), int(stores) + int(loads), int(registers)


@of_dtypes
def test_resources(name, cc):
    most = REGISTERS_F64 if name == "float64" else REGISTERS
    for what, shape, kernel in kernels(name):
        ptx = sim.ptx_of(kernel, sim.argument_types(kernel), cc)
        stack, spilled, registers = assemble(ptx, cc)
        found = f"{what}, {shape}, {name}: {stack} {spilled} {registers}"
        is_transformed = "transform" in what or "entropy" in what
        assert (stack, spilled) == (0, 0), found
        assert ".local" not in ptx, found
        assert registers <= (REGISTERS_TRANSFORMED if is_transformed else most)[shape], found
        if shape == "rows":
            lanes = _launch.TRANSFORMED if is_transformed else _launch.LONGEST[name]
            assert registers * lanes <= 65536, found
            if "pick" not in what:  # which reads one number of a row
                least = 1 if "wide" in what and "gradient" not in what else 2
                assert ptx.count("ld.global.v4.u32") >= least, found
                # Kept in shared memory for a second pass, which only needs what is written.
                keeps = not any(mode in what for mode in ("smooth", "probs", "wide", "entropy"))
                assert ("cp.async.cg.shared.global" in ptx) == keeps, found
            if "with gradient" in what or (what not in ("logsumexp",) and "loss" not in what):
                assert "st.global.v4.u32" in ptx, found


@pytest.mark.parametrize("cc", ARCHITECTURES, ids=lambda cc: f"sm_{cc[0]}{cc[1]}")
@pytest.mark.parametrize("kernel", [_loss.add_up, ce._scan, ce._scan_again])
def test_resources_of_reductions(kernel, cc):
    stack, spilled, registers = assemble(sim.ptx_of(kernel, sim.argument_types(kernel), cc), cc)
    assert (stack, spilled) == (0, 0)
    assert registers <= 64


# The most registers of a thread of binary cross-entropy: a multiprocessor has three blocks of 256
# at 80, and two at 104, where a thread computes on 8 numbers of 16 bits at once.
ELEMENTS = {"float64": 96, "float32": 80, "float16": 104, "bfloat16": 104}


@of_dtypes
def test_resources_of_binary_cross_entropy(name, cc):
    forms = bce.OF_PROBABILITIES, bce.OF_LOGITS, bce.FOCAL, bce.FOCAL_POWER
    kinds = bce.OWN, bce.LABELS, *((bce.WIDE,) if storage_of(name).size == 2 else ())
    for options in itertools.product(forms, kinds, (False, True)):
        form, kind, grads = options
        kernel = bce.kernel_of(name, *options)
        ptx = sim.ptx_of(kernel, sim.argument_types(kernel), cc)
        stack, spilled, registers = assemble(ptx, cc)
        found = f"{name} {options}: {stack} {spilled} {registers}"
        assert (stack, spilled) == (0, 0), found
        assert ".local" not in ptx, found
        assert registers <= ELEMENTS[name], found
        words = form != bce.FOCAL_POWER
        assert ptx.count("ld.global.v4.u32") >= words * (2 if kind == bce.OWN else 1), found
        assert ("st.global.v4.u32" in ptx) == (words and grads), found
    for kernel in bce._scan_of(name), bce._scan_again:
        stack, spilled, registers = assemble(sim.ptx_of(kernel, sim.argument_types(kernel), cc), cc)
        assert (stack, spilled) == (0, 0)
        assert registers <= 64


# ---- attention -------------------------------------------------------------------------------

# dtype, numbers in a row, queries, and whether there is a mask or a softcap. Widths in between have
# the tiles of the next one here.
ATTENTION = (
    ("bfloat16", 64, 4096, False),
    ("bfloat16", 128, 4096, False),
    ("bfloat16", 128, 1, False),
    ("tfloat32", 128, 4096, False),
    ("float32", 128, 4096, False),
    ("float64", 128, 4096, False),
)


def attention_kernels(name, width, queries, general):
    """(what it is, tiling, bytes of shared memory, kernel) of a forward and its gradients."""
    size = storage_of(name).size
    p = Problem(0, 0, 0, 0, width=width * size, value_width=width * size)
    p = p._replace(queries=queries, keys=4096, heads=32, group=1, entries=2)
    tiling, cut = attention_launch.forward(name, p, general, 0)
    yield "forward", tiling, attention_launch.forward_shared(tiling), forward_of(tiling)
    if cut["splits"] > 1:
        return  # few queries: their gradients have tiles like those of many
    of_q, of_kv = (tiling for tiling, _ in attention_launch.backward(name, p, general, 0))
    yield "norms", of_q, unbuffered_size(of_q), norms_of(of_q)
    yield "gradient of q", of_q, attention_launch.backward_shared(of_q), backward_q_of(of_q)
    yield "gradient of k, v", of_kv, attention_launch.backward_shared(of_kv), backward_kv_of(of_kv)


def machine_code(cubin):
    """The instructions of a kernel for a GPU."""
    nvdisasm = find_nvidia_binary_utility("nvdisasm")
    assert nvdisasm, "nvdisasm comes with the package nvidia-cuda-nvdisasm"
    return subprocess.run(
        [nvdisasm, "-c", cubin], check=True, text=True, capture_output=True
    ).stdout


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width", "queries", "general"), ATTENTION)
def test_resources_of_attention(monkeypatch, tmp_path, name, width, queries, general):
    """Results stay in registers, and tensor cores multiply where they should."""
    monkeypatch.setattr(_device, "limits", sim.Machine().limits)
    cubin = tmp_path / "kernel.cubin"
    for what, tiling, shared, kernel in attention_kernels(name, width, queries, general):
        for cc in ARCHITECTURES if name == "bfloat16" else ARCHITECTURES[1:]:
            ptx = sim.ptx_of(kernel, sim.argument_types(kernel), cc)
            stack, spilled, registers = assemble(ptx, cc, cubin)
            found = f"{what} {tiling}, sm_{cc[0]}{cc[1]}: {stack} {spilled} {registers}"
            # Of 255 registers a few are spilled where two results, or 32 rows, are in them.
            assert stack <= 24, found
            assert spilled <= 64, found
            assert ".local" not in ptx, found
            assert registers * tiling.threads <= 65536, found
            assert shared <= 227 * 1024, found
        code = machine_code(cubin)
        kind = {"bfloat16": "HMMA.16816.F32.BF16", "float16": "HMMA.16816.F32 "}.get(name)
        kind = "HMMA.1688.F32.TF32" if name == "tfloat32" else kind
        if kind is None:
            assert "HMMA" not in code, found
            assert code.count("DFMA" if name == "float64" else "FFMA") > 150, found
        else:
            assert code.count(kind) >= tiling.columns // 8 * tiling.row_tiles, found
            assert "LDSM.16.M88.4" in code, found
        assert "LDGSTS.E.BYPASS.128" in code, found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "which"), [(128, "forward"), (128, "gradient of q"), (64, "gradient of k, v")]
)
def test_resources_of_warpgroups(monkeypatch, tmp_path, width, which):
    """Hopper's products, and that they need not wait for each other: ptxas would say C7515."""
    monkeypatch.setattr(_device, "limits", sim.Machine().limits)
    monkeypatch.setattr(attention_launch, "WARPGROUPS", True)
    found = attention_kernels("bfloat16", width, 4096, False)
    _, tiling, _, kernel = next(one for one in found if one[0] == which)
    assert tiling.warpgroups
    ptx = sim.ptx_of(kernel, sim.argument_types(kernel), (9, 0, "a"))
    cubin = tmp_path / "kernel.cubin"
    stack, spilled, registers = assemble(ptx, (9, "0a"), cubin)
    assert (stack, spilled) == (0, 0)
    assert registers * tiling.threads <= 65536
    code = machine_code(cubin)
    along, across = {"forward": (1, 1), "gradient of q": (2, 1), "gradient of k, v": (2, 2)}[which]
    assert code.count("HGMMA.64x") == along * width // 16 + across * tiling.columns // 16
    assert "HMMA" not in code


@pytest.mark.slow
@pytest.mark.parametrize("cc", ARCHITECTURES, ids=lambda cc: f"sm_{cc[0]}{cc[1]}")
def test_resources_around_attention(monkeypatch, cc):
    monkeypatch.setattr(_device, "limits", sim.Machine().limits)
    p = Problem(0, 0, 0, 0, width=256, value_width=256)
    tiling = attention_launch.mask_gradient("bfloat16", p, 0)
    for most, kernel in (
        (255, mask_gradient_of(tiling)),
        (64, merge_of("bfloat16", 128)),
        (64, delta_of("bfloat16")),
        (64, _summing("float32", "bfloat16")),
        (64, _fill_spans),
    ):
        stack, spilled, registers = assemble(sim.ptx_of(kernel, sim.argument_types(kernel), cc), cc)
        assert (stack, spilled) == (0, 0), kernel
        assert registers <= most, kernel


# ---- the machine -----------------------------------------------------------------------------

HEAD = """
.version 8.0
.target sm_90
.address_size 64
.shared .align 16 .b8 buffer[256];
.visible .entry kernel(.param .u64 kernel_param_0)
{
    .reg .pred %p<9>; .reg .b32 %r<99>; .reg .b64 %rd<99>; .reg .f32 %f<99>;
    ld.param.u64 %rd1, [kernel_param_0];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    shl.b32 %r2, %r1, 2;
    mov.u32 %r3, buffer;
    add.s32 %r4, %r3, %r2;
"""
NEIGHBOUR = "xor.b32 %r5, %r2, 128; add.s32 %r6, %r3, %r5; ld.shared.u32 %r7, [%r6];"


def run(body, threads=64, numbers=64):
    program = Program(HEAD + body + "\nret;\n}")
    memory = Memory()
    address = memory.allocate(4 * numbers)
    memory.write(address, np.zeros(numbers, np.uint32))
    Launch(program, memory, 1, threads, 0, [address]).run()
    out = np.empty(numbers, np.uint32)
    memory.read(address, out)
    return out


def test_machine_runs():
    """Threads that part, and meet again; a neighbour's number through shared memory."""
    out = run(
        f"""
        st.shared.u32 [%r4], %r1;
        bar.sync 0;
        {NEIGHBOUR}
        setp.lt.u32 %p1, %r1, 5;
        @%p1 bra $small;
        add.s32 %r7, %r7, 1000;
        bra.uni $end;
        $small:
        add.s32 %r7, %r7, 2000;
        $end:
        shfl.sync.bfly.b32 %r8|%p2, %r7, 1, 31, -1;
        st.global.u32 [%rd3], %r8;
        """
    )
    t = [i ^ 1 for i in range(64)]
    assert out.tolist() == [(i ^ 32) + (2000 if i < 5 else 1000) for i in t]


@pytest.mark.parametrize(
    ("message", "body"),
    [
        ("race", f"st.shared.u32 [%r4], %r1; {NEIGHBOUR}"),
        ("race", "mov.u32 %r9, 0; st.shared.u32 [%r9], %r1;"),
        ("race", f"st.shared.u32 [%r4], %r1; bar.sync 0; {NEIGHBOUR} st.shared.u32 [%r4], %r1;"),
        ("read before it was written", NEIGHBOUR),
        ("out of bounds", "st.shared.u32 [%r4+4], %r1;"),
        ("out of bounds", "st.global.u32 [%rd3+4], %r1;"),
        ("outside of memory", "mov.u64 %rd9, 0; st.global.u32 [%rd9], %r1;"),
        ("read before its copy was waited for",
         "mul.lo.u32 %r9, %r1, 16; add.s32 %r9, %r9, %r3; mul.wide.u32 %rd4, %r1, 16;"
         " add.s64 %rd4, %rd1, %rd4; setp.gt.u32 %p1, %r1, 15; @%p1 bra $end;"
         " cp.async.cg.shared.global [%r9], [%rd4], 16; cp.async.commit_group;"
         " cp.async.wait_group 1; ld.shared.u32 %r7, [%r9]; $end:"),
        ("misaligned", "ld.global.v4.u32 {%r5,%r6,%r7,%r8}, [%rd3];"),
        ("misaligned", "st.global.u32 [%rd3+2], %r1;"),
        ("for ever",
         "setp.lt.u32 %p1, %r1, 5; @%p1 bra $end; shfl.sync.bfly.b32 %r8|%p2, %r1, 1, 31, -1;"
         " $end:"),
        ("register %r50 is read before it is written", "add.s32 %r51, %r50, 1;"),
    ],
)  # fmt: skip
def test_machine_finds_mistakes(message, body):
    with pytest.raises(PTXError, match=message):
        run(body)
