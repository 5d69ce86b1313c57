"""Entropies, divergences and mutual information.

The formulas, of which no term is negative, are in kernels/reference/information.py. Read
_information_rows.py first, then _information_panels.py for short rows and other axes,
_information_logits.py and _information_tables.py. A task is some rows, some panels or a table.
"""

import math

from ._compile import threaded
from ._information_logits import entropy_panel, entropy_row
from ._information_logits import kl_panel as logits_kl_panel
from ._information_logits import kl_row as logits_kl_row
from ._information_panels import cross_panel, divergence_panel, panels_in
from ._information_rows import cross_row, divergence_row
from ._information_tables import table_task
from ._math import cast
from ._panels import is_panelled, rows_per_task, task_count
from ._parts import inner
from ._rows import BLOCK, row_of
from ._storage import no_planes, planes_in, planes_out, stack_scratch


@inner
def cross_entropy_task(x, y, same, out, outer, n, inner, unit, exponential, task):
    if is_panelled(n, inner):
        first, last = panels_in(n, outer, inner, task)
        for number in range(first, last):
            cross_panel(x, y, same, out, number, outer, n, inner, unit, exponential)
        return
    memories = stack_scratch(x.data, BLOCK), stack_scratch(x.data, BLOCK)
    for r in range(task * rows_per_task(n), min(outer, (task + 1) * rows_per_task(n))):
        value = cross_row(row_of(x, r, n), row_of(y, r, n), same, memories)
        out[r] = cast(out[r], math.exp(value) if exponential else value / unit)


@inner
def divergence_task(x, y, of_js, out, outer, n, inner, unit, task):
    if is_panelled(n, inner):
        first, last = panels_in(n, outer, inner, task)
        for number in range(first, last):
            divergence_panel(x, y, of_js, out, number, outer, n, inner, unit)
        return
    memories = stack_scratch(x.data, BLOCK), stack_scratch(x.data, BLOCK)
    for r in range(task * rows_per_task(n), min(outer, (task + 1) * rows_per_task(n))):
        value = divergence_row(row_of(x, r, n), row_of(y, r, n), of_js, memories)
        out[r] = cast(out[r], value / unit)


@inner
def entropy_from_logits_task(x, out, grad, outer, n, inner, unit, task):
    if is_panelled(n, inner):
        first, last = panels_in(n, outer, inner, task)
        for number in range(first, last):
            entropy_panel(x, out, grad, number, outer, n, inner, unit)
        return
    memory = stack_scratch(x.data, BLOCK)
    for r in range(task * rows_per_task(n), min(outer, (task + 1) * rows_per_task(n))):
        value = entropy_row(row_of(x, r, n), row_of(grad, r, n), memory, unit)
        out[r] = cast(out[r], value / unit)


@inner
def kl_from_logits_task(x, y, out, q_grad, p_grad, outer, n, inner, unit, task):
    if is_panelled(n, inner):
        first, last = panels_in(n, outer, inner, task)
        for number in range(first, last):
            logits_kl_panel(x, y, out, q_grad, p_grad, number, outer, n, inner, unit)
        return
    memories = stack_scratch(x.data, BLOCK), stack_scratch(x.data, BLOCK)
    for r in range(task * rows_per_task(n), min(outer, (task + 1) * rows_per_task(n))):
        grads = row_of(q_grad, r, n), row_of(p_grad, r, n)  # of nothing, nothing
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
    to = no_planes(logits.dtype, True) if grad is None else planes_out(grad)
    run_entropy_from_logits(
        threads, logits.size, task_count(*logits.shape), planes_in(logits), out.reshape(-1), to,
        *logits.shape, float(unit),
    )  # fmt: skip


def kl_divergence_from_logits(p_logits, q_logits, out, *, unit, threads):
    kl_divergence_from_logits_with_grad(
        p_logits, q_logits, out, None, None, unit=unit, threads=threads
    )


def kl_divergence_from_logits_with_grad(p_logits, q_logits, out, q_grad, p_grad, *, unit, threads):
    shape, nothing = p_logits.shape, no_planes(p_logits.dtype, True)
    grads = (nothing if grad is None else planes_out(grad) for grad in (q_grad, p_grad))
    run_kl_from_logits(
        threads, p_logits.size, task_count(*shape), planes_in(p_logits), planes_in(q_logits),
        out.reshape(-1), *grads, *shape, float(unit),
    )  # fmt: skip
