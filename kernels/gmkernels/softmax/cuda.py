"""Launches of softmax over rows in CUDA C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gmkernels import launch, teams
from gmkernels.registry import Array
from gmkernels.softmax.spec import gpu_pieces

Arrays = Sequence[Array]

_HELD = 16
"""Elements of a row that a thread holds, as in ``cuda.cu``."""
_LANES = 512
"""Most threads that hold a row."""


def softmax_cross_entropy(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    logits, _ = inputs
    rows, classes = logits.shape
    _, kind = teams.wide(classes, logits.itemsize)
    if not workspace:
        lanes = teams.lanes(classes, _HELD, _LANES)
        grid, block = teams.of_rows(rows, lanes)
        arguments = (*inputs, *outputs, rows, classes, lanes)
        launch.cuda("softmax", f"cross_entropy_{kind}", logits.dtype, grid, block, arguments)
    else:
        pieces, piece = gpu_pieces(rows, classes)
        grid, block, numbers = (rows * pieces,), (teams.BLOCK,), (rows, classes, pieces, piece)
        for name, arrays in (
            ("sums_of_pieces", (logits, *workspace)),
            ("cross_entropy_of_pieces", (*inputs, *workspace, *outputs)),
        ):
            launch.cuda("softmax", f"{name}_{kind}", logits.dtype, grid, block, (*arrays, *numbers))


def softmax_cross_entropy_backward(
    inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]
) -> None:
    probabilities = inputs[1]
    rows, classes = probabilities.shape
    width, kind = teams.wide(classes, probabilities.itemsize)
    pieces, piece = gpu_pieces(rows, classes)
    lanes = teams.lanes_of(piece, width)
    grid, block = teams.of_rows(rows * pieces, lanes)
    arguments = (*inputs, *outputs, rows, classes, lanes, pieces, piece)
    launch.cuda("softmax", f"cross_entropy_backward_{kind}", probabilities.dtype, grid, block, arguments)
