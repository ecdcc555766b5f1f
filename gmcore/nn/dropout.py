"""Dropout."""

from __future__ import annotations

from typing import Any

from gmcore import ops
from gmcore.errors import ArgumentError
from gmcore.nn.module import Module
from gmcore.tensor import Tensor


class Dropout(Module):
    """In training, each element set to 0 with probability `p` and the others divided by 1 - p; else the input.

    Takes one draw of the context's generator for each call in training. Srivastava et al. 2014, section 10.

    Raises
    ------
    ArgumentError : p outside [0, 1], or ``inplace=True``: tensors do not change in place.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        if not 0 <= p <= 1:
            raise ArgumentError(f"Dropout: p must be in [0, 1], got {p!r}")
        if inplace:
            raise ArgumentError("Dropout: inplace=True is not supported, tensors do not change in place; leave it out")
        self.p = float(p)

    def forward(self, input: Any) -> Tensor:
        return ops.dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
