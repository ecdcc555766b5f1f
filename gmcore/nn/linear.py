"""The fully connected layer, and the one that is linear in each of two inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.device import put
from gmcore.errors import ShapeError
from gmcore.nn import init
from gmcore.nn.arguments import floating, positive_integer
from gmcore.nn.module import Module, is_hooked
from gmcore.nn.parameter import Parameter
from gmcore.op import user_line
from gmcore.random import Generator
from gmcore.tensor import Tensor, as_tensor


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
        self.in_features = positive_integer("Linear", "in_features", in_features)
        self.out_features = positive_integer("Linear", "out_features", out_features)
        dtype = floating(dtype)
        self.weight = Parameter(put(np.empty((self.out_features, self.in_features), dtype), device))
        self.bias = Parameter(put(np.empty(self.out_features, dtype), device)) if bias else None
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
        return self.activated(input, "identity")

    def activated(self, input: Any, activation: str) -> Tensor:
        """The activation of that name, one of `ops.ACTIVATIONS`, of the layer's output, in one pass."""
        x = as_tensor(input)
        if x.shape[-1:] != (self.in_features,):
            raise ShapeError(
                f"Linear: expected an input (..., {self.in_features}), got {x.shape} (called at {user_line()})"
            )
        return ops.linear(x, self.weight, self.bias, activation=activation)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def bernoulli_log_prob(layer: Module, input: Any, x: Any) -> Tensor:
    """Log-probability of x under Bernoulli variables whose logits are ``layer(input)``, summed over the last axis.

    Of a `Linear` in one pass, `ops.linear_bernoulli_log_prob`, which equals the two steps up to rounding.

    Parameters
    ----------
    layer : any module; it is called, unless it is a `Linear` without hooks.
    input : what the layer takes.
    x : the shape of the logits or of their last axes, in [0, 1].

    Returns
    -------
    The shape of the logits without its last axis.

    Raises
    ------
    ShapeError : arguments that do not fit.
    """
    if type(layer) is Linear and not is_hooked(layer):
        return ops.linear_bernoulli_log_prob(input, layer.weight, layer.bias, x)
    return ops.bernoulli_log_prob(layer(input), x)


class Bilinear(Module):
    """y_k = x1^T weight_k x2 + bias_k.

    Parameters
    ----------
    in1_features, in2_features, out_features : lengths of the last axes of the inputs and of the output, at least 1.
    bias, device, dtype : as in `Linear`.

    Attributes
    ----------
    weight : (out_features, in1_features, in2_features);  bias : (out_features,), or None. Drawn from U(-b, b) with
        b = 1 / sqrt(in1_features).

    Raises
    ------
    ArgumentError : as `Linear`.  ShapeError : (called) inputs whose last axes have another length, or whose other
        axes differ.
    """

    def __init__(
        self,
        in1_features: int,
        in2_features: int,
        out_features: int,
        bias: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        self.in1_features = positive_integer("Bilinear", "in1_features", in1_features)
        self.in2_features = positive_integer("Bilinear", "in2_features", in2_features)
        self.out_features = positive_integer("Bilinear", "out_features", out_features)
        dtype = floating(dtype)
        self.weight = Parameter(put(np.empty((self.out_features, self.in1_features, self.in2_features), dtype), device))
        self.bias = Parameter(put(np.empty(self.out_features, dtype), device)) if bias else None
        self.reset_parameters()

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw weight and bias anew; takes one draw of the generator for each."""
        bound = 1.0 / math.sqrt(self.in1_features)
        init.uniform_(self.weight, -bound, bound, generator=generator)
        if self.bias is not None:
            init.uniform_(self.bias, -bound, bound, generator=generator)

    def forward(self, input1: Any, input2: Any) -> Tensor:
        a, b = as_tensor(input1), as_tensor(input2)
        if a.shape[-1:] != (self.in1_features,) or b.shape != (*a.shape[:-1], self.in2_features):
            raise ShapeError(
                f"Bilinear: expected inputs (..., {self.in1_features}) and (..., {self.in2_features}), got {a.shape} "
                f"and {b.shape} (called at {user_line()})"
            )
        out = ops.einsum("...i,kij,...j->...k", a, self.weight, b)
        return out if self.bias is None else out + self.bias

    def extra_repr(self) -> str:
        return (
            f"in1_features={self.in1_features}, in2_features={self.in2_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )
