"""Sampling in CUDA C: the launchers of ``cuda.cu``, which choose how threads share the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gmkernels import launch
from gmkernels.sampling.spec import CHUNK, chunks, kept_below

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

THREADS = 256
"""Of a block: as in the .cu file."""
FULL = 2**17
"""Threads that occupy a large GPU. Work is split alike on all devices, so that sums are the same."""
MOST_TURNS = 16
"""Groups of four that a thread adds one after another: more would lose accuracy."""
MOST_SAMPLES = 65535
"""Blocks along the second axis of a grid."""


class Split(NamedTuple):
    """How threads share rows: see the .cu file."""

    pieces: int
    team: int
    repeats: int
    blocks: int


def split(rows: int, width: int, slices: int = 1) -> Split:
    """The split of rows of a width that takes the least time, of which sums depend on the shape only.

    Parameters
    ----------
    rows, width : of the array.
    slices : teams that share a piece.
    """
    pieces = chunks(width)
    groups = max(1, -(-min(width, CHUNK) // 4))

    def turns(team: int) -> int:
        return -(-groups // team)

    def time(team: int) -> float:
        """In groups, of all threads; the sums at the end of a piece take as long as a quarter of one."""
        return max(rows * pieces * team * slices, FULL) * (turns(team) + 0.25)

    teams = [2**k for k in range(THREADS.bit_length()) if 2**k * slices <= THREADS]
    allowed = [team for team in teams if turns(team) <= MOST_TURNS and (team >= 4 or team >= groups)] or teams[-1:]
    team = min(allowed, key=lambda t: (time(t), -t))
    repeats = max(1, min(4 // turns(team), rows * pieces * team * slices // FULL))
    blocks = -(-rows * pieces * team * slices // (THREADS * repeats))
    return Split(pieces, team, repeats, blocks)


def gaussian_sample(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    mu, logvar, key = inputs
    z, kl, log_q = outputs
    if log_q.size == 0:
        return
    samples, rows, width = log_q.size // kl.size, kl.size, mu.shape[-1]
    pieces, team, repeats, blocks = split(rows, width)
    grid = (blocks, min(samples, MOST_SAMPLES))
    arguments = (mu, logvar, key, z, kl, log_q, *workspace, samples, rows, width, pieces, team, repeats)
    launch.cuda("sampling", "gaussian_sample", mu.dtype, grid, (THREADS,), arguments)
    if pieces > 1:
        for parts, sums in zip(workspace, (kl, log_q), strict=True):
            blocks = min(sums.size, MOST_SAMPLES)
            launch.cuda("sampling", "add_pieces", mu.dtype, (blocks,), (THREADS,), (parts, sums, sums.size, pieces))


def gaussian_sample_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_z, g_kl, g_log_q, mu, logvar, key = inputs
    if mu.size == 0:
        return
    samples, rows, width = g_z.size // mu.size, g_kl.size, mu.shape[-1]
    if samples == 1:
        pieces, team, repeats, blocks = split(rows, width)
        arguments = (*inputs, *outputs, rows, width, pieces, team, repeats)
        launch.cuda("sampling", "gaussian_sample_backward", mu.dtype, (blocks,), (THREADS,), arguments)
        return
    slices = 1
    while slices < 16 and 2 * slices <= samples and mu.size // 4 * slices < FULL:
        slices *= 2
    pieces, team, repeats, blocks = split(rows, width, slices)
    arguments = (*inputs, *outputs, samples, rows, width, pieces, team, slices, repeats)
    launch.cuda("sampling", "gaussian_samples_backward", mu.dtype, (blocks,), (THREADS,), arguments)


def _each_sample(name: str, x: Any, key: Any, out: Any, numbers: Sequence[Any]) -> None:
    if out.size == 0:
        return
    pieces, team, repeats, blocks = split(out.size // x.size, x.size)
    arguments = (x, key, out, *numbers, x.size, pieces, team, repeats)
    launch.cuda("sampling", name, x.dtype, (blocks,), (THREADS,), arguments)


def bernoulli_sample(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (probs, key), (sample,) = inputs, outputs
    _each_sample("bernoulli_sample", probs, key, sample, (sample.size // max(probs.size, 1),))


def bernoulli_sample_logits(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (logits, key), (sample,) = inputs, outputs
    _each_sample("bernoulli_sample_logits", logits, key, sample, (sample.size // max(logits.size, 1),))


def dropout(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (x, key), (y,), p = inputs, outputs, attrs["p"]
    scale = 0.0 if p == 1 else 1 / (1 - p)
    _each_sample("dropout", x, key, y, (np.uint64(kept_below(p)), scale))
