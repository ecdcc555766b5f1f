"""Reported figures: what a run's model scores on a split, and all that the number depends on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gmcore.data import SPLITS, AnyDataset
from gmcore.data import load as load_data
from gmcore.device import using
from gmcore.errors import DataError, unknown_name
from gmcore.models.base import Model, Recipe, check_size
from gmcore.models.generative import bernoulli_baseline
from gmcore.random import Generator
from gmcore.run import CHECKPOINT, Run, load, read_checkpoint, read_config, recipe_of
from gmcore.tensor import Tensor


class Event(NamedTuple):
    """What `fit` and `evaluate` tell their `progress` callback."""

    stage: str
    """"step": a step was taken; "epoch": an epoch has ended; the name of a split: part of it was evaluated; "capture":
    it was settled how steps are run."""
    epoch: int
    epochs: int
    done: int
    """Steps of this epoch, or examples of this evaluation, that are done; out of `total`."""
    total: int
    loss: Tensor | None = None
    """Of the step that was taken. Converting it to a number waits for the device, so do that seldom."""
    line: Mapping[str, Any] | None = None
    """At the end of an epoch, its line in ``metrics.jsonl``."""
    note: str | None = None
    """How steps are run (`gmcore.capture`)."""


Progress = Callable[[Event], None]


def reopen_data(
    record: Mapping[str, Any], data: AnyDataset | None, data_dir: str | os.PathLike[str] | None
) -> AnyDataset:
    """The data set that a run's config records.

    Raises
    ------
    DataError : it is missing, or its contents are not those that the run was trained on.
    """
    if data is None:
        if record["source"] is None:
            raise DataError("the run was trained on a Dataset made in Python; pass it again as data")
        data = load_data(record["source"], data_dir or record["data_dir"])
    if data.fingerprint() != record["sha256"]:
        raise DataError(f"data set {data.name!r} is not the one that the run was trained on (sha256 differs)")
    return data


# -- figures ------------------------------------------------------------------------------------------------
def measure(
    model: Model,
    dataset: AnyDataset,
    *,
    split: str,
    recipe: Recipe,
    samples: int,
    seed: int,
    data_seed: int,
    epoch: int,
    limit: int | None,
    report: Progress,
) -> dict[str, Any]:
    """The figure of a split of `dataset` and all that it depends on; see `evaluate`."""
    begin = time.perf_counter()
    with using(model.device):
        result = model.measure(
            dataset,
            split,
            recipe=recipe,
            samples=samples,
            seed=seed,
            data_seed=data_seed,
            limit=limit,
            report=lambda done, total: report(Event(split, epoch, epoch, done, total)),
        )
    described = {"epoch": epoch, "split": split, "figure": model.test_figure, "unit": model.unit, "data": dataset.name}
    return {**described, **result, "seed": seed, "seconds": time.perf_counter() - begin}


def evaluate(
    run: Run | str | os.PathLike[str],
    *,
    split: str = "test",
    samples: int | None = None,
    seed: int | None = None,
    limit: int | None = None,
    data: AnyDataset | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    device: str | None = None,
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
    device : where to compute it; by default where the model of a `Run` is, and the CPU for a folder.

    Returns
    -------
    dict : ``bound`` (nats per image) and its ``standard_error`` over the images; ``baseline``, that of
        independent Bernoulli pixels, for binary images and models of them; and all that they depend on: ``data``,
        ``split``, ``binarize`` and ``binarize_seed``, ``k``, ``seed``, ``n`` (images), ``epoch``.

    Raises
    ------
    CheckpointError : no such run, or one that cannot be read.  DataError : its data are missing or changed.
    ArgumentError, UnknownNameError : a value or a split that does not exist.
    MissingPackageError, DeviceError : a GPU that is not there, or nothing to use it with.
    """
    path = run.path if isinstance(run, Run) else Path(run)
    config = read_config(path)
    recipe = recipe_of(config)
    samples = recipe.eval_samples if samples is None else samples
    check_size("samples", samples)
    if limit is not None:
        check_size("limit", limit)
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    return measure(
        run.model.to(device=device) if isinstance(run, Run) else load(path, device=device),
        reopen_data(config["data"], data, data_dir),
        split=split,
        recipe=recipe,
        samples=samples,
        seed=config["seed"] if seed is None else Generator(seed).seed,
        data_seed=config["seed"],
        epoch=read_checkpoint(path / CHECKPOINT)[1]["position"]["epoch"] - 1,
        limit=limit,
        report=progress or (lambda event: None),
    )


__all__ = ["Event", "Progress", "bernoulli_baseline", "evaluate"]
