"""Normalisation: layer, group and root-mean-square norm over axes, batch norm by a kernel of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gmcore.engine import by_decomposition
from gmcore.errors import ArgumentError, DtypeError, ShapeError
from gmcore.op import Example, Op, kernel, user_line
from gmcore.ops.elementwise import as_floating, cast, real, sqrt
from gmcore.ops.reduce import mean, normalize_axis, sum, wide
from gmcore.ops.shape import Axis, broadcast_to, reshape
from gmcore.tensor import Tensor, as_tensor, finfo, is_floating
from gmcore.watch import computed
from gmkernels.norm import spec


# -- mean 0 and variance 1 ------------------------------------------------------------------------------------
def _standardize_forward(x: Any, axis: tuple[int, ...], eps: float) -> Any:
    dtype = np.result_type(x.dtype, np.float32)  # half types accumulate, and keep their statistics, in float32
    center = np.mean(x, axis=axis, keepdims=True, dtype=dtype)
    deviation = x - center
    # The mean is rounded to its own size, which may be far above that of the deviations: what they still have of
    # a mean is the error, and the variance of what is then left has the precision of the deviations.
    error = np.mean(deviation, axis=axis, keepdims=True)
    deviation -= error
    variance = np.mean(np.square(deviation), axis=axis, keepdims=True)
    deviation /= np.sqrt(variance + dtype.type(eps))
    return deviation.astype(x.dtype, copy=False), center + error, variance


def _standardize_rule(
    g_out: Tensor | None,
    g_mean: Tensor | None,
    g_var: Tensor | None,
    out: Tensor,
    var: Tensor,
    x_shape: tuple[int, ...],
    x_dtype: Any,
    axis: tuple[int, ...],
    eps: float,
) -> list[Tensor]:
    """With n elements along the axes, d = x - mean and s = sqrt(var + eps), so that out = d / s:

    dmean / dx = 1 / n,   dvar / dx = 2 d / n,   dx through out = (g - mean(g) - out mean(g out)) / s
    """
    n = math.prod(x_shape[a] for a in axis)
    s, out = sqrt(var + eps), cast(out, var.dtype)
    total: Any = 0.0
    if g_out is not None:
        g_out = cast(g_out, var.dtype)
        through = sum(g_out * out, axis=axis, keepdims=True) * (1.0 / n)
        total = (g_out - sum(g_out, axis=axis, keepdims=True) * (1.0 / n) - out * through) / s
    if g_mean is not None:
        total = total + broadcast_to(g_mean * (1.0 / n), x_shape)
    if g_var is not None:
        total = total + out * (g_var * s * (2.0 / n))
    return [cast(total, x_dtype)]


def _standardize_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, axis in (((5,), 0), ((3, 2), 0), ((2, 3), -1), ((3, 2, 2), (0, 2)), ((1, 4), 1), ((0, 3), 1)):
        yield (real(rng, shape),), {"axis": axis}
    yield (real(rng, (2, 3)),), {"axis": None, "eps": 0.1}


_standardize = Op(
    "standardize",
    "x",
    "out mean var",
    forward=_standardize_forward,
    vjp=_standardize_rule,
    partial=True,
    exact=True,  # it keeps the statistics of half types in float32 itself
    formula="out = (x - mean) / sqrt(var + eps), with mean and var = mean of (x - mean)^2 over axis",
    source="Ioffe & Szegedy 2015, algorithm 1",
    examples=_standardize_examples,
)


def standardize(x: Any, axis: Axis = None, eps: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    """`x` brought to mean 0 and variance 1 along `axis`, and the mean and variance that it had.

    Parameters
    ----------
    x : any shape, floating.
    axis : an int, a tuple, or None for all axes.
    eps : added to the variance under the root.

    Returns
    -------
    out : the shape and dtype of x.
    mean, var : the shape of x with `axis` kept as 1; float32 for half types. var divides by the number of elements.

    Raises
    ------
    DtypeError : an input that is not floating.  ArgumentError : `axis` out of range, or no elements along it.
    """
    x = as_floating(x, "standardize")
    axes = normalize_axis(x, axis, "standardize")
    if not math.prod(x.shape[a] for a in axes):
        raise ArgumentError(f"standardize: no elements along axis {axes} of shape {x.shape} (called at {user_line()})")
    return _standardize(x, axis=axes, eps=float(eps))


_standardize.public = standardize


# -- the layers -----------------------------------------------------------------------------------------------
def _affine(x: Tensor, weight: Any, bias: Any, shape: tuple[int, ...], name: str) -> Tensor:
    """x * weight + bias, each of them None or of `shape`, which broadcasts to x."""
    size = math.prod(shape)
    for what, value in (("weight", weight), ("bias", bias)):
        if value is not None and as_tensor(value).size != size:
            raise ShapeError(
                f"{name}: {what} {as_tensor(value).shape} does not fit input {x.shape}; expected {size} elements "
                f"(called at {user_line()})"
            )
    if weight is not None:
        x = x * reshape(as_tensor(weight), shape)
    return x if bias is None else x + reshape(as_tensor(bias), shape)


def _trailing(name: str, x: Tensor, normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    """The shape to normalise over. Raises `ShapeError` unless x ends in it."""
    shape = (normalized_shape,) if isinstance(normalized_shape, (int, np.integer)) else tuple(normalized_shape)
    if not shape or x.shape[-len(shape) :] != shape:
        raise ShapeError(
            f"{name}: expected an input whose last axes are {shape}, got {x.shape} (called at {user_line()})"
        )
    return shape


def layer_norm(
    input: Any, normalized_shape: int | Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    """Each row standardised over its last axes, then * weight + bias. Ba, Kiros & Hinton 2016, equation 3.

    Parameters
    ----------
    input : (..., *normalized_shape).
    weight, bias : of shape `normalized_shape`, or None.
    normalized_shape : the last lengths of the input; an int for one axis.
    eps : added to the variance under the root.

    Returns
    -------
    (..., *normalized_shape), in the dtype of `input`.

    Raises
    ------
    DtypeError : an input that is not floating.
    ShapeError : an input with other last axes, a weight or bias of another size.
    ArgumentError : rows of no elements.
    """
    x = as_floating(input, "layer_norm")
    shape = _trailing("layer_norm", x, normalized_shape)
    return _affine(standardize(x, tuple(range(-len(shape), 0)), eps)[0], weight, bias, shape, "layer_norm")


def rms_norm(input: Any, normalized_shape: int | Sequence[int], weight: Any = None, eps: float | None = None) -> Tensor:
    """x / sqrt(mean of x^2 over the last axes + eps) * weight. Zhang & Sennrich 2019, equation 4.

    Parameters
    ----------
    input : (..., *normalized_shape).
    eps : by default the distance from 1 to the next number of the dtype.
    normalized_shape : the last lengths of the input; an int for one axis.
    weight : of shape `normalized_shape`, or None.

    Returns
    -------
    (..., *normalized_shape), in the dtype of `input`.

    Raises
    ------
    DtypeError : an input that is not floating.
    ShapeError : an input with other last axes, a weight of another size.
    ArgumentError : rows of no elements.
    """
    x = as_floating(input, "rms_norm")
    shape = _trailing("rms_norm", x, normalized_shape)
    eps = float(finfo(x.dtype).eps) if eps is None else eps
    terms = wide(x)
    power = mean(terms * terms, axis=tuple(range(-len(shape), 0)), keepdims=True)
    return _affine(cast(terms / sqrt(power + eps), x.dtype), weight, None, shape, "rms_norm")


def group_norm(input: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """Channels standardised in groups, over the group and all axes after it. Wu & He 2018, equation 1.

    Parameters
    ----------
    input : (N, C, ...), with C a multiple of `num_groups`.
    weight, bias : (C,), or None.
    num_groups : number of groups, at least 1; each is of C / num_groups channels.
    eps : added to the variance under the root.

    Returns
    -------
    (N, C, ...), in the dtype of `input`.

    Raises
    ------
    DtypeError : an input that is not floating.
    ShapeError : an input without channels, or channels that do not fit.
    ArgumentError : groups of no elements.
    """
    x = as_floating(input, "group_norm")
    if x.ndim < 2 or num_groups < 1 or x.shape[1] % num_groups:
        raise ShapeError(
            f"group_norm: expected input (N, C, ...) with C a multiple of num_groups={num_groups}, got {x.shape} "
            f"(called at {user_line()})"
        )
    groups = reshape(x, (x.shape[0], num_groups, math.prod(x.shape[1:]) // num_groups))
    out = reshape(standardize(groups, -1, eps)[0], x.shape)
    return _affine(out, weight, bias, (x.shape[1], *(1,) * (x.ndim - 2)), "group_norm")


# -- batch norm -----------------------------------------------------------------------------------------------
def _in_single(forward: Callable[..., Any], rounded: slice) -> Callable[..., Any]:
    """`forward` with half types computed in float32, of whose results the `rounded` ones have the input's dtype.

    The statistics of half types stay float32; the first three inputs have one dtype.
    """

    def function(x: Any, *rest: Any, **attrs: Any) -> Any:
        half = x.dtype.itemsize == 2 and is_floating(x.dtype)
        if not half or any(a.dtype != x.dtype for a in rest[:2]):  # the kernel refuses other dtypes, and mixed ones
            return forward(x, *rest, **attrs)
        found = list(forward(*[a.astype(np.float32) for a in (x, *rest)], **attrs))
        found[rounded] = [y.astype(x.dtype) for y in found[rounded]]
        return tuple(found)

    return function


def _channelwise(x: Tensor, *values: Tensor) -> list[Tensor]:
    """Values of channels, (C,), in a shape that broadcasts to x."""
    return [reshape(value, (x.shape[1], *(1,) * (x.ndim - 2))) for value in values]


def _batch_norm_gradient(
    g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The formula of the kernel, for half types in float32 as there; `mean` only spares it a pass."""
    axes, dtype = (0, *range(2, x.ndim)), x.dtype
    n = math.prod(x.shape[a] for a in axes)
    g, x, weight, var = (cast(t, np.result_type(dtype, np.float32)) for t in (g, x, weight, var))
    weight, var = _channelwise(x, weight, var)
    s = sqrt(var + eps)
    h = (x - _mean(x, axis=axes, keepdims=True)) / s
    d_bias, d_weight = (sum(y, axis=axes, keepdims=True) for y in (g, g * h))
    d_x = (g - d_bias * (1.0 / n) - h * (d_weight * (1.0 / n))) * (weight / s)
    return cast(d_x, dtype), cast(reshape(d_weight, (-1,)), dtype), cast(reshape(d_bias, (-1,)), dtype)


_mean = mean  # `mean` is also the name of an input


def _batch_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape in ((4, 3), (2, 3, 4), (3, 2, 2, 2)):
        yield (real(rng, shape), real(rng, shape[1:2]), real(rng, shape[1:2])), {"eps": 0.1}


def _batch_backward_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape in ((4, 3), (2, 3, 4)):
        weight, mean, var = (real(rng, shape[1:2]) for _ in range(3))
        yield (real(rng, shape), real(rng, shape), weight, mean, np.square(var) + 0.5), {"eps": 0.1}


_batch_norm_backward = Op(
    "batch_norm_backward",
    "g_y x weight mean var",
    "d_x d_weight d_bias",
    forward=_in_single(kernel(spec.BATCH_NORM_BACKWARD), slice(0, 3)),
    vjp=by_decomposition("g_y x weight mean var", _batch_norm_gradient, "eps"),
    exact=True,
    formula=spec.BATCH_NORM_BACKWARD.formula,
    source=spec.BATCH_NORM_BACKWARD.source,
    examples=_batch_backward_examples,
)


def _batch_norm_rule(
    g_out: Tensor | None,
    g_mean: Tensor | None,
    g_var: Tensor | None,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
) -> list[Tensor]:
    """Beside the gradient through out: dmean / dx = 1 / n, dvar / dx = 2 (x - mean) / n."""
    if g_out is None:
        total: Any = x.new_zeros(x.shape)
        d_weight = d_bias = weight.new_zeros(weight.shape)
    else:
        total, d_weight, d_bias = _batch_norm_backward(g_out, x, weight, mean, var, eps=eps)
    n = x.shape[0] * math.prod(x.shape[2:])
    if g_mean is not None:
        total = total + cast(_channelwise(x, g_mean)[0] * (1.0 / n), x.dtype)
    if g_var is not None:
        center, g_var = _channelwise(x, mean, g_var)
        total = total + cast((x - center) * (g_var * (2.0 / n)), x.dtype)
    return [total, d_weight, d_bias]


_batch_norm_training = Op(
    "batch_norm_training",
    "x weight bias",
    "out mean var",
    forward=_in_single(kernel(spec.BATCH_NORM), slice(0, 1)),
    vjp=_batch_norm_rule,
    partial=True,
    exact=True,
    formula=spec.BATCH_NORM.formula,
    source=spec.BATCH_NORM.source,
    examples=_batch_examples,
)


def batch_norm(
    input: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Each channel standardised over the batch, then * weight + bias. Ioffe & Szegedy 2015, algorithms 1 and 2.

    Parameters
    ----------
    input : (N, C) or (N, C, ...).
    running_mean, running_var : (C,), or both None. In training they move by a share `momentum` towards the
        batch's mean and its variance (here with n - 1), through `copy_`; otherwise they take the batch's place.
    weight, bias : (C,), or None.
    training : whether to take the batch's statistics and move the running ones.
    momentum : the share of the batch in the running statistics.
    eps : added to the variance under the root.

    Returns
    -------
    The shape and dtype of `input`.

    Raises
    ------
    DtypeError : an input that is not floating, running statistics that are no floating tensors, or, in training, a
        weight or bias of another dtype.
    ShapeError : shapes that do not fit, or a single value per channel in training, of which there is no variance.
    ArgumentError : no running statistics where they are needed.
    """
    x = as_floating(input, "batch_norm")
    if x.ndim < 2:
        raise ShapeError(f"batch_norm: expected input (N, C) or (N, C, ...), got {x.shape} (called at {user_line()})")
    channels, shape = x.shape[1], (x.shape[1], *(1,) * (x.ndim - 2))
    for name, running in (("running_mean", running_mean), ("running_var", running_var)):
        if running is None and not training:
            raise ArgumentError(f"batch_norm: {name} is None outside training (called at {user_line()})")
        if running is None:
            continue
        if not isinstance(running, Tensor) or not is_floating(running.dtype):
            given = getattr(running, "dtype", type(running).__name__)
            raise DtypeError(f"batch_norm: expected {name} as a floating tensor, got {given} (called at {user_line()})")
        if running.shape != (channels,):
            raise ShapeError(
                f"batch_norm: {name} {running.shape} does not fit input {x.shape}; expected {(channels,)} "
                f"(called at {user_line()})"
            )
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and as_tensor(value).shape != (channels,):
            raise ShapeError(
                f"batch_norm: {name} {as_tensor(value).shape} does not fit input {x.shape}; expected {(channels,)} "
                f"(called at {user_line()})"
            )
    if not training:
        assert running_mean is not None and running_var is not None  # checked above
        scale = 1.0 / sqrt(running_var + eps)
        out = (x - reshape(running_mean, shape)) * reshape(scale if weight is None else scale * weight, shape)
        return cast(out if bias is None else out + reshape(as_tensor(bias), shape), x.dtype)
    n = x.size // channels if channels else 0
    if n < 2:
        raise ShapeError(
            f"batch_norm: expected more than one value per channel, got {x.shape} (called at {user_line()})"
        )
    weight = x.new_ones((channels,)) if weight is None else weight
    bias = x.new_zeros((channels,)) if bias is None else bias
    out, center, variance = _batch_norm_training(x, weight, bias, eps=float(eps))
    for running, new, factor in ((running_mean, center, 1.0), (running_var, variance, n / (n - 1))):
        if running is not None:
            running.copy_(computed(_moved, running._data, new._data, factor=factor, momentum=momentum))
    return out


def _moved(running: np.ndarray, new: np.ndarray, factor: float, momentum: float) -> np.ndarray:
    """A running mean after a batch whose mean is factor * new."""
    return (1.0 - momentum) * running + momentum * (new * factor)
