"""A run: the folder that training writes, and what is read back from it.

config.json              model and its arguments, recipe, data and their provenance, seed, versions
metrics.jsonl            a line per epoch; a line with the test bound when training has ended
checkpoint.safetensors   parameters, optimiser, generator; position in the data; replaced after each epoch
samples.png  reconstructions.png  curves.png
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gmcore import io, models
from gmcore.errors import ArgumentError, CheckpointError
from gmcore.models import Model, Recipe
from gmcore.random import Generator
from gmcore.streams import drawing_from

CONFIG, METRICS, CHECKPOINT = "config.json", "metrics.jsonl", "checkpoint.safetensors"

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Run:
    """A trained model, where it was saved, and the lines of its ``metrics.jsonl``."""

    path: Path
    model: Model
    metrics: list[dict[str, Any]]

    @property
    def result(self) -> dict[str, Any]:
        """The last line: the test bound and all that it depends on (see `gmcore.evaluation.evaluate`)."""
        return self.metrics[-1]


def new_folder(out: str | os.PathLike[str] | None, name: str) -> Path:
    """A folder for a new run: `out`, or ``runs/<name>`` with a number behind it if that is taken.

    Raises
    ------
    ArgumentError : `out` holds a run.  CheckpointError : the folder cannot be made.
    """
    try:
        if out is None:
            for i in itertools.count(1):
                path = Path("runs") / (name if i == 1 else f"{name}-{i}")
                try:
                    path.mkdir(parents=True)
                    return path
                except FileExistsError:
                    if not path.parent.is_dir():
                        raise
        path = Path(out)  # type: ignore[arg-type]
        if any((path / file).exists() for file in (CONFIG, METRICS, CHECKPOINT)):
            raise ArgumentError(f"{path} holds a run already; continue it with --resume {path} (resume= in "
                                "Python), or name another folder")  # fmt: skip
        path.mkdir(parents=True, exist_ok=True)
        return path
    except OSError as error:
        raise CheckpointError(f"the run's folder cannot be made ({error})") from None


# -- config.json --------------------------------------------------------------------------------------------
_ENTRIES: dict[str, type] = {
    "config": dict, "data": dict, "device": str, "features": int, "model": str, "recipe": dict, "seed": int,
}  # fmt: skip
_DATA_ENTRIES = {"source", "data_dir", "sha256", "image_shape", "provenance"}


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``config.json`` of the run at `path`. Raises `CheckpointError` if it is no run, or damaged."""
    file = Path(path) / CONFIG
    try:
        config = json.loads(file.read_text())
    except OSError as error:
        raise CheckpointError(f"{path}: not a run ({CONFIG}: {error.strerror})") from None
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: damaged; expected a JSON object")
    missing = [name for name, kind in _ENTRIES.items() if not isinstance(config.get(name), kind)]
    missing = missing or [f"data.{name}" for name in sorted(_DATA_ENTRIES - config["data"].keys())]
    if missing:
        raise CheckpointError(f"{file}: damaged; it lacks {', '.join(missing)}, or has another kind of value there")
    return config


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    io.write_atomically(path / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def recipe_of(config: Mapping[str, Any]) -> Recipe:
    """The recipe in a config. Raises `CheckpointError` if it is not one."""
    try:
        return Recipe(**{**config["recipe"], "betas": tuple(config["recipe"]["betas"])})
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{CONFIG}: the recipe is damaged ({error})") from None


def picture_format(config: Mapping[str, Any]) -> tuple[tuple[int, int], tuple[float, float]]:
    """Shape of an image and range of its values; data that are no images are shown as one row."""
    height, width = config["data"]["image_shape"] or (1, config["features"])
    low, high = config["data"]["provenance"].get("range", (0.0, 1.0))
    return (height, width), (low, high)


# -- metrics.jsonl ------------------------------------------------------------------------------------------
def read_metrics(path: Path, epoch: int) -> list[dict[str, Any]]:
    """The lines up to `epoch`. Later ones, and half a line at the end, were written just before a crash."""
    file = path / METRICS
    lines = []
    try:
        for text in file.read_bytes().splitlines() if file.exists() else []:
            line = json.loads(text)
            if line["epoch"] <= epoch:
                lines.append(line)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, KeyError):
        pass
    return lines


def write_metrics(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file by these lines."""
    io.write_atomically(path / METRICS, "".join(json.dumps(_finite(line)) + "\n" for line in lines).encode())


def _finite(value: Any) -> Any:
    """`value` as JSON can hold it: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- checkpoint.safetensors ---------------------------------------------------------------------------------
def read_checkpoint(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Arrays of a checkpoint file and its metadata: ``model``, ``config`` and ``position``, from JSON.

    Raises
    ------
    CheckpointError : as `gmcore.io.load`, or a safetensors file that is no checkpoint of a run.
    """
    arrays, metadata = io.load(path)
    if missing := {"gmcore_format", "model", "config", "position"} - metadata.keys():
        raise CheckpointError(f"{path}: not a checkpoint of a run; it lacks {', '.join(sorted(missing))}")
    decoded = {name: json.loads(metadata[name]) for name in ("config", "position")}
    return arrays, {**metadata, **decoded}


def read_run(path: Path) -> tuple[dict[str, Any], Arrays, dict[str, Any]]:
    """The config of the run at `path`, and its checkpoint as `read_checkpoint` gives it, of the same model.

    Raises
    ------
    CheckpointError : as `read_config` and `read_checkpoint`, or the checkpoint of another model.
    """
    config = read_config(path)
    arrays, metadata = read_checkpoint(path / CHECKPOINT)
    if (metadata["model"], metadata["config"]) != (config["model"], config["config"]):
        raise CheckpointError(
            f"{path / CHECKPOINT}: a checkpoint of {metadata['model']} {metadata['config']}, but {CONFIG} describes "
            f"{config['model']} {config['config']}"
        )
    return config, arrays, metadata


def part(arrays: Mapping[str, np.ndarray], prefix: str) -> Arrays:
    """The arrays whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def restore_model(path: Path, arrays: Arrays, metadata: Mapping[str, Any], model: Model | None) -> Model:
    """The model of a checkpoint; see `load`."""
    if model is None:
        cls = models.get(metadata["model"])
        try:
            model = drawing_from(Generator(0), cls, **metadata["config"])
        except TypeError as error:
            raise CheckpointError(f"{path}: {cls.name} does not take the saved arguments ({error})") from None
    elif model.name != metadata["model"]:
        raise CheckpointError(f"{path}: a checkpoint of model {metadata['model']!r}, expected {model.name!r}")
    try:
        model.load_state_dict(part(arrays, "model."))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return model.eval()


def load(run: Run | str | os.PathLike[str], model: Model | None = None, device: str | None = None) -> Model:
    """The model of a run, with its trained parameters.

    Parameters
    ----------
    run : a run, its folder, or its checkpoint file.
    model : read the parameters into this one, for a model with an encoder or decoder of one's own; by default
        the model is built anew from its class and arguments.
    device : where its parameters go; by default where they are in `model`, and the CPU for a new one.

    Returns
    -------
    The model: `model`, or a new one.

    Raises
    ------
    CheckpointError : missing, damaged, of another format version, of another model, or parameters that do not fit.
    UnknownNameError : its model is not registered here.
    ArgumentError, MissingPackageError, DeviceError : no name of a device, or a GPU that is not there.
    """
    path = run.path if isinstance(run, Run) else Path(run)
    if path.is_dir():
        _, arrays, metadata = read_run(path)
    else:
        arrays, metadata = read_checkpoint(path)
    return restore_model(path, arrays, metadata, model).to(device=device)


__all__ = ["Run", "load", "read_config"]
