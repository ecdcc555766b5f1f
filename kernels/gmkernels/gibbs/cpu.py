"""Gibbs sampling on the CPU: a tile of the product by BLAS, and the rest in one pass over it, in the same block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels import blas
from gmkernels.blas import NO_TRANS, TRANS
from gmkernels.dense.cpu import edge, operands, product_tile
from gmkernels.dense.tiles import tiles
from gmkernels.elementary import exp, log1p_unit, select, sigmoid
from gmkernels.gemm import gemm
from gmkernels.gibbs.spec import STEP_BITS, step_key
from gmkernels.pool import address, block_kernel, jitable, reduction, scratch
from gmkernels.registry import Array
from gmkernels.rng.cpu import SCRATCH, TILE, interleave, normal_tile, word_tile

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

# ---------------------------------------------------------------------------------------------------------
# States
# ---------------------------------------------------------------------------------------------------------
# Products want states in the dtype of the weight, and samples are made in it; uint8 is for keeping them.


def _load(states: Array, room: Array) -> Array:
    """The states in the dtype of the scratch array `room`: themselves, or copied there."""
    if states.dtype == room.dtype:
        return states
    np.copyto(room, states)
    return room


def _store(sample: Array, out: Array) -> None:
    """A sample into an output that is not itself; NaN is 0 in uint8."""
    if out is not sample:
        np.equal(sample, 1, out=out.view(np.bool_))


# ---------------------------------------------------------------------------------------------------------
# Half-steps
# ---------------------------------------------------------------------------------------------------------


@jitable
def _sigmoids(x, bias):
    """x = sigmoid(x + bias)."""
    bias = bias[: x.size]
    for i in range(x.size):
        x[i] = sigmoid(x[i] + bias[i])


@reduction
def _sigmoids_and_sum(x, bias):
    """The same; returns the sum of softplus(x + bias)."""
    bias = bias[: x.size]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    total = 0.0
    for i in range(x.size):
        a = x[i] + bias[i]
        z = exp(-abs(a))
        x[i] = select(a < zero, z, one) / (one + z)
        total += np.float64(select(a < zero, zero, a) + log1p_unit(z))
    return total


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
def _bernoulli_run(mean, key, sample, begin, end):
    """The elements `begin` to `end` of the sample."""
    words, tile = scratch(SCRATCH, np.uint32), scratch(SCRATCH, np.uint32)
    for start in range(begin, end, TILE):
        stop = min(start + TILE, end)
        lane, groups = word_tile(key, start, stop - start, words)
        interleave(words, groups, tile)
        _fire(mean[start:stop], tile[lane : lane + stop - start], sample[start:stop])


@jitable
def _row_product(
    block, function, wide, x, trans_x, ldx, w, trans_w, ldw, y, m, k, n, row_tiles, column_tiles
):
    """The tile of y = x w that is this block's; returns where it lies."""
    row, column = block // column_tiles, block % column_tiles
    top, bottom = edge(row, row_tiles, m), edge(row + 1, row_tiles, m)
    left, right = edge(column, column_tiles, n), edge(column + 1, column_tiles, n)
    if k > 0:
        product_tile(function, wide, x, trans_x, ldx, w, trans_w, ldw, y, k, top, bottom, left, right, n)
    else:
        y[top * n : bottom * n] = 0  # there is one column tile
    return column, top, bottom, left, right


@block_kernel
def _bernoulli(
    block, function, wide, x, trans_x, ldx, w, trans_w, ldw, mean, bias, sample, sums, key, m, k, n, row_tiles,
    column_tiles,
):  # fmt: skip
    """mean = sigmoid(x w + bias) and, where there is room, its sample and the sums of softplus by row and tile."""
    column, top, bottom, left, right = _row_product(
        block, function, wide, x, trans_x, ldx, w, trans_w, ldw, mean, m, k, n, row_tiles, column_tiles
    )
    for r in range(top, bottom):
        begin, end = r * n + left, r * n + right
        if sums.size > 0:
            sums[r * column_tiles + column] = _sigmoids_and_sum(mean[begin:end], bias[left:right])
        else:
            _sigmoids(mean[begin:end], bias[left:right])
        if sample.size > 0 and column_tiles > 1:
            _bernoulli_run(mean, key, sample, begin, end)
    if sample.size > 0 and column_tiles == 1:  # short rows share tiles of the random stream
        _bernoulli_run(mean, key, sample, top * n, bottom * n)


@jitable
def _add(x, y):
    """x += y"""
    y = y[: x.size]
    for i in range(x.size):
        x[i] += y[i]


@jitable
def _sum(x, y, z):
    """z = x + y"""
    x, y = x[: z.size], y[: z.size]
    for i in range(z.size):
        z[i] = x[i] + y[i]


@jitable
def _normal_run(mean, key, sample, begin, end):
    words = scratch(SCRATCH, np.uint32)
    lanes, noise = scratch(SCRATCH, mean.dtype), scratch(SCRATCH, mean.dtype)
    for start in range(begin, end, TILE):
        stop = min(start + TILE, end)
        lane = normal_tile(key, start, stop - start, words, lanes, noise)
        _sum(mean[start:stop], noise[lane : lane + stop - start], sample[start:stop])


@block_kernel
def _gaussian(
    block, function, wide, x, trans_x, ldx, w, trans_w, ldw, mean, bias, sample, key, m, k, n, row_tiles, column_tiles
):
    """mean = x w + bias, and its sample."""
    column, top, bottom, left, right = _row_product(
        block, function, wide, x, trans_x, ldx, w, trans_w, ldw, mean, m, k, n, row_tiles, column_tiles
    )
    for r in range(top, bottom):
        begin, end = r * n + left, r * n + right
        _add(mean[begin:end], bias[left:right])
        if column_tiles > 1:
            _normal_run(mean, key, sample, begin, end)
    if column_tiles == 1:
        _normal_run(mean, key, sample, top * n, bottom * n)


_NO_KEY = np.zeros(3, np.uint64)
_NO_SUMS = np.empty(0, np.float64)


def _half_step(
    states: Array, weight: Array, bias: Array, mean: Array, sample: Array, key: Array, units: str, sums: Array = _NO_SUMS
) -> None:
    """Means, samples (unless that has no elements) and sums of softplus of the units that `weight` leads to."""
    if mean.size == 0:
        sums.fill(0)
        return
    (m, k), n = states.shape, weight.shape[0]
    row_tiles, column_tiles = tiles(m, k, n)
    arguments, alive = operands(states, weight.T)
    bias = np.ascontiguousarray(bias)
    blocks, shape = row_tiles * column_tiles, (m, k, n, row_tiles, column_tiles)
    with blas.single_threaded():
        if units == "gaussian":
            _gaussian(blocks, *arguments, mean, bias, sample, key, *shape)
        else:
            _bernoulli(blocks, *arguments, mean, bias, sample, sums, key, *shape)


def gibbs_half_step(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """The transposed weight is read in place."""
    states, weight, bias, key = inputs
    mean, out = outputs
    room, sampled = workspace
    sample = out if out.dtype == mean.dtype else sampled
    _half_step(_load(states, room), weight, bias, mean, sample, np.ascontiguousarray(key), attrs["units"])
    _store(sample, out)


def _steps(
    visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, key: Array, first: int, steps: int,
    units: str, sample: Array, visible_mean: Array, hidden: Array, hidden_mean: Array,
) -> None:  # fmt: skip
    """Half-steps number `first` to 2 `steps`: from `visible` with a `first` of 0, from `hidden` with 1."""
    for step in range(first, 2 * steps):
        if step % 2 == 0:
            source = visible if step == 0 else sample
            key_of_step = step_key(key, step, weight.shape[0])
            _half_step(source, weight, hidden_bias, hidden_mean, hidden, key_of_step, "bernoulli")
        else:
            key_of_step = step_key(key, step, weight.shape[1])
            _half_step(hidden, weight.T, visible_bias, visible_mean, sample, key_of_step, units)


def gibbs_chain(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """A launch for each half-step, cut by rows and columns: many chains or few, every core has a share."""
    visible, weight, visible_bias, hidden_bias, key = inputs
    visible_out, visible_mean, hidden_out = outputs
    room, hidden_mean, hidden_room = workspace
    start = _load(visible, room)
    sample = visible_out if visible_out.dtype == weight.dtype else room
    hidden = hidden_out if hidden_out.dtype == weight.dtype else hidden_room
    _steps(
        start, weight, visible_bias, hidden_bias, key, 0, attrs["steps"], attrs["units"], sample, visible_mean, hidden,
        hidden_mean,
    )  # fmt: skip
    _store(sample, visible_out)
    _store(hidden, hidden_out)


# ---------------------------------------------------------------------------------------------------------
# Free energy
# ---------------------------------------------------------------------------------------------------------

_ROWS = 64  # of a block


@reduction
def _linear_energy(visible, bias):
    bias = bias[: visible.size]
    total = 0.0
    for i in range(visible.size):
        total -= np.float64(visible[i]) * np.float64(bias[i])
    return total


@reduction
def _square_energy(visible, bias):
    bias = bias[: visible.size]
    total = 0.0
    for i in range(visible.size):
        difference = np.float64(visible[i]) - np.float64(bias[i])
        total += 0.5 * difference * difference
    return total


@block_kernel
def _energies(block, visible, bias, sums, energy, gaussian):
    """energy = the visible units' own energy, minus the sums of softplus."""
    n, parts = bias.size, sums.size // energy.size
    for r in range(block * _ROWS, min(block * _ROWS + _ROWS, energy.size)):
        row = visible[r * n : (r + 1) * n]
        total = _square_energy(row, bias) if gaussian else _linear_energy(row, bias)
        for i in range(r * parts, (r + 1) * parts):
            total -= sums[i]
        energy[r] = total


def _free_energy(
    visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, hidden_mean: Array, sample: Array,
    key: Array, sums: Array, energy: Array, units: str,
) -> None:  # fmt: skip
    """Free energies and hidden means, and a sample of those unless it has no elements."""
    _half_step(visible, weight, hidden_bias, hidden_mean, sample, key, "bernoulli", sums)
    rows, bias = np.ascontiguousarray(visible), np.ascontiguousarray(visible_bias)
    _energies(-(-energy.size // _ROWS), rows, bias, sums, energy, int(units == "gaussian"))


def free_energy(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    visible, weight, visible_bias, hidden_bias = inputs
    energy, hidden_mean = outputs
    room, sums = workspace
    none = hidden_mean[:0]
    _free_energy(
        _load(visible, room), weight, visible_bias, hidden_bias, hidden_mean, none, _NO_KEY, sums, energy,
        attrs["units"],
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Contrastive divergence
# ---------------------------------------------------------------------------------------------------------

_STRIP = 128  # columns of a block


@block_kernel
def _difference_of_products(
    block, function, wide, h, v, ldv, n, h2, v2, ldv2, n2, scale, out, hidden, visible, row_tiles, column_tiles
):
    """out = h^T v / n - h2^T v2 / n2, tile by tile."""
    row, column = block // column_tiles, block % column_tiles
    top, bottom = edge(row, row_tiles, hidden), edge(row + 1, row_tiles, hidden)
    left, right = edge(column, column_tiles, visible), edge(column + 1, column_tiles, visible)
    item = out.itemsize
    tile = out.ctypes.data + item * (top * visible + left)
    rows, columns = bottom - top, right - left
    gemm(function, wide, out, TRANS, NO_TRANS, rows, columns, n, scale[0], h + item * top, hidden,
         v + item * left, ldv, scale[2], tile, visible)  # fmt: skip
    gemm(function, wide, out, TRANS, NO_TRANS, rows, columns, n2, scale[1], h2 + item * top, hidden,
         v2 + item * left, ldv2, scale[3], tile, visible)  # fmt: skip


@jitable
def _add_wide(total, x):
    x = x[: total.size]
    for i in range(total.size):
        total[i] += np.float64(x[i])


@block_kernel
def _difference_of_means(block, x, y, out):
    """out = mean of the rows of x, minus that of the rows of y."""
    first, second = scratch(_STRIP, np.float64), scratch(_STRIP, np.float64)
    n = out.size
    left, right = block * _STRIP, min(block * _STRIP + _STRIP, n)
    one, two = first[: right - left], second[: right - left]
    one[:] = 0
    two[:] = 0
    for r in range(x.size // n):
        _add_wide(one, x[r * n + left : r * n + right])
    for r in range(y.size // n):
        _add_wide(two, y[r * n + left : r * n + right])
    for i in range(right - left):
        out[left + i] = one[i] / (x.size // n) - two[i] / (y.size // n)


def contrastive_divergence(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """Where the chain starts at the data, the hidden means of the positive phase are those of its first step."""
    data, chain, weight, visible_bias, hidden_bias, key = inputs
    d_weight, d_visible_bias, d_hidden_bias, visible_out, loss = outputs
    (
        data_room, chain_room, data_hidden, chain_hidden, hidden, visible_mean, data_sums, chain_sums, data_energy,
        chain_energy,
    ) = workspace  # fmt: skip
    units, steps = attrs["units"], attrs["steps"]
    parameters = weight, visible_bias, hidden_bias
    from_data = chain is data
    positive = np.ascontiguousarray(_load(data, data_room))
    start = positive if from_data else np.ascontiguousarray(_load(chain, chain_room))
    visible = visible_out if visible_out.dtype == weight.dtype else chain_room

    first = hidden if from_data else hidden[:0]
    first_key = step_key(key, 0, weight.shape[0])
    _free_energy(positive, *parameters, data_hidden, first, first_key, data_sums, data_energy, units)
    _steps(start, *parameters, key, int(from_data), steps, units, visible, visible_mean, hidden, chain_hidden)
    _free_energy(visible, *parameters, chain_hidden, hidden[:0], _NO_KEY, chain_sums, chain_energy, units)
    _statistics(positive, data_hidden, visible, chain_hidden, d_weight, d_visible_bias, d_hidden_bias)
    loss[...] = np.mean(data_energy, dtype=np.float64) - np.mean(chain_energy, dtype=np.float64)
    _store(visible, visible_out)


def _statistics(
    data: Array, data_hidden: Array, chain: Array, chain_hidden: Array, d_weight: Array, d_visible_bias: Array,
    d_hidden_bias: Array,
) -> None:  # fmt: skip
    (n, visible), n2, hidden = data.shape, chain.shape[0], data_hidden.shape[1]
    _difference_of_means(-(-visible // _STRIP), data, chain, d_visible_bias)
    _difference_of_means(-(-hidden // _STRIP), data_hidden, chain_hidden, d_hidden_bias)
    if d_weight.size == 0:
        return
    library = blas.find()
    assert library is not None
    row_tiles, column_tiles = tiles(hidden, n + n2, visible)
    scale = np.array([1 / n, -1 / n2, 0, 1], d_weight.dtype)
    with blas.single_threaded():
        _difference_of_products(
            row_tiles * column_tiles, library.gemm_address(d_weight.dtype), int(library.wide),
            address(data_hidden), address(data), visible, n, address(chain_hidden), address(chain), visible, n2,
            scale, d_weight, hidden, visible, row_tiles, column_tiles,
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# General Boltzmann machine
# ---------------------------------------------------------------------------------------------------------

_FLIPS = 1 << 20  # multiplications of a block and sweep, about


@jitable
def _add_multiple(field, row, factor):
    row = row[: field.size]
    for i in range(field.size):
        field[i] += factor * row[i]


@jitable
def _scan(x, field, weight, bias, clamped, words, begin, end):
    """Units begin to end in turn; `field` is W x, kept up to date for the units to come."""
    one = x.dtype.type(1)
    zero = x.dtype.type(0)
    n = x.size
    for i in range(begin, end):
        if not clamped[i]:
            p = sigmoid(field[i] + bias[i])
            fires = np.float64(words[i - begin]) + 1.0 <= np.float64(p) * 4294967296.0
            new = select(p == p, select(fires, one, zero), p)
            change = new - x[i]
            x[i] = new
            if change != zero:
                _add_multiple(field[i + 1 : n], weight[i * n + i + 1 : (i + 1) * n], change)


@block_kernel
def _sweeps(block, function, wide, x, weight, bias, clamped, key, field, n, sweeps, rows, rows_per_block):
    words, tile = scratch(SCRATCH, np.uint32), scratch(SCRATCH, np.uint32)
    top, bottom = block * rows_per_block, min(rows, (block + 1) * rows_per_block)
    item = x.itemsize
    for sweep in range(sweeps):
        at = item * top * n
        gemm(function, wide, x, NO_TRANS, NO_TRANS, bottom - top, n, n, 1, x.ctypes.data + at, n,
             weight.ctypes.data, n, 0, field.ctypes.data + at, n)  # fmt: skip
        for r in range(top, bottom):
            states, fields = x[r * n : (r + 1) * n], field[r * n : (r + 1) * n]
            for begin in range(0, n, TILE):
                end = min(begin + TILE, n)
                lane, groups = word_tile(key, (sweep << STEP_BITS) + r * n + begin, end - begin, words)
                interleave(words, groups, tile)
                _scan(states, fields, weight, bias, clamped, tile[lane:], begin, end)


def boltzmann_sweep(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """Chains are independent: a block takes some of them through all sweeps."""
    states, weight, bias, clamped, key = inputs
    (out,) = outputs
    room, field = workspace
    if states.size == 0:
        return
    x = out if out.dtype == weight.dtype else room
    np.copyto(x, states)
    rows, n = x.shape
    rows_per_block = max(1, _FLIPS // (n * n))
    library = blas.find()
    assert library is not None
    with blas.single_threaded():
        _sweeps(
            -(-rows // rows_per_block), library.gemm_address(x.dtype), int(library.wide), x, weight, bias,
            clamped.view(np.uint8), step_key(key, 0, n), field, n, attrs["sweeps"], rows, rows_per_block,
        )  # fmt: skip
    _store(x, out)
