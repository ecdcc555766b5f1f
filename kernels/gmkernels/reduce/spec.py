"""Contracts of sums over axes, and how a sum is cut into stages."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gmkernels.arrays import on_gpu
from gmkernels.cost import Cost
from gmkernels.registry import FLOATS, HALVES, Array, Example, KernelError, KernelSpec, Layout

Shape = tuple[int, ...]

# ---------------------------------------------------------------------------------------------------------
# Stages
# ---------------------------------------------------------------------------------------------------------

BLOCK = 32768  # elements of a block: 128 kB of float32, about 8 us
STRIP = 512  # most sums that are added up side by side
_SHORTEST = 64  # numbers that a piece of an axis adds up, at least: so what is left is small


class Cut(NamedTuple):
    """What a stage is cut by: elements of a block, sums side by side, tiles that are enough for a device, and what the
    length of a piece is a multiple of."""

    block: int
    strip: int
    enough: int
    unit: int


CPU = Cut(BLOCK, STRIP, 64, 1)  # as many threads
GPU = Cut(8192, 64, 1024, 16)  # eight tiles for each multiprocessor of the largest, and pieces that vectors fit


class Stage(NamedTuple):
    """A pass over an array that adds up along one axis, or along each of the pieces into which it cuts that."""

    shape: Shape
    """Of what it reads."""
    axis: int
    piece: int
    """Length of a piece; the last may be shorter."""
    pieces: int

    @property
    def left(self) -> Shape:
        """Shape of what it writes."""
        return (*self.shape[: self.axis], self.pieces, *self.shape[self.axis + 1 :])


def _merged(axes: list[tuple[int, bool]]) -> list[tuple[int, bool]]:
    """(length, whether it is summed) of axes, neighbours of a kind as one, without those of length 1."""
    found: list[tuple[int, bool]] = []
    for length, summed in axes:
        if length != 1 and found and found[-1][1] == summed:
            found[-1] = (found[-1][0] * length, summed)
        elif length != 1:
            found.append((length, summed))
    return found


@functools.lru_cache(1024)
def stages(shape: Shape, axes: Shape, contiguous: bool, cut: Cut = CPU) -> tuple[Stage, ...]:
    """The passes of a sum over `axes`, the longest axis first. What lies between two is C-contiguous and float64.

    Neighbouring axes of a contiguous array count as one. The axes of length 1 are left out; if none is left to sum,
    there is one in front.
    """
    left = [(length, i in axes) for i, length in enumerate(shape) if length != 1]
    if contiguous:
        left = _merged(left)
    if not any(summed for _, summed in left):
        left.insert(0, (1, True))
    found: list[Stage] = []
    while not found or any(summed for _, summed in left):
        lengths = tuple([length for length, _ in left])
        axis = max([i for i, (_, summed) in enumerate(left) if summed], key=lengths.__getitem__)
        length, sums = lengths[axis], math.prod(lengths[:axis] + lengths[axis + 1 :])
        tiles = sums if axis + 1 == len(lengths) else -(-sums // cut.strip)
        pieces = max(1, min(-(-length * sums // cut.block), length // _SHORTEST, cut.enough // max(1, tiles)))
        piece = max(1, -(-length // pieces))
        if pieces > 1:
            piece = -(-piece // cut.unit) * cut.unit
        pieces = max(1, -(-length // piece))
        if contiguous or found:  # the axes before it are one, and those after it
            whole = math.prod(lengths[:axis]), length, math.prod(lengths[axis + 1 :])
            found.append(Stage(whole, 1, piece, pieces))
        else:
            found.append(Stage(lengths, axis, piece, pieces))
        left[axis] = (pieces, True)
        left = _merged(left)
    return tuple(found)


def _between(x: Array, axes: Shape) -> Layout:
    """What lies between the stages. Kernels on a GPU are given contiguous arrays."""
    cut = stages(x.shape, axes, True, GPU) if on_gpu(x) else stages(x.shape, axes, x.flags.c_contiguous)
    return [((math.prod(s.left),), np.float64) for s in cut[:-1]]


# ---------------------------------------------------------------------------------------------------------
# sum
# ---------------------------------------------------------------------------------------------------------


def _require_float(op: str, x: Array) -> None:
    if x.dtype.name not in FLOATS + HALVES:
        raise KernelError(f"{op}: expected x {' or '.join(FLOATS)}, got {x.dtype}{list(x.shape)}")


def _sum_infer(x: Array, *, axis: Shape, keepdims: bool) -> Layout:
    _require_float("sum", x)
    if list(axis) != sorted(set(axis)) or (axis and not 0 <= axis[0] <= axis[-1] < x.ndim):
        raise KernelError(f"sum: expected axes of x {list(x.shape)} as a sorted tuple from 0, got {axis}")
    if keepdims:
        return [(tuple([1 if i in axis else n for i, n in enumerate(x.shape)]), x.dtype)]
    return [(tuple([n for i, n in enumerate(x.shape) if i not in axis]), x.dtype)]


def _cost(x: Array, **attrs: Any) -> Cost:
    return Cost(bytes=x.nbytes, slots=x.size)


_CASES: tuple[tuple[Shape, Shape], ...] = (
    ((), ()), ((1,), (0,)), ((7,), (0,)), ((3, 0), (0,)), ((3, 0), (1,)), ((3, 5), ()), ((32, 1), (0, 1)),
    ((1, 100), (0,)), ((127, 129), (0,)), ((127, 129), (1,)), ((5, 3, 1, 7), (1,)), ((3, 4, 5, 6), (0, 2)),
    ((11, 6, 5, 5), (0, 2, 3)), ((3, 5, 7, 2, 2), (1, 3)), ((1031, 65), (0,)), ((2, 40009), (1,)), ((80021,), (0,)),
    ((3, 13, 1201), (1, 2)),
)  # fmt: skip


def _inputs(rng: np.random.Generator, dtype: Any) -> Iterator[tuple[np.ndarray, Shape]]:
    for shape, axes in _CASES:
        yield np.asarray(rng.standard_normal(shape), dtype), axes
    inf, nan = np.inf, np.nan
    special = np.array([[inf, 1, 2], [-inf, 0, 3], [inf, -inf, 0], [nan, inf, 1], [0, -0.0, 0]], dtype)
    yield special, (1,)
    yield np.repeat(special.T, 9, axis=1), (0,)


def _sum_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for i, (x, axes) in enumerate(_inputs(rng, dtype)):
        yield Example((x,), {"axis": axes, "keepdims": i % 2 == 1})


_SOURCE = "Higham, The accuracy of floating point summation, SIAM J. Sci. Comput. 14(4), 1993: in several lanes"
# float32 is added in float64, and rounded at the end: 6e-8 relative. In float64 n terms of size 1 add up to about
# sqrt(n), and n roundings of that, like a random walk, to n u: 1e-11 for 80021, and as much in the reference.
_TOLERANCE = {"float32": (6e-8, 2e-11), "float64": (3e-16, 2e-11)}

SUM = KernelSpec(
    name="sum",
    family="reduce",
    inputs=("x",),
    outputs=("y",),
    infer=_sum_infer,
    workspace=lambda x, *, axis, keepdims: _between(x, axis),
    cost=_cost,
    examples=_sum_examples,
    formula="y = sum of x over the axes, of float32 in float64; 0 of no elements",
    source=_SOURCE,
    tolerance=_TOLERANCE,
)


# ---------------------------------------------------------------------------------------------------------
# sum_to
# ---------------------------------------------------------------------------------------------------------


def broadcast_axes(large: Shape, small: Shape) -> Shape:
    """The axes of a large shape along which a small one is broadcast to it."""
    lead = len(large) - len(small)
    return tuple([i for i, n in enumerate(large) if i < lead or (small[i - lead] == 1 and n != 1)])


def _sum_to_infer(x: Array, *, shape: Shape) -> Layout:
    _require_float("sum_to", x)
    lead = x.ndim - len(shape)
    if lead < 0 or any(n not in (1, m) for n, m in zip(shape, x.shape[lead:], strict=True)):
        raise KernelError(f"sum_to: expected a shape that broadcasts to that of x, {list(x.shape)}, got {list(shape)}")
    return [(shape, x.dtype)]


def _sum_to_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for x, axes in _inputs(rng, dtype):
        shape = tuple([1 if i in axes else n for i, n in enumerate(x.shape)])
        lead = next((i for i, n in enumerate(shape) if n != 1), len(shape))
        yield Example((x,), {"shape": shape[lead // 2 :]})


SUM_TO = KernelSpec(
    name="sum_to",
    family="reduce",
    inputs=("x",),
    outputs=("y",),
    infer=_sum_to_infer,
    workspace=lambda x, *, shape: _between(x, broadcast_axes(x.shape, shape)),
    cost=_cost,
    examples=_sum_to_examples,
    formula="y = sum of x over the axes along which the shape is broadcast to that of x",
    source="the adjoint of broadcasting; " + _SOURCE,
    tolerance=_TOLERANCE,
)
