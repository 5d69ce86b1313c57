"""Every op over shapes that take every path of the kernels, in every layout.

The kernels have one path for rows of up to 128 classes (as many at once as a vector has lanes),
one for longer rows (in blocks of 4096, or spread over the threads where there are few rows), and
one for a class axis that is not the last in memory (256 neighbours at once).
"""

import itertools

import numpy as np
import pytest
from support.cases import CASES, DTYPES
from support.grids import with_one_dtype
from support.layouts import DENSE, LAYOUTS, attempt

import fastce

CLASSES = [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 200]
LONG = [1000, 4095, 4096, 4097, 9000]
ROWS = [(outer, n, 1) for n in CLASSES for outer in (1, 5, 16, 33)]
ROWS += [(outer, 10, 1) for outer in range(1, 41)]
ROWS += [(outer, n, 1) for n in LONG for outer in (1, 3)]
PLANES = [
    (outer, n, inner)
    for inner in (2, 3, 16, 17, 40, 1030)
    for n in (1, 2, 3, 10, 16, 17, 33, 130, 1000, 4097)
    for outer in (1, 3)
    if outer * n * inner < 40_000
]
SHAPES = {"rows": ROWS, "planes": PLANES}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)

# The options that take other paths; the rest of the table is run by the tests of each op.
_OPTIONS = ("", "none", "ignore", "all", "probs", "probs-all")
CORE = [case for case in CASES if case.name in _OPTIONS]
LAID = [case for case in CASES if case.name in ("", "all", "probs-all")]


# 600: what a dtype loads and stores, each op does in its own loops, and in others for planes. The
# options of CORE change these loops: a loss per row or a sum, rows left out, classes without label.
@dtypes
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("case", CORE, ids=str)
def test_shapes(backend, case, shapes, dtype):
    step = 6 if backend == "reference" else 1  # it has one path for all
    if np.dtype(dtype).itemsize == 2:  # computed as float32 is, in as many lanes
        step *= 3
    for outer, n, inner in SHAPES[shapes][::step]:
        if inner == 1:
            case.check((outer, n), dtype)
        else:
            case.check((outer, n, inner), dtype, axis=1)


@pytest.mark.parametrize("case", CORE, ids=str)
def test_every_axis(backend, case):
    for shape in (3, 4, 5, 6), (2, 1, 33, 1), (1, 5, 1, 7), (1, 1, 1, 1):
        for axis in range(-4, 4):
            case.check(shape, np.float32, axis=axis)


@pytest.mark.parametrize("case", CORE, ids=str)
def test_one_axis(backend, case):
    for n in 1, 2, 17, 300:
        case.check((n,), np.float32, axis=0)


# 546: a layout is resolved before the kernel, by the axis and the strides in items of any size.
@with_one_dtype("case layout", LAID, list(LAYOUTS))
def test_layouts(backend, case, layout, dtype):
    if layout == "swapped bytes" and dtype == DTYPES["bf16"]:
        return  # NumPy has no swapped bfloat16
    for shape in (9, 20), (4, 140), (3, 5, 7), (2, 3, 4, 5):
        for axis in range(len(shape)):
            case.check(shape, dtype, axis, LAYOUTS[layout])


@pytest.mark.parametrize("case", LAID, ids=str)
def test_inputs_in_different_layouts(backend, case):
    shape = (4, 6, 5)
    for first in DENSE:
        for second in (*DENSE, "columns [:, :k]"):
            arguments, options = case.inputs(shape, np.float32, axis=1)
            layouts = iter((first, second))
            arguments = [LAYOUTS[next(layouts)](a) if a.shape == shape else a for a in arguments]
            case.compare(case.run(arguments, options, 1), arguments, options, 1)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("case", LAID, ids=str)
def test_broadcast(backend, case, axis):
    """Strides of 0, along the classes and across them."""
    shape = (6, 30)
    for repeated in (0, 1):
        arguments, options = case.inputs(shape, np.float32, axis)
        arguments = tuple(
            np.broadcast_to(a[:1] if repeated == 0 else a[:, :1], shape) if a.ndim == 2 else a
            for a in arguments
        )
        case.compare(case.run(arguments, options, axis), arguments, options, axis)


@pytest.mark.parametrize("kind", ["::2", "::-1", "T", "unaligned"])
@pytest.mark.parametrize("op", ["cross_entropy", "cross_entropy_with_grad", "nll_loss"])
def test_labels_in_any_layout(backend, op, kind):
    case = next(c for c in CASES if c.op == op and c.name == "none")
    (x, target), options = case.inputs((4, 6, 5), np.float32, axis=1)
    relaid = {
        "::2": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        "::-1": lambda a: a[::-1].copy()[::-1],
        "T": np.asfortranarray,
        "unaligned": LAYOUTS["unaligned"],
    }[kind](target)
    assert not (relaid.flags.c_contiguous and relaid.flags.aligned)
    case.compare(case.run((x, relaid), options, 1), (x, target), options, 1)


@pytest.mark.parametrize("case", [c for c in LAID if c.out_like is not None], ids=str)
def test_layouts_of_out(backend, case):
    """`out` is written where it lies; where no kernel can, an error says so and it is untouched."""
    layouts = [k for k in LAYOUTS if k not in ("read-only", "swapped bytes")]
    for shape in (9, 20), (4, 140), (3, 5, 7):
        for axis, layout in itertools.product(range(len(shape)), layouts):
            arguments, options = case.inputs(shape, np.float32, axis)
            out = LAYOUTS[layout](np.full(shape, 7, np.float32))
            must = layout in DENSE or (
                axis == len(shape) - 1
                and len(shape) == 2
                and layout.startswith(("rows", "columns [:, :k]"))
            )
            result, refusal = attempt(lambda: case.run(arguments, options, axis, out=out))  # noqa: B023
            if refusal:
                assert not must, layout
                assert "cannot be written without a copy" in refusal or "aligned" in refusal
                np.testing.assert_array_equal(out, 7)
            else:
                assert result[-1] is out
                case.compare(result, arguments, options, axis)


# 165: whether a kernel may overwrite what it reads depends on the op, and on the strides of both.
@pytest.mark.parametrize(
    "layout", ["F", "permuted", "columns [:, :k]", "rows [::2]", "rows [::-1]"]
)
@pytest.mark.parametrize("case", [c for c in LAID if c.out_like is not None], ids=str)
def test_in_place_in_other_layouts(backend, case, layout):
    shape = (9, 20)
    arguments, options = case.inputs(shape, np.float32)
    place = max(i for i, a in enumerate(arguments) if a.shape == shape)
    if "cross_entropy" in case.op:
        place = min(i for i, a in enumerate(arguments) if a.shape == shape)  # logits, not target
    x = LAYOUTS[layout](arguments[place])
    around = x.base.copy() if x.base is not None else None
    given = [x if i == place else a for i, a in enumerate(arguments)]
    result = case.run(given, options, out=x)
    assert result[-1] is x
    case.compare(result, arguments, options)
    if around is not None and around.size > x.size:  # nothing beside the view was written
        gaps = np.isnan(around)
        assert gaps.any()
        assert np.isnan(x.base[gaps]).all()


def test_logsumexp_into_any_layout(backend):
    x = np.random.default_rng(0).standard_normal((4, 5, 6))
    right = np.log(np.exp(x).sum(axis=1))
    wide = np.zeros((4, 12))
    for out in np.zeros((4, 6)), wide[:, ::2], np.zeros((6, 4)).T:
        result, refusal = attempt(lambda: fastce.logsumexp(x, axis=1, out=out))  # noqa: B023
        if refusal:
            assert not out.flags.c_contiguous
            assert "cannot be written without a copy" in refusal
        else:
            assert result is out
            np.testing.assert_allclose(out, right, rtol=1e-15)
    assert not wide[:, 1::2].any()
