"""What the contenders are given is what gmcore's step starts from."""

import numpy as np
import pytest

import gmcore
from benchmarks import compare
from benchmarks.workloads import STEPS


@pytest.mark.parametrize("name", STEPS)
def test_a_workload_repeats_and_is_left_as_it_was(tiny, name):
    first, second = tiny[name].make(), tiny[name].make()
    before = [a.copy() for a in (*first.data, *first.weights.values())]
    outcomes = [compare.outcome(w, w) for w in (first, second)]
    assert all(np.array_equal(a, b) and np.isfinite(a).all() for a, b in zip(*outcomes, strict=True))
    assert all(map(np.array_equal, before, (*first.data, *first.weights.values())))


@pytest.mark.parametrize("name", [name for name in STEPS if name.endswith("-step")])
def test_a_training_step_moves_the_parameters(tiny, name):
    workload = tiny[name].make()
    first, *_, last = compare.outcome(workload, workload)
    assert np.abs(first).max() > 0 and (workload.parameters or not np.array_equal(first, last))


def test_a_captured_gaussian_sample_leaves_nothing_out(tiny):
    step = gmcore.capture(tiny["gaussian-sample"].make().step)
    arguments = tiny["gaussian-sample"].make().arguments
    for _ in range(3):
        step(*arguments)
    names = [instruction.name for instruction in step.programs[0].instructions]
    assert names == ["gaussian_sample", "gaussian_sample_backward"]


def test_the_noise_of_a_gaussian_sample_is_what_it_draws(tiny):
    workload = tiny["gaussian-sample"].make()
    mu, logvar, d_z, d_kl = workload.data
    for (eps,) in workload.noise:
        z, kl, d_mu, d_logvar = (t.numpy() for t in workload())
        np.testing.assert_allclose(z, mu + eps * np.exp(logvar / 2), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(kl, (np.exp(logvar) + mu**2 - 1 - logvar).sum(1) / 2, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(d_mu, d_z + d_kl[:, None] * mu, rtol=1e-6)
        expected = d_z * eps * np.exp(logvar / 2) / 2 + d_kl[:, None] * (np.exp(logvar) - 1) / 2
        np.testing.assert_allclose(d_logvar, expected, rtol=1e-5, atol=1e-6)
