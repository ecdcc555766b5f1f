"""The normal distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gmcore import ops
from gmcore.distributions import constraints
from gmcore.distributions.distribution import Distribution, broadcast_all
from gmcore.random import Generator
from gmcore.tensor import Tensor

_LOG_2PI = math.log(2.0 * math.pi)


class Normal(Distribution):
    """N(loc, scale^2), elementwise.

    Parameters
    ----------
    loc : mean.
    scale : standard deviation, positive; broadcasts with `loc`.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : a scale that is not positive, a parameter that is not finite.  ShapeError, DtypeError : shapes
        that do not broadcast, integers.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None) -> None:
        self.loc, self.scale = broadcast_all(loc=loc, scale=scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return ops.square(self.scale)

    @property
    def stddev(self) -> Tensor:
        return self.scale

    @property
    def mode(self) -> Tensor:
        return self.loc

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        """loc + scale eps with eps ~ N(0, 1) (Kingma & Welling 2014); arguments of `Distribution.rsample`."""
        eps = self._normal(self._extended_shape(sample_shape), generator)
        return self.loc + self.scale * eps

    def log_prob(self, value: Any) -> Tensor:
        """-((value - loc) / scale)^2 / 2 - log scale - log(2 pi) / 2; see `Distribution.log_prob`."""
        standard = (self._as_value(value) - self.loc) / self.scale
        return -0.5 * ops.square(standard) - ops.log(self.scale) - 0.5 * _LOG_2PI

    def entropy(self) -> Tensor:
        """log scale + (1 + log 2 pi) / 2."""
        return ops.log(self.scale) + 0.5 * (1.0 + _LOG_2PI)

    def cdf(self, value: Any) -> Tensor:
        """Phi((value - loc) / scale)."""
        return ops.ndtr((self._as_value(value) - self.loc) / self.scale)

    def icdf(self, value: Any) -> Tensor:
        """loc + scale Phi^-1(value)."""
        return self.loc + self.scale * ops.ndtri(self._as_probability(value))
