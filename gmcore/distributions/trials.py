"""What the distributions of trials with two outcomes share."""

from __future__ import annotations

from typing import Any

import numpy as np

from gmcore import ops
from gmcore.distributions.distribution import Derived, Distribution, broadcast_all
from gmcore.errors import ArgumentError
from gmcore.tensor import Tensor, as_tensor


def log_power(k: Tensor, p: Tensor) -> Tensor:
    """k log p for data k, and 0 where k is 0 whatever p."""
    with np.errstate(divide="ignore"):
        return k * ops.log(ops.where(ops.equal(k, 0.0), 1.0, p))


def log_power_of_complement(k: Tensor, p: Tensor) -> Tensor:
    """k log(1 - p) for data k, and 0 where k is 0 whatever p."""
    with np.errstate(divide="ignore"):
        return k * ops.log1p(-ops.where(ops.equal(k, 0.0), 0.0, p))


class Trials(Distribution):
    """What distributions of trials share: `probs`, the probability of success, or `logits`, and perhaps a total."""

    total_count: Tensor

    def _set_trials(self, probs: Any, logits: Any, **more: Any) -> tuple[int, ...]:
        """Assign the one given and the others, broadcast with each other, and return their shape."""
        if (probs is None) == (logits is None):
            found = "neither" if probs is None else "both"
            raise ArgumentError(f"{type(self).__name__}: expected exactly one of probs and logits, got {found}")
        given = {"probs": probs} if logits is None else {"logits": logits}
        dtype = getattr(probs if logits is None else logits, "dtype", "float32")
        for name, x in more.items():  # counts are often arrays of integers
            if hasattr(x, "dtype") and x.dtype.kind in "iu":
                x = ops.cast(as_tensor(x), dtype)
            given[name] = x
        for name, x in zip(given, broadcast_all(**given), strict=True):
            setattr(self, name, x)
        return vars(self)["probs" if logits is None else "logits"].shape

    @Derived
    def probs(self) -> Tensor:
        """sigmoid(logits)."""
        return ops.sigmoid(self.logits)

    @Derived
    def logits(self) -> Tensor:
        """log probs - log(1 - probs); infinite for probs of 0 and 1."""
        with np.errstate(divide="ignore"):
            return ops.log(self.probs) - ops.log1p(-self.probs)

    def _log_powers(self, successes: Tensor, failures: Tensor) -> Tensor:
        """successes log p + failures log(1 - p), with 0 log 0 = 0."""
        if "logits" in self._given():
            return -successes * ops.softplus(-self.logits) - failures * ops.softplus(self.logits)
        return log_power(successes, self.probs) + log_power_of_complement(failures, self.probs)
