"""Axes of the batch as axes of one draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gmcore import ops
from gmcore.distributions import constraints
from gmcore.distributions.distribution import Distribution
from gmcore.errors import ArgumentError
from gmcore.random import Generator
from gmcore.tensor import Tensor


class Independent(Distribution):
    """The last axes of a distribution's batch as one draw of independent elements: `log_prob` sums over them.

    Parameters
    ----------
    base_distribution : a distribution.
    reinterpreted_batch_ndims : how many of the last axes of its batch.
    validate_args : see `Distribution`.

    Raises
    ------
    ArgumentError : more axes than the batch has.
    """

    def __init__(
        self, base_distribution: Distribution, reinterpreted_batch_ndims: int, validate_args: bool | None = None
    ) -> None:
        batch = base_distribution.batch_shape
        split = len(batch) - reinterpreted_batch_ndims
        if not 0 <= split <= len(batch):
            raise ArgumentError(
                f"Independent: reinterpreted_batch_ndims={reinterpreted_batch_ndims} of a batch of shape {batch}"
            )
        self.base_dist, self.reinterpreted_batch_ndims = base_distribution, reinterpreted_batch_ndims
        self.has_rsample = base_distribution.has_rsample
        self.support = constraints.independent(base_distribution.support, reinterpreted_batch_ndims)
        super().__init__(batch[:split], batch[split:] + base_distribution.event_shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance

    @property
    def mode(self) -> Tensor:
        return self.base_dist.mode

    def rsample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        return self.base_dist.rsample(sample_shape, generator)

    def sample(self, sample_shape: int | Sequence[int] = (), generator: Generator | None = None) -> Tensor:
        return self.base_dist.sample(sample_shape, generator)

    def _sum(self, x: Tensor) -> Tensor:
        return (
            ops.sum(x, axis=tuple(range(-self.reinterpreted_batch_ndims, 0))) if self.reinterpreted_batch_ndims else x
        )

    def log_prob(self, value: Any) -> Tensor:
        return self._sum(self.base_dist.log_prob(value))

    def entropy(self) -> Tensor:
        return self._sum(self.base_dist.entropy())

    def _unchecked(self) -> Any:
        new = super()._unchecked()
        new.base_dist = self.base_dist._unchecked()
        return new

    def expand(self, batch_shape: Sequence[int]) -> Independent:
        inner = self.base_dist.batch_shape[len(self.batch_shape) :]
        base = self.base_dist.expand((*batch_shape, *inner))
        return Independent(base, self.reinterpreted_batch_ndims, self._validate_args)

    @property
    def _dtype(self) -> Any:
        return self.base_dist._dtype

    @property
    def _device(self) -> str:
        return self.base_dist._device

    def __repr__(self) -> str:
        return f"Independent({self.base_dist!r}, {self.reinterpreted_batch_ndims})"
