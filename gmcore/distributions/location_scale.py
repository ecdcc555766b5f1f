"""Distributions on the line that are loc + scale times a standard one."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.distributions import constraints
from gmcore.distributions.distribution import Distribution, broadcast_all
from gmcore.random import Generator
from gmcore.tensor import Tensor

_EULER = 0.57721566490153286


class LocationScale(Distribution):
    """loc + scale z, elementwise, where z has the standard distribution that a subclass gives.

    Parameters
    ----------
    loc : any finite number.
    scale : positive; broadcasts with `loc`.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : a scale that is not positive, a parameter that is not finite.  ShapeError, DtypeError : shapes
        that do not broadcast, integers.

    Notes
    -----
    A subclass states of z: `log_density`, `distribution_function` and its inverse `quantile`, functions of tensors, and
    the numbers below. Samples are the quantiles of uniforms.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real
    has_rsample = True

    standard_mean = 0.0
    standard_variance: float
    standard_entropy: float

    @staticmethod
    @abstractmethod
    def log_density(z: Tensor) -> Tensor: ...

    @staticmethod
    @abstractmethod
    def distribution_function(z: Tensor) -> Tensor: ...

    @staticmethod
    @abstractmethod
    def quantile(u: Tensor) -> Tensor: ...

    def __init__(self, loc: Any, scale: Any, validate_args: bool | None = None) -> None:
        self.loc, self.scale = broadcast_all(loc=loc, scale=scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.loc + self.standard_mean * self.scale

    @property
    def variance(self) -> Tensor:
        return self.standard_variance * ops.square(self.scale)

    @property
    def mode(self) -> Tensor:
        return self.loc

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        return self.loc + self.scale * self._noise(self._extended_shape(sample_shape), self.quantile, generator)

    def _standard(self, value: Any) -> Tensor:
        return (self._as_value(value) - self.loc) / self.scale

    def log_prob(self, value: Any) -> Tensor:
        return self.log_density(self._standard(value)) - ops.log(self.scale)

    def entropy(self) -> Tensor:
        return self.standard_entropy + ops.log(self.scale)

    def cdf(self, value: Any) -> Tensor:
        return self.distribution_function(self._standard(value))

    def icdf(self, value: Any) -> Tensor:
        with np.errstate(divide="ignore"):  # infinite for 0 and 1
            return self.loc + self.scale * self.quantile(self._as_probability(value))


class Laplace(LocationScale):
    """The density exp(-|x - loc| / scale) / (2 scale). Parameters: see `LocationScale`."""

    standard_variance = 2.0
    standard_entropy = 1.0 + math.log(2.0)

    @staticmethod
    def log_density(z: Tensor) -> Tensor:
        return -ops.absolute(z) - math.log(2.0)

    @staticmethod
    def distribution_function(z: Tensor) -> Tensor:
        below = 0.5 * ops.exp(-ops.absolute(z))
        return ops.where(ops.less(z, 0.0), below, 1.0 - below)

    @staticmethod
    def quantile(u: Tensor) -> Tensor:
        low = ops.less(u, 0.5)
        # The logarithm of each branch at arguments of its own half.
        below, above = ops.where(low, u, 0.5), ops.where(low, 0.5, u)
        return ops.where(low, ops.log(2.0 * below), -ops.log(2.0 - 2.0 * above))


class Logistic(LocationScale):
    """The distribution function sigmoid((x - loc) / scale): of flows and discretised likelihoods.

    Parameters: see `LocationScale`. Salimans, Karpathy, Chen & Kingma, PixelCNN++ (2017), section 2.1, integrate it
    over the steps of a pixel: ``cdf(x + step / 2) - cdf(x - step / 2)``.
    """

    standard_variance = math.pi**2 / 3.0
    standard_entropy = 2.0

    @staticmethod
    def log_density(z: Tensor) -> Tensor:
        return -z - 2.0 * ops.softplus(-z)

    @staticmethod
    def distribution_function(z: Tensor) -> Tensor:
        return ops.sigmoid(z)

    @staticmethod
    def quantile(u: Tensor) -> Tensor:
        return ops.log(u) - ops.log1p(-u)


class Gumbel(LocationScale):
    """The distribution function exp(-exp(-(x - loc) / scale)), of maxima. Parameters: see `LocationScale`."""

    standard_mean = _EULER
    standard_variance = math.pi**2 / 6.0
    standard_entropy = 1.0 + _EULER

    @staticmethod
    def log_density(z: Tensor) -> Tensor:
        return -z - ops.exp(-z)

    @staticmethod
    def distribution_function(z: Tensor) -> Tensor:
        return ops.exp(-ops.exp(-z))

    @staticmethod
    def quantile(u: Tensor) -> Tensor:
        return -ops.log(-ops.log(u))


class Cauchy(LocationScale):
    """The density 1 / (pi scale (1 + ((x - loc) / scale)^2)), without mean (NaN) or variance (infinite).

    Parameters: see `LocationScale`.
    """

    standard_mean = math.nan
    standard_variance = math.inf
    standard_entropy = math.log(4.0 * math.pi)

    @staticmethod
    def log_density(z: Tensor) -> Tensor:
        return -log1p_of_square(z) - math.log(math.pi)

    @staticmethod
    def distribution_function(z: Tensor) -> Tensor:
        return ops.arctan2(1.0, -z) / math.pi  # 1/2 + arctan(z) / pi has no digits left far below

    @staticmethod
    def quantile(u: Tensor) -> Tensor:
        low = ops.less(u, 0.5)
        size = 1.0 / ops.tan(math.pi * ops.where(low, u, 1.0 - u))
        return ops.where(low, -size, size)


def log1p_of_square(z: Tensor) -> Tensor:
    """log(1 + z^2), also where z^2 is too large for a number."""
    far = ops.greater(ops.absolute(z), 1.0)
    near, beyond = ops.where(far, 0.0, z), ops.where(far, z, 1.0)
    above = 2.0 * ops.log(ops.absolute(beyond)) + ops.log1p(ops.square(1.0 / beyond))
    return ops.where(far, above, ops.log1p(ops.square(near)))
