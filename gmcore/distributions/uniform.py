"""The uniform distribution of an interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.distributions import constraints
from gmcore.distributions.constraints import Constraint
from gmcore.distributions.distribution import Distribution, broadcast_all
from gmcore.random import Generator
from gmcore.tensor import Tensor


class Uniform(Distribution):
    """The density 1 / (high - low) between two bounds, elementwise.

    Parameters
    ----------
    low, high : the bounds, low < high; they broadcast.
    validate_args : see `Distribution`. False also lets `log_prob` take values outside: minus infinity.

    Raises
    ------
    ArgumentError : high that is not greater than low.  ShapeError, DtypeError : as in `Normal`.
    """

    has_rsample = True

    def __init__(self, low: Any, high: Any, validate_args: bool | None = None) -> None:
        self.low, self.high = broadcast_all(low=low, high=high)
        bound = self.low._data
        above = Constraint("finite and greater than low", lambda x: (x > bound) & (x < np.inf))
        self.arg_constraints = {"low": constraints.real, "high": above}
        self.support = constraints.interval(bound, self.high._data)
        super().__init__(self.low.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return 0.5 * (self.low + self.high)

    @property
    def variance(self) -> Tensor:
        return ops.square(self.high - self.low) / 12.0

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        u = self._noise(self._extended_shape(sample_shape), lambda u: u, generator)
        return ops.minimum(self.low + (self.high - self.low) * u, self.high)  # the sum may round beyond it

    def log_prob(self, value: Any) -> Tensor:
        x = self._as_value(value)
        inside = ops.logical_and(ops.greater_equal(x, self.low), ops.less_equal(x, self.high))
        return ops.where(inside, -ops.log(self.high - self.low), -np.inf)

    def entropy(self) -> Tensor:
        return ops.log(self.high - self.low)

    def cdf(self, value: Any) -> Tensor:
        return ops.clip((self._as_value(value) - self.low) / (self.high - self.low), 0.0, 1.0)

    def icdf(self, value: Any) -> Tensor:
        return self.low + (self.high - self.low) * self._as_probability(value)
