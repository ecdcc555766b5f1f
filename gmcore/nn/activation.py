"""Elementwise activations as modules."""

from __future__ import annotations

from typing import Any

from gmcore import ops
from gmcore.errors import ArgumentError
from gmcore.nn.module import Module
from gmcore.tensor import Tensor, as_tensor


class Identity(Module):
    """x. Takes any arguments and ignores them, so that it can stand in for another layer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Any) -> Tensor:
        return as_tensor(input)


class Tanh(Module):
    """tanh x."""

    def forward(self, input: Any) -> Tensor:
        return ops.tanh(input)


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, input: Any) -> Tensor:
        return ops.sigmoid(input)


class ReLU(Module):
    """max(x, 0).

    Raises
    ------
    ArgumentError : ``inplace=True``; tensors do not change under the user.
    """

    def __init__(self, inplace: bool = False) -> None:
        if inplace:
            raise ArgumentError("ReLU: inplace=True is not supported, tensors do not change in place; leave it out")

    def forward(self, input: Any) -> Tensor:
        return ops.relu(input)


class Softplus(Module):
    """log(1 + exp(beta x)) / beta.

    Parameters
    ----------
    beta : positive.
    threshold : PyTorch returns x itself where beta x exceeds it, which is 2e-9 off at 20. The formula here does not
        overflow and holds everywhere, so only the default is taken.

    Raises
    ------
    ArgumentError : a beta that is not positive, another threshold.
    """

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        if not beta > 0:
            raise ArgumentError(f"Softplus: beta must be positive, got {beta!r}")
        if threshold != 20.0:
            raise ArgumentError(
                f"Softplus: threshold={threshold!r} is not supported; the formula is exact everywhere, leave it out"
            )
        self.beta = float(beta)

    def forward(self, input: Any) -> Tensor:
        if self.beta == 1.0:
            return ops.softplus(input)
        return ops.softplus(ops.multiply(input, self.beta)) / self.beta

    def extra_repr(self) -> str:
        return "" if self.beta == 1.0 else f"beta={self.beta}"
