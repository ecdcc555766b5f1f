"""Launches of elementwise activations in CUDA C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gmkernels import launch
from gmkernels.registry import Array
from gmkernels.teams import BLOCK

Arrays = Sequence[Array]

_BYTES = 4 * 16 * BLOCK
"""Of an array, that a block takes: four times 128 bits for each thread."""


def _launch(name: str, arrays: Arrays, attrs: Mapping[str, Any]) -> None:
    x = arrays[0]
    grid = (-(-x.nbytes // _BYTES),)
    launch.cuda("activation", name, x.dtype, grid, (BLOCK,), (*arrays, x.size, float(attrs["negative_slope"])))


def leaky_relu(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    _launch("leaky_relu", (*inputs, *outputs), attrs)


def leaky_relu_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    _launch("leaky_relu_backward", (*inputs, *outputs), attrs)
