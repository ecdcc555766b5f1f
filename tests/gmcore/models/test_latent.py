"""Proofs of the VAE and the IWAE: closed forms, identities between estimators, bounds that must hold."""

import math
import tracemalloc

import numpy as np
import pytest

import gmcore
from gmcore import nn, ops
from gmcore.data import Dataset
from gmcore.errors import ArgumentError, ShapeError, UnknownNameError
from gmcore.models.latent import vae as vae_module
from gmcore.models.latent.iwae import IWAE
from gmcore.models.latent.networks import LOG_2PI
from gmcore.models.latent.vae import VAE
from gmcore.tensor import Tensor


class FixedGaussian(nn.Module):
    """q(z | x) = N(0.8, 0.9^2) whatever x is."""

    def forward(self, x):
        return Tensor(np.full((len(x), 1), 0.8)), Tensor(np.full((len(x), 1), 2.0 * math.log(0.9)))


class UnitNoise(nn.Module):
    """p(x | z) = N(x; z, 1)."""

    support = "real"

    def log_prob(self, z, x):
        return -0.5 * ops.sum(LOG_2PI + ops.square(x - z), axis=-1)

    def mean(self, z):
        return z


class ExactPosterior(nn.Module):
    """q(z | x) = p(z | x) = N(x / 2, 1 / 2) of z ~ N(0, 1), x | z ~ N(z, 1)."""

    def forward(self, x):
        return 0.5 * x, Tensor(np.full(x.shape, math.log(0.5)))


LOG_P = -0.5 * math.log(4.0 * math.pi) - 0.25  # log N(1; 0, 2) = -1.51551
L_1 = LOG_P - 0.5 * (0.81 / 0.5 + 0.09 / 0.5 - 1.0 - math.log(0.81 / 0.5))  # = -1.6743


def toy(cls=VAE, encoder=FixedGaussian, **options):
    return cls(1, 1, (), encoder=encoder(), decoder=UnitNoise(), **options)


def ones(n):
    return Tensor(np.ones((n, 1)))


def double(model):
    """The model in float64, where identities hold to rounding."""
    for p in model.parameters():
        p._data = p._data.astype(np.float64)
    return model


def small(cls=VAE, **options):
    return double(cls(6, 3, (8,), generator=gmcore.Generator(4), **options))


@pytest.fixture
def data():
    return Tensor((np.random.default_rng(0).random((12, 6)) < 0.4).astype(np.float64))


def gradients(value, model):
    return gmcore.grad(value, list(model.parameters()))


def assert_gradients_equal(a, b, rtol=1e-12):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x.numpy(), y.numpy(), rtol=rtol, atol=rtol)


def test_closed_forms_of_the_toy_are_the_published_ones():
    assert pytest.approx(LOG_P, abs=5e-6) == -1.51551
    assert pytest.approx(L_1, abs=5e-5) == -1.6743


@pytest.mark.parametrize("estimator", ["A", "B"])
def test_both_estimators_average_to_the_exact_bound(estimator):
    bound = toy(estimator=estimator).bound(ones(200_000), generator=gmcore.Generator(1)).numpy()
    assert abs(bound.mean() - L_1) < 4.0 * bound.std() / math.sqrt(bound.size)


@pytest.mark.parametrize(("k", "expected"), [(1, L_1), (5, -1.535), (50, -1.518)])
def test_iwae_bound_of_the_toy(k, expected):
    bound = toy(IWAE, samples=k).bound(ones(400_000 // k), generator=gmcore.Generator(2)).numpy()
    assert abs(bound.mean() - expected) < 4.0 * bound.std() / math.sqrt(bound.size) + 1e-3 * (k > 1)


def test_the_bound_grows_with_k_towards_the_log_likelihood():
    x = ones(4000)
    means = [
        toy(IWAE).log_likelihood(x, samples=k, generator=gmcore.Generator(3)).numpy().mean()
        for k in (1, 2, 5, 50, 1000)
    ]
    assert means == sorted(means)
    assert means[-1] < LOG_P + 1e-3
    one = toy(IWAE).log_likelihood(ones(1), samples=5000, generator=gmcore.Generator(5)).item()
    assert abs(one - LOG_P) < 0.02


def test_estimator_a_has_no_variance_at_the_exact_posterior():
    x = Tensor(np.linspace(-3.0, 3.0, 50)[:, None])
    exact = -0.5 * np.log(4.0 * np.pi) - 0.25 * x.numpy()[:, 0] ** 2
    model = toy(encoder=ExactPosterior, estimator="A")
    np.testing.assert_allclose(model.bound(x, generator=gmcore.Generator(0)).numpy(), exact, rtol=1e-12)
    np.testing.assert_allclose(
        toy(IWAE, encoder=ExactPosterior, samples=7).bound(x, generator=gmcore.Generator(0)).numpy(), exact, rtol=1e-12
    )


def test_iwae_with_one_sample_has_the_gradient_of_estimator_a(data):
    elbo, iwae = small(estimator="A"), small(IWAE, samples=1)
    for a, b in zip(elbo.parameters(), iwae.parameters(), strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())
    key = gmcore.Generator(9).draw()
    of_elbo = gradients(ops.sum(elbo.bound(data, key=key)), elbo)
    of_iwae = gradients(ops.sum(iwae.bound(data, key=key)), iwae)
    assert_gradients_equal(of_elbo, of_iwae)


def test_iwae_gradient_is_the_weighted_one(data):
    """Burda et al., equation 14: sum_i w~_i grad log w_i, with the weights held fixed."""
    model = small(IWAE, samples=5)
    key = gmcore.Generator(9).draw()
    bound = gradients(ops.sum(model.bound(data, key=key)), model)
    log_w = model.log_weights(data, *model.encode(data), samples=5, key=key)
    weights = np.exp(log_w.detach().numpy() - log_w.detach().numpy().max(axis=0))
    weighted = gradients(ops.sum(Tensor(weights / weights.sum(axis=0)) * log_w), model)
    assert_gradients_equal(bound, weighted)


def test_estimators_agree_in_expectation_and_b_varies_less(data):
    x = Tensor(np.repeat(data.numpy()[:1], 20_000, axis=0))
    a, b = (small(estimator=e).bound(x, generator=gmcore.Generator(i)).detach().numpy() for i, e in enumerate("AB"))
    assert abs(a.mean() - b.mean()) < 4.0 * math.sqrt((a.var() + b.var()) / a.size)
    assert b.var() < a.var()


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_minibatch_gradients_average_to_the_full_gradient(data, likelihood):
    """Equation 8: with the same noise, the mean of N/M-scaled minibatch gradients is the full-data gradient."""
    model = small(likelihood=likelihood)
    key = gmcore.Generator(3).draw()
    full = gradients(model.minibatch_bound(data, 12, key=key), model)
    parts = []
    for start in range(0, 12, 4):
        part = gmcore.random.shift_key(key, start * model.latent_size)
        x = Tensor(data.numpy()[start : start + 4])
        parts.append(gradients(model.minibatch_bound(x, 12, key=part), model))
    mean = [Tensor(sum(g.numpy() for g in gs) / 3.0) for gs in zip(*parts, strict=True)]
    assert_gradients_equal(full, mean)


@pytest.mark.parametrize("estimator", ["A", "B"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_gradient_against_finite_differences(data, estimator, likelihood):
    model = small(estimator=estimator, likelihood=likelihood, samples=2)
    key = gmcore.Generator(3).draw()

    def bound(*values):
        # The same tensors must stand in the modules, so that the tape reaches the ones passed in.
        for (owner, name), value in zip(places, values, strict=True):
            vars(owner)[name] = value
        return ops.mean(model.bound(data, key=key))

    places = [(m, n) for m in model.modules() for n, v in vars(m).items() if isinstance(v, nn.Parameter)]
    start = [vars(owner)[name].detach().numpy().copy() for owner, name in places]
    assert gmcore.gradcheck(bound, start, order=2)


@pytest.mark.slow
def test_linear_vae_reaches_the_likelihood_of_probabilistic_pca():
    """Tipping & Bishop 1999: the maximum likelihood is known from the eigenvalues of the covariance."""
    rng = np.random.default_rng(0)
    n, d, q = 400, 6, 2
    x = rng.standard_normal((n, q)) @ rng.standard_normal((q, d)) * 1.5 + 0.5 * rng.standard_normal((n, d)) + 1.0
    covariance = np.cov(x.T, bias=True)
    eigenvalues = np.linalg.eigvalsh(covariance)[::-1]
    noise = eigenvalues[q:].mean()
    best = -0.5 * (d * LOG_2PI + np.log(eigenvalues[:q]).sum() + (d - q) * np.log(noise) + d)

    model = double(VAE(d, q, (), likelihood="gaussian", variance="shared", samples=4, generator=gmcore.Generator(0)))
    model.decoder.fit_bias(x.mean(axis=0))
    optimiser = gmcore.optim.Adam(model.parameters(), lr=0.05)
    generator, steps, batch = gmcore.Generator(1), 800, Tensor(x)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.05 * (1.0 - step / steps) + 1e-4
        optimiser.zero_grad()
        loss, _ = model.loss(batch, generator=generator)
        loss.backward()
        optimiser.step()

    weight = model.decoder.mu.weight.detach().numpy()
    marginal = weight @ weight.T + math.exp(model.decoder.logvar.item()) * np.eye(d)
    centred = x - model.decoder.mu.bias.detach().numpy()
    reached = -0.5 * (
        d * LOG_2PI
        + np.linalg.slogdet(marginal)[1]
        + np.einsum("ni,ij,nj->n", centred, np.linalg.inv(marginal), centred).mean()
    )
    assert reached <= best + 1e-9
    assert reached > best - 5e-3
    # The bound is tight, since the exact posterior is within the encoder's family up to a rotation of z.
    assert -model.loss(Tensor(np.tile(x, (20, 1))), generator=generator)[0].item() > best - 3e-2
    angles = np.linalg.svd(np.linalg.qr(weight)[0].T @ np.linalg.eigh(covariance)[1][:, -q:])[1]
    assert np.degrees(np.arccos(np.clip(angles.min(), -1.0, 1.0))) < 1.0


@pytest.mark.slow
def test_gaussian_decoder_finds_the_variance_of_noise():
    """systems.md row 7: on x ~ N(0, s^2 I) a learned variance must come to s^2, and the bound stays below -H(x)."""
    sigma, n, steps = 0.3, 20_000, 500
    x = sigma * np.random.default_rng(0).standard_normal((n, 4))
    model = double(VAE(4, 1, (8,), likelihood="gaussian", generator=gmcore.Generator(0)))
    optimiser = gmcore.optim.Adam(model.parameters(), lr=0.02)
    generator = gmcore.Generator(1)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.02 * (1.0 - step / steps)
        optimiser.zero_grad()
        start = step * 1000 % n
        model.loss(Tensor(x[start : start + 1000]), generator=generator)[0].backward()
        optimiser.step()
    with gmcore.no_grad():
        h = model.decoder.trunk(ops.normal((500, 1), dtype="float64", generator=generator))
        variance = np.exp(model.decoder.logvar(h).numpy()).mean()
    empirical = float((x**2).mean())
    assert abs(variance / empirical - 1.0) < 0.01
    bound = -model.loss(Tensor(x), generator=generator)[0].item()
    assert bound < -4 * 0.5 * (LOG_2PI + math.log(empirical) + 1.0) + 0.05


def test_evaluation_does_not_depend_on_chunks_and_its_memory_not_on_k(data, monkeypatch):
    model = small(IWAE)
    whole = model.log_likelihood(data, samples=500, generator=gmcore.Generator(2)).numpy()
    monkeypatch.setattr(vae_module, "_CHUNK_ELEMENTS", 12 * 6 * 64)
    chunked = model.log_likelihood(data, samples=500, generator=gmcore.Generator(2)).numpy()
    np.testing.assert_allclose(whole, chunked, rtol=1e-12)

    def peak(samples):
        tracemalloc.start()
        model.log_likelihood(data, samples=samples, generator=gmcore.Generator(2))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(5000) < 1.2 * peak(500)


def test_bad_input():
    for options in (
        {"latent_size": 0},
        {"samples": 0},
        {"hidden_sizes": (0,)},
        {"activation": "swish"},
        {"likelihood": "poisson"},
    ):
        with pytest.raises(ArgumentError):
            IWAE(6, **options)
    with pytest.raises(ArgumentError, match="'A' or 'B'"):
        VAE(6, estimator="C")
    with pytest.raises(ShapeError, match=r"expected \(n, 6\)"):
        VAE(6).loss(Tensor(np.ones((2, 5), np.float32)))
    with pytest.raises(UnknownNameError, match="latent_size"):
        IWAE.build(np.zeros((3, 6), np.float32), {"latent_sise": 3}, gmcore.Generator(0))
    with pytest.raises(UnknownNameError, match="did you mean 'iwae'"):
        gmcore.models.get("iwea")


def test_config_rebuilds_the_model(data):
    for model in (small(likelihood="gaussian", variance="shared", estimator="A", samples=3), small(IWAE, samples=4)):
        again = double(type(model)(**model.config))
        again.load_state_dict(model.state_dict())
        key = gmcore.Generator(0).draw()
        np.testing.assert_array_equal(
            again.bound(data, key=key).detach().numpy(), model.bound(data, key=key).detach().numpy()
        )


def test_densities_are_not_compared_with_probabilities():
    rows = np.eye(4, dtype=np.float32)
    data = Dataset("binary", rows, rows, rows)
    for likelihood, compared in (("bernoulli", True), ("gaussian", False)):
        model = VAE(4, 2, (3,), likelihood=likelihood, generator=gmcore.Generator(0))
        result = model.measure(data, "test", recipe=VAE.recipe, samples=2, seed=0, data_seed=0, limit=None,
                               report=lambda done, total: None)  # fmt: skip
        assert (result["baseline"] is not None) == compared
