"""Entropies, divergences and mutual information.

The formulas, of which no term is negative, are in kernels/reference/information.py. Read rows.py
first, then panels.py for short rows and other axes, logits.py and tables.py. A task is some rows,
some panels or a table.
"""

import math

from .._compile import threaded
from .._jit_options import internal
from .._math import cast
from .._panels import is_panelled, panels_of_task, rows_of_task, task_count
from .._rows import BLOCK, row_of
from .._storage import planes_in, planes_out, stack_scratch
from .logits import entropy_panel, entropy_row
from .logits import kl_panel as logits_kl_panel
from .logits import kl_row as logits_kl_row
from .panels import cross_panel, divergence_panel
from .rows import cross_row, divergence_row
from .tables import table_task


@internal
def cross_entropy_task(x, y, same, out, outer, n, inner, unit, exponential, task):
    if is_panelled(n, inner):
        for number in panels_of_task(outer, n, inner, task):
            cross_panel(x, y, same, out, number, outer, n, inner, unit, exponential)
        return
    memories = stack_scratch(x.data, BLOCK), stack_scratch(x.data, BLOCK)
    for r in rows_of_task(outer, n, task):
        value = cross_row(row_of(x, r, n), row_of(y, r, n), same, memories)
        out[r] = cast(out[r], math.exp(value) if exponential else value / unit)


@internal
def divergence_task(x, y, of_js, out, outer, n, inner, unit, task):
    if is_panelled(n, inner):
        for number in panels_of_task(outer, n, inner, task):
            divergence_panel(x, y, of_js, out, number, outer, n, inner, unit)
        return
    memories = stack_scratch(x.data, BLOCK), stack_scratch(x.data, BLOCK)
    for r in rows_of_task(outer, n, task):
        value = divergence_row(row_of(x, r, n), row_of(y, r, n), of_js, memories)
        out[r] = cast(out[r], value / unit)


@internal
def entropy_from_logits_task(x, out, grad, outer, n, inner, unit, task):
    if is_panelled(n, inner):
        for number in panels_of_task(outer, n, inner, task):
            entropy_panel(x, out, grad, number, outer, n, inner, unit)
        return
    memory = stack_scratch(x.data, BLOCK)
    for r in rows_of_task(outer, n, task):
        value = entropy_row(row_of(x, r, n), row_of(grad, r, n), memory, unit)
        out[r] = cast(out[r], value / unit)


@internal
def kl_from_logits_task(x, y, out, q_grad, p_grad, outer, n, inner, unit, task):
    if is_panelled(n, inner):
        for number in panels_of_task(outer, n, inner, task):
            logits_kl_panel(x, y, out, q_grad, p_grad, number, outer, n, inner, unit)
        return
    memories = stack_scratch(x.data, BLOCK), stack_scratch(x.data, BLOCK)
    for r in rows_of_task(outer, n, task):
        grads = row_of(q_grad, r, n), row_of(p_grad, r, n)  # or empty
        value = logits_kl_row(row_of(x, r, n), row_of(y, r, n), *grads, memories, unit)
        out[r] = cast(out[r], value / unit)


# ---- kernels ---------------------------------------------------------------------------------

run_cross_entropy, run_divergence = threaded(cross_entropy_task), threaded(divergence_task)
run_entropy_from_logits = threaded(entropy_from_logits_task)
run_kl_from_logits = threaded(kl_from_logits_task)
run_tables = threaded(table_task)


def entropy(p, out, *, unit, exponential, threads):
    cross_entropy_of(p, p, out, unit=unit, exponential=exponential, threads=threads)


def cross_entropy_of(p, q, out, *, unit, exponential, threads):
    run_cross_entropy(
        threads, p.size, task_count(*p.shape), planes_in(p), planes_in(q), q is p, out.reshape(-1),
        *p.shape, float(unit), bool(exponential),
    )  # fmt: skip


def kl_divergence(p, q, out, *, unit, threads):
    _divergence(False, p, q, out, unit, threads)


def js_divergence(p, q, out, *, unit, threads):
    _divergence(True, p, q, out, unit, threads)


def _divergence(of_js, p, q, out, unit, threads):
    run_divergence(
        threads, p.size, task_count(*p.shape), planes_in(p), planes_in(q), of_js, out.reshape(-1),
        *p.shape, float(unit),
    )  # fmt: skip


def _over_tables(of_both, table, out, unit, threads):
    tables, rows, columns = table.shape
    run_tables(
        threads, table.size, tables, of_both, planes_in(table), out, rows, columns, float(unit)
    )


def conditional_entropy(table, out, *, unit, threads):
    _over_tables(False, table, out, unit, threads)


def mutual_information(table, out, *, unit, threads):
    _over_tables(True, table, out, unit, threads)


def entropy_from_logits(logits, out, *, unit, threads):
    entropy_from_logits_with_grad(logits, out, None, unit=unit, threads=threads)


def entropy_from_logits_with_grad(logits, out, grad, *, unit, threads):
    run_entropy_from_logits(
        threads, logits.size, task_count(*logits.shape), planes_in(logits), out.reshape(-1),
        planes_out(grad, logits.dtype), *logits.shape, float(unit),
    )  # fmt: skip


def kl_divergence_from_logits(p_logits, q_logits, out, *, unit, threads):
    kl_divergence_from_logits_with_grad(
        p_logits, q_logits, out, None, None, unit=unit, threads=threads
    )


def kl_divergence_from_logits_with_grad(p_logits, q_logits, out, q_grad, p_grad, *, unit, threads):
    shape = p_logits.shape
    grads = (planes_out(grad, p_logits.dtype) for grad in (q_grad, p_grad))
    run_kl_from_logits(
        threads, p_logits.size, task_count(*shape), planes_in(p_logits), planes_in(q_logits),
        out.reshape(-1), *grads, *shape, float(unit),
    )  # fmt: skip
