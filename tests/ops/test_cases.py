"""The table of cases and the truth are tested too: a test that compares constants tests nothing."""

import ml_dtypes
import numpy as np
import pytest
from support import truths as oracle
from support.cases import CASES, DTYPES, ROBUST_LOSSES
from support.grids import with_one_dtype

import fastce
from fastce._runtime.dispatch import OPS

EVERY = CASES + [case for case in ROBUST_LOSSES if case not in CASES]


@with_one_dtype("case", EVERY)
def test_inputs_vary(case, dtype):
    arguments, options = case.inputs((30, 50), dtype)
    again, _ = case.inputs((30, 50), dtype)
    other, _ = case.inputs((30, 50), dtype, seed=1)
    for a, b, c in zip(arguments, again, other, strict=True):
        np.testing.assert_array_equal(a, b)  # the same call draws the same numbers
        assert np.any(a != c)  # another seed draws others
        if a.ndim == 2:
            assert a.dtype == dtype
            assert len(np.unique(a.astype(float))) > 100  # of 1500: bfloat16 repeats some
            assert np.all(np.ptp(a.astype(float), axis=1) > 0)
        elif a.ndim == 1:
            assert len(np.unique(a)) > 10
    if case.weighted:
        assert len(np.unique(options.get("weight", options.get("alpha")))) > 40
    if "ignore_index" in case.options:
        ignored = np.mean(case.inputs((600, 5), dtype)[0][-1] == case.options["ignore_index"])
        assert 0.1 < ignored < 0.5


def test_the_table_has_every_op():
    ops = [name for name in fastce.__all__ if hasattr(oracle, name) and "categ" not in name]
    assert {case.op for case in EVERY} == set(ops)
    assert len(ops) == 25
    elsewhere = {"attention", "information", "linear_cross_entropy"}  # tests/ops/test_<op>.py
    elsewhere |= {"binary_cross_entropy", "categorical_cross_entropy"}
    assert set(OPS) == {"log_softmax", "cross_entropy", "robust_losses"} | elsewhere


def test_a_wrong_result_is_seen():
    """The comparison fails at one ULP too many, for NaN, for infinity and for a wrong shape."""
    truth = oracle.log_softmax(np.float32([[1.0, 2.0]]))
    right = truth.value.astype(np.float32)
    assert oracle.assert_close(right, truth, 0.5) <= 0.5
    for wrong in np.nextafter(right, 1, dtype=np.float32), right * np.nan, right - np.inf, right[0]:
        with pytest.raises(AssertionError):
            oracle.assert_close(wrong, truth, 0.5)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_ulp_and_rounding(dtype):
    rng = np.random.default_rng(0)
    values = rng.standard_normal(1000) * 2.0 ** rng.integers(-30, 15, 1000)
    values[:4] = 0, 1, -2, np.inf
    if dtype == np.float64:
        values = values.astype(np.longdouble) * (1 + np.longdouble(2) ** -60)
    result = oracle.rounded(values, dtype)
    np.testing.assert_array_equal(result, values.astype(dtype).astype(result.dtype))
    eps = ml_dtypes.finfo(dtype).eps
    assert oracle.ulp(1.0, dtype) == eps
    assert oracle.ulp(-1.99, dtype) == eps
    assert oracle.ulp(2.0, dtype) == 2 * eps
    assert oracle.ulp(0.0, dtype) == ml_dtypes.finfo(dtype).smallest_subnormal
    assert oracle.ulp_error(dtype.type(1 + eps), np.longdouble(1)) == 1
