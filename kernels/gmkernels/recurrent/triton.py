"""Recurrent nets in Triton: whole sequences in one launch where the weight fits on chip, else a launch a step.

One launch (`_sequence`, `_sequence_backward`): a program takes 8 sequences through all steps by itself. The recurrent
weight of all gates stays in its shared memory, and the running states in registers. What a step reads from memory is
loaded a step ahead. Units are rows of the products and sequences columns: tiles of tensor cores have 16 by 8, and the
fewer sequences a program has, the sooner its gates are done.

A launch a step (`_step`, `_step_backward`): a program makes a tile of the states of some sequences, all gates of its
units, so that the gates are applied where their product ends. A step waits for all units of the one before: the next
launch.

`batch_sizes` is read on the device. The first row of each step is computed there, with sizes cut to what the arrays
hold, so that nothing outside them is touched whatever they are. The state before a row is that of the same sequence in
the step before, or its first.

Precision. Products are made as in `gmkernels.dense.triton` and added up in float32 (float64 for float64), as are
running cells, the running states of a GRU and the gradients of states. With half types the operands of products are
rounded to them: states, and gradients with respect to the arguments of gates. float32 as "tf32x3" leaves out up to
2^-20 of each product: of 127 products, each about 0.7 / sqrt(127), and with random signs, 7e-7 in all, the 12 u of the
argument for `spec` once more.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl

from gmkernels import cost, launch
from gmkernels.dense import triton as dense
from gmkernels.dense.spec import product_workspace
from gmkernels.elementary_triton import number_of, sigmoid, tanh, widened
from gmkernels.recurrent.spec import seconds_beside_steps
from gmkernels.reduce import triton as reduce
from gmkernels.reduce.spec import Stage
from gmkernels.registry import KernelSpec

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

_GATES = {"tanh": 1, "relu": 1, "lstm": 4, "gru": 3, "gru_before": 3}
"""Cells, and how many gates they have; "gru_before" resets the state before the product, "gru" what it gives."""

# ---------------------------------------------------------------------------------------------------------
# Rows of steps
# ---------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["steps", "batch", "rows"])
def _find_starts(batch_sizes, starts, steps, batch, rows, BLOCK: tl.constexpr):
    """starts[t], t = 0 ... steps: the first row of step t, at most `rows`; a step has at most `batch` rows."""
    end = (steps * 0).to(tl.int64)
    tl.store(starts, end)
    for first in range(0, steps, BLOCK):
        t = first + tl.arange(0, BLOCK)
        sizes = tl.load(batch_sizes + t, t < steps, 0)
        sizes = tl.minimum(tl.maximum(sizes, 0), batch)
        tl.store(starts + 1 + t, tl.minimum(end + tl.cumsum(sizes), rows), t < steps)
        end = tl.minimum(end + tl.sum(sizes), rows)


@triton.jit
def _rows_of(starts, t, steps, WIDE: tl.constexpr):
    """The first row of a step, and how many it has: none outside of the sequence."""
    inside = (t >= 0) & (t < steps)
    first = tl.load(starts + t, inside, 0)
    count = tl.load(starts + t + 1, inside, 0) - first
    if not WIDE:
        first, count = first.to(tl.int32), count.to(tl.int32)
    return first, count


@triton.jit
def _load(x, at, mask):
    return widened(tl.load(x + at, mask, 0.0))


@triton.jit
def _load_before(x, at, first, first_at, mask, follows):
    """Of x[at] where a row follows one, else of first[first_at]."""
    return tl.where(follows, _load(x, at, mask & follows), _load(first, first_at, mask & ~follows))


@triton.jit
def _store(x, at, value, mask):
    tl.store(x + at, value.to(x.dtype.element_ty), mask)


@triton.jit
def _gates_of(x, at, size, mask, GATES: tl.constexpr):
    """Where the gates of tiles lie, from their first, and a mask: as axes of 2 and 2, the last one of pairs.

    Tiles that are loaded and stored together go through shared memory together, between the layout of a product and
    that of memory: with a barrier instead of four.
    """
    gate = tl.arange(0, 2)[:, None] + 2 * tl.arange(0, 2)[None, :]
    return x + (at[:, :, None, None] + gate * size), mask[:, :, None, None] & (gate < GATES)


@triton.jit
def _load_gates(x, at, size, mask, GATES: tl.constexpr):
    """The tiles of all gates as they are stored, for `_apart`."""
    if GATES == 1:
        return tl.load(x + at, mask, 0.0)
    else:
        addresses, within = _gates_of(x, at, size, mask, GATES)
        return tl.load(addresses, within, 0.0)


@triton.jit
def _apart(x, GATES: tl.constexpr):
    """The tiles of four gates; those that there are not mean nothing."""
    if GATES == 1:
        a = widened(x)
        return a, a, a, a
    else:
        first, second = tl.split(x)
        a, b = tl.split(first)
        c, d = tl.split(second)
        return widened(a), widened(b), widened(c), widened(d)


@triton.jit
def _store_gates(x, at, size, a, b, c, d, mask, GATES: tl.constexpr):
    if GATES == 1:
        _store(x, at, a, mask)
    else:
        addresses, within = _gates_of(x, at, size, mask, GATES)
        tl.store(addresses, tl.join(tl.join(a, b), tl.join(c, d)).to(x.dtype.element_ty), within)


@triton.jit(do_not_specialize=["steps", "blocks", "size"])
def _states_before(
    h, h0, starts, before, steps, blocks, size,
    UNIT: tl.constexpr, REVERSE: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The state before each row, in the layout of the states: a program has a step's rows of a block of sequences."""
    size *= UNIT
    number = number_of(0, WIDE)
    t, i = number // blocks, number % blocks * ROWS + tl.arange(0, ROWS)
    first, now = _rows_of(starts, t, steps, WIDE)
    first_before, rows_before = _rows_of(starts, t + 1 if REVERSE else t - 1, steps, WIDE)
    follows = (i < rows_before)[:, None]
    for start in range(0, size, UNITS):
        j = (start + tl.arange(0, UNITS))[None, :]
        mask = (i < now)[:, None] & (j < size)
        found = _load_before(h, (first_before + i)[:, None] * size + j, h0, i[:, None] * size + j, mask, follows)
        _store(before, (first + i)[:, None] * size + j, found, mask)


# ---------------------------------------------------------------------------------------------------------
# Cells
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _slope_of_sigmoid(y):
    return y * (1 - y)


@triton.jit
def _cell(a, b, c, d, state, h, cells, gates, reset, at, gates_at, size, mask, CELL: tl.constexpr):
    """A step of a cell: writes what it must keep, gives the new state h, and that of the cell.

    a, b, c, d: the arguments of the gates. In a GRU c is the product in the candidate and d the rest of its argument;
    if the reset comes before the product, a and b are gates already, and `reset` is written.
    """
    if CELL == "lstm":
        i, f, g, o = sigmoid(a), sigmoid(b), tanh(c), sigmoid(d)
        state = f * state + i * g
        new = o * tanh(state)
        _store(cells, at, state, mask)
        _store_gates(gates, gates_at, size, i, f, g, o, mask, 4)
    elif CELL == "gru" or CELL == "gru_before":
        if CELL == "gru":
            r, z = sigmoid(a), sigmoid(b)
            n = tanh(d + r * c)
            _store(reset, at, c, mask)
        else:
            r, z = a, b
            n = tanh(d + c)
        new = (1 - z) * n + z * state
        state = new
        _store_gates(gates, gates_at, size, r, z, n, n, mask, 3)
    elif CELL == "tanh":
        new = tanh(a)
    else:
        new = tl.where(a <= 0, 0.0, a)  # NaN stays
    _store(h, at, new, mask)
    return new, state


# ---------------------------------------------------------------------------------------------------------
# A launch a step
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _inner(DEPTH: tl.constexpr, PARTS: tl.constexpr):
    """A block of numbers along the sums of a product, as columns of its first operand and rows of its second."""
    if PARTS == 1:
        k = tl.arange(0, DEPTH)
        return k[None, :], k[:, None]
    else:
        k = tl.arange(0, PARTS)[:, None] * DEPTH + tl.arange(0, DEPTH)[None, :]
        return k[:, None, :], k[:, :, None]


@triton.jit
def _no_sums(like, ROWS: tl.constexpr, UNITS: tl.constexpr, PARTS: tl.constexpr):
    if PARTS == 1:
        return widened(tl.zeros((ROWS, UNITS), like.dtype.element_ty))
    else:
        return widened(tl.zeros((PARTS, ROWS, UNITS), like.dtype.element_ty))


@triton.jit
def _add_parts(total, PARTS: tl.constexpr):
    return total if PARTS == 1 else tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["t", "steps", "batch", "size"])
def _step(
    x, h0, c0, weight, bias_n, starts, h, h_n, c_n, c, gates, reset, state, t, steps, batch, size,
    CELL: tl.constexpr, GATES: tl.constexpr, PART: tl.constexpr, REVERSE: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of step t. PART is "reset" or "candidate" where a GRU needs the reset states of all units in between.

    `state` holds the running cells or states of all sequences, and behind them the gates r and z between the two parts.
    """
    size *= UNIT
    first_gates = state + batch * size
    number, tiles = number_of(0, WIDE), tl.cdiv(size, UNITS)
    i = number // tiles * ROWS + tl.arange(0, ROWS)
    j = (number % tiles * UNITS + tl.arange(0, UNITS))[None, :]
    first, now = _rows_of(starts, t, steps, WIDE)
    first_before, rows_before = _rows_of(starts, t + 1 if REVERSE else t - 1, steps, WIDE)
    rows_after = _rows_of(starts, t - 1 if REVERSE else t + 1, steps, WIDE)[1]
    live, follows = (i < now)[:, None], (i < rows_before)[:, None]
    row, i = (first + i)[:, None], i[:, None]

    # What the gates want is on its way while the product is made.
    mask = live & (j < size)
    at, gates_at, state_at = row * size + j, row * (GATES * size) + j, i * size + j
    arguments = _load_gates(x, gates_at, size, mask, GATES)
    if CELL == "lstm":
        running = _load_before(state, state_at, c0, state_at, mask, follows)
    elif GATES == 3:
        running = _load_before(state, state_at, h0, state_at, mask, follows)
        bias = _load(bias_n, j, j < size)

    # The choice is between addresses of whole tiles: of one between rows not all versions of Triton know multiples.
    k_column, k_row = _inner(DEPTH, PARTS)
    if PART == "candidate":
        operand = reset + (row * size + k_column)
        weight += 2 * size * size
    else:
        operand = tl.where(follows, h + ((first_before + i) * size + k_column), h0 + (i * size + k_column))
    a = _no_sums(x, ROWS, UNITS, PARTS)
    b, p, d = a, a, a
    for start in range(0, size, PARTS * DEPTH):
        y = tl.load(operand + start, live & (start + k_column < size), 0.0)
        w = weight + j * size + (start + k_row)
        within = (j < size) & (start + k_row < size)
        a = tl.dot(y, tl.load(w, within, 0.0), a, input_precision=PRECISION, out_dtype=a.dtype)
        if GATES > 1 and PART != "candidate":
            w += size * size
            b = tl.dot(y, tl.load(w, within, 0.0), b, input_precision=PRECISION, out_dtype=a.dtype)
        if GATES > 2 and PART == "all":
            w += size * size
            p = tl.dot(y, tl.load(w, within, 0.0), p, input_precision=PRECISION, out_dtype=a.dtype)
        if GATES > 3:
            w += size * size
            d = tl.dot(y, tl.load(w, within, 0.0), d, input_precision=PRECISION, out_dtype=a.dtype)
    a, b, p, d = _add_parts(a, PARTS), _add_parts(b, PARTS), _add_parts(p, PARTS), _add_parts(d, PARTS)

    x_a, x_b, x_p, x_d = _apart(arguments, GATES)
    if GATES == 1:
        running = a
    if PART == "candidate":
        p, d = a + bias, x_p
        a, b = _load(first_gates, state_at, mask), _load(first_gates, batch * size + state_at, mask)
    else:
        a += x_a
        b += x_b
        if CELL == "lstm":
            p += x_p
            d += x_d
        if CELL == "gru":
            p += bias
            d = x_p
    if PART == "reset":
        r = sigmoid(a)
        _store(first_gates, state_at, r, mask)
        _store(first_gates, batch * size + state_at, sigmoid(b), mask)
        _store(reset, at, r * running, mask)
    else:
        new, running = _cell(
            a, b, p, d, running, h, c, gates, reset, at, gates_at, size, mask, CELL
        )  # fmt: skip
        last = mask & (i >= rows_after)
        _store(h_n, state_at, new, last)
        if CELL == "lstm":
            _store(c_n, state_at, running, last)
        if GATES > 1:
            _store(state, state_at, running, mask)


@triton.jit
def _product(
    total, x, row_mask, weight, depth, size, j, DEPTH: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """total + x weight, of rows x of `depth` numbers and columns j of a weight with rows of `size`."""
    k_column, k_row = _inner(DEPTH, PARTS)
    for start in range(0, depth, PARTS * DEPTH):
        y = tl.load(x + (start + k_column), row_mask & (start + k_column < depth), 0.0)
        w = tl.load(weight + (start + k_row) * size + j, (start + k_row < depth) & (j < size), 0.0)
        total = tl.dot(y, w, total, input_precision=PRECISION, out_dtype=total.dtype)
    return total


@triton.jit
def _kept(h, c, gates, reset, at, gates_at, size, mask, CELL: tl.constexpr):
    """What `_cell_backward` wants of what was kept of a step: the gates, or the state without such; then the cell, or
    what r multiplies. One by one: where they come through shared memory on their way, that gives the layout, too."""
    if CELL == "lstm":
        a, b = _load(gates, gates_at, mask), _load(gates, gates_at + size, mask)
        p, q = _load(gates, gates_at + 2 * size, mask), _load(gates, gates_at + 3 * size, mask)
        more = _load(c, at, mask)
    elif CELL == "gru" or CELL == "gru_before":
        a, b = _load(gates, gates_at, mask), _load(gates, gates_at + size, mask)
        p = _load(gates, gates_at + 2 * size, mask)
        q, more = p, p
        if CELL == "gru":
            more = _load(reset, at, mask)
    else:
        a = _load(h, at, mask)
        b, p, q, more = a, a, a, a
    return a, b, p, q, more


@triton.jit
def _cell_backward(
    d_h, state, before, i, f, g, o, more, d_x, d_product, at, gates_at, size, mask, CELL: tl.constexpr
):  # fmt: skip
    """From the gradient of a state that of the arguments of its gates, which it writes and gives, and what is left of
    the running gradient `state`: of the cell before, or in a GRU of the state before but through no product.

    `before` is the cell before, or the state before; i to `more` are `_kept`. If the reset of a GRU comes before the
    product, its gate is left: r is given in place of the gradient of its argument.
    """
    a, b, p, q = d_h, d_h, d_h, d_h
    if CELL == "lstm":
        tanh_c = tanh(more)
        state += d_h * o * (1 - tanh_c * tanh_c)
        a = state * g * _slope_of_sigmoid(i)
        b = state * before * _slope_of_sigmoid(f)
        p = state * i * (1 - g * g)
        q = d_h * tanh_c * _slope_of_sigmoid(o)
        state *= f
        _store(d_x, gates_at, a, mask)
        _store(d_x, gates_at + size, b, mask)
        _store(d_x, gates_at + 2 * size, p, mask)
        _store(d_x, gates_at + 3 * size, q, mask)
    elif CELL == "gru" or CELL == "gru_before":
        r, z, n = i, f, g
        p = d_h * (1 - z) * (1 - n * n)
        b = d_h * (before - n) * _slope_of_sigmoid(z)
        state = d_h * z
        a = r
        _store(d_x, gates_at + size, b, mask)
        _store(d_x, gates_at + 2 * size, p, mask)
        if CELL == "gru":
            a = p * more * _slope_of_sigmoid(r)
            p = p * r
            _store(d_x, gates_at, a, mask)
        _store(d_product, at, p, mask)
    else:
        if CELL == "tanh":
            a = d_h * (1 - i * i)
        else:
            a = d_h * tl.where(i <= 0, 0.0, 1.0).to(i.dtype)
        _store(d_x, gates_at, a, mask)
    return a, b, p, q, state


@triton.jit(do_not_specialize=["t", "steps", "batch", "size"])
def _step_backward(
    g_h, g_hn, g_cn, weight, c0, h, c, before, gates, reset, starts, d_x, d_h0, d_c0, d_product, state,
    t, steps, batch, size,
    CELL: tl.constexpr, GATES: tl.constexpr, REVERSE: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr,
    UNITS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of step t: the gradients of its states, from those of the gates' arguments a step later, and of its gates.

    Those of the first states are the ones of sequences that the step does not have, but the later one has: the last
    launch is for a step outside of the sequence. `state` holds the running gradients of cells; in a GRU, those of
    states that go through no product.
    """
    size *= UNIT
    number, tiles = number_of(0, WIDE), tl.cdiv(size, UNITS)
    i = number // tiles * ROWS + tl.arange(0, ROWS)
    j = (number % tiles * UNITS + tl.arange(0, UNITS))[None, :]
    first, now = _rows_of(starts, t, steps, WIDE)
    first_after, rows_after = _rows_of(starts, t - 1 if REVERSE else t + 1, steps, WIDE)
    live, goes_on = (i < now)[:, None], (i < rows_after)[:, None]
    i = i[:, None]
    row, row_after = first + i, first_after + i

    # What the gates want is on its way while the product is made.
    within = j < size
    mask = live & within
    at, gates_at, state_at = row * size + j, row * (GATES * size) + j, i * size + j
    k_a, k_b, k_p, k_q, more = _kept(h, c, gates, reset, at, gates_at, size, mask, CELL)
    given = _load(g_h, at, mask) + _load(g_hn, state_at, mask & ~goes_on)
    if CELL == "lstm":
        first_before, rows_before = _rows_of(starts, t + 1 if REVERSE else t - 1, steps, WIDE)
        previous = _load_before(c, (first_before + i) * size + j, c0, state_at, mask, i < rows_before)
        running = _load_before(state, state_at, g_cn, state_at, within & (live | goes_on), goes_on)
    elif GATES == 3:
        previous = _load(before, at, mask)
        running = _load(state, state_at, goes_on & within)

    total = _no_sums(d_x, ROWS, UNITS, PARTS)
    depth = tl.where(rows_after > 0, size, 0)
    later = d_x + row_after * (GATES * size)
    if GATES == 3:
        total = _product(total, later, goes_on, weight, 2 * depth, size, j, DEPTH, PARTS, PRECISION)
        if CELL == "gru":
            later = d_product + row_after * size
            weight += 2 * size * size
            total = _product(total, later, goes_on, weight, depth, size, j, DEPTH, PARTS, PRECISION)
    else:
        total = _product(total, later, goes_on, weight, GATES * depth, size, j, DEPTH, PARTS, PRECISION)
    total = _add_parts(total, PARTS)

    if GATES == 3:
        total += running
    elif GATES == 1:
        previous, running = total, total
    begins = goes_on & ~live & within
    _store(d_h0, state_at, total, begins)
    if CELL == "lstm":
        _store(d_c0, state_at, running, begins)
    _, _, _, _, running = _cell_backward(
        given + total, running, previous, k_a, k_b, k_p, k_q, more, d_x, d_product, at, gates_at, size, mask, CELL
    )  # fmt: skip
    if GATES > 1:
        _store(state, state_at, running, mask)


@triton.jit(do_not_specialize=["t", "steps", "batch", "size"])
def _step_backward_reset(
    weight, before, gates, starts, d_x, state, t, steps, batch, size,
    UNIT: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of step t of a GRU with the reset before the product: the gradient of r's argument, from the candidate's,
    and what the reset states add to the running gradients."""
    size *= UNIT
    number, tiles = number_of(0, WIDE), tl.cdiv(size, UNITS)
    i = (number // tiles * ROWS + tl.arange(0, ROWS))[:, None]
    j = (number % tiles * UNITS + tl.arange(0, UNITS))[None, :]
    first, now = _rows_of(starts, t, steps, WIDE)
    row, state_at = first + i, i * size + j
    at, gates_at = row * size + j, row * (3 * size) + j
    total = _no_sums(d_x, ROWS, UNITS, PARTS)
    candidate = weight + 2 * size * size
    total = _product(
        total, d_x + row * (3 * size) + 2 * size, i < now, candidate, size, size, j, DEPTH, PARTS, PRECISION
    )
    total = _add_parts(total, PARTS)
    mask = (i < now) & (j < size)
    r = _load(gates, gates_at, mask)
    _store(d_x, gates_at, total * _load(before, at, mask) * _slope_of_sigmoid(r), mask)
    _store(state, state_at, _load(state, state_at, mask) + total * r, mask)


# ---------------------------------------------------------------------------------------------------------
# Whole sequences
# ---------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["steps", "batch", "size"])
def _sequence(
    x, h0, c0, weight, bias_n, starts, h, h_n, c_n, c, gates, reset, steps, batch, size,
    CELL: tl.constexpr, GATES: tl.constexpr, REVERSE: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """All steps of some sequences. The arguments of a step are loaded during the one before."""
    size *= UNIT
    i = (number_of(0, WIDE) * ROWS + tl.arange(0, ROWS))[None, :]
    unit = tl.arange(0, UNITS)
    j, k = unit[:, None], unit[None, :]
    within = (j < size) & (k < size)
    w = weight + j * size + k
    w_a = tl.load(w, within, 0.0)
    if GATES > 1:
        w_b = tl.load(w + size * size, within, 0.0)
        w_p = tl.load(w + 2 * size * size, within, 0.0)
    if GATES > 3:
        w_d = tl.load(w + 3 * size * size, within, 0.0)
    if GATES == 3:
        bias = _load(bias_n, j, j < size)

    state_at = i * size + j
    known = (i < batch) & (j < size)
    state = tl.load(h0 + state_at, known, 0.0)
    new = widened(state)
    running = new
    if CELL == "lstm":
        running = _load(c0, state_at, known)

    t = steps - 1 if REVERSE else steps * 0
    first, now = _rows_of(starts, t, steps, WIDE)
    t = t - 1 if REVERSE else t + 1
    next_first, next_now = _rows_of(starts, t, steps, WIDE)
    mask = (i < now) & (j < size)
    gates_at = (first + i) * (GATES * size) + j
    arguments = _load_gates(x, gates_at, size, mask, GATES)
    for _ in range(0, steps):
        t = t - 1 if REVERSE else t + 1
        later_first, later_now = _rows_of(starts, t, steps, WIDE)
        next_mask = (i < next_now) & (j < size)
        next_at = (next_first + i) * (GATES * size) + j
        next_arguments = _load_gates(x, next_at, size, next_mask, GATES)

        live = i < now
        mask = live & (j < size)
        at, gates_at = (first + i) * size + j, (first + i) * (GATES * size) + j
        x_a, x_b, x_p, x_d = _apart(arguments, GATES)
        zero = widened(tl.zeros((UNITS, ROWS), x.dtype.element_ty))
        a = tl.dot(w_a, state, zero, input_precision=PRECISION, out_dtype=zero.dtype) + x_a
        b, p, d = a, a, a
        if GATES > 1:
            b = tl.dot(w_b, state, zero, input_precision=PRECISION, out_dtype=zero.dtype) + x_b
        if CELL == "lstm":
            p = tl.dot(w_p, state, zero, input_precision=PRECISION, out_dtype=zero.dtype) + x_p
            d = tl.dot(w_d, state, zero, input_precision=PRECISION, out_dtype=zero.dtype) + x_d
        elif CELL == "gru":
            p = tl.dot(w_p, state, zero, input_precision=PRECISION, out_dtype=zero.dtype) + bias
            d = x_p
        elif CELL == "gru_before":
            a, b = sigmoid(a), sigmoid(b)
            left = a * running
            _store(reset, at, left, mask)
            left = left.to(state.dtype)
            p = tl.dot(w_p, left, zero, input_precision=PRECISION, out_dtype=zero.dtype) + bias
            d = x_p
        found, found_running = _cell(a, b, p, d, running, h, c, gates, reset, at, gates_at, size, mask, CELL)
        new = tl.where(live, found, new)
        state = new.to(state.dtype)
        if GATES > 1:
            running = tl.where(live, found_running, running)

        first, now, next_first, next_now = next_first, next_now, later_first, later_now
        arguments = next_arguments
    _store(h_n, state_at, new, known)
    if CELL == "lstm":
        _store(c_n, state_at, running, known)


@triton.jit(do_not_specialize=["steps", "batch", "size"])
def _sequence_backward(
    g_h, g_hn, g_cn, weight, c0, h, c, before, gates, reset, starts, d_x, d_h0, d_c0, d_product, steps, batch, size,
    CELL: tl.constexpr, GATES: tl.constexpr, REVERSE: tl.constexpr, UNIT: tl.constexpr,
    ROWS: tl.constexpr, UNITS: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """All steps of some sequences, from their last to their first."""
    size *= UNIT
    i = (number_of(0, WIDE) * ROWS + tl.arange(0, ROWS))[None, :]
    unit = tl.arange(0, UNITS)
    j, k = unit[:, None], unit[None, :]
    within = (j < size) & (k < size)
    w_at = weight + k * size + j
    w_a = tl.load(w_at, within, 0.0)
    if GATES > 1:
        w_b = tl.load(w_at + size * size, within, 0.0)
        w_p = tl.load(w_at + 2 * size * size, within, 0.0)
    if GATES > 3:
        w_d = tl.load(w_at + 3 * size * size, within, 0.0)

    state_at = i * size + j
    known = (i < batch) & (j < size)
    total = _load(g_hn, state_at, known)
    running = total
    if CELL == "lstm":
        running = _load(g_cn, state_at, known)
    # What a step reads leads to the operands of its products, so the compiler has it copied into shared memory a step
    # ahead: as long as the addresses follow from the number of the step.
    for number in range(0, steps):
        t = number if REVERSE else steps - 1 - number
        first, now = _rows_of(starts, t, steps, WIDE)
        live = i < now
        mask = live & (j < size)
        at, gates_at = (first + i) * size + j, (first + i) * (GATES * size) + j
        previous = total
        if CELL == "lstm":
            first_before, rows_before = _rows_of(starts, t + 1 if REVERSE else t - 1, steps, WIDE)
            previous = _load_before(c, (first_before + i) * size + j, c0, state_at, mask, i < rows_before)
        elif GATES == 3:
            previous = _load(before, at, mask)
        k_a, k_b, k_p, k_q, more = _kept(h, c, gates, reset, at, gates_at, size, mask, CELL)
        d_h = _load(g_h, at, mask) + total
        a, b, p, q, left = _cell_backward(
            d_h, running, previous, k_a, k_b, k_p, k_q, more, d_x, d_product, at, gates_at, size, mask, CELL
        )  # fmt: skip
        found = widened(tl.zeros((UNITS, ROWS), d_x.dtype.element_ty))
        if GATES == 3:
            found = left
            if CELL == "gru_before":
                zero = widened(tl.zeros((UNITS, ROWS), d_x.dtype.element_ty))
                q = tl.dot(w_p, p.to(w_p.dtype), zero, input_precision=PRECISION, out_dtype=zero.dtype)
                found += q * a
                a = q * previous * _slope_of_sigmoid(a)
                _store(d_x, gates_at, a, mask)
        found = tl.dot(w_a, a.to(w_a.dtype), found, input_precision=PRECISION, out_dtype=found.dtype)
        if GATES > 1:
            found = tl.dot(w_b, b.to(w_a.dtype), found, input_precision=PRECISION, out_dtype=found.dtype)
        if CELL == "lstm" or CELL == "gru":
            found = tl.dot(w_p, p.to(w_a.dtype), found, input_precision=PRECISION, out_dtype=found.dtype)
        if GATES > 3:
            found = tl.dot(w_d, q.to(w_a.dtype), found, input_precision=PRECISION, out_dtype=found.dtype)
        total = tl.where(live, found, total)
        if CELL == "lstm":
            running = tl.where(live, left, running)
    _store(d_h0, state_at, total, known)
    if CELL == "lstm":
        _store(d_c0, state_at, running, known)


# ---------------------------------------------------------------------------------------------------------
# Which of the two
# ---------------------------------------------------------------------------------------------------------

_RESIDENT, _OTHER = 128 << 10, 28 << 10
"""Bytes of shared memory: most of a weight that stays there, and what a program needs beside it."""


def _units(size: int) -> int:
    """Units of a program that has all."""
    return max(16, triton.next_power_of_2(size))


@functools.cache
def _shared(device: int) -> int:
    """Bytes of shared memory that a program may have."""
    import cupy

    return cupy.cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"]


def _resident(weight: Any) -> tuple[int, int]:
    """Bytes that a weight takes where it stays for all steps, and how many there are for it.

    float32 numbers are split into two parts (see `gmkernels.dense.triton`).
    """
    rows, size = weight.shape
    taken = rows // max(1, size) * _units(size) ** 2 * weight.itemsize * (2 if weight.itemsize == 4 else 1)
    return taken, min(_RESIDENT, _shared(weight.data.device_id) - _OTHER)


# ---------------------------------------------------------------------------------------------------------
# Launches
# ---------------------------------------------------------------------------------------------------------


def _tile(rows: int, units: int, depth: int, parts: int, warps: int, stages: int) -> dict[str, int]:
    return {"rows": rows, "units": units, "depth": depth, "parts": parts, "warps": warps, "stages": stages}


_MANY = 33
"""Sequences from which on a program takes more than 16."""
CHOICES = {
    (itemsize, direction, many): launch.Choices(
        f"recurrent.{direction}.{'many' if many else 'few'}.{name}.triton", (few if not many else more,)
    )
    for itemsize, name, direction, few, more in (
        (2, "half", "forward", _tile(16, 8, 64, 4, 4, 4), _tile(64, 32, 64, 1, 4, 3)),
        (2, "half", "backward", _tile(16, 16, 64, 4, 4, 4), _tile(64, 32, 64, 1, 4, 3)),
        (4, "float32", "forward", _tile(16, 8, 32, 4, 4, 3), _tile(64, 32, 32, 1, 8, 3)),
        (4, "float32", "backward", _tile(16, 16, 32, 4, 4, 4), _tile(64, 32, 32, 1, 8, 3)),
        (8, "float64", "forward", _tile(16, 8, 16, 4, 4, 3), _tile(32, 16, 16, 1, 4, 3)),
        (8, "float64", "backward", _tile(16, 16, 16, 4, 4, 4), _tile(32, 16, 16, 1, 4, 3)),
    )
    for many in (False, True)
}
"""By bytes of an element, direction, and whether there are many sequences. With few, a warp makes each of the parts of
a sum: a step takes as long as its longest chain of instructions."""
_ROWS = 8
"""Sequences of a program that takes them through all steps: columns of the tensor cores' smallest tile, so that few
sequences keep many multiprocessors busy."""


def _whole_warps(units: int, itemsize: int) -> tuple[int, int]:
    """Warps and stages where all steps are one launch: a warp for each tile of 16 units. float64 needs more registers,
    and has no room for tiles on their way."""
    return (min(8, units // 8), 1) if itemsize == 8 else (min(8, units // 16), 2)


@functools.cache
def _step_seconds(
    cell: str, direction: str, batch: int, size: int, itemsize: int, resident: int | None, device: cost.Device
) -> tuple[float, float]:
    """Of a step where all are one launch, and where each is one, by the numbers of `gmkernels.cost`: they were measured
    elsewhere, not of these kernels.

    Parameters
    ----------
    cell : of `_GATES`.
    direction : "forward" or "backward".
    batch, size, itemsize : B, H, and bytes of an element.
    resident : bytes of shared memory that the weight takes; None: it has no room there.
    device : what runs it.
    """
    gates, products = _GATES[cell], 2 if cell == "gru_before" else 1
    faster = 2 if itemsize == 4 else 1  # three products in tf32 take half the time of multiply-adds
    whole = math.inf
    if resident is not None:
        programs = triton.cdiv(batch, _ROWS)
        flops = 2 * _ROWS * gates * _units(size) ** 2 / faster
        rounds = triton.cdiv(programs, device.multiprocessors)
        of_program = cost.Cost(flops=flops, slots=resident, itemsize=itemsize)
        whole = rounds * products * cost.STEP + device.rounds(of_program, programs)
    tile = CHOICES[itemsize, direction, batch >= _MANY].at(batch)
    states = tile["rows"] * size * (gates if direction == "backward" else 1)
    of_program = cost.Cost(
        bytes=itemsize * (tile["units"] * gates * size + states),
        flops=2 * tile["rows"] * tile["units"] * gates * size / faster,
        itemsize=itemsize,
    )
    programs = triton.cdiv(batch, tile["rows"]) * triton.cdiv(size, tile["units"])
    return whole, products * (cost.STEP + cost.LAUNCH) + device.rounds(of_program, programs)


def _ways(cell: str, direction: str, weight: Any, batch: int) -> tuple[float, float]:
    """`_step_seconds` on the device of a weight."""
    taken, room = _resident(weight)
    return _step_seconds(
        cell, direction, batch, weight.shape[1], weight.itemsize, taken if taken <= room else None,
        cost.nominal_gpu(weight.data.device_id),
    )  # fmt: skip


def _asked(op: KernelSpec, inputs: Arrays, attrs: Attrs) -> tuple[Any, tuple[float, float]]:
    """The recurrent weight of a call, and its `_ways`."""
    cell, _, direction = op.name.partition("_")
    if cell == "rnn":
        cell = attrs["nonlinearity"]
    elif cell == "gru" and not attrs["reset_after"]:
        cell = "gru_before"
    weight, h0 = (inputs[op.inputs.index(name)] for name in ("weight", "h0"))
    return weight, _ways(cell, direction or "forward", weight, len(h0))


def note(op: KernelSpec, *inputs: Any, **attrs: Any) -> str:
    """Which variant takes a call, and why.

    Parameters
    ----------
    op : the operation.
    inputs, attrs : of the call.
    """
    weight, (whole, launched) = _asked(op, inputs, attrs)
    taken, room = (size >> 10 for size in _resident(weight))
    each = f"a launch a step, {launched * 1e6:.1f} us each"
    if whole == math.inf:
        return f"{each}: the weight would take {taken} of {room} KiB on chip"
    one = f"all steps in one launch, {whole * 1e6:.1f} us each: the weight takes {taken} of {room} KiB on chip"
    return f"{one}; {each}" if whole <= launched else f"{each}; {one}"


def estimate(op: KernelSpec, *inputs: Any, **attrs: Any) -> float:
    """Seconds of a call: of its steps, what else it launches, and what moves and multiplies besides.

    Parameters
    ----------
    op : the operation.
    inputs, attrs : of the call.
    """
    launches = 4 if op.name.endswith("_backward") else 1  # before the steps, and of the weight's gradient
    seconds = inputs[op.inputs.index("batch_sizes")].size * min(_asked(op, inputs, attrs)[1])
    return seconds + launches * cost.LAUNCH + seconds_beside_steps(op, inputs, attrs)


_GATHERED = (16, 128)
"""Rows and units of a program that finds the states before rows: units at a time."""
_SUMMED = 128
"""Rows that a program adds up, at least."""


class _Launches:
    """What the launches of a call have in common.

    Parameters
    ----------
    cell : of `_GATES`.
    direction : "forward" or "backward".
    weight, h0, batch_sizes : as given.
    rows : N.
    starts : where the first rows of steps are to be written.
    reverse : whether sequences are read from their last step to their first.
    """

    def __init__(
        self, cell: str, direction: str, weight: Any, h0: Any, batch_sizes: Any, rows: int, starts: Any, reverse: bool
    ) -> None:
        self.steps, (self.batch, self.size), self.itemsize = len(batch_sizes), h0.shape, h0.itemsize
        whole, launched = _ways(cell, direction, weight, self.batch)
        self.is_whole = whole <= launched
        unit = math.gcd(self.size, 16 // h0.itemsize)
        self.in_units = self.size // unit
        self.constants = {"UNIT": unit, "PRECISION": dense.precision(h0.itemsize)}
        self.cell = {"CELL": cell, "GATES": _GATES[cell], "REVERSE": reverse}
        self.choice = CHOICES[h0.itemsize, direction, self.batch >= _MANY].at(self.batch)
        self.order = range(self.steps)[::-1] if reverse else range(self.steps)
        launch.triton(_find_starts, (1,), (batch_sizes, starts, self.steps, self.batch, rows), {"BLOCK": 1024})

    def whole(self, kernel: Any, *arrays: Any) -> None:
        """All steps in one launch."""
        units = _units(self.size)
        warps, stages = _whole_warps(units, self.itemsize)
        launch.triton(
            kernel,
            (triton.cdiv(self.batch, _ROWS),),
            (*arrays, self.steps, self.batch, self.in_units),
            self.cell | self.constants | {"ROWS": _ROWS, "UNITS": units},
            warps=warps,
            stages=stages,
        )

    def step(self, kernel: Any, constants: Mapping[str, Any], *arguments: Any) -> None:
        """The tiles of a step; the last argument is t."""
        tile = self.choice
        launch.triton(
            kernel,
            (triton.cdiv(self.batch, tile["rows"]) * triton.cdiv(self.size, tile["units"]),),
            (*arguments, self.steps, self.batch, self.in_units),
            {
                **constants, **self.constants, "ROWS": tile["rows"], "UNITS": tile["units"], "DEPTH": tile["depth"],
                "PARTS": tile["parts"],
            },
            warps=tile["warps"],
            stages=tile["stages"],
        )  # fmt: skip

    def states_before(self, h: Any, h0: Any, starts: Any, before: Any) -> None:
        rows, units = _GATHERED
        blocks = triton.cdiv(self.batch, rows)
        launch.triton(
            _states_before,
            (self.steps * blocks,),
            (h, h0, starts, before, self.steps, blocks, self.in_units),
            {
                "UNIT": self.constants["UNIT"], "REVERSE": self.cell["REVERSE"], "ROWS": rows,
                "UNITS": min(units, triton.next_power_of_2(self.size)),
            },
        )  # fmt: skip


def _forward(
    cell: str, workspace: Arrays, reverse: bool, x: Any, h0: Any, c0: Any, weight: Any, bias_n: Any, batch_sizes: Any,
    h: Any, h_n: Any, c_n: Any, c: Any, gates: Any, reset: Any,
) -> None:  # fmt: skip
    """A cell over all steps; None for what it does not have."""
    starts, states, *_ = workspace
    if h.size == 0 or len(batch_sizes) == 0:
        h_n[...] = h0
        if cell == "lstm":
            c_n[...] = c0
        return
    made = _Launches(cell, "forward", weight, h0, batch_sizes, len(h), starts, reverse)
    arrays = (x, h0, c0, weight, bias_n, starts, h, h_n, c_n, c, gates, reset)
    if made.is_whole:
        made.whole(_sequence, *arrays)
        return
    for t in made.order:
        for part in ("reset", "candidate") if cell == "gru_before" else ("all",):
            made.step(_step, made.cell | {"PART": part}, *arrays, states, t)


def _backward(
    cell: str, workspace: Arrays, reverse: bool, g_h: Any, g_hn: Any, g_cn: Any, weight: Any, h0: Any, c0: Any, h: Any,
    c: Any, gates: Any, reset: Any, batch_sizes: Any, d_x: Any, d_h0: Any, d_c0: Any, d_weight: Any, d_bias_n: Any,
) -> None:  # fmt: skip
    """The gradients of a cell over all steps; None for what it does not have."""
    starts, states, *_, before, factors, parts = workspace
    if h.size == 0 or len(batch_sizes) == 0:
        d_h0[...] = g_hn
        d_weight.fill(0)
        if cell == "lstm":
            d_c0[...] = g_cn
        elif d_bias_n is not None:
            d_bias_n.fill(0)
        return
    made = _Launches(cell, "backward", weight, h0, batch_sizes, len(h), starts, reverse)
    made.states_before(h, h0, starts, before)
    arrays = (g_h, g_hn, g_cn, weight, c0, h, c, before, gates, reset, starts, d_x, d_h0, d_c0, factors)
    if made.is_whole:
        made.whole(_sequence_backward, *arrays)
    else:
        for t in made.order[::-1]:
            made.step(_step_backward, made.cell, *arrays, states, t)
            if cell == "gru_before":
                made.step(_step_backward_reset, {}, weight, before, gates, starts, d_x, states, t)
        # The step before the first: the gradients of the first states.
        made.step(_step_backward, made.cell, *arrays, states, made.steps if reverse else -1)

    def multiply(d: Any, states_before: Any, out: Any) -> None:
        scratch = [
            parts[: math.prod(shape)].reshape(shape)
            for shape, _ in product_workspace(states_before, d.shape[1], len(d), made.size)
        ]
        dense.matmul((d.T, states_before), (out,), scratch, {})

    if d_bias_n is None:
        multiply(d_x, before, d_weight)
        return
    both = 2 * made.size
    multiply(d_x[:, :both], before, d_weight[:both])
    multiply(factors, before if cell == "gru" else reset, d_weight[both:])
    # The running gradients are done with: there is room for 3 B sums.
    piece = max(_SUMMED, triton.cdiv(len(h), 3 * made.batch))
    pieces = triton.cdiv(len(h), piece)
    reduce.add_stage(Stage((1, len(h), made.size), 1, piece, pieces), factors, states if pieces > 1 else d_bias_n)
    if pieces > 1:
        reduce.add_up(states, 1, pieces, made.size, d_bias_n)


def rnn(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, h0, weight, batch_sizes = inputs
    h, h_n = outputs
    _forward(
        attrs["nonlinearity"], workspace, attrs["reverse"], x, h0, None, weight, None, batch_sizes, h, h_n, None, None,
        None, None,
    )  # fmt: skip


def rnn_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_h, g_hn, weight, h0, h, batch_sizes = inputs
    d_x, d_h0, d_weight = outputs
    _backward(
        attrs["nonlinearity"], workspace, attrs["reverse"], g_h, g_hn, None, weight, h0, None, h, None, None, None,
        batch_sizes, d_x, d_h0, None, d_weight, None,
    )  # fmt: skip


def lstm(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, h0, c0, weight, batch_sizes = inputs
    h, h_n, c_n, c, gates = outputs
    _forward(
        "lstm", workspace, attrs["reverse"], x, h0, c0, weight, None, batch_sizes, h, h_n, c_n, c, gates, None
    )  # fmt: skip


def lstm_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_h, g_hn, g_cn, weight, h0, c0, h, c, gates, batch_sizes = inputs
    d_x, d_h0, d_c0, d_weight = outputs
    _backward(
        "lstm", workspace, attrs["reverse"], g_h, g_hn, g_cn, weight, h0, c0, h, c, gates, None, batch_sizes, d_x, d_h0,
        d_c0, d_weight, None,
    )  # fmt: skip


def gru(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, h0, weight, bias_n, batch_sizes = inputs
    h, h_n, gates, reset = outputs
    cell = "gru" if attrs["reset_after"] else "gru_before"
    _forward(
        cell, workspace, attrs["reverse"], x, h0, None, weight, bias_n, batch_sizes, h, h_n, None, None, gates, reset
    )


def gru_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_h, g_hn, weight, h0, h, gates, reset, batch_sizes = inputs
    d_x, d_h0, d_weight, d_bias_n = outputs
    cell = "gru" if attrs["reset_after"] else "gru_before"
    _backward(
        cell, workspace, attrs["reverse"], g_h, g_hn, None, weight, h0, None, h, None, gates, reset, batch_sizes,
        d_x, d_h0, None, d_weight, d_bias_n,
    )  # fmt: skip
