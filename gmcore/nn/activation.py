"""Activations as modules."""

from __future__ import annotations

from typing import Any

import numpy as np

from gmcore import ops
from gmcore.device import put
from gmcore.errors import ArgumentError
from gmcore.nn.arguments import floating, positive_integer
from gmcore.nn.functional import Functional
from gmcore.nn.module import Module
from gmcore.nn.parameter import Parameter
from gmcore.tensor import Tensor, as_tensor

_IN_PLACE = {"inplace": False}


class Identity(Module):
    """x itself.

    Parameters
    ----------
    args, kwargs : anything, ignored, so that it can stand in for another layer.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Any) -> Tensor:
        return as_tensor(input)


class Tanh(Functional, function=ops.tanh):
    """tanh x."""


class Sigmoid(Functional, function=ops.sigmoid):
    """1 / (1 + exp(-x))."""


class LogSigmoid(Functional, function=ops.logsigmoid):
    """log(1 / (1 + exp(-x)))."""


class Softsign(Functional, function=ops.softsign):
    """x / (1 + |x|)."""


class ReLU(Functional, function=ops.relu, refused=_IN_PLACE):
    """max(x, 0). Raises `ArgumentError` for ``inplace=True``, as the others do: tensors do not change in place."""


class LeakyReLU(Functional, function=ops.leaky_relu, refused=_IN_PLACE):
    """x where x > 0, else negative_slope x."""


class ELU(Functional, function=ops.elu, refused=_IN_PLACE):
    """x where x > 0, else alpha (exp(x) - 1)."""


class SELU(Functional, function=ops.selu, refused=_IN_PLACE):
    """1.0507 elu(x, alpha=1.6733)."""


class SiLU(Functional, function=ops.silu, refused=_IN_PLACE):
    """x sigmoid(x)."""


class GELU(Functional, function=ops.gelu):
    """x Phi(x), with the normal distribution function Phi; or with ``approximate="tanh"`` nearly that."""


class Hardtanh(Functional, function=ops.hardtanh, refused=_IN_PLACE):
    """x limited to an interval.

    Parameters
    ----------
    min_val, max_val : its ends.
    """


class ReLU6(Functional, function=ops.relu6, refused=_IN_PLACE):
    """min(max(x, 0), 6)."""


class CELU(Functional, function=ops.celu, refused=_IN_PLACE):
    """x where x > 0, else alpha (exp(x / alpha) - 1)."""


class Mish(Functional, function=ops.mish, refused=_IN_PLACE):
    """x tanh(softplus(x))."""


class Hardsigmoid(Functional, function=ops.hardsigmoid, refused=_IN_PLACE):
    """min(max(x / 6 + 1 / 2, 0), 1)."""


class Hardswish(Functional, function=ops.hardswish, refused=_IN_PLACE):
    """x hardsigmoid(x)."""


class Hardshrink(Functional, function=ops.hardshrink):
    """x where |x| > lambd, else 0."""


class Softshrink(Functional, function=ops.softshrink):
    """sign(x) max(|x| - lambd, 0)."""


class Tanhshrink(Functional, function=ops.tanhshrink):
    """x - tanh x."""


class Threshold(Functional, function=ops.threshold, refused=_IN_PLACE):
    """x where x > threshold, else value.

    Parameters
    ----------
    threshold : what x has to exceed.
    value : in place of the others.
    """


class GLU(Module):
    """The first half of an axis, gated by the second: a sigmoid(b).

    Parameters
    ----------
    dim : the axis to halve.
    """

    def __init__(self, dim: int = -1) -> None:
        self.dim = dim

    def forward(self, input: Any) -> Tensor:
        return ops.glu(input, axis=self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class PReLU(Module):
    """x where x > 0, else weight x, with learned slopes.

    Parameters
    ----------
    num_parameters : 1, or the number of channels (axis 1).
    init : what the slopes begin as.
    device, dtype : of the slopes; float32 on the CPU by default.

    Attributes
    ----------
    weight : (num_parameters,)

    Raises
    ------
    ArgumentError : a number below 1, a device that is not there, a dtype that is not floating.
    """

    def __init__(self, num_parameters: int = 1, init: float = 0.25, device: Any = None, dtype: Any = None) -> None:
        count = positive_integer("PReLU", "num_parameters", num_parameters)
        self.weight = Parameter(put(np.full(count, init, floating(dtype)), device))

    def forward(self, input: Any) -> Tensor:
        return ops.prelu(input, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.weight.size}"


class Softmax(Functional, function=ops.softmax, renamed={"dim": "axis"}):
    """exp(x_i) / sum_j exp(x_j) along the axis `dim`, which has to be given."""


class LogSoftmax(Functional, function=ops.log_softmax, renamed={"dim": "axis"}):
    """x_i - log sum_j exp(x_j) along the axis `dim`, which has to be given."""


class Softmin(Functional, function=ops.softmin, renamed={"dim": "axis"}):
    """exp(-x_i) / sum_j exp(-x_j) along the axis `dim`, which has to be given."""


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
