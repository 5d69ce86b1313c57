"""Copies of kernels/ without some ops, and a small call of every kernel in them."""

import inspect
import shutil
from pathlib import Path

import numpy as np

KERNELS = Path(__file__).parents[2] / "kernels"
NOT_COPIED = "__pycache__", "*.so", "*.cpp", "x86_64_v*", "generic"


def copy_without(op, to):
    """A copy of the sources in which the files of an op are deleted, as kernels/README.md says."""
    shutil.copytree(KERNELS, to, ignore=shutil.ignore_patterns(*NOT_COPIED))
    delete(op, to)


def delete(op, kernels):
    files = [p for name in (f"{op}.*", op, f"_{op}_*") for p in kernels.glob(f"*/{name}")]
    assert files, op
    for path in files:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def kernel_functions(module):
    """The kernels of an op, by their names."""
    return {
        name: function
        for name, function in vars(module).items()
        if callable(function)
        and not name.startswith("_")
        and function.__module__ == module.__name__
        and "threads" in inspect.signature(function).parameters
    }


OPTIONS = {
    "threads": 1, "denominator": 1.0, "ignore_index": -1, "classes": 3, "label_smoothing": 0.1,
    "z_loss": 0.1, "softcap": 0.0, "unit": 1.0, "exponential": False, "gamma": 2.0,
    "positive": 1.0, "negative": 1.0,
}  # fmt: skip
ROBUST = {"alpha": 1.0, "q": 0.5, "epsilon": 0.5, "beta": 0.1}
ATTENTION = {"scale": 1.0, "left": -1, "right": -1}


def arguments(op, name, parameters):
    """Small inputs, and memory for the outputs, of one kernel."""
    plane, row, labels = (2, 3, 1), (2, 1), np.array([[0], [2]])
    if op == "attention":
        plane, row = (1, 2, 3, 4), (1, 2, 3)
    elif op == "binary_cross_entropy":
        plane, row, labels = (5,), (5,), np.full(5, 0.5)
    elif op == "linear_cross_entropy":
        plane, row, labels = (2, 4), (2,), labels[:, 0]
    values = OPTIONS | (ROBUST if op == "robust_losses" else ATTENTION | {"epsilon": 1e-7})
    values |= dict.fromkeys(("weight", "pos_weight", "mask", "dmask", "linear_bias"))
    values |= {"d_linear_bias": None, "stats": np.zeros(2), "spans": np.array([[0, 3, 0, 3, 0]])}
    values |= {a: np.full((3, 4), 0.5) for a in ("linear_weight", "d_linear_weight")}
    values |= {"table": np.full((2, 3, 3), 1 / 9), "target": labels}
    values |= {a: np.ones(row) for a in ("loss", "lse", "grad_loss")}
    if op == "information":
        values["out"] = np.empty(2 if "table" in parameters else row)
    elif name == "logsumexp":
        values["out"] = np.empty(row)
    return {p: values[p] if p in values else np.full(plane, 0.5) for p in parameters}


def call_all(op, module):
    for name, function in kernel_functions(module).items():
        function(**arguments(op, name, inspect.signature(function).parameters))
