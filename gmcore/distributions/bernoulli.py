"""The Bernoulli distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from gmcore import ops
from gmcore.distributions import constraints
from gmcore.distributions.distribution import Derived, Distribution, broadcast_all
from gmcore.errors import ArgumentError, GraphError
from gmcore.random import Generator
from gmcore.tensor import Tensor, no_grad


class Bernoulli(Distribution):
    """1 with probability `probs`, else 0, elementwise.

    Parameters
    ----------
    probs : probability of 1, in [0, 1]; or
    logits : log(probs / (1 - probs)), which keeps its precision near 0 and 1. Exactly one of the two is given.
    validate_args : see `Distribution`. False also lets `log_prob` take values between 0 and 1, such as intensities.

    Raises
    ------
    ArgumentError : both or neither of the two, or one outside its range.  DtypeError : integers.

    Notes
    -----
    PyTorch moves `probs` of 0 and 1 inwards by the rounding unit. Here they are meant: the log-probability of an
    impossible value is minus infinity, and of a certain one 0.
    """

    arg_constraints = {"probs": constraints.unit_interval, "logits": constraints.real}
    support = constraints.boolean

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None) -> None:
        if (probs is None) == (logits is None):
            found = "neither" if probs is None else "both"
            raise ArgumentError(f"Bernoulli: expected exactly one of probs and logits, got {found}")
        if probs is not None:
            (given,) = (self.probs,) = broadcast_all(probs=probs)
        else:
            (given,) = (self.logits,) = broadcast_all(logits=logits)
        super().__init__(given.shape, validate_args=validate_args)

    @Derived
    def probs(self) -> Tensor:
        """sigmoid(logits)."""
        return ops.sigmoid(self.logits)

    @Derived
    def logits(self) -> Tensor:
        """log probs - log(1 - probs); infinite for probs of 0 and 1."""
        with np.errstate(divide="ignore"):
            return ops.log(self.probs) - ops.log1p(-self.probs)

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def variance(self) -> Tensor:
        return self.probs * (1.0 - self.probs)

    def rsample(self, sample_shape: Sequence[int] = (), generator: Generator | None = None) -> NoReturn:
        raise GraphError(
            "Bernoulli has no rsample: a value in {0, 1} jumps where it changes. Use sample(), and for a gradient "
            "the score function (log_prob of the sample) or a relaxed distribution"
        )

    def sample(self, sample_shape: Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        """Zeros and ones in the dtype of the parameter; arguments of `Distribution.rsample`."""
        shape = self._extended_shape(sample_shape)
        with no_grad():
            if "logits" in self._given():
                return ops.bernoulli_sample_logits(ops.broadcast_to(self.logits, shape), generator=generator)
            return ops.bernoulli_sample(ops.broadcast_to(self.probs, shape), generator=generator)

    def log_prob(self, value: Any) -> Tensor:
        """value log probs + (1 - value) log(1 - probs), with 0 log 0 = 0; see `Distribution.log_prob`."""
        return self._log_prob(self._as_value(value))

    def _log_prob(self, x: Tensor) -> Tensor:
        if "logits" in self._given():
            return -x * ops.softplus(-self.logits) - (1.0 - x) * ops.softplus(self.logits)
        # Where a logarithm has weight 0 its argument is replaced by 1, for the sake of 0 log 0 and its gradient.
        p = ops.where(ops.equal(x, 0.0), 1.0, self.probs)
        q = ops.where(ops.equal(x, 1.0), 0.0, self.probs)
        with np.errstate(divide="ignore"):
            return x * ops.log(p) + (1.0 - x) * ops.log1p(-q)

    def entropy(self) -> Tensor:
        """-probs log probs - (1 - probs) log(1 - probs)."""
        return -self._log_prob(self.probs)

    def cross_entropy(self, other: Bernoulli) -> Tensor:
        """-sum over x of self(x) log other(x), of the shape of both batches broadcast."""
        return -other._log_prob(self.probs)
