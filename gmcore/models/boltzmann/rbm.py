"""The restricted Boltzmann machine."""

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
from gmcore.models.boltzmann.partition import (
    TEMPERATURES,
    Machine,
    Partition,
    anneal,
    annealing_schedule,
    enumerable,
    exact_partition,
)
from gmcore.models.generative import marginal_logits
from gmcore.ops.gibbs import check_binary, check_probabilities
from gmcore.random import Generator
from gmcore.streams import drawing_from, stream_seed
from gmcore.tensor import Tensor, as_tensor, no_grad
from gmkernels.arrays import namespace

_SAMPLE_STEPS = 1000
"""Gibbs steps from independent units to a sample."""
_FLIPS = 16
"""Units whose conditional probability validation looks at, in each image."""
_PICTURED_STEPS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Steps after which a chain is pictured."""


class RBM(BoltzmannModel):
    """Restricted Boltzmann machine (Smolensky 1986), trained by contrastive divergence (Hinton 2002).

    Binary hidden units h and visible units v, binary or Gaussian, without connections inside a layer:

        E(v, h) = -h^T W v - c^T v - b^T h                 or with 1/2 |v - c|^2 in place of -c^T v     (Gaussian)
        p(h | v) = sigmoid(W v + b)                        p(v | h) = sigmoid(W^T h + c), or N(W^T h + c, I)
        F(v) = -c^T v (or 1/2 |v - c|^2) - sum_j softplus(W v + b)_j             p(v) = exp(-F(v)) / Z

    The gradient of -log p(v) is that of F(v), the positive phase, minus its mean under p, the negative phase. CD-k
    replaces that mean by one over chains of k Gibbs steps from the data; it is biased, and tends to the gradient as k
    grows. Persistent CD (Tieleman, ICML 2008) lets the chains go on from step to step. As Hinton's guide has it (2010,
    section 3), samples drive the chains, and hidden probabilities, not samples, are averaged at their ends.

    log p needs log Z: exact where a layer is small, by annealed importance sampling otherwise
    (`gmcore.models.boltzmann.partition`), with its interval of confidence. Slides that print general Boltzmann machines
    with E = -x^T W x count each pair twice: a machine of this form has W / 2 in both of its off-diagonal blocks.

    Parameters
    ----------
    data_size, hidden_size : number of visible and of hidden units.
    units : "bernoulli" (x in {0, 1}) or "gaussian" (any x), the visible ones. Gaussian ones have the standard
        deviations `sigma` of the training data (at least a tenth of the largest), which are not trained: the machine
        above models x / sigma.
    steps : k.
    chains : number of persistent chains, for PCD-k; 0 for CD-k.
    temperatures : of the annealing that a reported log-likelihood rests on; the recipe's `eval_samples` is its runs.
    generator : initialises the weights: N(0, 0.01^2), Hinton's guide, section 8.

    Attributes
    ----------
    weight : (hidden_size, data_size).
    visible_bias, hidden_bias : (data_size,) and (hidden_size,). `build` starts the visible ones at the training data's
        marginals.
    base_bias : (data_size,), those marginals, where annealing begins.
    sigma : (data_size,), ones for Bernoulli units.

    Raises
    ------
    ArgumentError : a size below 1 or an option that does not exist.
    """

    name = "rbm"
    summary = "restricted Boltzmann machine, (persistent) contrastive divergence"
    source = (
        "Smolensky 1986; Hinton, Neural Computation 14(8), 2002; Tieleman, ICML 2008; Salakhutdinov & Murray, ICML 2008"
    )
    recipe = Recipe(
        epochs=100, batch_size=20, learning_rate=0.2, optimizer="sgd", momentum=0.5, schedule="inverse",
        binarize="dynamic", eval_samples=100,
    )  # fmt: skip
    settings: ClassVar[tuple[str, ...]] = ("hidden_size", "units", "steps", "chains", "temperatures")
    training_figure = "free-energy gap"
    validation_figure = "pseudo-log-likelihood"
    test_figure = "log-likelihood"

    def __init__(
        self,
        data_size: int,
        hidden_size: int = 100,
        *,
        units: str = "bernoulli",
        steps: int = 1,
        chains: int = 100,
        temperatures: int = TEMPERATURES,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if units not in ("bernoulli", "gaussian"):
            raise ArgumentError(f"units {units!r}; expected 'bernoulli' or 'gaussian'")
        if chains != 0:
            check_size("chains", chains)
        annealing_schedule(temperatures)
        self.config = {
            "data_size": check_size("data_size", data_size), "hidden_size": check_size("hidden_size", hidden_size),
            "units": units, "steps": check_size("steps", steps), "chains": chains, "temperatures": temperatures,
        }  # fmt: skip
        self.data_size = data_size
        self.units = units
        self.steps = steps
        self.chains = chains
        self.temperatures = temperatures
        self.weight = nn.Parameter(0.01 * ops.normal((hidden_size, data_size), generator=generator).numpy())
        self.visible_bias = nn.Parameter(np.zeros(data_size, np.float32))
        self.hidden_bias = nn.Parameter(np.zeros(hidden_size, np.float32))
        self.register_buffer("base_bias", Tensor(np.zeros(data_size, np.float32)))
        self.register_buffer("sigma", Tensor(np.ones(data_size, np.float32)))
        if units == "gaussian":
            self.validation_figure = "reconstruction log-density"  # there is no other cheap one

    base_bias: Tensor
    sigma: Tensor

    @classmethod
    def build(cls, dataset: Dataset, settings: Mapping[str, Any], generator: Generator) -> RBM:
        model = super().build(dataset, settings, generator)
        assert isinstance(model, RBM)
        model.fit_marginals(dataset.train)
        return model

    def fit_marginals(self, rows: np.ndarray) -> None:
        """Start from independent units with the marginals of the data: the base-rate machine.

        Parameters
        ----------
        rows : (n, data_size). Bernoulli biases are the logits of their means, kept off 0 and 1 (Hinton's guide,
            section 8); Gaussian biases are their means, in units of `sigma`.
        """
        mean = rows.mean(axis=0, dtype=np.float64)
        if self.units == "gaussian":
            deviation = rows.std(axis=0, dtype=np.float64)
            sigma = np.maximum(deviation, 0.1 * deviation.max() or 1.0)
            self.sigma.copy_(sigma.astype(np.float32))
            bias = mean / sigma
        else:
            bias = marginal_logits(mean)
        for tensor in (self.base_bias, self.visible_bias):
            tensor.copy_(bias.astype(np.float32))

    # -- the machine -----------------------------------------------------------------------------------------
    @property
    def support(self) -> str:
        return "bernoulli" if self.units == "bernoulli" else "real"

    @property
    def parameters_of_machine(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight, self.visible_bias, self.hidden_bias

    @property
    def machine(self) -> Machine:
        """The parameters as arrays."""
        weight, visible_bias, hidden_bias = (p._data for p in self.parameters_of_machine)
        return weight, visible_bias, hidden_bias

    def _visible(self, x: Any) -> Tensor:
        """Data as states of the visible units. Raises `ShapeError` unless x is (n, data_size)."""
        x = self.as_rows(x)
        return x / self.sigma if self.units == "gaussian" else x

    def free_energy(self, x: Tensor) -> Tensor:
        """-log p(x) - log Z for each example, (n,); x : (n, data_size). Of Gaussian units, p is the density of x."""
        energy, _ = ops.free_energy(self._visible(x), *self.parameters_of_machine, units=self.units)
        return energy + ops.sum(ops.log(self.sigma)) if self.units == "gaussian" else energy

    # -- training --------------------------------------------------------------------------------------------
    def loss(self, x: Tensor, *, generator: Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean free energy of the data minus that of the ends of their chains of k steps, which are held fixed.

        Its gradient is that of CD-k, by the tape; `compute_gradients` has it, and that of PCD-k, in one kernel.
        """
        visible = self._visible(x)
        loss, _ = ops.contrastive_divergence(
            visible, visible, *self.parameters_of_machine, steps=self.steps, units=self.units, generator=generator
        )
        return loss, {}

    def compute_gradients(self, batch: np.ndarray, *, generator: Generator) -> Step:
        visible = self._visible(batch)
        check_probabilities(self.name, "states", visible, self.units)
        chain = self._persistent(generator) if self.chains else visible
        *gradients, end, loss = gmkernels.contrastive_divergence(
            visible._data, chain._data, *self.machine, key=generator.draw()._data, steps=self.steps, units=self.units
        )
        for parameter, gradient in zip(self.parameters_of_machine, gradients, strict=True):
            parameter.grad = Tensor(gradient)
        if self.chains:
            chain.copy_(end)
        return Step(Tensor(loss), {}, len(visible))

    def _persistent(self, generator: Generator) -> Tensor:
        """The persistent chains, in the coordinates of x / sigma; at first, independent units."""
        if self._chains is None:
            self._chains = self._independent(self.chains, self.visible_bias.detach(), generator)
        return self._chains

    def _independent(self, n: int, bias: Tensor, generator: Generator | None) -> Tensor:
        """A sample of the machine without weights, (n, data_size)."""
        if self.units == "gaussian":
            shape, dtype = (n, self.data_size), bias.dtype.name
            return ops.normal(shape, dtype=dtype, device=bias.device, generator=generator) + bias
        return ops.bernoulli_sample_logits(bias, samples=n, generator=generator)

    # -- likelihood ------------------------------------------------------------------------------------------
    def partition(
        self, runs: int = 100, *, generator: Generator | None = None, report: Report | None = None
    ) -> Partition:
        """log Z: exact where a layer of Bernoulli units is small enough, by annealing otherwise.

        Parameters
        ----------
        runs : of the annealing.
        generator : of the annealing; by default the context's.
        report : called with how many temperatures are done, and how many there are.
        """
        if enumerable(self.weight.shape, self.units):
            return exact_partition(self.machine, self.units)
        betas, base = annealing_schedule(self.temperatures), self.base_bias._data
        found, _ = anneal(
            self.machine, self.units, base_bias=base, betas=betas, runs=runs, generator=generator, report=report
        )
        return found

    def log_likelihood(self, x: Tensor, *, samples: int = 100, generator: Generator | None = None) -> Tensor:
        """log p(x) for each example, (n,), with log Z of `partition`; `samples` is the number of its runs.

        Exact, or too high rather than too low where log Z is estimated.
        """
        check_size("samples", samples)
        with no_grad():
            energy = self.free_energy(x).cpu().numpy().astype(np.float64)
        return Tensor(-energy - self.partition(samples, generator=generator).log_z)

    def pseudo_log_likelihood(
        self, x: Tensor, *, flips: int | None = None, generator: Generator | None = None
    ) -> Tensor:
        """sum_i log p(x_i | the other units) for each example, (n,), of Bernoulli units (Besag 1975).

        Parameters
        ----------
        x : (n, data_size), in {0, 1}.
        flips : look at so many units of each example only, evenly spaced from one drawn at random, and scale up; at all
            of them by default.
        generator : of that draw; by default the context's.

        Raises
        ------
        ArgumentError : Gaussian units, x outside {0, 1}, or flips below 1.
        """
        if self.units != "bernoulli":
            raise ArgumentError("pseudo_log_likelihood: of Bernoulli units only")
        states = self._visible(x)
        check_binary("pseudo_log_likelihood", "x", states)
        visible, machine = states._data, self.machine
        arrays = namespace(visible)
        n, size = visible.shape
        flips = size if flips is None else min(check_size("flips", flips), size)
        first = arrays.zeros(n, int)
        if flips < size:
            place = ops.uniform((n,), device=states.device, generator=generator)._data * size
            first = place.astype(int) % size
        energy, _ = gmkernels.free_energy(visible, *machine)
        total = arrays.zeros(n)
        rows = arrays.arange(n)
        for flip in range(flips):
            units = (first + flip * size // flips) % size
            other = visible.copy()
            other[rows, units] = 1 - other[rows, units]
            change = gmkernels.free_energy(other, *machine)[0].astype(np.float64) - energy
            total -= np.logaddexp(0.0, -change)
        return Tensor(total * (size / flips))

    def validate(self, dataset: Dataset, recipe: Recipe, seed: int, report: Report) -> float:
        """Mean pseudo-log-likelihood; of Gaussian units, mean log p(x | E[h | x])."""
        rows = prepare(dataset, "valid", recipe.binarize, seed)
        generator = Generator(stream_seed(seed, "validation"))
        total = 0.0
        for x in self.eval().chunks(rows, report):
            if self.units == "bernoulli":
                values = self.pseudo_log_likelihood(x, flips=_FLIPS, generator=generator)
            else:
                values = self._reconstruction_log_density(x)
            total += float(values.cpu().numpy().sum())
        return total / len(rows)

    def _reconstruction_log_density(self, x: Tensor) -> Tensor:
        with no_grad():
            visible = self._visible(x)
            _, hidden = ops.free_energy(visible, *self.parameters_of_machine, units=self.units)
            distance = visible - (ops.matmul(hidden, self.weight) + self.visible_bias)
            constant = math.log(2 * math.pi) * self.data_size / 2 + ops.sum(ops.log(self.sigma))
            return -0.5 * ops.sum(ops.square(distance), axis=1) - constant

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
        """Mean log p(x) over a split, and the log Z that it rests on with its interval of confidence.

        Dictionary entries beside those of `Model.measure`: ``log_z``, ``log_z_interval``, ``log_z_by`` ("enumeration"
        or "annealing"), and of the annealing ``runs``, ``temperatures`` and ``effective_runs``.
        """
        rows = prepare(dataset, split, recipe.binarize, data_seed)[:limit]
        generator = Generator(stream_seed(seed, "evaluation"))
        self.eval()
        found = self.partition(samples, generator=generator, report=report)
        with no_grad():
            energies = [self.free_energy(x).cpu().numpy() for x in self.chunks(rows, lambda done, total: None)]
        values = -np.concatenate(energies).astype(np.float64) - found.log_z
        result = self.summary_of(values, rows, dataset, split, recipe, data_seed) | {
            "log_z": found.log_z,
            "log_z_interval": list(found.interval),
            "log_z_by": "enumeration" if found.runs is None else "annealing",
        }
        if found.runs is not None:
            result |= {
                "runs": found.runs, "temperatures": found.temperatures, "effective_runs": found.effective_runs,
            }  # fmt: skip
        return result

    # -- samples ---------------------------------------------------------------------------------------------
    def gibbs(self, x: Tensor, steps: int = 1, *, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """States of x, and their means given the last hidden states, after `steps` Gibbs steps; (n, data_size) both."""
        with no_grad():
            end, mean, _ = ops.gibbs_chain(
                self._visible(x), *self.parameters_of_machine, steps=steps, units=self.units, generator=generator
            )
            return end * self.sigma, mean * self.sigma

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """Means of p(x | h) after 1,000 Gibbs steps from independent units, (n, data_size)."""
        start = self._independent(check_size("n", n), self.base_bias, generator) * self.sigma
        return self.gibbs(start, _SAMPLE_STEPS, generator=generator)[1]

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Means of p(x | h) at a draw of h given each x, (n, data_size)."""
        return self.gibbs(x, 1, generator=generator)[1]

    def draw(self, folder: Path, dataset: Dataset, recipe: Recipe, seed: int) -> None:
        """Besides: the filters, which are the rows of the weight, and chains that start at test images."""
        super().draw(folder, dataset, recipe, seed)
        shape, value_range = dataset.picture_format
        filters = (self.weight * self.sigma).detach().cpu().numpy()
        strongest = np.argsort(-np.linalg.norm(filters, axis=1), kind="stable")[:100]
        pictures.save_filters(folder / "filters.png", filters[strongest], shape)
        noise = Generator(stream_seed(seed, "sampling"))
        rows = drawing_from(noise, self._pictured_chains, self.pictured(dataset, recipe, seed, 10), noise)
        pictures.save_rows(folder / "chain.png", rows, shape, value_range)

    def _pictured_chains(self, start: np.ndarray, generator: Generator) -> np.ndarray:
        """(chains, pictures, data_size): the images where chains start, then means after `_PICTURED_STEPS`."""
        x, shown = as_tensor(start).to(self.device), [start]
        for before, after in zip(_PICTURED_STEPS, _PICTURED_STEPS[1:], strict=False):
            x, mean = self.gibbs(x, after - before, generator=generator)
            shown.append(mean.cpu().numpy())
        return np.stack(shown, axis=1)


__all__ = ["RBM"]
