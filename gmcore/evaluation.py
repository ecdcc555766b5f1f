"""Reported bounds: the data as a model sees them, the bound, and the baseline to beat."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gmcore.data import SPLITS, Dataset, binarize
from gmcore.data import load as load_data
from gmcore.errors import ArgumentError, DataError, unknown_name
from gmcore.models import GenerativeModel
from gmcore.random import Generator
from gmcore.run import CHECKPOINT, Run, load, read_checkpoint, read_config, recipe_of
from gmcore.streams import drawing_from, stream_seed
from gmcore.tensor import Tensor, as_tensor, no_grad
from gmkernels import rng

BATCH_SIZE = 100
"""Images evaluated at once."""


class Event(NamedTuple):
    """What `fit` and `evaluate` tell their `progress` callback."""

    stage: str
    """"step": a step was taken; "epoch": an epoch has ended; the name of a split: images of it were evaluated."""
    epoch: int
    epochs: int
    done: int
    """Steps of this epoch, or images of this evaluation, that are done; out of `total`."""
    total: int
    loss: Tensor | None = None
    """Of the step that was taken. Converting it to a number waits for the device, so do that seldom."""
    line: Mapping[str, Any] | None = None
    """At the end of an epoch, its line in ``metrics.jsonl``."""


Progress = Callable[[Event], None]


# -- data as a model sees them ------------------------------------------------------------------------------
def _uniform(seed: int, draw: int, start: int, count: int) -> np.ndarray:
    return rng.uniform((count,), key=(seed, draw, start))


def prepare(dataset: Dataset, split: str, mode: str, seed: int, epoch: int = 1) -> np.ndarray:
    """The images of a split as training or evaluation sees them, (n, features) float32.

    Binarised by `mode` with the split's stream of the run's `seed`. Dynamic binarisation changes the training
    images by epoch; validation and test images are binarised once.
    """
    images = getattr(dataset, split)
    if mode == "none":
        return images
    mode = mode if split == "train" else "static"
    key = stream_seed(seed, f"binarize-{split}")
    return binarize(images, np.arange(len(images)), seed=key, epoch=epoch, mode=mode, uniform=_uniform)


def is_binary(images: np.ndarray) -> bool:
    """Whether every value is 0 or 1."""
    return bool(np.all((images == 0) | (images == 1)))


def fingerprint(dataset: Dataset) -> str:
    """Digest of the contents of all splits."""
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update(np.ascontiguousarray(getattr(dataset, split)).data)
    return digest.hexdigest()


def reopen_data(record: Mapping[str, Any], data: Dataset | None, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """The data set that a run's config records.

    Raises
    ------
    DataError : it is missing, or its contents are not those that the run was trained on.
    """
    if data is None:
        if record["source"] is None:
            raise DataError("the run was trained on a Dataset made in Python; pass it again as data")
        data = load_data(record["source"], data_dir or record["data_dir"])
    if fingerprint(data) != record["sha256"]:
        raise DataError(f"data set {data.name!r} is not the one that the run was trained on (sha256 differs)")
    return data


# -- bounds -------------------------------------------------------------------------------------------------
def bernoulli_baseline(train: np.ndarray, test: np.ndarray) -> float:
    """Mean log-probability of binary `test` images with independent pixels fitted to `train`, in nats per image.

    p_d = (1 + sum_i train_id) / (n + 2), the mean of the posterior under a uniform prior, so that a pixel which is
    never 1 in `train` may be 1 in `test`. What a model of images must beat.
    """
    p = (1.0 + train.sum(axis=0, dtype=np.float64)) / (len(train) + 2.0)
    return float(np.mean(test @ np.log(p) + (1.0 - test) @ np.log1p(-p)))


def measure(
    model: GenerativeModel,
    dataset: Dataset,
    *,
    split: str,
    samples: int,
    seed: int,
    mode: str,
    binarize_seed: int,
    epoch: int,
    limit: int | None,
    report: Progress,
) -> dict[str, Any]:
    """The bound on a split of `dataset` and all that it depends on; see `evaluate`."""
    begin = time.perf_counter()
    images = prepare(dataset, split, mode, binarize_seed)[:limit]
    generator = Generator(stream_seed(seed, "evaluation"))
    n = len(images)
    values = np.empty(n)
    model.eval()
    for start in range(0, n, BATCH_SIZE):
        x = as_tensor(images[start : start + BATCH_SIZE])
        with no_grad():
            bound = drawing_from(generator, model.log_likelihood, x, samples=samples, generator=generator)
        values[start : start + len(x)] = bound.numpy()
        report(Event(split, epoch, epoch, start + len(x), n))
    return {
        "epoch": epoch,
        "split": split,
        "bound": float(values.mean()),
        "standard_error": float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None,
        "baseline": bernoulli_baseline(dataset.train, images) if is_binary(images) else None,
        "data": dataset.name,
        "binarize": mode if mode == "none" or split == "train" else "static",
        "binarize_seed": binarize_seed,
        "k": samples,
        "seed": seed,
        "n": n,
        "seconds": time.perf_counter() - begin,
    }


def evaluate(
    run: Run | str | os.PathLike[str],
    *,
    split: str = "test",
    samples: int | None = None,
    seed: int | None = None,
    limit: int | None = None,
    data: Dataset | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The importance-weighted bound on log p(x) of a run's model, averaged over a split.

    Parameters
    ----------
    run : the run, or its folder.
    split : "train", "valid" or "test".
    samples : k, the number of importance samples for each image; the recipe's by default.
    seed : of the samples; the run's by default, which gives the bound that `fit` reported. The images are
        binarised by the run's seed in any case, so all bounds of a run are on the same images.
    limit : evaluate the first `limit` images only.
    data : the data set, if the run was trained on one made in Python.
    data_dir : where its files are now, if not where they were.

    Returns
    -------
    dict : ``bound`` (nats per image) and its ``standard_error`` over the images; ``baseline``, that of
        independent Bernoulli pixels, for binary images; and all that they depend on: ``data``, ``split``,
        ``binarize`` and ``binarize_seed``, ``k``, ``seed``, ``n`` (images), ``epoch``.

    Raises
    ------
    CheckpointError : no such run, or one that cannot be read.  DataError : its data are missing or changed.
    ArgumentError, UnknownNameError : a value or a split that does not exist.
    """
    path = run.path if isinstance(run, Run) else Path(run)
    config = read_config(path)
    recipe = recipe_of(config)
    samples = recipe.eval_samples if samples is None else samples
    check_positive("samples", samples)
    if limit is not None:
        check_positive("limit", limit)
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    return measure(
        run.model if isinstance(run, Run) else load(path),
        reopen_data(config["data"], data, data_dir),
        split=split,
        samples=samples,
        seed=config["seed"] if seed is None else Generator(seed).seed,
        mode=recipe.binarize,
        binarize_seed=config["seed"],
        epoch=read_checkpoint(path / CHECKPOINT)[1]["position"]["epoch"] - 1,
        limit=limit,
        report=progress or (lambda event: None),
    )


def check_positive(name: str, value: Any) -> None:
    """Raise `ArgumentError` unless `value` is an integer above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{name} must be a positive integer, got {value!r}")


__all__ = ["Event", "Progress", "bernoulli_baseline", "evaluate"]
