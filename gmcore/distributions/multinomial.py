"""The multinomial distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.distributions import constraints
from gmcore.distributions.categorical import Classes
from gmcore.distributions.constraints import Constraint
from gmcore.errors import ArgumentError
from gmcore.random import Generator
from gmcore.tensor import Tensor


class Multinomial(Classes):
    """How often each of K classes comes in `total_count` draws.

    Parameters
    ----------
    total_count : an int, the same for the whole batch.
    probs : (..., K), at least 0, not all 0; divided by their sum. Or
    logits : (..., K), the logarithms of the probabilities up to a constant. Exactly one of the two is given.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : a total that is no natural number, both or neither of the two, or one outside its range.
        ShapeError : no axis.  DtypeError : probabilities that are integers.
    """

    def __init__(
        self, total_count: int = 1, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        if not isinstance(total_count, (int, np.integer)) or total_count < 0:
            raise ArgumentError(f"Multinomial: total_count must be an int of at least 0, got {total_count!r}")
        self.total_count = int(total_count)
        self.support = Constraint(
            f"a vector of counts that add up to {total_count}",
            lambda x: (constraints.natural.contains(x)).all(-1) & (x.sum(-1) == total_count),
            1,
        )
        super().__init__(probs, logits, True, validate_args)

    @property
    def mean(self) -> Tensor:
        return self.total_count * self.probs

    @property
    def variance(self) -> Tensor:
        return self.mean * (1.0 - self.probs)

    def sample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        """Counts in the dtype of the parameters; arguments of `Distribution.rsample`."""
        shape = self._extended_shape(sample_shape)[: -len(self.event_shape)]
        draws = self._draw((self.total_count, *shape[: len(shape) - len(self.batch_shape)]), generator)
        return ops.cast(ops.sum(ops.one_hot(draws, self._classes), axis=0), self._dtype)

    def log_prob(self, value: Any) -> Tensor:
        """log total_count! + sum_k (value_k log probs_k - log value_k!)."""
        k = self._as_value(value)
        terms = k * ops.where(ops.equal(k, 0.0), 0.0, self.logits) - ops.lgamma(k + 1.0)
        return ops.sum(terms, axis=-1) + math.lgamma(self.total_count + 1)

    def entropy(self) -> Tensor:
        raise self._no_formula("entropy", "-log_prob(sample(...)).mean(0)")
