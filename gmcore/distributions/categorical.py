"""The categorical distribution, of class numbers and of one-hot vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.distributions import constraints
from gmcore.distributions.constraints import Constraint
from gmcore.distributions.distribution import Derived, Distribution, broadcast_all
from gmcore.errors import ArgumentError, ShapeError
from gmcore.ops.shape import as_shape
from gmcore.random import Generator
from gmcore.tensor import Tensor, no_grad, tensor

# Minus infinity is a class that does not occur.
_logits = Constraint(
    "a vector of numbers below infinity, not all minus infinity",
    lambda x: (x < np.inf).all(-1) & (x > -np.inf).any(-1),
    1,
)


class Classes(Distribution):
    """What distributions over K classes share: `probs` or `logits` (..., K), normalised over the last axis.

    Parameters
    ----------
    probs : (..., K), at least 0, not all 0; divided by their sum. Or
    logits : (..., K), the logarithms of the probabilities up to a constant; minus infinity is a class that does not
        occur. Exactly one of the two is given.
    """

    arg_constraints = {"probs": constraints.weights, "logits": _logits}

    def __init__(self, probs: Any, logits: Any, vectors: bool, validate_args: bool | None) -> None:
        """`vectors`: whether a draw is a vector (K,), or else a number."""
        if (probs is None) == (logits is None):
            found = "neither" if probs is None else "both"
            raise ArgumentError(f"{type(self).__name__}: expected exactly one of probs and logits, got {found}")
        (given,) = broadcast_all(probs=probs) if logits is None else broadcast_all(logits=logits)
        if given.ndim < 1 or given.shape[-1] == 0:
            raise ShapeError(f"{type(self).__name__}: expected parameters (..., K), got shape {given.shape}")
        setattr(self, "probs" if logits is None else "logits", given)
        super().__init__(given.shape[:-1], given.shape[-1:] if vectors else (), validate_args=validate_args)
        if logits is None:
            self.probs = given / ops.sum(given, axis=-1, keepdims=True)
        else:
            self.logits = ops.log_softmax(given, axis=-1)

    @Derived
    def probs(self) -> Tensor:
        """The probabilities."""
        return ops.softmax(self.logits, axis=-1)

    @Derived
    def logits(self) -> Tensor:
        """Their logarithms; of 0 minus infinity, with the derivative 0."""
        impossible = ops.equal(self.probs, 0.0)
        return ops.where(impossible, -np.inf, ops.log(ops.where(impossible, 1.0, self.probs)))

    @property
    def _classes(self) -> int:
        return next(iter(self._given().values())).shape[-1]

    def _draw(self, sample_shape: int | Sequence[int], generator: Generator | None) -> Tensor:
        """Class numbers, int64: the first class up to which the probability is at least a uniform number.

        In float64, so that a float32 parameter has all its classes.
        """
        shape = (*as_shape(sample_shape), *self.batch_shape)
        with no_grad():
            up_to = ops.cumsum(ops.cast(self.probs, "float64"), axis=-1)
            u = ops.expand_dims(ops.uniform(shape, dtype="float64", device=self._device, generator=generator), -1)
            return ops.sum(ops.less(up_to, u * up_to[..., -1:]), axis=-1)

    def entropy(self) -> Tensor:
        """-sum_k probs_k log probs_k, with 0 log 0 = 0."""
        probs = self.probs
        return -ops.sum(probs * ops.where(ops.equal(probs, 0.0), 0.0, self.logits), axis=-1)


class Categorical(Classes):
    """The number of a class, 0 to K - 1 (int64), with given probabilities.

    Parameters
    ----------
    probs : (..., K), at least 0, not all 0; divided by their sum. Or
    logits : (..., K), the logarithms of the probabilities up to a constant; minus infinity is a class that does not
        occur. Exactly one of the two is given.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : both or neither of the two, or one outside its range.  ShapeError : no axis.  DtypeError : integers.
    """

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None) -> None:
        super().__init__(probs, logits, False, validate_args)
        self.support = constraints.integer_interval(0, self._classes - 1)

    @property
    def mode(self) -> Tensor:
        return ops.argmax(self.probs, axis=-1)

    def sample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        """Class numbers, int64; arguments of `Distribution.rsample`."""
        return self._draw(sample_shape, generator)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """The classes on a new leading axis: (K, *batch_shape), or (K, 1, ..., 1) without `expand`."""
        values = tensor(np.arange(self._classes).reshape(-1, *(1,) * len(self.batch_shape)), device=self._device)
        return ops.broadcast_to(values, (self._classes, *self.batch_shape)) if expand else values

    def log_prob(self, value: Any) -> Tensor:
        """logits at the class `value`, integers, which broadcast with the batch."""
        index = ops.cast(self._as_value(value, "float64"), "int64")  # half types do not have all numbers of classes
        shape = np.broadcast_shapes(index.shape, self.batch_shape)
        logits = ops.broadcast_to(self.logits, (*shape, self._classes))
        return ops.take_along_axis(logits, ops.expand_dims(ops.broadcast_to(index, shape), -1), axis=-1)[..., 0]


class OneHotCategorical(Classes):
    """A vector of K elements, 1 at the class and 0 elsewhere, in the dtype of the parameters.

    Parameters: see `Categorical`.
    """

    support = constraints.one_hot

    def __init__(self, probs: Any = None, logits: Any = None, validate_args: bool | None = None) -> None:
        super().__init__(probs, logits, True, validate_args)

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def variance(self) -> Tensor:
        return self.probs * (1.0 - self.probs)

    def _one_hot(self, classes: Tensor) -> Tensor:
        return ops.cast(ops.one_hot(classes, self._classes), self._dtype)

    @property
    def mode(self) -> Tensor:
        return self._one_hot(ops.argmax(self.probs, axis=-1))

    def sample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        """One-hot vectors; arguments of `Distribution.rsample`."""
        return self._one_hot(self._draw(sample_shape, generator))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """The K vectors on a new leading axis: (K, *batch_shape, K), or (K, 1, ..., 1, K) without `expand`."""
        k, ones = self._classes, (1,) * len(self.batch_shape)
        values = tensor(np.eye(k, dtype=self._dtype).reshape(k, *ones, k), device=self._device)
        return ops.broadcast_to(values, (k, *self.batch_shape, k)) if expand else values

    def log_prob(self, value: Any) -> Tensor:
        """logits at the class where `value` is 1."""
        at = ops.equal(self._as_value(value), 1.0)
        return ops.sum(ops.where(at, self.logits, 0.0), axis=-1)


class OneHotCategoricalStraightThrough(OneHotCategorical):
    """`OneHotCategorical` whose `rsample` passes its gradient to the probabilities.

    The straight-through estimator of Bengio, Leonard & Courville (2013), biased by design: see
    `gmcore.ops.straight_through`.

    Parameters
    ----------
    probs, logits : probabilities of the classes, or their logarithms up to a constant: one of the two, (..., classes).
    validate_args : check parameters and values (the default).

    Raises
    ------
    ArgumentError : both or neither of probs and logits, or values outside.
    """

    has_rsample = True

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        sample = self.sample(sample_shape, generator)
        return ops.straight_through(sample, ops.broadcast_to(self.probs, sample.shape))
