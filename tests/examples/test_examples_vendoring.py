"""The examples in examples/vendoring, and the guide page that shows parts of them.

The example of the copied kernels is what test_vendoring.py builds.
"""

import itertools
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import SELECTED
from support.cython_build import include_path

import fastce
from fastce import kernels

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "vendoring"
GUIDE = ROOT / "docs" / "guide" / "vendoring.md"


def example(name):
    return SimpleNamespace(**runpy.run_path(str(EXAMPLES / name)))


# --- numba_jit ----------------------------------------------------------------------------


@pytest.fixture
def _numba():
    pytest.importorskip("numba")
    pytest.importorskip("sklearn")
    if "numba" not in SELECTED:
        pytest.skip("numba is not among the backends that are tested")


def descend(images, labels, steps, rate):
    """regression.train in NumPy and float64."""
    images, losses = images.astype(np.float64), []
    weights = np.zeros((images.shape[1], 10))
    for _ in range(steps):
        p = np.exp(images @ weights)
        p /= p.sum(axis=1, keepdims=True)
        losses.append(-np.log(p[np.arange(len(labels)), labels]).mean())
        p[np.arange(len(labels)), labels] -= 1
        weights -= rate * images.T @ p / len(labels)
    return weights, losses


@pytest.mark.slow
@pytest.mark.usefixtures("_numba")
def test_regression(capsys):
    regression = example("numba_jit/regression.py")
    images, labels = regression.load()
    weights, losses = regression.train(images, labels, 10, 20, np.float32(0.5))
    wanted_weights, expected = descend(images, labels, 20, 0.5)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    np.testing.assert_allclose(weights, wanted_weights, atol=1e-5)
    loss = fastce.cross_entropy(images @ weights, labels)
    assert regression.surprise(images, labels, weights) == pytest.approx(loss, rel=1e-6)
    regression.main()
    assert re.search(r"accuracy on new digits: (89|9\d)", capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.usefixtures("_numba")
def test_mixture(capsys):
    from sklearn.mixture import GaussianMixture

    mixture = example("numba_jit/mixture.py")
    images, _ = mixture.load()
    means, components, steps = images[:12], 12, 15
    found, variances, shares, history = mixture.fit(images, means, steps)
    peer = GaussianMixture(
        components,
        covariance_type="spherical",
        means_init=means,
        weights_init=np.full(components, 1 / components),
        precisions_init=np.full(components, 1 / images.var()),
        init_params="random",
        reg_covar=0,
        tol=0,
        max_iter=steps,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        peer.fit(images)
    assert np.all(np.diff(history) > 0)
    assert history[-1] == pytest.approx(peer.lower_bound_, rel=1e-9)
    np.testing.assert_allclose(found, peer.means_, atol=1e-9)
    np.testing.assert_allclose(variances, peer.covariances_, rtol=1e-6)
    np.testing.assert_allclose(shares, peer.weights_, rtol=1e-6)
    mixture.main()
    assert re.search("of their kind: [89]", capsys.readouterr().out)


# --- cython_extension ---------------------------------------------------------------------

SCORES = """
import nbest, numpy as np
given = np.load("texts.npz")
np.save("scores.npy", nbest.perplexities(given["logits"], given["tokens"], given["starts"]))
for logits, tokens, starts in (
    (given["logits"], given["tokens"] + 1, given["starts"]),
    (given["logits"], given["tokens"], given["starts"][:-1]),
    (given["logits"], given["tokens"], given["starts"][:0]),
    (given["logits"][1:], given["tokens"], given["starts"]),
):
    try:
        nbest.perplexities(logits, tokens, starts)
    except (IndexError, ValueError) as error:
        print(type(error).__name__)
"""


@pytest.fixture(scope="module")
def nbest(tmp_path_factory):
    """Where the extension is installed; run.py lies beside it."""
    if "cython" not in SELECTED:
        pytest.skip("FASTCE_TEST_BACKENDS leaves cython out")
    folder = tmp_path_factory.mktemp("nbest")
    products = shutil.ignore_patterns("build", "*.c", "*.egg-info", "*.so")
    shutil.copytree(EXAMPLES / "cython_extension", folder / "project", ignore=products)
    headers = include_path(tmp_path_factory.mktemp("include"))
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--target", folder / "site"]
    command = [sys.executable, "-m", "pip", "install", *options, folder / "project"]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(headers)}
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stdout + result.stderr
    shutil.copy(folder / "project" / "run.py", folder / "site")
    return folder / "site"


def python(folder, *arguments):
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_nbest_against_fastce(nbest):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 50)
    starts = np.cumsum([0, *lengths])
    logits = rng.standard_normal((starts[-1], 1000)).astype(np.float32)
    tokens = rng.integers(0, 1000, starts[-1])
    tokens[-1] = 999
    np.savez(nbest / "texts.npz", logits=logits, tokens=tokens, starts=starts)
    assert python(nbest, "-c", SCORES).split() == ["IndexError", *["ValueError"] * 3]
    expected = [
        math.exp(fastce.cross_entropy(logits[a:b], tokens[a:b]))
        for a, b in itertools.pairwise(starts)
    ]
    np.testing.assert_allclose(np.load(nbest / "scores.npy"), expected, rtol=1e-5)


@pytest.mark.slow
def test_nbest_prints_what_its_readme_says(nbest):
    readme = textwrap.dedent((EXAMPLES / "cython_extension" / "README.md").read_text())
    printed = python(nbest, "run.py").splitlines()
    assert len(printed) == 3
    assert [line for line in readme.splitlines() if line.startswith("    ")][-3:] == [
        "    " + line for line in printed
    ]


# --- the guide ----------------------------------------------------------------------------


def test_the_guide_shows_what_is_tested():
    """Every block of code in it stands in a file of an example, word for word."""
    blocks = re.findall(r"```(python|cython|toml)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) > 4
    for language, block in blocks:
        ending = {"python": "py", "cython": "pyx", "toml": "toml"}[language]
        texts = [path.read_text() for path in EXAMPLES.rglob(f"*.{ending}")]
        assert any(block in text for text in texts), block


def test_the_guide_names_the_contract():
    assert f"`CONTRACT = {kernels.CONTRACT}`" in GUIDE.read_text()
