"""Cross-entropy where classes are neighbours in memory: see `cross_entropy.py` and `_rows.py`.

With plain labels a row is softmax times a factor, read once; then the lane to which the label's
element belongs writes that one again. The kinds of target that want something of each class, below,
read a row twice.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np
from numba import cuda

from . import _ptx
from ._loss import COUNTS, IGNORED, PROBABILITIES, loss_of, scale_of
from ._math import device
from ._reduce import SCRATCH, reduce_of
from ._rows import place, rows_of, share, writer_of
from ._storage import storage_of
from .log_softmax import endings_of


@cache
def writing_of(name):
    """Who writes which element of a row, and how a row is filled."""
    storage, edge = storage_of(name), rows_of(name).edge
    size, per_word, kind = storage.size, storage.per_word, storage.type
    store, store_word = storage.store, storage.store_word

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

    return SimpleNamespace(fill=fill, is_owner=is_owner)


@cache
def rows_kernel_of(name, mode, grads):
    """The kernel for labels, also of log-probabilities, and with a curve."""
    storage, rows, loss = storage_of(name), rows_of(name), loss_of(name, mode)
    real, size, per_word, number = storage.real, storage.size, storage.per_word, storage.real_size
    zero, nan, lowest = real(0), real(np.nan), real(-np.inf)
    load, store, put_number, get_number = (
        storage.load,
        storage.store,
        storage.put_number,
        storage.get_number,
    )
    split, gather, group_state = rows.split, rows.gather, reduce_of(name).group_state
    read_states, write_state = rows.read_states, rows.write_state
    write = writer_of(name, endings_of(name).scaled_value)
    fill, is_owner = writing_of(name).fill, writing_of(name).is_owner
    label_of, label_share, put_row = loss.label_of, loss.label_share, loss.put_row
    loss_and_lse, pulls, slope = loss.loss_and_lse, loss.pulls, loss.slope
    steepened, is_pick, is_curve = loss.steepened, mode == "pick", mode == "curve"

    @cuda.jit
    def rows_kernel(
        logits, target, grad, step, target_step, grad_step, count, n,
        code, weight, weight_code, lses, losses, sums, grad_loss, grad_loss_code,
        grad_loss_step, upstream, denominator, stats, ignore_index, keep, spread, z_loss,
        alpha, gamma, power, epsilon, beta,
        lanes, parts, gathered, states, capacity,
    ):  # fmt: skip
        curve = alpha, gamma, power, epsilon, beta
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
            owns = is_owner(y, first, last, edges, head, words, lane, lanes) or is_curve
            if (owns or (lane == 0 and gathered == 0)) and not (is_pick and grads):
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
            if lane == 0 or is_curve:  # by now others may have overwritten it
                x_y = get_number(states + (3 * gathered * count + row) * number)
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
            value, row_lse = loss_and_lse(
                top, below, ties, zero, zero, x_y, q_y, real(z_loss), curve
            )
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
                q_y = steepened(q_y, top, below, ties, x_y, curve)
                log_total, part_of, pull = pulls(
                    top, below, ties, zero, zero, q_y, real(z_loss), zero
                )
                factor = pull * part_of * scale
                write(
                    x, out, first, last, edges, head, words, lane, lanes, slots, kept, top, factor
                )
                at_y = slope(x_y, q_y, top, log_total, part_of, pull, zero) * scale
            if is_owner(y, first, last, edges, head, words, lane, lanes):
                store(out + y * size, at_y)

    return rows_kernel


@cache
def dense_rows_kernel_of(name, mode, grads):
    """The kernel for probabilities, for labels that are smoothed, and for the entropy."""
    storage, rows, loss = storage_of(name), rows_of(name), loss_of(name, mode)
    real, size, per_word = storage.real, storage.size, storage.per_word
    zero, nan, lowest = real(0), real(np.nan), real(-np.inf)
    kind, load, store = storage.type, storage.load, storage.store
    unpack, store_word = storage.unpack, storage.store_word
    split, edge = rows.split, rows.edge
    group_state, group_sum = reduce_of(name).group_state, reduce_of(name).group_sum
    fill, is_owner = writing_of(name).fill, writing_of(name).is_owner
    label_of, label_share, put_row = loss.label_of, loss.label_share, loss.put_row
    wanted, add_wanted, moved = loss.wanted, loss.add_wanted, loss.moved
    loss_and_lse, pulls, slope = loss.loss_and_lse, loss.pulls, loss.slope
    load_target, target_size = loss.load_target, loss.target_size
    steepened, is_probs, is_wide = loss.steepened, mode in PROBABILITIES, mode == "wide"

    @device
    def unpack_target(t_words, w, t):
        """What is wanted of the elements of word w, but one by one of a wide target: it need not
        lie to 16 bytes as the logits do.
        """
        if is_wide:
            for j in range(per_word):
                t[j] = load_target(t_words, w * per_word + j)
        else:
            unpack(_ptx.load_word(t_words + 16 * w), t)

    @device
    def dense_word(x_words, t_words, w, k, weight, weight_code, keep, spread, state):
        """`add_wanted` for the elements of word w, of which k is the first."""
        x, t = cuda.local.array(per_word, kind), cuda.local.array(per_word, kind)
        unpack_target(t_words, w, t)
        unpack(_ptx.load_word(x_words + 16 * w), x)
        top, below, ties, cost, mass = state
        for j in range(per_word):
            q = wanted(t[j], k + j, weight, weight_code, keep, spread)
            top, below, ties, cost, mass = add_wanted(x[j], q, top, below, ties, cost, mass)
        return top, below, ties, cost, mass

    @device
    def dense_slopes(
        x_words, t_words, w, address, k, weight, weight_code, keep, spread,
        top, log_total, part_of, pull, beta, scale,
    ):  # fmt: skip
        x, t = cuda.local.array(per_word, kind), cuda.local.array(per_word, kind)
        unpack(_ptx.load_word(x_words + 16 * w), x)
        unpack_target(t_words, w, t)
        for j in range(per_word):
            q = wanted(t[j], k + j, weight, weight_code, keep, spread)
            x[j] = slope(x[j], q, top, log_total, part_of, pull, beta) * scale
        store_word(address, x)

    @device
    def after(top, below, ties, cost, mass, new_top, lanes):
        """cost and mass of a group whose maximum is `new_top`."""
        cost = moved(cost, mass, below, ties, top, new_top)
        return group_sum(cost, lanes), group_sum(mass, lanes)

    @cuda.jit
    def dense_rows_kernel(
        logits, target, grad, step, target_step, grad_step, count, n,
        code, weight, weight_code, lses, losses, sums, grad_loss, grad_loss_code,
        grad_loss_step, upstream, denominator, stats, ignore_index, keep, spread, z_loss,
        alpha, gamma, power, epsilon, beta,
        lanes, parts, gathered, states, capacity,
    ):  # fmt: skip
        curve, beta_ = (alpha, gamma, power, epsilon, beta), real(beta)
        row, _, lane, _ = place(lanes, np.int64(1))
        says, y = IGNORED, np.int64(0)
        if row < count:
            y, says = label_of(target, row, code, n, ignore_index)
        counts = says == COUNTS
        x = logits + row * step * size
        t = target + row * target_step * target_size if is_probs else x
        out = grad + row * grad_step * size if grads else x
        moves_along = x if is_wide else t
        unequal = (x ^ moves_along) | (x ^ out)
        head, words = split(x, n if row < count else np.int64(0), unequal)
        all_edges = (n if row < count else np.int64(0)) - words * per_word
        last, edges = (words, all_edges) if counts else (np.int64(0), np.int64(0))
        keep_, spread_ = real(keep), real(spread)
        x_words, t_words = x + head * size, t + head * target_size
        q_y, x_y = zero, zero
        if counts and not is_probs:
            q_y = label_share(y, weight, weight_code, keep_)
            x_y = load(x + y * size)
        cuda.syncwarp()
        state = lowest, zero, zero, zero, zero
        w = lane
        while w < last:
            k = head + w * per_word
            state = dense_word(
                x_words, t_words, w, k, weight, weight_code, keep_, spread_, state
            )  # fmt: skip
            w += lanes
        top, below, ties, cost, mass = state
        j = lane
        while j < edges:
            k = edge(j, head, words)
            q = wanted(load_target(t, k), k, weight, weight_code, keep_, spread_)
            x_k = load(x + k * size)
            top, below, ties, cost, mass = add_wanted(x_k, q, top, below, ties, cost, mass)
            j += lanes
        new_top, new_below, new_ties = group_state(top, below, ties, lanes)
        cost, mass = after(top, below, ties, cost, mass, new_top, lanes)
        top, below, ties = new_top, new_below, new_ties
        if lane == 0 and row < count and (losses != 0 or sums != 0 or lses != 0):
            value, row_lse = loss_and_lse(
                top, below, ties, cost, mass, x_y, q_y, real(z_loss), curve
            )
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
            q_y = steepened(q_y, top, below, ties, x_y, curve)
            log_total, part_of, pull = pulls(top, below, ties, cost, mass, q_y, real(z_loss), beta_)
            w = lane
            while w < last:
                dense_slopes(
                    x_words, t_words, w, out + head * size + 16 * w, head + w * per_word,
                    weight, weight_code, keep_, spread_, top, log_total, part_of, pull, beta_,
                    scale,
                )  # fmt: skip
                w += lanes
            j = lane
            while j < edges:
                k = edge(j, head, words)
                q = wanted(load_target(t, k), k, weight, weight_code, keep_, spread_)
                at_k = slope(load(x + k * size), q, top, log_total, part_of, pull, beta_) * scale
                store(out + k * size, at_k)
                j += lanes
            if not is_probs and is_owner(y, zero_word, words, all_edges, head, words, lane, lanes):
                q = q_y + wanted(zero, y, weight, weight_code, keep_, spread_)
                at_y = slope(x_y, q, top, log_total, part_of, pull, beta_) * scale
                store(out + y * size, at_y)

    return dense_rows_kernel
