"""Gibbs sampling on tensors: contrastive divergence as a loss, gradients through half-steps, refusals."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gmcore
import gmkernels
from gmcore import Generator, ops
from gmcore.errors import ArgumentError, GmcoreError, GraphError, ShapeError

RNG = np.random.default_rng(0)
WEIGHT, VISIBLE_BIAS, HIDDEN_BIAS = RNG.standard_normal((3, 4)), RNG.standard_normal(4), RNG.standard_normal(3)
PARAMETERS = (WEIGHT, VISIBLE_BIAS, HIDDEN_BIAS)
STATES = RNG.integers(0, 2, (5, 4)).astype(float)


@pytest.mark.parametrize("units", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("persistent", [False, True])
def test_gradient_of_contrastive_divergence_is_the_statistics(units: str, persistent: bool) -> None:
    data = RNG.uniform(size=(6, 4))
    chain = STATES if persistent else data
    parameters = [gmcore.tensor(p, requires_grad=True) for p in PARAMETERS]
    key = Generator(3).draw()
    loss, end = ops.contrastive_divergence(data, chain, *parameters, steps=2, units=units, key=key)
    loss.backward()
    *statistics, visible, expected = gmkernels.contrastive_divergence(
        data, chain, *PARAMETERS, key=key.numpy(), steps=2, units=units
    )
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-12)
    np.testing.assert_allclose(end.numpy(), visible, rtol=1e-12)
    assert not end.requires_grad
    for p, d in zip(parameters, statistics, strict=True):
        assert p.grad is not None
        np.testing.assert_allclose(p.grad.numpy(), d, rtol=1e-10, atol=1e-14)


def test_contrastive_divergence_to_third_order() -> None:
    """Of Bernoulli units, whose samples stay where the parameters move by little."""
    key = Generator(3).draw()

    def loss(*parameters: Any) -> Any:
        return ops.contrastive_divergence(STATES, STATES, *parameters, key=key)[0]

    assert gmcore.gradcheck(loss, list(PARAMETERS), order=3)


def test_gradients_pass_through_both_directions() -> None:
    """A mean-field step up and down, and a reparameterised Gaussian sample, by finite differences."""
    key = Generator(3).draw()

    def down_and_up(weight: Any, visible_bias: Any, hidden_bias: Any) -> Any:
        hidden, _ = ops.gibbs_half_step(STATES, weight, hidden_bias, key=key)
        _, sample = ops.gibbs_half_step(hidden, ops.transpose(weight), visible_bias, units="gaussian", key=key)
        return ops.sum(sample * sample)

    assert gmcore.gradcheck(down_and_up, list(PARAMETERS), order=2)


def test_samples_go_on_as_states() -> None:
    generator = Generator(1)
    _, hidden = ops.gibbs_half_step(STATES, WEIGHT, HIDDEN_BIAS, generator=generator)
    mean, visible = ops.gibbs_half_step(hidden, WEIGHT.T, VISIBLE_BIAS, generator=generator)
    assert (hidden.dtype, visible.dtype, mean.dtype) == (np.uint8, np.uint8, np.float64)
    mean = ops.gibbs_half_step(STATES, gmcore.tensor(WEIGHT, requires_grad=True), HIDDEN_BIAS)[0]
    soft = ops.straight_through(ops.cast(hidden, "float64"), mean)
    np.testing.assert_array_equal(soft.detach().numpy(), hidden.numpy())
    assert soft.requires_grad


def test_samples_have_no_derivative() -> None:
    weight = gmcore.tensor(WEIGHT, requires_grad=True)
    end, _, _ = ops.gibbs_chain(STATES, weight, VISIBLE_BIAS, HIDDEN_BIAS)
    with pytest.raises(GraphError, match=r"gibbs_chain has no derivative.*weight.*\.detach\(\).*free_energy"):
        ops.sum(end).backward()
    _, sample = ops.gibbs_half_step(STATES, weight, HIDDEN_BIAS)
    with pytest.raises(GraphError, match="its result is uint8"):
        sample.backward(np.ones(sample.shape, np.uint8))


def test_each_call_takes_one_draw() -> None:
    generator = Generator(5)
    ops.gibbs_half_step(STATES, WEIGHT, HIDDEN_BIAS, generator=generator)
    ops.gibbs_chain(STATES, *PARAMETERS, steps=7, generator=generator)
    ops.contrastive_divergence(STATES, STATES, *PARAMETERS, steps=3, generator=generator)
    ops.boltzmann_sweep(STATES, np.zeros((4, 4)), VISIBLE_BIAS, sweeps=4, generator=generator)
    assert generator.state == (5, 4)


def test_probabilities_are_data_of_bernoulli_units() -> None:
    grey = np.full((2, 4), 0.25)
    energy, _ = ops.free_energy(grey, *PARAMETERS)
    expected = -grey @ VISIBLE_BIAS - np.logaddexp(0, grey @ WEIGHT.T + HIDDEN_BIAS).sum(-1)
    np.testing.assert_allclose(energy.numpy(), expected, rtol=1e-13)


ASYMMETRIC = np.triu(np.ones((4, 4)), 1)
BAD: dict[str, tuple[Callable[[], Any], type[GmcoreError], str]] = {
    "data below 0": (
        lambda: ops.free_energy(STATES - 1, *PARAMETERS), ArgumentError,
        r"free_energy: visible states of Bernoulli units must be in \{0, 1\}.*got -1 to 0 \(called at .*test_gibbs.py",
    ),
    "data above 1": (
        lambda: ops.contrastive_divergence(2 * STATES, STATES, *PARAMETERS), ArgumentError,
        r"free_energy: visible states of Bernoulli units must be in \{0, 1\}.*got 0 to 2",
    ),
    "a chain above 1": (
        lambda: ops.gibbs_chain(2 * STATES, *PARAMETERS), ArgumentError,
        r"gibbs_chain: visible states of Bernoulli units must be in \{0, 1\}.*got 0 to 2",
    ),
    "uint8 above 1": (
        lambda: ops.gibbs_chain(np.full((1, 4), 255, np.uint8), *PARAMETERS), ArgumentError, "got 255 to 255",
    ),
    "a sweep from probabilities": (
        lambda: ops.boltzmann_sweep(STATES / 2, np.zeros((4, 4)), VISIBLE_BIAS), ArgumentError,
        r"boltzmann_sweep: states of Bernoulli units must be in \{0, 1\}, got 0.5 .*bernoulli_sample",
    ),
    "an asymmetric weight": (
        lambda: ops.boltzmann_sweep(STATES, ASYMMETRIC, VISIBLE_BIAS), ArgumentError,
        "boltzmann_sweep: the weight must be symmetric with a zero diagonal",
    ),
    "a diagonal": (
        lambda: ops.boltzmann_sweep(STATES, np.eye(4), VISIBLE_BIAS), ArgumentError, "with a zero diagonal",
    ),
    "units": (
        lambda: ops.free_energy(STATES, *PARAMETERS, units="binary"), ArgumentError,
        "free_energy: units 'binary'; expected one of bernoulli, gaussian",
    ),
    "steps": (
        lambda: ops.gibbs_chain(STATES, *PARAMETERS, steps=0), ArgumentError,
        "gibbs_chain: steps must be an integer from 1 to 8388608, got 0",
    ),
    "sweeps": (
        lambda: ops.boltzmann_sweep(STATES, np.zeros((4, 4)), VISIBLE_BIAS, sweeps=-1), ArgumentError,
        "boltzmann_sweep: sweeps must be an integer from 1",
    ),
    "no rows": (
        lambda: ops.contrastive_divergence(STATES[:0], STATES, *PARAMETERS), ArgumentError, "at least one row",
    ),
    "shapes": (
        lambda: ops.free_energy(STATES, WEIGHT.T, VISIBLE_BIAS, HIDDEN_BIAS), ShapeError,
        r"free_energy\(.*expected visible \(n, visible\), weight \(hidden, visible\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("call, kind, message", BAD.values(), ids=BAD)
def test_bad_calls_are_named(call: Callable[[], Any], kind: type[GmcoreError], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_gaussian_units_take_any_state() -> None:
    energy, _ = ops.free_energy(5 * STATES - 2, *PARAMETERS, units="gaussian")
    assert np.isfinite(energy.numpy()).all()
