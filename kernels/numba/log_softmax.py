"""logsumexp, softmax, log_softmax and their gradients. Read _rows.py first, then _panels.py.

A task is some rows or some panels. Each op makes the state of a row and then writes, while the row
is still in the cache.
"""

import numpy as np

from ._compile import threaded
from ._jit_options import internal
from ._math import (
    add_compensated,
    cast,
    compensated,
    constants,
    exp_between,
    exp_from,
    reference,
    sub_to_odd,
)
from ._panels import (
    CLASSES,
    PANEL,
    TILE,
    column,
    column_bounds,
    is_panelled,
    line_of,
    load_tile,
    max_prob_of,
    panel_place,
    panel_rows,
    panel_scratch,
    panel_state,
    panels_of_task,
    put_log_sums,
    rows_of_task,
    store_tile,
    task_count,
)
from ._rows import (
    BLOCK,
    log_softmax_backward_row,
    row_of,
    row_state,
    softmax_backward_row,
    write_log_softmax,
    write_softmax,
)
from ._storage import (
    is_half,
    narrow,
    planes_in,
    planes_out,
    raw,
    stack_like,
    stack_scratch,
    stream_end,
    streams,
)

# ---- tasks -----------------------------------------------------------------------------------


@internal
def logsumexp_panel(x, out, number, outer, n, inner, tile, row_max, sumexp_m1, work):
    first, width = panel_rows(number, outer, inner)
    place, sums = panel_place(x, number, inner), column(work, 0)
    panel_state(x.data, place, n, width, tile, row_max, sumexp_m1, False, work)
    put_log_sums(row_max, sumexp_m1, sums)
    for c in range(width):
        # The log-sum of an infinite maximum is NaN, but its logsumexp is infinite.
        m = row_max[c]
        infinite = m - m != m - m and sumexp_m1[c] == sumexp_m1[c]
        out[first + c] = narrow(m if infinite else m + sums[c], out)


@internal
def logsumexp_task(x, out, outer, n, inner, task):
    if is_panelled(n, inner):
        scratch = panel_scratch(x.data)
        for number in panels_of_task(outer, n, inner, task):
            logsumexp_panel(x, out, number, outer, n, inner, *scratch)
        return
    memory = stack_scratch(x.data, BLOCK)
    for r in rows_of_task(outer, n, task):
        row_max, sumexp_m1 = row_state(row_of(x, r, n), memory, memory[:0])
        out[r] = narrow(cast(row_max, row_max + np.log1p(sumexp_m1)), out)


@internal
def softmax_panel(x, out, number, outer, n, inner, tile, row_max, sumexp_m1, work):
    _, width = panel_rows(number, outer, inner)
    place, out_place = panel_place(x, number, inner), panel_place(out, number, inner)
    one_tile = n <= CLASSES
    panel_state(x.data, place, n, width, tile, row_max, sumexp_m1, one_tile, work)
    ms, lows, max_probs = column(work, 0), column(work, 1), column(work, 2)
    column_bounds(row_max, ms, lows)
    for c in range(PANEL):
        max_probs[c] = max_prob_of(row_max[c], sumexp_m1[c])
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        if not one_tile:
            load_tile(x.data, place, first, count, width, tile)
        for k in range(count):
            line = line_of(tile, k)
            for c in range(PANEL):
                e = line[c] if one_tile else exp_between(line[c], ms[c], lows[c])
                line[c] = e * max_probs[c]
        store_tile(tile, out.data, out_place, first, count, width)


@internal
def softmax_task(x, out, outer, n, inner, streaming, task):
    if is_panelled(n, inner):
        scratch = panel_scratch(x.data)
        for number in panels_of_task(outer, n, inner, task):
            softmax_panel(x, out, number, outer, n, inner, *scratch)
        return
    memory = stack_scratch(x.data, BLOCK)
    exps = stack_scratch(x.data, BLOCK)[: n if n <= BLOCK else 0]
    for r in rows_of_task(outer, n, task):
        row = row_of(x, r, n)
        row_max, sumexp_m1 = row_state(row, memory, exps)
        write_softmax(row, row_of(out, r, n), row_max, sumexp_m1, exps, streaming)
    if streaming:
        stream_end()


@internal
def log_softmax_panel(x, out, number, outer, n, inner, tile, row_max, sumexp_m1, work):
    _, width = panel_rows(number, outer, inner)
    place, out_place = panel_place(x, number, inner), panel_place(out, number, inner)
    panel_state(x.data, place, n, width, tile, row_max, sumexp_m1, False, work)
    sums = column(work, 0)
    put_log_sums(row_max, sumexp_m1, sums)
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        if n > CLASSES:
            load_tile(x.data, place, first, count, width, tile)
        for k in range(count):
            line = line_of(tile, k)
            for c in range(PANEL):
                below = line[c] - row_max[c]
                line[c] = sub_to_odd(below, sums[c]) if is_half(out.data) else below - sums[c]
        store_tile(tile, out.data, out_place, first, count, width)


@internal
def log_softmax_task(x, out, outer, n, inner, streaming, task):
    if is_panelled(n, inner):
        scratch = panel_scratch(x.data)
        for number in panels_of_task(outer, n, inner, task):
            log_softmax_panel(x, out, number, outer, n, inner, *scratch)
        return
    memory = stack_scratch(x.data, BLOCK)
    for r in rows_of_task(outer, n, task):
        row = row_of(x, r, n)
        row_max, sumexp_m1 = row_state(row, memory, memory[:0])
        write_log_softmax(row, row_of(out, r, n), row_max, sumexp_m1, streaming)
    if streaming:
        stream_end()


@internal
def backward_panel(of_log, grad, y, out, number, outer, n, inner, tile, y_tile, totals, errors):
    """out = y * (grad - sum(grad * y)), or grad - exp(y) * sum(grad) for log_softmax."""
    _, width = panel_rows(number, outer, inner)
    g_place, y_place = panel_place(grad, number, inner), panel_place(y, number, inner)
    out_place = panel_place(out, number, inner)
    t = constants(tile[0])
    zero = t.zero
    base, _ = reference(zero)
    totals[:] = zero
    errors[:] = zero
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        load_tile(grad.data, g_place, first, count, width, tile)
        load_tile(y.data, y_place, first, count, width, y_tile)
        for k in range(count):
            g, v = line_of(tile, k), line_of(y_tile, k)
            for c in range(PANEL):
                term = g[c] if of_log else g[c] * v[c]
                totals[c], errors[c] = add_compensated(totals[c], errors[c], term)
    for c in range(PANEL):
        totals[c] = cast(zero, compensated(totals[c], errors[c]))
    for first in range(0, n, CLASSES):
        count = min(CLASSES, n - first)
        if n > CLASSES:
            load_tile(grad.data, g_place, first, count, width, tile)
            load_tile(y.data, y_place, first, count, width, y_tile)
        for k in range(count):
            g, v = line_of(tile, k), line_of(y_tile, k)
            if of_log:
                for c in range(PANEL):
                    g[c] = g[c] - exp_from(v[c], base) * t.down * totals[c]
            else:
                for c in range(PANEL):
                    g[c] = v[c] * (g[c] - totals[c])
        store_tile(tile, out.data, out_place, first, count, width)


@internal
def backward_task(of_log, grad, y, out, outer, n, inner, streaming, task):
    if is_panelled(n, inner):
        tile, totals, _, work = panel_scratch(y.data)
        y_tile, errors = stack_like(tile, TILE), column(work, 0)
        for number in panels_of_task(outer, n, inner, task):
            backward_panel(
                of_log, grad, y, out, number, outer, n, inner, tile, y_tile, totals, errors
            )
        return
    for r in rows_of_task(outer, n, task):
        rows = row_of(grad, r, n), row_of(y, r, n), row_of(out, r, n)
        if of_log:
            log_softmax_backward_row(*rows, streaming)
        else:
            softmax_backward_row(*rows, streaming)
    if streaming:
        stream_end()


# ---- kernels ---------------------------------------------------------------------------------

run_logsumexp, run_softmax = threaded(logsumexp_task), threaded(softmax_task)
run_log_softmax, run_backward = threaded(log_softmax_task), threaded(backward_task)


def logsumexp(x, out, *, threads):
    flat = raw(out).reshape(-1)
    run_logsumexp(threads, x.size, task_count(*x.shape), planes_in(x), flat, *x.shape)


def softmax(x, out, *, threads):
    _map(run_softmax, x, out, threads)


def log_softmax(x, out, *, threads):
    _map(run_log_softmax, x, out, threads)


def _map(run, x, out, threads):
    planes = planes_in(x), planes_out(out)
    run(threads, x.size, task_count(*x.shape), *planes, *x.shape, streams(out, x))


def softmax_backward(grad, y, out, *, threads):
    _backward(False, grad, y, out, threads)


def log_softmax_backward(grad, y, out, *, threads):
    _backward(True, grad, y, out, threads)


def _backward(of_log, grad, y, out, threads):
    planes = planes_in(grad), planes_in(y), planes_out(out)
    count, streaming = task_count(*y.shape), streams(out, grad, y)
    run_backward(threads, y.size, count, of_log, *planes, *y.shape, streaming)
