"""`out` over an input that the kernel reads while it writes: labels, weights, grad_loss, lse."""

import numpy as np
import pytest

import fastce

N = 300  # more rows than a kernel has in hand at once: 10 would hide the overlap


def problem(dtype=np.float32):
    rng = np.random.default_rng(0)
    return rng.random((N, N)).astype(dtype), rng.integers(0, N, N)


def test_labels_in_out(backend):
    """The labels were checked; overwritten, they would lead out of bounds."""
    x, target = problem(np.float64)
    right = fastce.cross_entropy_with_grad(x, target)[1]
    buffer = np.zeros((N, N))
    labels = buffer.view(np.int64)[0]
    labels[:] = target
    np.testing.assert_array_equal(fastce.cross_entropy_with_grad(x, labels, out=buffer)[1], right)
    labels[:] = target
    np.testing.assert_array_equal(
        fastce.nll_loss_backward(1.0, x, labels, out=buffer),
        fastce.nll_loss_backward(1.0, x, target),
    )


@pytest.mark.parametrize("name", ["grad_loss", "weight", "lse"])
def test_other_inputs_in_out(backend, name):
    x, target = problem()
    buffer = x.copy()
    buffer[1] += 5
    part = buffer[1]
    options = {"reduction": "none", "label_smoothing": 0.1}

    def gradient(part, **more):
        arguments = {"weight": part} if name == "weight" else {}
        arguments |= {"lse": part} if name == "lse" else {}
        grad_loss = part if name == "grad_loss" else np.ones(N, np.float32)
        return fastce.cross_entropy_backward(grad_loss, x, target, **arguments, **options, **more)

    right = gradient(part.copy())
    np.testing.assert_array_equal(gradient(part, out=buffer), right)


def test_out_that_overlaps_itself(backend):
    out = np.lib.stride_tricks.as_strided(np.zeros(8), (4, 5), (8, 8))
    with pytest.raises(ValueError, match="overlaps itself"):
        fastce.softmax(np.zeros((4, 5)), out=out)


@pytest.mark.parametrize("wrong", [1.9, None, "0"])
def test_ignore_index_is_an_integer(backend, wrong):
    with pytest.raises(TypeError, match="ignore_index must be an integer, got"):
        fastce.cross_entropy(np.zeros((2, 3)), [0, 1], ignore_index=wrong)
    with pytest.raises(ValueError, match="ignore_index must fit 64 bits"):
        fastce.cross_entropy(np.zeros((2, 3)), [0, 1], ignore_index=2**63)


@pytest.mark.parametrize("n", [4, 200])
def test_infinite_sums_in_rows_and_tiles(backend, n):
    grad = np.zeros((1, n))
    grad[0, 1] = np.inf
    result = fastce.log_softmax_backward(grad, fastce.log_softmax(np.zeros((1, n))))
    np.testing.assert_array_equal(np.isnan(result[0]), np.arange(n) == 1)
    assert (np.delete(result[0], 1) == -np.inf).all()
