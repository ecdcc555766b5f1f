"""Modules that change the shape of their input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gmcore import ops
from gmcore.errors import ArgumentError, ShapeError
from gmcore.nn.module import Module
from gmcore.op import user_line
from gmcore.tensor import Tensor, as_tensor


class Flatten(Module):
    """The axes from `start_dim` to `end_dim` merged into one.

    Parameters
    ----------
    start_dim, end_dim : first and last axis, both included; by default all but the first.

    Raises
    ------
    ArgumentError : (called) axes that the input does not have, or in the other order.
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Any) -> Tensor:
        return ops.flatten(input, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """The axis `dim` split into several.

    Parameters
    ----------
    dim : number of the axis, counted from the end if negative.
    unflattened_size : lengths of the new axes, of which one may be -1: what is left for it.

    Raises
    ------
    ArgumentError : a name for `dim` or named sizes, which tensors here do not have.
    ShapeError : (called) an axis that cannot be split so, or is not there.
    """

    def __init__(self, dim: int, unflattened_size: Sequence[int]) -> None:
        if not isinstance(dim, int) or not all(isinstance(n, int) for n in unflattened_size):
            raise ArgumentError(
                f"Unflatten: expected the number of an axis and its lengths, without names; got {dim!r} and "
                f"{unflattened_size!r}"
            )
        self.dim, self.unflattened_size = dim, tuple(unflattened_size)

    def forward(self, input: Any) -> Tensor:
        x, sizes = as_tensor(input), self.unflattened_size
        at = self.dim + x.ndim if self.dim < 0 else self.dim
        known = math.prod(n for n in sizes if n != -1)
        length = x.shape[at] if 0 <= at < x.ndim else -1
        fits = length == known if -1 not in sizes else known > 0 and length >= 0 and length % known == 0
        if not fits or sizes.count(-1) > 1:
            raise ShapeError(
                f"Unflatten: axis {self.dim} of an input of shape {x.shape} cannot be split into {sizes} "
                f"(called at {user_line()})"
            )
        sizes = tuple(length // known if n == -1 else n for n in sizes)
        return ops.reshape(x, (*x.shape[:at], *sizes, *x.shape[at + 1 :]))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
