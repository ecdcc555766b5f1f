"""Distributions of counts: of trials, of events, of failures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.distributions import constraints
from gmcore.distributions.distribution import Distribution, broadcast_all
from gmcore.distributions.trials import Trials, log_power, log_power_of_complement
from gmcore.errors import ArgumentError
from gmcore.random import Generator
from gmcore.tensor import Tensor, no_grad, on_host, tensor


class Binomial(Trials):
    """The number of successes in `total_count` trials.

    Parameters
    ----------
    total_count : 0, 1, 2, ...; broadcasts with the other.
    probs : probability of success, in [0, 1]; or
    logits : log(probs / (1 - probs)). Exactly one of the two is given.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : both or neither of the two, or a parameter outside its range.  ShapeError, DtypeError : as in
        `Normal`; `total_count` may be integers.
    """

    arg_constraints = {
        "probs": constraints.unit_interval,
        "logits": constraints.real,
        "total_count": constraints.natural,
    }

    def __init__(
        self, total_count: Any = 1, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        shape = self._set_trials(probs, logits, total_count=total_count)
        self.support = constraints.integer_interval(0, self.total_count._data)
        super().__init__(shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.total_count * self.probs

    @property
    def variance(self) -> Tensor:
        return self.mean * (1.0 - self.probs)

    @property
    def mode(self) -> Tensor:
        return ops.minimum(ops.floor((self.total_count + 1.0) * self.probs), self.total_count)

    def sample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        """Counts in the dtype of the parameters; arguments of `Distribution.rsample`."""
        shape = self._extended_shape(sample_shape)
        with no_grad():
            n, p = ops.broadcast_to(self.total_count, shape), ops.broadcast_to(self.probs, shape)
            return ops.binomial(n, p, generator=generator)

    def log_prob(self, value: Any) -> Tensor:
        """log (n choose k) + k log probs + (n - k) log(1 - probs)."""
        k = self._as_value(value)
        failures = self.total_count - k
        choices = ops.lgamma(self.total_count + 1.0) - ops.lgamma(k + 1.0) - ops.lgamma(failures + 1.0)
        return choices + self._log_powers(k, failures)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """0 to total_count, one for the whole batch, on a new leading axis.

        Raises
        ------
        ArgumentError : total counts that differ.
        """
        totals = on_host(self.total_count)
        n = totals.max(initial=0)
        if (totals != n).any():
            raise ArgumentError("Binomial: enumerate_support needs one total_count for the whole batch")
        values = self._up_to(int(n))
        return ops.broadcast_to(values, (values.shape[0], *self.batch_shape)) if expand else values

    def entropy(self) -> Tensor:
        """-sum_k P(k) log P(k) over 0 to the largest total_count, exactly."""
        k = self._up_to(int(on_host(self.total_count).max(initial=0)))
        possible = ops.less_equal(k, self.total_count)
        log_prob = self.log_prob(ops.where(possible, k, 0.0))  # 0 is possible for all
        probs = ops.where(possible, ops.exp(log_prob), 0.0)
        return -ops.sum(probs * ops.where(ops.greater(probs, 0.0), log_prob, 0.0), axis=0)

    def _up_to(self, n: int) -> Tensor:
        """0 to n on a new leading axis."""
        counts = np.arange(n + 1, dtype=self._dtype).reshape(-1, *(1,) * len(self.batch_shape))
        return tensor(counts, device=self._device)


class Geometric(Trials):
    """The number of failures before the first success.

    Parameters
    ----------
    probs : probability of success, in (0, 1]; or
    logits : log(probs / (1 - probs)). Exactly one of the two is given.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : both or neither of the two, or one outside its range.  DtypeError : integers.
    """

    arg_constraints = {"probs": constraints.open_unit_above_zero, "logits": constraints.real}
    support = constraints.natural

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None) -> None:
        super().__init__(self._set_trials(probs, logits), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return 1.0 / self.probs - 1.0

    @property
    def variance(self) -> Tensor:
        return (1.0 / self.probs - 1.0) / self.probs

    @property
    def mode(self) -> Tensor:
        return 0.0 * self.probs

    def sample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        """Counts in the dtype of the parameter, floor(log u / log(1 - probs)); arguments of `Distribution.rsample`."""
        with no_grad(), np.errstate(divide="ignore"):
            log_failure = ops.log1p(-ops.cast(self.probs, "float64"))
            count = self._noise(
                self._extended_shape(sample_shape), lambda u: ops.floor(ops.log(u) / log_failure), generator
            )
            return count + 0.0  # no -0

    def log_prob(self, value: Any) -> Tensor:
        """log probs + value log(1 - probs)."""
        k = self._as_value(value)
        return self._log_powers(tensor(1.0, self._dtype, self._device), k)

    def entropy(self) -> Tensor:
        """The entropy of one trial, over probs."""
        p = self.probs
        # At probs = 1 there is nothing but success.
        failure = log_power_of_complement(1.0 - p, p)
        return -(failure + p * ops.log(p)) / p


class NegativeBinomial(Trials):
    """The number of successes before `total_count` failures.

    Parameters
    ----------
    total_count : positive, not necessarily an integer; broadcasts with the other.
    probs : probability of success, in [0, 1); or
    logits : log(probs / (1 - probs)). Exactly one of the two is given.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : both or neither of the two, or a parameter outside its range.  ShapeError, DtypeError : as in
        `Normal`; `total_count` may be integers.

    Notes
    -----
    A Poisson count whose rate is a gamma number, which takes two draws.
    """

    arg_constraints = {
        "probs": constraints.open_unit_below_one,
        "logits": constraints.real,
        "total_count": constraints.positive,
    }
    support = constraints.natural

    def __init__(
        self, total_count: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        super().__init__(self._set_trials(probs, logits, total_count=total_count), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.total_count * ops.exp(self.logits)

    @property
    def variance(self) -> Tensor:
        return self.mean * (1.0 + ops.exp(self.logits))  # 1 - probs has no digits left where probs are near 1

    @property
    def mode(self) -> Tensor:
        return ops.floor(ops.relu(self.total_count - 1.0) * ops.exp(self.logits))

    def sample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        """Counts in the dtype of the parameters; arguments of `Distribution.rsample`."""
        with no_grad():
            total = ops.broadcast_to(self.total_count, self._extended_shape(sample_shape))
            rate = ops.standard_gamma(total, generator=generator) * ops.exp(self.logits)
            return ops.poisson(rate, generator=generator)

    def log_prob(self, value: Any) -> Tensor:
        """log Gamma(n + k) / (Gamma(n) k!) + k log probs + n log(1 - probs)."""
        k, n = self._as_value(value), self.total_count
        ways = ops.lgamma(n + k) - ops.lgamma(k + 1.0) - ops.lgamma(n)
        return ways + self._log_powers(k, n)


class Poisson(Distribution):
    """The number of events at a given rate: P(k) = rate^k exp(-rate) / k!, elementwise.

    Parameters
    ----------
    rate : at least 0.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : a rate that is negative or not finite.  DtypeError : integers.
    """

    arg_constraints = {"rate": constraints.nonnegative}
    support = constraints.natural

    def __init__(self, rate: Any, validate_args: bool | None = None) -> None:
        (self.rate,) = broadcast_all(rate=rate)
        super().__init__(self.rate.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.rate

    @property
    def variance(self) -> Tensor:
        return self.rate

    @property
    def mode(self) -> Tensor:
        return ops.floor(self.rate)

    def sample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        """Counts in the dtype of the rate; arguments of `Distribution.rsample`."""
        with no_grad():
            return ops.poisson(ops.broadcast_to(self.rate, self._extended_shape(sample_shape)), generator=generator)

    def log_prob(self, value: Any) -> Tensor:
        k = self._as_value(value)
        return log_power(k, self.rate) - self.rate - ops.lgamma(k + 1.0)
