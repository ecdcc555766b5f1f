"""Samplers by rejection: their distributions, the sub-counter rule, and the implicit derivative."""

import numpy as np
import pytest
from scipy import stats

from gmkernels import KernelError, rejection
from gmkernels.rejection import reference

N = 20_000
SHAPES = [0.01, 0.3, 0.99, 1.0, 4.0, 1e3, 1e7]


def kolmogorov(u):
    """sqrt(n) sup|F_n - F| of probabilities that should be uniform: above 2.7 once in 10^6 of other keys."""
    u, rank = np.sort(u), np.arange(1, len(u) + 1) / len(u)
    return np.maximum(rank - u, u - rank + 1 / len(u)).max() * np.sqrt(len(u))


@pytest.mark.parametrize("a", SHAPES)
def test_gamma_distribution(a):
    x = rejection.standard_gamma(np.full(N, a), key=(1, 2), backend="cpu")
    assert kolmogorov(stats.gamma.cdf(x, a)) < 2.7
    log_x = rejection.standard_gamma(np.full(N, a), key=(1, 2), log=True, backend="cpu")
    np.testing.assert_allclose(np.exp(log_x), x, rtol=2e-13, atol=2.3e-308)  # exponents up to 1000


def chi_squared(k, pmf, low, high):
    """The chi-squared statistic of counts, tails put together, as a z-score by Wilson & Hilferty."""
    edges = np.arange(low, high + 1)
    expected = np.concatenate([[pmf.cdf(low - 1)], pmf.pmf(edges), [pmf.sf(high)]]) * len(k)
    found = np.concatenate([[(k < low).sum()], (k[:, None] == edges).sum(0), [(k > high).sum()]])
    enough = expected > 20
    found = np.append(found[enough], found[~enough].sum())
    expected = np.append(expected[enough], max(expected[~enough].sum(), 1e-9))
    if expected[-1] < 20:
        found, expected = np.append(found[:-2], found[-2:].sum()), np.append(expected[:-2], expected[-2:].sum())
    df = len(expected) - 1
    statistic = ((found - expected) ** 2 / expected).sum()
    return ((statistic / df) ** (1 / 3) - 1 + 2 / (9 * df)) / np.sqrt(2 / (9 * df))


@pytest.mark.parametrize("rate", [0.05, 3.0, 9.999, 10.001, 60.0, 1e4])
def test_poisson_distribution(rate):
    """Beside the switch between the methods too. A z-score above 5 comes once in 3 million of other keys."""
    k = rejection.poisson(np.full(N, rate), key=(3, 4), backend="cpu")
    spread = 4 * np.sqrt(rate)
    assert chi_squared(k, stats.poisson(rate), max(np.floor(rate - spread), 0), np.ceil(rate + spread)) < 5


@pytest.mark.parametrize(
    "n, p", [(1, 0.3), (12, 0.5), (20, 0.4999), (21, 0.4999), (400, 0.1), (400, 0.9), (10**4, 0.4)]
)
def test_binomial_distribution(n, p):
    k = rejection.binomial(np.full(N, float(n)), np.full(N, p), key=(5, 6), backend="cpu")
    mean, spread = n * p, 4 * np.sqrt(n * p * (1 - p))
    assert chi_squared(k, stats.binom(n, p), max(np.floor(mean - spread), 0), min(np.ceil(mean + spread), n)) < 5


U = np.linspace(-0.5, 0.5, 20_002)[1:-1]
S = 0.5 - np.abs(U)


@pytest.mark.parametrize("mean", [10.0, 10.35, 10.7, 13.0, 40.0, 1e3, 1e6])
def test_the_poisson_hat_covers_and_the_squeezes_are_inside(mean):
    """The constants, without chance: where a probability stuck out, counts would be too few there."""
    a, b, alpha, squeeze = reference.poisson_hat(mean)
    share = stats.poisson.pmf(np.floor((2 * a / S + b) * U + mean + 0.43), mean) * (a / S**2 + b) / alpha
    assert share.max() <= 1 + 1e-9
    assert share[S >= 0.07].min() >= squeeze
    assert (share <= S)[S < 0.013].all()


@pytest.mark.parametrize(
    "n, p", [(20, 0.5), (21, 0.49), (100, 0.1), (1000, 0.01), (1000, 0.3), (10**5, 0.5), (10**6, 1e-5)]
)
def test_the_binomial_hat_covers_and_the_squeeze_is_inside(n, p):
    a, b, alpha, squeeze = reference.binomial_hat(n, p)
    of = stats.binom(n, p)
    k = np.floor((2 * a / S + b) * U + n * p + 0.5)
    share = of.pmf(k) / of.pmf(np.floor((n + 1) * p)) * (a / S**2 + b) / alpha
    assert share.max() <= 1 + 1e-9
    assert share[S >= 0.07].min() >= squeeze


@pytest.mark.parametrize("n", [1e14, 1e24])
def test_large_counts_have_the_moments(n):
    """Where SciPy's probabilities give out, and 64-bit integers: normal but for a skewness of 1e-7."""
    for k, mean, sd in (
        (rejection.poisson(np.full(N, n), key=(7, 1), backend="cpu"), n, np.sqrt(n)),
        (rejection.binomial(np.full(N, n), np.full(N, 0.5), key=(7, 2), backend="cpu"), n / 2, np.sqrt(n) / 2),
    ):
        assert kolmogorov(stats.norm.cdf((k - mean) / sd)) < 2.7


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    "draw",
    [
        lambda x, **how: rejection.standard_gamma(x, log=True, **how),
        lambda x, **how: rejection.poisson(x, **how),
        lambda x, **how: rejection.binomial(np.floor(50 * x), np.full_like(x, 0.4), **how),
    ],
    ids=["gamma", "poisson", "binomial"],
)
def test_an_element_depends_on_its_index_and_its_parameters_only(draw, backend):
    """Neither on its neighbours, which may take more attempts, nor on the piece of the draw that it is taken in."""
    x = np.random.default_rng(0).uniform(0.2, 40.0, 700)
    whole = draw(x, key=(9, 2**40, 2**33), backend=backend)
    np.testing.assert_array_equal(draw(x[300:], key=(9, 2**40, 2**33 + 300), backend=backend), whole[300:])
    changed = np.where(np.arange(700) % 2, x, 0.3)
    np.testing.assert_array_equal(draw(changed, key=(9, 2**40, 2**33), backend=backend)[1::2], whole[1::2])
    assert (draw(x, key=(9, 2**40 + 1, 2**33), backend=backend) != whole).any()


def test_attempts_are_blocks_of_their_own_apart_from_the_stream():
    key = np.array([3, 5, 0], np.uint64)
    blocks = [reference.attempt_words(key, np.arange(1000), t) for t in (0, 1, 2**15 - 1)]
    from gmkernels.rng import random_words

    blocks.append(random_words((4000,), key=key).reshape(-1, 4))
    # Of 4000 blocks of 128 bits no two are equal but by chance, of 2^-105.
    assert len(np.unique(np.concatenate(blocks), axis=0)) == 4000


def exact_slope(a, log_x):
    """d log x / da at a fixed probability, by mpmath: -(dP/da) / (x dP/dx), the derivative in a by differences."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        a, log_x = mpmath.mpf(a), mpmath.mpf(log_x)
        x, h = mpmath.exp(log_x), mpmath.mpf(10) ** -18 * a

        def probability(b):  # of the smaller side, for its relative accuracy
            return mpmath.gammainc(b, 0, x, regularized=True) if x < a else -mpmath.gammainc(b, x, regularized=True)

        slope = (probability(a + h) - probability(a - h)) / (2 * h)
        return float(-slope / mpmath.exp(a * log_x - x - mpmath.loggamma(a)))


@pytest.mark.parametrize("a", [0.003, 0.4, 1.0, 19.0, 21.0, 1e4])
def test_implicit_derivative_against_mpmath(a):
    """From the far lower to the far upper tail, where the density is none that a number could hold."""
    q = np.array([1e-30, 1e-6, 0.1, 0.5, 0.9])
    # For small a, P(a, x) is about x^a, and x no number.
    log_x = np.log(q) / a if a < 0.5 else np.log(stats.gamma.ppf(q, a))
    log_x = np.append(log_x, np.log(stats.gamma.isf([1e-3, 1e-30], a)))
    expected = np.array([exact_slope(a, v) for v in log_x])
    found = rejection.standard_gamma_grad(np.full(len(log_x), a), log_x, log=True, backend="cpu")
    # The series lose what their sums cancel: up to a / |x - a| of the terms in the lower tail.
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    x = np.exp(log_x)
    seen = x > 0
    plain = rejection.standard_gamma_grad(np.full(seen.sum(), a), x[seen], backend="cpu")
    np.testing.assert_allclose(plain, (x * expected)[seen], rtol=1e-9, atol=1e-300)


def test_implicit_derivative_of_huge_shapes():
    """dx/da = 1 + z / (2 sqrt a) + O(1 / a), on both sides of where the series give way to it."""
    for a in (0.99e8, 1.01e8, 1e12):
        z = np.array([-3.0, 0.0, 3.0])
        x = a + z * np.sqrt(a)
        found = rejection.standard_gamma_grad(np.full(3, a), x, backend="cpu")
        np.testing.assert_allclose(found, 1 + z / (2 * np.sqrt(a)), rtol=5 / a)


def test_errors():
    for call in (
        lambda: rejection.standard_gamma(np.ones(3, int), key=(1, 2)),
        lambda: rejection.binomial(np.ones(3), np.ones(2), key=(1, 2)),
        lambda: rejection.poisson(np.ones(3), key=np.ones(3)),
        lambda: rejection.standard_gamma_grad(np.ones(3), np.ones(3, "f")),
    ):
        with pytest.raises(KernelError, match="expected float32 or float64 arrays of one dtype|expected a key uint64"):
            call()
