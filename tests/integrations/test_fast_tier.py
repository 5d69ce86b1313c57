"""`pytest --fast` runs every op on every backend in every dtype."""

from pathlib import Path

import pytest
from conftest import DTYPES, SELECTED, _sample

from fastce._runtime.dispatch import OPS

FOLDER = Path(__file__).parents[1] / "ops"
SHORT = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@pytest.fixture
def kept(request):
    """The tests that `--fast` keeps."""
    config, items = request.config, request.session.items
    missing = {path.name for path in FOLDER.glob("test_*.py")} - {item.path.name for item in items}
    if missing or config.option.keyword or config.option.markexpr:
        pytest.skip("looks at all tests, of which only some were collected")
    return items if config.getoption("--fast") else _sample(items)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", SELECTED)
def test_every_op_in_every_dtype(kept, backend, op):
    found = set()
    for item in kept:
        values = set(item.nodeid.rstrip("]").partition("[")[2].split("-"))
        if item.path.name.startswith(f"test_{op}") and backend in values:
            found |= {SHORT.get(dtype, dtype) for dtype in values & DTYPES}
    assert found == set(SHORT.values())
