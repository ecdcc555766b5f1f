"""Gibbs sampling: conditionals and free energies by enumeration, stationary distributions, contrastive divergence."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest
from scipy import special, stats

from gmkernels import KernelError, pool
from gmkernels.dense import linear
from gmkernels.gibbs import (
    annealed_importance_sampling,
    boltzmann_sweep,
    contrastive_divergence,
    free_energy,
    gibbs_chain,
    gibbs_half_step,
)
from gmkernels.gibbs.spec import step_key
from gmkernels.registry import entries, run, specs
from gmkernels.rng import key_array, normal
from gmkernels.sampling import bernoulli_sample

BACKENDS = ["reference", "cpu"]
KEY = (17, 4, 1)
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def states(units):
    """All states of so many units, one a row, in the order of binary numbers."""
    return np.array(list(itertools.product([0.0, 1.0], repeat=units)))


def number(x):
    """The rows of `states` that binary rows are."""
    return (np.asarray(x, int) @ (1 << np.arange(x.shape[1])[::-1])).astype(int)


def machine(visible=5, hidden=4, scale=1.0, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    shapes = (hidden, visible), (visible,), (hidden,)
    return tuple((scale * rng.standard_normal(shape)).astype(dtype) for shape in shapes)


def energy(v, h, weight, c, b, units="bernoulli"):
    """E of every pair of a row of v and a row of h."""
    own = ((v - c) ** 2).sum(-1) / 2 if units == "gaussian" else -v @ c
    return own[:, None] - v @ weight.T @ h.T - h @ b


def joint(weight, c, b):
    """p(v, h) of all states."""
    p = np.exp(-energy(states(len(c)), states(len(b)), weight, c, b))
    return p / p.sum()


# ---------------------------------------------------------------------------------------------------------
# Conditionals and free energies
# ---------------------------------------------------------------------------------------------------------


@each_backend
def test_conditionals_are_those_of_the_joint(backend):
    weight, c, b = machine()
    v, h, p = states(5), states(4), joint(weight, c, b)
    hidden_mean, _ = gibbs_half_step(v, weight, b, key=KEY, backend=backend)
    visible_mean, _ = gibbs_half_step(h, weight.T, c, key=KEY, backend=backend)
    np.testing.assert_allclose(hidden_mean, p @ h / p.sum(1, keepdims=True), rtol=1e-12)
    np.testing.assert_allclose(visible_mean, p.T @ v / p.T.sum(1, keepdims=True), rtol=1e-12)


@each_backend
def test_both_orders_of_summation_give_the_same_partition_function(backend):
    weight, c, b = machine()
    v, h = states(5), states(4)
    over_hidden, _ = free_energy(v, weight, c, b, backend=backend)
    over_visible, _ = free_energy(h, weight.T, b, c, backend=backend)
    e = energy(v, h, weight, c, b)
    np.testing.assert_allclose(over_hidden, -special.logsumexp(-e, axis=1), rtol=1e-12)
    np.testing.assert_allclose(over_visible, -special.logsumexp(-e, axis=0), rtol=1e-12)
    np.testing.assert_allclose(special.logsumexp(-over_hidden), special.logsumexp(-over_visible), rtol=1e-13)


@each_backend
def test_gaussian_visible_units(backend):
    """p(v | h) = N(W^T h + c, I), and the free energy sums the joint over h."""
    weight, c, b = machine()
    h, v = states(4), np.random.default_rng(1).standard_normal((7, 5))
    e = energy(v, h, weight, c, b, "gaussian")
    f, hidden_mean = free_energy(v, weight, c, b, units="gaussian", backend=backend)
    np.testing.assert_allclose(f, -special.logsumexp(-e, axis=1), rtol=1e-12)
    np.testing.assert_allclose(hidden_mean, special.softmax(-e, axis=1) @ h, rtol=1e-12)
    mean, sample = gibbs_half_step(h, weight.T, c, key=KEY, units="gaussian", backend=backend)
    density = stats.norm.logpdf(v[:, None], mean).sum(-1)  # of each v given each h
    np.testing.assert_allclose(density - density[:1], e[:1] - e, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(sample - mean, normal(mean.shape, key=KEY, dtype="float64"), atol=1e-14)


def test_standard_deviations_are_a_change_of_coordinates():
    """E = 1/2 |(v - c) / s|^2 - h^T W (v / s^2) - b^T h is the energy of v / s under W / s and c / s."""
    weight, c, b = machine()
    s, v, h = np.array([0.5, 2, 1, 3, 0.1]), np.random.default_rng(1).standard_normal((7, 5)), states(4)
    e = (((v - c) / s) ** 2).sum(-1)[:, None] / 2 - (v / s**2) @ weight.T @ h.T - h @ b
    f, _ = free_energy(v / s, weight / s, c / s, b, units="gaussian")
    np.testing.assert_allclose(f, -special.logsumexp(-e, axis=1), rtol=1e-12)


# ---------------------------------------------------------------------------------------------------------
# Samples, and how they share a draw
# ---------------------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_samples_are_those_of_the_common_stream(dtype, backend):
    weight, c, _ = machine(70, 90, 0.3, dtype=dtype)
    h = np.random.default_rng(2).integers(0, 2, (40, 90)).astype(dtype)
    mean, sample = gibbs_half_step(h, weight.T, c, key=KEY, backend=backend)
    np.testing.assert_allclose(mean, linear(h, weight.T, c, activation="sigmoid"), rtol=1e-5)
    np.testing.assert_array_equal(sample, bernoulli_sample(mean, key=KEY))


@each_backend
def test_states_in_uint8_give_the_same_bits(backend):
    weight, c, b = machine(37, 29, 0.5, dtype="float32")
    v = np.random.default_rng(2).integers(0, 2, (11, 37)).astype(np.uint8)
    assert gibbs_half_step(v, weight, b, key=KEY, backend=backend)[1].dtype == np.uint8
    for narrow, wide in (
        (function(x, weight, *biases, key=KEY, backend=backend) for x in (v, v.astype(np.float32)))
        for function, biases in ((gibbs_half_step, (b,)), (gibbs_chain, (c, b)))
    ):
        for x, y in zip(narrow, wide, strict=True):
            assert x.astype(np.float32).tobytes() == y.tobytes()
    for i, x in enumerate(free_energy(v, weight, c, b, backend=backend)):
        assert x.tobytes() == free_energy(v.astype(np.float32), weight, c, b, backend=backend)[i].tobytes()


def dyadic(visible, hidden, dtype="float32"):
    """A machine whose sums are exact in any order."""
    return tuple((np.round(16 * a) / 16).astype(dtype) for a in machine(visible, hidden, 0.5))


@each_backend
def test_a_chain_is_its_half_steps(backend):
    weight, c, b = dyadic(7, 6)
    v = np.random.default_rng(2).integers(0, 2, (11, 7)).astype(np.float32)
    key = key_array(5, 6, 7)
    found = gibbs_chain(v, weight, c, b, key=key, steps=3, backend=backend)
    for step in range(3):
        _, h = gibbs_half_step(v, weight, b, key=(5, 6, 7 * 6 + 2 * step * 2**40), backend=backend)
        mean, v = gibbs_half_step(h, weight.T, c, key=(5, 6, 7 * 7 + (2 * step + 1) * 2**40), backend=backend)
    for x, y in zip(found, (v, mean, h), strict=True):
        np.testing.assert_array_equal(x, y)


@each_backend
@pytest.mark.parametrize("units", ["bernoulli", "gaussian"])
def test_chains_in_parts_are_those_of_the_whole(units, backend):
    """Their key's offset counts rows."""
    weight, c, b = dyadic(21, 10)
    v = np.random.default_rng(2).integers(0, 2, (13, 21)).astype(np.float32)
    steps = 3 if units == "bernoulli" else 1
    whole = gibbs_chain(v, weight, c, b, key=(3, 1, 2), steps=steps, units=units, backend=backend)
    for start, stop in ((0, 5), (5, 6), (6, 13)):
        part = gibbs_chain(
            v[start:stop], weight, c, b, key=(3, 1, 2 + start), steps=steps, units=units, backend=backend
        )
        for x, y in zip(part, whole, strict=True):
            np.testing.assert_array_equal(x, y[start:stop])
    symmetric = np.triu(weight[:, :10], 1) + np.triu(weight[:, :10], 1).T
    swept = boltzmann_sweep(v[:, :10], symmetric, b, key=(3, 1, 2), sweeps=2, backend=backend)
    part = boltzmann_sweep(v[5:, :10], symmetric, b, key=(3, 1, 7), sweeps=2, backend=backend)
    np.testing.assert_array_equal(part, swept[5:])


def test_offsets_wrap():
    assert step_key(key_array(1, 2, 2**63), 3, 4).tolist() == [1, 2, 3 * 2**40]


@each_backend
def test_nan_stays_where_it_is(backend):
    weight, c, b = machine(dtype="float32")
    b[1] = np.nan
    mean, sample = gibbs_half_step(states(5).astype(np.float32), weight, b, key=KEY, backend=backend)
    assert (np.isnan(mean) == [False, True, False, False]).all() and (np.isnan(sample) == np.isnan(mean)).all()
    mean, narrow = gibbs_half_step(states(5).astype(np.uint8), weight, b, key=KEY, backend=backend)
    assert np.isnan(mean[:, 1]).all() and (narrow == np.nan_to_num(sample)).all()
    f, _ = free_energy(states(5).astype(np.float32), weight, c, b, backend=backend)
    assert np.isnan(f).all()


# ---------------------------------------------------------------------------------------------------------
# Captured steps
# ---------------------------------------------------------------------------------------------------------


def calls(seed, narrow):
    """Arguments of kernels whose arrays have the same shapes whatever the seed."""
    weight, c, b = machine(37, 29, 0.5, seed=seed, dtype="float32")
    v = np.random.default_rng(seed).integers(0, 2, (11, 37)).astype(np.uint8 if narrow else np.float32)
    key = key_array(seed, 5, 3)
    for units, dtype in (("bernoulli", v.dtype.name), ("gaussian", "float32")):
        yield "gibbs_half_step", (v, weight, b, key), {"units": units, "dtype": dtype}
        yield "gibbs_chain", (v, weight, c, b, key), {"steps": 2, "units": units}
        yield "free_energy", (v, weight, c, b), {"units": units}
        yield "contrastive_divergence", (v, v, weight, c, b, key), {"steps": 1, "units": units}


def launches_of(kernel, *arguments):
    found = []

    @contextlib.contextmanager
    def noted(launch):
        found.append(launch)
        yield

    with pool.watched(noted):
        kernel(*arguments)
    return pool.Launches([[launch] for launch in found])


@pytest.mark.parametrize("narrow", [False, True])
def test_what_is_launched_makes_the_whole_result(narrow):
    """From whatever numbers are in the arrays when it is launched again, as a captured step does without Python."""
    for (name, given, attrs), (_, later, _) in zip(calls(0, narrow), calls(1, narrow), strict=True):
        spec = specs()[name]
        layouts = spec.infer(*given, **attrs), spec.workspace(*given, **attrs)
        outputs, workspace = ([np.empty(shape, dtype) for shape, dtype in layout] for layout in layouts)
        launches = launches_of(entries(spec)["cpu"].kernel(), given, outputs, workspace, attrs)
        before = [a.copy() for a in given]
        for a, b in zip(given, later, strict=True):
            a[...] = b
        for a in (*outputs, *workspace):
            a.reshape(-1).view(np.uint8)[...] = 0xFF
        launches()
        for a, b in zip(outputs, run(spec, later, attrs, backend="cpu"), strict=True):
            assert a.tobytes() == b.tobytes(), name
        for a, b in zip(given, before, strict=True):
            a[...] = b


# ---------------------------------------------------------------------------------------------------------
# Stationary distributions
# ---------------------------------------------------------------------------------------------------------


def chi_square(found, p):
    """The p-value of states found with probabilities p."""
    return stats.chisquare(np.bincount(number(found), minlength=len(p)), len(found) * p).pvalue


def test_the_chain_samples_from_the_machine():
    """20,000 chains, all from one state; 30 steps, after which the slowest mode has decayed below 1e-6."""
    weight, c, b = machine(scale=0.8)
    p = joint(weight, c, b)
    h_given_v, v_given_h = p / p.sum(1, keepdims=True), p.T / p.T.sum(1, keepdims=True)
    slowest = np.sort(abs(np.linalg.eigvals(h_given_v @ v_given_h)))[-2]
    assert slowest**30 < 1e-6
    v, mean, h = gibbs_chain(np.zeros((20_000, 5)), weight, c, b, key=(11, 0), steps=30)
    assert chi_square(v, p.sum(1)) > 0.01
    assert chi_square(v, joint(weight, c, b + 1).sum(1)) < 1e-6  # it would notice
    assert chi_square(h, p.sum(0)) > 0.01
    # Rao and Blackwell's estimate of the marginals: its variance is at most that of the states.
    np.testing.assert_allclose(mean.mean(0), p.sum(1) @ states(5), atol=5 * 0.5 / np.sqrt(20_000))


def test_gaussian_chain_has_the_moments_of_the_mixture():
    """The marginal is a mixture of N(W^T h + c, I) with weights of e^(b^T h + |W^T h + c|^2 / 2)."""
    weight, c, b = machine(3, 2, 0.7)
    h = states(2)
    means = h @ weight + c
    share = special.softmax(h @ b + (means**2).sum(-1) / 2)
    v, _, _ = gibbs_chain(np.zeros((20_000, 3)), weight, c, b, key=(11, 1), steps=60, units="gaussian")
    mean = share @ means
    covariance = np.eye(3) + (share * (means - mean).T) @ (means - mean)
    deviations = np.sqrt(np.diag(covariance) / 20_000)
    np.testing.assert_allclose(v.mean(0), mean, atol=5 * deviations.max())
    # A product of two deviations has a standard deviation below 4 here.
    np.testing.assert_allclose(np.cov(v.T), covariance, atol=5 * 4 / np.sqrt(20_000))


def test_sweeps_sample_from_a_general_machine():
    rng = np.random.default_rng(3)
    upper, bias, x = np.triu(rng.standard_normal((5, 5)), 1), rng.standard_normal(5), states(5)
    p = special.softmax((x @ upper * x).sum(-1) + x @ bias)
    start = np.zeros((20_000, 5), np.uint8)
    found = boltzmann_sweep(start, upper + upper.T, bias, key=(12, 0), sweeps=30)
    assert found.dtype == np.uint8 and chi_square(found, p) > 0.01
    start[:, [1, 4]] = [1, 0]
    clamped = np.array([False, True, False, False, True])
    found = boltzmann_sweep(start, upper + upper.T, bias, clamped, key=(12, 1), sweeps=30)
    fits = (x[:, 1] == 1) & (x[:, 4] == 0)
    assert (found[:, clamped] == [1, 0]).all()
    counts = np.bincount(number(found), minlength=32)[fits]
    assert stats.chisquare(counts, 20_000 * p[fits] / p[fits].sum()).pvalue > 0.01


# ---------------------------------------------------------------------------------------------------------
# Contrastive divergence
# ---------------------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("units", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("persistent", [False, True])
def test_statistics_are_their_definition(persistent, units, backend):
    weight, c, b = machine(9, 7, 0.5)
    data = np.random.default_rng(2).uniform(size=(5, 9))
    chain = np.random.default_rng(3).integers(0, 2, (3, 9)).astype(float) if persistent else data
    *found, visible, loss = contrastive_divergence(
        data, chain, weight, c, b, key=KEY, steps=2, units=units, backend=backend
    )
    end, _, _ = gibbs_chain(chain, weight, c, b, key=KEY, steps=2, units=units, backend=backend)
    np.testing.assert_allclose(visible, end, rtol=1e-12)
    f, h = free_energy(data, weight, c, b, units=units)
    f2, h2 = free_energy(end, weight, c, b, units=units)
    expected = (h2.T @ end / len(end) - h.T @ data / 5, end.mean(0) - data.mean(0), h2.mean(0) - h.mean(0))
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(loss, f.mean() - f2.mean(), rtol=1e-12)


@pytest.mark.parametrize("units", ["bernoulli", "gaussian"])
def test_statistics_are_the_gradient_of_the_loss(units):
    """With the end of the chains fixed, by differences."""
    parameters = machine(4, 3, 0.5)
    data = np.random.default_rng(2).uniform(size=(6, 4))
    *found, end, _ = contrastive_divergence(data, data, *parameters, key=KEY, units=units)

    def loss():
        return np.mean(free_energy(data, *parameters, units=units)[0]) - np.mean(
            free_energy(end, *parameters, units=units)[0]
        )

    for p, d in zip(parameters, found, strict=True):
        for i in np.ndindex(p.shape):
            before = p[i]
            p[i] = before + 1e-5
            up = loss()
            p[i] = before - 1e-5
            assert (up - loss()) / 2e-5 == pytest.approx(d[i], abs=1e-9)
            p[i] = before


def test_cd_is_unbiased_for_its_chain_and_tends_to_the_gradient_of_the_likelihood():
    """Against the expectation by enumeration: the distribution of the data taken k steps on."""
    weight, c, b = machine(scale=0.8)
    v, p = states(5), joint(weight, c, b)
    step = p / p.sum(1, keepdims=True) @ (p.T / p.T.sum(1, keepdims=True))
    data = v[np.random.default_rng(5).choice(32, 20_000, p=np.random.default_rng(6).dirichlet(np.ones(32)))]
    share = np.bincount(number(data), minlength=32) / 20_000
    hidden_mean = special.expit(v @ weight.T + b)

    def phase(q):
        return np.concatenate([(hidden_mean.T @ (q[:, None] * v)).ravel(), q @ v, q @ hidden_mean])

    distances = []
    for k in (1, 3, 30):
        found = contrastive_divergence(data, data, weight, c, b, key=(9, k), steps=k)[:3]
        expected = phase(share @ np.linalg.matrix_power(step, k)) - phase(share)
        # Elements average 20,000 terms in [0, 1], of standard deviations of at most 1/2.
        np.testing.assert_allclose(np.concatenate([x.ravel() for x in found]), expected, atol=5 * 0.5 / np.sqrt(20_000))
        distances.append(abs(expected - (phase(p.sum(1)) - phase(share))).max())
    assert distances[0] > distances[1] > 1e3 * distances[2]


# ---------------------------------------------------------------------------------------------------------
# Annealed importance sampling
# ---------------------------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("units", ["bernoulli", "gaussian"])
def test_annealing_is_half_steps_of_tempered_machines(units, backend):
    """At beta, the machine has weight beta W, hidden bias beta b and a visible bias between the base's and its own."""
    weight, c, b = machine(6, 5, 0.5)
    base = np.linspace(-1, 1, 6)
    betas = np.array([0.25, 0.5, 1.0])
    start = np.random.default_rng(2).integers(0, 2, (9, 6)).astype(float)
    key = key_array(5, 6, 7)
    found, end = annealed_importance_sampling(start, weight, c, b, base, betas, key=key, units=units, backend=backend)

    def minus_log_p(v, beta):
        own = -v @ (beta * c + (1 - beta) * base)
        if units == "gaussian":
            own = beta * ((v - c) ** 2).sum(-1) / 2 + (1 - beta) * ((v - base) ** 2).sum(-1) / 2
        return own - np.logaddexp(0, beta * (v @ weight.T + b)).sum(-1)

    v, expected = start, 0.0
    for step, (before, beta) in enumerate(zip(betas[:-1], betas[1:], strict=True)):
        expected = expected + minus_log_p(v, before) - minus_log_p(v, beta)
        _, h = gibbs_half_step(v, beta * weight, beta * b, key=step_key(key, 2 * step, 5))
        bias = beta * c + (1 - beta) * base
        _, v = gibbs_half_step(h, beta * weight.T, bias, key=step_key(key, 2 * step + 1, 6), units=units)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(end, v, rtol=1e-12, atol=1e-13)


def test_small_steps_of_beta_keep_their_digits():
    """10,000 weights of float32 runs against those of their states in float64: softplus(x) is 20, its rise 2e-3."""
    weight, c, b = (8 * a for a in machine(30, 20, 0.5, dtype="float32"))
    start = np.random.default_rng(2).integers(0, 2, (10_000, 30)).astype(np.float32)
    betas = np.array([0.5, 0.5001]).astype(np.float32).astype(np.float64)
    found, _ = annealed_importance_sampling(start, weight, c, b, c, betas, key=KEY)
    wide = [a.astype(np.float64) for a in (start, weight, c, b, c)]
    expected, _ = annealed_importance_sampling(*wide, betas, key=KEY)
    # Where inputs are small, log1p rounds to 4e-8, in 20 units; else the rise keeps its relative accuracy.
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=20 * 8e-8)
    assert abs((found - expected).mean()) < 1e-8


# ---------------------------------------------------------------------------------------------------------
# Refusals
# ---------------------------------------------------------------------------------------------------------

W, C, B = machine(dtype="float32")
V = np.zeros((3, 5), np.float32)


@pytest.mark.parametrize("call, message", [
    (lambda: gibbs_half_step(V, W.T, B, key=KEY), r"gibbs_half_step: expected states \(n, in\).*float32\[5, 4\]"),
    (lambda: gibbs_half_step(V.astype(np.float64), W, B, key=KEY), "gibbs_half_step: expected weight, bias in float32"),
    (lambda: gibbs_half_step(V.astype(int), W, B, key=KEY), "or uint8; got states int64"),
    (
        lambda: gibbs_half_step(V, W, B, key=KEY, units="binary"),
        "units must be one of bernoulli, gaussian, got 'binary'",
    ),
    (
        lambda: gibbs_half_step(V, W, B, key=KEY, units="gaussian", dtype="uint8"),
        "samples of gaussian units are in float32",
    ),
    (lambda: gibbs_half_step(V, W, B, key=KEY, dtype="float64"), "in float32 or uint8, got dtype 'float64'"),
    (lambda: gibbs_half_step(V, W, B, key=np.zeros(3)), "gibbs_half_step: expected a key uint64"),
    (
        lambda: gibbs_chain(V, W, B, C, key=KEY),
        r"gibbs_chain: expected visible \(n, visible\).*visible_bias float32\[4\]",
    ),
    (lambda: gibbs_chain(V, W, C, B, key=KEY, steps=0), "gibbs_chain: steps must be an int from 1 to 8388608, got 0"),
    (lambda: free_energy(V[0], W, C, B), r"free_energy: expected visible \(n, visible\)"),
    (
        lambda: contrastive_divergence(V[:0], V, W, C, B, key=KEY),
        r"expected at least one row of each.*data float32\[0, 5\]",
    ),
    (lambda: contrastive_divergence(V, V[:, :2], W, C, B, key=KEY), r"expected data, chain \(n, visible\)"),
    (
        lambda: annealed_importance_sampling(V, W, C, B, B, np.array([0.0, 1.0]), key=KEY),
        r"expected base_bias like visible_bias, float32\[5\]; got base_bias float32\[4\]",
    ),
    (
        lambda: annealed_importance_sampling(V, W, C, B, C, np.array([0, 1]), key=KEY),
        r"annealed_importance_sampling: expected betas float64 \(temperatures,\).*int64\[2\]",
    ),
    (
        lambda: boltzmann_sweep(V, W, C, key=KEY),
        r"boltzmann_sweep: expected states \(n, units\).*weight float32\[4, 5\]",
    ),
    (lambda: boltzmann_sweep(V, np.eye(5, dtype=np.float32), C, np.zeros(5), key=KEY), "clamped float64"),
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(KernelError, match=message):
        call()
