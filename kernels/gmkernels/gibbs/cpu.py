"""Gibbs sampling on the CPU: a tile of the product by BLAS, and the rest in one pass over it, in the same block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels import blas
from gmkernels.blas import NO_TRANS, TRANS
from gmkernels.dense import cpu as dense
from gmkernels.dense.cpu import edge, product_tile
from gmkernels.dense.tiles import tiles
from gmkernels.elementary import exp, log1p_unit, select, sigmoid
from gmkernels.gemm import gemm
from gmkernels.gibbs.spec import step_key
from gmkernels.pool import address, block_kernel, jitable, reduction, scratch
from gmkernels.registry import FLOATS, Array
from gmkernels.rng import cpu as rng
from gmkernels.rng.cpu import SCRATCH, TILE, interleave, word_tile

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
def _sigmoids(x, bias, beta):
    """x = sigmoid(beta (x + bias))."""
    bias = bias[: x.size]
    for i in range(x.size):
        x[i] = sigmoid(beta * (x[i] + bias[i]))


@reduction
def _sigmoids_and_sum(x, bias):
    """x = sigmoid(x + bias); returns the sum of softplus(x + bias)."""
    bias = bias[: x.size]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    total = 0.0
    for i in range(x.size):
        a = x[i] + bias[i]
        z = exp(-abs(a))
        x[i] = select(a < zero, z, one) / (one + z)
        total += np.float64(select(a < zero, zero, a) + log1p_unit(z))
    return total


@reduction
def _sigmoids_and_rise(x, bias, beta, before):
    """x = sigmoid(beta a) with a = x + bias; returns the sum of softplus(beta a) - softplus(before a).

    softplus(a) = max(a, 0) + log1p(exp -|a|): the difference of each of the two parts keeps its digits.
    """
    bias = bias[: x.size]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    step = beta - before
    total = 0.0
    for i in range(x.size):
        a = x[i] + bias[i]
        z = exp(-beta * abs(a))
        rest = log1p_unit(z) - log1p_unit(exp(-before * abs(a)))
        x[i] = select(a < zero, z, one) / (one + z)
        total += np.float64(select(a < zero, zero, step * a) + rest)
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


@block_kernel
def _bernoulli(
    block, function, wide, x, trans_x, ldx, w, trans_w, ldw, mean, bias, sample, sums, betas, key, m, k, n, row_tiles,
    column_tiles,
):  # fmt: skip
    """mean = sigmoid(betas[1] (x w + bias)) and, where there is room, its sample, and sums by row and tile: how much
    softplus rises from betas[0] (x w + bias) to betas[1] (x w + bias), or without a betas[0] softplus(x w + bias)."""
    row, column = block // column_tiles, block % column_tiles
    top, bottom = edge(row, row_tiles, m), edge(row + 1, row_tiles, m)
    left, right = edge(column, column_tiles, n), edge(column + 1, column_tiles, n)
    if k > 0:
        product_tile(function, wide, x, trans_x, ldx, w, trans_w, ldw, mean, k, top, bottom, left, right, n)
    else:
        mean[top * n : bottom * n] = 0  # there is one column tile
    for r in range(top, bottom):
        begin, end = r * n + left, r * n + right
        here, its_bias = mean[begin:end], bias[left:right]
        if sums.size == 0:
            _sigmoids(here, its_bias, betas[1])
        elif np.isnan(betas[0]):
            sums[r * column_tiles + column] = _sigmoids_and_sum(here, its_bias)
        else:
            sums[r * column_tiles + column] = _sigmoids_and_rise(here, its_bias, betas[1], betas[0])
    if sample.size > 0:
        runs = bottom - top if column_tiles > 1 else 1  # whole rows lie together and share tiles of the random stream
        length = (bottom - top) * (right - left) // runs
        for r in range(top, top + runs):
            begin = r * n + left
            _bernoulli_run(mean, key, sample, begin, begin + length)


_NO_KEY = np.zeros(3, np.uint64)
_NO_SUMS = np.empty((0, 0), np.float64)
_UNTEMPERED = {dtype: np.array([np.nan, 1], dtype) for dtype in FLOATS}


def _half_step(
    states: Array,
    weight: Array,
    bias: Array,
    mean: Array,
    sample: Array,
    key: Array,
    units: str,
    sums: Array = _NO_SUMS,
    betas: Array | None = None,
) -> None:
    """Means, samples (unless that has no elements) and sums of softplus of the units that `weight` leads to.

    With `betas`, the inverse temperatures before and now, as `_bernoulli` has them.
    """
    if mean.size == 0:
        sums.fill(0)
    elif units == "gaussian":
        dense.linear((states, weight, bias), (mean,), (), {})
        if betas is not None:
            np.multiply(mean, betas[1], out=mean)
        rng.normal((key,), (sample,), (), {})
        np.add(sample, mean, out=sample)
    else:
        (m, k), n = states.shape, weight.shape[0]
        row_tiles, column_tiles = tiles(m, k, n)
        arguments, alive = dense.operands(states, weight.T)
        bias = np.ascontiguousarray(bias)
        betas = _UNTEMPERED[mean.dtype.name] if betas is None else betas
        with blas.single_threaded():
            _bernoulli(
                row_tiles * column_tiles, *arguments, mean, bias, sample, sums, betas, key, m, k, n, row_tiles,
                column_tiles,
            )  # fmt: skip


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


def _free_energy(
    visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, hidden_mean: Array, sample: Array,
    key: Array, sums: Array, difference: Array, energy: Array, units: str,
) -> None:  # fmt: skip
    """Free energies and hidden means, and a sample of those unless it has no elements."""
    _half_step(visible, weight, hidden_bias, hidden_mean, sample, key, "bernoulli", sums)
    with blas.single_threaded():
        if units == "gaussian":
            np.subtract(visible, visible_bias, out=difference)
            np.einsum("ij,ij->i", difference, difference, out=energy)
            energy *= 0.5
        else:
            np.matmul(visible, visible_bias, out=energy)
            np.negative(energy, out=energy)
    for part in sums.T:
        np.subtract(energy, part, out=energy, casting="same_kind")


def free_energy(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    visible, weight, visible_bias, hidden_bias = inputs
    energy, hidden_mean = outputs
    room, sums, difference = workspace
    _free_energy(
        _load(visible, room), weight, visible_bias, hidden_bias, hidden_mean, hidden_mean[:0], _NO_KEY, sums,
        difference, energy, attrs["units"],
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Contrastive divergence
# ---------------------------------------------------------------------------------------------------------


@jitable
def _difference(function, wide, out, at, lda, m, n, a, a2, b, b2, rows, rows2, scale, ldb, ldout):
    """out = scale[0] a^T b + scale[1] a2^T b2, an (m, n) matrix from element `at` on."""
    target = out.ctypes.data + out.itemsize * at
    gemm(function, wide, out, TRANS, NO_TRANS, m, n, rows, scale[0], a, lda, b, ldb, scale[2], target, ldout)
    gemm(function, wide, out, TRANS, NO_TRANS, m, n, rows2, scale[1], a2, lda, b2, ldb, scale[3], target, ldout)


@block_kernel
def _statistics(
    block,
    function,
    wide,
    h,
    h2,
    v,
    v2,
    ones,
    scale,
    d_weight,
    d_visible,
    d_hidden,
    rows,
    rows2,
    row_tiles,
    column_tiles,
):
    """Means of h2 v2^T, v2 and h2 over their rows, minus those of h v^T, v and h, tile by tile."""
    hidden, visible, item = d_hidden.size, d_visible.size, d_weight.itemsize
    row, column = block // column_tiles, block % column_tiles
    top, bottom = edge(row, row_tiles, hidden), edge(row + 1, row_tiles, hidden)
    left, right = edge(column, column_tiles, visible), edge(column + 1, column_tiles, visible)
    one = ones.ctypes.data
    h, h2, v, v2 = h + item * top, h2 + item * top, v + item * left, v2 + item * left
    m, n = bottom - top, right - left
    _difference(
        function, wide, d_weight, top * visible + left, hidden, m, n, h, h2, v, v2, rows, rows2, scale, visible, visible
    )
    if row == 0:
        _difference(function, wide, d_visible, left, 1, 1, n, one, one, v, v2, rows, rows2, scale, visible, visible)
    if column == 0:
        _difference(function, wide, d_hidden, top, hidden, m, 1, h, h2, one, one, rows, rows2, scale, 1, 1)


def contrastive_divergence(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """Where the chain starts at the data, the hidden means of the positive phase are those of its first step."""
    data, chain, weight, visible_bias, hidden_bias, key = inputs
    *statistics, visible_out, loss = outputs
    (
        data_room, chain_room, data_hidden, chain_hidden, hidden, visible_mean, data_sums, chain_sums, difference,
        data_energy, chain_energy, ones,
    ) = workspace  # fmt: skip
    units, steps = attrs["units"], attrs["steps"]
    parameters = weight, visible_bias, hidden_bias
    from_data = chain is data
    positive = _load(data, data_room)
    start = positive if from_data else _load(chain, chain_room)
    visible = visible_out if visible_out.dtype == weight.dtype else chain_room

    first = hidden if from_data else hidden[:0]
    first_key = step_key(key, 0, weight.shape[0])
    _free_energy(
        positive, *parameters, data_hidden, first, first_key, data_sums, difference[: len(data)], data_energy, units
    )
    _steps(start, *parameters, key, int(from_data), steps, units, visible, visible_mean, hidden, chain_hidden)
    _free_energy(
        visible,
        *parameters,
        chain_hidden,
        hidden[:0],
        _NO_KEY,
        chain_sums,
        difference[: len(chain)],
        chain_energy,
        units,
    )
    ones.fill(1)
    scale = np.array([-1 / len(data), 1 / len(chain), 0, 1], weight.dtype)
    row_tiles, column_tiles = tiles(weight.shape[0], len(data) + len(chain), weight.shape[1])
    library = blas.find()
    assert library is not None
    with blas.single_threaded():
        _statistics(
            row_tiles * column_tiles, library.gemm_address(weight.dtype), int(library.wide), address(data_hidden),
            address(chain_hidden), address(positive), address(visible), ones, scale, *statistics, len(data), len(chain),
            row_tiles, column_tiles,
        )  # fmt: skip
    loss[...] = np.mean(data_energy, dtype=np.float64) - np.mean(chain_energy, dtype=np.float64)
    _store(visible, visible_out)


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
    sample = visible_out if visible_out.dtype == weight.dtype else room
    constant = 0.5 * (np.sum(base_bias**2.0) - np.sum(visible_bias**2.0)) if units == "gaussian" else 0.0
    log_weight.fill(0)
    for step in range(len(temperatures) - 1):
        # In the dtype of the weight, so that what a step ends with is what the next begins with.
        before, beta = real(temperatures[step]), real(temperatures[step + 1])
        betas = np.array([before, beta])
        hidden_key = step_key(key, 2 * step, weight.shape[0])
        _half_step(x, weight, hidden_bias, hidden_mean, hidden, hidden_key, "bernoulli", sums, betas)
        for part in sums.T:
            log_weight += part
        np.subtract(visible_bias, base_bias, out=bias)
        with blas.single_threaded():
            np.matmul(x, bias, out=own)
        np.multiply(own, beta - before, out=own)
        log_weight += own
        log_weight += (float(beta) - float(before)) * constant
        np.multiply(base_bias, (1 - beta) / beta, out=bias)
        np.add(bias, visible_bias, out=bias)
        visible_key = step_key(key, 2 * step + 1, weight.shape[1])
        _half_step(hidden, weight.T, bias, visible_mean, sample, visible_key, units, _NO_SUMS, betas)
        x = sample
    if x is not sample:
        np.copyto(sample, x)
    _store(sample, visible_out)


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
    for sweep in range(attrs["sweeps"]):
        rng.random_words((step_key(key, sweep, n),), (words,), (), {})
        with blas.single_threaded():
            _sweep(
                -(-rows // rows_per_block), library.gemm_address(x.dtype), int(library.wide), x, weight, bias,
                clamped.view(np.uint8), words, field, rows, rows_per_block,
            )  # fmt: skip
    _store(x, out)
