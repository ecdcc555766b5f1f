"""Launches of the look-up of rows and of their sums in CUDA C."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gmkernels import launch, teams
from gmkernels.registry import Array

Arrays = Sequence[Array]

_FULL = 1024
"""Blocks from which on a thread may take several columns: fewer leave a large device idle."""


def gather_rows(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    table, index = inputs
    columns = math.prod(table.shape[1:])
    width, kind = teams.wide(columns, table.itemsize)
    groups = columns // width
    grid = (-(-index.size * groups // teams.BLOCK),)
    arguments = (table, index, outputs[0], index.size, len(table), groups)
    launch.cuda("indexing", f"gather_rows_{kind}", table.dtype, grid, (teams.BLOCK,), arguments)


def scatter_add_rows(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    (x, index), (out,) = inputs, outputs
    columns = math.prod(out.shape[1:])
    width, kind = teams.wide(columns, x.itemsize)
    if len(out) * -(-columns // (width * teams.BLOCK)) < _FULL:
        width, kind = 1, "1"
    tiles = -(-columns // (width * teams.BLOCK))
    arguments = (x, index, out, index.size, len(out), columns, tiles)
    launch.cuda("indexing", f"scatter_add_rows_{kind}", x.dtype, (len(out) * tiles,), (teams.BLOCK,), arguments)
