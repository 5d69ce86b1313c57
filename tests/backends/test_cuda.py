"""The CUDA kernels, on the machine of `ptx_machine.py`, and on a GPU where there is one.

The machine runs the PTX that a GPU would run. `pytest -m gpu` runs the same on a GPU.
"""

import numpy as np
import pytest

pytest.importorskip("fastce.kernels.cuda", exc_type=ImportError)  # without numba-cuda
from numba import cuda
from support import simulated_gpu as sim
from support.cases import CASES, DTYPES
from test_cross_entropy import (
    test_gradients_of_logits_of_any_size,
    test_lse,
    test_lse_of_rows_that_are_not_finite,
    test_targets_keep_their_precision,
)
from test_edge_cases import (
    test_all_ignored,
    test_label_out_of_range,
    test_label_out_of_range_leaves_out_alone,
    test_label_out_of_range_says_where,
    test_loss_of_not_finite,
    test_no_classes,
    test_no_rows,
    test_not_finite,
    test_weight_of_zero,
    test_zero_dimensions,
)
from test_exactness import (
    test_dominating_logit,
    test_float64,
    test_gradient_at_a_dominating_label,
    test_half_precision_gradient,
    test_half_precision_is_correctly_rounded,
    test_large_rows,
    test_losses_of_large_rows,
    test_short_rows_and_planes,
)
from test_log_softmax import test_finite_differences
from test_overlap import test_infinite_sums_in_rows_and_tiles

import fastce

# Tests of all backends, which here run with the fixture `backend` of this file.
SHARED = (
    test_label_out_of_range,
    test_label_out_of_range_leaves_out_alone,
    test_label_out_of_range_says_where,
    test_no_classes,
    test_no_rows,
    test_weight_of_zero,
    test_zero_dimensions,
    test_dominating_logit,
    test_gradient_at_a_dominating_label,
    test_gradients_of_logits_of_any_size,
    test_infinite_sums_in_rows_and_tiles,
    test_lse_of_rows_that_are_not_finite,
    test_targets_keep_their_precision,
)
GPU_ONLY = (
    test_all_ignored,
    test_finite_differences,
    test_float64,
    test_half_precision_gradient,
    test_half_precision_is_correctly_rounded,
    test_large_rows,
    test_loss_of_not_finite,
    test_losses_of_large_rows,
    test_lse,
    test_not_finite,
    test_short_rows_and_planes,
)


@pytest.fixture
def backend(cuda_backend):
    """In place of all backends."""
    return cuda_backend


# ---- the table of cases ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(backend, case, dtype):
    """A tile, rows of different alignment to 16 bytes, and columns."""
    for shape in (9, 10), (3, 131), (2, 33, 5):
        case.check(shape, DTYPES[dtype], axis=1)


LENGTHS = [1, 2, 64, 65, 255, 256, 1023, 4096, 5000]


@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("", "ignore", "probs")], ids=str)
def test_rows_of_any_length(backend, case):
    for n in LENGTHS:
        case.check((3, n), np.dtype(np.float32), axis=1)


@pytest.mark.parametrize("limits", [(1, 227), (1, 20), (132, 227)])
@pytest.mark.parametrize("dtype", ["f64", "bf16"])
@pytest.mark.parametrize("case", [c for c in CASES if c.name in ("", "ignore")], ids=str)
def test_long_rows(install_machine, case, dtype, limits):
    """Kept in shared memory, kept in part, and split over blocks."""
    multiprocessors, shared = limits
    install_machine(multiprocessors, shared * 1024)
    with fastce.use_backend("cuda"):
        case.check((2, 18001), DTYPES[dtype], axis=1)


@pytest.mark.parametrize("n", [10, 131])
@pytest.mark.parametrize("axis", [0, 1])
def test_not_finite_as_in_the_reference(backend, axis, n):
    x = np.random.default_rng(0).standard_normal((6, n)).astype(np.float32)
    x[0, 3], x[1, 0], x[2, n - 1], x[3] = np.nan, np.inf, -np.inf, -np.inf
    x[4, 1:] = -np.inf
    labels = np.array([0, 0, n - 1, 1, 0, 2])
    x = np.ascontiguousarray(np.moveaxis(x, 1, axis))

    def results():
        yield from (f(x, axis=axis) for f in (fastce.logsumexp, fastce.softmax, fastce.log_softmax))
        for smoothing in 0.0, 0.1:
            options = {"reduction": "none", "label_smoothing": smoothing, "axis": axis}
            yield from fastce.cross_entropy_with_grad(x, labels, **options)

    ours = list(results())
    with fastce.use_backend("reference"):
        for a, b in zip(ours, results(), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6)


# ---- arrays on the GPU -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        (c, d)
        for c in CASES
        for d in ("f32", "bf16")
        if d == "f32" or c.name in ("", "mean", "probs")
    ],
    ids=str,
)
def test_arrays_on_the_gpu(gpu, case, dtype):
    """The same kind of array comes out, and what is in it is right."""
    if gpu.machine is None and dtype == "bf16":
        pytest.skip("Numba's arrays have no bfloat16")
    for shape in (4, 9), (2, 70, 3):
        arguments, options = case.inputs(shape, DTYPES[dtype], 1)
        results = case.run(gpu.put_all(arguments), gpu.put_all(options), axis=1)
        assert all(type(r) is type(gpu.put(arguments[0])) for r in results)
        case.compare([gpu.get(r) for r in results], arguments, options, 1)


IN_PLACE = [
    c for c in CASES if c.out_like is not None and c.name in ("", "mean", "probs", "smooth")
]


@pytest.mark.parametrize("shape", [(5, 9), (5, 131), (2, 33, 4)])
@pytest.mark.parametrize("case", IN_PLACE, ids=str)
def test_in_place(gpu, case, shape):
    arguments, options = case.inputs(shape, np.dtype(np.float32), 1)
    there = gpu.put_all(arguments)
    like = next(i for i, a in enumerate(arguments) if np.shape(a) == shape)
    results = case.run(there, options, axis=1, out=there[like])
    assert results[-1] is there[like]
    case.compare([gpu.get(r) for r in results], arguments, options, 1)


def test_into_out_that_lies_differently(gpu):
    """Not equally to 16 bytes: then elements move one by one."""
    x = np.random.default_rng(0).standard_normal((4, 200)).astype(np.float32)
    memory = gpu.put(np.zeros(4 * 200 + 1, np.float32))
    shifted = (4, 200), (800, 4), 4
    out = memory._again(*shifted) if gpu.machine else memory[1:].reshape(4, 200)
    assert fastce.softmax(gpu.put(x), out=out) is out
    np.testing.assert_allclose(gpu.get(out), fastce.softmax(x), rtol=1e-6)


def test_slices_and_orders(gpu):
    """Rows cut out of wider ones, and axes in another order, are views; other layouts an error."""
    if gpu.machine is None:
        pytest.skip("Numba's arrays are copied to the host in C order only")
    x = np.random.default_rng(0).standard_normal((6, 8, 100)).astype(np.float32)
    whole = gpu.put(x)
    part = whole._again((6, 7, 90), whole.strides)  # two axes that do not fold
    with pytest.raises(ValueError, match="make it contiguous first"):
        fastce.softmax(part)
    rows = whole._again((48, 90), (400, 4))
    right = fastce.log_softmax(x.reshape(48, 100)[:, :90])
    np.testing.assert_allclose(fastce.log_softmax(rows).get(), right, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="overlaps itself"):
        fastce.softmax(rows._again((3, 90), (400, 4)), out=rows._again((3, 90), (4, 4), 40000))
    one = whole._again((1, 100), (400, 4))
    assert fastce.softmax(one, out=whole._again((1, 100), (4, 4))).shape == (1, 100)
    x = whole.get()
    transposed = whole.transpose((2, 0, 1))
    result = fastce.log_softmax(transposed, axis=1)
    right = fastce.log_softmax(x.transpose(2, 0, 1), axis=1)
    np.testing.assert_allclose(result.get(), right, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        fastce.logsumexp(transposed, axis=0).get(),
        fastce.logsumexp(x.transpose(2, 0, 1), axis=0),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        fastce.logsumexp(transposed, axis=1, keepdims=True).get(),
        fastce.logsumexp(x.transpose(2, 0, 1), axis=1, keepdims=True),
        rtol=1e-6,
    )
    backwards = rows._again((3, 90), (-400, 4), 1200)
    with pytest.raises(ValueError, match="out overlaps x in part"):
        fastce.softmax(backwards, out=rows._again((3, 90), (400, 4)))
    with pytest.raises(ValueError, match="out overlaps x in part"):
        fastce.softmax(
            whole._again((40, 100), (400, 4)), out=whole._again((40, 100), (400, 4), 400)
        )


def test_logsumexp_keeps_dims_and_takes_out(gpu):
    x = np.random.default_rng(0).standard_normal((3, 70)).astype(np.float32)
    right = fastce.logsumexp(x, keepdims=True)
    result = fastce.logsumexp(gpu.put(x), keepdims=True)
    np.testing.assert_allclose(gpu.get(result), right, rtol=1e-6)
    out = gpu.put(np.zeros((3, 1), np.float32))
    assert fastce.logsumexp(gpu.put(x), keepdims=True, out=out) is out
    np.testing.assert_array_equal(gpu.get(out), gpu.get(result))


def test_kernels_take_any_cuda_array(gpu):
    """What has ``__cuda_array_interface__``, without fastce's functions around them."""
    from fastce import kernels

    x = np.random.default_rng(0).standard_normal((4, 70, 1)).astype(np.float32)
    there, out = gpu.put(x), gpu.put(np.zeros_like(x))
    kernels.load("log_softmax", "softmax", backend="cuda")(there, out, threads=1)
    np.testing.assert_allclose(gpu.get(out), fastce.softmax(x, axis=1), rtol=1e-6)
    wrong = gpu.put(x.reshape(2, 2, 70).transpose(0, 2, 1))
    with pytest.raises(ValueError, match="planes must be C-contiguous"):
        kernels.load("log_softmax", "softmax", backend="cuda")(wrong, out, threads=1)


@pytest.mark.parametrize("integers", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_labels_of_any_integer_type(gpu, integers):
    x = np.random.default_rng(0).standard_normal((6, 100)).astype(np.float32)
    labels = np.array([0, 99, 3, 4, 77, 1], integers)
    loss, grad = fastce.cross_entropy_with_grad(gpu.put(x), gpu.put(labels), ignore_index=3)
    right, right_grad = fastce.cross_entropy_with_grad(x, labels, ignore_index=3)
    np.testing.assert_allclose(gpu.get(loss), right, rtol=1e-6)
    np.testing.assert_allclose(gpu.get(grad), right_grad, atol=1e-7)


@pytest.mark.parametrize("shape", [(4, 10), (4, 200), (4, 10, 3)])
@pytest.mark.parametrize("bad", [-1, 10**6, -(2**62)])
def test_label_out_of_range_is_nan(gpu, bad, shape):
    """Its row, and no other; nothing is read out of bounds."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    labels = np.zeros((shape[0], *shape[2:]), int)
    labels[1] = bad
    there = gpu.put(x), gpu.put(labels)
    loss = gpu.get(fastce.cross_entropy(*there, reduction="none", axis=1))
    assert np.isnan(loss[1]).all()
    assert np.isfinite(np.delete(loss, 1, 0)).all()
    loss, grad = map(gpu.get, fastce.cross_entropy_with_grad(*there, axis=1))
    assert np.isnan(loss)
    assert np.isnan(grad[1]).all()
    assert np.isfinite(np.delete(grad, 1, 0)).all()
    assert np.isnan(gpu.get(fastce.nll_loss(*there, reduction="none", axis=1))[1]).all()


def test_validation_raises(gpu):
    x, labels = gpu.put(np.zeros((3, 5), np.float32)), gpu.put(np.array([0, 5, 1], np.int32))
    out = gpu.put(np.full((3, 5), 7, np.float32))
    fastce.set_validation(True)
    try:
        with pytest.raises(IndexError, match=r"target\[1\] is 5, out of range for 5 classes"):
            fastce.cross_entropy_with_grad(x, labels, reduction="sum", out=out)
    finally:
        fastce.set_validation(False)
    assert (gpu.get(out) == 7).all()


def test_numbers_of_numpy(gpu):
    """A kernel takes Python's; the bits of others would be misread."""
    x, labels = np.random.default_rng(0).standard_normal((3, 70)), np.array([1, 2, 1])
    there = gpu.put(x), gpu.put(labels)
    options = {"label_smoothing": np.float32(0.25), "ignore_index": True, "z_loss": np.float64(0.1)}
    right = fastce.cross_entropy(x, labels, **options)
    np.testing.assert_allclose(gpu.get(fastce.cross_entropy(*there, **options)), right, rtol=1e-12)


def test_no_rows_of_many_classes(gpu):
    x = gpu.put(np.zeros((0, 20000), np.float32))
    assert gpu.get(fastce.softmax(x)).shape == (0, 20000)
    assert np.isnan(gpu.get(fastce.cross_entropy(x, gpu.put(np.zeros(0, int)))))


def test_many_rows(gpu):
    """Losses of more rows than one block adds up."""
    x = np.random.default_rng(0).standard_normal((20000, 3)).astype(np.float32)
    labels = np.arange(20000) % 3
    weight = np.array([0.5, 1, 2], np.float32)
    loss = fastce.cross_entropy(gpu.put(x), gpu.put(labels), weight=gpu.put(weight), ignore_index=1)
    right = fastce.cross_entropy(x, labels, weight=weight, ignore_index=1)
    np.testing.assert_allclose(gpu.get(loss), right, rtol=1e-6)


def test_upstream_gradient(gpu):
    """A number of the host, one on the GPU, and one for each row."""
    x = np.random.default_rng(0).standard_normal((4, 9)).astype(np.float32)
    labels = np.arange(4)
    there = gpu.put(x), gpu.put(labels)
    right = fastce.cross_entropy_backward(-2.5, x, labels)
    for given in -2.5, gpu.put(np.float32(-2.5)):
        grad = fastce.cross_entropy_backward(given, *there)
        np.testing.assert_allclose(gpu.get(grad), right, atol=1e-7)
    rows = np.array([1, -1, 0, 3], np.float32)
    right = fastce.cross_entropy_backward(rows, x, labels, reduction="none")
    grad = fastce.cross_entropy_backward(gpu.put(rows), *there, reduction="none")
    np.testing.assert_allclose(gpu.get(grad), right, atol=1e-6)


def test_errors(gpu):
    x, labels = np.zeros((3, 5), np.float32), np.zeros(3, int)
    there, there_labels = gpu.put(x), gpu.put(labels)
    for error, message, call in [
        (TypeError, "target must be on the GPU, as the other arrays are, got ndarray",
         lambda: fastce.cross_entropy(there, labels)),
        (TypeError, "weight must be on the GPU",
         lambda: fastce.cross_entropy(there, there_labels, weight=np.ones(5))),
        (TypeError, "on a GPU, and the other arrays are not",
         lambda: fastce.cross_entropy(x, there_labels)),
        (TypeError, "out must be on the GPU", lambda: fastce.softmax(there, out=x)),
        (TypeError, "x must be float64, float32, float16 or bfloat16, got int64",
         lambda: fastce.softmax(there_labels)),
        (ValueError, r"target of class indices must have shape \(3,\)",
         lambda: fastce.cross_entropy(there, gpu.put(np.zeros(4, int)))),
        (ValueError, "target must have the dtype of logits, float32, or an integer one",
         lambda: fastce.cross_entropy(there, gpu.put(np.zeros((3, 5))))),
        (ValueError, r"weight must have shape \(5,\)",
         lambda: fastce.cross_entropy(there, there_labels, weight=gpu.put(np.ones(3)))),
        (ValueError, "out must have shape", lambda: fastce.softmax(there, out=gpu.put(x[:2]))),
        (ValueError, "axis 2 is out of bounds", lambda: fastce.softmax(there, axis=2)),
        (ValueError, "out may not be the target",
         lambda: fastce.cross_entropy_with_grad(there, out=(t := gpu.put(x)), target=t)),
        (TypeError, "grad_loss must be a number, or on the GPU",
         lambda: fastce.cross_entropy_backward(
             np.ones(1), there, there_labels, reduction="none")),
        (TypeError, "grad_loss must be a number, or on the GPU",
         lambda: fastce.cross_entropy_backward(np.ones(3), there, there_labels)),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            call()
    with (
        fastce.use_backend("reference"),
        pytest.raises(fastce.BackendError, match="'reference' cannot compute with arrays on a GPU"),
    ):
        fastce.softmax(there)


def test_the_same_bits_again(gpu):
    x = np.random.default_rng(0).standard_normal((40, 3000)).astype(np.float32)
    there, labels = gpu.put(x), gpu.put(np.arange(40))
    first, second = (fastce.cross_entropy_with_grad(there, labels) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(gpu.get(a), gpu.get(b))


def test_streams(gpu):
    """Everything is put on the stream of the first array."""
    if gpu.machine is None:
        pytest.skip("the stream of a launch is unknown on a GPU")
    x = sim.put(gpu.machine, np.zeros((4, 9), np.float32), stream=77)
    fastce.softmax(x)
    fastce.cross_entropy_with_grad(x, gpu.put(np.arange(4)))
    assert {launch.stream for launch in gpu.machine.launches} == {77}


# ---- without a GPU ---------------------------------------------------------------------------


@pytest.mark.skipif(cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    assert "there is no NVIDIA GPU" in fastce.available_backends()["cuda"]
    with pytest.raises(fastce.BackendError, match="backend 'cuda' cannot compute log_softmax"):
        fastce.use_backend("cuda").__enter__()


# ---- inside kernels of the user --------------------------------------------------------------


def in_kernels():
    from fastce.kernels.cuda import (
        block_cross_entropy,
        block_cross_entropy_with_grad,
        block_log_softmax,
        block_logsumexp,
        block_softmax,
        warp_cross_entropy,
        warp_cross_entropy_with_grad,
        warp_log_softmax,
        warp_logsumexp,
        warp_softmax,
    )

    @cuda.jit
    def by_warp(x, labels, numbers, softmax, log_softmax, grad):
        i = cuda.blockIdx.x * 2 + cuda.threadIdx.x // 32
        numbers[i, 0] = warp_logsumexp(x[i])
        numbers[i, 1] = warp_cross_entropy(x[i], labels[i])
        warp_softmax(x[i], softmax[i])
        warp_log_softmax(x[i], log_softmax[i])
        numbers[i, 2] = warp_cross_entropy_with_grad(x[i], labels[i], grad[i])

    def by_block(number):
        @cuda.jit
        def by_block(x, labels, numbers, softmax, log_softmax, grad):
            scratch = cuda.shared.array(96, number)
            i = cuda.blockIdx.x
            numbers[i, 0] = block_logsumexp(x[i], scratch)
            numbers[i, 1] = block_cross_entropy(x[i], labels[i], scratch)
            block_softmax(x[i], softmax[i], scratch)
            block_log_softmax(x[i], log_softmax[i], scratch)
            numbers[i, 2] = block_cross_entropy_with_grad(x[i], labels[i], grad[i], scratch)

        return by_block

    return by_warp, by_block


@pytest.mark.parametrize("group", ["warp", "block"])
@pytest.mark.parametrize("dtype", ["f8", "f4", "f2"])
def test_rows_in_kernels(gpu, dtype, group):
    x = (3 * np.random.default_rng(0).standard_normal((4, 150))).astype(dtype)
    number = np.float64 if dtype == "f8" else np.float32
    labels = np.array([0, 149, 7, 70])
    by_warp, by_block = in_kernels()
    kernel = by_warp if group == "warp" else by_block(number)
    blocks, threads = (2, 64) if group == "warp" else (4, 96)
    given = x, labels, np.zeros((4, 3), number), *(np.zeros_like(x) for _ in range(3))
    there = [gpu.put(a) for a in given]
    there[-1] = there[0]  # the gradient, in place
    if gpu.machine:
        sim.launch_user_kernel(gpu.machine, kernel, blocks, threads, there)
    else:
        kernel[blocks, threads](*there)
    numbers, softmax, log_softmax, grad = (gpu.get(a) for a in there[2:])
    tolerance = {"f8": 1e-14, "f4": 2e-6, "f2": 2e-3}[dtype]
    losses, right_grad = fastce.cross_entropy_with_grad(x.astype("f8"), labels, reduction="none")
    lse = fastce.logsumexp(x.astype("f8"))
    right = np.stack([lse, losses, losses], 1)
    np.testing.assert_allclose(numbers, right, rtol=1e-14 if dtype == "f8" else 2e-6)
    np.testing.assert_allclose(softmax, fastce.softmax(x.astype("f8")), atol=tolerance)
    np.testing.assert_allclose(log_softmax, fastce.log_softmax(x.astype("f8")), rtol=tolerance)
    np.testing.assert_allclose(grad, right_grad, atol=tolerance)
