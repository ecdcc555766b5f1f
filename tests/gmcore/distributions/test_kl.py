import numpy as np
import pytest

from gmcore import Generator, capture, distributions, gradcheck, tensor
from gmcore.distributions import Bernoulli, Normal, kl_divergence, register_kl
from gmcore.distributions import kl as kl_module
from gmcore.errors import ArgumentError, ShapeError

RNG = np.random.default_rng(0)
LOC, SCALE = RNG.standard_normal((2, 4, 3)), RNG.uniform(0.5, 2.0, (2, 4, 3))
P = RNG.uniform(0.05, 0.95, (2, 4, 3))


def logit(p):
    return np.log(p) - np.log1p(-p)


def random(low, high, *shape):
    return RNG.uniform(low, high, shape)


LOWER = np.tril(random(-0.5, 0.5, 2, 3, 3), -1) + np.eye(3) * random(0.5, 1.5, 2, 1, 3)
# Two sets of parameters of each kind, such that q covers p.
KINDS = {
    "Normal": [{"loc": LOC[i], "scale": SCALE[i]} for i in (0, 1)],
    "Laplace": [{"loc": LOC[i], "scale": SCALE[i]} for i in (0, 1)],
    "Gumbel": [{"loc": LOC[i], "scale": SCALE[i]} for i in (0, 1)],
    "Logistic": [{"loc": LOC[i], "scale": SCALE[i]} for i in (0, 1)],
    "Cauchy": [{"loc": LOC[i], "scale": SCALE[i]} for i in (0, 1)],
    "LogNormal": [{"loc": LOC[i], "scale": 0.3 * SCALE[i]} for i in (0, 1)],
    "HalfNormal": [{"scale": SCALE[i]} for i in (0, 1)],
    "Exponential": [{"rate": SCALE[i]} for i in (0, 1)],
    "Gamma": [{"concentration": 2 * SCALE[i], "rate": SCALE[1 - i]} for i in (0, 1)],
    "Chi2": [{"df": 3 * SCALE[i]} for i in (0, 1)],
    "InverseGamma": [{"concentration": 4 + SCALE[i], "rate": SCALE[1 - i]} for i in (0, 1)],
    "Beta": [{"concentration1": SCALE[i], "concentration0": 2 * SCALE[1 - i]} for i in (0, 1)],
    "Uniform": [{"low": 0.1 - P[0] * i, "high": 0.9 + P[1] * i} for i in (0, 1)],
    "Dirichlet": [{"concentration": 2 * SCALE[i]} for i in (0, 1)],
    "Bernoulli": [{"probs": P[i]} for i in (0, 1)],
    "Binomial": [{"total_count": 7.0, "probs": P[i]} for i in (0, 1)],
    "Geometric": [{"probs": P[i]} for i in (0, 1)],
    "Poisson": [{"rate": 5 * P[i]} for i in (0, 1)],
    "Categorical": [{"probs": P[i]} for i in (0, 1)],
    "OneHotCategorical": [{"logits": LOC[i]} for i in (0, 1)],
    "MultivariateNormal": [
        {"loc": LOC[0, :2], "scale_tril": LOWER},
        {"loc": LOC[1, :2], "covariance_matrix": LOWER[::-1] @ LOWER[::-1].mT},
    ],
    "LowRankMultivariateNormal": [
        {"loc": LOC[i, :2], "cov_factor": LOC[1 - i, :2, :, None], "cov_diag": SCALE[i, :2]} for i in (0, 1)
    ],
}  # fmt: skip
MIXED = [
    *[(p, "Normal") for p in ("Beta", "Exponential", "Gamma", "Gumbel", "HalfNormal", "Laplace", "Logistic",
                              "LogNormal", "Uniform")],
    *[(p, "Exponential") for p in ("Beta", "Gamma", "HalfNormal", "LogNormal")],
    *[(p, "Gamma") for p in ("Beta", "Exponential", "LogNormal", "Chi2")],
    *[(p, "Gumbel") for p in ("Exponential", "Gamma", "Normal", "Uniform")],
    ("Normal", "Laplace"), ("LowRankMultivariateNormal", "MultivariateNormal"),
    ("MultivariateNormal", "LowRankMultivariateNormal"),
]  # fmt: skip
NOT_IN_TORCH = {
    ("HalfNormal", "Normal"), ("LogNormal", "Normal"), ("HalfNormal", "Exponential"), ("LogNormal", "Exponential"),
    ("LogNormal", "Gamma"), ("Logistic", "Normal"),
}  # fmt: skip
"""Their formulas have the mean difference of log probabilities for a check."""
NAMES = [(kind, kind) for kind in KINDS if kind != "Logistic"] + MIXED
INFINITE = [
    ("Normal", "Gamma"),
    ("StudentT", "Uniform"),
    ("Gamma", "Beta"),
    ("LogNormal", "Uniform"),
    ("Poisson", "Binomial"),
]


def pair(names):
    return [getattr(distributions, kind)(**KINDS[kind][i]) for i, kind in enumerate(names)]


PAIRS = [
    *[pytest.param(*pair(names), id="-".join(names)) for names in NAMES],
    pytest.param(Normal(LOC[0], SCALE[0]), Normal(LOC[1], SCALE[1]), id="normal"),
    pytest.param(Bernoulli(P[0]), Bernoulli(P[1]), id="bernoulli"),
    pytest.param(Bernoulli(P[0]), Bernoulli(logits=logit(P[1])), id="bernoulli-logits"),
]


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_is_the_mean_difference_of_log_probabilities(p, q):
    n = 20_000
    x = p.sample((n,), Generator(1))
    difference = p.log_prob(x).numpy() - q.log_prob(x).numpy()
    # Some 400 numbers: a z-score of 5 is exceeded once in 1.7 million. Constant differences have their rounding.
    error = 5 * difference.std(axis=0) / np.sqrt(n) + 1e-12
    assert (np.abs(difference.mean(axis=0) - kl_divergence(p, q).numpy()) < error).all()


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_is_positive_and_zero_for_equals(p, q):
    assert (kl_divergence(p, q).numpy() > 0).all()
    if type(p) is type(q):  # a difference of numbers of order 10
        np.testing.assert_allclose(kl_divergence(p, p).numpy(), 0.0, atol=1e-14)


@pytest.mark.parametrize("names", [names for names in NAMES if names not in NOT_IN_TORCH], ids="-".join)
def test_against_torch(names):
    torch = pytest.importorskip("torch")
    p, q = pair(names)

    def convert(x):
        return torch.tensor(x) if isinstance(x, np.ndarray) else torch.tensor(x, dtype=torch.float64)

    theirs = [
        getattr(torch.distributions, kind)(**{name: convert(x) for name, x in KINDS[kind][i].items()})
        for i, kind in enumerate(names)
    ]
    expected = torch.distributions.kl_divergence(*theirs)
    # Differences of numbers of order 10.
    np.testing.assert_allclose(kl_divergence(p, q).numpy(), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_gradients(names):
    kinds = [getattr(distributions, kind) for kind in names]
    keys = [list(KINDS[kind][i]) for i, kind in enumerate(names)]
    values = [x for i, kind in enumerate(names) for x in KINDS[kind][i].values()]
    fixed = [i for i, key in enumerate(keys[0] + keys[1]) if key == "total_count"]

    def divergence(*given):
        given = [values[i] if i in fixed else x for i, x in enumerate(given)]
        n = len(keys[0])
        p, q = (kind(**dict(zip(k, v, strict=True)), validate_args=False)
                for kind, k, v in zip(kinds, keys, (given[:n], given[n:]), strict=True))  # fmt: skip
        return kl_divergence(p, q)

    inputs = [np.asarray(0) if i in fixed else x for i, x in enumerate(values)]
    assert gradcheck(divergence, inputs, order=1, directions=1, rtol=1e-5)


@pytest.mark.parametrize("names", INFINITE, ids="-".join)
def test_is_infinite_where_q_excludes_what_p_allows(names):
    p, q = (getattr(distributions, kind)(**(KINDS[kind][0] if kind in KINDS else {"df": SCALE[0]})) for kind in names)
    assert (kl_divergence(p, q).numpy() == np.inf).all()
    assert (kl_divergence(*pair(("Uniform", "Uniform"))[::-1]).numpy() == np.inf).all()
    wider, narrower = (distributions.Categorical(np.array(x)) for x in ([0.5, 0.5], [1.0, 0.0]))
    assert kl_divergence(wider, narrower).item() == np.inf
    assert kl_divergence(narrower, wider).item() == pytest.approx(np.log(2), rel=1e-15)


def test_independent_sums_over_its_axes():
    p, q = (distributions.Independent(Normal(LOC[i], SCALE[i]), 1) for i in (0, 1))
    expected = kl_divergence(p.base_dist, q.base_dist).numpy().sum(-1)
    np.testing.assert_allclose(kl_divergence(p, q).numpy(), expected, rtol=1e-14)
    with pytest.raises(ArgumentError, match="1 and 2 reinterpreted axes"):
        kl_divergence(p, distributions.Independent(q.base_dist, 2))


def test_sizes_that_differ_are_refused():
    p, q = (distributions.Categorical(np.ones(n)) for n in (3, 4))
    with pytest.raises(ShapeError, match="3 classes and 4"):
        kl_divergence(p, q)
    p, q = (distributions.Binomial(n, 0.5) for n in (3, 4))
    with pytest.raises(ArgumentError, match="no closed form where total_count of p is below"):
        kl_divergence(p, q)
    assert kl_divergence(q, p).item() == np.inf


def test_a_captured_step_looks_at_the_totals():
    step = capture(lambda n: kl_divergence(distributions.Binomial(n, np.float64(0.5)), distributions.Binomial(4, 0.25)))
    assert step(tensor(4.0)).item() == step(tensor(4.0)).item() == step(tensor(4.0)).item() > 0.0
    with pytest.raises(ArgumentError, match="no closed form where total_count of p is below"):
        step(tensor(3.0))


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
