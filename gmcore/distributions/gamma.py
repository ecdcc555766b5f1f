"""The gamma distribution and its family on the positive numbers; Student's t, its quotient with the normal one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.distributions import constraints
from gmcore.distributions.distribution import Derived, Distribution, broadcast_all
from gmcore.distributions.location_scale import log1p_of_square
from gmcore.random import Generator
from gmcore.tensor import Tensor, tensor


class Gamma(Distribution):
    """The density rate^a x^(a-1) exp(-rate x) / Gamma(a) with a = concentration, elementwise.

    Parameters
    ----------
    concentration, rate : positive; they broadcast.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : a parameter that is not positive and finite.  ShapeError, DtypeError : as in `Normal`.

    Notes
    -----
    `rsample` has the implicit derivative of `gmcore.ops.standard_gamma`, of first order.
    """

    arg_constraints = {"concentration": constraints.positive, "rate": constraints.positive}
    support = constraints.nonnegative
    has_rsample = True
    concentration: Any
    rate: Any

    def __init__(self, concentration: Any, rate: Any, validate_args: bool | None = None) -> None:
        self.concentration, self.rate = broadcast_all(concentration=concentration, rate=rate)
        super().__init__(self.concentration.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.concentration / self.rate

    @property
    def variance(self) -> Tensor:
        return self.concentration / ops.square(self.rate)

    @property
    def mode(self) -> Tensor:
        return ops.relu(self.concentration - 1.0) / self.rate

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        a = ops.broadcast_to(self.concentration, self._extended_shape(sample_shape))
        return ops.standard_gamma(a, generator=generator) / self.rate

    def log_prob(self, value: Any) -> Tensor:
        x, a = self._as_value(value), self.concentration
        with np.errstate(divide="ignore"):
            return a * ops.log(self.rate) + ops.xlogy(a - 1.0, x) - self.rate * x - ops.lgamma(a)

    def entropy(self) -> Tensor:
        a = self.concentration
        return a - ops.log(self.rate) + ops.lgamma(a) + (1.0 - a) * ops.digamma(a)

    def cdf(self, value: Any) -> Tensor:
        return ops.gammainc(self.concentration, self.rate * self._as_value(value))


class Chi2(Gamma):
    """The sum of `df` squares of standard normal numbers: Gamma(df / 2, 1 / 2).

    Parameters
    ----------
    df : degrees of freedom, positive.
    """

    arg_constraints = {"df": constraints.positive}

    def __init__(self, df: Any, validate_args: bool | None = None) -> None:
        (self.df,) = broadcast_all(df=df)
        Distribution.__init__(self, self.df.shape, validate_args=validate_args)

    @Derived
    def concentration(self) -> Tensor:
        """df / 2."""
        return 0.5 * self.df

    @Derived
    def rate(self) -> Tensor:
        """1 / 2."""
        return ops.broadcast_to(tensor(0.5, self._dtype, self._device), self.batch_shape)


class InverseGamma(Distribution):
    """1 / x for x of Gamma(concentration, rate).

    Parameters
    ----------
    concentration, rate : positive, broadcast to the shape of the batch.
    validate_args : check parameters and values (the default).

    Raises
    ------
    ArgumentError : a parameter that is not positive.
    """

    arg_constraints = Gamma.arg_constraints
    support = constraints.positive
    has_rsample = True

    def __init__(self, concentration: Any, rate: Any, validate_args: bool | None = None) -> None:
        self.concentration, self.rate = broadcast_all(concentration=concentration, rate=rate)
        super().__init__(self.concentration.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Infinite for concentrations up to 1."""
        a = self.concentration
        return ops.where(ops.greater(a, 1.0), self.rate / ops.where(ops.greater(a, 1.0), a - 1.0, 1.0), math.inf)

    @property
    def variance(self) -> Tensor:
        """Infinite for concentrations up to 2."""
        exists = ops.greater(self.concentration, 2.0)
        a = ops.where(exists, self.concentration, 3.0)
        return ops.where(exists, ops.square(self.rate / (a - 1.0)) / (a - 2.0), math.inf)

    @property
    def mode(self) -> Tensor:
        return self.rate / (self.concentration + 1.0)

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        a = ops.broadcast_to(self.concentration, self._extended_shape(sample_shape))
        return self.rate * ops.exp(-ops.standard_gamma(a, log=True, generator=generator))

    def log_prob(self, value: Any) -> Tensor:
        x, a = self._as_value(value), self.concentration
        return a * ops.log(self.rate) - (a + 1.0) * ops.log(x) - self.rate / x - ops.lgamma(a)

    def entropy(self) -> Tensor:
        a = self.concentration
        return a + ops.log(self.rate) + ops.lgamma(a) - (1.0 + a) * ops.digamma(a)

    def cdf(self, value: Any) -> Tensor:
        return 1.0 - ops.gammainc(self.concentration, self.rate / self._as_value(value))


class Exponential(Distribution):
    """The density rate exp(-rate x), elementwise.

    Parameters
    ----------
    rate : positive.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : a rate that is not positive and finite.  DtypeError : integers.
    """

    arg_constraints = {"rate": constraints.positive}
    support = constraints.nonnegative
    has_rsample = True

    def __init__(self, rate: Any, validate_args: bool | None = None) -> None:
        (self.rate,) = broadcast_all(rate=rate)
        super().__init__(self.rate.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return 1.0 / self.rate

    @property
    def variance(self) -> Tensor:
        return 1.0 / ops.square(self.rate)

    @property
    def mode(self) -> Tensor:
        return 0.0 * self.rate

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        return self._noise(self._extended_shape(sample_shape), lambda u: -ops.log1p(-u), generator) / self.rate

    def log_prob(self, value: Any) -> Tensor:
        return ops.log(self.rate) - self.rate * self._as_value(value)

    def entropy(self) -> Tensor:
        return 1.0 - ops.log(self.rate)

    def cdf(self, value: Any) -> Tensor:
        return -ops.expm1(-self.rate * self._as_value(value))

    def icdf(self, value: Any) -> Tensor:
        with np.errstate(divide="ignore"):  # infinite for 1
            return -ops.log1p(-self._as_probability(value)) / self.rate


class StudentT(Distribution):
    """loc + scale z, with z a standard normal number over the root of a chi-squared one by its degrees of freedom.

    Parameters
    ----------
    df : degrees of freedom, positive.
    loc : the median.
    scale : positive; all three broadcast.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : df or scale that is not positive and finite.  ShapeError, DtypeError : as in `Normal`.

    Notes
    -----
    `rsample` takes two draws, and has the implicit derivative of `gmcore.ops.standard_gamma` in df.
    """

    arg_constraints = {"df": constraints.positive, "loc": constraints.real, "scale": constraints.positive}
    support = constraints.real
    has_rsample = True

    def __init__(self, df: Any, loc: Any = 0.0, scale: Any = 1.0, validate_args: bool | None = None) -> None:
        self.df, self.loc, self.scale = broadcast_all(df=df, loc=loc, scale=scale)
        super().__init__(self.df.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """NaN for df up to 1."""
        return ops.where(ops.greater(self.df, 1.0), self.loc, math.nan)

    @property
    def variance(self) -> Tensor:
        """Infinite for df above 1 up to 2, and NaN below."""
        exists = ops.greater(self.df, 2.0)
        df = ops.where(exists, self.df, 3.0)
        finite = ops.square(self.scale) * df / (df - 2.0)
        return ops.where(exists, finite, ops.where(ops.greater(self.df, 1.0), math.inf, self.df.new_full((), math.nan)))

    @property
    def mode(self) -> Tensor:
        return self.loc

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        shape = self._extended_shape(sample_shape)
        eps = self._normal(shape, generator)
        half = ops.broadcast_to(0.5 * self.df, shape)
        log_gamma = ops.standard_gamma(half, log=True, generator=generator)
        return self.loc + self.scale * eps * ops.exp(0.5 * (ops.log(half) - log_gamma))

    def log_prob(self, value: Any) -> Tensor:
        z = (self._as_value(value) - self.loc) / self.scale
        return -0.5 * (self.df + 1.0) * log1p_of_square(z / ops.sqrt(self.df)) - self._log_normaliser()

    def _log_normaliser(self) -> Tensor:
        """log of scale sqrt(pi df) Gamma(df / 2) / Gamma((df + 1) / 2)."""
        ratio = ops.lgamma(0.5 * self.df) - ops.lgamma(0.5 * (self.df + 1.0))
        return ops.log(self.scale) + 0.5 * ops.log(math.pi * self.df) + ratio

    def entropy(self) -> Tensor:
        half = 0.5 * (self.df + 1.0)
        return half * (ops.digamma(half) - ops.digamma(0.5 * self.df)) + self._log_normaliser()
