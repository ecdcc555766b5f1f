"""The Bernoulli distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.distributions import constraints
from gmcore.distributions.trials import Trials
from gmcore.random import Generator
from gmcore.tensor import Tensor, no_grad, tensor


class Bernoulli(Trials):
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
        super().__init__(self._set_trials(probs, logits), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def variance(self) -> Tensor:
        return self.probs * (1.0 - self.probs)

    def sample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        """Zeros and ones in the dtype of the parameter; arguments of `Distribution.rsample`."""
        shape = self._extended_shape(sample_shape)
        with no_grad():
            if "logits" in self._given():
                return ops.bernoulli_sample_logits(ops.broadcast_to(self.logits, shape), generator=generator)
            return ops.bernoulli_sample(ops.broadcast_to(self.probs, shape), generator=generator)

    def log_prob(self, value: Any) -> Tensor:
        """value log probs + (1 - value) log(1 - probs), with 0 log 0 = 0; see `Distribution.log_prob`."""
        x = self._as_value(value)
        return self._log_powers(x, 1.0 - x)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """0 and 1 on a new leading axis: (2, *batch_shape), or (2, 1, ..., 1) without `expand`."""
        values = tensor(np.arange(2, dtype=self._dtype).reshape(2, *(1,) * len(self.batch_shape)), device=self._device)
        return ops.broadcast_to(values, (2, *self.batch_shape)) if expand else values

    @property
    def mode(self) -> Tensor:
        """The more probable of 0 and 1; 0 of two equal ones."""
        return ops.cast(ops.greater(self.probs, 0.5), self._dtype)

    def entropy(self) -> Tensor:
        """-probs log probs - (1 - probs) log(1 - probs)."""
        return -self._log_powers(self.probs, 1.0 - self.probs)

    def cross_entropy(self, other: Bernoulli) -> Tensor:
        """-sum over x of self(x) log other(x), of the shape of both batches broadcast."""
        return -other._log_powers(self.probs, 1.0 - self.probs)
