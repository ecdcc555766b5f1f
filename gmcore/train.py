"""Training: `fit` makes a run or continues one; `load` gives its model back, `evaluate` measures it.

A run continues from its checkpoint bit for bit: everything random is a function of the run's seed and of the
position in training (see `gmcore.streams`), except what the loss draws, and that generator is in the checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

import gmcore
from gmcore import io, models, pictures
from gmcore.data import AnyDataset
from gmcore.data import load as load_data
from gmcore.device import check_device, put_all, using
from gmcore.errors import ArgumentError, CheckpointError, unknown_name
from gmcore.evaluation import Event, Progress, bernoulli_baseline, evaluate, measure, reopen_data
from gmcore.models import Model, Recipe
from gmcore.models.base import Step, check_size
from gmcore.optim import SGD, Adam, Optimizer, clip_grad_norm_
from gmcore.optim.lr_scheduler import inverse_schedule, iwae_schedule
from gmcore.random import Generator
from gmcore.run import (
    CHECKPOINT,
    Run,
    load,
    new_folder,
    part,
    read_metrics,
    read_run,
    recipe_of,
    restore_model,
    write_config,
    write_metrics,
)
from gmcore.streams import drawing_from, stream_seed
from gmcore.tensor import Tensor

# -- learning rates -------------------------------------------------------------------------------------------
SCHEDULES: dict[str, Callable[[int], float]] = {
    "iwae": iwae_schedule,
    "inverse": inverse_schedule,
    "inverse-250": lambda epoch: 1.0 / (1.0 + 9.0 * (epoch - 1) / 249.0),  # a tenth in epoch 250
    "char-rnn": lambda epoch: 0.97 ** max(0, epoch - 10),
}
"""Learning-rate schedules by name: the factor on the recipe's rate in an epoch."""


# -- optimisers -----------------------------------------------------------------------------------------------
def _adam(groups: list[dict[str, Any]], recipe: Recipe) -> Optimizer:
    return Adam(groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps)


def _sgd(groups: list[dict[str, Any]], recipe: Recipe) -> Optimizer:
    return SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov)


OPTIMIZERS = {"adam": _adam, "sgd": _sgd}
"""Makers of optimisers by the recipe's name for them."""


def make_optimizer(model: Model, recipe: Recipe) -> Optimizer:
    """The recipe's optimiser of the model's parameters; only those of two axes and more are shrunk."""
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if recipe.weight_decay:
        parameters = groups[0]["params"]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2]},
        ]
    return OPTIMIZERS[recipe.optimizer](groups, recipe)


# -- stopping -------------------------------------------------------------------------------------------------
class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C; the run at `path` was saved and can be resumed."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"interrupted, and saved; continue with: gmcore train --resume {path}")
        self.path = path


class _Interrupts:
    """Turns Ctrl-C into a request that training looks at between steps, where its state is whole.

    A second Ctrl-C raises at once. A handler that the program has set itself is left in place.
    """

    def __enter__(self) -> Self:
        self.requested = False
        main = threading.current_thread() is threading.main_thread()
        self._installed = main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._installed:
            signal.signal(signal.SIGINT, self._request)
        return self

    def _request(self, signum: int, frame: Any) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *exception: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)


# -- training -------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class _Position:
    """How far training has come: `batch` batches into `epoch`, which counts from 1."""

    epoch: int = 1
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    totals: dict[str, float] = dataclasses.field(default_factory=dict)
    """Sums of the loss and the model's figures over the examples of this epoch so far."""


class _Training:
    """The state of a run in memory, and the loop that moves it on."""

    def __init__(
        self, path: Path, model: Model, config: dict[str, Any], dataset: AnyDataset, progress: Progress | None
    ) -> None:
        self.path = path
        self.model = model
        self.config = config
        self.dataset = dataset
        self.recipe = recipe = recipe_of(config)
        self.seed: int = config["seed"]
        self.optimizer = make_optimizer(model, recipe)
        self.noise = Generator(stream_seed(self.seed, "noise"))
        self.position = _Position()
        self.metrics: list[dict[str, Any]] = []
        self._progress = progress
        self._captured = gmcore.capture(self._descend, fallback=True)
        self._pending: list[tuple[int, dict[str, Any]]] = []
        self._clock = time.perf_counter()

    # -- saving --------------------------------------------------------------------------------------------
    def save(self) -> None:
        """Replace the checkpoint by the present state."""
        self._settle()
        self._tick()
        arrays = {f"model.{name}": tensor.cpu().numpy() for name, tensor in self.model.state_dict().items()}
        arrays |= {f"optimizer.{name}": array for name, array in self.optimizer.state_dict().items()}
        arrays |= {f"training.{name}": array for name, array in self.model.training_state().items()}
        arrays["generator.noise"] = np.array(self.noise.state, np.uint64)
        metadata = {
            "model": self.model.name,
            "config": json.dumps(self.config["config"]),
            "position": json.dumps(dataclasses.asdict(self.position)),
            "gmcore": gmcore.__version__,
        }
        io.save(self.path / CHECKPOINT, arrays, metadata)

    def restore(self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
        """Take over the state of a checkpoint; the model has its parameters already."""
        try:
            self.optimizer.load_state_dict(part(arrays, "optimizer."))
            self.model.load_training_state(part(arrays, "training."))
            seed, draw = arrays["generator.noise"].tolist()
            self.noise.state = seed, draw
            self.position = _Position(**metadata["position"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path / CHECKPOINT}: not the state of this training ({error})") from None
        self.metrics = read_metrics(self.path, self.position.epoch - 1)

    def _append(self, line: dict[str, Any]) -> None:
        self.metrics.append(line)
        write_metrics(self.path, self.metrics)

    def _tick(self) -> None:
        now = time.perf_counter()
        self.position.seconds += now - self._clock
        self._clock = now

    # -- the loop ------------------------------------------------------------------------------------------
    def run(self) -> Run:
        """Train to the last epoch, measure the test bound, draw the pictures."""
        try:
            with _Interrupts() as self._interrupts, using(self.model.device):
                while self.position.epoch <= self.recipe.epochs:
                    self._train_epoch()
                if not self.metrics or "split" not in self.metrics[-1]:
                    self._finish()
        except KeyboardInterrupt:
            raise Interrupted(self.path) from None
        return Run(self.path, self.model, self.metrics)

    def _report(self, event: Event) -> None:
        """Tell the progress, and stop here if Ctrl-C was pressed; called only where the state is whole."""
        if self._progress is not None:
            self._progress(event)
        if self._interrupts.requested:
            self.save()
            raise KeyboardInterrupt

    def _train_epoch(self) -> None:
        position, recipe = self.position, self.recipe
        for group in self.optimizer.param_groups:
            factor = SCHEDULES[recipe.schedule](position.epoch) if recipe.schedule else 1.0
            group["lr"] = recipe.learning_rate * factor
        batches = self.model.batches(self.dataset, recipe, self.seed, position.epoch)
        self.model.train()
        told = bool(self._captured.programs or self._captured.refusal)
        while position.batch < len(batches):
            loss = self._step(batches[position.batch])
            position.batch += 1
            position.step += 1
            self._report(Event("step", position.epoch, recipe.epochs, position.batch, len(batches), loss))
            if not told and (self._captured.programs or self._captured.refusal):
                told = True
                self._report(Event("capture", position.epoch, recipe.epochs, 0, 0, note=self._captured.state))
        self._settle()
        line = self._epoch_line()
        self._append(line)
        self.position = _Position(position.epoch + 1, 0, position.step, position.seconds)
        self.save()
        self._report(Event("epoch", position.epoch, recipe.epochs, len(batches), len(batches), line=line))

    def _descend(self, batch: Any) -> Step:
        """One step down the gradient of the loss on a batch."""
        self.optimizer.zero_grad()
        step = drawing_from(self.noise, self.model.compute_gradients, batch, generator=self.noise)
        if self.recipe.max_norm is not None:
            clip_grad_norm_(self.model.parameters(), self.recipe.max_norm)
        self.optimizer.step()
        return step

    def _step(self, batch: Any) -> Tensor:
        """One step, repeated from its recording; keeps what it tells."""
        step = self._captured(put_all(batch, self.model.device))
        self._pending.append((step.examples, {**step.figures, "loss": step.loss, "examples": 1}))
        return step.loss

    def _settle(self) -> None:
        """Add the losses since the last time to the totals: numbers leave the device here, not at every step."""
        totals = self.position.totals
        for count, figures in self._pending:
            for name, value in figures.items():
                totals[name] = totals.get(name, 0.0) + count * float(value)
        self._pending.clear()
        if not math.isfinite(totals.get("loss", 0.0)):
            raise ArgumentError(
                f"the loss is not finite in epoch {self.position.epoch}; {self.path} keeps the state before it. Try a "
                f"smaller learning rate (--set learning_rate={self.recipe.learning_rate / 10:g})"
            )

    def _epoch_line(self) -> dict[str, Any]:
        position = self.position
        totals = dict(position.totals)
        examples = totals.pop("examples")
        means = {name: total / examples for name, total in totals.items()}
        loss = means.pop("loss")
        valid_bound = self._validate()
        self._tick()
        return {
            "epoch": position.epoch,
            "step": position.step,
            "train_loss": loss,
            "valid_bound": valid_bound,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "metrics": means,
            "seconds": position.seconds,
        }

    def _validate(self) -> float:
        epoch, epochs = self.position.epoch, self.recipe.epochs
        return self.model.validate(
            self.dataset,
            self.recipe,
            self.seed,
            lambda done, total: self._report(Event("valid", epoch, epochs, done, total)),
        )

    def _finish(self) -> None:
        result = measure(
            self.model,
            self.dataset,
            split="test",
            recipe=self.recipe,
            samples=self.recipe.eval_samples,
            seed=self.seed,
            data_seed=self.seed,
            epoch=self.recipe.epochs,
            limit=None,
            report=self._report,
        )
        self.model.draw(self.path, self.dataset, self.recipe, self.seed)
        pictures.save_curves(self.path / "curves.png", [*self.metrics, result], self.model)
        self._append(result)


_NAMES = (str, os.PathLike)
"""What names a data set, or is the path of one, and is not one itself."""


def fit(
    model: str | Model | None = None,
    data: str | os.PathLike[str] | AnyDataset | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    device: str | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Run:
    """Train a model and save it as a run; or continue a run.

    Parameters
    ----------
    model : a name of `gmcore.models.names()`, or a model of one's own, built already.
    data : a name of `gmcore.data.sources()`, a path of a `.npy`, `.npz` or text file, or a data set
        itself (a `Dataset`, a `Text`, or another `AnyDataset` that the model takes); "digits" by default.
    data_dir : where the files of the data set are (see `gmcore.data.load`).
    epochs, batch_size : in place of the recipe's.
    seed : 0..2**64 - 1, 0 by default; all that is random follows from it (see `STREAMS`).
    out : folder of the run; ``runs/<model>-<data>-seed<seed>`` by default, with a number behind it if that is taken.
    resume : folder of a run to continue instead, up to its own number of epochs or to `epochs`. A run trained for 2
        epochs and resumed to 4 equals one trained for 4, bit for bit (on one build, device and thread count).
    device : "cpu", "cuda" for the current GPU, or "cuda:1". By default the CPU, or that of a run that is resumed; a run
        can be resumed on another device, where it goes on with the same draws and other roundings.
    settings : fields of the model's recipe (``learning_rate``, ``binarize``, ``eval_samples``, ...) and of its
        `settings` (``latent_size``, ...), by name.
    progress : called with an `Event` after every step.

    Returns
    -------
    Run : the trained model, the run's folder, and its metrics; ``run.result["bound"]`` is the test bound.

    Raises
    ------
    UnknownNameError, ArgumentError : a name or value that does not exist.  DataError : data that are missing or that
    the model's likelihood is not defined on.  MissingPackageError, DeviceError : a GPU that is not there, or nothing to
    use it with.  CheckpointError : a run that cannot be resumed, or cannot be written;
    what was saved before is then still there.  Interrupted (a `KeyboardInterrupt`) : Ctrl-C; the run was saved after
    the last step and can be resumed.
    """
    pictures.require_matplotlib()
    check_device(device)
    if resume is not None:
        given = {"batch_size": batch_size, "seed": seed, "out": out, "settings": settings or None}
        given["data"] = data if isinstance(data, _NAMES) else None
        if fixed := [name for name, value in given.items() if value is not None]:
            raise ArgumentError(f"{', '.join(fixed)}: fixed by the run that is resumed; epochs and data_dir may change")
        own = None if isinstance(data, _NAMES) else data
        training = _resume(Path(resume), model, own, data_dir, epochs, device, progress)
    else:
        if model is None:
            raise ArgumentError(f"name a model to train: one of {', '.join(models.names())}")
        overrides = {"epochs": epochs, "batch_size": batch_size}
        overrides = {**(settings or {}), **{k: v for k, v in overrides.items() if v is not None}}
        data = "digits" if data is None else data
        training = _begin(model, data, data_dir, seed or 0, out, device, overrides, progress)
    return training.run()


def assemble(
    model: str | Model,
    data: str | os.PathLike[str] | AnyDataset,
    data_dir: str | os.PathLike[str] | None,
    seed: int,
    settings: Mapping[str, Any],
) -> tuple[Model, Recipe, AnyDataset]:
    """What `fit` begins with, checked as far as it can be: the model, its recipe and the data set."""
    cls = models.get(model) if isinstance(model, str) else type(model)
    fields = [field.name for field in dataclasses.fields(Recipe)]
    arguments = cls.settings if isinstance(model, str) else ()
    for name in settings:
        if name not in fields and name not in arguments:
            raise unknown_name(f"setting of {cls.name}", name, [*fields, *arguments])
    recipe = dataclasses.replace(cls.recipe, **{name: value for name, value in settings.items() if name in fields})
    _check_recipe(recipe)
    init = Generator(stream_seed(Generator(seed).seed, "init"))
    dataset = load_data(data, data_dir) if isinstance(data, _NAMES) else data
    if isinstance(model, str):
        own = {name: value for name, value in settings.items() if name not in fields}
        model = drawing_from(init, cls.build, dataset, own, init)
    recipe = model.adapt(recipe, dataset, settings)
    make_optimizer(model, recipe)  # which refuses numbers that it cannot use
    with using(model.device):
        model.check_data(dataset, recipe, seed)
    return model, recipe, dataset


def _begin(
    model: str | Model,
    data: str | os.PathLike[str] | AnyDataset,
    data_dir: str | os.PathLike[str] | None,
    seed: int,
    out: str | os.PathLike[str] | None,
    device: str | None,
    settings: Mapping[str, Any],
    progress: Progress | None,
) -> _Training:
    """A new run, checked before anything is written."""
    model, recipe, dataset = assemble(model, data, data_dir, seed, settings)
    if device is not None:
        model.to(device)
    config = {
        "gmcore": gmcore.__version__,
        "model": model.name,
        "config": _json_config(model),
        "recipe": dataclasses.asdict(recipe),
        "data": {
            "source": _absolute(data) if isinstance(data, _NAMES) else None,
            "data_dir": None if data_dir is None else os.path.abspath(os.path.expanduser(data_dir)),
            "sha256": dataset.fingerprint(),
            "image_shape": dataset.image_shape,
            "provenance": {"data": dataset.name, **dataset.provenance},
        },
        "features": dataset.features,
        "seed": seed,
        "device": model.device,
        "threads": gmcore.get_num_threads(),
    }
    path = new_folder(out, f"{model.name}-{dataset.name}-seed{seed}")
    write_config(path, config)
    training = _Training(path, model, config, dataset, progress)
    training.save()
    return training


def _check_recipe(recipe: Recipe) -> None:
    """Raise `ArgumentError` or `UnknownNameError` for values that training cannot use."""
    for name in ("epochs", "batch_size", "eval_samples"):
        check_size(name, getattr(recipe, name))
    # Lists of the names, in which also a list can be looked for.
    if recipe.schedule not in [None, *SCHEDULES]:
        raise unknown_name("schedule", str(recipe.schedule), SCHEDULES)
    if recipe.optimizer not in [*OPTIMIZERS]:
        raise unknown_name("optimizer", str(recipe.optimizer), OPTIMIZERS)
    if recipe.max_norm is not None:
        clip_grad_norm_([], recipe.max_norm)


def _absolute(data: str | os.PathLike[str]) -> str:
    """A data set's name as it is; a path from anywhere, since a run may be resumed from another folder."""
    return os.path.abspath(data) if os.path.isfile(data) else os.fspath(data)


def _json_config(model: Model) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(model.config))
    except TypeError as error:
        raise ArgumentError(f"{model.name}: model.config must hold JSON values only ({error})") from None


def _resume(
    path: Path,
    model: str | Model | None,
    data: AnyDataset | None,
    data_dir: str | os.PathLike[str] | None,
    epochs: int | None,
    device: str | None,
    progress: Progress | None,
) -> _Training:
    """A run as its last checkpoint left it."""
    config, arrays, metadata = read_run(path)
    name = model.name if isinstance(model, Model) else model
    if name is not None and name != config["model"]:
        raise CheckpointError(f"{path}: a run of model {config['model']!r}, expected {name!r}")
    if epochs is not None:
        check_size("epochs", epochs)
        begun = metadata["position"]["epoch"] - (metadata["position"]["batch"] == 0)
        if epochs < begun:
            raise ArgumentError(f"{path} is in epoch {begun} already, past the {epochs} asked for")
        config["recipe"]["epochs"] = epochs
    _check_recipe(recipe_of(config))
    check_device(device or config["device"])
    dataset = reopen_data(config["data"], data, data_dir)
    restored = restore_model(path / CHECKPOINT, arrays, metadata, model if isinstance(model, Model) else None)
    config["device"] = restored.to(device or config["device"]).device
    training = _Training(path, restored, config, dataset, progress)
    training.restore(arrays, metadata)
    write_config(path, config)
    write_metrics(path, training.metrics)
    return training


__all__ = ["Event", "Interrupted", "Run", "bernoulli_baseline", "evaluate", "fit", "iwae_schedule", "load"]
