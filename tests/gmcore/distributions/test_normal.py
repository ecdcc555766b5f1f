import numpy as np
import pytest

from gmcore import Generator, grad, gradcheck, tensor
from gmcore.distributions import Normal

RNG = np.random.default_rng(0)
LOC, SCALE, X = RNG.standard_normal((4, 1)), RNG.uniform(0.3, 2.0, 3), RNG.standard_normal((5, 4, 3)) * 3


def test_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    ours, theirs = Normal(LOC, SCALE), stats.norm(LOC, SCALE)
    np.testing.assert_allclose(ours.log_prob(X).numpy(), theirs.logpdf(X), rtol=1e-13)
    np.testing.assert_allclose(ours.entropy().numpy(), theirs.entropy(), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(ours.mean.numpy(), theirs.mean() + 0 * SCALE, rtol=1e-15)
    np.testing.assert_allclose(ours.variance.numpy(), theirs.var() + 0 * LOC, rtol=1e-14)
    np.testing.assert_allclose(ours.stddev.numpy(), theirs.std() + 0 * LOC, rtol=1e-14)


def test_against_torch():
    torch = pytest.importorskip("torch")
    ours = Normal(LOC, SCALE)
    theirs = torch.distributions.Normal(torch.tensor(LOC), torch.tensor(SCALE))
    assert ours.batch_shape == tuple(theirs.batch_shape) and ours.event_shape == tuple(theirs.event_shape)
    np.testing.assert_allclose(ours.log_prob(X).numpy(), theirs.log_prob(torch.tensor(X)), rtol=1e-13)
    np.testing.assert_allclose(ours.entropy().numpy(), theirs.entropy(), rtol=1e-13)
    assert ours.rsample((2, 3)).shape == tuple(theirs.rsample((2, 3)).shape)


def test_gradients_of_order_two():
    assert gradcheck(lambda x, loc, scale: Normal(loc, scale).log_prob(x), [X[0], LOC, SCALE], order=2)
    assert gradcheck(lambda loc, scale: Normal(loc, scale).entropy(), [LOC, SCALE], order=2)
    assert gradcheck(lambda loc, scale: Normal(loc, scale).rsample((2,), Generator(3)), [LOC, SCALE], order=2)


def test_log_prob_integrates_to_one():
    d = Normal(tensor([0.3, -1.0], dtype="float64"), tensor([0.5, 2.0], dtype="float64"))
    x = np.linspace(-30, 30, 20001)[:, None]
    # The trapezium rule on an analytic density that vanishes at the ends converges beyond all powers of the step.
    np.testing.assert_allclose(np.trapezoid(np.exp(d.log_prob(x).numpy()), x, axis=0), 1.0, rtol=1e-12)


def test_samples_have_the_moments_and_the_entropy():
    n = 200_000
    d = Normal(tensor([1.0, -2.0], dtype="float64"), tensor([0.5, 3.0], dtype="float64"))
    x = d.sample((n,), Generator(1))
    standard = (x.numpy() - d.loc.numpy()) / d.scale.numpy()
    # Standard errors of mean, variance and kurtosis of N(0, 1): sqrt(1/n), sqrt(2/n), sqrt(96/n).
    assert (np.abs(standard.mean(axis=0)) < 5 / np.sqrt(n)).all()
    assert (np.abs(standard.var(axis=0) - 1) < 5 * np.sqrt(2 / n)).all()
    assert (np.abs((standard**4).mean(axis=0) - 3) < 5 * np.sqrt(96 / n)).all()
    # -log p has variance 1/2 (half a chi-squared of one degree).
    entropy = -d.log_prob(x).numpy().mean(axis=0)
    np.testing.assert_allclose(entropy, d.entropy().numpy(), rtol=0, atol=5 * np.sqrt(0.5 / n))


def test_rsample_gives_the_path_derivative():
    """d/d(loc, scale) E[z^2] = (2 loc, 2 scale)."""
    n = 200_000
    loc, scale = (tensor(np.array(v), requires_grad=True) for v in (0.7, 1.3))
    z = Normal(loc, scale).rsample((n,), Generator(2))
    g_loc, g_scale = grad((z * z).mean(), [loc, scale])
    # Per sample 2z and 2z eps: standard deviations 2 s and 2 sqrt(loc^2 + 2 s^2).
    assert abs(g_loc.item() - 1.4) < 5 * 2.6 / np.sqrt(n)
    assert abs(g_scale.item() - 2.6) < 5 * 2 * np.sqrt(0.49 + 2 * 1.69) / np.sqrt(n)


def test_numbers_make_a_single_float32_distribution():
    d = Normal(0, 1)
    assert d.batch_shape == () and d.loc.dtype == d.scale.dtype == np.float32
    assert repr(d) == "Normal(loc: (), scale: ())"
    assert Normal(np.zeros(3, np.float32), np.ones((2, 1), np.float64)).loc.dtype == np.float64


def test_far_tails_do_not_overflow_before_the_value_does():
    value = Normal(0.0, 1e-15).log_prob(1e4)
    # The square of 1e19 is the largest float32 by a hair less than its root: 5e37.
    assert np.isfinite(value.item()) and value.item() == pytest.approx(-5e37, rel=1e-5)
