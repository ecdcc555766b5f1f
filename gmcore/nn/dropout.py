"""Dropout."""

from __future__ import annotations

from typing import Any

from gmcore import ops
from gmcore.errors import ArgumentError, ShapeError
from gmcore.nn.module import Module
from gmcore.op import user_line
from gmcore.tensor import Tensor, as_tensor


class Dropout(Module):
    """In training, each element set to 0 with probability `p` and the others divided by 1 - p; else the input.

    Takes one draw of the context's generator for each call in training. Srivastava et al. 2014, section 10.

    Raises
    ------
    ArgumentError : p outside [0, 1], or ``inplace=True``: tensors do not change in place.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        if not 0 <= p <= 1:
            raise ArgumentError(f"{type(self).__name__}: p must be in [0, 1], got {p!r}")
        if inplace:
            raise ArgumentError(
                f"{type(self).__name__}: inplace=True is not supported, tensors do not change in place; leave it out"
            )
        self.p = float(p)

    def forward(self, input: Any) -> Tensor:
        return ops.dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Dropout2d(Dropout):
    """In training, whole planes of (N, C, H, W) set to 0 with probability `p`, the others divided by 1 - p.

    Takes one draw of the context's generator for each call in training. Tompson et al., Efficient object localization
    using convolutional networks, CVPR 2015. Parameters: see `Dropout`.

    Raises
    ------
    ArgumentError : as `Dropout`.  ShapeError : (called) an input that is not (N, C, H, W) or (C, H, W).
    """

    def forward(self, input: Any) -> Tensor:
        x = as_tensor(input)
        if x.ndim not in (3, 4):
            raise ShapeError(
                f"Dropout2d: expected an input (N, C, H, W) or (C, H, W), got {x.shape} (called at {user_line()})"
            )
        if not self.training:
            return x
        return x * ops.dropout(x.new_ones((*x.shape[:-2], 1, 1)), self.p)
