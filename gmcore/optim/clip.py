"""Clipping of gradients: `torch.nn.utils`' functions."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np

from gmcore.device import allocating
from gmcore.errors import ArgumentError, DeviceError
from gmcore.tensor import Array, Tensor
from gmcore.watch import computed, computed_tensor, is_watched, relies
from gmkernels import total_norm
from gmkernels.arrays import as_array, on_gpu


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale the gradients so that the norm of all of them together is at most `max_norm`.

        g <- g min(1, max_norm / (norm + 1e-6)),   norm = (sum of |g|^norm_type over all elements)^(1 / norm_type)

    The gradients are read once for the norm, which is accumulated in float64, and once more only if they are scaled.

    Parameters
    ----------
    parameters : one or more tensors; those without a gradient are passed over.
    max_norm : the largest norm; inf only measures one that is finite.
    norm_type : a positive number, or inf for the largest magnitude.
    error_if_nonfinite : refuse a norm that is NaN or infinite; otherwise such gradients become NaN or 0, as in PyTorch.
    foreach : refused unless None; one kernel reads all gradients.

    Returns
    -------
    The norm before clipping, a tensor of no dimensions in the gradients' dtype.

    Raises
    ------
    ArgumentError : a number outside its range, `foreach`, or a norm that is not finite, with the first gradient that
        is not; no gradient is changed then.  DeviceError : gradients on several devices.

    Notes
    -----
    A scaled gradient is a new tensor, in ``.grad``: the backward pass may have given the old one to others too.

    References
    ----------
    Pascanu, Mikolov & Bengio, On the difficulty of training recurrent neural networks, ICML 2013, Algorithm 1.
    """
    _check("clip_grad_norm_", "max_norm", max_norm, foreach)
    if not (isinstance(norm_type, numbers.Real) and float(norm_type) > 0.0):
        raise ArgumentError(f"clip_grad_norm_: norm_type must be a positive number or inf, got {norm_type!r}")
    pairs = _with_gradients("clip_grad_norm_", parameters)
    if len(devices := sorted({p.device for p, _ in pairs})) > 1:
        raise DeviceError(
            f"clip_grad_norm_: gradients are on {' and '.join(devices)}; clip those of each device in a call"
        )
    by_dtype: dict[np.dtype[Any], list[Any]] = {}
    for p, g in pairs:
        by_dtype.setdefault(p.dtype, []).append(g)
    norms = [allocating(total_norm, grads, norm_type=norm_type) for grads in by_dtype.values()]
    norm = allocating(total_norm, norms, norm_type=norm_type)  # of the dtypes' norms, as a rule of one
    if error_if_nonfinite and not math.isfinite(number := Tensor(norm).item()):
        raise ArgumentError(f"clip_grad_norm_: the norm of the gradients is {number}; {_first_nonfinite(pairs)}")
    scale = computed(_scale, norm, max_norm=float(max_norm))
    # A captured step must not look at a number and choose, and to look at one on a GPU is to wait for it: there, a
    # gradient that is short enough is scaled by 1.
    if is_watched() or on_gpu(scale) or scale != 1.0:
        factors = {dtype: computed(_rounded, scale, dtype=dtype) for dtype in by_dtype}
        with np.errstate(all="ignore"):
            for p, g in pairs:
                p.grad = computed_tensor(np.multiply, g, factors[p.dtype])
    dtype = np.result_type(*by_dtype) if by_dtype else np.dtype(np.float32)
    return computed_tensor(_rounded, norm, dtype=dtype)


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None) -> None:
    """Clip every element of the gradients to [-clip_value, clip_value]; NaN stays.

    Parameters
    ----------
    parameters : one or more tensors; those without a gradient are passed over.
    clip_value : the largest magnitude.
    foreach : refused unless None.

    Raises
    ------
    ArgumentError : a `clip_value` that is no number of at least 0, or `foreach`.

    Notes
    -----
    A clipped gradient is a new tensor, as for `clip_grad_norm_`.
    """
    _check("clip_grad_value_", "clip_value", clip_value, foreach)
    for p, g in _with_gradients("clip_grad_value_", parameters):
        bound = p.dtype.type(clip_value)
        p.grad = computed_tensor(_limited, g, bound=bound)


def _scale(norm: Array, max_norm: float) -> Array:
    with np.errstate(all="ignore"):
        return as_array(np.minimum(max_norm / (norm + 1e-6), 1.0))


def _limited(g: Array, bound: Any) -> Array:
    return as_array(np.clip(g, -bound, bound))


def _rounded(number: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(all="ignore"):
        return number.astype(dtype)


def _check(function: str, name: str, bound: Any, foreach: bool | None) -> None:
    if not (isinstance(bound, numbers.Real) and float(bound) >= 0.0):
        raise ArgumentError(f"{function}: {name} must be a number of at least 0, got {bound!r}")
    if foreach is not None:
        raise ArgumentError(f"{function}: foreach={foreach!r} is not supported; leave it out")


def _with_gradients(function: str, parameters: Tensor | Iterable[Tensor]) -> list[tuple[Tensor, Array]]:
    """Those of the parameters that have a gradient, with its array."""
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for i, p in enumerate(tensors):
        if not isinstance(p, Tensor):
            raise ArgumentError(f"{function}: parameter {i} is a {type(p).__name__}, expected a tensor")
    relies(tensors)
    return [(p, p.grad._data) for p in tensors if p.grad is not None]


def _first_nonfinite(pairs: list[tuple[Tensor, Array]]) -> str:
    for i, (p, g) in enumerate(pairs):
        if not np.isfinite(g).all():
            return f"the first that is not finite is number {i} of those given, of shape {p.shape}"
    return "every element is finite, but not the sum of their powers"
