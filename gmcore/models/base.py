"""What training and evaluation ask of any model: batches, gradients, a figure to watch, a figure to report.

Models of data vectors implement less, in terms of a loss and a log-likelihood: see `gmcore.models.generative`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from gmcore import nn
from gmcore.errors import ArgumentError, unknown_name
from gmcore.random import Generator
from gmcore.tensor import Tensor

Report = Callable[[int, int], None]
"""Called with how much of an evaluation is done and how much there is to do, where the state is whole."""


@dataclass(frozen=True)
class Recipe:
    """Training defaults of a model.

    `epochs` suits the embedded digits; larger data sets want fewer. `optimizer` is "adam", with `betas` and `eps`,
    or "sgd", with `momentum` and `nesterov`; `weight_decay` shrinks matrices, not biases; `max_norm` clips the norm of
    the whole gradient. `schedule` names a learning-rate schedule of `gmcore.train`, or is None for a constant rate.
    `eval_samples` is k of the reported bound, or the number of annealing runs where that is by annealing.
    """

    epochs: int
    batch_size: int
    learning_rate: float = 1e-3
    optimizer: str = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    max_norm: float | None = None
    binarize: str = "none"
    eval_samples: int = 5000
    schedule: str | None = None


class Step(NamedTuple):
    """What `Model.compute_gradients` tells of a step."""

    loss: Tensor
    """Mean over the examples of the batch."""
    figures: Mapping[str, Tensor | float]
    """Means to report beside the loss."""
    examples: int
    """How many examples the means are of; an epoch's figures weigh its batches by it."""


class Model(nn.Module):
    """A model that `gmcore.train.fit` can train.

    A subclass sets `name`, `summary`, `source` and `recipe`, keeps the keyword arguments that rebuild it in
    `config` (JSON values only), and is listed by `gmcore.models.register`.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    recipe: ClassVar[Recipe]
    settings: ClassVar[tuple[str, ...]]
    """Constructor arguments a user may set by name (``--set name=value``)."""
    training_figure: str = "bound"
    """What minus the training loss is called."""
    validation_figure: str = "bound"
    """What `validate` returns is called."""
    test_figure: str = "bound"
    """What `measure` calls ``bound`` is called."""
    unit: ClassVar[str] = "nats"
    """Of all three."""
    samples_file: ClassVar[str] = "samples.png"
    """What `draw` writes samples to."""

    config: dict[str, Any]

    @property
    def device(self) -> str:
        """Where its parameters are, and its data go."""
        return next((parameter.device for parameter in self.parameters()), "cpu")

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> None:
        """Raise `UnknownNameError` for a name that is not in `settings`."""
        for name in settings:
            if name not in cls.settings:
                raise unknown_name(f"setting of {cls.name}", name, cls.settings)

    @classmethod
    def build(cls, dataset: Any, settings: Mapping[str, Any], generator: Generator) -> Model:
        """A model for the data set, initialised from `generator`.

        Parameters
        ----------
        dataset : its training split says what the constructor needs to know of the data.
        settings : names from `settings` to values.

        Raises
        ------
        UnknownNameError : a setting that the model does not have.  ArgumentError : a value it does not take.
        DataError : a data set of another kind.
        """
        raise NotImplementedError

    def adapt(self, recipe: Recipe, dataset: Any, chosen: Mapping[str, Any]) -> Recipe:
        """The recipe as it suits the data set, but for what the user has `chosen`."""
        return recipe

    def check_data(self, dataset: Any, recipe: Recipe, seed: int) -> None:
        """Refuse data before anything is written.

        Raises
        ------
        DataError : values or a kind of data that the model is not defined on.  ShapeError : data of another size.
        """
        raise NotImplementedError

    def batches(self, dataset: Any, recipe: Recipe, seed: int, epoch: int) -> Sequence[Any]:
        """The batches of an epoch, the same whenever it is asked: a run resumes in their midst.

        Arrays, or tuples of them, in host memory; a step gets them on the device of the parameters.
        """
        raise NotImplementedError

    def compute_gradients(self, batch: Any, *, generator: Generator) -> Step:
        """Leave the gradient of the loss on a batch in the parameters, whose gradients were None before."""
        raise NotImplementedError

    def training_state(self) -> dict[str, np.ndarray]:
        """What a step leaves to the next besides parameters and buffers: persistent chains, a carried state."""
        return {}

    def load_training_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take back what `training_state` gave. Raises `CheckpointError` if it does not fit."""

    def validate(self, dataset: Any, recipe: Recipe, seed: int, report: Report) -> float:
        """The figure to watch, on the validation split, larger is better; the same noise after each epoch."""
        raise NotImplementedError

    def measure(
        self,
        dataset: Any,
        split: str,
        *,
        recipe: Recipe,
        samples: int,
        seed: int,
        data_seed: int,
        limit: int | None,
        report: Report,
    ) -> dict[str, Any]:
        """The figure to report, on a split.

        Parameters
        ----------
        recipe : with the binarisation of training.
        samples : `eval_samples` of the recipe, or what the user asks for in its place.
        seed : of what the measurement draws.
        data_seed : of the binarisation, that of training.
        limit : only the first `limit` examples, all if None.

        Returns
        -------
        dict : ``bound``; its ``standard_error`` over the examples or None; ``baseline``, the same figure of what a
            model must beat, or None, and what that is, ``baseline_is``; ``n``; all else that the figure depends on.
        """
        raise NotImplementedError

    def draw(self, folder: Path, dataset: Any, recipe: Recipe, seed: int) -> None:
        """Write what the model has learned into the run's folder, as pictures or text."""
        raise NotImplementedError


def check_size(name: str, value: Any) -> int:
    """`value`, if it is an integer above 0. Raises `ArgumentError`, naming the argument `name`, if not."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ArgumentError(f"{name} must be a positive integer, got {value!r}")
    return int(value)


__all__ = ["Model", "Recipe", "Report", "Step", "check_size"]
