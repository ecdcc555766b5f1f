"""Operations that put elements in other places: joining, splitting, padding, repeating, rolling, masks.

Only `concatenate` is an operation of its own; the others are made of it and of indexing.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gmcore.errors import ArgumentError, DtypeError, ShapeError
from gmcore.op import Example, Op, user_line
from gmcore.ops.elementwise import real, where
from gmcore.ops.indexing import _getitem, scatter_add, take
from gmcore.ops.shape import Axis, as_shape, broadcast_to, expand_dims, one_axis, ravel, reshape, several_axes
from gmcore.tensor import Array, Tensor, as_tensor
from gmkernels.arrays import on_gpu


# -- joining ----------------------------------------------------------------------------------------------------
def _part(x: Tensor, axis: int, part: slice) -> Tensor:
    """x[:, ..., part] with `part` on that axis."""
    return _getitem(x, index=(*(slice(None),) * axis, part))


def _concatenate_rule(g: Tensor, axis: int, xs_shape: list[tuple[int, ...]], needs: tuple[bool, ...]) -> Any:
    stops = list(itertools.accumulate(shape[axis] for shape in xs_shape))
    return [
        _part(g, axis, slice(start, stop)) if need else None
        for start, stop, need in zip([0, *stops], stops, needs, strict=False)
    ]


def _concatenate_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shapes, axis in ((((3,),), 0), (((2, 3), (0, 3), (1, 3)), 0), (((2, 1), (2, 4)), -1)):
        yield ([real(rng, s) for s in shapes],), {"axis": axis}


def _joined(*xs: Array, axis: int) -> Array:
    # CuPy copies a table of addresses from the CPU for four arrays and more, which a CUDA graph cannot hold.
    while len(xs) > 3 and on_gpu(xs[0]):
        xs = tuple([np.concatenate(xs[i : i + 3], axis=axis) for i in range(0, len(xs), 3)])
    return np.concatenate(xs, axis=axis)


_concatenate = Op(
    "concatenate",
    "*xs",
    forward=_joined,
    vjp=_concatenate_rule,
    formula="arrays joined along an axis",
    examples=_concatenate_examples,
)


def concatenate(xs: Sequence[Any], axis: int = 0) -> Tensor:
    """Join tensors along an existing axis.

    Parameters
    ----------
    xs : one or more tensors of one dtype, whose lengths differ along `axis` only.
    axis : where to join.

    Returns
    -------
    The lengths along `axis` added up, in the dtype of `xs`.

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
    at = one_axis(tensors[0].ndim, axis, "concatenate", tensors[0].shape)
    return _concatenate(*tensors, axis=at)


_concatenate.public = concatenate


def stack(xs: Sequence[Any], axis: int = 0) -> Tensor:
    """Join tensors along a new axis.

    Parameters
    ----------
    xs : n >= 1 tensors of one shape and dtype.
    axis : position of the new axis in the result.

    Returns
    -------
    (..., n, ...), in the dtype of `xs`.

    Raises
    ------
    ShapeError : no tensors, or several shapes.  ArgumentError : an axis out of range.  DtypeError : several dtypes.
    """
    return concatenate([expand_dims(x, axis) for x in xs], axis)


def array_split(x: Any, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """`x` cut along an axis into parts that need not be of one length.

    Parameters
    ----------
    x : any shape.
    indices_or_sections : a number of parts, the first ones longer by one if need be; or the indices to cut before.
    axis : where to cut.

    Returns
    -------
    list of tensors, in the dtype of `x`, without copies.

    Raises
    ------
    ArgumentError : `axis` out of range, or fewer than one part.
    """
    x = as_tensor(x)
    at = one_axis(x.ndim, axis, "array_split", x.shape)
    length = x.shape[at]
    if isinstance(indices_or_sections, (int, np.integer)):
        parts = operator.index(indices_or_sections)
        if parts < 1:
            raise ArgumentError(f"array_split: expected at least one part, got {parts} (called at {user_line()})")
        size, longer = divmod(length, parts)
        cuts = list(itertools.accumulate([size + (i < longer) for i in range(parts - 1)]))
    else:
        cuts = list(indices_or_sections)
    return [_part(x, at, slice(start, stop)) for start, stop in zip([0, *cuts], [*cuts, length])]


def split(x: Any, indices_or_sections: int | Sequence[int], axis: int = 0) -> list[Tensor]:
    """`x` cut along an axis into equal parts, or at given places.

    Parameters
    ----------
    x : any shape.
    indices_or_sections : a number of equal parts, or the indices to cut before.
    axis : where to cut.

    Returns
    -------
    list of tensors, in the dtype of `x`, without copies.

    Raises
    ------
    ArgumentError : `axis` out of range, or a length that the number of parts does not divide.
    """
    x = as_tensor(x)
    at = one_axis(x.ndim, axis, "split", x.shape)
    if isinstance(indices_or_sections, (int, np.integer)):
        parts = operator.index(indices_or_sections)
        if parts < 1 or x.shape[at] % parts:
            raise ArgumentError(
                f"split: axis {axis} of shape {x.shape} has no {parts} equal parts; array_split allows unequal ones "
                f"(called at {user_line()})"
            )
    return array_split(x, indices_or_sections, at)


# -- padding and repeating ------------------------------------------------------------------------------------
_PAD_MODES = ("constant", "edge", "reflect", "symmetric", "wrap")


def pad(x: Any, pad_width: Any, mode: str = "constant", constant_values: float = 0.0) -> Tensor:
    """`x` with elements added before and after on each axis.

    Parameters
    ----------
    x : any shape.
    pad_width : (before, after) for each axis; one pair, or one number, for all of them.
    mode : ``"constant"``; ``"edge"``, the last element repeated (PyTorch's replicate); ``"reflect"``, mirrored at the
        last element; ``"symmetric"``, mirrored after it; ``"wrap"``, from the other end (PyTorch's circular).
    constant_values : the constant, one number.

    Returns
    -------
    (before + n + after, ...), in the dtype of `x`. An element repeated by the mode adds up the gradients of its copies.

    Raises
    ------
    ArgumentError : an unknown mode, widths that are negative or do not fit the axes, or an empty axis to extend by
        anything but a constant.
    """
    x = as_tensor(x)
    try:
        widths = np.broadcast_to(np.asarray(pad_width), (x.ndim, 2)).tolist()
    except ValueError:
        widths = [[-1, -1]]
    if any(not isinstance(n, int) or n < 0 for pair in widths for n in pair):
        raise ArgumentError(
            f"pad: pad_width {pad_width} does not fit shape {x.shape}; expected (before, after) >= 0 for each axis "
            f"(called at {user_line()})"
        )
    if mode not in _PAD_MODES:
        raise ArgumentError(f"pad: mode {mode!r}; expected one of {', '.join(_PAD_MODES)} (called at {user_line()})")
    if mode == "constant":
        shape = tuple([n + before + after for n, (before, after) in zip(x.shape, widths)])
        inside = tuple([slice(before, before + n) for n, (before, _) in zip(x.shape, widths)])
        padded = scatter_add(x, inside, shape)
        if constant_values == 0:
            return padded
        outside = np.ones(shape, bool)
        outside[inside] = False
        return where(x.beside(outside), constant_values, padded)
    for axis, pair in enumerate(widths):
        if pair != [0, 0]:
            if not x.shape[axis]:
                raise ArgumentError(f"pad: axis {axis} of shape {x.shape} has nothing to extend by mode {mode!r} "
                                    f"(called at {user_line()})")  # fmt: skip
            x = take(x, np.pad(np.arange(x.shape[axis]), pair, mode), axis)  # type: ignore[call-overload]
    return x


def repeat(x: Any, repeats: int | Sequence[int], axis: int | None = None) -> Tensor:
    """Each element, or each slice along an axis, repeated where it stands.

    Parameters
    ----------
    x : any shape.
    repeats : how often, one number or one for each element along `axis`; not negative.
    axis : along which; None, the default, repeats the elements in C order.

    Returns
    -------
    x.shape with sum(repeats) along `axis`, or one axis if that is None; in the dtype of `x`.

    Raises
    ------
    ArgumentError : `axis` out of range, or numbers that are negative or do not fit it.
    """
    x = as_tensor(x)
    if axis is None:
        x, axis = ravel(x), 0
    at = one_axis(x.ndim, axis, "repeat", x.shape)
    try:
        places = np.repeat(np.arange(x.shape[at]), repeats)
    except (ValueError, TypeError) as error:
        raise ArgumentError(f"repeat: {error}, for axis {axis} of shape {x.shape} (called at {user_line()})") from None
    return take(x, places, at)


def tile(x: Any, reps: int | Sequence[int]) -> Tensor:
    """`x` laid side by side along its last axes.

    Parameters
    ----------
    x : any shape; missing axes are added in front.
    reps : how often along each of the last axes, or one number for the last; not negative.

    Returns
    -------
    Each length times its number, in the dtype of `x`.

    Raises
    ------
    ArgumentError : a negative number.
    """
    x = as_tensor(x)
    times = as_shape(reps)
    ndim = max(x.ndim, len(times))
    times = (1,) * (ndim - len(times)) + times
    lengths = (1,) * (ndim - x.ndim) + x.shape
    if any(n < 0 for n in times):
        raise ArgumentError(f"tile: reps {reps} of shape {x.shape}; expected no negative one (called at {user_line()})")
    apart = reshape(x, [n for length in lengths for n in (1, length)])
    spread = broadcast_to(apart, [n for pair in zip(times, lengths) for n in pair])
    return reshape(spread, [n * length for n, length in zip(times, lengths)])


# -- reversing, rolling, masks, grids -------------------------------------------------------------------------
def flip(x: Any, axis: Axis = None) -> Tensor:
    """`x` in reverse order, without a copy.

    Parameters
    ----------
    x : any shape.
    axis : axis or axes to reverse; None, the default, for all.

    Returns
    -------
    x.shape, in the dtype of `x`.

    Raises
    ------
    ArgumentError : `axis` out of range or repeated.
    """
    x = as_tensor(x)
    axes = several_axes(x.ndim, axis, "flip", x.shape)
    return _getitem(x, index=tuple([slice(None, None, -1) if i in axes else slice(None) for i in range(x.ndim)]))


def roll(x: Any, shift: int | tuple[int, ...], axis: Axis = None) -> Tensor:
    """`x` moved on along an axis; what leaves at the end comes in at the start.

    Parameters
    ----------
    x : any shape.
    shift : by how many places, one number or one for each axis; negative moves back.
    axis : axis or axes; None, the default, moves the elements in C order.

    Returns
    -------
    x.shape, in the dtype of `x`.

    Raises
    ------
    ArgumentError : `axis` out of range or repeated, or not as many shifts as axes.
    """
    x = as_tensor(x)
    if axis is None:
        return reshape(roll(ravel(x), shift, 0), x.shape)
    axes = several_axes(x.ndim, axis, "roll", x.shape)
    shifts = (shift,) * len(axes) if isinstance(shift, (int, np.integer)) else tuple(shift)
    if len(shifts) != len(axes):
        raise ArgumentError(f"roll: {len(shifts)} shifts for {len(axes)} axes (called at {user_line()})")
    for at, by in zip(axes, shifts):
        cut = -by % max(x.shape[at], 1)
        if cut:
            x = _concatenate(_part(x, at, slice(cut, None)), _part(x, at, slice(None, cut)), axis=at)
    return x


def _triangle(x: Any, mask: Any, k: int, name: str) -> Tensor:
    x = as_tensor(x)
    if x.ndim < 2:
        raise ShapeError(f"{name}: expected a matrix or a stack of them, got shape {x.shape} (called at {user_line()})")
    return where(x.beside(mask(np.ones(x.shape[-2:], bool), k)), x, 0)


def tril(x: Any, k: int = 0) -> Tensor:
    """Matrices with zeros above a diagonal.

    Parameters
    ----------
    x : (..., m, n).
    k : the last diagonal kept; 0 is the main one, above it positive.

    Returns
    -------
    (..., m, n), in the dtype of `x`.

    Raises
    ------
    ShapeError : not matrices.
    """
    return _triangle(x, np.tril, k, "tril")


def triu(x: Any, k: int = 0) -> Tensor:
    """Matrices with zeros below a diagonal.

    Parameters
    ----------
    x : (..., m, n).
    k : the first diagonal kept; 0 is the main one, above it positive.

    Returns
    -------
    (..., m, n), in the dtype of `x`.

    Raises
    ------
    ShapeError : not matrices.
    """
    return _triangle(x, np.triu, k, "triu")


def meshgrid(*xs: Any, indexing: str = "xy") -> list[Tensor]:
    """Each of the vectors spread over the grid that they span.

    Parameters
    ----------
    xs : vectors of lengths n_1, n_2, n_3, ...; a number is one of length 1.
    indexing : ``"xy"``, the first two axes exchanged (of a picture: rows are y), or ``"ij"``.

    Returns
    -------
    Tensors of shape (n_1, n_2, n_3, ...) with ``"ij"``, of (n_2, n_1, n_3, ...) with ``"xy"``; without copies.

    Raises
    ------
    ShapeError : not vectors or numbers.  ArgumentError : another `indexing`.
    """
    if indexing not in ("xy", "ij"):
        raise ArgumentError(f"meshgrid: indexing={indexing!r}; expected 'xy' or 'ij' (called at {user_line()})")
    vectors = [as_tensor(x) for x in xs]
    if any(x.ndim > 1 for x in vectors):
        raise ShapeError(f"meshgrid: expected vectors, got shapes {[x.shape for x in vectors]} "
                         f"(called at {user_line()})")  # fmt: skip
    order = list(range(len(vectors)))
    if indexing == "xy":
        order[:2] = order[:2][::-1]
    shape = [vectors[i].size for i in order]
    spread = []
    for i, x in enumerate(vectors):
        at = order.index(i)
        spread.append(broadcast_to(reshape(x, [x.size if j == at else 1 for j in range(len(shape))]), shape))
    return spread
