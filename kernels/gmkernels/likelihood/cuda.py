"""Launches of log-likelihoods in CUDA C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels import launch, teams
from gmkernels.dense.cuda import ELEMENTS, RUNS, TILES, Copy, Tile, copy_of
from gmkernels.likelihood.spec import GPU_CHUNK, GPU_COLUMNS, chunks, gpu_backward_workspace
from gmkernels.registry import Array

Arrays = Sequence[Array]


def _launch(name: str, logits: Array, x: Array, arrays: Arrays) -> None:
    """Launch a kernel over the pieces of the rows of logits."""
    length = logits.shape[-1]
    rows, pieces, piece = logits.size // length, chunks(length, GPU_CHUNK), min(length, GPU_CHUNK)
    width, kind = teams.wide(length, logits.itemsize)
    lanes = teams.lanes_of(piece, width)
    grid, block = teams.of_rows(rows * pieces, lanes)
    numbers = (rows, length, x.size // length, lanes, pieces, piece)
    launch.cuda("likelihood", f"{name}_{kind}", logits.dtype, grid, block, (*arrays, *numbers))


def bernoulli_log_prob(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    logits, x = inputs
    (log_prob,) = outputs
    if logits.size == 0:
        log_prob[...] = 0  # sums of nothing, if there are any
    elif not workspace:
        _launch("log_prob", logits, x, (logits, x, log_prob))
    else:
        (sums,) = workspace
        _launch("log_prob_pieces", logits, x, (logits, x, sums))
        _add_rows(sums, log_prob.size, sums.shape[-1], logits.dtype, log_prob)


def bernoulli_log_prob_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    _, logits, x = inputs
    if logits.size:
        _launch("log_prob_backward", logits, x, (*inputs, *outputs))


# ---------------------------------------------------------------------------------------------------------
# Of a linear layer whose output is not stored
# ---------------------------------------------------------------------------------------------------------

# Of the logits, and of the gradient. They hold few rows, so that there are many; and as many columns as there may be,
# because each block of columns makes the logits anew.
_GRADIENT_TILES = {
    4: Tile(32, 256, 16, 32, 32, 2, 2),
    8: Tile(32, 128, 16, 32, 16, 2, 1),
    2: Tile(32, 256, 32, 32, 32, 2, 2),
}
"""By bytes of an element."""


def _add_rows(sums: Array, rows: int, length: int, dtype: Any, out: Array) -> None:
    """out = the sums of rows of partial sums in float64."""
    lanes = teams.lanes_of(length, 1)
    grid, block = teams.of_rows(rows, lanes)
    launch.cuda("likelihood", "add_pieces", dtype, grid, block, (sums, out, rows, length, lanes))


def _add_parts(parts: Array, out: Array) -> None:
    arguments = (parts, None, np.int64(0), out, out.size, max(out.size, 1), len(parts), 0)
    launch.cuda("dense", "add_parts", out.dtype, (-(-out.size // 128),), (128,), arguments)


def linear_bernoulli_log_prob(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    h, weight, bias, x = inputs
    (log_prob,) = outputs
    (sums,) = workspace
    rows, (n, k) = log_prob.size, weight.shape
    if rows * n == 0:
        log_prob[...] = 0  # sums of nothing, if there are any
        return
    tile = TILES[h.dtype.name][GPU_COLUMNS]
    copies, strips = (copy_of(h, k, 1), copy_of(weight, k, 1)), chunks(n, GPU_COLUMNS)
    launch.cuda(
        "likelihood", "linear_log_prob", h.dtype, (-(-rows // tile.m) * strips,), (tile.threads,),
        (h, weight, bias, x, sums, rows, n, k, x.size // n, strips),
        shared=tile.shared(*copies, h.itemsize), defines=tile.defines(*copies),
    )  # fmt: skip
    _add_rows(sums, rows, strips, h.dtype, log_prob)


def _shared(tile: Tile, own: Copy, other: Copy, itemsize: int) -> int:
    """Bytes of shared memory: the steps of one product or the other, and the residuals."""
    pad = 8 if itemsize == 2 else 4
    steps = max(tile.shared(own, other, itemsize), tile.stages * tile.k * (tile.n + pad) * itemsize)
    residuals = tile.n * (tile.m + pad) if itemsize == 4 else tile.m * (tile.n + pad)
    return steps + residuals * (2 if itemsize == 2 else 1) * itemsize


def _copy_of_few(own: Array) -> Copy:
    """How a step of few rows is copied, so that each thread has something of it."""
    copy = copy_of(own, own.shape[1], 1)
    if own.itemsize == 8 and copy.way == RUNS:
        return copy._replace(way=ELEMENTS)
    return copy._replace(together=min(copy.together, 8)) if own.itemsize == 2 else copy


def _gradient(
    name: str, own: Array, other: Array, bias: Array, x: Array, g: Array, x_rows: int, parts: Arrays, *outs: Array
) -> None:
    """The sums over rows of `other`, in parts if there are any, which then are added."""
    (n, k), m = other.shape, len(own)
    tile, count = _GRADIENT_TILES[own.itemsize], len(parts[0]) if parts else 1
    copies = _copy_of_few(own), copy_of(other, k, 1), copy_of(other, 1, k)
    slices = max(1, -(-k // tile.n))  # of no columns there is the sum of the residuals
    out, sums = (*outs, None)[:2]
    partial, partial_sums = (*parts, None, None)[:2]
    launch.cuda(
        "likelihood", name, own.dtype, (-(-m // tile.m) * slices, count), (tile.threads,),
        (own, other, bias, x, g, out, partial, sums, partial_sums, m, n, k, x_rows, -(-n // count), slices),
        shared=_shared(tile, *copies[:2], own.itemsize),
        defines=(*tile.defines(*copies[:2]), f"C_COPY={copies[2].way}", f"C_BYTES={copies[2].together}"),
    )  # fmt: skip
    for found, total in zip(parts, outs, strict=False):  # none where there is one part
        _add_parts(found, total)


def linear_bernoulli_log_prob_backward(
    inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]
) -> None:
    g, h, weight, bias, x = inputs
    d_h, d_weight, d_bias = outputs
    rows, (n, k) = g.size, weight.shape
    if rows * n == 0:
        for empty in outputs:
            empty[...] = 0  # sums of nothing, if there are any
        return
    by_row, of_h = h.reshape(rows, k), len(gpu_backward_workspace(h, weight)[0])
    layer = bias, x, g, x.size // n
    if k > 0:
        _gradient("gradient_of_rows", by_row, weight, *layer, workspace[:of_h], d_h)
    _gradient("gradient_of_weight", weight, by_row, *layer, workspace[of_h:], d_weight, d_bias)
