"""Initialisers: write random or constant numbers into a leaf, which is returned.

The random ones take one draw of the generator each (the context's by default), so that a seed fixes a model.
For weights (out, in, *receptive field), fan_in = in x receptive field, fan_out = out x receptive field.
"""

from __future__ import annotations

import math

import numpy as np

from gmcore import ops
from gmcore.errors import ArgumentError, ShapeError, unknown_name
from gmcore.random import Generator
from gmcore.tensor import Tensor

_GAINS = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), 1.0),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "sigmoid"), 1.0),
    "tanh": 5.0 / 3.0,
    "relu": math.sqrt(2.0),
    "selu": 3.0 / 4.0,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor by which weights must grow so that activations keep their scale through `nonlinearity`.

    1 for linear layers and sigmoid, 5/3 for tanh, sqrt(2) for relu, 3/4 for selu, sqrt(2 / (1 + param^2)) for
    leaky_relu with negative slope `param` (0.01 by default). PyTorch's table.

    Raises
    ------
    UnknownNameError : another nonlinearity.
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1.0 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in _GAINS:
        raise unknown_name("nonlinearity", nonlinearity, [*_GAINS, "leaky_relu"])
    return _GAINS[nonlinearity]


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Numbers uniform in (a, b]."""
    return tensor.copy_(ops.uniform(tensor.shape, dtype=tensor.dtype, generator=generator) * (b - a) + a)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Numbers from N(mean, std^2)."""
    return tensor.copy_(ops.normal(tensor.shape, dtype=tensor.dtype, generator=generator) * std + mean)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Every element `val`."""
    return tensor.copy_(np.full(tensor.shape, val, tensor.dtype))


def ones_(tensor: Tensor) -> Tensor:
    return constant_(tensor, 1.0)


def zeros_(tensor: Tensor) -> Tensor:
    return constant_(tensor, 0.0)


def _fans(tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out); at least 1, so that a weight without elements is initialised, to nothing."""
    if tensor.ndim < 2:
        raise ShapeError(f"fan_in and fan_out need a weight of two or more axes (out, in, ...), got {tensor.shape}")
    receptive_field = math.prod(tensor.shape[2:])
    return max(1, tensor.shape[1] * receptive_field), max(1, tensor.shape[0] * receptive_field)


def _xavier_std(tensor: Tensor, gain: float) -> float:
    return gain * math.sqrt(2.0 / sum(_fans(tensor)))


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """U(-a, a) with a = gain sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, equation 16).

    Raises
    ------
    ShapeError : fewer than two axes.
    """
    a = math.sqrt(3.0) * _xavier_std(tensor, gain)
    return uniform_(tensor, -a, a, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """N(0, std^2) with std = gain sqrt(2 / (fan_in + fan_out)) (Glorot & Bengio 2010).

    Raises
    ------
    ShapeError : fewer than two axes.
    """
    return normal_(tensor, 0.0, _xavier_std(tensor, gain), generator)


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ArgumentError(f"mode must be 'fan_in' or 'fan_out', got {mode!r}")
    fan_in, fan_out = _fans(tensor)
    return calculate_gain(nonlinearity, a) / math.sqrt(fan_in if mode == "fan_in" else fan_out)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """U(-b, b) with b = gain sqrt(3 / fan) (He et al. 2015, equation 10).

    Parameters
    ----------
    a : negative slope, for ``leaky_relu``.
    mode : ``"fan_in"`` keeps the scale of activations, ``"fan_out"`` of gradients.

    Raises
    ------
    ShapeError : fewer than two axes.  ArgumentError : an unknown mode.  UnknownNameError : an unknown nonlinearity.
    """
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """N(0, std^2) with std = gain / sqrt(fan) (He et al. 2015, equation 10); arguments of `kaiming_uniform_`.

    Raises
    ------
    ShapeError : fewer than two axes.  ArgumentError : an unknown mode.  UnknownNameError : an unknown nonlinearity.
    """
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """Numbers from N(mean, std^2) within [a, b]: mean + std Phi^-1(u) with u uniform in (Phi(a'), Phi(b')].

    Raises
    ------
    ArgumentError : an interval without numbers, or std not positive.
    """
    if not (a < b and std > 0):
        raise ArgumentError(f"trunc_normal_: expected a < b and std > 0, got a={a}, b={b}, std={std}")
    low, high = ((limit - mean) / std for limit in (a, b))
    # From the side where the interval's probabilities are small, and so have the most digits.
    sign = -1.0 if low > 0 else 1.0
    ends = sorted(float(ops.ndtr(np.float64(sign * x)).item()) for x in (low, high))
    u = ops.uniform(tensor.shape, dtype="float64", generator=generator)
    x = mean + std * sign * ops.ndtri(ends[0] + (ends[1] - ends[0]) * u)
    return tensor.copy_(ops.clip(x, a, b))


def eye_(tensor: Tensor) -> Tensor:
    """The identity matrix, which keeps as many inputs as it can. Raises `ShapeError` unless there are two axes."""
    if tensor.ndim != 2:
        raise ShapeError(f"eye_: expected a matrix, got shape {tensor.shape}")
    return tensor.copy_(np.eye(*tensor.shape, dtype=tensor.dtype))


def dirac_(tensor: Tensor, groups: int = 1) -> Tensor:
    """The weight (out, in, *receptive field) of a convolution that passes as many channels as it can unchanged.

    Parameters
    ----------
    groups : each group of out / groups output channels passes the input channels from the first on.

    Raises
    ------
    ShapeError : a weight that has not three to five axes, or whose out is no multiple of `groups`.
    """
    if tensor.ndim not in (3, 4, 5) or groups < 1 or tensor.shape[0] % groups:
        raise ShapeError(
            f"dirac_: expected a weight (out, in, ...) of three to five axes with out a multiple of groups={groups}, "
            f"got {tensor.shape}"
        )
    weight = np.zeros(tensor.shape, tensor.dtype)
    middle = tuple(n // 2 for n in tensor.shape[2:])
    per_group = tensor.shape[0] // groups
    for group in range(groups):
        for channel in range(min(per_group, tensor.shape[1])):
            weight[(group * per_group + channel, channel, *middle)] = 1.0
    return tensor.copy_(weight)


def orthogonal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """gain times a matrix (out, in x receptive field) with orthonormal rows, or columns if there are more rows.

    The Q of the QR factorisation of normal numbers, with a positive diagonal of R: uniform over all such matrices
    (Mezzadri, How to generate random matrices from the classical compact groups, 2007). Saxe, McClelland & Ganguli,
    ICLR 2014.

    Raises
    ------
    ShapeError : fewer than two axes.
    """
    if tensor.ndim < 2:
        raise ShapeError(f"orthogonal_: expected a weight of two or more axes (out, in, ...), got {tensor.shape}")
    rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
    tall = ops.normal((max(rows, columns), min(rows, columns)), dtype="float64", generator=generator)
    if not tall.size:
        return tensor
    q = ops.qr(tall)[0]
    return tensor.copy_(ops.reshape((q if rows >= columns else q.T) * gain, tensor.shape))


def sparse_(tensor: Tensor, sparsity: float, std: float = 0.01, generator: Generator | None = None) -> Tensor:
    """Numbers from N(0, std^2), of which in each column a share `sparsity`, rounded up, is 0. Takes two draws.

    Martens, Deep learning via Hessian-free optimization, ICML 2010, section 5.

    Raises
    ------
    ShapeError : not a matrix.  ArgumentError : a share outside [0, 1].
    """
    if tensor.ndim != 2:
        raise ShapeError(f"sparse_: expected a matrix, got shape {tensor.shape}")
    if not 0 <= sparsity <= 1:
        raise ArgumentError(f"sparse_: sparsity must be in [0, 1], got {sparsity}")
    zeros = math.ceil(sparsity * tensor.shape[0])
    order = ops.argsort(ops.uniform(tensor.shape, generator=generator), axis=0).numpy()
    values = ops.normal(tensor.shape, dtype=tensor.dtype, generator=generator) * std
    return tensor.copy_(ops.where(order < zeros, 0.0, values))
