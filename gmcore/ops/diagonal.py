"""Diagonals: taken, set, and summed. Taking and setting are each other's derivative."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from gmcore.errors import ArgumentError, ShapeError
from gmcore.op import Example, Op, user_line
from gmcore.ops.elementwise import real
from gmcore.ops.reduce import sum
from gmcore.ops.shape import transpose
from gmcore.tensor import Tensor, as_tensor
from gmkernels.arrays import namespace


def _matrix_axes(name: str, shape: tuple[int, ...], ndim: int, axis1: int, axis2: int) -> tuple[int, int]:
    """The axes of the matrices among `ndim` ones, non-negative. Raises `ArgumentError` unless they are two."""
    first, second = (operator.index(a) + (ndim if a < 0 else 0) for a in (axis1, axis2))
    if first == second or not (0 <= first < ndim and 0 <= second < ndim):
        raise ArgumentError(
            f"{name}: axes {axis1} and {axis2} for shape {shape}; expected two different ones in {-ndim}..{ndim - 1} "
            f"(called at {user_line()})"
        )
    return first, second


def _embed_forward(x: Any, offset: int, rows: int, columns: int) -> Any:
    library = namespace(x)
    out = library.zeros((*x.shape[:-1], rows, columns), x.dtype)
    i = library.arange(x.shape[-1])
    out[..., i + max(-offset, 0), i + max(offset, 0)] = x
    return out


def _diagonal_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, how in (((3, 3), {}), ((2, 4), {"offset": 1}), ((4, 2), {"offset": -3}), ((2, 3), {"offset": 5})):
        yield (real(rng, shape),), how
    yield (real(rng, (3, 2, 4)),), {"axis1": -1, "axis2": 0}
    yield (real(rng, (0, 3)),), {}


def _embed_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, how in (((3,), {}), ((2, 3), {"offset": 1}), ((2, 3), {"offset": -2, "axis1": 0, "axis2": 2})):
        yield (real(rng, shape),), how
    yield (real(rng, (0,)),), {}


_diagonal: Op = Op(
    "diagonal",
    "x",
    forward=lambda x, offset: np.diagonal(x, offset, -2, -1),
    vjp=[lambda g, x_shape, offset: _diag_embed(g, offset=offset, rows=x_shape[-2], columns=x_shape[-1])],
    formula="x[..., i, i + offset]",
    view=True,
    examples=_diagonal_examples,
)
_diag_embed: Op = Op(
    "diag_embed",
    "x",
    forward=_embed_forward,
    vjp=[lambda g, offset: _diagonal(g, offset=offset)],
    formula="matrices with x on a diagonal and zeros elsewhere: the adjoint of diagonal",
    examples=_embed_examples,
)


def diagonal(x: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    """Elements (i, i + offset) of the matrices in two axes, without a copy.

    Parameters
    ----------
    x : at least two axes.
    offset : the diagonal; 0 is the main one, above it positive.
    axis1, axis2 : the axes of the rows and of the columns; unlike PyTorch's defaults, the first two.

    Returns
    -------
    x.shape without these axes, then the length of the diagonal (0 outside the matrix); in the dtype of `x`.

    Raises
    ------
    ArgumentError : not two axes of `x`.
    """
    x = as_tensor(x)
    first, second = _matrix_axes("diagonal", x.shape, x.ndim, axis1, axis2)
    if (first, second) != (x.ndim - 2, x.ndim - 1):
        x = transpose(x, (*[a for a in range(x.ndim) if a not in (first, second)], first, second))
    return _diagonal(x, offset=operator.index(offset))


def diag_embed(x: Any, offset: int = 0, axis1: int = -2, axis2: int = -1) -> Tensor:
    """Square matrices with the last axis of `x` on the diagonal (i, i + offset), in the axes `axis1`, `axis2`.

    Parameters
    ----------
    x : (..., n).
    offset : the diagonal; 0 is the main one, above it positive.
    axis1, axis2 : where the matrices lie in the result.

    Returns
    -------
    x.ndim + 1 axes, the two of length n + abs(offset).

    Raises
    ------
    ShapeError : a number.  ArgumentError : not two axes of the result.
    """
    x = as_tensor(x)
    if not x.ndim:
        raise ShapeError(f"diag_embed: expected (..., n), got shape {x.shape} (called at {user_line()})")
    ndim, n = x.ndim + 1, x.shape[-1] + abs(offset)
    first, second = _matrix_axes("diag_embed", x.shape, ndim, axis1, axis2)
    out = _diag_embed(x, offset=operator.index(offset), rows=n, columns=n)
    if (first, second) == (ndim - 2, ndim - 1):
        return out
    leading = iter(range(ndim - 2))
    places = {first: ndim - 2, second: ndim - 1}
    return transpose(out, [places[a] if a in places else next(leading) for a in range(ndim)])


_diagonal.public, _diag_embed.public = diagonal, diag_embed


def diag(x: Any, k: int = 0) -> Tensor:
    """The matrix with a vector on a diagonal, or a diagonal of a matrix.

    Parameters
    ----------
    x : (n,) or (m, n).
    k : the diagonal (i, i + k).

    Returns
    -------
    (n + abs(k), n + abs(k)) of a vector, the length of the diagonal of a matrix; in the dtype of `x`.

    Raises
    ------
    ShapeError : neither a vector nor a matrix.
    """
    x = as_tensor(x)
    if x.ndim not in (1, 2):
        raise ShapeError(f"diag: expected a vector or a matrix, got shape {x.shape} (called at {user_line()})")
    return diag_embed(x, k) if x.ndim == 1 else diagonal(x, k)


def trace(x: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    """Sum of a diagonal (i, i + offset) of the matrices in two axes.

    Parameters
    ----------
    x : at least two axes.
    offset : the diagonal; 0 is the main one, above it positive.
    axis1, axis2 : the axes of the rows and of the columns.

    Returns
    -------
    x.shape without these axes.

    Raises
    ------
    ArgumentError : not two axes of `x`.
    """
    x = as_tensor(x)
    _matrix_axes("trace", x.shape, x.ndim, axis1, axis2)
    return sum(diagonal(x, offset, axis1, axis2), axis=-1)
