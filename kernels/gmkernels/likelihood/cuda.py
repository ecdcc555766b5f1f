"""Launches of log-likelihoods in CUDA C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gmkernels import launch, teams
from gmkernels.likelihood.spec import GPU_CHUNK, chunks
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
        rows, pieces = log_prob.size, sums.shape[-1]
        lanes = teams.lanes_of(pieces, 1)
        grid, block = teams.of_rows(rows, lanes)
        launch.cuda("likelihood", "add_pieces", logits.dtype, grid, block, (sums, log_prob, rows, pieces, lanes))


def bernoulli_log_prob_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    _, logits, x = inputs
    if logits.size:
        _launch("log_prob_backward", logits, x, (*inputs, *outputs))
