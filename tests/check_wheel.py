"""Installs a wheel and an sdist in empty environments, computes there, and lists their sizes.

    python tests/check_wheel.py dist/manylinux/*.whl dist/*.tar.gz      (`make wheel` does)

The environments know nothing of this checkout: each runs in its own folder.
"""

import runpy
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections import Counter
from pathlib import Path

LEVELS = runpy.run_path(str(Path(__file__).parents[1] / "kernels/cython/_isa.py"))["levels"]()
CODE = """
import numpy as np, fastceassert "site-packages" in fastce.__file__, fastce.__file__
assert fastce.available_backends()["cython"] is None, fastce.available_backends()
x, t = np.random.default_rng(0).standard_normal((300, 1000), dtype="f4"), np.arange(300)
with fastce.use_backend("cython"):
    loss, grad = fastce.cross_entropy_with_grad(x, t)
    assert abs(grad.sum(axis=1)).max() < 1e-6
    out = fastce.scaled_dot_product_attention(x[None, :, :64], x[None, :, :64], x[None, :, :64])
with fastce.use_backend("reference"):
    np.testing.assert_allclose(loss, fastce.cross_entropy(x, t), rtol=1e-6)
assert _isa.built() == list(_isa.levels()), _isa.built()
print("computes with", _isa.level())
"""


def try_out(archive: Path, folder: Path) -> None:
    """Install it, with nothing but its dependencies, and compute."""
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", archive.resolve()], check=True, cwd=folder)
    subprocess.run([python, "-c", CODE], check=True, cwd=folder)


def contents(wheel: Path) -> None:
    """How large the compiled modules of each instruction set are; every level, nothing of tests."""
    sizes: Counter[str] = Counter()
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            if "_vector_math" in info.filename and not info.filename.endswith(".pyx"):
                raise SystemExit(f"{wheel.name} has {info.filename}, which only tests use")
            if ".so" in info.filename:
                sizes[Path(info.filename).parent.name] += info.file_size
    missing = set(LEVELS) - set(sizes)
    if missing:
        raise SystemExit(f"{wheel.name} has no kernels of {sorted(missing)}, only {sorted(sizes)}")
    for folder, size in sorted(sizes.items()):
        print(f"  {folder:16} {size / 1e6:5.1f} MB")


def main() -> None:
    for archive in map(Path, sys.argv[1:]):
        print(f"{archive.name}: {archive.stat().st_size / 1e6:.1f} MB", flush=True)
        if archive.suffix == ".whl":
            contents(archive)
        with tempfile.TemporaryDirectory() as folder:
            try_out(archive, Path(folder))


if __name__ == "__main__":
    main()
