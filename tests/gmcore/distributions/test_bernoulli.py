import numpy as np
import pytest

from gmcore import Generator, gradcheck, tensor
from gmcore.distributions import Bernoulli
from gmcore.errors import ArgumentError, GraphError

RNG = np.random.default_rng(0)
LOGITS = RNG.uniform(-4.0, 4.0, (4, 3))
PROBS = 1.0 / (1.0 + np.exp(-LOGITS))
X = (RNG.random((5, 4, 3)) < 0.5) * 1.0
BOTH = [pytest.param(Bernoulli(PROBS), id="probs"), pytest.param(Bernoulli(logits=LOGITS), id="logits")]


@pytest.mark.parametrize("ours", BOTH)
def test_against_scipy(ours):
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.bernoulli(PROBS)
    np.testing.assert_allclose(ours.log_prob(X).numpy(), theirs.logpmf(X), rtol=1e-12)
    np.testing.assert_allclose(ours.entropy().numpy(), theirs.entropy(), rtol=1e-12)
    np.testing.assert_allclose(ours.mean.numpy(), theirs.mean(), rtol=1e-13)
    np.testing.assert_allclose(ours.variance.numpy(), theirs.var(), rtol=1e-12)
    np.testing.assert_allclose(ours.stddev.numpy(), theirs.std(), rtol=1e-12)


@pytest.mark.parametrize("ours", BOTH)
def test_against_torch(ours):
    torch = pytest.importorskip("torch")
    theirs = torch.distributions.Bernoulli(logits=torch.tensor(LOGITS))
    assert ours.batch_shape == tuple(theirs.batch_shape) and ours.event_shape == tuple(theirs.event_shape)
    np.testing.assert_allclose(ours.log_prob(X).numpy(), theirs.log_prob(torch.tensor(X)), rtol=1e-12)
    np.testing.assert_allclose(ours.entropy().numpy(), theirs.entropy(), rtol=1e-12)
    np.testing.assert_allclose(ours.probs.numpy(), theirs.probs, rtol=1e-13)
    np.testing.assert_allclose(ours.logits.numpy(), theirs.logits, rtol=1e-12)


def test_gradients_of_order_two():
    probs = RNG.uniform(0.2, 0.8, (4, 3))  # finite differences of log need room beside its pole
    assert gradcheck(lambda p: Bernoulli(p).log_prob(X), [probs], order=2)
    assert gradcheck(lambda a: Bernoulli(logits=a).log_prob(X), [LOGITS], order=2)
    assert gradcheck(lambda p: Bernoulli(p).entropy(), [probs], order=2)
    assert gradcheck(lambda a: Bernoulli(logits=a).entropy(), [LOGITS], order=2)
    intensities = RNG.uniform(0.1, 0.9, (4, 3))
    assert gradcheck(lambda x, p: Bernoulli(p, validate_args=False).log_prob(x), [intensities, probs], order=2)


def test_probabilities_add_up_to_one():
    for d in (Bernoulli(PROBS), Bernoulli(logits=LOGITS)):
        total = np.exp(d.log_prob(1.0).numpy()) + np.exp(d.log_prob(0.0).numpy())
        np.testing.assert_allclose(total, 1.0, rtol=1e-14)


def test_probabilities_of_zero_and_one_are_meant():
    p = tensor(np.array([0.0, 1.0]), requires_grad=True)
    d = Bernoulli(p)
    np.testing.assert_array_equal(d.log_prob([0.0, 1.0]).detach().numpy(), [0.0, 0.0])
    np.testing.assert_array_equal(d.log_prob([1.0, 0.0]).detach().numpy(), [-np.inf, -np.inf])
    np.testing.assert_array_equal(d.entropy().detach().numpy(), [0.0, 0.0])
    np.testing.assert_array_equal(d.logits.detach().numpy(), [-np.inf, np.inf])
    np.testing.assert_array_equal(d.sample((50,), Generator(1)).numpy(), np.tile([0.0, 1.0], (50, 1)))
    # d/dp log(1 - p) = -1 at 0 and d/dp log p = 1 at 1.
    d.log_prob([0.0, 1.0]).sum().backward()
    np.testing.assert_array_equal(p.grad.numpy(), [-1.0, 1.0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_far_out_keep_relative_precision(dtype):
    logits = np.array([-60.0, 60.0], dtype)
    d = Bernoulli(logits=logits)
    eps = np.finfo(dtype).eps
    # log(1 + e^-60) = e^-60 to double precision, although 1 + e^-60 rounds to 1.
    np.testing.assert_allclose(d.log_prob([0.0, 1.0]).numpy(), -np.exp(-60.0), rtol=4 * eps)
    np.testing.assert_allclose(d.log_prob([1.0, 0.0]).numpy(), -60.0, rtol=eps)


@pytest.mark.parametrize("ours", BOTH)
def test_samples_are_zeros_and_ones_with_the_mean_and_the_entropy(ours):
    n = 100_000
    x = ours.sample((n,), Generator(1))
    assert set(np.unique(x.numpy())) == {0.0, 1.0}
    error = 5 * ours.stddev.numpy() / np.sqrt(n)
    assert (np.abs(x.numpy().mean(axis=0) - PROBS) < error).all()
    surprise = -ours.log_prob(x).numpy()
    assert (np.abs(surprise.mean(axis=0) - ours.entropy().numpy()) < 5 * surprise.std(axis=0) / np.sqrt(n)).all()


def test_score_function_gives_the_gradient_that_rsample_cannot():
    """E[f(x) d log p(x)/dp] = f(1) - f(0); here by the exact sum over x."""
    p = tensor(np.array(0.3), requires_grad=True)
    d = Bernoulli(p)
    assert not d.has_rsample
    with pytest.raises(GraphError, match="Bernoulli has no rsample.*sample().*score function"):
        d.rsample()
    total = sum(float(np.exp(d.log_prob(x).item())) * f * d.log_prob(x) for x, f in ((0.0, 2.0), (1.0, 5.0)))
    total.backward()
    assert p.grad.item() == pytest.approx(3.0, rel=1e-14)


def test_exactly_one_parameter():
    with pytest.raises(ArgumentError, match="exactly one of probs and logits, got neither"):
        Bernoulli()
    with pytest.raises(ArgumentError, match="exactly one of probs and logits, got both"):
        Bernoulli(0.5, 0.0)
    assert repr(Bernoulli(logits=LOGITS)) == "Bernoulli(logits: (4, 3))"
