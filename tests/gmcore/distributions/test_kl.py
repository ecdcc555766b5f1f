import numpy as np
import pytest

from gmcore import Generator, gradcheck, tensor
from gmcore.distributions import Bernoulli, Normal, kl_divergence, register_kl
from gmcore.distributions import kl as kl_module
from gmcore.errors import ArgumentError

RNG = np.random.default_rng(0)
LOC, SCALE = RNG.standard_normal((2, 4, 3)), RNG.uniform(0.5, 2.0, (2, 4, 3))
P = RNG.uniform(0.05, 0.95, (2, 4, 3))


def logit(p):
    return np.log(p) - np.log1p(-p)


PAIRS = [
    pytest.param(Normal(LOC[0], SCALE[0]), Normal(LOC[1], SCALE[1]), id="normal"),
    pytest.param(Bernoulli(P[0]), Bernoulli(P[1]), id="bernoulli"),
    pytest.param(Bernoulli(P[0]), Bernoulli(logits=logit(P[1])), id="bernoulli-logits"),
]


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_is_the_mean_difference_of_log_probabilities(p, q):
    n = 50_000
    x = p.sample((n,), Generator(1))
    difference = p.log_prob(x).numpy() - q.log_prob(x).numpy()
    error = 5 * difference.std(axis=0) / np.sqrt(n)
    assert (np.abs(difference.mean(axis=0) - kl_divergence(p, q).numpy()) < error).all()


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_is_positive_and_zero_for_equals(p, q):
    assert (kl_divergence(p, q).numpy() > 0).all()
    np.testing.assert_allclose(kl_divergence(p, p).numpy(), 0.0, atol=1e-15)


def test_against_torch():
    torch = pytest.importorskip("torch")
    theirs = torch.distributions
    t = torch.tensor
    expected = theirs.kl_divergence(theirs.Normal(t(LOC[0]), t(SCALE[0])), theirs.Normal(t(LOC[1]), t(SCALE[1])))
    found = kl_divergence(Normal(LOC[0], SCALE[0]), Normal(LOC[1], SCALE[1]))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    expected = theirs.kl_divergence(theirs.Bernoulli(t(P[0])), theirs.Bernoulli(t(P[1])))
    for p in (Bernoulli(P[0]), Bernoulli(logits=logit(P[0]))):
        # A difference of numbers of order 1.
        np.testing.assert_allclose(kl_divergence(p, Bernoulli(P[1])).numpy(), expected, rtol=0, atol=1e-14)


def test_gradients_of_order_two():
    def normal(*parameters):
        return kl_divergence(Normal(*parameters[:2]), Normal(*parameters[2:]))

    assert gradcheck(normal, [LOC[0], SCALE[0], LOC[1], SCALE[1]], order=2)
    inner = 0.2 + 0.6 * P  # finite differences of log need room beside its pole
    assert gradcheck(lambda p, q: kl_divergence(Bernoulli(p), Bernoulli(q)), list(inner), order=2)
    assert gradcheck(
        lambda a, b: kl_divergence(Bernoulli(logits=a), Bernoulli(logits=b)), [logit(P[0]), logit(P[1])], order=2
    )


def test_bernoulli_at_the_ends():
    one, half, zero = (Bernoulli(tensor(np.array(p))) for p in (1.0, 0.5, 0.0))
    assert kl_divergence(one, half).item() == kl_divergence(zero, half).item() == pytest.approx(np.log(2), rel=1e-15)
    assert kl_divergence(half, one).item() == kl_divergence(zero, one).item() == np.inf
    assert kl_divergence(one, one).item() == kl_divergence(zero, zero).item() == 0.0


def test_broadcasts_and_keeps_float32():
    p = Normal(tensor(np.zeros((2, 1), np.float32)), 1.0)
    assert kl_divergence(p, Normal(np.ones(3, np.float32), 2.0)).shape == (2, 3)
    assert kl_divergence(p, Normal(0.0, 1.0)).dtype == np.float32
    b = Bernoulli(logits=tensor(np.zeros(3, np.float32)))
    assert kl_divergence(b, Bernoulli(0.3)).dtype == kl_divergence(Bernoulli(0.3), b).dtype == np.float32


class Special(Normal):
    pass


def test_registering_and_the_nearest_base_class(monkeypatch):
    monkeypatch.setattr(kl_module, "_REGISTERED", dict(kl_module._REGISTERED))
    p, q = Special(0.0, 1.0), Normal(1.0, 1.0)
    assert kl_divergence(p, q).item() == kl_divergence(q, p).item() == pytest.approx(0.5, rel=1e-6)

    @register_kl(Special, Normal)
    def special(p, q):
        return tensor(42.0)

    assert kl_divergence(p, q).item() == kl_divergence(p, p).item() == 42.0
    assert kl_divergence(q, p).item() == pytest.approx(0.5, rel=1e-6)
    with pytest.raises(ArgumentError, match="Special, Normal is registered already"):
        register_kl(Special, Normal)


def test_errors():
    with pytest.raises(ArgumentError, match="no KL divergence is registered for Normal and Bernoulli; .* register_kl"):
        kl_divergence(Normal(0.0, 1.0), Bernoulli(0.5))
    for pair in ((Normal, int), ("Normal", Normal), (Normal(0.0, 1.0), Normal)):
        with pytest.raises(ArgumentError, match="expected two subclasses of Distribution"):
            register_kl(*pair)
