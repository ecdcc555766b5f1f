"""Far out: small and large parameters, tails, the ends of a support."""

from typing import Any

import numpy as np
import pytest

from gmcore import Generator, Tensor, capture, grad, ops, tensor
from gmcore.distributions import (
    Beta,
    Categorical,
    Cauchy,
    Exponential,
    Gamma,
    Gumbel,
    HalfNormal,
    Laplace,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    RelaxedBernoulli,
    StudentT,
    Uniform,
    kl_divergence,
)
from gmcore.errors import ArgumentError

stats = pytest.importorskip("scipy.stats")


def single(x: Any) -> Tensor:
    return tensor(np.asarray(x, np.float32))


def distance(u: np.ndarray) -> float:
    """sqrt(n) times Kolmogorov & Smirnov's distance of n numbers from uniform ones: above 2.7 once in 10^6."""
    u, rank = np.sort(u), np.arange(1, u.size + 1) / u.size
    return float(np.maximum(rank - u, u - rank + 1 / u.size).max() * np.sqrt(u.size))


def test_beta_samples_near_0_keep_their_digits() -> None:
    x = Beta(single(0.2), single(1.0)).sample((20_000,), Generator(1)).numpy()
    assert x.min() > 0.0  # x^0.2 is uniform: one in 10^7.6 is below the least number
    assert distance(x.astype(np.float64) ** 0.2) < 2.7


def test_relaxed_samples_near_0_keep_their_digits() -> None:
    d = RelaxedBernoulli(0.1, logits=single(0.0))
    x, y = d.base_dist.sample((1000,), Generator(2)).numpy(), d.sample((1000,), Generator(2)).numpy()
    low = (x < -10.0) & (x > -80.0)
    assert low.sum() > 100
    np.testing.assert_allclose(y[low], np.exp(x[low].astype(np.float64)), rtol=1e-4)


def test_variance_of_many_successes() -> None:
    np.testing.assert_allclose(
        NegativeBinomial(single(10.0), logits=single([5.0, 15.0, 20.0])).variance.numpy(),
        10.0 * np.exp([5.0, 15.0, 20.0]) * (1.0 + np.exp([5.0, 15.0, 20.0])), rtol=1e-5
    )  # fmt: skip


# Terms of up to 100 times what is left of them.
@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        (Normal(single(0.0), single(1e-25)), Normal(single(0.0), single(1.0)), 25 * np.log(10) - 0.5),
        (HalfNormal(single(1e-25)), HalfNormal(single(1.0)), 25 * np.log(10) - 0.5),
        (Cauchy(single(0.0), single(1e-25)), Cauchy(single(1e-25), single(1e-25)), np.log(1.25)),
        (Cauchy(single(0.0), single(1e25)), Cauchy(single(1e25), single(1e25)), np.log(1.25)),
        (Gumbel(single(100.0), single(1.0)), Gumbel(single(100.0), single(1.0)), 0.0),
        (Gumbel(single(-100.0), single(1.0)), Gumbel(single(-100.0), single(1.0)), 0.0),
        (Normal(single(100.0), single(1.0)), Gumbel(single(100.0), single(1.0)),
         np.exp(0.5) - 0.5 * np.log(2 * np.pi) - 0.5),
        (Uniform(single(-100.0), single(-98.0)), Gumbel(single(-100.0), single(1.0)),
         1.0 + 0.5 * (1.0 - np.exp(-2.0)) - np.log(2.0)),
        (Gamma(single(100.0), single(1.0)), Gumbel(single(100.0), single(1.0)),
         np.exp(100.0 - 100.0 * np.log(2.0)) - stats.gamma(100.0).entropy()),
    ],
)  # fmt: skip
def test_divergences_of_numbers_far_out(p: Any, q: Any, expected: float) -> None:
    assert kl_divergence(p, q).item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_heavy_tails() -> None:
    x = tensor(np.float32([1e15, -1e25, 1e35]), requires_grad=True)
    for d, df in ((Cauchy(single(0.0), single(1.0)), 1.0), (StudentT(single(0.1)), 0.1)):
        log_prob = d.log_prob(x)
        exact = stats.t(df).logpdf(x.detach().numpy().astype(np.float64))
        np.testing.assert_allclose(log_prob.detach().numpy(), exact, rtol=1e-6)
        (slope,) = grad(ops.sum(log_prob), [x])
        np.testing.assert_allclose(slope.numpy(), -(df + 1) / x.detach().numpy().astype(np.float64), rtol=1e-6)


def test_quantiles_of_small_probabilities() -> None:
    d, p = Cauchy(single(0.0), single(1.0)), np.array([1e-30, 1e-9, 0.25, 0.5, 0.75])
    x = d.icdf(single(p))
    np.testing.assert_allclose(x.numpy(), -1.0 / np.tan(np.pi * p), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(d.cdf(x).numpy(), p, rtol=1e-5)


def test_quantiles_at_the_ends() -> None:
    for d, low in ((Cauchy(0.0, 1.0), -np.inf), (Laplace(0.0, 1.0), -np.inf), (Exponential(1.0), 0.0)):
        np.testing.assert_array_equal(d.icdf([0.0, 1.0]).numpy(), [low, np.inf])


@pytest.mark.parametrize(("a", "density"), [(0.5, np.inf), (1.0, 1.0), (2.0, 0.0)])
def test_the_slope_of_a_distribution_function_where_it_begins(a: float, density: float) -> None:
    x = tensor(np.array(0.0), requires_grad=True)
    (slope,) = grad(Gamma(np.array(a), np.array(1.0)).cdf(x), [x])
    assert slope.item() == density


def test_a_captured_step_sees_which_variances_exist() -> None:
    step = capture(lambda df: StudentT(df).variance)
    found = [step(tensor(np.array(df))).item() for df in (4.0, 4.0, 4.0, 1.5, 0.5)]
    np.testing.assert_array_equal(found, [2.0, 2.0, 2.0, np.inf, np.nan])


def test_classes_that_the_dtype_of_the_parameters_does_not_have() -> None:
    logits = (np.arange(5000) % 7).astype(np.float16)
    found = Categorical(logits=logits).log_prob(np.arange(2990, 3010)).numpy()
    np.testing.assert_array_equal(found, Categorical(logits=logits).logits.numpy()[2990:3010])


@pytest.mark.parametrize("where", [(0, 0), (0, 1)])
def test_infinite_covariances_are_refused(where: tuple[int, int]) -> None:
    covariance = np.eye(2)
    covariance[where] = covariance[where[::-1]] = np.inf
    with pytest.raises(ArgumentError, match="covariance_matrix must be a symmetric positive definite matrix"):
        MultivariateNormal(np.zeros(2), covariance)
