"""The half-normal distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gmcore import ops
from gmcore.distributions import constraints
from gmcore.distributions.distribution import Distribution, broadcast_all
from gmcore.random import Generator
from gmcore.tensor import Tensor


class HalfNormal(Distribution):
    """The size of a normal number of mean 0: |scale eps|, elementwise.

    Parameters
    ----------
    scale : standard deviation of the normal number, positive.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : a scale that is not positive and finite.  DtypeError : integers.
    """

    arg_constraints = {"scale": constraints.positive}
    support = constraints.nonnegative
    has_rsample = True

    def __init__(self, scale: Any, validate_args: bool | None = None) -> None:
        (self.scale,) = broadcast_all(scale=scale)
        super().__init__(self.scale.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return math.sqrt(2.0 / math.pi) * self.scale

    @property
    def variance(self) -> Tensor:
        return (1.0 - 2.0 / math.pi) * ops.square(self.scale)

    @property
    def mode(self) -> Tensor:
        return 0.0 * self.scale

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        eps = self._normal(self._extended_shape(sample_shape), generator)
        return self.scale * ops.absolute(eps)

    def log_prob(self, value: Any) -> Tensor:
        z = self._as_value(value) / self.scale
        return 0.5 * math.log(2.0 / math.pi) - ops.log(self.scale) - 0.5 * ops.square(z)

    def entropy(self) -> Tensor:
        return 0.5 * (1.0 + math.log(0.5 * math.pi)) + ops.log(self.scale)

    def cdf(self, value: Any) -> Tensor:
        return ops.erf(math.sqrt(0.5) * self._as_value(value) / self.scale)

    def icdf(self, value: Any) -> Tensor:
        return math.sqrt(2.0) * self.scale * ops.erfinv(self._as_probability(value))
