"""The fully connected layer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.errors import ArgumentError
from gmcore.nn import init
from gmcore.nn.module import Module
from gmcore.nn.parameter import Parameter
from gmcore.ops.elementwise import dtype_of
from gmcore.random import Generator
from gmcore.tensor import Tensor, check_device


class Linear(Module):
    """y = x weight^T + bias.

    Parameters
    ----------
    in_features, out_features : lengths of the last axis of the input and of the output, at least 1.
    bias : whether to add a bias.
    device : ``"cpu"`` (the default).
    dtype : floating; float32 by default.

    Attributes
    ----------
    weight : (out_features, in_features);  bias : (out_features,), or None.

    Raises
    ------
    ArgumentError : a length that is no positive integer, a device that is not there, a dtype that is not floating.

    Notes
    -----
    Input (..., in_features), output (..., out_features); another length raises `ShapeError`.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: str | None = None, dtype: Any = None
    ) -> None:
        for name, value in (("in_features", in_features), ("out_features", out_features)):
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ArgumentError(f"Linear: {name} must be a positive integer, got {value!r}")
        check_device(device)
        dtype = np.dtype(np.float32) if dtype is None else dtype_of(dtype)
        self.in_features = int(in_features)
        self.out_features = int(out_features)
        self.weight = Parameter(np.empty((self.out_features, self.in_features), dtype))
        self.bias = Parameter(np.empty(self.out_features, dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw weight and bias from U(-1/sqrt(in_features), 1/sqrt(in_features)), PyTorch's default.

        Takes one draw of the generator (the context's by default) for each.
        """
        init.kaiming_uniform_(self.weight, a=math.sqrt(5.0), generator=generator)
        if self.bias is not None:
            bound = 1.0 / math.sqrt(self.in_features)
            init.uniform_(self.bias, -bound, bound, generator=generator)

    def forward(self, input: Any) -> Tensor:
        return ops.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
