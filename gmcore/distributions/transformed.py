"""Distributions of a function of a sample; the log-normal one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.distributions import constraints
from gmcore.distributions.distribution import Distribution
from gmcore.distributions.independent import Independent
from gmcore.distributions.normal import Normal
from gmcore.distributions.transforms import ComposeTransform, ExpTransform, Transform
from gmcore.errors import ArgumentError, user_line
from gmcore.random import Generator
from gmcore.tensor import Tensor


class TransformedDistribution(Distribution):
    """f(x) for x from another distribution: log p(f(x)) = log p(x) - log |det df/dx|.

    Parameters
    ----------
    base_distribution : of x. Its batch is broadcast with the parameters of the transforms, so that each element has
        noise of its own; and where a transform works on more axes than its event has, the last axes of its batch are
        taken into the event, as by `Independent`.
    transforms : a `Transform`, or a sequence of them, the first to be applied first.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : something that is no transform.  ShapeError : parameters that do not broadcast.

    Notes
    -----
    `cdf` and `icdf` go through those of the base, for elementwise increasing and decreasing functions.
    """

    def __init__(
        self,
        base_distribution: Distribution,
        transforms: Transform | Sequence[Transform],
        validate_args: bool | None = None,
    ) -> None:
        self.transforms = [transforms] if isinstance(transforms, Transform) else list(transforms)
        self._transform = ComposeTransform(self.transforms)
        event = base_distribution.event_shape
        shape = self._transform.forward_shape(base_distribution.batch_shape + event)
        needed = self._transform.inverse_shape(shape)
        if needed != base_distribution.batch_shape + event:
            base_distribution = base_distribution.expand(needed[: len(needed) - len(event)])
        more = self._transform.domain_event_dim - len(event)
        self.base_dist = Independent(base_distribution, more) if more > 0 else base_distribution
        self.has_rsample = base_distribution.has_rsample
        self._extra_dims = max(-more, 0)
        """Axes of the base's event over which the transform is elementwise."""
        event_dim = self._transform.codomain_event_dim + self._extra_dims
        split = len(shape) - event_dim
        codomain = self._transform.codomain if self.transforms else self.base_dist.support
        self.support = constraints.independent(codomain, event_dim - codomain.event_dim)
        super().__init__(shape[:split], shape[split:], validate_args=validate_args)

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        return self._transform(self.base_dist.rsample(sample_shape, generator))

    def sample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        return self._transform(self.base_dist.sample(sample_shape, generator).detach()).detach()

    def log_prob(self, value: Any) -> Tensor:
        y = self._as_value(value)
        x = self._transform._inverse(y)
        jacobian = self._transform.log_abs_det_jacobian(x, y)
        if self._extra_dims:
            jacobian = ops.sum(jacobian, axis=tuple(range(-self._extra_dims, 0)))
        return self.base_dist.log_prob(x) - jacobian

    def _increasing(self, name: str, like: Tensor) -> Tensor:
        """Whether the function increases, where `like` is."""
        sign = self._transform.sign
        if sign is None or self.event_shape:
            raise ArgumentError(
                f"{type(self).__name__} has no closed form of its {name}; expected elementwise monotone transforms "
                f"(called at {user_line()})"
            )
        return ops.greater(sign if isinstance(sign, Tensor) else like.beside(np.asarray(sign)), 0)

    def cdf(self, value: Any) -> Tensor:
        value = self._as_value(value)
        increasing = self._increasing("cdf", value)
        below = self.base_dist.cdf(self._transform._inverse(value))
        return ops.where(increasing, below, 1.0 - below)

    def icdf(self, value: Any) -> Tensor:
        value = self._as_probability(value)
        increasing = self._increasing("icdf", value)
        return self._transform(self.base_dist.icdf(ops.where(increasing, value, 1.0 - value)))

    def _unchecked(self) -> Any:
        new = super()._unchecked()
        new.base_dist = self.base_dist._unchecked()
        return new

    def expand(self, batch_shape: Sequence[int]) -> Any:
        new = copy.copy(self)
        new._batch_shape = tuple(batch_shape)
        new.base_dist = self.base_dist.expand(batch_shape)
        return new

    @property
    def _dtype(self) -> Any:
        return self.base_dist._dtype

    @property
    def _device(self) -> str:
        return self.base_dist._device

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_dist!r}, {self.transforms})"


class LogNormal(TransformedDistribution):
    """exp(x) for x of N(loc, scale^2), elementwise.

    Parameters
    ----------
    loc, scale : mean and standard deviation of the logarithm; scale is positive. They broadcast.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError, ShapeError, DtypeError : as in `Normal`.
    """

    base_dist: Normal

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None) -> None:
        super().__init__(Normal(loc, scale, validate_args), ExpTransform(), validate_args)

    @property
    def loc(self) -> Tensor:
        """The mean of the logarithm."""
        return self.base_dist.loc

    @property
    def scale(self) -> Tensor:
        """The standard deviation of the logarithm."""
        return self.base_dist.scale

    @property
    def mean(self) -> Tensor:
        return ops.exp(self.loc + 0.5 * ops.square(self.scale))

    @property
    def variance(self) -> Tensor:
        s2 = ops.square(self.scale)
        return ops.expm1(s2) * ops.exp(2.0 * self.loc + s2)

    @property
    def mode(self) -> Tensor:
        return ops.exp(self.loc - ops.square(self.scale))

    def entropy(self) -> Tensor:
        return self.base_dist.entropy() + self.loc
