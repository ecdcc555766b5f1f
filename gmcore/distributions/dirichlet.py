"""The Dirichlet distribution, of probabilities, and its case of two: the beta distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.distributions import constraints
from gmcore.distributions.distribution import Distribution, broadcast_all
from gmcore.errors import ShapeError
from gmcore.random import Generator
from gmcore.tensor import Tensor


class Dirichlet(Distribution):
    """Probabilities x of K classes, with a density proportional to the product of x_k^(concentration_k - 1).

    Parameters
    ----------
    concentration : (..., K), positive.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : a concentration that is not positive and finite.  ShapeError : no axis.  DtypeError : integers.

    Notes
    -----
    A sample is the softmax of the logarithms of K gamma numbers, which neither under- nor overflow; its derivative is
    their implicit one (`gmcore.ops.standard_gamma`).
    """

    arg_constraints = {"concentration": constraints.positive_vector}
    support = constraints.simplex
    has_rsample = True

    def __init__(self, concentration: Any, validate_args: bool | None = None) -> None:
        (self.concentration,) = broadcast_all(concentration=concentration)
        if self.concentration.ndim < 1:
            raise ShapeError("Dirichlet: expected concentration (..., K), got a number")
        *batch, classes = self.concentration.shape
        super().__init__(batch, (classes,), validate_args=validate_args)

    @property
    def _total(self) -> Tensor:
        return ops.sum(self.concentration, axis=-1, keepdims=True)

    @property
    def mean(self) -> Tensor:
        return self.concentration / self._total

    @property
    def variance(self) -> Tensor:
        mean = self.mean
        return mean * (1.0 - mean) / (self._total + 1.0)

    @property
    def mode(self) -> Tensor:
        """NaN where a concentration is 1 or less, since the density then has no single maximum inside."""
        inside = ops.greater(ops.min(self.concentration, axis=-1, keepdims=True), 1.0)
        excess = ops.where(inside, self.concentration - 1.0, np.nan)
        return excess / ops.sum(excess, axis=-1, keepdims=True)

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        a = ops.broadcast_to(self.concentration, self._extended_shape(sample_shape))
        return ops.softmax(ops.standard_gamma(a, log=True, generator=generator), axis=-1)

    def log_prob(self, value: Any) -> Tensor:
        x, a = self._as_value(value), self.concentration
        with np.errstate(divide="ignore"):
            terms = ops.xlogy(a - 1.0, x) - ops.lgamma(a)
        return ops.sum(terms, axis=-1) + ops.lgamma(ops.sum(a, axis=-1))

    def entropy(self) -> Tensor:
        a, total = self.concentration, ops.sum(self.concentration, axis=-1)
        terms = ops.lgamma(a) - (a - 1.0) * ops.digamma(a)
        return ops.sum(terms, axis=-1) - ops.lgamma(total) + (total - self.event_shape[0]) * ops.digamma(total)


class Beta(Distribution):
    """The density x^(a-1) (1 - x)^(b-1) / B(a, b) on [0, 1], elementwise.

    Parameters
    ----------
    concentration1, concentration0 : a and b, positive; they broadcast.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : a parameter that is not positive and finite.  ShapeError, DtypeError : as in `Normal`.

    Notes
    -----
    A sample is one of `Dirichlet` with two classes, from one draw of twice the size.
    """

    arg_constraints = {"concentration1": constraints.positive, "concentration0": constraints.positive}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, concentration1: Any, concentration0: Any, validate_args: bool | None = None) -> None:
        given = {"concentration1": concentration1, "concentration0": concentration0}
        self.concentration1, self.concentration0 = broadcast_all(**given)
        super().__init__(self.concentration1.shape, validate_args=validate_args)

    @property
    def _total(self) -> Tensor:
        return self.concentration1 + self.concentration0

    @property
    def mean(self) -> Tensor:
        return self.concentration1 / self._total

    @property
    def variance(self) -> Tensor:
        total = self._total
        return self.concentration1 * self.concentration0 / (ops.square(total) * (total + 1.0))

    @property
    def mode(self) -> Tensor:
        """NaN where a parameter is 1 or less, since the density then has no single maximum inside."""
        inside = ops.greater(ops.minimum(self.concentration1, self.concentration0), 1.0)
        return ops.where(inside, self.concentration1 - 1.0, np.nan) / ops.where(inside, self._total - 2.0, 1.0)

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        both = ops.stack([self.concentration1, self.concentration0], axis=-1)
        shape = (*self._extended_shape(sample_shape), 2)
        log_gamma = ops.standard_gamma(ops.broadcast_to(both, shape), log=True, generator=generator)
        return ops.softmax(log_gamma, axis=-1)[..., 0]

    def log_prob(self, value: Any) -> Tensor:
        x = self._as_value(value)
        with np.errstate(divide="ignore"):
            powers = ops.xlogy(self.concentration1 - 1.0, x) + ops.xlogy(self.concentration0 - 1.0, 1.0 - x)
        return powers - self._log_beta()

    def _log_beta(self) -> Tensor:
        a, b = self.concentration1, self.concentration0
        return ops.lgamma(a) + ops.lgamma(b) - ops.lgamma(a + b)

    def entropy(self) -> Tensor:
        a, b, total = self.concentration1, self.concentration0, self._total
        terms = (a - 1.0) * ops.digamma(a) + (b - 1.0) * ops.digamma(b)
        return self._log_beta() - terms + (total - 2.0) * ops.digamma(total)
