"""Cython code of another project calls the kernels through the .pxd files, and gets the same bits.

The extension is built from cython_api.pyx as a user would build it: a plain C module, without any
header of ours. The comparison runs in a process of its own for each instruction set level.
"""

import ast
import importlib
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SELECTED
from support.cython_build import include_path
from support.kernel_copies import kernel_functions

import fastce
from fastce import kernels
from fastce.kernels.cython import _isa

HERE = Path(__file__).parent
FOLDER = Path(kernels.__file__).parent / "cython"
OPS = (
    "log_softmax",
    "cross_entropy",
    "binary_cross_entropy",
    "categorical_cross_entropy",
    "robust_losses",
    "linear_cross_entropy",
    "information",
    "attention",
)
DTYPES = ("float64", "float32", "float16", "uint16")
SETUP = """
from Cython.Build import cythonize
from setuptools import Extension, setup
openmp = {"extra_compile_args": ["-fopenmp", "-O1"], "extra_link_args": ["-fopenmp"]}
module = Extension("cython_api", ["cython_api.pyx"], **openmp)
setup(name="user", ext_modules=cythonize([module], include_path=INCLUDE))
"""
START = f"""
import sys
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}, "."]
import cython_api, test_cython_api
"""


def python(folder, *arguments, **variables):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FASTCE_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, capture_output=True, text=True, timeout=300, env=env | variables,
    )  # fmt: skip


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """The folder with the extension."""
    if "cython" not in SELECTED:
        pytest.skip("FASTCE_TEST_BACKENDS leaves cython out")
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(HERE.parent / "support" / "cython_api.pyx", folder / "cython_api.pyx")
    include = include_path(tmp_path_factory.mktemp("include"))
    (folder / "setup.py").write_text(SETUP.replace("INCLUDE", repr(include)))
    result = python(folder, "setup.py", "build_ext", "--inplace")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


# --- what is called -----------------------------------------------------------------------


def draw(rng, shape, dtype, gap=0):
    """Numbers of a storage dtype, and `gap` of them between the planes, or rows, of the array."""
    values = rng.standard_normal((shape[0], int(np.prod(shape[1:])) + gap)).astype(np.float32)
    stored = (values.view(np.uint32) >> 16).astype(np.uint16)
    plane = (stored if dtype == "uint16" else values.astype(dtype))[:, : values.shape[1] - gap]
    step = plane.strides[0]
    inner = np.empty(shape[1:], plane.dtype).strides
    return np.lib.stride_tricks.as_strided(plane, shape, (step, *inner))


def log_softmax_calls(rng, dtype, shape):
    outer, _, inner = shape
    x, grad, y = (draw(rng, shape, dtype, gap) for gap in (5, 0, 2))
    yield "logsumexp", (x,), (np.ones((outer, inner), x.dtype),), {}
    for name, inputs in (
        ("softmax", (x,)),
        ("log_softmax", (x,)),
        ("softmax_backward", (grad, y)),
        ("log_softmax_backward", (grad, y)),
    ):
        yield name, inputs, (draw(rng, shape, dtype, 3),), {}


def cross_entropy_calls(rng, dtype, shape):
    outer, n, inner = shape
    wide = "float64" if dtype == "float64" else "float32"
    x, log_p, p = (draw(rng, shape, dtype, gap) for gap in (5, 1, 2))
    labels = rng.integers(0, n, (outer, inner))
    labels[rng.random(labels.shape) < 0.2] = 0
    weight = rng.uniform(0.5, 2, n).astype(wide)
    scan = {"classes": n, "ignore_index": 0}
    for target in (labels, labels + 1):  # n is out of range
        yield "scan_target", (target, weight), (np.ones(2),), scan
    yield "scan_target", (labels, None), (np.ones(2),), scan
    options = {"denominator": 3.0, "ignore_index": 0}
    smooth = {"label_smoothing": 0.1, "z_loss": 0.01}
    plain = {"label_smoothing": 0.0, "z_loss": 0.0}
    targets = labels, p, rng.random(shape).astype(wide)
    for rows, target in itertools.product(((1, 1), (outer, inner)), targets):
        loss, grad = np.ones(rows, wide), draw(rng, shape, dtype, 3)
        grad_loss = draw(rng, rows, wide)
        for w, more in ((weight, smooth), (None, plain)):
            both = options | more
            yield "cross_entropy", (x, target, w), (loss, np.ones((outer, inner), wide)), both
            yield "cross_entropy_backward", (grad_loss, x, target, w), (grad,), both
            yield "cross_entropy_with_grad", (x, target, w), (loss, grad), both
        if target is labels:
            yield "nll_loss", (log_p, labels, weight), (loss,), options
            yield "nll_loss_backward", (grad_loss, labels, weight), (grad,), options


def categorical_cross_entropy_calls(rng, dtype, shape):
    outer, n, inner = shape
    wide = "float64" if dtype == "float64" else "float32"
    x, p = (draw(rng, shape, dtype, gap) for gap in (5, 2))
    if dtype == "uint16":
        x &= 0x7FFF  # no sign: probabilities
    else:
        np.abs(x, out=x)
    labels = rng.integers(0, n, (outer, inner))
    weight = rng.uniform(0.5, 2, n).astype(wide)
    options = {"denominator": 3.0, "ignore_index": 0, "epsilon": 1e-3}
    targets = labels, p, rng.random(shape).astype(wide)
    for rows, target in itertools.product(((1, 1), (outer, inner)), targets):
        loss, grad = np.ones(rows, wide), draw(rng, shape, dtype, 3)
        grad_loss = draw(rng, rows, wide)
        for w, smoothing in ((weight, 0.1), (None, 0.0)):
            more = options | {"label_smoothing": smoothing}
            yield "categorical_cross_entropy", (x, target, w), (loss,), more
            yield "categorical_cross_entropy_backward", (grad_loss, x, target, w), (grad,), more
            yield "categorical_cross_entropy_with_grad", (x, target, w), (loss, grad), more


def robust_losses_calls(rng, dtype, shape):
    outer, n, inner = shape
    wide = "float64" if dtype == "float64" else "float32"
    x = draw(rng, shape, dtype, 5)
    labels = rng.integers(0, n, (outer, inner))
    weight = rng.uniform(0.5, 2, n).astype(wide)
    names = ("alpha", "gamma", "q", "epsilon", "beta", "denominator", "ignore_index")
    for rows in (1, 1), (outer, inner):
        loss, grad = np.ones(rows, wide), draw(rng, shape, dtype, 3)
        grad_loss = draw(rng, rows, wide)
        for target, w, numbers in (
            (labels, weight, (0.5, 1.5, 0.3, 0.25, 0.0, 3.0, 0)),
            (labels, None, (1.0, 0.0, 0.0, 0.0, 0.5, 3.0, -100)),
            (None, None, (1.0, 0.0, 0.0, 0.0, -0.5, 1.0, -100)),
        ):
            options = dict(zip(names, numbers, strict=True))
            yield "robust_losses", (x, target, w), (loss,), options
            yield "robust_losses_backward", (grad_loss, x, target, w), (grad,), options
            yield "robust_losses_with_grad", (x, target, w), (loss, grad), options


def binary_cross_entropy_calls(rng, dtype, n):
    wide = "float64" if dtype == "float64" else "float32"
    x, p, grad = (draw(rng, (n, 1), dtype)[:, 0] for _ in range(3))
    if dtype == "uint16":
        p = np.minimum(p & 0x7FFF, 0x3F80)  # 1 in bfloat16
        narrow = p[::-1].copy()
    else:
        p = np.minimum(np.abs(p), 1).astype(dtype)
        narrow = p[::-1].copy()
    for probs in p, x:
        yield "scan_probabilities", (probs,), (np.full(1, 0.5),), {}
    for losses in {1, n}:
        loss, grad_loss = np.ones(losses, wide), draw(rng, (losses, 1), wide)[:, 0]
        mean = {"denominator": 3.0 if losses == 1 else 1.0}
        for w, v, s in ((None, None, 0.0), (5, 7, 0.1), (n, None, 0.0)):
            target = rng.random(n).astype(wide) if w == n else narrow
            weight, pos_weight = (k and rng.uniform(0.5, 2, k).astype(wide) for k in (w, v))
            of_probs = target, weight
            name = "binary_cross_entropy"
            yield name, (p, *of_probs), (loss,), mean
            yield f"{name}_backward", (grad_loss, p, *of_probs), (grad,), mean
            yield f"{name}_with_grad", (p, *of_probs), (loss, grad), mean
            of_logits, options = (target, weight, pos_weight), mean | {"label_smoothing": s}
            name = "binary_cross_entropy_with_logits"
            yield name, (x, *of_logits), (loss,), options
            yield f"{name}_backward", (grad_loss, x, *of_logits), (grad,), options
            yield f"{name}_with_grad", (x, *of_logits), (loss, grad), options
        for gamma, positive, negative in ((2.0, 0.25, 0.75), (0.7, 1.0, 1.0)):
            options = mean | {"gamma": gamma, "positive": positive, "negative": negative}
            yield "sigmoid_focal_loss", (x, target), (loss,), options
            yield "sigmoid_focal_loss_backward", (grad_loss, x, target), (grad,), options
            yield "sigmoid_focal_loss_with_grad", (x, target), (loss, grad), options


def attention_calls(rng, dtype, batch):
    wide = "float64" if dtype == "float64" else "float32"
    heads, kv_heads, queries, keys, width = 2, 1, 70, 200, 24

    def array(*shape, dtype=dtype):
        return draw(rng, (*batch, *shape), dtype, 8)

    q, out, grad_out, dq = (array(heads, queries, width) for _ in range(4))
    k, v = (array(kv_heads, keys, width) for _ in range(2))
    masks = {None: None, "bool": array(heads, queries, keys, dtype="float32") > -1}
    masks["bias"] = array(heads, queries, keys)
    whole = [0, queries, 0, keys, 0]
    spans = np.array([whole] * int(np.prod(batch)), np.int64)
    plain = {"scale": 0.25, "left": -1, "right": -1, "softcap": 0.0}
    for mask, more in (
        (None, {}),
        ("bool", {"left": 90, "right": 0}),
        ("bias", {"right": 5, "softcap": 2.0}),
    ):
        options, m = plain | more, masks[mask]
        lse = array(heads, queries, dtype=wide)
        yield "attention", (q, k, v, m, spans), (out, lse), options
        yield "attention", (q, k, v, m, spans), (out, None), options
        dk, dv = (np.zeros((*batch, kv_heads, keys, width), q.dtype) for _ in range(2))
        dmask = np.zeros((*batch, heads, queries, keys), wide) if mask == "bias" else None
        inputs = (grad_out, q, k, v, m, spans, out, lse + 5)
        yield "attention_backward", inputs, (dq, dk, dv, dmask), options


def linear_cross_entropy_calls(rng, dtype, rows):
    wide = "float64" if dtype == "float64" else "float32"
    width, classes = 30, 700
    x, w, dx, dw = (draw(rng, (n, width), dtype, 4) for n in (rows, classes) * 2)
    bias, d_bias = (draw(rng, (classes,), dtype) for _ in range(2))
    bias, d_bias = np.ascontiguousarray(bias), np.ascontiguousarray(d_bias)
    target = rng.integers(0, classes, rows)
    weight = rng.uniform(0.5, 2, classes).astype(wide)
    options = {"denominator": 3.0, "ignore_index": int(target[0])}
    plain = options | {"label_smoothing": 0.0, "z_loss": 0.0, "softcap": 0.0}
    smooth = options | {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 4.0}
    for count in 1, rows:
        loss, grad_loss = np.ones(count, wide), rng.uniform(-1, 1, count).astype(wide)
        inputs, grads = (x, w, None, target, None), (dx, dw, None)
        yield "linear_cross_entropy", inputs, (loss,), plain
        yield "linear_cross_entropy_with_grad", inputs, (loss, *grads), plain
        inputs, grads = (x, w, bias, target, weight), (dx, dw, d_bias)
        yield "linear_cross_entropy_with_grad", inputs, (loss, *grads), smooth
        yield "linear_cross_entropy_backward", (grad_loss, *inputs), grads, smooth


def information_calls(rng, dtype, shape):
    outer, _, inner = shape
    wide = "float64" if dtype == "float64" else "float32"
    x, y = (draw(rng, shape, dtype, gap) for gap in (5, 2))
    p, q = (np.abs(a) if dtype != "uint16" else a & 0x7FFF for a in (x, y))
    out, grads = np.ones((outer, inner), wide), [draw(rng, shape, dtype, gap) for gap in (3, 0)]
    bits, nats = {"unit": 0.693}, {"unit": 1.0}
    yield "entropy", (p,), (out,), bits | {"exponential": False}
    yield "entropy", (p,), (out,), nats | {"exponential": True}
    yield "cross_entropy_of", (p, q), (out,), bits | {"exponential": False}
    for name in "kl_divergence", "js_divergence":
        yield name, (p, q), (out,), bits
        yield name, (p, np.broadcast_to(q[:1], shape)), (out,), bits
        yield name, (np.broadcast_to(p[:1], shape), q), (out,), bits
    tables = np.ascontiguousarray(p)
    for name in "conditional_entropy", "mutual_information":
        yield name, (tables,), (np.ones(outer, wide),), bits
    yield "entropy_from_logits", (x,), (out,), bits
    yield "entropy_from_logits_with_grad", (x,), (out, grads[0]), bits
    yield "kl_divergence_from_logits", (x, y), (out,), bits
    for both in grads, [grads[0], None]:
        yield "kl_divergence_from_logits_with_grad", (x, y), (out, *both), bits


def calls(rng, dtype):
    """Of each op: module, function, inputs, outputs, options."""
    for shape in ((600, 129, 1), (900, 10, 1), (3, 20, 300), (2, 70_000, 1), (1, 10, 1)):
        if shape[1] > 1000 and dtype != "float32":
            continue  # these take half of the time
        for call in log_softmax_calls(rng, dtype, shape):
            yield "log_softmax", *call
        for call in cross_entropy_calls(rng, dtype, shape):
            yield "cross_entropy", *call
        for call in categorical_cross_entropy_calls(rng, dtype, shape):
            yield "categorical_cross_entropy", *call
        for call in robust_losses_calls(rng, dtype, shape):
            yield "robust_losses", *call
        for call in information_calls(rng, dtype, shape):
            yield "information", *call
    for n in 1, 1000, 70_001:
        for call in binary_cross_entropy_calls(rng, dtype, n):
            yield "binary_cross_entropy", *call
    for batch in ((), (2,), (2, 3)):
        for call in attention_calls(rng, dtype, batch):
            yield "attention", *call
    for call in linear_cross_entropy_calls(rng, dtype, 50):
        yield "linear_cross_entropy", *call


# --- in the process of a level ------------------------------------------------------------


def results(function, inputs, outputs, options, threads):
    """The outputs as bytes, gaps left out; `outputs` stay as they are."""
    filled = [None if a is None else a.copy() for a in outputs]
    returned = function(*inputs, *filled, **options, threads=threads)
    assert not returned, returned
    return [None if a is None else a.tobytes() for a in filled]


def compare(cython_api):
    rng = np.random.default_rng(0)
    seen = set()
    for dtype in DTYPES:
        for op, name, inputs, outputs, options in calls(rng, dtype):
            module = importlib.import_module(f"fastce.kernels.cython.{op}")
            right = results(getattr(module, name), inputs, outputs, options, 2)
            for threads in 0, 2:
                given = results(getattr(cython_api, name), inputs, outputs, options, threads)
                assert given == right, (op, name, dtype, options, [np.shape(a) for a in inputs])
            assert right != [None if a is None else a.tobytes() for a in outputs], name
            seen.add(name)
    x, given = rows_in_prange(cython_api)
    right = np.empty_like(x)
    importlib.import_module("fastce.kernels.cython.log_softmax").softmax(x, right, threads=1)
    assert given.tobytes() == right.tobytes()
    print("compared", *sorted(seen))
    for op in OPS:
        print("loaded", Path(sys.modules[f"fastce.kernels.cython.{op}"].__file__).parent.name)


def rows_in_prange(cython_api):
    x = np.random.default_rng(0).standard_normal((50, 300, 1)).astype(np.float32)
    out = np.empty_like(x)
    cython_api.softmax_in_prange(x, out)
    return x, out


@pytest.mark.parametrize("level", _isa.supported())
def test_the_same_bits(user, level):
    if level not in _isa.built():
        pytest.skip(f"{level} was not built; `make test-full` builds all levels")
    result = python(user, "-c", START + "test_cython_api.compare(cython_api)", FASTCE_ISA=level)
    assert result.returncode == 0, result.stderr
    folders = re.findall("^loaded (.+)$", result.stdout, re.MULTILINE)
    below = [name for name in _isa.built() if name not in _isa.ONLY][-1]
    assert folders == [level if op in _isa.ONLY.get(level, OPS) else below for op in OPS]
    (compared,) = re.findall("^compared (.+)$", result.stdout, re.MULTILINE)
    declared = {name for op in OPS for name in functions_of(op)}
    assert {f"c_{name}" for name in compared.split()} == declared


def test_levels_differ(user):
    """Else the test above would not notice which one is called."""
    both = [name for name in _isa.supported() if name in _isa.built()][:2]
    if len(both) < 2:
        pytest.skip("one level was built")
    code = START + "print(test_cython_api.rows_in_prange(cython_api)[1].tobytes().hex())"
    a, b = (python(user, "-c", code, FASTCE_ISA=level).stdout for level in both)
    assert len(a) == len(b) > 50 * 300 * 4
    assert a != b


# --- what is declared ---------------------------------------------------------------------


def functions_of(op):
    return set(re.findall(r"^cdef int (c_\w+)", (FOLDER / f"{op}.pxd").read_text(), re.MULTILINE))


@pytest.mark.parametrize("op", OPS)
def test_every_kernel_is_declared(op):
    reference = importlib.import_module(f"fastce.kernels.reference.{op}")
    assert functions_of(op) == {f"c_{name}" for name in kernel_functions(reference)}


def test_one_number_of_the_contract(user):
    text = "".join(path.read_text() for path in FOLDER.glob("*.pxd"))
    assert re.findall(r"CONTRACT = (\d+)", text) == [str(kernels.CONTRACT)]
    assert called(user, "cython_api.contract") == kernels.CONTRACT


# --- zeroed structs -----------------------------------------------------------------------


def called(user, expression):
    code = f"import numpy as np, cython_api; print(repr({expression}))"
    result = python(user, "-c", code)
    assert result.returncode == 0, result.stderr
    return ast.literal_eval(result.stdout)


def test_an_unknown_dtype_is_refused(user):
    for dtype in (-1, 4, 7):
        assert set(called(user, f"cython_api.zeroed({dtype})")) == {-2}


@pytest.mark.parametrize("dtype", range(4))
def test_structs_of_zeros_are_problems_of_size_0(user, dtype):
    assert set(called(user, f"cython_api.zeroed({dtype})")) == {0}


def test_class_0_is_not_ignored_unless_it_is_asked_for(user):
    x = np.array([[1, 2, 3], [0, 1, 0]], np.float32)
    right = fastce.cross_entropy(x, [0, 2], reduction="sum")
    given = called(
        user,
        f"cython_api.losses_with_class_0(np.float32({x.tolist()}), np.array([0, 2]))",
    )
    np.testing.assert_allclose(given, right, rtol=1e-6)


def test_scan_without_ignore_index(user):
    """Any label out of range is found, also the lowest number, which stands for none inside."""
    for labels, has_ignore_index, first in (
        ([0, 2, 1], True, -1),
        ([0, 2, 1], False, -1),
        ([2, 0, -1], False, 2),
        ([2, -(2**63)], False, 1),
        ([2, 3], True, 1),
    ):
        code = f"[s := np.ones(2), cython_api.scan_target(np.array({labels}), None, s, classes=3, "
        code += f"ignore_index=0, threads=1, has_ignore_index={has_ignore_index}), s.tolist()][1:]"
        failed, (bad, counted) = called(user, code)
        assert (failed, bad) == (0, first)
        if bad < 0:
            assert counted == len(labels) - (labels.count(0) if has_ignore_index else 0)
