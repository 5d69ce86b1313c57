"""Cross-entropy and nll_loss, forward, backward and both in one trip, on NVIDIA GPUs.

The three shapes of work of `log_softmax.py`. `_loss.py` has what a row costs and its slope, and the
four kinds of target, for each of which kernels are compiled with and without gradient. With plain
labels a row is read once, as for softmax; the kinds of target that want something of each class
read it twice.

A gradient is written over a row that is softmax times a factor; then the lane to which the label's
element belongs writes that one again. Losses that are summed go to memory as one float64 for each
row or block, which `_add_up` adds in a fixed order. Labels are not checked here (that needs the
host): one out of range makes its row NaN, and nothing is read for it.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np
from numba import cuda

from . import _arrays, _device, _launch, _ptx
from ._columns import WIDTH, columns_of, first_of_column
from ._loss import BAD, COUNTS, IGNORED, denominator_of, loss_of, read_label, scale_of
from ._math import device
from ._reduce import SCRATCH, reduce_of
from ._rows import place, rows_of, share, writer_of
from ._storage import load_number, storage_of
from ._tiles import tiles_of
from .log_softmax import endings_of


def scan_target(target, weight, stats, *, classes, ignore_index, threads):
    with _arrays.on_device((target, weight), (stats,)) as (target, weight, stats):
        labels = (target.address, target.code, *_number(weight), classes, ignore_index)
        count = target.shape[0] * target.shape[1]
        _launch.over_rows(_scan, _scan_again, count, 2, target, labels, (stats.address,))


def cross_entropy(
    logits,
    target,
    weight,
    loss,
    lse,
    *,
    denominator,
    ignore_index,
    label_smoothing,
    z_loss,
    threads,
):
    with _arrays.on_device((logits, target, weight), (loss, lse)) as views:
        logits, target, weight, loss, lse = views
        mode = _mode(target, label_smoothing)
        options = denominator, ignore_index, label_smoothing, z_loss
        _run(mode, logits, target, weight, loss, None, options, lse_out=lse)


def cross_entropy_backward(
    grad_loss,
    logits,
    target,
    weight,
    lse,
    grad,
    *,
    denominator,
    ignore_index,
    label_smoothing,
    z_loss,
    threads,
):
    with _arrays.on_device((grad_loss, logits, target, weight, lse), (grad,)) as views:
        grad_loss, logits, target, weight, lse, grad = views
        mode = _mode(target, label_smoothing)
        options = denominator, ignore_index, label_smoothing, z_loss
        _run(mode, logits, target, weight, None, grad, options, lse=lse, grad_loss=grad_loss)


def cross_entropy_with_grad(
    logits,
    target,
    weight,
    loss,
    grad,
    *,
    denominator,
    ignore_index,
    label_smoothing,
    z_loss,
    threads,
):
    with _arrays.on_device((logits, target, weight), (loss, grad)) as views:
        logits, target, weight, loss, grad = views
        mode = _mode(target, label_smoothing)
        options = denominator, ignore_index, label_smoothing, z_loss
        _run(mode, logits, target, weight, loss, grad, options)


def nll_loss(log_probs, target, weight, loss, *, denominator, ignore_index, threads):
    with _arrays.on_device((log_probs, target, weight), (loss,)) as views:
        log_probs, target, weight, loss = views
        options = denominator, ignore_index, 0.0, 0.0
        _run("pick", log_probs, target, weight, loss, None, options)


def nll_loss_backward(grad_loss, target, weight, grad, *, denominator, ignore_index, threads):
    with _arrays.on_device((grad_loss, target, weight), (grad,)) as views:
        grad_loss, target, weight, grad = views
        options = denominator, ignore_index, 0.0, 0.0
        _run("pick", grad, target, weight, None, grad, options, grad_loss=grad_loss)


def _mode(target, label_smoothing):
    if len(target.shape) == 3:
        return "probs"
    return "smooth" if label_smoothing else "label"


def _number(view):
    """(address, code) of an array that is read one number at a time, or zeros."""
    return (0, 0) if view is None else (view.address, view.code)


def _run(
    mode, logits, target, weight, loss, grad, options, *, lse=None, lse_out=None, grad_loss=None
):
    """Work on all rows, and add up their losses where `loss` is one number."""
    denominator, ignore_index, label_smoothing, z_loss = options
    outer, n, inner = logits.shape
    upstream, stats = 1.0, 0
    if isinstance(grad_loss, float):
        upstream, grad_loss = grad_loss, None
    if isinstance(denominator, _arrays.View):  # on the GPU, for which the host does not wait
        denominator, stats = 1.0, denominator.address
    plan = _launch.plan_for(
        logits,
        keeps=1 if grad is not None and mode == "label" else 0,
        tiled=2 if mode == "probs" else 1,
        splits=mode == "label" and lse is None,
    )
    summed = loss is not None and loss.shape == (1, 1)
    sums = 0
    if summed:
        buffer = _device.allocate(8 * plan.units, logits.stream, logits.device)
        sums = _device.address(buffer)
    nothing = _arrays.View(0, (), 0, logits.dtype, 0, 0)
    _launch.run(
        _kernels(logits.dtype, mode, grad is not None),
        plan,
        logits,
        (logits, target, grad or nothing),
        (
            0 if mode == "probs" else target.code,
            *_number(weight),
            *_number(lse),
            0 if lse_out is None else lse_out.address,
            0 if loss is None or summed else loss.address,
            sums,
            *_number(grad_loss),
            0 if grad_loss is None or grad_loss.shape == (1, 1) else 1,
            upstream,
            float(denominator),
            stats,
            ignore_index,
            1.0 - label_smoothing,
            label_smoothing / n if n else 0.0,
            float(z_loss),
        ),
        maps=grad is not None,
    )
    if summed:
        units = plan.units if outer * inner else 0
        last = (loss.address, loss.code, float(denominator), stats)
        _launch.over_rows(_add_up, _add_up, units, 1, logits, (sums,), last)


@cuda.jit
def _add_up(values, count, each, out, loss, loss_code, denominator, stats):
    """Sum float64 numbers; the last launch divides the sum and writes the loss."""
    begin = np.int64(cuda.blockIdx.x) * each
    end = min(begin + each, count)
    total = np.float64(0)
    i = begin + cuda.threadIdx.x
    while i < end:
        total += _ptx.load_f64(values + 8 * i)
        i += cuda.blockDim.x
    total = _sum_f64(total, np.int64(cuda.blockDim.x))
    if cuda.threadIdx.x == 0:
        if out != 0:
            _ptx.store_f64(out + 8 * cuda.blockIdx.x, total)
        else:
            total /= denominator_of(denominator, stats)
            if loss_code == 8:
                _ptx.store_f64(loss, total)
            else:
                _ptx.store_f32(loss, np.float32(total))


@cuda.jit
def _scan(labels, code, weight, weight_code, classes, ignore_index, count, each, out, stats):
    """The first row with a label out of range, and the sum of the weights of the others."""
    begin = np.int64(cuda.blockIdx.x) * each
    end = min(begin + each, count)
    first, total = -INF, np.float64(0)  # the row's number, negative: so the first is the largest
    row = begin + cuda.threadIdx.x
    while row < end:
        y, says = read_label(labels, row, code, classes, ignore_index)
        if says == BAD:
            first = max(first, -np.float64(row))
        elif says == COUNTS:
            total += load_number(weight, y, weight_code) if weight != 0 else np.float64(1)
        row += cuda.blockDim.x
    _put_scan(first, total, out, stats)


@cuda.jit
def _scan_again(pairs, count, each, out, stats):
    """The same of what blocks have found."""
    first, total = -INF, np.float64(0)
    i = np.int64(cuda.threadIdx.x)
    while i < count:
        first = max(first, _ptx.load_f64(pairs + 16 * i))
        total += _ptx.load_f64(pairs + 16 * i + 8)
        i += cuda.blockDim.x
    _put_scan(first, total, out, stats)


INF = np.float64(np.inf)
_sum_f64, _max_f64 = reduce_of("float64").group_sum, reduce_of("float64").block_max
_warp_sum_f64 = reduce_of("float64").warp_sum


@device
def _put_scan(first, total, out, stats):
    first = _max_f64(first)
    total = _sum_f64(total, np.int64(cuda.blockDim.x))
    if cuda.threadIdx.x == 0:
        if out != 0:
            _ptx.store_f64(out + 16 * cuda.blockIdx.x, first)
            _ptx.store_f64(out + 16 * cuda.blockIdx.x + 8, total)
        else:
            _ptx.store_f64(stats, np.float64(-1) if first == -INF else -first)
            _ptx.store_f64(stats + 8, total)


@cache
def _kernels(name, mode, grads):
    """The kernels for one dtype and kind of target, with gradient or without."""
    storage, rows, tiles, columns = (
        storage_of(name),
        rows_of(name),
        tiles_of(name),
        columns_of(name),
    )
    loss = loss_of(name, mode)
    real, size, per_word, number = storage.real, storage.size, storage.per_word, storage.real_size
    zero, one, nan, lowest = real(0), real(1), real(np.nan), real(-np.inf)
    kind, load, store, unpack = storage.type, storage.load, storage.store, storage.unpack
    store_word = storage.store_word
    shared_load, shared_store = storage.shared_load, storage.shared_store
    put_number = _ptx.store_f64 if real is np.float64 else _ptx.store_f32
    get_number = _ptx.load_f64 if real is np.float64 else _ptx.load_f32
    split, edge, gather = rows.split, rows.edge, rows.gather
    read_states, write_state = rows.read_states, rows.write_state
    write = writer_of(name, endings_of(name).scaled_value)
    group_state, group_sum = reduce_of(name).group_state, reduce_of(name).group_sum
    column_state, column_sum = columns.column_state, columns.column_sum
    gather_column = columns.gather_column
    bring, take, walk, add_cost = tiles.bring, tiles.take, tiles.walk, loss.add_cost
    wanted, label_share, add_wanted = loss.wanted, loss.label_share, loss.add_wanted
    moved, loss_and_lse, pulls, slope = loss.moved, loss.loss_and_lse, loss.pulls, loss.slope
    is_probs, is_pick, is_label = mode == "probs", mode == "pick", mode == "label"

    @device
    def label_of(target, row, code, n, ignore_index):
        if is_probs:
            return np.int64(0), COUNTS
        return read_label(target, row, code, n, ignore_index)

    @device
    def put_row(row, says, value, lse, losses, lses, denominator, stats):
        """Write what a row costs, if every row has its own place, and its lse; give the loss."""
        if says != COUNTS:
            value = lse = zero if says == IGNORED else nan
        if losses != 0:
            put_number(losses + row * number, real(value / denominator_of(denominator, stats)))
        if lses != 0:
            put_number(lses + row * number, lse)
        return np.float64(value)

    @device
    def fill(out, first, last, edges, head, words, lane, lanes, value):
        """Make the elements of a lane equal."""
        v = cuda.local.array(per_word, kind)
        for j in range(per_word):
            v[j] = value
        w = first + lane
        while w < last:
            store_word(out + head * size + 16 * w, v)
            w += lanes
        j = np.int64(lane)
        while j < edges:
            store(out + edge(j, head, words) * size, value)
            j += lanes

    @device
    def is_owner(y, first, last, edges, head, words, lane, lanes):
        """Whether a lane writes element y."""
        inside = y - head
        if inside >= 0 and inside < words * per_word:
            w = inside // per_word
            return first <= w and w < last and (w - first) % lanes == lane
        j = y if y < head else y - words * per_word
        return j < edges and j % lanes == lane

    @cuda.jit
    def rows_kernel(
        logits, target, grad, step, target_step, grad_step, count, n,
        code, weight, weight_code, lse, lse_code, lses, losses, sums, grad_loss, grad_loss_code,
        grad_loss_step, upstream, denominator, stats, ignore_index, keep, spread, z_loss,
        lanes, parts, gathered, states, capacity,
    ):  # fmt: skip
        row, part, lane, group = place(lanes, parts)
        says, y = IGNORED, np.int64(0)
        if row < count:
            y, says = label_of(target, row, code, n, ignore_index)
        x = logits + row * step * size
        out = grad + row * grad_step * size
        classes = n if row < count else np.int64(0)
        head, words = split(x, classes, x ^ out if grads else np.int64(0))
        first, last = share(part, parts, words)
        edges = classes - words * per_word if part == 0 else np.int64(0)
        counts = says == COUNTS
        if not counts:  # nothing is read
            last, edges = first, np.int64(0)
        q_y, x_y = zero, zero
        if counts:
            q_y = label_share(y, weight, weight_code, real(keep))
            reads = lane == 0 or is_owner(y, first, last, edges, head, words, lane, lanes)
            if reads and not (is_pick and grads):
                x_y = load(x + y * size)
        cuda.syncwarp()  # in place, x[y] is overwritten later on
        top, below, ties = lowest, zero, zero
        slots = _ptx.dynamic_shared() + SCRATCH + group * capacity * 16
        kept = first + capacity
        if is_pick:
            kept = first
        elif gathered > 0:
            kept = first
            top, below, ties = read_states(states, row, gathered, lane, lanes)
            if lane == 0:  # by now others may have overwritten it
                x_y = get_number(states + (3 * gathered * count + row) * number)
        elif lse != 0:
            kept = first
            if row < count:
                top, ties = real(load_number(lse, row, lse_code)), one
        else:
            top, below, ties = gather(x, first, last, edges, head, words, lane, lanes, slots, kept)
            top, below, ties = group_state(top, below, ties, lanes)
        if gathered == 0 and states != 0:
            if lane == 0:
                write_state(states, row * parts + part, top, below, ties)
                if part == 0:
                    put_number(states + (3 * parts * count + row) * number, x_y)
            return
        if lane == 0 and part == 0 and row < count and (losses != 0 or sums != 0 or lses != 0):
            value, row_lse = loss_and_lse(top, below, ties, zero, zero, x_y, q_y, real(z_loss))
            value = put_row(row, says, value, row_lse, losses, lses, denominator, stats)
            if sums != 0:
                _ptx.store_f64(sums + 8 * row, value)
        if grads:
            if not counts:
                first, last = share(part, parts, words)
                edges = classes - words * per_word if part == 0 else np.int64(0)
                nothing = zero if says == IGNORED else nan
                fill(out, first, last, edges, head, words, lane, lanes, nothing)
                return
            scale = real(
                scale_of(
                    grad_loss, grad_loss_code, row, grad_loss_step, upstream, denominator, stats
                )
            )
            at_y = -q_y * scale
            if is_pick:
                fill(out, first, last, edges, head, words, lane, lanes, zero)
            else:
                log_total, part_of, pull = pulls(top, below, ties, zero, q_y, real(z_loss))
                factor = pull * part_of * scale
                write(
                    x, out, first, last, edges, head, words, lane, lanes, slots, kept, top, factor
                )
                at_y = slope(x_y, q_y, top, log_total, part_of, pull) * scale
            if is_owner(y, first, last, edges, head, words, lane, lanes):
                store(out + y * size, at_y)

    @device
    def dense_word(x_word, t_word, k, weight, weight_code, keep, spread, state):
        """`add_wanted` for the elements of a word, of which k is the first."""
        x, t = cuda.local.array(per_word, kind), cuda.local.array(per_word, kind)
        unpack(x_word, x)
        unpack(t_word, t)
        top, below, ties, cost, mass = state
        for j in range(per_word):
            q = wanted(t[j], k + j, weight, weight_code, keep, spread)
            top, below, ties, cost, mass = add_wanted(x[j], q, top, below, ties, cost, mass)
        return top, below, ties, cost, mass

    @device
    def dense_slopes(
        x_word, t_word, address, k, weight, weight_code, keep, spread,
        top, log_total, part_of, pull, scale,
    ):  # fmt: skip
        x, t = cuda.local.array(per_word, kind), cuda.local.array(per_word, kind)
        unpack(x_word, x)
        unpack(t_word, t)
        for j in range(per_word):
            q = wanted(t[j], k + j, weight, weight_code, keep, spread)
            x[j] = slope(x[j], q, top, log_total, part_of, pull) * scale
        store_word(address, x)

    @device
    def after(top, below, ties, cost, mass, new_top, lanes):
        """cost and mass of a group whose maximum is `new_top`."""
        cost = moved(cost, mass, top, new_top)
        return group_sum(cost, lanes), group_sum(mass, lanes)

    @cuda.jit
    def dense_rows_kernel(
        logits, target, grad, step, target_step, grad_step, count, n,
        code, weight, weight_code, lse, lse_code, lses, losses, sums, grad_loss, grad_loss_code,
        grad_loss_step, upstream, denominator, stats, ignore_index, keep, spread, z_loss,
        lanes, parts, gathered, states, capacity,
    ):  # fmt: skip
        row, _, lane, _ = place(lanes, np.int64(1))
        says, y = IGNORED, np.int64(0)
        if row < count:
            y, says = label_of(target, row, code, n, ignore_index)
        counts = says == COUNTS
        x = logits + row * step * size
        t = target + row * target_step * size if is_probs else x
        out = grad + row * grad_step * size if grads else x
        head, words = split(x, n if row < count else np.int64(0), (x ^ t) | (x ^ out))
        all_edges = (n if row < count else np.int64(0)) - words * per_word
        last, edges = (words, all_edges) if counts else (np.int64(0), np.int64(0))
        keep_, spread_ = real(keep), real(spread)
        x_words, t_words = x + head * size, t + head * size
        q_y, x_y = zero, zero
        if counts and not is_probs:
            q_y = label_share(y, weight, weight_code, keep_)
            x_y = load(x + y * size)
        cuda.syncwarp()
        state = lowest, zero, zero, zero, zero
        w = lane
        while w < last:
            t_word = _ptx.load_word(t_words + 16 * w)
            k = head + w * per_word
            state = dense_word(
                _ptx.load_word(x_words + 16 * w),
                t_word,
                k,
                weight,
                weight_code,
                keep_,
                spread_,
                state,
            )
            w += lanes
        top, below, ties, cost, mass = state
        j = lane
        while j < edges:
            k = edge(j, head, words)
            q = wanted(load(t + k * size), k, weight, weight_code, keep_, spread_)
            x_k = load(x + k * size)
            top, below, ties, cost, mass = add_wanted(x_k, q, top, below, ties, cost, mass)
            j += lanes
        new_top, new_below, new_ties = group_state(top, below, ties, lanes)
        cost, mass = after(top, below, ties, cost, mass, new_top, lanes)
        top, below, ties = new_top, new_below, new_ties
        if lse != 0 and row < count:
            top, below, ties = real(load_number(lse, row, lse_code)), zero, one
        if lane == 0 and row < count and (losses != 0 or sums != 0 or lses != 0):
            value, row_lse = loss_and_lse(top, below, ties, cost, mass, x_y, q_y, real(z_loss))
            value = put_row(row, says, value, row_lse, losses, lses, denominator, stats)
            if sums != 0:
                _ptx.store_f64(sums + 8 * row, value)
        if grads:
            zero_word = np.int64(0)
            if not counts:
                nothing = zero if says == IGNORED else nan
                fill(out, zero_word, words, all_edges, head, words, lane, lanes, nothing)
                return
            scale = real(
                scale_of(
                    grad_loss, grad_loss_code, row, grad_loss_step, upstream, denominator, stats
                )
            )
            log_total, part_of, pull = pulls(top, below, ties, mass, q_y, real(z_loss))
            w = lane
            while w < last:
                dense_slopes(
                    _ptx.load_word(x_words + 16 * w), _ptx.load_word(t_words + 16 * w),
                    out + head * size + 16 * w, head + w * per_word, weight, weight_code,
                    keep_, spread_, top, log_total, part_of, pull, scale,
                )  # fmt: skip
                w += lanes
            j = lane
            while j < edges:
                k = edge(j, head, words)
                q = wanted(load(t + k * size), k, weight, weight_code, keep_, spread_)
                at_k = slope(load(x + k * size), q, top, log_total, part_of, pull) * scale
                store(out + k * size, at_k)
                j += lanes
            if not is_probs and is_owner(y, zero_word, words, all_edges, head, words, lane, lanes):
                q = q_y + wanted(zero, y, weight, weight_code, keep_, spread_)
                at_y = slope(x_y, q, top, log_total, part_of, pull) * scale
                store(out + y * size, at_y)

    @cuda.jit
    def tiles_kernel(
        logits, target, grad, step, target_step, grad_step, count, n,
        code, weight, weight_code, lse, lse_code, lses, losses, sums, grad_loss, grad_loss_code,
        grad_loss_step, upstream, denominator, stats, ignore_index, keep, spread, z_loss,
        inverse, pitch,
    ):  # fmt: skip
        thread = np.int64(cuda.threadIdx.x)
        begin = np.int64(cuda.blockIdx.x) * cuda.blockDim.x
        rows_here = min(np.int64(cuda.blockDim.x), count - begin)
        row = begin + thread
        tile = np.int64(_ptx.dynamic_shared()) + SCRATCH
        to_t = cuda.blockDim.x * pitch * number if is_probs else np.int64(0)
        if not is_pick:
            bring(logits + begin * step * size, step, rows_here, n, inverse, pitch, tile)
        if is_probs:
            t = target + begin * target_step * size
            bring(t, target_step, rows_here, n, inverse, pitch, tile + to_t)
        mine = tile + thread * pitch * number
        value = np.float64(0)
        if thread < rows_here:
            y, says = label_of(target, row, code, n, ignore_index)
            counts = says == COUNTS
            keep_, spread_ = real(keep), real(spread)
            q_y, x_y = zero, zero
            if counts and not is_probs:
                q_y = label_share(y, weight, weight_code, keep_)
                if is_pick:
                    x_y = load(logits + (row * step + y) * size) if not grads else zero
                else:
                    x_y = shared_load(np.uint32(mine + y * number))
            top, below, ties, cost, mass = lowest, zero, zero, zero, zero
            if not is_pick:
                top, below, ties = walk(mine, n)
            if not is_pick and not is_label:
                for k in range(n):
                    at = mine + k * number
                    t_k = shared_load(np.uint32(at + to_t))
                    q = wanted(t_k, k, weight, weight_code, keep_, spread_)
                    cost, mass = add_cost(shared_load(np.uint32(at)), q, top, cost, mass)
            if lse != 0:
                top, below, ties = real(load_number(lse, row, lse_code)), zero, one
            if losses != 0 or sums != 0 or lses != 0:
                row_loss, row_lse = loss_and_lse(
                    top, below, ties, cost, mass, x_y, q_y, real(z_loss)
                )
                value = put_row(row, says, row_loss, row_lse, losses, lses, denominator, stats)
            if grads:
                scale = real(
                    scale_of(
                        grad_loss, grad_loss_code, row, grad_loss_step, upstream, denominator, stats
                    )
                )
                nothing = zero if says == IGNORED else nan
                if is_pick:
                    for k in range(n):
                        at_k = zero if counts else nothing
                        shared_store(np.uint32(mine + k * number), at_k)
                    if counts:
                        shared_store(np.uint32(mine + y * number), -q_y * scale)
                else:
                    log_total, part_of, pull = pulls(top, below, ties, mass, q_y, real(z_loss))
                    for k in range(n):
                        at = mine + k * number
                        q = zero
                        if not is_label:
                            t_k = shared_load(np.uint32(at + to_t))
                            q = wanted(t_k, k, weight, weight_code, keep_, spread_)
                        if not is_probs and k == y:
                            q += q_y
                        x_k = shared_load(np.uint32(at))
                        at_k = slope(x_k, q, top, log_total, part_of, pull) * scale
                        shared_store(np.uint32(at), at_k if counts else nothing)
        if sums != 0:
            value = _sum_f64(value, np.int64(cuda.blockDim.x))
            if thread == 0:
                _ptx.store_f64(sums + 8 * cuda.blockIdx.x, value)
        if grads:
            take(grad + begin * grad_step * size, grad_step, rows_here, n, inverse, pitch, tile)

    @cuda.jit
    def columns_kernel(
        logits, target, grad, step, target_step, grad_step, count, n,
        code, weight, weight_code, lse, lse_code, lses, losses, sums, grad_loss, grad_loss_code,
        grad_loss_step, upstream, denominator, stats, ignore_index, keep, spread, z_loss,
        inner,
    ):  # fmt: skip
        column = np.int64(cuda.blockIdx.x) * WIDTH + cuda.threadIdx.x
        height, y_thread = cuda.blockDim.y, np.int64(cuda.threadIdx.y)
        live = column < count
        says, y = IGNORED, np.int64(0)
        if live:
            y, says = label_of(target, column, code, n, ignore_index)
        counts = says == COUNTS
        classes = n if live else np.int64(0)
        x = logits + first_of_column(column, inner, step) * size
        t = target + first_of_column(column, inner, target_step) * size if is_probs else x
        keep_, spread_ = real(keep), real(spread)
        q_y, x_y = zero, zero
        if counts and not is_probs:
            q_y = label_share(y, weight, weight_code, keep_)
            if not (is_pick and grads):
                x_y = load(x + y * inner * size)
        top, below, ties, cost, mass = lowest, zero, zero, zero, zero
        if not is_pick:
            if is_label and counts:
                top, below, ties = gather_column(x, inner * size, classes)
            k = y_thread
            while k < classes and counts and not is_label:
                at = k * inner * size
                q = wanted(load(t + at), k, weight, weight_code, keep_, spread_)
                x_k = load(x + at)
                top, below, ties, cost, mass = add_wanted(x_k, q, top, below, ties, cost, mass)
                k += height
            new_top, below, ties = column_state(top, below, ties)
            if not is_label:
                cost = moved(cost, mass, top, new_top)
                cost, mass = column_sum(cost), column_sum(mass)
            top = new_top
        if lse != 0 and live:
            top, below, ties = real(load_number(lse, column, lse_code)), zero, one
        value = np.float64(0)
        if live and y_thread == 0 and (losses != 0 or sums != 0 or lses != 0):
            row_loss, row_lse = loss_and_lse(top, below, ties, cost, mass, x_y, q_y, real(z_loss))
            value = put_row(column, says, row_loss, row_lse, losses, lses, denominator, stats)
        if sums != 0 and y_thread == 0:  # which is one warp
            value = _warp_sum_f64(value, WIDTH)
            if cuda.threadIdx.x == 0:
                _ptx.store_f64(sums + 8 * cuda.blockIdx.x, value)
        if grads:
            out = grad + first_of_column(column, inner, grad_step) * size
            nothing = zero if says == IGNORED else nan
            scale = one
            if counts:
                scale = real(
                    scale_of(
                        grad_loss,
                        grad_loss_code,
                        column,
                        grad_loss_step,
                        upstream,
                        denominator,
                        stats,
                    )
                )
            log_total, part_of, pull = pulls(top, below, ties, mass, q_y, real(z_loss))
            k = y_thread
            while k < classes:
                at = k * inner * size
                at_k = nothing
                if counts:
                    if is_pick:
                        at_k = -q_y * scale if k == y else zero
                    else:
                        q = zero
                        if not is_label:
                            q = wanted(load(t + at), k, weight, weight_code, keep_, spread_)
                        if not is_probs and k == y:
                            q += q_y
                        at_k = slope(load(x + at), q, top, log_total, part_of, pull) * scale
                store(out + at, at_k)
                k += height

    rows_ = rows_kernel if is_label or is_pick else dense_rows_kernel
    return SimpleNamespace(rows=rows_, tiles=tiles_kernel, columns=columns_kernel)
