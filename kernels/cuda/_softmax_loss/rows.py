"""Losses where classes are neighbours in memory: see `_rows.py`.

With plain labels the gradient of a row is softmax times a factor, and a row is read once; then the
lane that owns the label's element writes that one again. The other modes, whose target has a part
of each class, read a row twice.
"""

from functools import cache

import numpy as np
from numba import cuda

from .. import _launch, _ptx
from .._math import device, namespace
from .._reduce import SCRATCH, reduce_of
from .._rows import Part, place, rows_of, share, writer_of
from .._softmax import softmax_of
from .._storage import storage_of
from .formulas import IGNORED, VALID, LossOptions, Sums, grad_scale_of, loss_of, writes_loss


@cache
def writing_of(name):
    """Who writes which element of a row, and how a row is filled."""
    storage, edge = storage_of(name), rows_of(name).edge
    size, per_word, kind = storage.size, storage.per_word, storage.type
    store, store_word = storage.store, storage.store_word

    @device
    def fill(out, part, value):
        """Make the elements of a lane equal."""
        first, last, edges, head, words, lane, lanes = part
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
    def is_owner(y, part):
        """Whether a lane writes element y."""
        first, last, edges, head, words, lane, lanes = part
        inside = y - head
        if inside >= 0 and inside < words * per_word:
            w = inside // per_word
            return first <= w and w < last and (w - first) % lanes == lane
        j = y if y < head else y - words * per_word
        return j < edges and j % lanes == lane

    return namespace(fill, is_owner)


@cache
def rows_kernel_of(name, mode, grads):
    """The kernel for labels, also of log-probabilities, and with a loss transform."""
    storage, rows, loss = storage_of(name), rows_of(name), loss_of(name, mode)
    real, size, per_word, number = storage.real, storage.size, storage.per_word, storage.real_size
    zero, nan = real(0), real(np.nan)
    empty_state, no_sums = storage.empty_state, loss.no_sums
    load, store = storage.load, storage.store
    put_number, get_number = storage.put_number, storage.get_number
    split, gather, group_state = rows.split, rows.gather, reduce_of(name).group_state
    read_states, write_state = rows.read_states, rows.write_state
    write = writer_of(name, softmax_of(name).scaled_value)
    fill, is_owner = writing_of(name).fill, writing_of(name).is_owner
    label_of, label_prob, put_loss = loss.label_of, loss.label_prob, loss.put_loss
    transformed_prob = loss.transformed_prob
    grad_terms, logit_grad = loss.grad_terms, loss.logit_grad
    is_pick, is_transformed = loss.is_pick, mode == "transform"

    # Without a bound, ptxas takes 67 registers for compute capability 8.0, too many for a block of
    # 1024 threads. Kernels of smaller blocks would spill with one.
    bounded = _launch.LONGEST[name] == 1024 and not is_transformed

    @cuda.jit(launch_bounds=1024 if bounded else None)
    def rows_kernel(
        logits, target, grad, step, target_step, grad_step, count, n, options: LossOptions,
        lanes, parts, gathered, states, capacity,
    ):  # fmt: skip
        row, part, lane, group = place(lanes, parts)
        label_status, y = IGNORED, np.int64(0)
        if row < count:
            y, label_status = label_of(target, row, n, options)
        x = logits + row * step * size
        out = grad + row * grad_step * size
        classes = n if row < count else np.int64(0)
        head, words = split(x, classes, x ^ out if grads else np.int64(0))
        first, last = share(part, parts, words)
        edges = classes - words * per_word if part == 0 else np.int64(0)
        is_valid = label_status == VALID
        mine = Part(first, last, edges, head, words, lane, lanes)
        if not is_valid:  # nothing is read
            mine = Part(first, first, np.int64(0), head, words, lane, lanes)
        q_y, x_y = zero, zero
        if is_valid:
            q_y = label_prob(y, options)
            needs_x_y = is_owner(y, mine) or is_transformed
            if (needs_x_y or (lane == 0 and gathered == 0)) and not (is_pick and grads):
                x_y = load(x + y * size)
        cuda.syncwarp()  # in place, x[y] is overwritten later on
        state = empty_state
        slots = _ptx.dynamic_shared() + SCRATCH + group * capacity * 16
        kept = first + capacity
        if is_pick:
            kept = first
        elif gathered > 0:
            kept = first
            state = read_states(states, row, gathered, lane, lanes)
            if lane == 0 or is_transformed:  # by now others may have overwritten it
                x_y = get_number(states + (3 * gathered * count + row) * number)
        else:
            state = group_state(gather(x, mine, slots, kept), lanes)
        if gathered == 0 and states != 0:
            if lane == 0:
                write_state(states, row * parts + part, state)
                if part == 0:
                    put_number(states + (3 * parts * count + row) * number, x_y)
            return
        if lane == 0 and part == 0 and row < count and writes_loss(options):
            value = put_loss(row, label_status, state, no_sums, x_y, q_y, options)
            if options.sums != 0:
                _ptx.store_f64(options.sums + 8 * row, value)
        if grads:
            if not is_valid:
                fill_value = zero if label_status == IGNORED else nan
                fill(out, Part(first, last, edges, head, words, lane, lanes), fill_value)
                return
            grad_scale = real(grad_scale_of(options, row))
            grad_y = -q_y * grad_scale
            if is_pick:
                fill(out, mine, zero)
            else:
                q_y = transformed_prob(q_y, state, x_y, options)
                terms = grad_terms(state, no_sums, q_y, options)
                factor = terms.p_factor * terms.inv_sumexp * grad_scale
                write(x, out, mine, slots, kept, state.row_max, factor)
                grad_y = logit_grad(x_y, q_y, terms) * grad_scale
            if is_owner(y, mine):
                store(out + y * size, grad_y)

    return rows_kernel


@cache
def dense_rows_kernel_of(name, mode, grads):
    """The kernel for probabilities, for labels that are smoothed, and for the entropy."""
    storage, rows, loss = storage_of(name), rows_of(name), loss_of(name, mode)
    real, size, per_word = storage.real, storage.size, storage.per_word
    zero, nan = real(0), real(np.nan)
    empty_state, no_sums = storage.empty_state, loss.no_sums
    kind, load, store = storage.type, storage.load, storage.store
    unpack, store_word = storage.unpack, storage.store_word
    split, edge = rows.split, rows.edge
    group_state, group_sum = reduce_of(name).group_state, reduce_of(name).group_sum
    fill, is_owner = writing_of(name).fill, writing_of(name).is_owner
    label_of, label_prob, put_loss = loss.label_of, loss.label_prob, loss.put_loss
    target_prob, add_element = loss.target_prob, loss.add_element
    rescaled_sums, transformed_prob = loss.rescaled_sums, loss.transformed_prob
    grad_terms, logit_grad = loss.grad_terms, loss.logit_grad
    load_target, target_size = loss.load_target, loss.target_size
    is_probs, is_wide = loss.is_probs, mode == "wide"

    @device
    def unpack_target(t_words, w, t):
        """The probabilities of word w, but one by one of a wide target: it need not be aligned to
        16 bytes as the logits are.
        """
        if is_wide:
            for j in range(per_word):
                t[j] = load_target(t_words, w * per_word + j)
        else:
            unpack(_ptx.load_word(t_words + 16 * w), t)

    @device
    def add_word(x_words, t_words, w, k, options, state, sums):
        """`add_element` for the elements of word w, of which k is the first."""
        x, t = cuda.local.array(per_word, kind), cuda.local.array(per_word, kind)
        unpack_target(t_words, w, t)
        unpack(_ptx.load_word(x_words + 16 * w), x)
        for j in range(per_word):
            state, sums = add_element(x[j], target_prob(t[j], k + j, options), state, sums)
        return state, sums

    @device
    def write_grads(x_words, t_words, w, address, k, options, terms, grad_scale):
        """The gradient of the elements of word w."""
        x, t = cuda.local.array(per_word, kind), cuda.local.array(per_word, kind)
        unpack(_ptx.load_word(x_words + 16 * w), x)
        unpack_target(t_words, w, t)
        for j in range(per_word):
            x[j] = logit_grad(x[j], target_prob(t[j], k + j, options), terms) * grad_scale
        store_word(address, x)

    @cuda.jit
    def dense_rows_kernel(
        logits, target, grad, step, target_step, grad_step, count, n, options: LossOptions,
        lanes, parts, gathered, states, capacity,
    ):  # fmt: skip
        row, _, lane, _ = place(lanes, np.int64(1))
        label_status, y = IGNORED, np.int64(0)
        if row < count:
            y, label_status = label_of(target, row, n, options)
        is_valid = label_status == VALID
        x = logits + row * step * size
        t = target + row * target_step * target_size if is_probs else x
        out = grad + row * grad_step * size if grads else x
        moves_along = x if is_wide else t
        unequal = (x ^ moves_along) | (x ^ out)
        head, words = split(x, n if row < count else np.int64(0), unequal)
        all_edges = (n if row < count else np.int64(0)) - words * per_word
        whole = Part(np.int64(0), words, all_edges, head, words, lane, lanes)
        last, edges = (words, all_edges) if is_valid else (np.int64(0), np.int64(0))
        x_words, t_words = x + head * size, t + head * target_size
        q_y, x_y = zero, zero
        if is_valid and not is_probs:
            q_y = label_prob(y, options)
            x_y = load(x + y * size)
        cuda.syncwarp()
        state, sums = empty_state, no_sums
        w = lane
        while w < last:
            state, sums = add_word(
                x_words, t_words, w, head + w * per_word, options, state, sums
            )  # fmt: skip
            w += lanes
        j = lane
        while j < edges:
            k = edge(j, head, words)
            q = target_prob(load_target(t, k), k, options)
            state, sums = add_element(load(x + k * size), q, state, sums)
            j += lanes
        row_state = group_state(state, lanes)
        sums = rescaled_sums(sums, state, row_state.row_max)
        sums = Sums(group_sum(sums.gap_sum, lanes), group_sum(sums.prob_sum, lanes))
        if lane == 0 and row < count and writes_loss(options):
            value = put_loss(row, label_status, row_state, sums, x_y, q_y, options)
            if options.sums != 0:
                _ptx.store_f64(options.sums + 8 * row, value)
        if grads:
            if not is_valid:
                fill(out, whole, zero if label_status == IGNORED else nan)
                return
            grad_scale = real(grad_scale_of(options, row))
            q_y = transformed_prob(q_y, row_state, x_y, options)
            terms = grad_terms(row_state, sums, q_y, options)
            w = lane
            while w < last:
                to, k = out + head * size + 16 * w, head + w * per_word
                write_grads(x_words, t_words, w, to, k, options, terms, grad_scale)
                w += lanes
            j = lane
            while j < edges:
                k = edge(j, head, words)
                q = target_prob(load_target(t, k), k, options)
                store(out + k * size, logit_grad(load(x + k * size), q, terms) * grad_scale)
                j += lanes
            if not is_probs and is_owner(y, whole):
                q = q_y + target_prob(zero, y, options)
                store(out + y * size, logit_grad(x_y, q, terms) * grad_scale)

    return dense_rows_kernel
