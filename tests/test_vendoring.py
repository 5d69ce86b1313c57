"""kernels/ alone, copied under another package name, computes: that is what vendoring means."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastce
from fastce import kernels

CODE = """
import sys
class NoFastce:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("fastce", "kernels"):
            raise ImportError(f"a vendored kernel imports {name}")
sys.meta_path.insert(0, NoFastce())

import numpy as np
from mine.numerics.BACKEND import cross_entropy, log_softmax
x = np.load("x.npy")[:, :, None]
target = np.arange(x.shape[0])[:, None]
log_p, grad, loss = np.empty_like(x), np.empty_like(x), np.empty((1, 1), x.dtype)
log_softmax.log_softmax(x, log_p, threads=2)
cross_entropy.cross_entropy_with_grad(
    x, target, None, loss, grad,
    denominator=1.0, ignore_index=-100, label_smoothing=0.0, z_loss=0.0, threads=2,
)
np.savez("results.npz", log_p=log_p[:, :, 0], grad=grad[:, :, 0], loss=loss)
assert "fastce" not in sys.modules
"""


@pytest.mark.parametrize("n", [10, 5000])
def test_a_copy_under_another_name(backend, tmp_path, n):
    """The compiled modules are copied too: their names are not part of them."""
    source = Path(kernels.__file__).parent
    shutil.copytree(source, tmp_path / "mine" / "numerics", ignore=shutil.ignore_patterns("*.cpp"))
    (tmp_path / "mine" / "__init__.py").touch()
    x = np.random.default_rng(0).standard_normal((9, n)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    result = subprocess.run(
        [sys.executable, "-c", CODE.replace("BACKEND", backend)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    results = np.load(tmp_path / "results.npz")
    loss, grad = fastce.cross_entropy_with_grad(x, np.arange(9), reduction="sum")
    np.testing.assert_array_equal(results["log_p"], fastce.log_softmax(x))
    np.testing.assert_array_equal(results["loss"], loss)
    np.testing.assert_array_equal(results["grad"], grad)
