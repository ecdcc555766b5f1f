"""Operations that move elements about. Each one's derivative is another of them."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gmcore.errors import ArgumentError, DtypeError, ShapeError
from gmcore.op import Example, Op, user_line
from gmcore.ops.elementwise import real
from gmcore.tensor import Tensor, as_tensor


def _reshape_examples(rng: np.random.Generator) -> Iterator[Example]:
    for a, b in (((), (1,)), ((6,), (2, 3)), ((2, 3), (-1,)), ((0, 3), (3, 0)), ((2, 3, 4), (4, -1))):
        yield (real(rng, a), b), {}


_reshape: Op = Op(
    "reshape",
    "x",
    forward=lambda x, shape: x.reshape(shape),
    vjp=[lambda g, x_shape: _reshape(g, shape=x_shape)],
    formula="the same elements in C order, in another shape",
    view=True,
    examples=_reshape_examples,
)


def reshape(x: Any, shape: int | Sequence[int]) -> Tensor:
    """The elements of `x` in C order in `shape`; one length may be -1."""
    return _reshape(x, shape=(shape,) if isinstance(shape, int) else tuple(shape))


_reshape.public = reshape


def _transpose_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, axes in (((), None), ((3,), None), ((2, 3), None), ((2, 3, 4), (1, 2, 0)), ((0, 2), None)):
        yield (real(rng, shape), axes), {}


_transpose: Op = Op(
    "transpose",
    "x",
    forward=lambda x, axes: x.transpose(axes),
    vjp=[lambda g, axes: _transpose(g, axes=tuple(np.argsort(axes).tolist()))],
    formula="axes permuted",
    view=True,
    examples=_transpose_examples,
)


def transpose(x: Any, axes: Sequence[int] | None = None) -> Tensor:
    """Permute the axes; by default reverse them."""
    x = as_tensor(x)
    given = range(x.ndim)[::-1] if axes is None else axes
    order = tuple([operator.index(a) + (x.ndim if a < 0 else 0) for a in given])
    if sorted(order) != list(range(x.ndim)):
        raise ArgumentError(f"transpose: axes {axes} are no permutation of those of shape {x.shape} "
                            f"(called at {user_line()})")  # fmt: skip
    return _transpose(x, axes=order)


_transpose.public = transpose


def _broadcast_examples(rng: np.random.Generator) -> Iterator[Example]:
    for a, b in (((), (3,)), ((3,), (2, 3)), ((2, 1), (4, 2, 3)), ((1,), (0,)), ((2, 3), (2, 3))):
        yield (real(rng, a), b), {}


_broadcast_to = Op(
    "broadcast_to",
    "x",
    forward=lambda x, shape: np.broadcast_to(x, shape),
    vjp=[lambda g, x_shape: sum_to(g, x_shape)],
    formula="x repeated along new axes and axes of length 1",
    view=True,
    examples=_broadcast_examples,
)


def broadcast_to(x: Any, shape: Sequence[int]) -> Tensor:
    """`x` broadcast to `shape` by NumPy's rules, without a copy."""
    x, shape = as_tensor(x), tuple(shape)
    return x if x.shape == shape else _broadcast_to(x, shape=shape)


_broadcast_to.public = broadcast_to


def _sum_to_forward(x: Any, shape: tuple[int, ...]) -> Any:
    lead = x.ndim - len(shape)
    axes = tuple(range(lead)) + tuple(i + lead for i, n in enumerate(shape) if n == 1 and x.shape[i + lead] != 1)
    return np.sum(x, axis=axes, keepdims=True, dtype=x.dtype).reshape(shape)


def _sum_to_examples(rng: np.random.Generator) -> Iterator[Example]:
    for a, b in (((3,), ()), ((2, 3), (3,)), ((4, 2, 3), (2, 1)), ((0,), (1,)), ((2, 3), (2, 3))):
        yield (real(rng, a), b), {}


_sum_to = Op(
    "sum_to",
    "x",
    forward=_sum_to_forward,
    vjp=[lambda g, x_shape: broadcast_to(g, x_shape)],
    formula="sum over the axes along which `shape` was broadcast: the adjoint of broadcast_to",
    examples=_sum_to_examples,
)


def sum_to(x: Any, shape: Sequence[int]) -> Tensor:
    """Sum `x` down to `shape`, the adjoint of ``broadcast_to(_, x.shape)``."""
    x, shape = as_tensor(x), tuple(shape)
    if x.shape == shape:
        return x
    try:
        fits = np.broadcast_shapes(x.shape, shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ShapeError(f"sum_to: shape {shape} does not broadcast to {x.shape} (called at {user_line()})")
    return _sum_to(x, shape=shape)


_sum_to.public = sum_to


def expand_dims(x: Any, axis: int) -> Tensor:
    """A new axis of length 1 at position `axis`."""
    x = as_tensor(x)
    at = operator.index(axis) + (x.ndim + 1 if axis < 0 else 0)
    if not 0 <= at <= x.ndim:
        raise ArgumentError(f"expand_dims: axis {axis} does not fit shape {x.shape} (called at {user_line()})")
    return _reshape(x, shape=(*x.shape[:at], 1, *x.shape[at:]))


# -- indexing -------------------------------------------------------------------------------------------------
def _is_basic(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is Ellipsis or isinstance(p, (int, np.integer, slice)) for p in parts)


def _scatter_forward(g: Any, index: Any, shape: tuple[int, ...]) -> Any:
    out = np.zeros(shape, g.dtype)
    if _is_basic(index):
        out[index] = g
    else:
        np.add.at(out, index, g)
    return out


def _index_examples(rng: np.random.Generator) -> Iterator[tuple[np.ndarray, Any]]:
    x = real(rng, (4, 3))
    yield from ((x, 1), (x, (slice(None), -1)), (x, slice(None, None, -2)), (x, (Ellipsis, None, 0)))
    yield from ((x, np.array([0, 2, 2])), (x, (np.array([1, 1]), np.array([0, 0]))), (x, x > 0), (x, slice(4, 4)))


def _getitem_examples(rng: np.random.Generator) -> Iterator[Example]:
    for x, index in _index_examples(rng):
        yield (x, index), {}


def _scatter_examples(rng: np.random.Generator) -> Iterator[Example]:
    for x, index in _index_examples(rng):
        yield (real(rng, x[index].shape), index, x.shape), {}


_getitem = Op(
    "getitem",
    "x",
    forward=lambda x, index: x[index],
    vjp=[lambda g, index, x_shape: scatter_add(g, index, x_shape)],
    formula="x[index]",
    view=True,
    examples=_getitem_examples,
)
_scatter_add = Op(
    "scatter_add",
    "x",
    forward=_scatter_forward,
    vjp=[lambda g, index: _getitem(g, index=index)],
    formula="zeros of a shape with x added at index: the adjoint of x[index]",
    examples=_scatter_examples,
)


def _plain_index(index: Any) -> Any:
    """An index without tensors or lists in it. Raises `DtypeError` for a floating tensor."""
    if isinstance(index, tuple):
        return tuple([_plain_index(part) for part in index])
    if isinstance(index, list):
        index = np.asarray(index, dtype=np.int64 if not index else None)
    if isinstance(index, Tensor):
        index = index._data
    if isinstance(index, np.ndarray) and index.dtype.kind not in "iub":
        raise DtypeError(f"an index is integer or boolean, got {index.dtype} (called at {user_line()})")
    return index


def getitem(x: Any, index: Any) -> Tensor:
    """``x[index]`` with NumPy's basic, integer and boolean indexing; repeated elements add their gradients."""
    return _getitem(x, index=_plain_index(index))


def scatter_add(x: Any, index: Any, shape: Sequence[int]) -> Tensor:
    """Zeros of `shape` with `x` added at `index`: the adjoint of ``getitem(_, index)``."""
    return _scatter_add(x, index=_plain_index(index), shape=tuple(shape))


_getitem.public = getitem
_scatter_add.public = scatter_add


# -- joining ----------------------------------------------------------------------------------------------------
def _concatenate_rule(g: Tensor, axis: int, xs_shape: list[tuple[int, ...]], needs: tuple[bool, ...]) -> Any:
    stops = list(itertools.accumulate(shape[axis] for shape in xs_shape))
    lead = (slice(None),) * axis
    return [
        _getitem(g, index=(*lead, slice(start, stop))) if need else None
        for start, stop, need in zip([0, *stops], stops, needs, strict=False)
    ]


def _concatenate_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shapes, axis in ((((3,),), 0), (((2, 3), (0, 3), (1, 3)), 0), (((2, 1), (2, 4)), -1)):
        yield ([real(rng, s) for s in shapes],), {"axis": axis}


_concatenate = Op(
    "concatenate",
    "*xs",
    forward=lambda *xs, axis: np.concatenate(xs, axis=axis),
    vjp=_concatenate_rule,
    formula="arrays joined along an axis",
    examples=_concatenate_examples,
)


def concatenate(xs: Sequence[Any], axis: int = 0) -> Tensor:
    """Join tensors along an existing axis; the other lengths must be equal.

    Raises
    ------
    ShapeError : no tensors, or lengths that differ elsewhere.  ArgumentError : an axis out of range.
    DtypeError : tensors of several dtypes.
    """
    tensors = [as_tensor(x) for x in xs]
    if not tensors:
        raise ShapeError(f"concatenate: expected at least one tensor (called at {user_line()})")
    if len({x.dtype for x in tensors}) != 1:
        found = ", ".join(sorted({str(x.dtype) for x in tensors}))
        raise DtypeError(f"concatenate: expected tensors of one dtype, got {found} (called at {user_line()})")
    at = operator.index(axis) + (tensors[0].ndim if axis < 0 else 0)
    if not 0 <= at < tensors[0].ndim:
        raise ArgumentError(f"concatenate: axis {axis} does not fit shape {tensors[0].shape} (called at {user_line()})")
    return _concatenate(*tensors, axis=at)


_concatenate.public = concatenate


def stack(xs: Sequence[Any], axis: int = 0) -> Tensor:
    """Join tensors of one shape along a new axis."""
    return concatenate([expand_dims(x, axis) for x in xs], axis)
