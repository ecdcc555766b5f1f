"""Arguments of operations over windows: a number for each axis, or one number for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gmcore.errors import ArgumentError, ShapeError
from gmcore.op import user_line
from gmcore.ops.elementwise import as_floating
from gmcore.ops.shape import reshape
from gmcore.tensor import Tensor, as_tensor

Size = int | Sequence[int]
"""A number for all axes, or one for each."""


def per_axis(name: str, option: str, value: Any, axes: int, least: int = 1) -> tuple[int, ...]:
    """`value` as a tuple of `axes` integers. Raises `ArgumentError` unless each is at least `least`."""
    found = (value,) * axes if isinstance(value, (int, np.integer)) else value
    fits = isinstance(found, Sequence) and len(found) in (1, axes) and not isinstance(found, str)
    if not fits or any(not isinstance(n, (int, np.integer)) or n < least for n in found):
        expected = "an integer" if axes == 1 else f"an integer or {axes} of them"
        raise ArgumentError(
            f"{name}: {option}={value!r}; expected {expected}, at least {least} (called at {user_line()})"
        )
    found = tuple(int(n) for n in found)
    return found * axes if len(found) == 1 else found


def flat(axes: int, values: tuple[int, ...], along: int) -> tuple[int, int]:
    """`values` for two axes: as they are, or for a single axis behind `along`, the number for a height of 1."""
    return (along, values[0]) if axes == 1 else (values[0], values[1])


def as_planes(name: str, axes: int, input: Any) -> Tensor:
    """`input`, (N, C, H, W) or (C, H, W) for two axes and (N, C, L) or (C, L) for one, as (N, C, H, W)."""
    x = as_floating(as_tensor(input), name)
    if x.ndim not in (axes + 1, axes + 2):
        form = "(N, C, H, W) or (C, H, W)" if axes == 2 else "(N, C, L) or (C, L)"
        raise ShapeError(f"{name}: expected an input {form}, got shape {x.shape} (called at {user_line()})")
    if x.ndim == 4:
        return x
    batch = x.shape[: x.ndim - axes - 1] or (1,)
    return reshape(x, (*batch, x.shape[-axes - 1], *(1,) * (2 - axes), *x.shape[-axes:]))


def from_planes(y: Tensor, axes: int, ndim: int) -> Tensor:
    """A result (N, C, H, W) in the form of an input of `ndim` axes, which `as_planes` was given."""
    shape = (*y.shape[:2], *y.shape[4 - axes :])[axes + 2 - ndim :]
    return y if shape == y.shape else reshape(y, shape)
