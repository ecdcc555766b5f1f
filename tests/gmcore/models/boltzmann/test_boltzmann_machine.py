"""Proofs of the general Boltzmann machine: conditionals, gradient and samples by enumeration; what a run keeps."""

import itertools
import os

import numpy as np
import pytest
from scipy import special

import gmcore
from gmcore import Generator, ops
from gmcore.data import Dataset
from gmcore.errors import ArgumentError, CheckpointError, ShapeError
from gmcore.models.boltzmann.boltzmann_machine import BoltzmannMachine
from gmcore.train import fit


def states(n):
    return np.array(list(itertools.product([0.0, 1.0], repeat=n)), np.float32)


def machine(n=6, scale=0.7, **options):
    model, rng = BoltzmannMachine(n, **options), np.random.default_rng(0)
    upper = np.triu(scale * rng.standard_normal((n, n)), 1).astype(np.float32)
    model.weight.copy_(upper + upper.T)
    model.bias.copy_(rng.standard_normal(n).astype(np.float32))
    return model


def probabilities(model):
    """p(x) of all states, from pairs counted once: E = -sum_(i<j) w_ij x_i x_j - sum_i b_i x_i."""
    x = states(model.data_size).astype(np.float64)
    upper = np.triu(model.weight.detach().numpy().astype(np.float64), 1)
    return special.softmax(np.einsum("ni,ij,nj->n", x, upper, x) + x @ model.bias.detach().numpy())


def test_log_likelihood_and_conditionals_are_those_of_the_joint():
    model, x = machine(), states(6)
    p = probabilities(model)
    np.testing.assert_allclose(model.log_likelihood(gmcore.tensor(x)).numpy(), np.log(p), atol=1e-5)
    conditional = np.zeros((64, 6))
    for i in range(6):
        other = x.copy()
        other[:, i] = 1 - other[:, i]
        conditional[:, i] = p / (p + p[(other @ (1 << np.arange(6)[::-1])).astype(int)])
    found = model.pseudo_log_likelihood(gmcore.tensor(x)).detach().numpy()
    np.testing.assert_allclose(found, np.log(conditional).sum(1), rtol=1e-5)
    means = model.reconstruct(gmcore.tensor(x)).numpy()
    np.testing.assert_allclose(np.where(x == 1, means, 1 - means), conditional, rtol=1e-5)


def test_gradient_is_the_correlations_of_the_data_minus_those_of_the_model():
    """10,000 chains in equilibrium; each element averages as many terms in [0, 1]."""
    model = machine(chains=10_000, steps=20)
    p, x = probabilities(model), states(6)[::5]
    model.compute_gradients(x, generator=Generator(1))
    pairs = np.einsum("n,ni,nj->ij", p, states(6), states(6)) - x.T @ x / len(x)
    np.fill_diagonal(pairs, 0)
    found = model.weight.grad.numpy()
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found, pairs / 2, atol=5 * 0.5 / np.sqrt(10_000))
    np.testing.assert_allclose(model.bias.grad.numpy(), p @ states(6) - x.mean(0), atol=5 * 0.5 / np.sqrt(10_000))


def test_samples_have_the_exact_marginals_and_distribution():
    """Total variation below 0.02, for 64 states by 20,000 samples: 0.006 is expected of them."""
    model = machine(chains=20_000, steps=15)
    model.compute_gradients(states(6), generator=Generator(2))
    found = model.training_state()["chains"]
    counts = np.bincount(found @ (1 << np.arange(6)[::-1]), minlength=64)
    p = probabilities(model)
    assert abs(counts / 20_000 - p).sum() / 2 < 0.02
    means = model.sample(4000, generator=Generator(3)).numpy()
    np.testing.assert_allclose(means.mean(0), p @ states(6), atol=5 * 0.5 / np.sqrt(4000))


def test_the_loss_has_the_gradient_of_its_two_phases():
    model, x = machine(), states(6)[::7]
    loss, _ = model.loss(gmcore.tensor(x), generator=Generator(4))
    end = ops.boltzmann_sweep(x, model.weight.detach(), model.bias.detach(), generator=Generator(4)).numpy()
    pairs = (end.T @ end - x.T @ x) / len(x)
    np.fill_diagonal(pairs, 0)
    d_weight, d_bias = gmcore.grad(loss, [model.weight, model.bias])
    np.testing.assert_allclose(d_weight.numpy(), pairs / 2, atol=1e-6)
    np.testing.assert_allclose(d_bias.numpy(), end.mean(0) - x.mean(0), atol=1e-6)


def make_data(pixels):
    rows = np.float32(np.random.default_rng(0).uniform(size=(60, pixels)) < np.linspace(0.1, 0.9, pixels))
    return Dataset("made", rows[:40], rows[40:50], rows[50:], (2, pixels // 2), {"split": "in order"})


@pytest.mark.parametrize("pixels", [6, 22])
def test_runs_resume_measure_and_draw(pixels, monkeypatch, tmp_path):
    monkeypatch.setattr("gmkernels.registry._environment", "reference")  # nothing to compile
    monkeypatch.setattr("gmcore.models.boltzmann.boltzmann_machine._SAMPLE_SWEEPS", 2)
    monkeypatch.chdir(tmp_path)
    straight = fit("boltzmann", make_data(pixels), epochs=2, settings={"chains": 7}, out="straight")
    fit("boltzmann", make_data(pixels), epochs=1, settings={"chains": 7}, out="halves")
    resumed = fit(data=make_data(pixels), resume="halves", epochs=2)
    arrays = [gmcore.io.load(run.path / "checkpoint.safetensors")[0] for run in (straight, resumed)]
    assert {n: a.tobytes() for n, a in arrays[0].items()} == {n: a.tobytes() for n, a in arrays[1].items()}
    weight = arrays[0]["model.weight"]
    assert weight.any() and (weight == weight.T).all() and not np.diagonal(weight).any()
    assert arrays[0]["training.chains"].shape == (7, pixels)
    assert {"filters.png", "samples.png"} < set(os.listdir("straight"))
    model, result, test = straight.model, straight.result, gmcore.tensor(make_data(pixels).test)
    if pixels == 6:
        expected = model.log_likelihood(test).numpy().mean()
        assert result["figure"] == "log-likelihood" and result["log_z"] == pytest.approx(model.log_partition())
    else:
        expected = model.pseudo_log_likelihood(test).detach().numpy().mean()
        assert result["figure"] == "pseudo-log-likelihood" and "log_z" not in result
    assert result["bound"] == pytest.approx(expected, rel=1e-6)


def test_bad_calls_are_named():
    model = BoltzmannMachine(21, chains=3)
    with pytest.raises(ArgumentError, match="boltzmann: 21 units have too many states to enumerate, at most 20"):
        model.log_likelihood(gmcore.tensor(np.zeros((1, 21), np.float32)))
    with pytest.raises(ShapeError, match=r"boltzmann: data has shape \(1, 4\), expected \(n, 21\)"):
        model.energy(gmcore.tensor(np.zeros((1, 4), np.float32)))
    with pytest.raises(ArgumentError, match=r"states of Bernoulli units must be in \{0, 1\}.*got 2 to 2"):
        model.compute_gradients(np.full((1, 21), 2, np.float32), generator=Generator(0))
    with pytest.raises(ArgumentError, match=r"x of Bernoulli units must be in \{0, 1\}, got 0.5"):
        model.pseudo_log_likelihood(np.full((1, 21), 0.5, np.float32))
    with pytest.raises(CheckpointError, match=r"persistent chains \(2, 4\), expected \(3, 21\)"):
        model.load_training_state({"chains": np.zeros((2, 4), np.uint8)})
    with pytest.raises(ArgumentError, match="chains must be a positive integer, got 0"):
        BoltzmannMachine(4, chains=0)
