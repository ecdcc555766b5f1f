"""Invertible functions with the logarithm of their Jacobian determinant, for `TransformedDistribution` and flows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.distributions import constraints
from gmcore.distributions.constraints import Constraint
from gmcore.errors import ArgumentError, ShapeError
from gmcore.tensor import Tensor, as_tensor, finfo

_LOG_2 = math.log(2.0)


class Transform(ABC):
    """y = f(x), one to one.

    Attributes
    ----------
    domain, codomain : the `Constraint` on x, and on y.
    domain_event_dim, codomain_event_dim : how many last axes of x, and of y, belong together; 0: elementwise.
    sign : 1 or -1, or a tensor of them, for an increasing or decreasing elementwise function, None for others.

    Notes
    -----
    A transform of one's own gives `_call`, `_inverse` and `log_abs_det_jacobian`.
    """

    domain: Constraint = constraints.real
    codomain: Constraint = constraints.real
    domain_event_dim = 0
    codomain_event_dim = 0
    sign: Any = 1

    def __call__(self, x: Any) -> Tensor:
        """f(x)."""
        return self._call(as_tensor(x))

    @abstractmethod
    def _call(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _inverse(self, y: Tensor) -> Tensor: ...

    @abstractmethod
    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |det dy/dx| at x with y = f(x); without the last `domain_event_dim` axes of x."""

    @property
    def inv(self) -> Transform:
        """The inverse function."""
        return _Inverse(self)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of f(x) for x of `shape`."""
        return shape

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of x for f(x) of `shape`."""
        return shape

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class _Inverse(Transform):
    def __init__(self, transform: Transform) -> None:
        self.transform = transform
        self.domain, self.codomain = transform.codomain, transform.domain
        self.domain_event_dim, self.codomain_event_dim = transform.codomain_event_dim, transform.domain_event_dim
        self.sign = transform.sign

    def _call(self, x: Tensor) -> Tensor:
        return self.transform._inverse(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self.transform._call(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.transform.log_abs_det_jacobian(y, x)

    @property
    def inv(self) -> Transform:
        return self.transform

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.transform.inverse_shape(shape)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.transform.forward_shape(shape)

    def __repr__(self) -> str:
        return f"{self.transform!r}.inv"


def _sum_last(x: Tensor, dims: int) -> Tensor:
    return ops.sum(x, axis=tuple(range(-dims, 0))) if dims else x


class ComposeTransform(Transform):
    """The transforms of a sequence, one after another.

    Parameters
    ----------
    parts : the first to be applied first.

    Raises
    ------
    ArgumentError : something that is no transform.
    """

    def __init__(self, parts: Sequence[Transform]) -> None:
        for part in parts:
            if not isinstance(part, Transform):
                raise ArgumentError(f"ComposeTransform: expected transforms, got {part!r}")
        self.parts = list(parts)
        if self.parts:
            self.domain, self.codomain = self.parts[0].domain, self.parts[-1].codomain
        self.domain_event_dim = self._event_dim(self.parts)
        self.codomain_event_dim = self.domain_event_dim + sum(
            part.codomain_event_dim - part.domain_event_dim for part in self.parts
        )

    @staticmethod
    def _event_dim(parts: Sequence[Transform]) -> int:
        """How many last axes of the first input belong together, so that each part has those it needs."""
        needed = 0
        for part in reversed(parts):
            needed = part.domain_event_dim + max(needed - part.codomain_event_dim, 0)
        return needed

    @property
    def sign(self) -> Any:
        signs = [part.sign for part in self.parts]
        if any(sign is None for sign in signs):
            return None
        return math.prod(signs)

    def _call(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x

    def _inverse(self, y: Tensor) -> Tensor:
        for part in reversed(self.parts):
            y = part._inverse(y)
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of those of the parts; y is computed anew part by part."""
        event_dim, total = (
            self.domain_event_dim,
            x.new_full(x.shape[: x.ndim - self.domain_event_dim], 0.0),
        )
        for part in self.parts:
            y = part(x)
            total = total + _sum_last(part.log_abs_det_jacobian(x, y), event_dim - part.domain_event_dim)
            event_dim += part.codomain_event_dim - part.domain_event_dim
            x = y
        return total

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for part in self.parts:
            shape = part.forward_shape(shape)
        return shape

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        for part in reversed(self.parts):
            shape = part.inverse_shape(shape)
        return shape

    def __repr__(self) -> str:
        return f"ComposeTransform({self.parts})"


class AffineTransform(Transform):
    """y = loc + scale x.

    Parameters
    ----------
    loc, scale : numbers or tensors that broadcast with x; scale is not 0.
    event_dim : how many last axes belong together.

    Raises
    ------
    ShapeError : shapes that do not broadcast, once that of x is known.
    """

    def __init__(self, loc: Any, scale: Any, event_dim: int = 0) -> None:
        self.loc, self.scale = loc, scale
        self.domain_event_dim = self.codomain_event_dim = event_dim
        self.sign = ops.sign(scale) if hasattr(scale, "dtype") else int(np.sign(scale))

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        loc, scale = as_tensor(self.loc).shape, as_tensor(self.scale).shape
        try:
            return np.broadcast_shapes(shape, loc, scale)
        except ValueError:
            raise ShapeError(f"AffineTransform: loc {loc}, scale {scale} and x {shape} do not broadcast") from None

    inverse_shape = forward_shape

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + self.scale * x

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.loc) / self.scale

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        # Of the shape of x, although the slope does not depend on it.
        return _sum_last(ops.log(ops.absolute(self.scale + 0.0 * x)), self.domain_event_dim)


class ExpTransform(Transform):
    """y = exp(x)."""

    codomain = constraints.positive

    def _call(self, x: Tensor) -> Tensor:
        return ops.exp(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return ops.log(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x


class SoftplusTransform(Transform):
    """y = log(1 + exp(x))."""

    codomain = constraints.positive

    def _call(self, x: Tensor) -> Tensor:
        return ops.softplus(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return y + ops.log(-ops.expm1(-y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -ops.softplus(-x)


class SigmoidTransform(Transform):
    """y = 1 / (1 + exp(-x)), kept off 0 and 1 by the least positive number and the rounding unit, as in PyTorch."""

    codomain = constraints.open_unit_interval

    def _call(self, x: Tensor) -> Tensor:
        limits = finfo(x.dtype)
        return ops.clip(ops.sigmoid(x), float(limits.tiny), 1.0 - float(limits.eps))

    def _inverse(self, y: Tensor) -> Tensor:
        return ops.log(y) - ops.log1p(-y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return -ops.softplus(-x) - ops.softplus(x)


class TanhTransform(Transform):
    """y = tanh(x). Far out y rounds to -1 or 1, of which the inverse is infinite."""

    codomain = constraints.signed_unit_interval

    def _call(self, x: Tensor) -> Tensor:
        return ops.tanh(x)

    def _inverse(self, y: Tensor) -> Tensor:
        with np.errstate(divide="ignore"):
            return ops.arctanh(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log(1 - tanh^2 x) = 2 (log 2 - x - log(1 + exp(-2 x)))."""
        return 2.0 * (_LOG_2 - x - ops.softplus(-2.0 * x))


class StickBreakingTransform(Transform):
    """From K - 1 numbers to K probabilities: each takes its share sigmoid(x_k - log(K - k)) of what is left, k from 1.

    The zero vector gives equal probabilities. Stan Reference Manual, section "Unit simplex transform".
    """

    domain = constraints.real_vector
    codomain = constraints.simplex
    domain_event_dim = codomain_event_dim = 1
    sign = None

    @staticmethod
    def _log_left(x: Tensor) -> Tensor:
        """log(K - k), of the classes after each."""
        return x.beside(np.log(np.arange(x.shape[-1], 0, -1)).astype(x.dtype))

    def _call(self, x: Tensor) -> Tensor:
        """z_k (1 - z_1) ... (1 - z_(k-1)), by logarithms, with z_K = 1."""
        a = x - self._log_left(x)
        zero = a.new_full((*a.shape[:-1], 1), 0.0)
        log_left = ops.concatenate([zero, ops.cumsum(-ops.softplus(a), axis=-1)], axis=-1)
        return ops.exp(log_left + ops.concatenate([-ops.softplus(-a), zero], axis=-1))

    def _inverse(self, y: Tensor) -> Tensor:
        """The logit of y_k over what y_k and those after it add up to."""
        after = ops.flip(ops.cumsum(ops.flip(y, -1), axis=-1), -1)[..., 1:]
        with np.errstate(divide="ignore"):
            logit = ops.log(y[..., :-1]) - ops.log(after)
        return logit + self._log_left(logit)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """sum_k log z_k + log(1 - z_k) + log of what was left: a triangular Jacobian."""
        a = x - self._log_left(x)
        log_left = ops.cumsum(-ops.softplus(a), axis=-1)  # after the k-th share
        return ops.sum(log_left - ops.softplus(-a), axis=-1)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] + 1)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] - 1)
