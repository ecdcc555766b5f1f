"""Launches of log-likelihoods in CUDA C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gmkernels import launch, teams
from gmkernels.dense.cuda import linear, matmul
from gmkernels.likelihood.spec import GPU_CHUNK, chunks, gpu_backward_products, gpu_linear_workspace
from gmkernels.registry import Array

Arrays = Sequence[Array]
THREADS = 256


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
        rows, pieces = log_prob.size, sums.shape[-1]
        lanes = teams.lanes_of(pieces, 1)
        grid, block = teams.of_rows(rows, lanes)
        launch.cuda("likelihood", "add_pieces", logits.dtype, grid, block, (sums, log_prob, rows, pieces, lanes))


def bernoulli_log_prob_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    _, logits, x = inputs
    if logits.size:
        _launch("log_prob_backward", logits, x, (*inputs, *outputs))


def linear_bernoulli_log_prob(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    """The residuals take the place of the logits."""
    h, weight, bias, x = inputs
    log_prob, residual = outputs
    product = len(gpu_linear_workspace(h, weight)[0])
    linear((h, weight, bias), (residual,), workspace[:product], {})
    bernoulli_log_prob((residual, x), (log_prob,), workspace[product:], {})
    if residual.size:
        _launch("log_prob_backward", residual, x, (None, residual, x, residual))


def linear_bernoulli_log_prob_backward(
    inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]
) -> None:
    g, residual, h, weight = inputs
    d_h, d_weight, d_bias = outputs
    scaled, *scratch = workspace
    rows, (n, k) = g.size, weight.shape
    by_row = residual.reshape(rows, n)
    _scale_rows(g, h, scaled)
    products = (
        (by_row, weight, d_h.reshape(rows, k)),
        (by_row.T, scaled.reshape(rows, k), d_weight),
        (g.reshape(1, rows), by_row, d_bias.reshape(1, n)),
    )
    for (a, b, c), layout in zip(products, gpu_backward_products(residual, weight), strict=True):
        matmul((a, b), (c,), scratch[: len(layout)], {})
        del scratch[: len(layout)]
    _scale_rows(g, d_h, d_h)


def _scale_rows(g: Array, x: Array, out: Array) -> None:
    arguments = (g, x, out, x.size, x.shape[-1])
    launch.cuda("likelihood", "scale_rows", x.dtype, (-(-x.size // THREADS),), (THREADS,), arguments)
