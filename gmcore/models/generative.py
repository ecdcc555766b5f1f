"""Models of data vectors: rows of images and the like, binarised if the recipe says so."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gmcore import pictures
from gmcore.data import MODES, SPLITS, Dataset, Minibatches, check_support, is_binary, prepare
from gmcore.errors import DataError, ShapeError, unknown_name
from gmcore.models.base import Model, Recipe, Report, Step
from gmcore.random import Generator
from gmcore.streams import drawing_from, stream_seed
from gmcore.tensor import Tensor, as_tensor, no_grad

BATCH_SIZE = 100
"""Rows evaluated at once."""


def bernoulli_baseline(train: np.ndarray, test: np.ndarray) -> float:
    """Mean log-probability of binary `test` images with independent pixels fitted to `train`, in nats per image.

    p_d = (1 + sum_i train_id) / (n + 2), the mean of the posterior under a uniform prior, so that a pixel which is
    never 1 in `train` may be 1 in `test`. What a model of images must beat.
    """
    p = (1.0 + train.sum(axis=0, dtype=np.float64)) / (len(train) + 2.0)
    return float(np.mean(test @ np.log(p) + (1.0 - test) @ np.log1p(-p)))


def marginal_logits(mean: np.ndarray) -> np.ndarray:
    """Logits of the means of binary data, kept off 0 and 1: where biases start (Hinton's guide, 2010, section 8)."""
    mean = np.clip(mean, 1e-3, 1.0 - 1e-3)
    return np.log(mean / (1.0 - mean))


class GenerativeModel(Model):
    """A model of data vectors x with an estimate of log p(x).

    A subclass sets what `Model` says and implements `support`, `loss`, `log_likelihood`, `sample` and
    `reconstruct`.
    """

    data_size: int

    @classmethod
    def build(cls, dataset: Dataset, settings: Mapping[str, Any], generator: Generator) -> GenerativeModel:
        cls.check_settings(settings)
        cls._check_kind(dataset)
        return cls(data_size=dataset.train.shape[1], **settings, generator=generator)  # type: ignore[call-arg]

    @classmethod
    def _check_kind(cls, dataset: Any) -> None:
        if not isinstance(dataset, Dataset):
            raise DataError(f"{cls.name} models data vectors, and data set {dataset.name!r} holds none")

    # -- what a subclass implements --------------------------------------------------------------------------
    @property
    def support(self) -> str:
        """Where data must lie: "bernoulli" ({0, 1}), "unit-interval" or "real"."""
        raise NotImplementedError

    def loss(self, x: Tensor, *, generator: Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """What training minimises, in nats per example, and figures to report with it. x : (n, data_size)."""
        raise NotImplementedError

    def log_likelihood(self, x: Tensor, *, samples: int, generator: Generator | None = None) -> Tensor:
        """A lower bound on log p(x) per example, (n,), tighter with more `samples`; or what a subclass says."""
        raise NotImplementedError

    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """Means of p(x | z) at `n` draws of z, (n, data_size)."""
        raise NotImplementedError

    def reconstruct(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Means of p(x | z) at a draw of z given each x, (n, data_size)."""
        raise NotImplementedError

    # -- training --------------------------------------------------------------------------------------------
    def adapt(self, recipe: Recipe, dataset: Dataset, chosen: Mapping[str, Any]) -> Recipe:
        """Without binarisation where data are binary already, or need not be binary."""
        if "binarize" not in chosen and (self.support == "real" or is_binary(dataset.train)):
            return replace(recipe, binarize="none")
        return recipe

    def check_data(self, dataset: Dataset, recipe: Recipe, seed: int) -> None:
        self._check_kind(dataset)
        if recipe.binarize not in MODES:
            raise unknown_name("binarisation", str(recipe.binarize), MODES)
        for split in SPLITS:
            where = f"data set {dataset.name!r}, split {split!r}"
            if recipe.binarize == "none":
                check_support(getattr(dataset, split), self.support, where)
            else:
                check_support(getattr(dataset, split), "unit-interval", f"{where}, to be binarised ({recipe.binarize})")
        rows = as_tensor(prepare(dataset, "valid", recipe.binarize, seed)[:2]).to(self.device)
        noise = Generator(0)
        with no_grad():
            drawing_from(noise, self.eval().loss, rows, generator=noise)

    def batches(self, dataset: Dataset, recipe: Recipe, seed: int, epoch: int) -> Sequence[np.ndarray]:
        rows = prepare(dataset, "train", recipe.binarize, seed, epoch)
        return Minibatches(rows, recipe.batch_size, stream_seed(seed, "order"), epoch)

    def compute_gradients(self, batch: np.ndarray, *, generator: Generator) -> Step:
        loss, figures = self.loss(as_tensor(batch), generator=generator)
        loss.backward()
        return Step(loss.detach(), {name: value.detach() for name, value in figures.items()}, len(batch))

    # -- evaluation ------------------------------------------------------------------------------------------
    def validate(self, dataset: Dataset, recipe: Recipe, seed: int, report: Report) -> float:
        """Minus the loss: the bound that training maximises, on data it has not seen."""
        rows = prepare(dataset, "valid", recipe.binarize, seed)
        generator = Generator(stream_seed(seed, "validation"))
        total = 0.0
        for x in self.eval().chunks(rows, report):
            with no_grad():
                loss, _ = drawing_from(generator, self.loss, x, generator=generator)
            total += len(x) * loss.item()
        return -total / len(rows)

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
        """The mean of `log_likelihood` over a split, and for binary data that of independent Bernoulli pixels."""
        rows = prepare(dataset, split, recipe.binarize, data_seed)[:limit]
        generator = Generator(stream_seed(seed, "evaluation"))
        values = []
        for x in self.eval().chunks(rows, report):
            with no_grad():
                value = drawing_from(generator, self.log_likelihood, x, samples=samples, generator=generator)
            values.append(value.cpu().numpy().astype(np.float64))
        return {**self.summary_of(np.concatenate(values), rows, dataset, split, recipe, data_seed), "k": samples}

    def summary_of(
        self, values: np.ndarray, rows: np.ndarray, dataset: Dataset, split: str, recipe: Recipe, data_seed: int
    ) -> dict[str, Any]:
        """What `measure` returns, of the log-likelihoods (n,) of the rows of a split."""
        n = len(values)
        return {
            "bound": float(values.mean()),
            "standard_error": float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
            # A density cannot be compared with probabilities.
            "baseline": bernoulli_baseline(dataset.train, rows) if is_binary(rows) and self.support != "real" else None,
            "baseline_is": "independent Bernoulli pixels",
            "binarize": recipe.binarize if recipe.binarize == "none" or split == "train" else "static",
            "binarize_seed": data_seed,
            "n": n,
        }

    def as_rows(self, x: Any) -> Tensor:
        """x as a tensor. Raises `ShapeError` unless it is (n, data_size)."""
        x = as_tensor(x)
        if x.ndim != 2 or x.shape[1] != self.data_size:
            raise ShapeError(f"{self.name}: data has shape {x.shape}, expected (n, {self.data_size})")
        return x

    def chunks(self, rows: np.ndarray, report: Report) -> Iterator[Tensor]:
        """The rows, `BATCH_SIZE` at a time; `report` hears of each when it is done with."""
        for start in range(0, len(rows), BATCH_SIZE):
            x = as_tensor(rows[start : start + BATCH_SIZE]).to(self.device)
            yield x
            report(start + len(x), len(rows))

    @staticmethod
    def pictured(dataset: Dataset, recipe: Recipe, seed: int, n: int) -> np.ndarray:
        """n rows of the test split, all over it, as files may be sorted by class; all rows where there are fewer."""
        rows = prepare(dataset, "test", recipe.binarize, seed)
        return rows[np.arange(min(n, len(rows))) * len(rows) // min(n, len(rows))]

    def draw(self, folder: Path, dataset: Dataset, recipe: Recipe, seed: int) -> None:
        """100 samples, and 50 test images with their reconstructions."""
        noise = Generator(stream_seed(seed, "sampling"))
        originals = self.pictured(dataset, recipe, seed, 50)
        samples = drawing_from(noise, self.sample, 100, generator=noise).cpu().numpy()
        x = as_tensor(originals).to(self.device)
        means = drawing_from(noise, self.reconstruct, x, generator=noise).cpu().numpy()
        pictures.save_samples(folder / "samples.png", samples, *dataset.picture_format)
        pictures.save_reconstructions(folder / "reconstructions.png", originals, means, *dataset.picture_format)


__all__ = ["GenerativeModel", "bernoulli_baseline", "marginal_logits"]
