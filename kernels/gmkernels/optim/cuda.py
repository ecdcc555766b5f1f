"""Launches of what optimisers do to many arrays at once in CUDA C."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels import launch
from gmkernels.arrays import address
from gmkernels.optim import spec
from gmkernels.registry import Array, KernelSpec
from gmkernels.teams import BLOCK

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

_ROOM = 4072  # bytes of a table, as in cuda.cu
_UPDATED = 4096  # elements of a block of an update, as there


@functools.cache
def _table_type(arrays: int) -> np.dtype[Any]:
    """Of the struct `Table<arrays>` of ``cuda.cu``."""
    most = _ROOM // (8 * arrays + 12)
    fields = [
        ("array", "u8", (most, arrays)),
        ("size", "i8", (most,)),
        ("first", "i4", (most + 1,)),
        ("parameters", "i4"),
    ]
    return np.dtype(fields, align=True)


def _tables(chunk: int, *groups: Sequence[Array]) -> Iterator[tuple[int, Any]]:
    """Numbers of blocks, and the tables of as many parameters as a launch can name, in order.

    Parameters
    ----------
    chunk : elements of a block.
    groups : the first array of each parameter, the second ones, and so on.
    """
    kind = _table_type(len(groups))
    most = kind["size"].shape[0]
    parameters = [of_one for of_one in zip(*groups, strict=True) if of_one[0].size]
    for start in range(0, len(parameters), most):
        part = parameters[start : start + most]
        sizes = [of_one[0].size for of_one in part]
        first = list(itertools.accumulate((-(-size // chunk) for size in sizes), initial=0))
        table = np.zeros((), kind)
        table["array"][: len(part)] = [[address(a) for a in of_one] for of_one in part]
        table["size"][: len(part)] = sizes
        table["first"][: len(part) + 1] = first
        table["parameters"] = len(part)
        yield first[-1], table[()]


def _update(updated: KernelSpec, inputs: Arrays, outputs: Arrays) -> None:
    given, hyper = inputs
    spec.check_updated(updated, given, outputs)
    for blocks, table in _tables(_UPDATED, given, *outputs):
        launch.cuda("optim", updated.name, given[0].dtype, (blocks,), (BLOCK,), (table, hyper))


def sgd(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _update(spec.SGD, inputs, outputs)


def adam(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _update(spec.ADAM, inputs, outputs)


def adagrad(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _update(spec.ADAGRAD, inputs, outputs)


def rmsprop(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _update(spec.RMSPROP, inputs, outputs)


def adadelta(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _update(spec.ADADELTA, inputs, outputs)


def average(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _update(spec.AVERAGE, inputs, outputs)


def total_norm(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """A block adds the powers of a chunk; one block adds those of all chunks in an order of its own."""
    grads, (parts,) = inputs[0], workspace
    norm_type = float(attrs["norm_type"])
    name = {2.0: "squares_of_chunks", math.inf: "largest_of_chunks"}.get(norm_type, "powers_of_chunks")
    done = 0
    for blocks, table in _tables(spec.CHUNK, grads):
        launch.cuda("optim", name, grads[0].dtype, (blocks,), (BLOCK,), (table, parts, done, norm_type))
        done += blocks
    dtype = grads[0].dtype if grads else parts.dtype
    launch.cuda("optim", "norm_of_parts", dtype, (1,), (BLOCK,), (parts, outputs[0], done, norm_type))
