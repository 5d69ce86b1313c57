"""Any array comes in and the same kind comes out; what does not fit is refused with a reason."""

import re

import numpy as np
import pytest
from _layouts import attempt
from cases import CASES

import fastce

X = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
LABELS = np.array([0, 4, 2, 1])
WITH_OUT = [case for case in CASES if case.out_like is not None and case.name in ("", "all")]
MAPS = [fastce.softmax, fastce.log_softmax]
torch_missing = "PyTorch is not installed: no other kind of array to try"


# --- out that shares memory ---------------------------------------------------------------


@pytest.mark.parametrize("shift", [1, 5, 7, 20, 35])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("case", WITH_OUT, ids=str)
def test_partly_overlapping_out(backend, case, dtype, shift):
    """`out` begins `shift` elements after an input, or before it."""
    shape = (8, 5)
    for axis in 0, 1:
        arguments, options = case.inputs(shape, dtype, axis)
        for i in (i for i, a in enumerate(arguments) if a.shape == shape):
            for ahead in 0, shift:
                memory = np.zeros(40 + shift, dtype)
                x = memory[ahead:][:40].reshape(shape)
                out = memory[shift - ahead :][:40].reshape(shape)
                x[...] = arguments[i]
                assert np.shares_memory(x, out)
                given = [x if k == i else a for k, a in enumerate(arguments)]
                result = case.run(given, options, axis, out=out)
                assert result[-1] is out
                case.compare(result, arguments, options, axis)


@pytest.mark.parametrize("case", WITH_OUT, ids=str)
def test_overlapping_out_of_another_layout(backend, case):
    """The transposed or reversed input: the same memory, in another order."""
    shape = (6, 6)
    for view in (lambda a: a.T), (lambda a: a[::-1]):
        arguments, options = case.inputs(shape, np.float32)
        i = max(k for k, a in enumerate(arguments) if a.shape == shape)
        x = arguments[i].copy()
        given = [x if k == i else a for k, a in enumerate(arguments)]
        case.compare(case.run(given, options, out=view(x)), arguments, options)


@pytest.mark.parametrize("case", WITH_OUT, ids=str)
def test_interleaved_out(backend, case):
    """Rows of `out` between the rows of the input: the memory is shared, no element is."""
    shape = (8, 5)
    arguments, options = case.inputs(shape, np.float32)
    i = max(k for k, a in enumerate(arguments) if a.shape == shape)
    for make in (
        lambda m: (m[::2], m[1::2]),
        lambda m: (m.reshape(8, 10)[:, :5], m.reshape(8, 10)[:, 5:]),
    ):
        x, out = make(np.zeros((16, 5), np.float32))
        x[...] = arguments[i]
        given = [x if k == i else a for k, a in enumerate(arguments)]
        case.compare(case.run(given, options, out=out), arguments, options)
        np.testing.assert_array_equal(x, arguments[i])


def test_out_over_the_probabilities(backend):
    """Both are needed while the gradient is written: refused, or right."""
    case = next(c for c in CASES if str(c) == "cross_entropy_with_grad-probs")
    (x, t), options = case.inputs((40, 150), np.float32)  # more rows than a kernel has at once
    for out in (lambda a: a), (lambda a: a[::-1]):
        target = t.copy()
        result, refusal = attempt(
            lambda: fastce.cross_entropy_with_grad(x, target, out=out(target))  # noqa: B023
        )
        if refusal:
            assert "target" in refusal
            np.testing.assert_array_equal(target, t)
        else:
            case.compare(result, (x, t), options)


def test_out_between_the_probabilities(backend):
    case = next(c for c in CASES if str(c) == "cross_entropy_with_grad-probs")
    (x, t), options = case.inputs((6, 5), np.float32)
    memory = np.zeros((6, 2, 5), np.float32)
    target, out = memory[:, 0], memory[:, 1]
    target[...] = t
    case.compare(fastce.cross_entropy_with_grad(x, target, out=out), (x, t), options)
    np.testing.assert_array_equal(target, t)


def test_logsumexp_into_its_input(backend):
    memory = X.copy()
    right = fastce.logsumexp(X)
    np.testing.assert_array_equal(fastce.logsumexp(memory, out=memory.reshape(-1)[3:7]), right)


# --- inputs that are no plain arrays ------------------------------------------------------


def test_lists_and_integers(backend):
    x = [[1, 2, 3], [3, 1, 2]]
    for op in *MAPS, fastce.logsumexp:
        result = op(x)
        assert result.dtype == np.float64
        for dtype in "i1", "u8", "?", ">i4":
            ours = op(np.array(x).astype(dtype))
            np.testing.assert_array_equal(ours, op(np.array(x).astype(dtype).astype(float)))
    loss = fastce.cross_entropy([[1.0, 2.0], [0.0, 3.0]], [0, 1], weight=[1, 2])
    np.testing.assert_array_equal(
        loss,
        fastce.cross_entropy(
            np.array([[1.0, 2.0], [0.0, 3.0]]), np.array([0, 1]), weight=np.array([1.0, 2.0])
        ),
    )
    assert fastce.cross_entropy(((1, 2),), (0,)) == fastce.cross_entropy([[1.0, 2.0]], [0])


def test_a_subclass_comes_out_as_a_plain_array(backend):
    class Mine(np.ndarray):
        pass

    result = fastce.softmax(X.view(Mine))
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, fastce.softmax(X))


def test_masked_arrays_are_refused(backend):
    masked = np.ma.masked_array(X, X > 0)
    for call in (
        lambda: fastce.softmax(masked),
        lambda: fastce.softmax_backward(X, masked),
        lambda: fastce.cross_entropy(masked, LABELS),
        lambda: fastce.cross_entropy(X, np.ma.masked_array(LABELS)),
        lambda: fastce.softmax(X, out=masked),
    ):
        with pytest.raises(TypeError, match="masked array"):
            call()


def test_read_only_inputs(backend):
    """Not written to, and not a reason to fail. Also memory-mapped ones."""
    frozen, labels = X.copy(), LABELS.copy()
    frozen.flags.writeable = labels.flags.writeable = False
    for op in *MAPS, fastce.logsumexp:
        np.testing.assert_array_equal(op(frozen), op(X))
    for op in fastce.cross_entropy, fastce.nll_loss:
        assert op(frozen, labels) == op(X, LABELS)
    y = fastce.softmax(X)
    y.flags.writeable = False
    np.testing.assert_array_equal(fastce.softmax_backward(frozen, y), fastce.softmax_backward(X, y))


def test_memory_map(backend, tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(fastce.softmax(mapped), fastce.softmax(X))
    assert fastce.cross_entropy(mapped, LABELS) == fastce.cross_entropy(X, LABELS)
    with pytest.raises(ValueError, match="read-only"):
        fastce.softmax(mapped, out=mapped)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_torch_tensors(backend, dtype):
    torch = pytest.importorskip("torch", reason=torch_missing)
    x = X.astype(dtype)
    t, labels = torch.tensor(x), torch.tensor(LABELS)
    for op in *MAPS, fastce.logsumexp:
        result = op(t)
        assert isinstance(result, torch.Tensor)
        assert result.dtype == t.dtype
        np.testing.assert_array_equal(result.numpy(), op(x))
    loss = fastce.cross_entropy(t, labels)
    assert isinstance(loss, torch.Tensor)
    assert loss.item() == fastce.cross_entropy(x, LABELS)
    row = fastce.logsumexp(t[0])
    assert isinstance(row, torch.Tensor)
    assert row.shape == ()
    assert row.item() == fastce.logsumexp(x[0])
    loss, lse = fastce.cross_entropy(t, labels, return_lse=True, reduction="none")
    right = fastce.cross_entropy(x, LABELS, return_lse=True, reduction="none")
    np.testing.assert_array_equal(loss.numpy(), right[0])
    np.testing.assert_array_equal(lse.numpy(), right[1])
    loss, grad = fastce.cross_entropy_with_grad(t, labels)
    right = fastce.cross_entropy_with_grad(x, LABELS)
    assert isinstance(grad, torch.Tensor)
    assert loss.item() == right[0]
    np.testing.assert_array_equal(grad.numpy(), right[1])
    np.testing.assert_array_equal(t.numpy(), x)


def test_torch_out(backend):
    torch = pytest.importorskip("torch", reason=torch_missing)
    x = torch.tensor(X)
    out = torch.zeros_like(x)
    assert fastce.softmax(x, out=out) is out
    np.testing.assert_array_equal(out.numpy(), fastce.softmax(X))
    out = torch.zeros_like(x)
    assert fastce.softmax(X, out=out) is out  # another kind than the input
    np.testing.assert_array_equal(out.numpy(), fastce.softmax(X))
    right, right_grad = fastce.cross_entropy_with_grad(X, LABELS)
    loss, grad = fastce.cross_entropy_with_grad(x, torch.tensor(LABELS), out=x)
    assert grad is x
    assert loss.item() == right
    np.testing.assert_array_equal(x.numpy(), right_grad)
    transposed = torch.zeros(5, 4).T
    assert fastce.log_softmax(X, out=transposed) is transposed
    np.testing.assert_array_equal(transposed.numpy(), fastce.log_softmax(X))


def test_torch_tensor_that_numpy_cannot_view(backend):
    torch = pytest.importorskip("torch", reason=torch_missing)
    x = torch.tensor(X, requires_grad=True)
    with pytest.raises(TypeError, match="x: NumPy cannot view this Tensor"):
        fastce.softmax(x)
    with pytest.raises(TypeError, match="logits: NumPy cannot view this Tensor"):
        fastce.cross_entropy(x, LABELS)


# --- what does not fit ----------------------------------------------------------------------

BAD = {
    "softmax complex": (lambda: fastce.softmax(X + 1j), TypeError, "x must be float64.*complex64"),
    "softmax text": (lambda: fastce.softmax(["a"]), TypeError, "x must be float64.*<U1"),
    "softmax object": (lambda: fastce.softmax(np.array([None])), TypeError, "got dtype object"),
    "axis": (lambda: fastce.softmax(X, axis=2), np.exceptions.AxisError, "axis 2 .*dimension 2"),
    "negative axis": (lambda: fastce.logsumexp(X, axis=-3), np.exceptions.AxisError, "axis -3"),
    "axis None": (lambda: fastce.softmax(X, axis=None), TypeError, "axis must be.*None"),
    "axis float": (lambda: fastce.softmax(X, axis=1.0), TypeError, r"axis must be.*1\.0"),
    "axis tuple": (lambda: fastce.logsumexp(X, axis=(0, 1)), TypeError, r"axis must be.*\(0, 1\)"),
    "out shape": (
        lambda: fastce.softmax(X, out=np.zeros((5, 4), "f4")),
        ValueError,
        r"out must have shape \(4, 5\) and dtype float32, got \(5, 4\) and float32",
    ),
    "out dtype": (
        lambda: fastce.softmax(X, out=np.zeros((4, 5))),
        ValueError,
        r"out must have .*float32, got \(4, 5\) and float64",
    ),
    "out bytes": (lambda: fastce.softmax(X, out=np.zeros((4, 5), ">f4")), ValueError, ">f4"),
    "out list": (lambda: fastce.softmax([1.0, 2.0], out=[0.0, 0.0]), TypeError, "out .*got list"),
    "out logsumexp": (
        lambda: fastce.logsumexp(X, out=np.zeros(5, "f4")),
        ValueError,
        r"shape \(4,\) and dtype float32, got \(5,\)",
    ),
    "out keepdims": (
        lambda: fastce.logsumexp(X, keepdims=True, out=np.zeros(4, "f4")),
        ValueError,
        r"shape \(4, 1\) and dtype float32, got \(4,\)",
    ),
    "grad shape": (
        lambda: fastce.softmax_backward(X, X[:2]),
        ValueError,
        r"same shape and dtype, got \(4, 5\) float32 and \(2, 5\) float32",
    ),
    "grad dtype": (
        lambda: fastce.log_softmax_backward(X, X.astype(float)),
        ValueError,
        "got .*float32 and .*float64",
    ),
    "target shape": (
        lambda: fastce.cross_entropy(X, LABELS[:3]),
        ValueError,
        r"target .*shape \(4,\).*\(4, 5\).*got \(3,\)",
    ),
    "integer one-hot": (
        lambda: fastce.cross_entropy(X, np.ones((4, 5), int)),
        ValueError,
        r"got \(4, 5\); one-hot targets must be floating",
    ),
    "float labels": (
        lambda: fastce.cross_entropy(X, LABELS.astype(float)),
        ValueError,
        r"probabilities must have the shape of logits, \(4, 5\), got \(4,\)",
    ),
    "target dtype": (
        lambda: fastce.cross_entropy(X, LABELS > 1),
        TypeError,
        "class indices or probabilities, got dtype bool",
    ),
    "target of nll_loss": (
        lambda: fastce.nll_loss(X, X),
        TypeError,
        "class indices, got dtype float32",
    ),
    "weight shape": (
        lambda: fastce.cross_entropy(X, LABELS, weight=[1.0, 2.0]),
        ValueError,
        r"weight must have shape \(5,\).*got \(2,\)",
    ),
    "weight dtype": (
        lambda: fastce.nll_loss(X, LABELS, weight=["a"] * 5),
        TypeError,
        "weight must be float64.*got dtype <U1",
    ),
    "reduction": (
        lambda: fastce.cross_entropy(X, LABELS, reduction="avg"),
        ValueError,
        "reduction must be 'mean', 'sum' or 'none', got 'avg'",
    ),
    "smoothing": (
        lambda: fastce.cross_entropy(X, LABELS, label_smoothing=1.5),
        ValueError,
        r"label_smoothing must be from 0 to 1, got 1\.5",
    ),
    "negative smoothing": (
        lambda: fastce.cross_entropy_with_grad(X, LABELS, label_smoothing=-0.1),
        ValueError,
        r"got -0\.1",
    ),
    "nan smoothing": (
        lambda: fastce.cross_entropy(X, LABELS, label_smoothing=np.nan),
        ValueError,
        "label_smoothing must be from 0 to 1, got nan",
    ),
    "z_loss": (
        lambda: fastce.cross_entropy(X, LABELS, z_loss=np.inf),
        ValueError,
        "z_loss must be finite, got inf",
    ),
    "ignore_index of probabilities": (
        lambda: fastce.cross_entropy(X, X, ignore_index=2),
        ValueError,
        "ignore_index=2 has no meaning for a target of probabilities",
    ),
    "grad_loss shape": (
        lambda: fastce.cross_entropy_backward([1.0, 2.0], X, LABELS, reduction="none"),
        ValueError,
        r"grad_loss must have shape \(4,\), got \(2,\)",
    ),
    "grad_loss of a mean": (
        lambda: fastce.nll_loss_backward(np.ones(4), X, LABELS),
        ValueError,
        r"grad_loss must be a scalar for reduction='mean', got shape \(4,\)",
    ),
    "lse shape": (
        lambda: fastce.cross_entropy_backward(1.0, X, LABELS, lse=np.zeros(3)),
        ValueError,
        r"lse must have shape \(4,\), got \(3,\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(backend, name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message) as caught:
        call()
    assert type(caught.value) is error
    assert not re.search(r"\n|  ", str(caught.value))  # one plain sentence


@pytest.mark.parametrize("case", WITH_OUT, ids=str)
def test_read_only_out(backend, case):
    arguments, options = case.inputs((4, 5), np.float32)
    out = np.full((4, 5), 7, np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        case.run(arguments, options, out=out)
    np.testing.assert_array_equal(out, 7)


def test_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        fastce.softmax(X, 0)
    with pytest.raises(TypeError, match="positional"):
        fastce.cross_entropy(X, LABELS, None)
