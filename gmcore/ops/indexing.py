"""Operations that select elements by their places, and that write to places.

Everything rests on one pair of operations, each the derivative of the other: `getitem`, which reads x[index],
and `scatter_add`, which adds into zeros at an index. Many whole rows are read and added by kernels, which a second
such pair stands for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gmcore.device import device_of, put, put_beside
from gmcore.errors import ArgumentError, DtypeError, ShapeError, shown, user_function
from gmcore.op import Example, Op, kernel, user_line
from gmcore.ops.elementwise import cast, real, where
from gmcore.ops.shape import broadcast_to, one_axis, ravel, reshape, sum_to
from gmcore.tensor import Array, Tensor, as_tensor, is_floating
from gmcore.watch import computed, computed_tensor
from gmkernels.arrays import as_array, is_array, namespace, on_gpu
from gmkernels.indexing import spec
from gmkernels.indexing.reference import add_at as add_rows


# -- reading and adding ---------------------------------------------------------------------------------------
def _is_basic(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is Ellipsis or isinstance(p, (int, np.integer, slice)) for p in parts)


def _places(index: Any, shape: tuple[int, ...]) -> Array:
    """The numbers, in C order, of the elements of an array of `shape` that `index` selects."""
    library = namespace(*filter(is_array, index if isinstance(index, tuple) else (index,)))
    if is_array(index) and index.dtype.kind != "b":  # of rows: do not number the whole array
        width = math.prod(shape[1:])
        places = library.arange(shape[0])[index][..., None] * width + library.arange(width)
        return places.reshape(index.shape + shape[1:])
    return as_array(library.arange(math.prod(shape)).reshape(shape)[index])


def is_last(places: Array, size: int) -> Array:
    """For each of some places in an array of `size` elements, whether no later one is the same; their shape, bool."""
    library = namespace(places)
    turn = library.arange(places.size).reshape(places.shape)
    last = library.zeros(size, np.int64)
    if library is np:
        last[places] = turn
    else:  # a GPU writes in no order
        np.maximum.at(last, places, turn)
    return last[places] == turn


def _scatter_forward(x: Any, index: Any, shape: tuple[int, ...]) -> Any:
    out = namespace(x).zeros(shape, x.dtype)
    if _is_basic(index):
        if x.ndim > np.ndim(out[index]):  # NumPy would let axes of length 1 in front go
            raise ValueError(f"expected x of a shape that broadcasts to {np.shape(out[index])}")
        out[index] = x
    else:
        # Through the elements' numbers, because NumPy adds ten times faster at an index of one axis.
        places = _places(index, shape)
        add_rows(out.reshape(-1), places.reshape(-1), np.broadcast_to(x, places.shape).reshape(-1))
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
    yield (real(rng, (1, 3)), np.array([0, 2, 2]), (4, 3)), {}
    yield (real(rng, ()), slice(1, 3), (4, 3)), {}


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
    vjp=[lambda g, index, x_shape: sum_to(_getitem(g, index=index), x_shape)],
    formula="zeros of a shape with x added at index: the adjoint of x[index]",
    examples=_scatter_examples,
)


# -- whole rows by kernels ----------------------------------------------------------------------------------------
_MANY = 1 << 14
"""Elements of rows from which on a kernel reads them faster than NumPy."""
_NO_DERIVATIVE = "it is an array of integers"


def _row_examples(rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for rows, shape, row in ((4, (3,), (2,)), (3, (2, 2), (1, 2)), (2, (), (3,)), (2, (0,), (3,))):
        yield real(rng, (rows, *row)), np.asarray(rng.integers(-rows, rows, shape))


def _gather_examples(rng: np.random.Generator) -> Iterator[Example]:
    for table, index in _row_examples(rng):
        yield (table, index), {}


def _sum_examples(rng: np.random.Generator) -> Iterator[Example]:
    for table, index in _row_examples(rng):
        yield (real(rng, index.shape + table.shape[1:]), index), {"rows": len(table)}


_gather_rows = Op(
    "gather_rows",
    "table index",
    forward=kernel(spec.GATHER_ROWS),
    vjp=[lambda g, index, table_shape: _scatter_add_rows(g, index, rows=table_shape[0]), _NO_DERIVATIVE],
    formula=spec.GATHER_ROWS.formula,
    examples=_gather_examples,
)
_scatter_add_rows: Op = Op(
    "scatter_add_rows",
    "x index",
    forward=kernel(spec.SCATTER_ADD_ROWS),
    vjp=[lambda g, index, rows: _gather_rows(g, index), _NO_DERIVATIVE],
    formula=spec.SCATTER_ADD_ROWS.formula,
    examples=_sum_examples,
)


def _is_of_rows(index: Any, shape: tuple[int, ...]) -> bool:
    """Whether an index into an array of that shape is one of whole rows, and there is more to a row than a number."""
    return is_array(index) and index.dtype.kind in "iu" and len(shape) > 1


def _numbers(name: str, index: np.ndarray, rows: int) -> Tensor:
    """An index of rows, checked, as the kernels take it."""
    computed(_check_numbers, index, name=name, rows=rows)
    return cast(Tensor(index), np.int64)


def _check_numbers(index: np.ndarray, name: str, rows: int) -> None:
    if index.size and not (index.min() >= -rows and index.max() < rows):
        outside = index[(index < -rows) | (index >= rows)][0]
        raise ShapeError(
            f"{name}: index {outside} is out of bounds for axis 0 with size {rows} (called at {user_line()})"
        )


# -- what users call ----------------------------------------------------------------------------------------------
def _plain_index(index: Any, like: Array) -> Any:
    """An index without tensors or lists in it, its arrays on the device of `like`; those of the CPU are taken there.
    Raises `DtypeError` for a floating tensor."""
    if isinstance(index, tuple):
        return tuple([_plain_index(part, like) for part in index])
    if isinstance(index, list):
        index = np.asarray(index, dtype=np.int64 if not index else None)
    if isinstance(index, Tensor):
        index = index._data
    if is_array(index):
        if index.dtype.kind not in "iub":
            raise DtypeError(
                f"{user_function()}: expected an index of integers or booleans, got {index.dtype} "
                f"(called at {user_line()})"
            )
        if type(like) is not np.ndarray and not on_gpu(index):
            index = computed(put, index, device=device_of(like))
    return index


def getitem(x: Any, index: Any) -> Tensor:
    """``x[index]``; elements read several times add up their gradients.

    Parameters
    ----------
    x : any shape.
    index : NumPy's basic, integer or boolean index, of numbers, slices, arrays, integer or boolean tensors.

    Returns
    -------
    The shape that NumPy gives, in the dtype of `x`; without a copy for a basic index.

    Raises
    ------
    ShapeError : an index out of bounds, or that does not fit the shape.  DtypeError : a floating index.
    """
    x = as_tensor(x)
    table = x._data
    index = _plain_index(index, table)
    if _is_of_rows(index, table.shape) and table.dtype.char in "fd":
        size = index.size * math.prod(table.shape[1:])
        if size >= _MANY and (table.flags.c_contiguous or size >= table.size):  # another is packed first
            return _gather_rows(x, _numbers("getitem", index, table.shape[0]))
    return _getitem(x, index=index)


def scatter_add(x: Any, index: Any, shape: Sequence[int]) -> Tensor:
    """Zeros with `x` added at an index, repeated places added up: the adjoint of ``getitem(_, index)``.

    Parameters
    ----------
    x : of a shape that broadcasts to that of ``zeros[index]``.
    index : as for `getitem`.
    shape : of the result.

    Returns
    -------
    `shape`, in the dtype of `x`.

    Raises
    ------
    ShapeError : an index that does not fit `shape`, or `x` that does not fit the index.  DtypeError : a floating index.
    """
    x, shape = as_tensor(x), tuple(shape)
    index = _plain_index(index, x._data)
    if _is_of_rows(index, shape) and is_floating(x.dtype) and x.shape == index.shape + shape[1:]:
        return _scatter_add_rows(x, _numbers("scatter_add", index, shape[0]), rows=shape[0])
    return _scatter_add(x, index=index, shape=shape)


_getitem.public = getitem
_scatter_add.public = scatter_add


# -- along an axis --------------------------------------------------------------------------------------------
def take(x: Any, indices: Any, axis: int | None = None) -> Tensor:
    """The elements of `x` at integer indices along an axis.

    Parameters
    ----------
    x : any shape.
    indices : integers of any shape; negative ones count from the end.
    axis : which axis the axes of `indices` replace; None, the default, counts the elements in C order.

    Returns
    -------
    x.shape with `axis` replaced by the shape of `indices`, in the dtype of `x`.

    Raises
    ------
    ArgumentError : `axis` out of range.  ShapeError : an index out of bounds.
    DtypeError : `indices` that are not integers.
    """
    x = as_tensor(x)
    places = _integers(indices, "take", x)
    if axis is None:
        return _getitem(ravel(x), index=places)
    at = one_axis(x.ndim, axis, "take", x.shape)
    return getitem(x, (*(slice(None),) * at, places) if at else places)


def _integers(indices: Any, name: str, x: Tensor) -> Array:
    """`indices` as an array on the device of x. Raises `DtypeError` for others than integers."""
    indices = _plain_index(indices, x._data)
    places = indices if is_array(indices) else np.asarray(indices)
    if places.dtype.kind not in "iu":
        raise DtypeError(f"{name}: expected integer indices, got {shown(places)} (called at {user_line()})")
    return places


def _along_axis(x: Tensor, indices: Any, axis: int, name: str) -> tuple[Array, ...]:
    """The index that picks ``x[i, ..., indices[i, ..., k], ...]``."""
    shape = x.shape
    at = one_axis(len(shape), axis, name, shape)
    places = _integers(indices, name, x)
    fits = places.ndim == len(shape) and all(
        m in (1, n) for i, (m, n) in enumerate(zip(places.shape, shape)) if i != at
    )
    if not fits:
        raise ShapeError(
            f"{name}: indices of shape {places.shape} do not fit {tuple(shape)}; expected as many axes, of the same "
            f"lengths or 1 except along axis {axis} (called at {user_line()})"
        )
    grid = np.ogrid[tuple(slice(n) for n in shape)]
    return tuple(places if i == at else put_beside(positions, places) for i, positions in enumerate(grid))


def take_along_axis(x: Any, indices: Any, axis: int) -> Tensor:
    """The elements of `x` at `indices` along `axis`, for each place on the other axes.

    Parameters
    ----------
    x : (..., n, ...).
    indices : integers, (..., k, ...); the lengths of the other axes are those of `x`, or 1.
    axis : the axis of n and k.

    Returns
    -------
    (..., k, ...), in the dtype of `x`.

    Raises
    ------
    ArgumentError : `axis` out of range.  DtypeError : `indices` not integers.  ShapeError : lengths that do not fit.
    """
    x = as_tensor(x)
    return _getitem(x, index=_along_axis(x, indices, axis, "take_along_axis"))


def add_at(x: Any, index: Any, values: Any) -> Tensor:
    """`x` with `values` added at ``x[index]``, repeated places added up, as a new tensor.

    Parameters
    ----------
    x : any shape.
    index : as for `getitem`.
    values : of a shape that broadcasts to that of ``x[index]``; converted to the dtype of `x`, if the kind stays.

    Returns
    -------
    x.shape, in the dtype of `x`.

    Raises
    ------
    ShapeError : an index outside `x`, or `values` that do not fit ``x[index]``.
    DtypeError : a floating index, or floating `values` for an `x` of integers.
    """
    x = as_tensor(x)
    values = _beside(values, x)
    index = _plain_index(index, x._data)
    return x + scatter_add(_fitted(values, x, index, "add_at"), index, x.shape)


def set_at(x: Any, index: Any, values: Any) -> Tensor:
    """`x` with ``x[index]`` replaced by `values`: ``x[index] = values`` as a new tensor.

    Where a place is repeated, the last of its values stays, and takes the whole gradient.

    Parameters
    ----------
    x : any shape.
    index : as for `getitem`.
    values : of a shape that broadcasts to that of ``x[index]``; converted to the dtype of `x`, if the kind stays.

    Returns
    -------
    x.shape, in the dtype of `x`.

    Raises
    ------
    ShapeError : an index outside `x`, or `values` that do not fit ``x[index]``.
    DtypeError : a floating index, or floating `values` for an `x` of integers.
    """
    x = as_tensor(x)
    values = _beside(values, x)
    index = _plain_index(index, x._data)
    values = _fitted(values, x, index, "set_at")
    written = computed(_marked, x._data, index=index)
    if not _is_basic(index):
        values = where(computed(_is_last_at, index=index, shape=x.shape), values, values.new_zeros(()))
    return where(written, scatter_add(values, index, x.shape), x)


def _marked(x: Array, index: Any) -> Array:
    """Whether `index` selects each element of x."""
    marks = namespace(x).zeros(x.shape, bool)
    marks[index] = True
    return marks


def _is_last_at(index: Any, shape: tuple[int, ...]) -> Array:
    """`is_last` of the elements of an array of `shape` that `index` selects."""
    return is_last(_places(index, shape), math.prod(shape))


def _beside(values: Any, x: Tensor) -> Tensor:
    """Values as a tensor; a number on the device of x."""
    return x.beside(np.asarray(values)) if isinstance(values, (int, float, np.generic)) else as_tensor(values)


def _fitted(values: Tensor, x: Tensor, index: Any, name: str) -> Tensor:
    """`values` in the dtype of x and the shape of x[index]."""
    if not np.can_cast(values.dtype, x.dtype, "same_kind"):
        raise DtypeError(
            f"{name}: expected values that fit {shown(x)}, got {shown(values)}; convert one of them with astype "
            f"(called at {user_line()})"
        )
    try:
        shape = x._data[index].shape
        np.broadcast_to(values._data, shape)
    except (ValueError, IndexError) as error:
        raise ShapeError(
            f"{name}: values {shown(values)} do not fit the index {shown(index)} into {shown(x)}: {error} "
            f"(called at {user_line()})"
        ) from None
    return broadcast_to(values.astype(x.dtype), shape)


def put_along_axis(x: Any, indices: Any, values: Any, axis: int) -> Tensor:
    """`x` with the elements that ``take_along_axis(x, indices, axis)`` reads replaced by `values`, as a new tensor.

    Parameters
    ----------
    x : (..., n, ...).
    indices : integers, (..., k, ...); the lengths of the other axes are those of `x`, or 1.
    values : of a shape that broadcasts to (..., k, ...).
    axis : the axis of n and k.

    Returns
    -------
    x.shape, in the dtype of `x`.

    Raises
    ------
    ArgumentError : `axis` out of range.  DtypeError : `indices` not integers.  ShapeError : lengths that do not fit.
    """
    x = as_tensor(x)
    return set_at(x, _along_axis(x, indices, axis, "put_along_axis"), values)


# -- order ----------------------------------------------------------------------------------------------------
def _argsort_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, axis in (((4,), 0), ((2, 3), -1), ((3, 2), 0), ((0, 2), 0)):
        yield (real(rng, shape), axis), {}


_argsort = Op(
    "argsort",
    "x",
    forward=lambda x, axis: np.argsort(x, axis=axis, kind="stable"),
    vjp=None,
    formula="the indices that sort x along an axis, equal elements in their order",
    examples=_argsort_examples,
)


def argsort(x: Any, axis: int = -1) -> Tensor:
    """The indices that sort `x` along an axis; equal elements keep their order, NaN comes last.

    Parameters
    ----------
    x : any shape.
    axis : which one; the last by default.

    Returns
    -------
    int64, x.shape.

    Raises
    ------
    ArgumentError : `axis` out of range.
    """
    x = as_tensor(x)
    return _argsort(x, axis=one_axis(x.ndim, axis, "argsort", x.shape))


_argsort.public = argsort


def sort(x: Any, axis: int = -1) -> Tensor:
    """`x` in ascending order along an axis, NaN last; the gradient goes back to where each element came from.

    Parameters
    ----------
    x : any shape.
    axis : which one; the last by default.

    Returns
    -------
    x.shape, in the dtype of `x`.

    Raises
    ------
    ArgumentError : `axis` out of range.
    """
    return take_along_axis(x, argsort(x, axis), axis)


def topk(x: Any, k: int, axis: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:
    """The `k` largest (or smallest) elements along an axis, and their indices; NaN counts as the largest.

    Parameters
    ----------
    x : (..., n, ...).
    k : 0 to n.
    axis : the axis of n; the last by default.
    largest : whether the largest; else the smallest.
    sorted : the largest (smallest) first; they always are.

    Returns
    -------
    values, indices (int64) : (..., k, ...)

    Raises
    ------
    ArgumentError : `axis` or `k` out of range.
    """
    x = as_tensor(x)
    at = one_axis(x.ndim, axis, "topk", x.shape)
    if not 0 <= k <= x.shape[at]:
        raise ArgumentError(
            f"topk: k={k} of axis {axis} of shape {x.shape}; expected 0 <= k <= {x.shape[at]} (called at {user_line()})"
        )
    order = argsort(x, at)._data
    chosen = np.flip(order, at) if largest else order  # a view, which a captured step knows
    indices = chosen[(*(slice(None),) * at, slice(k))]
    return take_along_axis(x, indices, at), Tensor(indices)


def one_hot(x: Any, num_classes: int = -1) -> Tensor:
    """Integers as rows that are 1 at the integer and 0 elsewhere.

    Parameters
    ----------
    x : integers from 0 to num_classes - 1, (...).
    num_classes : -1, the default, for one more than the largest.

    Returns
    -------
    int64, (..., num_classes).

    Raises
    ------
    DtypeError : not integers.  ArgumentError : one that is negative or not below `num_classes`.
    """
    x = as_tensor(x)
    if x.dtype.kind not in "iu":
        raise DtypeError(f"one_hot: expected integers, got {x.dtype} (called at {user_line()})")
    classes = num_classes
    if num_classes == -1:
        classes = int(x._read().max()) + 1 if x.size else 0
    return computed_tensor(_one_hot, x._data, classes=classes)


def _one_hot(x: np.ndarray, classes: int) -> np.ndarray:
    if x.size and not (x.min() >= 0 and x.max() < classes):
        raise ArgumentError(
            f"one_hot: expected integers from 0 to num_classes - 1 = {classes - 1}, got {x.min()} to {x.max()} "
            f"(called at {user_line()})"
        )
    return (x[..., None] == namespace(x).arange(classes)).astype(np.int64)


def quantile(x: Any, q: float, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The number below which a share `q` of the elements lies, linear between neighbours; NaN counts as the largest.

    Parameters
    ----------
    x : any shape.
    q : the share, in [0, 1].
    axis : one axis; None, the default, for all elements.
    keepdims : whether the reduced axis stays, with length 1.

    Returns
    -------
    x.shape without `axis`; float32 stays float32.

    Raises
    ------
    ArgumentError : `axis` out of range, no elements, or q outside [0, 1].
    """
    x = as_tensor(x)
    shape = (1,) * x.ndim if axis is None else None
    if axis is None:
        x, axis = ravel(x), 0
    at = one_axis(x.ndim, axis, "quantile", x.shape)
    if not 0 <= q <= 1 or not x.shape[at]:
        raise ArgumentError(
            f"quantile: q={q} of axis {axis} of shape {x.shape}; expected 0 <= q <= 1 and at least one element "
            f"(called at {user_line()})"
        )
    place = q * (x.shape[at] - 1)
    low, ordered = math.floor(place), sort(x, at)
    # No difference, which integers may not hold and infinities do not have; and no neighbour that does not count.
    out = (1.0 - (place - low)) * take(ordered, [low], at)
    if place > low:
        out = out + (place - low) * take(ordered, [low + 1], at)
    if keepdims:
        return out if shape is None else reshape(out, shape)
    return reshape(out, (*out.shape[:at], *out.shape[at + 1 :]))


def median(x: Any, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """The middle element along `axis`, or the mean of the two middle ones: ``quantile(x, 0.5)``.

    Parameters
    ----------
    x : any shape.
    axis : one axis; None, the default, for all elements.
    keepdims : whether the reduced axis stays, with length 1.

    Returns
    -------
    x.shape without `axis`; float32 stays float32.

    Raises
    ------
    ArgumentError : `axis` out of range, or no elements.
    """
    return quantile(x, 0.5, axis, keepdims)
