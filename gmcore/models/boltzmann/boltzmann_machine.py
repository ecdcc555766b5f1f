"""The general Boltzmann machine, with all of its units visible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import gmkernels
from gmcore import nn, ops, pictures
from gmcore.data import Dataset, prepare
from gmcore.errors import ArgumentError
from gmcore.models.base import Recipe, Report, Step, check_size
from gmcore.models.boltzmann.base import BoltzmannModel
from gmcore.models.boltzmann.partition import MOST_ENUMERATED
from gmcore.models.generative import marginal_logits
from gmcore.ops.gibbs import check_binary, check_probabilities
from gmcore.random import Generator, given_or_default
from gmcore.tensor import Tensor, no_grad
from gmkernels.arrays import namespace

_SAMPLE_SWEEPS = 1000
"""Sweeps from independent units to a sample."""
_ROWS = 1 << 12
"""States enumerated at once."""


class BoltzmannMachine(BoltzmannModel):
    """Boltzmann machine (Ackley, Hinton & Sejnowski 1985) of visible units: an Ising model with fields.

        E(x) = -1/2 x^T W x - b^T x,   W symmetric with a zero diagonal,   p(x) = exp(-E(x)) / Z

    p(x_i = 1 | the others) = sigmoid(W_i x + b_i), so Gibbs sampling visits the units in turn. The gradient of -log p
    is -1/2 (x x^T - E_p x x^T) in W, without its diagonal, and -(x - E_p x) in b; E_p is estimated by persistent chains
    that go on from step to step (Tieleman 2008; Younes 1989). Slides that print E(x) = -x^T W x - c^T x count each pair
    twice: their W is half of this one, and their gradient is twice as large.

    A machine of up to 20 units reports log p(x), with Z by enumeration; a larger one the pseudo-log-likelihood
    sum_i log p(x_i | the others) (Besag 1975), which is exact, and no bound on log p(x).

    Parameters
    ----------
    data_size : number of units.
    steps : sweeps of the chains for each step of training.
    chains : number of persistent chains.
    generator : unused, as the weights start at 0.

    Attributes
    ----------
    weight : (data_size, data_size);  bias : (data_size,). `build` starts at independent units with the training data's
        marginals.

    Raises
    ------
    ArgumentError : a size below 1.
    """

    name = "boltzmann"
    summary = "Boltzmann machine without hidden units, persistent chains"
    source = "Ackley, Hinton & Sejnowski, A learning algorithm for Boltzmann machines, Cognitive Science 9(1), 1985"
    recipe = Recipe(
        epochs=40, batch_size=20, learning_rate=0.1, optimizer="sgd", momentum=0.5, schedule="inverse",
        binarize="dynamic",
    )  # fmt: skip
    settings: ClassVar[tuple[str, ...]] = ("steps", "chains")
    training_figure = "energy gap"
    validation_figure = "pseudo-log-likelihood"
    test_figure = "pseudo-log-likelihood"
    support = "bernoulli"

    def __init__(
        self, data_size: int, *, steps: int = 1, chains: int = 100, generator: Generator | None = None
    ) -> None:
        super().__init__()
        self.config = {
            "data_size": check_size("data_size", data_size), "steps": check_size("steps", steps),
            "chains": check_size("chains", chains),
        }  # fmt: skip
        self.data_size = data_size
        self.steps = steps
        self.chains = chains
        self.weight = nn.Parameter(np.zeros((data_size, data_size), np.float32))
        self.bias = nn.Parameter(np.zeros(data_size, np.float32))
        if data_size <= MOST_ENUMERATED:
            self.test_figure = "log-likelihood"

    @classmethod
    def build(cls, dataset: Dataset, settings: Mapping[str, Any], generator: Generator) -> BoltzmannMachine:
        model = super().build(dataset, settings, generator)
        assert isinstance(model, BoltzmannMachine)
        model.bias.copy_(marginal_logits(dataset.train.mean(axis=0, dtype=np.float64)).astype(np.float32))
        return model

    def _states(self, x: Any) -> Tensor:
        x = self.as_rows(x)
        check_probabilities(self.name, "states", x)
        return x

    def _others(self) -> Tensor:
        """1 for each pair of different units, 0 for a unit with itself."""
        return Tensor(1.0 - namespace(self.weight._data).eye(self.data_size, dtype=self.weight.dtype))

    def energy(self, x: Tensor) -> Tensor:
        """-log p(x) - log Z for each example, (n,); x : (n, data_size)."""
        x = self._states(x)
        weight = self.weight * self._others()
        return -0.5 * ops.sum(ops.matmul(x, weight) * x, axis=1) - ops.matmul(x, self.bias)

    # -- training --------------------------------------------------------------------------------------------
    def _swept(self, x: Tensor, sweeps: int, generator: Generator | None) -> Tensor:
        key = given_or_default(generator).draw()._data
        weight, bias = self.weight._data, self.bias._data
        return Tensor(gmkernels.boltzmann_sweep(x._data, weight, bias, key=key, sweeps=sweeps))

    def _independent(self, n: int, generator: Generator | None) -> Tensor:
        """A sample of the machine without weights, (n, data_size)."""
        return ops.bernoulli_sample_logits(self.bias.detach(), samples=n, generator=generator)

    def loss(self, x: Tensor, *, generator: Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean energy of the data minus that of states that `steps` sweeps from them lead to, which are held fixed.

        `compute_gradients` has the gradient of this difference, but for chains that persist.
        """
        x = self._states(x)
        end = self._swept(x, self.steps, generator)
        return ops.mean(self.energy(x)) - ops.mean(self.energy(end)), {}

    def compute_gradients(self, batch: np.ndarray, *, generator: Generator) -> Step:
        x = self._states(batch)
        if self._chains is None:
            self._chains = self._independent(self.chains, generator)
        self._chains.copy_(self._swept(self._chains, self.steps, generator))
        with no_grad():
            end = self._chains
            pairs = ops.matmul(end.T, end) / len(end) - ops.matmul(x.T, x) / len(x)
            pairs = pairs * self._others()
            self.weight.grad = (pairs + pairs.T) / 4.0  # symmetric to the last bit, as the weight must stay
            self.bias.grad = ops.mean(end, axis=0) - ops.mean(x, axis=0)
            loss = ops.mean(self.energy(x)) - ops.mean(self.energy(end))
        return Step(loss, {}, len(x))

    # -- likelihood ------------------------------------------------------------------------------------------
    def log_partition(self) -> float:
        """log Z by enumeration. Raises `ArgumentError` for more than 20 units."""
        if self.data_size > MOST_ENUMERATED:
            raise ArgumentError(
                f"{self.name}: {self.data_size} units have too many states to enumerate, at most {MOST_ENUMERATED}"
            )
        log_z = -math.inf
        with no_grad():
            for start in range(0, 1 << self.data_size, _ROWS):
                numbers = np.arange(start, min(start + _ROWS, 1 << self.data_size))
                states = (numbers[:, None] >> np.arange(self.data_size) & 1).astype(self.weight.dtype)
                energies = self.energy(self.weight.beside(states)).cpu().numpy().astype(np.float64)
                log_z = float(np.logaddexp(log_z, np.logaddexp.reduce(-energies)))
        return log_z

    def pseudo_log_likelihood(self, x: Tensor) -> Tensor:
        """sum_i log p(x_i | the other units) for each example, (n,). Raises `ArgumentError` unless x is in {0, 1}."""
        x = self.as_rows(x)
        check_binary("pseudo_log_likelihood", "x", x)
        inputs = ops.matmul(x, self.weight) + self.bias
        return ops.bernoulli_log_prob(inputs, x)

    def log_likelihood(self, x: Tensor, *, samples: int = 1, generator: Generator | None = None) -> Tensor:
        """log p(x) for each example, (n,), of a machine of up to 20 units; `samples` does not matter."""
        check_size("samples", samples)
        with no_grad():
            return Tensor(-self.energy(x).cpu().numpy().astype(np.float64) - self.log_partition())

    def validate(self, dataset: Dataset, recipe: Recipe, seed: int, report: Report) -> float:
        rows = prepare(dataset, "valid", recipe.binarize, seed)
        with no_grad():
            parts = [self.pseudo_log_likelihood(x).cpu().numpy() for x in self.eval().chunks(rows, report)]
        return float(np.concatenate(parts).mean(dtype=np.float64))

    def measure(
        self,
        dataset: Dataset,
        split: str,
        *,
        recipe: Recipe,
        samples: int,
        seed: int,
        data_seed: int,
        limit: int | None,
        report: Report,
    ) -> dict[str, Any]:
        """The mean of log p(x) over a split, with ``log_z``; of a larger machine that of the pseudo-log-likelihood."""
        rows = prepare(dataset, split, recipe.binarize, data_seed)[:limit]
        small = self.data_size <= MOST_ENUMERATED
        score = self.energy if small else self.pseudo_log_likelihood
        with no_grad():
            parts = [score(x).cpu().numpy() for x in self.eval().chunks(rows, report)]
        values = np.concatenate(parts).astype(np.float64)
        if not small:
            return self.summary_of(values, rows, dataset, split, recipe, data_seed)
        log_z = self.log_partition()
        known = {"log_z": log_z, "log_z_interval": [log_z, log_z], "log_z_by": "enumeration"}
        return self.summary_of(-values - log_z, rows, dataset, split, recipe, data_seed) | known

    # -- samples ---------------------------------------------------------------------------------------------
    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """Means of each unit given the others, after 1,000 sweeps from independent units, (n, data_size)."""
        start = self._independent(check_size("n", n), generator)
        return self.reconstruct(self._swept(start, _SAMPLE_SWEEPS, generator))

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Means of each unit given all the others, sigmoid(W x + b), (n, data_size)."""
        with no_grad():
            return ops.linear(self._states(x), self.weight, self.bias, activation="sigmoid")

    def draw(self, folder: Path, dataset: Dataset, recipe: Recipe, seed: int) -> None:
        """Besides: the weights of each unit, at most 100 of them."""
        super().draw(folder, dataset, recipe, seed)
        pictures.save_filters(folder / "filters.png", self.weight.detach().cpu().numpy(), dataset.picture_format[0])


__all__ = ["BoltzmannMachine"]
