"""Any array comes in and the same kind comes out; what does not fit is refused with a reason."""

import itertools
import re

import numpy as np
import pytest
from support.cases import CASES
from support.layouts import LAYOUTS, attempt

import fastce
from fastce._inputs import gpu
from fastce._runtime import dispatch

X = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
LABELS = np.array([0, 4, 2, 1])
WITH_OUT = [case for case in CASES if case.out_like is not None and case.name in ("", "all")]
MAPS = [fastce.softmax, fastce.log_softmax]
torch_missing = "PyTorch is not installed: no other kind of array to try"


# --- out that shares memory ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("case", WITH_OUT, ids=str)
def test_partly_overlapping_out(backend, case, dtype):
    """`out` begins some elements after an input, or before it."""
    shape = (8, 5)
    for axis, shift in itertools.product((0, 1), (1, 5, 7, 20, 35)):
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


@pytest.mark.parametrize("nested", [1, 2, 3])
def test_masked_arrays_in_lists_are_refused(nested):
    """NumPy makes an array of them without their masks."""
    rows, labels = [np.ma.masked_array([1.0, 2.0], [True, False])] * 2, [0, np.ma.masked]
    for _ in range(nested - 1):
        rows, labels = (rows, rows), [labels, labels]
    zeros = np.zeros((2,) * (nested + 1))
    for call in (
        lambda: fastce.softmax(rows),
        lambda: fastce.softmax([1.0, np.ma.masked]),
        lambda: fastce.cross_entropy(rows, np.zeros(zeros.shape[:-1], int)),
        lambda: fastce.cross_entropy(zeros, labels),
        lambda: fastce.nll_loss(zeros, labels),
        lambda: fastce.binary_cross_entropy(zeros, rows),
        lambda: fastce.information.entropy(rows),
        lambda: fastce.scaled_dot_product_attention(zeros, zeros, zeros, attn_mask=rows),
    ):
        with pytest.raises(TypeError, match="masked array"):
            call()


def test_kernels_get_aligned_arrays(monkeypatch):
    """Also by the short paths of small calls. On x86 a misaligned load happens to work."""
    load, seen = dispatch._load, []

    def checked(*which):
        compute = load(*which)

        def kernel(*arrays, **options):
            seen.extend(a for a in arrays if isinstance(a, np.ndarray))
            compute(*arrays, **options)

        return kernel

    monkeypatch.setattr(dispatch, "_load", checked)
    for case in CASES:
        arguments, options = case.inputs((3, 10), np.float32)
        arguments = [LAYOUTS["unaligned"](a) if a.ndim else a for a in arguments]
        case.compare(case.run(arguments, options), arguments, options)
    q = LAYOUTS["unaligned"](np.ones((2, 3, 4), np.float32))
    out, lse = fastce.scaled_dot_product_attention(q, q, q, attn_mask=q[:, :, :3], return_lse=True)
    fastce.scaled_dot_product_attention_backward(q, q, q, q, out, lse)
    fastce.binary_cross_entropy_with_logits_backward(q, q, q, weight=q, reduction="none")
    fastce.information.kl_divergence(q, q)
    fastce.information.mutual_information(q)
    fastce.linear_cross_entropy_with_grad(q[0], q[1], LAYOUTS["unaligned"](np.arange(3)))
    assert len(seen) > 100
    assert all(a.flags.aligned for a in seen)


# --- arrays of other libraries ------------------------------------------------------------


class Exporter:
    """An array that can only export its memory by DLPack. Its module has no from_dlpack, as that
    of pyarrow's arrays has none.
    """

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_a_library_that_takes_no_dlpack(backend):
    x = X.copy()
    for op in *MAPS, fastce.logsumexp:
        result = op(Exporter(x))
        assert type(result) is np.ndarray
        np.testing.assert_array_equal(result, op(x))
    loss, grad = fastce.cross_entropy_with_grad(Exporter(x), Exporter(LABELS))
    assert loss == fastce.cross_entropy(x, LABELS)
    assert isinstance(loss, np.float32)
    assert type(grad) is np.ndarray
    # A StopIteration within would end the map without a word.
    rows = list(map(fastce.softmax, map(Exporter, x)))
    np.testing.assert_array_equal(rows, fastce.softmax(x))
    out = Exporter(np.zeros_like(x))
    assert fastce.softmax(x, out=out) is out
    np.testing.assert_array_equal(out.array, fastce.softmax(x))


class NamespaceWithoutDLPack(Exporter):
    def __array_namespace__(self):
        return object()


def test_a_namespace_that_takes_no_dlpack():
    result = fastce.softmax(NamespaceWithoutDLPack(X.copy()))
    np.testing.assert_array_equal(result, fastce.softmax(X))


class LikeJAX:
    """bfloat16 as JAX has it: not by DLPack, but as an array of ml_dtypes, which is read-only."""

    def __init__(self, array):
        self.array, self.dtype = array, array.dtype

    def __dlpack__(self, **options):
        raise BufferError("Unsupported dtype in DLTensor.")

    def __dlpack_device__(self):
        return 1, 0

    def __array__(self, dtype=None, copy=None):
        return self.array.copy()

    def __array_namespace__(self):
        return LikeJAX

    @staticmethod
    def asarray(array):
        return LikeJAX(array)

    @staticmethod
    def from_dlpack(array):
        return LikeJAX(np.from_dlpack(array))  # of a bfloat16 one, an error


def test_bfloat16_of_jax(backend):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x = X.astype(bfloat16)
    result = fastce.softmax(LikeJAX(x))
    assert isinstance(result, LikeJAX)
    assert result.dtype == bfloat16
    np.testing.assert_array_equal(result.array, fastce.softmax(x))
    loss, grad = fastce.cross_entropy_with_grad(LikeJAX(x), LABELS)
    right = fastce.cross_entropy_with_grad(x, LABELS)
    assert (loss.array, loss.dtype) == (right[0], np.float32)
    np.testing.assert_array_equal(grad.array, right[1])
    given = LikeJAX(x)
    with pytest.raises(ValueError, match="NumPy cannot write to out, a LikeJAX, only copy it"):
        fastce.softmax(x, out=given)
    np.testing.assert_array_equal(given.array, x)


class Gone:
    """As a JAX array that was deleted or donated."""

    def __dlpack__(self, **options):
        raise RuntimeError("Array has been deleted with shape=float32[3].\nAnd more.")

    def __dlpack_device__(self):
        raise TypeError("object of type 'NoneType' has no len()")


def test_an_array_that_is_gone():
    message = r"NumPy cannot view this Gone: Array has been deleted with shape=float32\[3\]\.$"
    for name, call in {
        "x": lambda: fastce.softmax(Gone()),
        "target": lambda: fastce.cross_entropy(X, Gone()),
        "probs": lambda: fastce.categorical_cross_entropy(Gone(), LABELS),
        "q": lambda: fastce.scaled_dot_product_attention(Gone(), X, X),
        "p": lambda: fastce.information.entropy(Gone()),
        "out": lambda: fastce.softmax(X, out=Gone()),
    }.items():
        with pytest.raises(TypeError, match=f"^{name}: {message}"):
            call()


class OnGPU:
    """An array in memory of a GPU, of which there need be none."""

    def __init__(self, mask=None):
        data = {"shape": (3, 4), "typestr": "<f4", "data": (256, False), "version": 3}
        self.__cuda_array_interface__ = data | {"mask": mask}


def test_arrays_on_a_gpu_that_nothing_here_computes_on():
    reason = "the package numba-cuda is not installed|there is no NVIDIA GPU"
    try:
        dispatch.gpu_kernel("log_softmax", "softmax")
    except fastce.BackendError:
        with pytest.raises(fastce.BackendError, match=reason):
            fastce.softmax(OnGPU())
    with pytest.raises(TypeError, match="target is a OnGPU on a GPU, and the other arrays are not"):
        fastce.cross_entropy(X, OnGPU())
    with pytest.raises(TypeError, match="OnGPU has a mask, which would be ignored"):
        gpu.inspect_array(OnGPU(mask=OnGPU()), "x")


class Missing:
    """As <NA> of pandas: whether it equals anything is not known, and not a truth value."""

    def __eq__(self, other):
        return self

    __hash__ = None

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")

    def __repr__(self):
        return "<NA>"


def test_objects_are_shown():
    """Booleans or integers of pandas, of which some are missing, become objects."""
    missing = np.array([True, False, Missing()], object)
    zeros, wide = np.zeros(3), np.zeros((1, 3, 4))
    for call in (
        lambda: fastce.softmax(missing),
        lambda: fastce.cross_entropy(np.zeros((3, 2)), missing),
        lambda: fastce.nll_loss(np.zeros((3, 2)), missing),
        lambda: fastce.linear_cross_entropy(np.zeros((3, 2)), np.zeros((5, 2)), missing),
        lambda: fastce.binary_cross_entropy_with_logits(zeros, missing),
        lambda: fastce.scaled_dot_product_attention(wide, wide, wide, attn_mask=missing),
        lambda: fastce.scaled_dot_product_attention(wide, wide, wide, kv_lengths=missing),
    ):
        with pytest.raises(TypeError, match=r"got (dtype )?object \(element \[2\] is <NA>\)$"):
            call()
    with pytest.raises(TypeError, match=r"got dtype object \(element \[1, 0\] is 'a'\)$"):
        fastce.softmax(np.array([[1, 2.0], ["a", 3]], object))
    with pytest.raises(TypeError, match=r"got dtype object \(None\)$"):
        fastce.softmax(None)
    # As labels they are one more, as NaN is.
    of_two = fastce.information.entropy_from_samples(["a", "b", "c"])
    assert fastce.information.entropy_from_samples(missing) == of_two


def test_bfloat16_as_numpy_loads_it():
    bits = np.zeros((4, 5), "V2")
    hint = r"got dtype \|V2 .*\.view\(ml_dtypes\.bfloat16\)"
    for call in (
        lambda: fastce.softmax(bits),
        lambda: fastce.cross_entropy(X, bits),
        lambda: fastce.binary_cross_entropy(X, bits),
    ):
        with pytest.raises(TypeError, match=hint):
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


def test_torch_tensors_that_are_the_negative_of_their_memory(backend):
    torch = pytest.importorskip("torch", reason=torch_missing)
    torch.manual_seed(0)
    x = torch.randn(4, 5, dtype=torch.complex64).conj().imag
    dense = torch._neg_view(torch.randn(4, 5))
    labels = torch._neg_view(torch.tensor([0, -4, -2, -1]))
    for t in x, dense:
        assert t.is_neg()
        right = t.resolve_neg().numpy()
        for op in *MAPS, fastce.logsumexp:
            result = op(t)
            assert isinstance(result, torch.Tensor)
            np.testing.assert_array_equal(result.numpy(), op(right))
            np.testing.assert_array_equal(op(t, axis=0).numpy(), op(right, axis=0))
        loss, grad = fastce.cross_entropy_with_grad(t, labels)
        right_loss, right_grad = fastce.cross_entropy_with_grad(right, LABELS)
        assert loss.item() == right_loss
        np.testing.assert_array_equal(grad.numpy(), right_grad)
        ours = fastce.softmax_backward(t, t)
        np.testing.assert_array_equal(ours.numpy(), fastce.softmax_backward(right, right))
    before = dense.resolve_neg().clone()
    for call in (
        lambda: fastce.softmax(X, out=dense),
        lambda: fastce.softmax(dense, out=dense),
        lambda: fastce.logsumexp(X, out=torch._neg_view(torch.zeros(4))),
        lambda: fastce.cross_entropy_with_grad(X, LABELS, out=dense),
    ):
        with pytest.raises(ValueError, match="NumPy cannot write to out, a Tensor, only copy it"):
            call()
    assert torch.equal(dense.resolve_neg(), before)


@pytest.mark.filterwarnings("ignore:.*FakeTensor")
def test_torch_tensors_without_memory():
    """DLPack exports no address then, for which NumPy takes new memory, with whatever it holds."""
    torch = pytest.importorskip("torch", reason=torch_missing)
    with torch._subclasses.fake_tensor.FakeTensorMode():
        fake = torch.empty(4, 5)
    message = r"x is a (Fake)?Tensor without memory that NumPy could view"
    for x in fake, torch._efficientzerotensor((4, 5)):
        with pytest.raises(TypeError, match=message):
            fastce.softmax(x)
    with pytest.raises(TypeError, match=r"x: NumPy cannot view this Tensor: .*meta"):
        fastce.softmax(torch.empty(4, 5, device="meta"))


@pytest.mark.filterwarnings("ignore:.*(Sparse|quantize)")
def test_torch_tensors_of_other_kinds():
    torch = pytest.importorskip("torch", reason=torch_missing)
    x = torch.tensor(X)
    for t in (
        x.to_sparse(),
        x.to_sparse_csr(),
        x.to_mkldnn(),
        torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        torch.complex(x, x).conj(),
        [x.requires_grad_()],
        [torch._neg_view(x.detach())],
    ):
        with pytest.raises(TypeError, match=r"x: NumPy cannot view this (Tensor|list): ."):
            fastce.softmax(t)


def test_torch_tensors_of_other_kinds_on_a_gpu():
    """What is looked at before anything that needs one: there nothing is copied."""
    torch = pytest.importorskip("torch", reason=torch_missing)
    see = gpu.LIBRARIES["torch"].inspect
    with pytest.raises(TypeError, match=r"is_neg\(\).* use tensor.resolve_neg\(\)"):
        see(torch._neg_view(torch.tensor(X)))
    with pytest.raises(TypeError, match=r"must be dense, got layout torch\.sparse_coo"):
        see(torch.tensor(X).to_sparse())
    with pytest.raises(TypeError, match="a Tensor without memory of its own"):
        see(torch._efficientzerotensor((4, 5)))


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
