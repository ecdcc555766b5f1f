"""Sampling: closed forms, gradients, addressing of the noise, frequencies and edges of Bernoulli draws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from gmkernels import KernelError, pool, run
from gmkernels.rng import key_array, normal, random_words
from gmkernels.sampling import (
    bernoulli_sample,
    bernoulli_sample_logits,
    dropout,
    gaussian_sample,
    gaussian_sample_backward,
    spec,
)

BACKENDS = ["reference", "cpu"]
KEY = (17, 4, 1)


def parameters(shape, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape).clip(-2, 2).astype(dtype)


# ---------------------------------------------------------------------------------------------------------
# gaussian_sample
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("samples", [None, 1, 3])
@pytest.mark.parametrize("shape", [(7,), (5, 3), (2, 3, 129), (300, 40), (1, 40961), (40961, 1), (3, 1024)])
def test_gaussian_sample_is_its_formula(shape, samples, backend):
    mu, logvar = parameters(shape)
    z, kl, log_q = gaussian_sample(mu, logvar, key=KEY, samples=samples, backend=backend)
    eps = normal(z.shape, key=KEY, dtype="float64")
    sigma = np.exp(logvar / 2)
    np.testing.assert_allclose(z, mu + sigma * eps, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(log_q, stats.norm(mu, sigma).logpdf(z).sum(-1), rtol=1e-12, atol=1e-12)
    expected_kl = ((sigma**2 + mu**2 - 1) / 2 - np.log(sigma)).sum(-1)
    np.testing.assert_allclose(kl, expected_kl, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_kl_against_quadrature(backend):
    for mu, logvar in ((0.3, -1.2), (-2.0, 0.7), (0.0, 0.0), (1.5, -4.0)):
        q = stats.norm(mu, np.exp(logvar / 2))
        expected, _ = integrate.quad(
            lambda x, q=q: q.pdf(x) * (q.logpdf(x) - stats.norm.logpdf(x)),
            mu - 12 * q.std(), mu + 12 * q.std(), epsabs=1e-13, epsrel=1e-13, limit=200,
        )  # fmt: skip
        _, kl, _ = gaussian_sample(np.array([mu]), np.array([logvar]), key=KEY, backend=backend)
        assert abs(kl - expected) < 1e-10


def test_mean_of_log_ratio_is_the_kl():
    """E log q(z) - log p(z) = KL, within 4.5 standard errors."""
    mu, logvar = parameters((6,), seed=3)
    z, kl, log_q = gaussian_sample(mu, logvar, key=(2,), samples=200_000)
    ratio = log_q - stats.norm.logpdf(z).sum(-1)
    assert abs(ratio.mean() - kl) < 4.5 * ratio.std() / np.sqrt(ratio.size)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("base", [0, 2**31 - 20, 2**34 - 20, 2**62 + 5])
def test_rows_in_pieces_equal_the_whole(base, backend):
    """Chunked evaluation and shards: a piece that begins at row r is drawn with offset r D."""
    mu, logvar = parameters((130, 7), "float32")
    whole = gaussian_sample(mu, logvar, key=(1, 2, base), backend=backend)
    for i, j in ((0, 1), (1, 64), (64, 130)):
        piece = gaussian_sample(mu[i:j], logvar[i:j], key=(1, 2, base + 7 * i), backend=backend)
        for part, all_rows in zip(piece, whole, strict=True):
            assert part.tobytes() == all_rows[i:j].tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("samples", [None, 4])
def test_gradient_against_finite_differences(samples, backend):
    shape = (3, 5)
    mu, logvar = parameters(shape, seed=5)
    rng = np.random.default_rng(6)
    g = [rng.standard_normal(np.shape(y)) for y in gaussian_sample(mu, logvar, key=KEY, samples=samples)]
    d_mu, d_logvar = gaussian_sample_backward(*g, mu, logvar, key=KEY, samples=samples, backend=backend)

    def objective(mu, logvar):
        y = gaussian_sample(mu, logvar, key=KEY, samples=samples, backend="reference")
        return sum((a * b).sum() for a, b in zip(g, y, strict=True))

    step = 1e-5  # error of the central difference: step^2 f'''/6 + 1e-16 f/step, about 1e-9 here
    for index in np.ndindex(*shape):
        e = np.zeros(shape)
        e[index] = step
        by_mu = (objective(mu + e, logvar) - objective(mu - e, logvar)) / (2 * step)
        by_logvar = (objective(mu, logvar + e) - objective(mu, logvar - e)) / (2 * step)
        assert abs(d_mu[index] - by_mu) < 1e-8 and abs(d_logvar[index] - by_logvar) < 1e-8


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "samples"), [((4, 6), None), ((2, 3, 43), 5), ((1, 20011), None), ((513, 1), 2)])
def test_gradient_against_torch(shape, samples, backend):
    torch = pytest.importorskip("torch")
    mu, logvar = parameters(shape, seed=8)
    outputs = gaussian_sample(mu, logvar, key=KEY, samples=samples)
    rng = np.random.default_rng(9)
    g = [np.asarray(rng.standard_normal(y.shape)) for y in outputs]
    m, v = (torch.tensor(x, requires_grad=True) for x in (mu, logvar))
    eps = torch.tensor(normal(outputs[0].shape, key=KEY, dtype="float64"))
    z = m + torch.exp(v / 2) * eps
    q = torch.distributions.Normal(m, torch.exp(v / 2))
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.autograd.backward([z, kl, q.log_prob(z).sum(-1)], [torch.tensor(x) for x in g])
    got = gaussian_sample_backward(*g, mu, logvar, key=KEY, samples=samples, backend=backend)
    np.testing.assert_allclose(got[0], m.grad, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(got[1], v.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_thousands_of_samples_keep_float32_accuracy():
    mu, logvar = parameters((2, 3), "float32")
    g_z = np.ones((20_000, 2, 3), np.float32)
    zeros = np.zeros((2,), np.float32), np.zeros((20_000, 2), np.float32)
    d_mu, _ = gaussian_sample_backward(g_z + np.float32(1e-3), *zeros, mu, logvar, key=KEY, samples=20_000)
    np.testing.assert_allclose(d_mu, 20_000 * np.float64(np.float32(1) + np.float32(1e-3)), rtol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_and_nan_parameters(backend):
    mu = np.array([[0.0, np.nan], [np.inf, 0.0], [0.0, 0.0], [0.0, 1.0]], np.float32)
    logvar = np.array([[0.0, 0.0], [0.0, 0.0], [np.nan, 0.0], [-np.inf, 100.0]], np.float32)
    z, kl, log_q = gaussian_sample(mu, logvar, key=KEY, backend=backend)
    assert np.isnan(z).tolist() == [[False, True], [False, False], [True, False], [False, False]]
    assert z[1, 0] == np.inf and z[3, 0] == 0 and np.isfinite(z[3, 1])  # exp(50) fits
    assert np.isnan(kl).tolist() == [True, False, True, False] and kl[1] == kl[3] == np.inf
    assert np.isnan(log_q).tolist() == [False, False, True, False]


def test_results_do_not_depend_on_threads():
    mu, logvar = parameters((3, 30011), "float32")
    before = pool.get_num_threads()
    try:
        results = []
        for threads in {1, before}:
            pool.set_num_threads(threads)
            y = gaussian_sample(mu, logvar, key=KEY, samples=2, backend="cpu")
            results.append(b"".join(a.tobytes() for a in y))
        assert len(set(results)) == 1
    finally:
        pool.set_num_threads(before)


def test_errors_name_the_operation():
    mu, logvar = parameters((3, 5))
    with pytest.raises(KernelError, match=r"gaussian_sample: expected mu and logvar of one shape .*\[3, 5\]"):
        gaussian_sample(mu, logvar[:2], key=KEY)
    with pytest.raises(KernelError, match="gaussian_sample: expected float32, float64"):
        gaussian_sample(mu, logvar.astype(np.float32), key=KEY)
    with pytest.raises(KernelError, match="gaussian_sample: samples must be"):
        gaussian_sample(mu, logvar, key=KEY, samples=0)
    with pytest.raises(KernelError, match="gaussian_sample_backward: expected g_z"):
        gaussian_sample_backward(mu, mu, mu, mu, logvar, key=KEY)
    with pytest.raises(KernelError, match="bernoulli_sample: expected a key uint64"):
        bernoulli_sample(mu, key=np.zeros(3))


# ---------------------------------------------------------------------------------------------------------
# Bernoulli
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("p", [1e-4, 0.1, 0.5, 0.9, 0.9999])
def test_bernoulli_frequency(p, dtype, backend):
    n = 1 << 18
    for sample in (
        bernoulli_sample(np.full(n, p, dtype), key=(3, 1), backend=backend),
        bernoulli_sample_logits(np.full(n, np.log(p / (1 - p)), dtype), key=(4, 1), backend=backend),
    ):
        assert sample.dtype == dtype and set(np.unique(sample)) <= {0, 1}
        assert stats.binomtest(int(sample.sum()), n, p).pvalue > 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bernoulli_edges(dtype, backend):
    n = 1 << 18
    p = np.array([0, 1, -0.0, np.nan, -1e-30, 1.0000002, np.inf, -np.inf], dtype)
    sample = bernoulli_sample(p, key=KEY, samples=n, backend=backend)
    assert (sample[:, [0, 2]] == 0).all() and (sample[:, 1] == 1).all()
    assert np.isnan(sample[:, 3:]).all()
    logits = np.array([-np.inf, np.inf, np.nan], dtype)
    sample = bernoulli_sample_logits(logits, key=KEY, samples=n, backend=backend)
    assert (sample[:, 0] == 0).all() and (sample[:, 1] == 1).all() and np.isnan(sample[:, 2]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_bernoulli_threshold_is_exact(backend):
    """p = w 2^-32 does not fire at the word w, and (w + 1) 2^-32 does."""
    w = random_words((4096,), key=KEY).astype(np.float64)
    assert (bernoulli_sample(w / 2**32, key=KEY, backend=backend) == 0).all()
    assert (bernoulli_sample((w + 0.999) / 2**32, key=KEY, backend=backend) == 0).all()
    assert (bernoulli_sample((w + 1) / 2**32, key=KEY, backend=backend) == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("base", [0, 2**31 - 50, 2**34 - 50, 2**62 - 50])
def test_bernoulli_samples_are_consecutive(base, backend):
    p = np.random.default_rng(0).uniform(size=(3, 11)).astype(np.float32)
    whole = bernoulli_sample(p, key=key_array(1, 2, base), samples=5, backend=backend)
    for s in range(5):
        piece = bernoulli_sample(p, key=key_array(1, 2, base + s * p.size), backend=backend)
        assert piece.tobytes() == whole[s].tobytes()


def test_float32_flips_few_draws():
    """The rounding of p to float32 moves it by 2^-25 p at most: the expected share of flips is below 3e-8."""
    p = np.random.default_rng(1).uniform(size=2_000_000)
    double = bernoulli_sample(p, key=KEY)
    single = bernoulli_sample(p.astype(np.float32), key=KEY)
    assert (single != double).sum() <= 3
    logits = np.random.default_rng(2).normal(0, 3, 2_000_000).astype(np.float32)
    single, double = (bernoulli_sample_logits(logits.astype(d), key=KEY) for d in ("float32", "float64"))
    assert (single != double).sum() <= 5  # two units in the last place of sigmoid: 0.25 expected


def test_caller_owned_outputs():
    mu, logvar = parameters((4, 5), "float32")
    key = key_array(1)
    outputs = tuple(np.full(s, np.nan, np.float32) for s in ((4, 5), (4,), (4,)))
    got = run(spec.GAUSSIAN_SAMPLE, (mu, logvar, key), {"samples": None}, outputs=outputs, backend="cpu")
    assert all(a is b for a, b in zip(got, outputs, strict=True)) and all(np.isfinite(a).all() for a in got)


# ---------------------------------------------------------------------------------------------------------
# dropout
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [0.0, 2.0**-32, 0.25, 0.5, 0.9, 1.0])
def test_dropout_keeps_what_its_words_say(p, backend):
    x, _ = parameters((3, 1000))
    y = dropout(x, p, key=KEY, backend=backend)
    keep = random_words(x.shape, key=KEY) < np.floor((1 - p) * 2.0**32)
    assert keep.all() if p == 0 else not keep.any() if p == 1 else 0 < keep.sum()
    np.testing.assert_allclose(y, np.where(keep, x, 0) / max(1 - p, 1e-300), rtol=3e-16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_in_pieces_equals_the_whole(backend):
    x, _ = parameters((40961,), "float32")
    whole = dropout(x, 0.3, key=KEY, backend=backend)
    for start in (1, 3, 1024, 16385):
        piece = dropout(x[start:], 0.3, key=(*KEY[:2], KEY[2] + start), backend=backend)
        np.testing.assert_array_equal(piece, whole[start:])


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_dropout_refuses_what_is_no_probability(p):
    with pytest.raises(KernelError, match="dropout: p must be a probability"):
        dropout(np.ones(3), p, key=KEY)
