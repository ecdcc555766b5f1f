"""Launches of the importance-weighted bound in CUDA C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gmkernels import launch, teams
from gmkernels.iwae.spec import gpu_pieces, split
from gmkernels.registry import Array

Arrays = Sequence[Array]


def _launch(name: str, log_w: Array, axis: int, arrays: Sequence[Array | None]) -> None:
    """Launch the kernel for columns, or that for rows where the samples are neighbours."""
    outer, samples, inner = split(log_w.shape, axis)
    columns = outer * inner
    pieces, piece = gpu_pieces(outer, samples, inner)
    width, kind = teams.wide(samples if inner == 1 else inner, log_w.itemsize)
    if inner == 1:
        lanes = teams.lanes_of(piece, width)
        grid, block = teams.of_rows(columns * pieces, lanes)
        numbers = (samples, columns, lanes, pieces, piece)
        launch.cuda("iwae", f"{name}_rows_{kind}", log_w.dtype, grid, block, (*arrays, *numbers))
    else:
        grid, block, slice_ = teams.of_columns(columns // width, piece, pieces)
        numbers = (samples, inner, columns, piece, slice_)
        launch.cuda("iwae", f"{name}_columns_{kind}", log_w.dtype, grid, block, (*arrays, *numbers))


def iwae_bound(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    (log_w,) = inputs
    bound = outputs[0]
    sums = tuple(workspace) or (None, None)
    _launch("iwae", log_w, attrs["axis"], (log_w, *outputs, *sums))
    if workspace:
        samples, pieces = log_w.shape[attrs["axis"]], len(workspace[0])
        lanes = teams.lanes_of(pieces, 1)
        grid, block = teams.of_rows(bound.size, lanes)
        numbers = (samples, bound.size, pieces, lanes)
        launch.cuda("iwae", "iwae_join", log_w.dtype, grid, block, (*workspace, *outputs, *numbers))


def iwae_bound_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    _launch("iwae_backward", inputs[1], attrs["axis"], (*inputs, *outputs))
