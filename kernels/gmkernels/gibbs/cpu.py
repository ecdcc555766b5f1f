"""Gibbs sampling on the CPU: a tile of the product by BLAS, and the rest in one pass over it, in the same block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels import blas
from gmkernels.arrays import is_same
from gmkernels.blas import NO_TRANS, TRANS
from gmkernels.dense import cpu as dense
from gmkernels.dense import products
from gmkernels.dense.cpu import edge, product_tile
from gmkernels.dense.tiles import tiles
from gmkernels.elementary import exp, log1p_unit, select, sigmoid
from gmkernels.gemm import gemm
from gmkernels.gibbs.spec import STEP_BITS, step_key
from gmkernels.pool import block_kernel, jitable, long_loop, reduction, scratch
from gmkernels.registry import FLOATS, Array
from gmkernels.rng import cpu as rng
from gmkernels.rng.cpu import BLOCK, SCRATCH, TILE, interleave, word_tile

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

# ---------------------------------------------------------------------------------------------------------
# States
# ---------------------------------------------------------------------------------------------------------
# Products want states in the dtype of the weight, and samples are made in it; uint8 is for keeping them.


@block_kernel
def _widen(block, states, room, per_block):
    for i in range(block * per_block, min((block + 1) * per_block, room.size)):
        room[i] = states[i]


def _load(states: Array, room: Array) -> Array:
    """The states in the dtype of the scratch array `room`: themselves, or copied there."""
    if states.dtype == room.dtype:
        return states
    _widen(-(-room.size // BLOCK), np.ascontiguousarray(states), room, BLOCK)
    return room


def _rooms(out: Array, room: Array) -> tuple[Array, Array]:
    """Where a sample is made, and where it is kept in uint8 besides: `out`, or the scratch array and `out`."""
    return (out, _NOT_KEPT) if out.dtype != np.uint8 else (room, out)


# ---------------------------------------------------------------------------------------------------------
# Half-steps
# ---------------------------------------------------------------------------------------------------------


@jitable
def _sigmoids(x, bias, beta):
    """x = sigmoid(beta (x + bias))."""
    long_loop()
    bias = bias[: x.size]
    for i in range(x.size):
        x[i] = sigmoid(beta * (x[i] + bias[i]))


@reduction
def _sum(x):
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i])
    return total


@jitable
def _exponentials(x, bias, z):
    """x += bias, z = exp(-|x|)."""
    long_loop()
    bias, z = bias[: x.size], z[: x.size]
    for i in range(x.size):
        a = x[i] + bias[i]
        x[i] = a
        z[i] = exp(-abs(a))


@jitable
def _sigmoids_and_softplus(x, z):
    """x -> sigmoid(x), and z = exp(-|x|) -> softplus(x)."""
    long_loop()
    z = z[: x.size]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for i in range(x.size):
        a, e = x[i], z[i]
        z[i] = select(a < zero, zero, a) + log1p_unit(e)
        x[i] = select(a < zero, e, one) / (one + e)


@jitable
def _sigmoids_and_rises(x, bias, beta, before, z):
    """x = sigmoid(beta a) and z = softplus(beta a) - softplus(before a), with a = x + bias.

    softplus(a) = max(a, 0) + log1p(exp -|a|): the difference of each of the two parts keeps its digits.
    """
    long_loop()
    bias, z = bias[: x.size], z[: x.size]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    step = beta - before
    for i in range(x.size):
        a = x[i] + bias[i]
        e = exp(-beta * abs(a))
        rest = log1p_unit(e) - log1p_unit(exp(-before * abs(a)))
        z[i] = select(a < zero, zero, step * a) + rest
        x[i] = select(a < zero, e, one) / (one + e)


@jitable
def _set_step_key(key, step, units, out):
    """`spec.step_key`."""
    out[0], out[1] = key[0], key[1]
    out[2] = key[2] * np.uint64(units) + (np.uint64(step) << np.uint64(STEP_BITS))


@jitable
def _fire(mean, words, sample):
    """1 where word < floor(mean 2^32), as word + 1 <= mean 2^32 in float64, where both sides are exact."""
    mean, words = mean[: sample.size], words[: sample.size]
    real = sample.dtype.type
    zero, one = real(0), real(1)
    for i in range(sample.size):
        p = mean[i]
        fires = np.float64(words[i]) + 1.0 <= np.float64(p) * 4294967296.0
        sample[i] = select(p == p, select(fires, one, zero), p)


@jitable
def _keep(sample, kept):
    """A sample in uint8, NaN as 0."""
    sample = sample[: kept.size]
    for i in range(kept.size):
        kept[i] = sample[i] == 1


@jitable
def _bernoulli_run(mean, key, sample, kept, begin, end, words, tile):
    """The elements `begin` to `end` of the sample; `words` and `tile` are scratch."""
    for start in range(begin, end, TILE):
        stop = min(start + TILE, end)
        lane, groups = word_tile(key, start, stop - start, words)
        interleave(words, groups, tile)
        _fire(mean[start:stop], tile[lane : lane + stop - start], sample[start:stop])
        if kept.size > 0:
            _keep(sample[start:stop], kept[start:stop])


@block_kernel
def _bernoulli(
    block, function, wide, x, trans_x, ldx, w, trans_w, ldw, mean, bias, sample, kept, sums, betas, temperature, key,
    step, units, m, k, n, row_tiles, column_tiles,
):  # fmt: skip
    """mean = sigmoid(beta (x w + bias)) and, where there is room, its sample, and sums by row and tile: how much
    softplus rises from before (x w + bias) to beta (x w + bias), or without temperatures softplus(x w + bias).

    `before` and `beta` are the numbers `temperature` and `temperature` + 1 of `betas`.
    """
    row, column = block // column_tiles, block % column_tiles
    top, bottom = edge(row, row_tiles, m), edge(row + 1, row_tiles, m)
    left, right = edge(column, column_tiles, n), edge(column + 1, column_tiles, n)
    if k > 0 and bottom > top and right > left:
        product_tile(function, wide, x, trans_x, ldx, w, trans_w, ldw, mean, k, top, bottom, left, right, n)
    else:
        mean[top * n : bottom * n] = 0  # there is one column tile
    real = mean.dtype.type
    tempered = betas.size > 0
    before, beta = real(betas[temperature] if tempered else 0), real(betas[temperature + 1] if tempered else 1)
    terms = scratch(TILE, mean.dtype)
    for r in range(top, bottom):
        total = 0.0
        for start in range(left, right, TILE):
            stop = min(start + TILE, right)
            x_tile, its_bias = mean[r * n + start : r * n + stop], bias[start:stop]
            if sums.size == 0:
                _sigmoids(x_tile, its_bias, beta)
            else:
                if tempered:
                    _sigmoids_and_rises(x_tile, its_bias, beta, before, terms)
                else:  # two loops, since one would be a chain of operations too long to overlap with the next element's
                    _exponentials(x_tile, its_bias, terms)
                    _sigmoids_and_softplus(x_tile, terms)
                total += _sum(terms[: stop - start])
        if sums.size > 0:
            sums[r * column_tiles + column] = total
    if sample.size > 0:
        key_of_step, words, tile = scratch(3, np.uint64), scratch(SCRATCH, np.uint32), scratch(SCRATCH, np.uint32)
        _set_step_key(key, step, units, key_of_step)
        runs = bottom - top if column_tiles > 1 else 1  # whole rows lie together and share tiles of the random stream
        length = (bottom - top) * (right - left) // max(runs, 1)
        for r in range(top, top + runs):
            begin = r * n + left
            _bernoulli_run(mean, key_of_step, sample, kept, begin, begin + length, words, tile)


@block_kernel
def _step_key(block, key, step, units, out):
    _set_step_key(key, step, units, out)


@block_kernel
def _gaussian(block, mean, sample, per_block):
    """Standard normal numbers -> their sum with the mean."""
    for i in range(block * per_block, min((block + 1) * per_block, mean.size)):
        sample[i] += mean[i]


# Of no elements: a kernel that gets one of them leaves that part of its work.
_NO_SAMPLE = {dtype: np.empty(0, dtype) for dtype in FLOATS}
_NOT_KEPT, _NO_KEY, _NO_SUMS, _NO_BETAS = np.empty(0, np.uint8), np.empty(0, np.uint64), np.empty(0), np.empty(0)


def _half_step(
    states: Array,
    weight: Array,
    bias: Array,
    mean: Array,
    rooms: tuple[Array, Array],
    key: Array,
    step: int | None,
    units: str,
    sums: Array = _NO_SUMS,
    betas: Array = _NO_BETAS,
    temperature: int = 0,
) -> None:
    """Means, samples (unless they have no elements) and sums of softplus of the units that `weight` leads to.

    The words are those of step number `step` of a call with `key`; without a number, and of Gaussian units, of the key
    itself. With `betas`, inverse temperatures, as `_bernoulli` has them.
    """
    sample, kept = rooms
    if units == "gaussian":
        dense.linear((states, weight, bias), (mean,), (), {})
        rng.normal((key,), (sample,), (), {})
        _gaussian(-(-mean.size // BLOCK), mean, sample, BLOCK)
        return
    (m, k), n = states.shape, weight.shape[0]
    row_tiles, column_tiles = tiles(m, k, n)
    arguments = dense.operands(states, weight.T)
    bias = np.ascontiguousarray(bias)
    step, units_of_step = (0, 1) if step is None else (step, n)
    with blas.single_threaded():
        _bernoulli(
            row_tiles * column_tiles, *arguments, mean, bias, sample, kept, sums, betas, temperature, key, step,
            units_of_step, m, k, n, row_tiles, column_tiles,
        )  # fmt: skip


def gibbs_half_step(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """The transposed weight is read in place."""
    states, weight, bias, key = inputs
    mean, out = outputs
    room, sampled = workspace
    rooms = _rooms(out, sampled)
    _half_step(_load(states, room), weight, bias, mean, rooms, np.ascontiguousarray(key), None, attrs["units"])


def _steps(
    visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, key: Array, first: int, steps: int,
    units: str, sample: tuple[Array, Array], visible_mean: Array, hidden: tuple[Array, Array], hidden_mean: Array,
    key_of_step: Array,
) -> None:  # fmt: skip
    """Half-steps number `first` to 2 `steps`: from `visible` with a `first` of 0, from `hidden` with 1."""
    for step in range(first, 2 * steps):
        if step % 2 == 0:
            source = visible if step == 0 else sample[0]
            _half_step(source, weight, hidden_bias, hidden_mean, hidden, key, step, "bernoulli")
        elif units == "bernoulli":
            _half_step(hidden[0], weight.T, visible_bias, visible_mean, sample, key, step, units)
        else:
            _step_key(1, key, step, weight.shape[1], key_of_step)
            _half_step(hidden[0], weight.T, visible_bias, visible_mean, sample, key_of_step, None, units)


def gibbs_chain(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """A launch for each half-step, cut by rows and columns: many chains or few, every core has a share."""
    visible, weight, visible_bias, hidden_bias, key = inputs
    visible_out, visible_mean, hidden_out = outputs
    room, hidden_mean, hidden_room, key_of_step = workspace
    _steps(
        _load(visible, room), weight, visible_bias, hidden_bias, key, 0, attrs["steps"], attrs["units"],
        _rooms(visible_out, room), visible_mean, _rooms(hidden_out, hidden_room), hidden_mean, key_of_step,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Free energy
# ---------------------------------------------------------------------------------------------------------


@reduction
def _dot(x, y):
    y = y[: x.size]
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(y[i])
    return total


@reduction
def _squared_distance(x, y):
    y = y[: x.size]
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i] - y[i]) * np.float64(x[i] - y[i])
    return total


@block_kernel
def _energies(block, visible, bias, sums, energy, gaussian, column_tiles, per_block):
    n = bias.size
    for r in range(block * per_block, min((block + 1) * per_block, energy.size)):
        v = visible[r * n : (r + 1) * n]
        own = 0.5 * _squared_distance(v, bias) if gaussian else -_dot(v, bias)
        energy[r] = own - _sum(sums[r * column_tiles : (r + 1) * column_tiles])


def free_energy(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    visible, weight, visible_bias, hidden_bias = inputs
    energy, hidden_mean = outputs
    room, sums = workspace
    visible = _load(visible, room)
    nowhere = _NO_SAMPLE[weight.dtype.name], _NOT_KEPT
    _half_step(visible, weight, hidden_bias, hidden_mean, nowhere, _NO_KEY, None, "bernoulli", sums)
    per_block = max(1, BLOCK // max(1, visible.shape[1]))
    _energies(
        -(-len(visible) // per_block), visible, visible_bias, sums, energy, int(attrs["units"] == "gaussian"),
        sums.shape[1], per_block,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Contrastive divergence
# ---------------------------------------------------------------------------------------------------------


@jitable
def _add_fours(x, begin, width, total):
    """total += the sum of four rows that lie `width` apart: it is loaded and stored once."""
    long_loop()
    a, b = x[begin : begin + total.size], x[begin + width : begin + width + total.size]
    begin += 2 * width
    c, d = x[begin : begin + total.size], x[begin + width : begin + width + total.size]
    for i in range(total.size):
        total[i] += (np.float64(a[i]) + np.float64(b[i])) + (np.float64(c[i]) + np.float64(d[i]))


@jitable
def _add_row(x, begin, total):
    long_loop()
    x = x[begin : begin + total.size]
    for i in range(total.size):
        total[i] += np.float64(x[i])


@jitable
def _add_rows(x, rows, width, left, total):
    """total += the sum of the columns from `left` on."""
    for r in range(0, rows - 3, 4):
        _add_fours(x, r * width + left, width, total)
    for r in range(rows // 4 * 4, rows):
        _add_row(x, r * width + left, total)


@jitable
def _mean_difference(x, x2, rows, rows2, width, left, total, out):
    """total = the mean of the rows of x2 minus that of x, in the columns from `left` on, and so `out`."""
    out = out[: total.size]
    total[:] = 0
    _add_rows(x, rows, width, left, total)
    for i in range(total.size):
        total[i] *= -rows2 / rows
    _add_rows(x2, rows2, width, left, total)
    for i in range(total.size):
        total[i] /= rows2
        out[i] = total[i]


@jitable
def _add_squares(x, rows, width, left, bias, scale, total):
    """total += scale (x - bias)^2, summed over the rows."""
    bias = bias[: total.size]
    for r in range(rows):
        row = x[r * width + left : r * width + left + total.size]
        for i in range(total.size):
            difference = np.float64(row[i] - bias[i])
            total[i] += scale * (difference * difference)


@block_kernel
def _statistics(
    block, function, wide, h, h2, v, v2, bias, d_weight, d_visible, d_hidden, own, means, gaussian, rows, rows2,
    row_tiles, column_tiles,
):  # fmt: skip
    """Means of h2 v2^T, v2 and h2 over their rows, minus those of h v^T, v and h: a tile, and a part of each bias.

    `own` is what each visible unit adds to the loss by its bias.
    """
    hidden, visible, item, blocks = d_hidden.size, d_visible.size, d_weight.itemsize, row_tiles * column_tiles
    row, column = block // column_tiles, block % column_tiles
    top, bottom = edge(row, row_tiles, hidden), edge(row + 1, row_tiles, hidden)
    left, right = edge(column, column_tiles, visible), edge(column + 1, column_tiles, visible)
    m, n = bottom - top, right - left
    if m > 0 and n > 0:
        real = d_weight.dtype.type
        target = d_weight.ctypes.data + item * (top * visible + left)
        gemm(function, wide, d_weight, TRANS, NO_TRANS, m, n, rows, real(-1 / rows), h.ctypes.data + item * top, hidden,
             v.ctypes.data + item * left, visible, 0, target, visible)  # fmt: skip
        gemm(function, wide, d_weight, TRANS, NO_TRANS, m, n, rows2, real(1 / rows2), h2.ctypes.data + item * top,
             hidden, v2.ctypes.data + item * left, visible, 1, target, visible)  # fmt: skip
    begin, end = edge(block, blocks, hidden), edge(block + 1, blocks, hidden)
    _mean_difference(h, h2, rows, rows2, hidden, begin, means[begin:end], d_hidden[begin:end])
    begin, end = edge(block, blocks, visible), edge(block + 1, blocks, visible)
    its_own, its_bias = own[begin:end], bias[begin:end]
    _mean_difference(v, v2, rows, rows2, visible, begin, its_own, d_visible[begin:end])
    if gaussian:
        its_own[:] = 0
        _add_squares(v, rows, visible, begin, its_bias, 0.5 / rows, its_own)
        _add_squares(v2, rows2, visible, begin, its_bias, -0.5 / rows2, its_own)
    else:
        for i in range(its_own.size):
            its_own[i] *= its_bias[i]


@block_kernel
def _loss(block, own, data_sums, chain_sums, loss, rows, rows2):
    loss[0] = _sum(own) - _sum(data_sums) / rows + _sum(chain_sums) / rows2


def contrastive_divergence(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """Where the chain starts at the data, the hidden means of the positive phase are those of its first step."""
    data, chain, weight, visible_bias, hidden_bias, key = inputs
    *statistics, visible_out, loss = outputs
    (
        data_room, chain_room, data_hidden, chain_hidden, hidden, visible_mean, data_sums, chain_sums, own, means,
        key_of_step,
    ) = workspace  # fmt: skip
    units = attrs["units"]
    from_data = is_same(chain, data)
    positive = _load(data, data_room)
    start = positive if from_data else _load(chain, chain_room)
    rooms = _rooms(visible_out, chain_room)
    negative = rooms[0]
    nowhere = _NO_SAMPLE[weight.dtype.name], _NOT_KEPT

    first = (hidden, _NOT_KEPT) if from_data else nowhere
    _half_step(positive, weight, hidden_bias, data_hidden, first, key, 0, "bernoulli", data_sums)
    _steps(
        start, weight, visible_bias, hidden_bias, key, int(from_data), attrs["steps"], units, rooms, visible_mean,
        (hidden, _NOT_KEPT), chain_hidden, key_of_step,
    )  # fmt: skip
    _half_step(negative, weight, hidden_bias, chain_hidden, nowhere, _NO_KEY, None, "bernoulli", chain_sums)
    row_tiles, column_tiles = tiles(weight.shape[0], len(data) + len(chain), weight.shape[1])
    library = blas.find()
    assert library is not None
    multiply = products.choose(library, weight.dtype, TRANS, NO_TRANS, weight.shape[0], len(data), weight.shape[1])
    with blas.single_threaded():
        _statistics(
            row_tiles * column_tiles, *multiply, data_hidden, chain_hidden, positive, negative, visible_bias,
            *statistics, own, means, int(units == "gaussian"), len(data), len(chain), row_tiles, column_tiles,
        )  # fmt: skip
    _loss(1, own, data_sums, chain_sums, loss, len(data), len(chain))


# ---------------------------------------------------------------------------------------------------------
# Annealed importance sampling
# ---------------------------------------------------------------------------------------------------------


def annealed_importance_sampling(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """The product of the hidden half-step serves the weights too: two products a temperature."""
    visible, weight, visible_bias, hidden_bias, base_bias, temperatures, key = inputs
    log_weight, visible_out = outputs
    room, hidden, hidden_mean, visible_mean, sums, bias, own = workspace
    units, real = attrs["units"], weight.dtype.type
    x = _load(visible, room)
    rooms, rooms_of_hidden = _rooms(visible_out, room), (hidden, _NOT_KEPT)
    constant = 0.5 * (np.sum(base_bias**2.0) - np.sum(visible_bias**2.0)) if units == "gaussian" else 0.0
    log_weight.fill(0)
    for step in range(len(temperatures) - 1):
        # In the dtype of the weight, so that what a step ends with is what the next begins with.
        before, beta = real(temperatures[step]), real(temperatures[step + 1])
        hidden_key = step_key(key, 2 * step, weight.shape[0])
        _half_step(
            x,
            weight,
            hidden_bias,
            hidden_mean,
            rooms_of_hidden,
            hidden_key,
            None,
            "bernoulli",
            sums,
            temperatures,
            step,
        )
        for part in sums.T:
            log_weight += part
        np.subtract(visible_bias, base_bias, out=bias)
        with blas.single_threaded():
            np.matmul(x, bias, out=own)
        np.multiply(own, beta - before, out=own)
        log_weight += own
        log_weight += (float(beta) - float(before)) * constant
        np.multiply(bias, beta, out=bias)
        np.add(bias, base_bias, out=bias)
        np.multiply(hidden, beta, out=hidden)
        visible_key = step_key(key, 2 * step + 1, weight.shape[1])
        _half_step(hidden, weight.T, bias, visible_mean, rooms, visible_key, None, units)
        x = rooms[0]
    if len(temperatures) == 1:
        np.copyto(visible_out, visible)


# ---------------------------------------------------------------------------------------------------------
# General Boltzmann machine
# ---------------------------------------------------------------------------------------------------------

_WORK = 1 << 18  # multiplications of a block, about


@jitable
def _add_multiple(field, row, factor):
    row = row[: field.size]
    for i in range(field.size):
        field[i] += factor * row[i]


@block_kernel
def _sweep(block, function, wide, x, weight, bias, clamped, words, field, rows, rows_per_block):
    """Every unit of some chains in turn; `field` is W x, kept up to date for the units to come."""
    n, item = bias.size, x.itemsize
    zero, one = x.dtype.type(0), x.dtype.type(1)
    top, bottom = block * rows_per_block, min(rows, (block + 1) * rows_per_block)
    at = item * top * n
    gemm(function, wide, x, NO_TRANS, NO_TRANS, bottom - top, n, n, 1, x.ctypes.data + at, n,
         weight.ctypes.data, n, 0, field.ctypes.data + at, n)  # fmt: skip
    for r in range(top, bottom):
        start, end = r * n, (r + 1) * n
        for i in range(n):
            if not clamped[i]:
                p = sigmoid(field[start + i] + bias[i])
                fires = np.float64(words[start + i]) + 1.0 <= np.float64(p) * 4294967296.0
                new = select(p == p, select(fires, one, zero), p)
                change = new - x[start + i]
                x[start + i] = new
                if change != zero:
                    _add_multiple(field[start + i + 1 : end], weight[i * n + i + 1 : (i + 1) * n], change)


def boltzmann_sweep(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """A block takes some of the chains through a sweep: at most every other unit flips, and adds a row of weights."""
    states, weight, bias, clamped, key = inputs
    (out,) = outputs
    room, field, words = workspace
    if states.size == 0:
        return
    x = out if out.dtype == weight.dtype else room
    np.copyto(x, states)
    rows, n = x.shape
    rows_per_block = max(1, _WORK // (n * n))
    library = blas.find()
    assert library is not None
    multiply = products.choose(library, x.dtype, NO_TRANS, NO_TRANS, min(rows, rows_per_block), n, n)
    for sweep in range(attrs["sweeps"]):
        rng.random_words((step_key(key, sweep, n),), (words,), (), {})
        with blas.single_threaded():
            _sweep(
                -(-rows // rows_per_block), *multiply, x, weight, bias, clamped.view(np.uint8), words, field, rows,
                rows_per_block,
            )  # fmt: skip
    if x is not out:
        np.equal(x, 1, out=out.view(np.bool_))  # NaN is 0
