"""Continuous relaxations of the Bernoulli and the categorical distribution: Gumbel-softmax, or concrete."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.distributions import constraints
from gmcore.distributions.categorical import Classes
from gmcore.distributions.constraints import Constraint
from gmcore.distributions.distribution import Distribution
from gmcore.distributions.location_scale import Gumbel, Logistic
from gmcore.distributions.transformed import TransformedDistribution
from gmcore.distributions.transforms import ExpTransform, SigmoidTransform
from gmcore.distributions.trials import Trials
from gmcore.errors import ArgumentError, DtypeError, ShapeError
from gmcore.op import user_line
from gmcore.random import Generator
from gmcore.tensor import Tensor, as_tensor, finfo, is_floating


def _check_temperature(name: str, temperature: Any) -> Any:
    if not np.all(constraints.positive.contains(as_tensor(temperature)._data)):
        raise ArgumentError(f"{name}: the temperature must be positive and finite, got {temperature!r}")
    return temperature


def _log(temperature: Any) -> Any:
    """Of a number, which takes the dtype of what it is added to, or of a tensor."""
    return math.log(temperature) if isinstance(temperature, (int, float)) else ops.log(temperature)


def gumbel_softmax(
    logits: Any,
    tau: Any = 1.0,
    hard: bool = False,
    axis: int = -1,
    *,
    generator: Generator | None = None,
    key: Tensor | None = None,
) -> Tensor:
    """A sample of the Gumbel-softmax distribution: softmax((logits + g) / tau) with Gumbel noise g.

    Parameters
    ----------
    logits : (..., K, ...), floating; the logarithms of the probabilities up to a constant.
    tau : the temperature, positive; towards 0 the samples become one-hot.
    hard : give the one-hot vector of the largest element, with the gradient of the soft sample.
    axis : the axis of the K classes (PyTorch's ``dim``).
    generator : gives one draw; by default the context's.
    key : a draw taken before, to draw the same noise again.

    Returns
    -------
    Tensor like `logits`; along `axis` it adds up to 1.

    Raises
    ------
    ArgumentError : a temperature that is not positive.  DtypeError : logits that are not floating.

    Notes
    -----
    Jang, Gu & Poole, Categorical reparameterization with Gumbel-softmax (ICLR 2017); Maddison, Mnih & Teh, The concrete
    distribution (ICLR 2017).
    """
    logits = as_tensor(logits)
    if not is_floating(logits.dtype):
        raise DtypeError(f"gumbel_softmax: expected floating logits, got {logits.dtype} (called at {user_line()})")
    _check_temperature("gumbel_softmax", tau)
    u = ops.uniform(logits.shape, dtype="float64", device=logits.device, generator=generator, key=key)
    soft = ops.softmax((logits + ops.cast(Gumbel.quantile(u), logits.dtype)) / tau, axis=axis)
    if not hard:
        return soft
    classes = ops.one_hot(ops.argmax(soft, axis=axis), soft.shape[axis])
    return ops.straight_through(ops.moveaxis(ops.cast(classes, soft.dtype), -1, axis), soft)


class LogitRelaxedBernoulli(Trials):
    """The logit of a `RelaxedBernoulli` number: (logits + z) / temperature with z of the standard logistic.

    Maddison, Mnih & Teh (2017), appendix C.3.

    Parameters
    ----------
    temperature : positive; broadcasts with the other.
    probs, logits : probability of 1, or its log odds: one of the two.
    validate_args : check parameters and values (the default).

    Raises
    ------
    ArgumentError : a temperature that is not positive, both or neither of probs and logits, or values outside.
    """

    arg_constraints = {
        "probs": constraints.open_unit_interval,
        "logits": constraints.real,
        "temperature": constraints.positive,
    }
    temperature: Tensor
    support = constraints.real
    has_rsample = True

    def __init__(
        self, temperature: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        super().__init__(self._set_trials(probs, logits, temperature=temperature), validate_args=validate_args)

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        noise = self._noise(self._extended_shape(sample_shape), Logistic.quantile, generator)
        return (self.logits + noise) / self.temperature

    def log_prob(self, value: Any) -> Tensor:
        """log temperature - d - 2 log(1 + exp(-d)) with d = temperature value - logits."""
        d = self.temperature * self._as_value(value) - self.logits
        return ops.log(self.temperature) - d - 2.0 * ops.softplus(-d)


class RelaxedBernoulli(TransformedDistribution):
    """A number in (0, 1), the nearer to its ends the lower the temperature: a relaxation of `Bernoulli`.

    Parameters
    ----------
    temperature : positive; broadcasts with the other.
    probs : probability of 1, in (0, 1); or
    logits : log(probs / (1 - probs)). Exactly one of the two is given.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : both or neither of the two, or a parameter outside its range.  DtypeError : integers.

    Notes
    -----
    sigmoid((logits + z) / temperature) with z of the standard logistic distribution: Maddison, Mnih & Teh, The concrete
    distribution (ICLR 2017). It is above 1/2 with the probability `probs` at any temperature.
    """

    def __init__(
        self, temperature: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        base = LogitRelaxedBernoulli(temperature, probs, logits, validate_args)
        super().__init__(base, SigmoidTransform(), validate_args)


class ExpRelaxedCategorical(Classes):
    """The logarithm of a `RelaxedOneHotCategorical` vector: log_softmax((logits + g) / temperature), g Gumbel noise.

    Maddison, Mnih & Teh (2017), appendix C.4.

    Parameters
    ----------
    temperature : a positive number, or a tensor without axes.
    probs, logits : probabilities of the classes, or their logarithms up to a constant: one of the two, (..., classes).
    validate_args : check parameters and values (the default).

    Raises
    ------
    ArgumentError : a temperature that is not positive, both or neither of probs and logits, or values outside.
    ShapeError : several temperatures.
    """

    support = Constraint("a vector of logarithms of probabilities", lambda x: (x <= 1e-5).all(-1), 1)
    has_rsample = True

    def __init__(
        self, temperature: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        self.temperature = _check_temperature(type(self).__name__, temperature)
        if np.ndim(temperature):
            raise ShapeError(f"{type(self).__name__}: expected one temperature, got shape {np.shape(temperature)}")
        super().__init__(probs, logits, True, validate_args)

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        noise = self._noise(self._extended_shape(sample_shape), Gumbel.quantile, generator)
        return ops.log_softmax((self.logits + noise) / self.temperature, axis=-1)

    def log_prob(self, value: Any) -> Tensor:
        """log (K - 1)! + (K - 1) log temperature + sum_k log softmax(logits - temperature value)_k."""
        k = self.event_shape[0]
        score = ops.log_softmax(self.logits - self.temperature * self._as_value(value), axis=-1)
        scale = math.lgamma(k) + (k - 1) * _log(self.temperature)
        return ops.sum(score, axis=-1) + scale

    def entropy(self) -> Tensor:
        return Distribution.entropy(self)


class _PositiveExpTransform(ExpTransform):
    """y = exp(x), kept off 0, of which the density is none, by the least positive number."""

    def _call(self, x: Tensor) -> Tensor:
        return ops.maximum(ops.exp(x), float(finfo(x.dtype).tiny))


class RelaxedOneHotCategorical(TransformedDistribution):
    """K probabilities, the nearer to one-hot the lower the temperature: Gumbel-softmax, or concrete.

    Parameters
    ----------
    temperature : a positive number, or a tensor without axes.
    probs : (..., K), at least 0, not all 0; divided by their sum. Or
    logits : (..., K), the logarithms of the probabilities up to a constant. Exactly one of the two is given.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : both or neither of the two, or a parameter outside its range.  ShapeError : no axis.  DtypeError :
        integers.

    Notes
    -----
    Jang, Gu & Poole, Categorical reparameterization with Gumbel-softmax (ICLR 2017); Maddison, Mnih & Teh, The concrete
    distribution (ICLR 2017).
    """

    def __init__(
        self, temperature: Any, probs: Any = None, logits: Any = None, validate_args: bool | None = None
    ) -> None:
        base = ExpRelaxedCategorical(temperature, probs, logits, validate_args)
        super().__init__(base, _PositiveExpTransform(), validate_args)
        self.support = constraints.simplex
