"""exp, exp2, log, log1p, tanh and powers of both CPU backends: their error over the whole range,
drawn evenly from every binade.

`make accuracy` goes through every float32.
"""

import importlib
from types import SimpleNamespace

import accuracy
import numpy as np
import pytest
from conftest import SELECTED


@pytest.fixture(params=[name for name in accuracy.MODULES if name in SELECTED])
def math(request):
    """A module of functions over arrays: ``exp_sub_of(x, m, out)`` and so on."""
    return importlib.import_module(accuracy.MODULES[request.param])


def stratified(dtype, low, high, per_binade=2000):
    """Random numbers with every exponent from `low` to `high`."""
    rng = np.random.default_rng(0)
    exponents = np.repeat(np.arange(low, high + 1), per_binade)
    values = np.ldexp(rng.uniform(1, 2, exponents.size), exponents)
    assert np.unique(values).size > 0.9 * values.size
    return values.astype(dtype)


def ulp(result, truth, dtype):
    info = np.finfo(dtype)
    with np.errstate(divide="ignore"):
        exponent = np.maximum(np.floor(np.log2(np.abs(truth))), info.minexp)
    step = np.exp2(exponent - info.nmant)
    return np.where(result == truth, 0, np.abs(result.astype(truth.dtype) - truth) / step)


@pytest.mark.parametrize("m", [0.0, 1.0, -3.7, 80.0, -255.5, 256.0, 2050.0, 1e4, -1e30])
@pytest.mark.parametrize(("dtype", "low", "high"), [("f4", -30, 6), ("f8", -60, 9)])
def test_exp_of_difference(math, dtype, low, high, m):
    m = np.dtype(dtype).type(m)
    x = (m - stratified(dtype, low, high)).astype(dtype)
    result = np.empty_like(x)
    math.exp_sub_of(x, np.full_like(x, m), result)
    # The difference is exact in longdouble: what x - m rounds away must not be lost.
    truth = np.exp(x.astype(np.longdouble) - np.longdouble(m))
    assert ulp(result, truth, dtype).max() <= 2
    shift, power = math.exp_from_of(x, np.array([m]), result)
    near = np.longdouble(shift) + power * np.log(np.longdouble(2))
    assert abs(near - m) < 0.35
    assert ulp(result, np.exp(x.astype(np.longdouble) - near), dtype).max() <= 2


@pytest.mark.parametrize(("dtype", "low", "high"), [("f4", -149, 127), ("f8", -1022, 1023)])
def test_log1p(math, dtype, low, high):
    x = stratified(dtype, low, high)
    result = np.empty_like(x)
    math.log_1p_of(x, result)
    assert ulp(result, np.log1p(x.astype(np.longdouble)), dtype).max() <= 2


@pytest.mark.parametrize(("dtype", "low"), [("f4", -149), ("f8", -1022)])
def test_log1p_of_small_numbers(math, dtype, low):
    """From 0 to 1, by a polynomial."""
    x = np.concatenate([stratified(dtype, low, -1), np.linspace(0, 1, 100_001).astype(dtype)])
    math.log_1p_small_of(x, result := np.empty_like(x))
    assert ulp(result, np.log1p(x.astype(np.longdouble)), dtype).max() <= 2
    math.log_1p_small_of(x := np.array([0, np.nan], dtype), result := np.empty_like(x))
    np.testing.assert_array_equal(result, x)


@pytest.mark.parametrize(("dtype", "low"), [("f4", -26), ("f8", -60)])
def test_log1p_of_negative_numbers(math, dtype, low):
    x = -stratified(dtype, low, -1)
    result = np.empty_like(x)
    math.log_1p_of(x, result)
    assert ulp(result, np.log1p(x.astype(np.longdouble)), dtype).max() <= 2


@pytest.mark.parametrize(("dtype", "low", "high"), [("f4", -149, 127), ("f8", -1074, 1023)])
def test_log(math, dtype, low, high):
    x = stratified(dtype, low, high)
    x = np.concatenate([x, 1 - stratified(dtype, low // 6, -2), 1 + stratified(dtype, -20, -2)])
    result = np.empty_like(x)
    math.log_of_of(x, result)
    assert ulp(result, np.log(x.astype(np.longdouble)), dtype).max() <= 2


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_special_values_of_log(math, dtype):
    inf, nan = np.inf, np.nan
    x = np.array([0, -0.0, 1, inf, nan, -1, -inf], dtype)
    math.log_of_of(x, result := np.empty_like(x))
    np.testing.assert_array_equal(result, np.array([-inf, -inf, 0, inf, nan, nan, nan], dtype))
    math.log_1p_of(x - 1, result)
    np.testing.assert_array_equal(result, np.array([-inf, -inf, 0, inf, nan, nan, nan], dtype))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("dtype", "low", "high"), [("f4", -30, 6), ("f8", -60, 9)])
def test_exp2(math, dtype, low, high, sign):
    x = sign * stratified(dtype, low, high)
    x = x[x <= getattr(math, "EXP_2_UP_TO", np.inf)]
    math.exp_2_of(x, result := np.empty_like(x))
    assert ulp(result, np.exp2(x.astype(np.longdouble)), dtype).max() <= 2


@pytest.mark.parametrize("y", [1e-3, 0.5, 1.5, 3.7, 40.3, 1e4])
@pytest.mark.parametrize(("dtype", "low"), [("f4", -149), ("f8", -1074)])
def test_power(math, dtype, low, y):
    x = np.concatenate([stratified(dtype, low, -1), 1 - stratified(dtype, low // 6, -2)])
    x = x[:: 4 if dtype == "f8" else 1].copy()  # powers of long doubles take 2 s of all
    y = np.full_like(x, y)
    math.power_of_of(x, y, result := np.empty_like(x))
    truth = np.power(x.astype(np.longdouble), y.astype(np.longdouble))
    assert ulp(result, truth, dtype).max() <= 3 + 2 * y[0]
    x = np.array([0, 1, np.nan, -0.5, -0.0], dtype)
    math.power_of_of(x, y[:5].copy(), result := np.empty_like(x))
    np.testing.assert_array_equal(result, [0, 1, np.nan, np.nan, 0])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("dtype", "low", "high"), [("f4", -100, 120), ("f8", -1000, 1000)])
def test_tanh(math, dtype, low, high, sign):
    x = sign * stratified(dtype, low, high)
    math.tan_h_of(x, result := np.empty_like(x))
    assert ulp(result, np.tanh(x.astype(np.longdouble)), dtype).max() <= 3


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_special_values_of_exp2_and_tanh(math, dtype):
    inf, nan = np.inf, np.nan
    x = np.array([0, -inf, inf, nan, -1e30, 1e30, -2000, -0.0], dtype)
    math.exp_2_of(x, result := np.empty_like(x))
    right = np.array([1, 0, inf, nan, 0, inf, 0, 1], dtype)
    defined = ~(x > getattr(math, "EXP_2_UP_TO", np.inf))
    np.testing.assert_array_equal(result[defined], right[defined])
    math.tan_h_of(x, result)
    np.testing.assert_array_equal(result, np.array([0, -1, 1, nan, -1, 1, -1, 0], dtype))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_special_values(math, dtype):
    inf, nan = np.inf, np.nan
    x = np.array([0, -inf, nan, -inf, 5, 5, -1e30, 1e30, 0, -3e38], dtype)
    m = np.array([0, 0, 0, 5, 5, inf, 0, 1e30, 1e10, 3e38], dtype)
    result = np.empty_like(x)
    math.exp_sub_of(x, m, result)
    # An infinite m counts as the largest finite number.
    np.testing.assert_array_equal(result, np.array([1, 0, nan, 0, 1, 0, 0, 1, 0, 0], dtype))
    for m in (0.0, -200.0, 250.0, 1e30, -1e30):
        x = np.array([-inf, nan, m - 400, -1e38, m], dtype)
        math.exp_from_of(x, np.array([m], dtype), result := np.empty_like(x))
        np.testing.assert_array_equal(result[[0, 1]], np.array([0, nan], dtype))
        if m > -1e30 and dtype == "f4":
            np.testing.assert_array_equal(result[3], 0)
        assert 0.7 < result[4] < 1.42
    x = np.array([0, inf, nan], dtype)
    result = np.empty_like(x)
    math.log_1p_of(x, result)
    np.testing.assert_array_equal(result, np.array([0, inf, nan], dtype))


def test_the_exhaustive_check_can_fail(math):
    bits = np.arange(1 << 22, 1 << 22 | 4096, dtype=np.uint32) + (0x3F000000 - (1 << 22))
    assert accuracy.exp_error(math, bits)[0] < 2
    assert accuracy.log_error(math, bits)[0] < 2

    def wrong(x, m, out):
        math.exp_sub_of(x, m, out)
        out *= np.float32(1 + 2e-6)

    assert accuracy.exp_error(SimpleNamespace(exp_sub_of=wrong), bits)[0] > 2
