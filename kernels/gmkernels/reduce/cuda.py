"""Launches of sums over axes in CUDA C: one for each stage of `spec.stages`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from gmkernels import launch, teams
from gmkernels.reduce.spec import GPU, Shape, Stage, broadcast_axes, stages
from gmkernels.registry import Array

Arrays = Sequence[Array]

_KERNELS = {(True, True): "whole", (True, False): "first", (False, False): "inner", (False, True): "last"}
"""Whether x is read, and whether y is written, to the names in ``cuda.cu``."""


def _launch(stage: Stage, which: str, dtype: Any, x: Array, y: Array) -> None:
    (outer, length, inner), _, piece, pieces = stage
    width, kind = teams.wide(length if inner == 1 else inner, x.itemsize)
    if inner == 1:
        lanes = teams.lanes_of(piece, width)
        grid, block = teams.of_rows(outer * pieces, lanes)
        arguments = (x, y, outer, length, lanes, pieces, piece)
        launch.cuda("reduce", f"sum_rows_{which}_{kind}", dtype, grid, block, arguments)
    else:
        grid, block, slice_ = teams.of_columns(outer * inner // width, piece, pieces)
        arguments = (x, y, outer * inner, length, inner, piece, slice_)
        launch.cuda("reduce", f"sum_columns_{which}_{kind}", dtype, grid, block, arguments)


def _sum_over(axes: Shape, x: Array, y: Array, workspace: Arrays) -> None:
    passes = stages(x.shape, axes, True, GPU)
    for i, (stage, (source, target)) in enumerate(zip(passes, itertools.pairwise((x, *workspace, y)), strict=True)):
        _launch(stage, _KERNELS[i == 0, i == len(passes) - 1], x.dtype, source, target)


def sum(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    _sum_over(attrs["axis"], inputs[0], outputs[0], workspace)


def sum_to(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    _sum_over(broadcast_axes(inputs[0].shape, attrs["shape"]), inputs[0], outputs[0], workspace)
