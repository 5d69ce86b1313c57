"""`pytest --fast` runs every op on every backend in every dtype."""

import pytest
from conftest import DTYPES, SELECTED, _sample

from fastce._runtime.dispatch import OPS

SHORT = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@pytest.fixture
def kept(request):
    """The tests that `--fast` keeps."""
    config, items = request.config, request.session.items
    missing = {f"test_{op}.py" for op in OPS} - {item.path.name for item in items}
    if missing or config.option.keyword or config.option.markexpr:
        pytest.skip("looks at all tests, of which only some were collected")
    return items if config.getoption("--fast") else _sample(items)


@pytest.mark.parametrize("backend", SELECTED)
def test_every_op_in_every_dtype(kept, backend):
    found = {op: set() for op in OPS}
    for item in kept:
        values = set(item.nodeid.rstrip("]").partition("[")[2].split("-"))
        if backend in values:
            for op in OPS:
                if item.path.name.startswith(f"test_{op}"):
                    found[op] |= {SHORT.get(dtype, dtype) for dtype in values & DTYPES}
    assert found == {op: set(SHORT.values()) for op in OPS}
