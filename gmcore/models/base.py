"""What training, sampling and evaluation ask of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gmcore import nn
from gmcore.errors import unknown_name
from gmcore.random import Generator
from gmcore.tensor import Tensor


@dataclass(frozen=True)
class Recipe:
    """Training defaults of a model.

    `epochs` suits the embedded digits; larger data sets want fewer. `schedule` names a learning-rate schedule
    of `gmcore.train`, or is None for a constant rate.
    """

    epochs: int
    batch_size: int
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    binarize: str = "none"
    eval_samples: int = 5000
    schedule: str | None = None


class GenerativeModel(nn.Module):
    """A model of data vectors x with a bound on log p(x).

    A subclass sets `name`, `summary`, `source` and `recipe`, keeps the keyword arguments that rebuild it in
    `config` (JSON values only), and is listed by `gmcore.models.register`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    recipe: ClassVar[Recipe]
    settings: ClassVar[tuple[str, ...]]
    """Constructor arguments a user may set by name (``--set name=value``)."""

    config: dict[str, Any]

    @classmethod
    def build(cls, train: np.ndarray, settings: Mapping[str, Any], generator: Generator) -> GenerativeModel:
        """A model for the training data, initialised from `generator`.

        Parameters
        ----------
        train : (n, data_size)
        settings : names from `settings` to values.

        Raises
        ------
        UnknownNameError : a setting that the model does not have.  ArgumentError : a value it does not take.
        """
        for name in settings:
            if name not in cls.settings:
                raise unknown_name(f"setting of {cls.name}", name, cls.settings)
        return cls(data_size=train.shape[1], **settings, generator=generator)  # type: ignore[call-arg]

    @property
    def support(self) -> str:
        """Where data must lie: "bernoulli" ({0, 1}), "unit-interval" or "real"."""
        raise NotImplementedError

    def loss(self, x: Tensor, *, generator: Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """What training minimises, in nats per example, and figures to report with it. x : (n, data_size)."""
        raise NotImplementedError

    def log_likelihood(self, x: Tensor, *, samples: int, generator: Generator | None = None) -> Tensor:
        """A lower bound on log p(x) per example, (n,), tighter with more `samples`."""
        raise NotImplementedError

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """Means of p(x | z) at `n` draws of z, (n, data_size)."""
        raise NotImplementedError

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Means of p(x | z) at a draw of z given each x, (n, data_size)."""
        raise NotImplementedError
