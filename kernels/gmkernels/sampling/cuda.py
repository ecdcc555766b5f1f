"""Sampling in CUDA C: the launchers of ``cuda.cu``, which choose how threads share the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gmkernels import launch
from gmkernels.sampling.spec import CHUNK, kept_below

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
    """How threads share rows, in the order of the kernels' parameters: see the .cu file."""

    pieces: int
    chunk: int
    team: int
    repeats: int


def split(rows: int, width: int, chunk: int = CHUNK, slices: int = 1) -> tuple[Split, int]:
    """The split of rows that takes the least time, and the blocks that it needs.

    Parameters
    ----------
    rows, width : of the array.
    chunk : longest piece of a row.
    slices : teams that share a piece.
    """
    pieces = max(1, -(-width // chunk))
    groups = max(1, -(-min(width, chunk) // 4))

    def turns(team: int) -> int:
        return -(-groups // team)

    def time(team: int) -> float:
        """In groups, of all threads; the end of a piece takes as long as a quarter of one."""
        return max(rows * pieces * team * slices, FULL) * (turns(team) + 0.25)

    widest = min(THREADS // slices, 1 << (groups - 1).bit_length())  # more would have nothing to do
    teams = [2**k for k in range(widest.bit_length())]
    enough = [team for team in teams if team >= min(4, widest) and turns(team) <= MOST_TURNS] or [widest]
    team = min(enough, key=lambda team: (time(team), -team))
    threads = rows * pieces * team * slices
    repeats = max(1, min(4 // turns(team), threads // FULL))
    return Split(pieces, chunk, team, repeats), -(-threads // (THREADS * repeats))


def _chunk(elements: int) -> int:
    """The longest piece where nothing is summed along a row: one to four groups a thread."""
    return 4 * THREADS * max(1, min(4, elements // (4 * FULL)))


def gaussian_sample(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    mu, logvar, key = inputs
    z, kl, log_q = outputs
    if log_q.size == 0:
        return
    samples, rows, width = log_q.size // kl.size, kl.size, mu.shape[-1]
    how, blocks = split(rows, width)
    grid = (blocks, min(samples, MOST_SAMPLES))
    arguments = (mu, logvar, key, z, kl, log_q, *workspace, samples, rows, width, *how)
    launch.cuda("sampling", "gaussian_sample", mu.dtype, grid, (THREADS,), arguments)
    if how.pieces > 1:
        for parts, sums in zip(workspace, (kl, log_q), strict=True):
            blocks = min(sums.size, MOST_SAMPLES)
            launch.cuda("sampling", "add_pieces", mu.dtype, (blocks,), (THREADS,), (parts, sums, sums.size, how.pieces))


def gaussian_sample_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_z, g_kl, g_log_q, mu, logvar, key = inputs
    if mu.size == 0:
        return
    samples, rows, width = g_z.size // mu.size, g_kl.size, mu.shape[-1]
    if samples == 1:
        how, blocks = split(rows, width, _chunk(mu.size))
        arguments = (*inputs, *outputs, rows, width, *how)
        launch.cuda("sampling", "gaussian_sample_backward", mu.dtype, (blocks,), (THREADS,), arguments)
        return
    slices = 1
    while slices < 16 and 2 * slices <= samples and mu.size // 4 * slices < FULL:
        slices *= 2
    how, blocks = split(rows, width, _chunk(mu.size), slices)
    arguments = (*inputs, *outputs, samples, slices, rows, width, *how)
    launch.cuda("sampling", "gaussian_samples_backward", mu.dtype, (blocks,), (THREADS,), arguments)


def _each_sample(name: str, x: Any, key: Any, out: Any, numbers: Sequence[Any]) -> None:
    if out.size == 0:
        return
    how, blocks = split(out.size // x.size, x.size, _chunk(x.size))
    arguments = (x, key, out, *numbers, x.size, *how)
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
