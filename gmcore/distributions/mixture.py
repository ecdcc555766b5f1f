"""Mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.distributions.categorical import Categorical
from gmcore.distributions.constraints import Constraint
from gmcore.distributions.distribution import Distribution
from gmcore.errors import ArgumentError
from gmcore.random import Generator
from gmcore.tensor import Tensor, no_grad


class MixtureSameFamily(Distribution):
    """With probability probs_k a draw of component k; the components are the last axis of one distribution's batch.

    Parameters
    ----------
    mixture_distribution : a `Categorical` of K classes, whose batch broadcasts with that of the components.
    component_distribution : a distribution with batch_shape (..., K).
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : a mixture that is no `Categorical`, or of another number of classes.

    Notes
    -----
    A sample takes the draws of all components, and then one to choose; it has no path to the parameters.
    """

    _why_no_path = "the choice of a component jumps"

    def __init__(
        self,
        mixture_distribution: Categorical,
        component_distribution: Distribution,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(mixture_distribution, Categorical):
            raise ArgumentError(f"MixtureSameFamily: expected a Categorical, got {mixture_distribution!r}")
        *batch, components = component_distribution.batch_shape or (0,)
        classes = mixture_distribution.probs.shape[-1]
        if components != classes:
            raise ArgumentError(
                f"MixtureSameFamily: {classes} probabilities for components of batch_shape "
                f"{component_distribution.batch_shape}; expected (..., {classes})"
            )
        self.mixture_distribution, self.component_distribution = mixture_distribution, component_distribution
        self._components = component_distribution._unchecked()  # a value may be outside the support of some of them
        inside = component_distribution.support
        self.support = Constraint(
            inside.name,
            lambda x: inside.contains(np.expand_dims(x, -1 - len(self.event_shape))).any(-1),
            len(component_distribution.event_shape),
        )
        shape = np.broadcast_shapes(tuple(batch), mixture_distribution.batch_shape)
        super().__init__(shape, component_distribution.event_shape, validate_args=validate_args)

    def _average(self, x: Tensor) -> Tensor:
        """The mean over components of x, (..., K, *event_shape)."""
        axis = -1 - len(self.event_shape)
        probs = self.mixture_distribution.probs
        return ops.sum(ops.reshape(probs, (*probs.shape, *(1,) * len(self.event_shape))) * x, axis=axis)

    @property
    def mean(self) -> Tensor:
        return self._average(self.component_distribution.mean)

    @property
    def variance(self) -> Tensor:
        """The mean of the variances and the variance of the means."""
        means = self.component_distribution.mean
        apart = means - ops.expand_dims(self.mean, -1 - len(self.event_shape))
        return self._average(self.component_distribution.variance + ops.square(apart))

    def _each(self, value: Any) -> Tensor:
        """The value once for each component, on an axis before the event's."""
        return ops.expand_dims(self._as_value(value), -1 - len(self.event_shape))

    def log_prob(self, value: Any) -> Tensor:
        """log sum_k probs_k p_k(value)."""
        log_p = self._components.log_prob(self._each(value))
        return ops.logsumexp(self.mixture_distribution.logits + log_p, axis=-1)

    def cdf(self, value: Any) -> Tensor:
        below = self._components.cdf(self._each(value))
        return ops.sum(self.mixture_distribution.probs * below, axis=-1)

    def sample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        """Samples without a gradient; arguments of `Distribution.rsample`."""
        with no_grad():
            shape, event = self._extended_shape(sample_shape), self.event_shape
            axis = len(shape) - len(event)
            of_all = self.component_distribution.expand(
                (*self.batch_shape, self.component_distribution.batch_shape[-1])
            ).sample(sample_shape, generator)
            chosen = self.mixture_distribution.expand(self.batch_shape).sample(sample_shape, generator)
            index = ops.broadcast_to(
                ops.reshape(chosen, (*chosen.shape, 1, *(1,) * len(event))), (*chosen.shape, 1, *event)
            )
            return ops.squeeze(ops.take_along_axis(of_all, index, axis=axis), axis)

    def expand(self, batch_shape: Sequence[int]) -> MixtureSameFamily:
        components = self.component_distribution.batch_shape[-1]
        return MixtureSameFamily(
            self.mixture_distribution.expand(batch_shape),
            self.component_distribution.expand((*batch_shape, components)),
            self._validate_args,
        )

    @property
    def _dtype(self) -> Any:
        return self.mixture_distribution._dtype

    @property
    def _device(self) -> str:
        return self.mixture_distribution._device

    def __repr__(self) -> str:
        return f"MixtureSameFamily({self.mixture_distribution!r}, {self.component_distribution!r})"
