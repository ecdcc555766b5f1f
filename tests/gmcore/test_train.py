"""Training: what a run records, that it continues bit for bit from anywhere, and what it refuses."""

import dataclasses
import errno
import inspect
import itertools
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest

import gmcore
from gmcore import io, models, nn, ops
from gmcore.data import Dataset, prepare
from gmcore.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    DeviceError,
    GmcoreError,
    ShapeError,
    UnknownNameError,
)
from gmcore.evaluation import bernoulli_baseline
from gmcore.models import GenerativeModel, Model, Recipe, Step
from gmcore.optim.lr_scheduler import inverse_schedule
from gmcore.random import default_generator
from gmcore.streams import STREAMS, stream_seed
from gmcore.train import SCHEDULES, Interrupted, evaluate, fit, iwae_schedule, make_optimizer


class Pixels(GenerativeModel):
    """A model from outside the package: independent pixels, p(x) = prod_d Bernoulli(x_d; sigmoid(logit_d)).

    The loss adds noise to the logits, half of it from the default generator, so that training draws.
    """

    name = "pixels"
    summary = "independent pixels"
    source = "a test"
    recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.1, binarize="dynamic", eval_samples=3)
    settings = ("scale",)
    support = "unit-interval"

    def __init__(self, data_size, scale=1.0, *, generator=None):
        super().__init__()
        if scale <= 0:
            raise ArgumentError(f"scale must be positive, got {scale}")
        self.config = {"data_size": data_size, "scale": scale}
        self.logits = nn.Parameter(scale * ops.normal((data_size,), generator=generator).numpy())

    def log_prob(self, x, logits):
        if x.shape[1] != self.logits.shape[0]:
            raise ShapeError(f"pixels: {x.shape[1]} pixels, expected {self.logits.shape[0]}")
        return ops.bernoulli_log_prob(logits + np.zeros(x.shape, np.float32), x)

    def loss(self, x, *, generator=None):
        noise = ops.normal(self.logits.shape, generator=generator) + ops.normal(self.logits.shape)
        loss = -ops.mean(self.log_prob(x, self.logits + 0.1 * noise))
        return loss, {"largest": ops.max(self.logits)}

    def log_likelihood(self, x, *, samples, generator=None):
        return self.log_prob(x, self.logits)

    def sample(self, n, *, generator=None):
        return gmcore.tensor(np.tile(self.logits.detach().sigmoid().numpy(), (n, 1)))

    def reconstruct(self, x, *, generator=None):
        return self.sample(x.shape[0])


def make_data(pixels=6, train=40, binary=False, seed=0):
    rng = np.random.default_rng(seed)
    grey = rng.uniform(size=(train + 20, pixels)) ** np.linspace(0.2, 4, pixels)
    grey = np.float32(grey > 0.5) if binary else grey.astype(np.float32)
    return Dataset("made", grey[:train], grey[train:-10], grey[-10:], (2, pixels // 2), {"split": "in order"})


@pytest.fixture(autouse=True)
def registered(monkeypatch, tmp_path):
    monkeypatch.setattr("gmkernels.registry._environment", "reference")  # nothing to compile
    monkeypatch.setattr(models, "_registered", {})
    models.register(Pixels)
    monkeypatch.chdir(tmp_path)


def state(path):
    """All of a run that must repeat: the checkpoint's arrays, its position, and the lines of epochs and test."""
    arrays, metadata = io.load(path / "checkpoint.safetensors")
    position = json.loads(metadata["position"])
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for timed in (position, *lines):
        del timed["seconds"]
    last = max(line["epoch"] for line in lines)
    lines = [line for line in lines if "split" not in line or line["epoch"] == last]
    return {name: array.tobytes() for name, array in arrays.items()}, position, lines


# -- what a run is ------------------------------------------------------------------------------------------
def test_run_records_everything():
    run = fit("pixels", make_data(), epochs=3, settings={"scale": 0.5}, out="here")
    pictures = {"samples.png", "reconstructions.png", "curves.png"}
    assert set(os.listdir("here")) == {"config.json", "metrics.jsonl", "checkpoint.safetensors"} | pictures
    config = json.loads((run.path / "config.json").read_text())
    assert config["model"] == "pixels" and config["config"] == {"data_size": 6, "scale": 0.5}
    assert config["recipe"]["epochs"] == 3 and config["recipe"]["binarize"] == "dynamic"
    assert config["data"]["provenance"] == {"data": "made", "split": "in order"}
    assert config["gmcore"] == gmcore.__version__ and config["seed"] == 0
    *epochs, result = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in epochs] == [(1, 3), (2, 6), (3, 9)]
    assert result == run.result
    described = {"data": "made", "split": "test", "binarize": "static", "k": 3, "seed": 0, "n": 10, "epoch": 3}
    assert described.items() <= result.items()


def test_loss_of_an_epoch_is_the_mean_over_its_images():
    seen = []

    def record(event):
        if event.stage == "step":
            seen.append(event.loss.item())

    run = fit("pixels", make_data(train=40), epochs=1, batch_size=16, progress=record)
    assert run.metrics[0]["train_loss"] == pytest.approx(np.average(seen, weights=[16, 16, 8]), rel=1e-12)


def test_result_is_the_mean_and_its_error_on_the_binarised_test_images():
    data = make_data()
    run = fit("pixels", data, seed=5)
    x = prepare(data, "test", "static", 5).astype(np.float64)
    assert set(np.unique(x)) == {0.0, 1.0}
    p = 1 / (1 + np.exp(-gmcore.load(run).logits.detach().numpy().astype(np.float64)))
    exact = (x * np.log(p) + (1 - x) * np.log(1 - p)).sum(axis=1)
    assert run.result["bound"] == pytest.approx(exact.mean(), abs=1e-5)
    assert run.result["standard_error"] == pytest.approx(exact.std(ddof=1) / math.sqrt(10), abs=1e-5)
    assert run.result["baseline"] == bernoulli_baseline(data.train, x)


def test_pictured_rows_are_from_all_over_the_split():
    """Files may be sorted by class."""
    data = make_data()
    recipe = dataclasses.replace(Pixels.recipe, binarize="none")
    np.testing.assert_array_equal(Pixels.pictured(data, recipe, 0, 4), data.test[[0, 2, 5, 7]])
    np.testing.assert_array_equal(Pixels.pictured(data, recipe, 0, 50), data.test)


def test_training_learns():
    """Independent pixels, trained long enough, are the baseline up to the noise in the logits."""
    run = fit("pixels", make_data(train=400), epochs=20)
    assert run.result["bound"] > run.metrics[0]["valid_bound"]
    assert run.result["bound"] == pytest.approx(run.result["baseline"], abs=0.1)


def test_load_gives_the_trained_model_and_leaves_the_default_generator_alone():
    run = fit("pixels", make_data())
    before = default_generator().state
    for source in (run, run.path, str(run.path), run.path / "checkpoint.safetensors"):
        loaded = gmcore.load(source)
        assert type(loaded) is Pixels and not loaded.training
        assert np.array_equal(loaded.logits.detach().numpy(), run.model.logits.detach().numpy())
    assert default_generator().state == before


def test_a_model_built_already_trains():
    model = Pixels(6, generator=gmcore.Generator(3))
    run = fit(model, make_data())
    assert run.model is model
    again = Pixels(6, generator=gmcore.Generator(4))
    assert gmcore.load(run, again) is again
    assert np.array_equal(again.logits.detach().numpy(), model.logits.detach().numpy())


def test_default_folder_takes_a_free_name():
    assert [str(fit("pixels", make_data(), seed=7).path) for _ in range(3)] == [
        "runs/pixels-made-seed7", "runs/pixels-made-seed7-2", "runs/pixels-made-seed7-3"
    ]  # fmt: skip


@pytest.mark.parametrize("binarize, expected", [(None, "none"), ("dynamic", "dynamic")])
def test_binary_data_are_not_binarised_unless_asked(binarize, expected):
    settings = {} if binarize is None else {"binarize": binarize}
    run = fit("pixels", make_data(binary=True), settings=settings)
    assert json.loads((run.path / "config.json").read_text())["recipe"]["binarize"] == expected


# -- optimisers ---------------------------------------------------------------------------------------------
def trained(**settings):
    """The logits before and after a step."""
    data = make_data(train=16)
    run = fit("pixels", data, epochs=1, settings={"binarize": "none", "learning_rate": 0.1, **settings})
    start = Pixels(6, generator=gmcore.Generator(stream_seed(0, "init"))).logits.detach().numpy().astype(np.float64)
    return start, run.model.logits.detach().numpy().astype(np.float64)


def test_sgd_takes_the_step_of_its_formula():
    start, end = trained(optimizer="sgd")
    _, clipped = trained(optimizer="sgd", max_norm=1e-3)
    assert np.linalg.norm(end - start) > 2e-3
    step = clipped - start
    # The clipped gradient has norm 1e-3 and the direction of the whole one; float32 logits near 1 carry 6e-8.
    np.testing.assert_allclose(np.linalg.norm(step), 1e-4, rtol=1e-2)
    cosine = step @ (end - start) / np.linalg.norm(step) / np.linalg.norm(end - start)
    assert cosine > 1 - 1e-3


def test_momentum_carries_the_first_step_into_the_second():
    data = make_data(train=16)
    settings = {"optimizer": "sgd", "binarize": "none", "learning_rate": 0.1}
    once, plain, heavy = (
        fit("pixels", data, epochs=epochs, settings={**settings, "momentum": momentum}).model.logits.detach().numpy()
        for epochs, momentum in [(1, 0.0), (2, 0.0), (2, 0.9)]
    )
    start, _ = trained(optimizer="sgd")
    np.testing.assert_allclose(heavy, plain + 0.9 * (once - start), atol=1e-6)


def test_weight_decay_shrinks_matrices_and_leaves_biases_alone():
    _, plain = trained(optimizer="sgd")
    _, decayed = trained(optimizer="sgd", weight_decay=1.0)
    assert np.array_equal(plain, decayed)
    layer = nn.Linear(2, 3)
    model = Pixels(6)
    model.layer = layer
    matrices, biases = make_optimizer(model, dataclasses.replace(Pixels.recipe, weight_decay=0.5)).param_groups
    assert [p.shape for p in matrices["params"]] == [(3, 2)] and matrices["weight_decay"] == 0.5
    assert {p.shape for p in biases["params"]} == {(6,), (3,)} and biases["weight_decay"] == 0


def test_a_recipe_asks_for_nesterovs_momentum():
    recipe = dataclasses.replace(Pixels.recipe, optimizer="sgd", momentum=0.5, nesterov=True)
    (group,) = make_optimizer(Pixels(6), recipe).param_groups
    assert group["momentum"] == 0.5 and group["nesterov"] is True


# -- repeating and continuing -------------------------------------------------------------------------------
def test_a_seed_repeats_and_another_differs():
    a, b, c = (state(fit("pixels", make_data(), seed=seed).path) for seed in (1, 1, 2))
    assert a == b
    assert a[0]["model.logits"] != c[0]["model.logits"] and a[2] != c[2]


def test_four_epochs_are_two_and_two_resumed():
    whole = fit("pixels", make_data(), epochs=4)
    half = fit("pixels", make_data(), epochs=2)
    result = half.result
    resumed = fit(resume=half.path, data=make_data(), epochs=4)
    assert state(whole.path) == state(resumed.path)
    assert result in resumed.metrics, "the bound reported after two epochs is kept"


def test_resuming_a_finished_run_changes_nothing():
    run = fit("pixels", make_data())
    before = state(run.path)
    events = []
    again = fit(resume=run.path, data=make_data(), progress=events.append)
    assert state(again.path) == before and not events
    assert again.result == run.result


def test_interrupted_anywhere_it_continues_bit_for_bit():
    """Ctrl-C at every single point at which progress is reported: steps, validation, ends of epochs, evaluation."""
    events = []
    whole = fit("pixels", make_data(), progress=events.append)
    expected = state(whole.path)
    assert {event.stage for event in events} == {"step", "capture", "valid", "epoch", "test"}
    for at in range(len(events)):
        counter = itertools.count()

        def interrupt(event, at=at, counter=counter):
            if next(counter) == at:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(Interrupted, match="gmcore train --resume") as caught:
            fit("pixels", make_data(), progress=interrupt, out=f"stopped{at}")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        resumed = fit(resume=caught.value.path, data=make_data())
        assert state(resumed.path) == expected, f"interrupted at {events[at]}"


class Sums(Model):
    """The mean of a series of numbers by gradient descent, in an order that the last batch decides: a model whose data
    are no rows of images and whose steps leave something to the next."""

    name, summary, source = "sums", "mean of a series", "a test"
    recipe = Recipe(epochs=2, batch_size=4, learning_rate=0.1)
    settings = ()
    unit = "apples"

    def __init__(self, *, generator=None):
        super().__init__()
        self.config = {}
        self.mean = nn.Parameter(np.zeros(1, np.float32))
        self.carried = np.zeros(2)

    @classmethod
    def build(cls, dataset, settings, generator):
        return cls(generator=generator)

    def check_data(self, dataset, recipe, seed):
        pass

    def batches(self, dataset, recipe, seed, epoch):
        return [dataset.train[i : i + recipe.batch_size] for i in range(0, len(dataset.train), recipe.batch_size)]

    def compute_gradients(self, batch, *, generator):
        self.carried = 0.5 * self.carried + batch.sum()
        loss = ops.mean((self.mean - gmcore.tensor(batch + np.float32(self.carried[0]))) ** 2)
        loss.backward()
        return Step(loss.detach(), {}, len(batch))

    def training_state(self):
        return {"carried": self.carried}

    def load_training_state(self, arrays):
        self.carried = arrays["carried"]

    def validate(self, dataset, recipe, seed, report):
        report(1, 1)
        return -float(((dataset.valid - self.mean.detach().numpy()) ** 2).mean())

    def measure(self, dataset, split, *, limit, report, **how):
        series = getattr(dataset, split)[:limit]
        bound = -float(((series - self.mean.detach().numpy()) ** 2).mean())
        return {"bound": bound, "standard_error": None, "baseline": None, "n": len(series)}

    def draw(self, folder, dataset, recipe, seed):
        (folder / "samples.png").write_text(str(self.mean))


class Series:
    name, provenance, image_shape, features = "series", {}, None, 1
    train, valid, test = (np.arange(n, dtype=np.float32) for n in (10, 3, 3))

    def fingerprint(self):
        return "series"


@pytest.mark.filterwarnings("ignore:captured _Training._descend runs eagerly")  # what it carries is Python's
def test_a_model_of_another_kind_of_data_trains_and_continues_bit_for_bit():
    models.register(Sums)
    events = []
    whole = fit("sums", Series(), progress=events.append)
    assert whole.result["unit"] == "apples" and "k" not in whole.result
    assert any(name.startswith("training.") for name in state(whole.path)[0])
    for at in range(len(events)):
        counter = itertools.count()

        def interrupt(event, at=at, counter=counter):
            if next(counter) == at:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(Interrupted) as caught:
            fit("sums", Series(), progress=interrupt, out=f"stopped{at}")
        resumed = fit(resume=caught.value.path, data=Series())
        assert state(resumed.path) == state(whole.path), f"interrupted at {events[at]}"
    assert evaluate(whole, data=Series(), limit=2)["n"] == 2


def test_models_of_images_refuse_other_data():
    with pytest.raises(DataError, match="pixels models data vectors, and data set 'series' holds none"):
        fit("pixels", Series())


def test_killed_at_the_worst_moments_it_continues_bit_for_bit(monkeypatch):
    """The metrics of an epoch are written, in part, and its checkpoint is not."""
    expected = state(fit("pixels", make_data()).path)
    write = io.save
    calls = itertools.count()

    def killed(*arguments):
        if next(calls) == 2:
            raise RuntimeError("killed")
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(io, "save", killed)
        with pytest.raises(RuntimeError):
            fit("pixels", make_data(), out="run")
    with open("run/metrics.jsonl", "a") as file:
        file.write('{"epoch": 3, "tra')
    assert state(fit(resume="run", data=make_data()).path) == expected


def test_a_signal_handler_of_the_program_is_left_in_place():
    caught = []
    before = signal.signal(signal.SIGINT, lambda *arguments: caught.append(True))
    try:
        kept = signal.getsignal(signal.SIGINT)
        fit("pixels", make_data(), epochs=1, progress=lambda event: os.kill(os.getpid(), signal.SIGINT))
        assert caught and signal.getsignal(signal.SIGINT) is kept
    finally:
        signal.signal(signal.SIGINT, before)


def test_full_disk_keeps_the_last_epoch(monkeypatch):
    expected = state(fit("pixels", make_data()).path)
    sync = os.fsync
    full = False

    def fsync(descriptor):
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    def fill(event):
        nonlocal full
        full = event.epoch == 2

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError, match="No space left"):
        fit("pixels", make_data(), out="run", progress=fill)
    assert json.loads(io.load("run/checkpoint.safetensors")[1]["position"])["epoch"] == 2
    full = False
    assert state(fit(resume="run", data=make_data()).path) == expected


def test_evaluate_repeats_the_reported_bound():
    run = fit("pixels", make_data())
    same = {"bound", "standard_error", "baseline", "k", "n", "binarize", "binarize_seed", "seed", "epoch", "data"}
    again = evaluate(run.path, data=make_data())
    assert {name: again[name] for name in same} == {name: run.result[name] for name in same}
    part = evaluate(run, split="valid", samples=7, limit=4, seed=9, data=make_data())
    assert (part["split"], part["k"], part["n"], part["seed"], part["binarize_seed"]) == ("valid", 7, 4, 9, 0)


def test_interrupt_has_no_effect_on_a_library_user_who_catches_exceptions():
    assert issubclass(Interrupted, KeyboardInterrupt) and not issubclass(Interrupted, Exception)


# -- streams, schedule, baseline, data ----------------------------------------------------------------------
def test_every_use_of_every_seed_has_a_stream_of_its_own():
    seeds = [0, 1, 2, 10, 11, 2**32, 2**64 - 1]
    keys = [stream_seed(seed, use) for seed in seeds for use in STREAMS] + seeds
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)
    with pytest.raises(UnknownNameError, match="did you mean 'noise'"):
        stream_seed(0, "nois")


def test_iwae_schedule():
    rates = [iwae_schedule(epoch) for epoch in range(1, 4001)]
    stages = [(rate, len(list(group))) for rate, group in itertools.groupby(rates)]
    assert [count for _, count in stages[:7]] == [3**i for i in range(7)]
    assert stages[7][1] == 4000 - (3**7 - 1) // 2 and len(stages) == 8
    assert [rate for rate, _ in stages] == pytest.approx(list(np.logspace(0, -1, 8)), rel=1e-14)


def test_inverse_schedules():
    assert [inverse_schedule(epoch) for epoch in (1, 11, 21, 91)] == [1, 1 / 2, 1 / 3, 1 / 10]
    assert [SCHEDULES["inverse-250"](epoch) for epoch in (1, 250)] == [1, 1 / 10]


def test_schedule_sets_the_rate_of_each_epoch():
    run = fit("pixels", make_data(), epochs=5, settings={"schedule": "iwae", "learning_rate": 0.2})
    rates = [line["learning_rate"] for line in run.metrics if "split" not in line]
    assert rates == pytest.approx([0.2 * 10 ** (-i / 7) for i in (0, 1, 1, 1, 2)], rel=1e-12)


def test_baseline_is_a_distribution_over_images():
    train = make_data(pixels=4, binary=True).train
    train[:, 0] = 0.0
    images = np.array(list(itertools.product((0.0, 1.0), repeat=4)))
    log_prob = np.array([bernoulli_baseline(train, image[None]) for image in images])
    assert np.exp(log_prob).sum() == pytest.approx(1.0, abs=1e-12)
    ones = images[:, 0] == 1
    assert np.exp(log_prob[ones]).sum() == pytest.approx(1 / (len(train) + 2), rel=1e-12)


def test_prepare_changes_training_images_by_epoch_and_no_others():
    data = make_data()
    a, b = (prepare(data, "train", "dynamic", 0, epoch) for epoch in (1, 2))
    assert not np.array_equal(a, b) and np.array_equal(a, prepare(data, "train", "dynamic", 0, 1))
    for split, mode in (("train", "static"), ("valid", "dynamic"), ("test", "dynamic")):
        assert np.array_equal(prepare(data, split, mode, 0, 1), prepare(data, split, mode, 0, 2))
    assert prepare(data, "train", "none", 0) is data.train


# -- bad input ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: fit("pixel", make_data()), UnknownNameError, "did you mean 'pixels'"),
        (lambda: fit(data=make_data()), ArgumentError, "name a model"),
        (lambda: fit("pixels", "digts"), UnknownNameError, "did you mean 'digits'"),
        (lambda: fit("pixels", make_data(), epochs=0), ArgumentError, "epochs must be a positive integer, got 0"),
        (lambda: fit("pixels", make_data(), batch_size=-1), ArgumentError, "batch_size must be"),
        (lambda: fit("pixels", make_data(), settings={"eval_samples": 0}), ArgumentError, "eval_samples must be"),
        (lambda: fit("pixels", make_data(), settings={"scal": 1}), UnknownNameError, "did you mean 'scale'"),
        (lambda: fit("pixels", make_data(), settings={"scale": -1}), ArgumentError, "scale must be positive"),
        (lambda: fit("pixels", make_data(), settings={"schedule": "iwa"}), UnknownNameError, "did you mean 'iwae'"),
        (lambda: fit("pixels", make_data(), settings={"binarize": "stat"}), UnknownNameError, "'static'"),
        (lambda: fit("pixels", make_data(), seed=-1), ArgumentError, "seed is an integer"),
        (lambda: fit("pixels", make_data(), device="cuda:9"), DeviceError, "one of the"),
        (lambda: fit(Pixels(5), make_data()), ShapeError, "6 pixels, expected 5"),
        (lambda: fit("vae", make_data(), settings={"latent_size": 0}), ArgumentError, "latent_size"),
        (lambda: fit("iwae", make_data(), settings={"samples": 0}), ArgumentError, "samples"),
    ],
)
def test_bad_arguments_make_no_run(call, error, message):
    with pytest.raises(error, match=message):
        call()
    assert not os.path.exists("runs")


@pytest.mark.parametrize("binarize", ["none", "static", "dynamic"])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_data_outside_the_support(split, binarize):
    data = make_data()
    getattr(data, split)[3, 2] = 1.5
    with pytest.raises(DataError, match=rf"split '{split}'.*not in \[0, 1\].*1.5 at index \(3, 2\)"):
        fit("pixels", data, settings={"binarize": binarize})
    assert not os.path.exists("runs")


@pytest.mark.parametrize(
    "array, message",
    [
        (np.full((20, 4), np.nan), "not finite"),
        (np.zeros((0, 4)), "shape"),
        (np.zeros(20), "shape"),
        (np.zeros((20, 4), complex), "real numbers"),
    ],
)
def test_bad_arrays(array, message):
    np.save("own.npy", array)
    with pytest.raises(DataError, match=message):
        fit("pixels", "own.npy")
    assert not os.path.exists("runs")


def test_a_path_of_data_is_found_again_from_another_folder(tmp_path, monkeypatch):
    np.save("own.npy", make_data().train)
    run = fit("pixels", "own.npy", epochs=1)
    path = run.path.absolute()
    monkeypatch.chdir("/")
    assert fit(resume=path, epochs=2).metrics[-1]["epoch"] == 2
    np.save(tmp_path / "own.npy", make_data(seed=1).train)
    with pytest.raises(DataError, match="not the one that the run was trained on"):
        fit(resume=path, epochs=3)


def test_refused_folders(tmp_path):
    run = fit("pixels", make_data(), out="run")
    before = state(run.path)
    with pytest.raises(ArgumentError, match="holds a run already.*--resume run"):
        fit("pixels", make_data(), out="run")
    assert state(run.path) == before
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be made"):
        fit("pixels", make_data(), out="file")


def test_refused_resumes():
    fit("pixels", make_data(), out="run")
    for options in ({"batch_size": 3}, {"seed": 1}, {"out": "b"}, {"settings": {"scale": 2.0}}, {"data": "digits"}):
        with pytest.raises(ArgumentError, match=f"{next(iter(options))}: fixed by the run"):
            fit(resume="run", **options)
    for model, name in (("vae", "vae"), (Other(6), "other")):
        with pytest.raises(CheckpointError, match=f"a run of model 'pixels', expected '{name}'"):
            fit(model, resume="run", data=make_data())
    with pytest.raises(ArgumentError, match="in epoch 2 already, past the 1"):
        fit(resume="run", data=make_data(), epochs=1)
    with pytest.raises(DataError, match="made in Python; pass it again"):
        fit(resume="run")
    with pytest.raises(DataError, match="not the one"):
        fit(resume="run", data=make_data(seed=1))
    with pytest.raises(CheckpointError, match="not a run"):
        fit(resume="nowhere")


class Other(Pixels):
    name = "other"


def test_damaged_runs():
    fit("pixels", make_data(), out="run")
    fit("pixels", make_data(pixels=4), out="another")
    config, checkpoint = (Path("run", name).read_bytes() for name in ("config.json", "checkpoint.safetensors"))
    resume = lambda: fit(resume="run", data=make_data(), epochs=9)  # noqa: E731
    for name, content, message in [
        ("config.json", config[:-20], "damaged"),
        ("config.json", b"[]", "damaged"),
        ("config.json", b"{}", "lacks"),
        ("checkpoint.safetensors", checkpoint[:-20], "truncated"),
        ("checkpoint.safetensors", b"", "truncated"),
        ("checkpoint.safetensors", checkpoint[:-4] + b"\0\1\2\3", "corrupt"),
        ("checkpoint.safetensors", Path("another/checkpoint.safetensors").read_bytes(), "but config.json describes"),
    ]:
        Path("run", name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            resume()
        for whole, original in (("config.json", config), ("checkpoint.safetensors", checkpoint)):
            Path("run", whole).write_bytes(original)
    os.remove("run/checkpoint.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        resume()


def test_checkpoints_of_other_models(monkeypatch):
    run = fit("pixels", make_data())
    with pytest.raises(CheckpointError, match="model 'pixels', expected 'other'"):
        gmcore.load(run, Other(6))
    with pytest.raises(CheckpointError, match="logits"):
        gmcore.load(run, Pixels(5))
    io.save("weights", {"logits": np.zeros(6, np.float32)}, {})
    with pytest.raises(CheckpointError, match="not a checkpoint of a run"):
        gmcore.load("weights")
    with monkeypatch.context() as patch:
        patch.setattr(models, "_registered", {})
        with pytest.raises(UnknownNameError, match="unknown model 'pixels'"):
            gmcore.load(run.path)


def test_a_model_that_json_cannot_rebuild():
    model = Pixels(6)
    model.config["scale"] = object()
    with pytest.raises(ArgumentError, match="JSON values only"):
        fit(model, make_data())


def test_diverged_training_keeps_the_last_good_epoch(monkeypatch):
    fit("pixels", make_data(), out="run", epochs=1)
    before = io.load("run/checkpoint.safetensors")[0]
    loss = Pixels.loss
    monkeypatch.setattr(Pixels, "loss", lambda self, x, **more: (loss(self, x, **more)[0] * math.nan, {}))
    with pytest.raises(ArgumentError, match="not finite in epoch 2.*smaller learning rate"):
        fit(resume="run", data=make_data(), epochs=2)
    after = io.load("run/checkpoint.safetensors")[0]
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_matplotlib_is_asked_for_before_training(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(GmcoreError, match=r'pip install "gmcore\[app\]"'):
        fit("pixels", make_data())
    assert not os.path.exists("runs")


def test_fit_documents_every_argument():
    assert all(name in (fit.__doc__ or "") for name in inspect.signature(fit).parameters)
