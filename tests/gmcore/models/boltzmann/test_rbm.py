"""Proofs of the RBM: gradients against enumeration, likelihoods in closed form, training, what a run keeps."""

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import special, stats

import gmcore
from gmcore import Generator, ops
from gmcore.cli import main
from gmcore.data import Dataset
from gmcore.errors import ArgumentError, CheckpointError, DataError, GmcoreError, ShapeError
from gmcore.models.boltzmann.partition import anneal, annealing_schedule, exact_partition
from gmcore.models.boltzmann.rbm import RBM
from gmcore.optim import SGD, Adam
from gmcore.train import fit


def states(n):
    return np.array(list(itertools.product([0.0, 1.0], repeat=n)), np.float32)


def spread(model, scale, seed=0):
    """The model with parameters that matter."""
    rng = np.random.default_rng(seed)
    for p in model.parameters():
        p.copy_((scale * rng.standard_normal(p.shape)).astype(np.float32))
    return model


def double(model):
    for p in model.parameters():
        p._data = p._data.astype(np.float64)
    return model


def bars_and_stripes(side):
    """All images of full rows or of full columns, each once for each of the two ways, as in MacKay's set."""
    rows = np.repeat(states(side)[:, :, None], side, axis=2).reshape(-1, side * side)
    columns = np.repeat(states(side)[:, None, :], side, axis=1).reshape(-1, side * side)
    return np.concatenate([rows, columns])


def exact_loss(model, x, everything):
    """-log p averaged over x, by the tape, with log Z over all visible states."""
    return ops.mean(model.free_energy(x)) + ops.logsumexp(-model.free_energy(everything))


# -- gradients -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("units", ["bernoulli", "gaussian"])
def test_the_kernel_gives_the_gradient_of_the_loss(units):
    model = spread(RBM(6, 4, units=units, chains=0, steps=2), 0.5)
    x = states(6)[::3]
    step = model.compute_gradients(x, generator=Generator(5))
    found = [p.grad.numpy() for p in model.parameters()]
    loss, _ = model.loss(gmcore.tensor(x), generator=Generator(5))
    expected = gmcore.grad(loss, list(model.parameters()))
    # float32 means of 22 terms below 10
    np.testing.assert_allclose(step.loss.item(), loss.item(), rtol=1e-5, atol=1e-5)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=1e-5)
    assert step.examples == len(x)


def test_cd_turns_to_the_gradient_as_k_grows():
    """The cosine of CD-k with the exact gradient, on 8 + 8 units: 50,000 chains leave an angle of about 0.01."""
    model = spread(RBM(8, 8, chains=0), 2.5, seed=1)
    everything = gmcore.tensor(states(8))
    rows = states(8)[np.random.default_rng(2).choice(256, 50_000, p=np.random.default_rng(3).dirichlet(np.ones(256)))]
    exact = gmcore.grad(exact_loss(model, gmcore.tensor(rows), everything), list(model.parameters()))
    exact = np.concatenate([g.numpy().ravel() for g in exact])
    cosines = []
    for k in (1, 3, 10, 100):
        model.steps = k
        model.compute_gradients(rows, generator=Generator(4))
        found = np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])
        cosines.append(found @ exact / np.linalg.norm(found) / np.linalg.norm(exact))
    assert cosines[0] < cosines[1] < cosines[2] < cosines[3] and cosines[0] < 0.99 < cosines[3]


def test_persistent_chains_go_on():
    """Two steps of PCD-1 from given chains are two Gibbs steps, with the draws that follow each other."""
    model = spread(RBM(6, 4, chains=7), 0.5)
    noise = Generator(9)
    model.compute_gradients(states(6), generator=noise)
    first = model.training_state()["chains"]
    assert first.shape == (7, 6) and first.dtype == np.uint8
    expected, _ = model.gibbs(first.astype(np.float32), generator=Generator(9))
    key = Generator(9)
    key.state = noise.state
    expected, _ = model.gibbs(first.astype(np.float32), generator=key)
    model.compute_gradients(states(6), generator=noise)
    np.testing.assert_array_equal(model.training_state()["chains"], expected.numpy())


# -- likelihoods ---------------------------------------------------------------------------------------------
def test_log_likelihood_of_all_states_sums_to_one():
    model = spread(RBM(9, 5), 1.0)
    total = special.logsumexp(model.log_likelihood(gmcore.tensor(states(9))).numpy())
    assert total == pytest.approx(0, abs=1e-5)  # float32 free energies


def test_density_of_gaussian_units_is_that_of_the_mixture():
    """In the coordinates of the data, whose standard deviations are not 1."""
    model = spread(RBM(3, 2, units="gaussian"), 0.8)
    sigma = np.array([0.5, 2.0, 3.0], np.float32)
    model.sigma.copy_(sigma)
    weight, c, b = (a.astype(np.float64) for a in model.machine)
    h = states(2)
    means = h @ weight + c
    log_share = special.log_softmax(h @ b + (means**2).sum(1) / 2)
    x = (sigma * np.random.default_rng(1).standard_normal((20, 3))).astype(np.float32)
    densities = np.stack([stats.norm.logpdf(x, sigma * mean, sigma).sum(1) for mean in means])
    expected = special.logsumexp(densities + log_share[:, None], axis=0)
    np.testing.assert_allclose(model.log_likelihood(gmcore.tensor(x)).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_pseudo_log_likelihood_is_the_sum_of_the_conditionals():
    model = spread(RBM(5, 4), 1.0)
    x = states(5)
    log_p = model.log_likelihood(gmcore.tensor(x)).numpy()
    expected = np.zeros(32)
    for i in range(5):
        other = x.copy()
        other[:, i] = 1 - other[:, i]
        number = (other @ (1 << np.arange(5)[::-1])).astype(int)
        expected += log_p - np.logaddexp(log_p, log_p[number])
    np.testing.assert_allclose(model.pseudo_log_likelihood(gmcore.tensor(x)).numpy(), expected, rtol=1e-4, atol=1e-5)
    # Of 2 units at random in each of 32 x 500 images, without bias.
    many = gmcore.tensor(np.tile(x, (500, 1)))
    found = model.pseudo_log_likelihood(many, flips=2, generator=Generator(1)).numpy().reshape(500, 32)
    error = found.std(0) / math.sqrt(500)
    assert (abs(found.mean(0) - expected) < 5 * error + 1e-5).all()


@pytest.mark.slow
def test_annealing_agrees_with_enumeration_after_training():
    """A machine of 4 + 4 units trained on 2 x 2 bars and stripes by the exact gradient."""
    images = bars_and_stripes(2)
    model = double(spread(RBM(4, 4), 1.0, seed=1))
    optimizer = Adam(model.parameters(), lr=0.1)
    x, everything = gmcore.tensor(images.astype(np.float64)), gmcore.tensor(states(4).astype(np.float64))
    for _ in range(600):
        optimizer.zero_grad()
        exact_loss(model, x, everything).backward()
        optimizer.step()
    counts = np.unique(images, axis=0, return_counts=True)[1]
    entropy = stats.entropy(counts / counts.sum())
    assert entropy == pytest.approx(1.7328679, abs=1e-7)
    log_p = model.log_likelihood(x).numpy().mean()
    assert -entropy - 0.05 < log_p < -entropy
    exact = exact_partition(model.machine).log_z
    found, _ = anneal(
        model.machine, base_bias=model.base_bias.numpy(), betas=annealing_schedule(1000), runs=6_000,
        generator=Generator(2),
    )  # fmt: skip
    assert abs(found.log_z - exact) < 0.01


@pytest.mark.slow
def test_exact_training_reaches_the_entropy_of_3_x_3_bars_and_stripes():
    images = bars_and_stripes(3)
    counts = np.unique(images, axis=0, return_counts=True)[1]
    model = double(spread(RBM(9, 16), 0.5, seed=1))
    optimizer = Adam(model.parameters(), lr=0.05)
    x, everything = gmcore.tensor(images.astype(np.float64)), gmcore.tensor(states(9).astype(np.float64))
    for _ in range(1500):
        optimizer.zero_grad()
        exact_loss(model, x, everything).backward()
        optimizer.step()
    assert model.log_likelihood(x).numpy().mean() > -stats.entropy(counts / counts.sum()) - 0.02


@pytest.mark.slow
def test_persistent_chains_beat_cd_1_on_bars_and_stripes():
    """After equal updates, by the exact likelihood."""
    images = bars_and_stripes(3)
    found = {}
    for chains in (0, 100):
        model, noise = RBM(9, 12, chains=chains, generator=Generator(1)), Generator(2)
        model.fit_marginals(images)
        optimizer = SGD(model.parameters(), lr=0.05)
        for step in range(10_000):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (1 - step / 10_000)
            optimizer.zero_grad()
            model.compute_gradients(images, generator=noise)
            optimizer.step()
        found[chains] = model.log_likelihood(gmcore.tensor(images)).numpy().mean()
    assert found[100] > found[0]


def test_samples_are_of_the_machine():
    """Means of 4,000 samples against the marginals by enumeration."""
    model = spread(RBM(4, 3), 0.8)
    p = np.exp(model.log_likelihood(gmcore.tensor(states(4))).numpy())
    means = model.sample(4000, generator=Generator(1)).numpy()
    np.testing.assert_allclose(means.mean(0), p @ states(4), atol=5 * 0.5 / math.sqrt(4000))
    x, _ = model.gibbs(states(4), 3, generator=Generator(1))
    assert x.shape == (16, 4) and set(np.unique(x.numpy())) <= {0, 1}
    assert model.reconstruct(gmcore.tensor(states(4)), generator=Generator(1)).shape == (16, 4)


# -- runs ----------------------------------------------------------------------------------------------------
TINY = {"hidden_size": 5, "eval_samples": 10, "temperatures": 20, "chains": 9}


@pytest.fixture
def workplace(monkeypatch, tmp_path):
    monkeypatch.setattr("gmkernels.registry._environment", "reference")  # nothing to compile
    monkeypatch.setattr("gmcore.models.boltzmann.rbm._SAMPLE_STEPS", 3)
    monkeypatch.setattr("gmcore.models.boltzmann.rbm._PICTURED_STEPS", (0, 1, 3))
    monkeypatch.chdir(tmp_path)


def make_data(binary=True, pixels=6, n=60):
    rng = np.random.default_rng(0)
    grey = (rng.uniform(size=(n, pixels)) ** np.linspace(0.2, 4, pixels)).astype(np.float32)
    rows = np.float32(grey > 0.5) if binary else grey
    return Dataset("made", rows[:40], rows[40:50], rows[50:], (2, pixels // 2), {"split": "in order"})


def checkpoint(path):
    arrays, _ = gmcore.io.load(path / "checkpoint.safetensors")
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.mark.parametrize("chains, units", [(9, "bernoulli"), (9, "gaussian"), (0, "bernoulli")])
def test_a_resumed_run_equals_one_that_was_not_interrupted(workplace, chains, units):
    settings = {**TINY, "chains": chains, "units": units, "learning_rate": 0.01}
    straight = fit("rbm", make_data(), epochs=2, batch_size=16, settings=settings, out="straight")
    fit("rbm", make_data(), epochs=1, batch_size=16, settings=settings, out="halves")
    resumed = fit(data=make_data(), resume="halves", epochs=2)
    assert checkpoint(straight.path) == checkpoint(resumed.path)
    assert ("training.chains" in checkpoint(straight.path)) == (chains > 0)
    assert straight.result["bound"] == resumed.result["bound"]


def test_a_run_measures_and_draws(workplace):
    run = fit("rbm", make_data(), epochs=1, settings=TINY, out="run")
    assert set(os.listdir("run")) >= {
        "samples.png", "reconstructions.png", "curves.png", "filters.png", "chain.png",
    }  # fmt: skip
    model, result = run.model, run.result
    exact = exact_partition(model.machine).log_z
    assert result["log_z_by"] == "enumeration" and result["log_z"] == pytest.approx(exact, rel=1e-14)
    expected = model.log_likelihood(gmcore.tensor(make_data().test)).numpy().mean()
    assert result["bound"] == pytest.approx(expected, rel=1e-12)
    assert result["figure"] == "log-likelihood" and result["baseline"] < 0
    assert gmcore.load("run").config == model.config
    model.sigma.copy_(model.sigma.numpy())
    np.testing.assert_array_equal(gmcore.load("run").base_bias.numpy(), model.base_bias.numpy())


def test_larger_machines_are_annealed(workplace, capsys):
    np.save("own.npy", np.float32(np.random.default_rng(0).uniform(size=(40, 2, 12)) > 0.4))
    words = [f"--set={name}={value}" for name, value in {**TINY, "hidden_size": 21}.items()]
    assert main(["train", "rbm", "--data", "own.npy", "--epochs", "1", "--out", "run", *words]) == 0
    printed = capsys.readouterr().out
    assert "test log-likelihood" in printed and "log Z by annealing" in printed and "10 runs" in printed
    result = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert result["runs"] == 10 and result["temperatures"] == 20 and 1 <= result["effective_runs"] <= 10
    low, high = result["log_z_interval"]
    assert low < result["log_z"] < high
    assert main(["evaluate", "run", "--samples", "20"]) == 0
    assert "20 runs" in capsys.readouterr().out
    assert main(["sample", "run", "-n", "4", "--out", "drawn.npy"]) == 0
    assert np.load("drawn.npy").shape == (4, 24)


def test_marginals_are_where_training_begins():
    data = make_data()
    model = RBM.build(data, {}, Generator(0))
    np.testing.assert_allclose(
        special.expit(model.visible_bias.detach().numpy()), data.train.mean(0).clip(1e-3, 0.999), rtol=1e-5
    )
    grey = make_data(binary=False)
    model = RBM.build(grey, {"units": "gaussian"}, Generator(0))
    deviations = grey.train.std(0)
    np.testing.assert_allclose(model.sigma.numpy(), np.maximum(deviations, 0.1 * deviations.max()), rtol=1e-5)
    np.testing.assert_allclose(model.sigma.numpy() * model.visible_bias.detach().numpy(), grey.train.mean(0), rtol=1e-5)


# -- refusals ------------------------------------------------------------------------------------------------
def test_grey_data_are_refused_unless_they_are_binarised(workplace):
    with pytest.raises(DataError, match="are not 0 or 1"):
        fit("rbm", make_data(binary=False), settings={**TINY, "binarize": "none"})
    run = fit("rbm", make_data(binary=False), epochs=1, settings=TINY)
    assert run.result["binarize"] == "static"


X = gmcore.tensor(states(4))
BAD = {
    "states": (lambda: RBM(4).loss(2.0 * X), ArgumentError, r"of Bernoulli units must be in \{0, 1\}.*got 0 to 2"),
    "a step's states": (
        lambda: RBM(4).compute_gradients(states(4) - 1, generator=Generator(0)), ArgumentError,
        r"of Bernoulli units must be in \{0, 1\}.*got -1 to 0",
    ),
    "length": (lambda: RBM(5).free_energy(X), ShapeError, r"rbm: data has shape \(16, 4\), expected \(n, 5\)"),
    "units": (lambda: RBM(4, units="binary"), ArgumentError, "units 'binary'; expected 'bernoulli' or 'gaussian'"),
    "steps": (lambda: RBM(4, steps=0), ArgumentError, "steps must be a positive integer, got 0"),
    "chains": (lambda: RBM(4, chains=-1), ArgumentError, "chains must be a positive integer, got -1"),
    "temperatures": (lambda: RBM(4, temperatures=1), ArgumentError, "temperatures must be at least 2"),
    "hidden units": (lambda: RBM(4, 0), ArgumentError, "hidden_size must be a positive integer, got 0"),
    "samples": (lambda: RBM(4).log_likelihood(X, samples=0), ArgumentError, "samples must be a positive integer"),
    "Gaussian units' conditionals": (
        lambda: RBM(4, units="gaussian").pseudo_log_likelihood(X), ArgumentError, "of Bernoulli units only",
    ),
    "a conditional of a state that no unit has": (
        lambda: RBM(4).pseudo_log_likelihood(0.5 * X), ArgumentError,
        r"x of Bernoulli units must be in \{0, 1\}, got 0.5",
    ),
    "other chains": (
        lambda: RBM(4, chains=3).load_training_state({"chains": np.zeros((2, 4), np.uint8)}), CheckpointError,
        r"persistent chains \(2, 4\), expected \(3, 4\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("call, kind, message", BAD.values(), ids=BAD)
def test_bad_calls_are_named(call, kind: type[GmcoreError], message):
    with pytest.raises(kind, match=message):
        call()
