import numpy as np
import pytest

import gmcore
from gmcore import Generator, gradcheck, ops
from gmcore.distributions import OneHotCategorical, RelaxedBernoulli, RelaxedOneHotCategorical, gumbel_softmax
from gmcore.errors import ArgumentError, DtypeError, ShapeError

RNG = np.random.default_rng(0)
PROBS = RNG.dirichlet(np.full(4, 3.0), 2)


def test_gumbel_softmax_chooses_with_the_probabilities() -> None:
    """Whatever the temperature: within 5 standard errors."""
    n, logits = 20_000, np.log(PROBS)
    for tau in (0.3, 2.0):
        y = gumbel_softmax(np.broadcast_to(logits, (n, 2, 4)), tau, hard=True, generator=Generator(1)).numpy()
        assert set(np.unique(y)) == {0.0, 1.0} and (y.sum(-1) == 1).all()
        assert (np.abs(y.mean(0) - PROBS) < 5 * np.sqrt(PROBS * (1 - PROBS) / n)).all()


def test_gumbel_softmax_hard_has_the_gradient_of_soft() -> None:
    logits, key = gmcore.tensor(np.log(PROBS), requires_grad=True), Generator(2).draw()
    soft, hard = (gumbel_softmax(logits, 0.5, hard=hard, key=key) for hard in (False, True))
    assert (soft.detach().numpy().argmax(-1) == hard.detach().numpy().argmax(-1)).all()
    weights = RNG.normal(size=(2, 4))
    np.testing.assert_array_equal(*[gmcore.grad(ops.sum(weights * y), logits).numpy() for y in (soft, hard)])
    assert gradcheck(lambda a, tau: gumbel_softmax(a, tau, key=key), [np.log(PROBS), np.array(0.7)], order=2)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gumbel_softmax_along_an_axis(axis: int) -> None:
    x = np.zeros((3, 4, 5), np.float32)
    for hard in (False, True):
        y = gumbel_softmax(x, 0.5, hard, axis, generator=Generator(1))
        assert y.dtype == np.float32 and y.shape == x.shape
        np.testing.assert_allclose(y.numpy().sum(axis), 1.0, rtol=1e-6)


def test_gumbel_softmax_errors() -> None:
    with pytest.raises(ArgumentError, match="gumbel_softmax: the temperature must be positive"):
        gumbel_softmax(np.zeros(3), 0.0)
    with pytest.raises(DtypeError, match="gumbel_softmax: expected floating logits, got int64"):
        gumbel_softmax(np.zeros(3, int))


def test_densities_integrate_to_one() -> None:
    p = (np.arange(100_000) + 0.5) / 100_000
    # The midpoint rule; near the ends the density at a temperature below 1 is x^(t - 1): an error of h^t / t.
    for t, tolerance in ((0.7, 3e-3), (1.0, 1e-6), (2.0, 1e-6)):
        density = np.exp(RelaxedBernoulli(t, np.array(0.3)).log_prob(p).numpy())
        assert density.mean() == pytest.approx(1.0, abs=tolerance)
        two = RelaxedOneHotCategorical(t, np.array([0.3, 0.7])).log_prob(np.stack([p, 1 - p], -1)).numpy()
        np.testing.assert_allclose(np.exp(two), density, rtol=1e-9)


def test_cold_samples_are_those_of_the_categorical() -> None:
    x = RelaxedOneHotCategorical(1e-3, PROBS).sample((500,), Generator(4)).numpy()
    assert (x.max(-1) > 0.99).mean() > 0.98
    d = RelaxedOneHotCategorical(0.1, PROBS.astype(np.float32))
    assert np.isfinite(d.log_prob(d.sample((20_000,), Generator(5))).numpy()).all()
    d = RelaxedBernoulli(0.1, np.float32([0.2, 0.9]))
    y = d.sample((20_000,), Generator(5))
    assert np.isfinite(d.log_prob(y).numpy()).all()
    assert (np.abs((y.numpy() > 0.5).mean(0) - [0.2, 0.9]) < 5 * 0.5 / np.sqrt(20_000)).all()


def test_each_temperature_has_noise_of_its_own() -> None:
    d = RelaxedBernoulli(np.array([[0.5], [1.0]]), logits=np.zeros(3))
    assert d.batch_shape == (2, 3) and d.expand((4, 2, 3)).sample().shape == (4, 2, 3)
    noise = d.base_dist.sample((2000,), Generator(7)).numpy().reshape(2000, 6)
    assert np.abs(np.corrcoef(noise.T) - np.eye(6)).max() < 5 / np.sqrt(2000)
    with pytest.raises(ShapeError, match=r"expected one temperature, got shape \(2, 1\)"):
        RelaxedOneHotCategorical(np.array([[0.5], [1.0]]), PROBS)


def test_straight_through_passes_its_gradient_to_the_probabilities() -> None:
    from gmcore.distributions import OneHotCategoricalStraightThrough

    logits = gmcore.tensor(np.log(PROBS), requires_grad=True)
    d, weights = OneHotCategoricalStraightThrough(logits=logits), RNG.normal(size=(2, 4))
    y = d.rsample((), Generator(6))
    np.testing.assert_array_equal(y.detach().numpy(), OneHotCategorical(PROBS).sample((), Generator(6)).numpy())
    found = gmcore.grad(ops.sum(weights * y), logits, retain_graph=True).numpy()
    np.testing.assert_array_equal(found, gmcore.grad(ops.sum(weights * d.probs), logits).numpy())
