"""Every distribution against SciPy, PyTorch, its own samples and finite differences: generated from one table."""

import contextlib
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import gmcore
import gmkernels
from gmcore import Generator, Tensor, distributions, gradcheck, ops
from gmcore.errors import ArgumentError, DeviceError, GmcoreError, GraphError, ShapeError

special, stats = pytest.importorskip("scipy.special"), pytest.importorskip("scipy.stats")
RNG = np.random.default_rng(0)
D = 3


def numbers(low: float, high: float, *shape: int) -> np.ndarray:
    return RNG.uniform(low, high, shape or (2,))


LOWER = np.tril(numbers(-0.5, 0.5, 2, D, D), -1) + np.eye(D) * numbers(0.5, 1.5, 2, 1, D)
COVARIANCE = LOWER @ np.swapaxes(LOWER, -1, -2)
LOC, SCALE, PROBS = numbers(-1.0, 1.0), numbers(0.5, 1.5), numbers(0.2, 0.8)
CLASSES = RNG.dirichlet(np.full(4, 3.0), 2)


class Row(NamedTuple):
    """A distribution: its class here and in PyTorch, its parameters, and its counterpart in SciPy, if it has one."""

    kind: str
    parameters: dict[str, Any]
    scipy: Callable[..., Any] | None = None
    bad: dict[str, Any] = {}
    """A parameter outside its constraint, and"""
    outside: Any = None
    """a value outside the support."""

    def make(self, validate_args: bool | None = None, **parameters: Any) -> Any:
        return getattr(distributions, self.kind)(**(self.parameters | parameters), validate_args=validate_args)

    @property
    def differentiable(self) -> dict[str, np.ndarray]:
        """The parameters with a gradient: counts and trials have none."""
        arrays = {k: x for k, x in self.parameters.items() if isinstance(x, np.ndarray) and x.dtype.kind == "f"}
        return {k: x for k, x in arrays.items() if not (k == "total_count" and self.kind == "Binomial")}

    def of_dtype(self, dtype: str) -> dict[str, np.ndarray]:
        return {k: x.astype(dtype) for k, x in self.parameters.items() if isinstance(x, np.ndarray)}


def loc_scale(kind: str, scipy: Any) -> Row:
    return Row(kind, {"loc": LOC, "scale": SCALE}, scipy, {"scale": 0.0}, np.nan)


TABLE = {
    "Normal": loc_scale("Normal", stats.norm),
    "Laplace": loc_scale("Laplace", stats.laplace),
    "Logistic": loc_scale("Logistic", stats.logistic),
    "Gumbel": loc_scale("Gumbel", stats.gumbel_r),
    "Cauchy": loc_scale("Cauchy", stats.cauchy),
    "StudentT": Row(
        "StudentT", {"df": np.array([4.5, 30.0]), "loc": LOC, "scale": SCALE}, stats.t, {"df": 0.0}, np.inf
    ),
    "StudentT heavy": Row("StudentT", {"df": np.array([0.7, 1.5])}, stats.t, {"scale": -1.0}, np.inf),
    "HalfNormal": Row("HalfNormal", {"scale": SCALE}, lambda scale: stats.halfnorm(0, scale), {"scale": 0.0}, -1.0),
    "LogNormal": Row("LogNormal", {"loc": LOC, "scale": 0.5 * SCALE},
                     lambda loc, scale: stats.lognorm(scale, 0, np.exp(loc)), {"scale": 0.0}, -1.0),
    "Uniform": Row("Uniform", {"low": LOC, "high": LOC + SCALE},
                   lambda low, high: stats.uniform(low, high - low), {"high": -2.0}, 7.0),
    "Exponential": Row("Exponential", {"rate": SCALE}, lambda rate: stats.expon(0, 1 / rate), {"rate": 0.0}, -1.0),
    "Gamma": Row("Gamma", {"concentration": np.array([0.4, 12.0]), "rate": SCALE},
                 lambda concentration, rate: stats.gamma(concentration, 0, 1 / rate), {"rate": 0.0}, -1.0),
    "Chi2": Row("Chi2", {"df": np.array([1.5, 9.0])}, stats.chi2, {"df": 0.0}, -1.0),
    "InverseGamma": Row("InverseGamma", {"concentration": np.array([5.5, 12.0]), "rate": SCALE},
                        lambda concentration, rate: stats.invgamma(concentration, 0, rate), {"rate": 0.0}, 0.0),
    "Beta": Row("Beta", {"concentration1": np.array([0.5, 4.0]), "concentration0": np.array([1.5, 2.5])},
                lambda concentration1, concentration0: stats.beta(concentration1, concentration0),
                {"concentration1": 0.0}, 1.5),
    "Dirichlet": Row("Dirichlet", {"concentration": np.array([[0.5, 1.5, 2.0], [3.0, 4.0, 2.0]])}, None,
                     {"concentration": np.zeros(3)}, np.ones(3)),
    "Bernoulli": Row("Bernoulli", {"probs": PROBS}, lambda probs: stats.bernoulli(probs), {"probs": 1.5}, 0.5),
    "Bernoulli logits": Row("Bernoulli", {"logits": LOC}, None, {"logits": np.inf}, 2.0),
    "Categorical": Row("Categorical", {"probs": CLASSES}, None, {"probs": np.zeros(4)}, 4),
    "Categorical logits": Row("Categorical", {"logits": np.log(CLASSES)}, None, {"logits": np.full(4, np.nan)}, -1),
    "OneHotCategorical": Row("OneHotCategorical", {"probs": CLASSES}, None, {"probs": -np.ones(4)}, np.ones(4)),
    "OneHotCategorical logits": Row("OneHotCategorical", {"logits": np.log(CLASSES)}, None, {}, np.zeros(4)),
    "OneHotCategoricalStraightThrough": Row("OneHotCategoricalStraightThrough", {"probs": CLASSES}),
    "Binomial": Row("Binomial", {"total_count": np.array([5.0, 90.0]), "probs": PROBS},
                    lambda total_count, probs: stats.binom(total_count, probs), {"total_count": 2.5}, 91.0),
    "Binomial logits": Row("Binomial", {"total_count": 7, "logits": LOC}, None, {"logits": np.nan}, 8.0),
    "Poisson": Row("Poisson", {"rate": np.array([0.7, 25.0])}, lambda rate: stats.poisson(rate), {"rate": -1.0}, 0.5),
    "Geometric": Row("Geometric", {"probs": PROBS}, lambda probs: stats.geom(probs, -1), {"probs": 0.0}, -1.0),
    "Geometric logits": Row("Geometric", {"logits": LOC}, None, {"logits": np.inf}, -1.0),
    "NegativeBinomial": Row("NegativeBinomial", {"total_count": np.array([1.5, 20.0]), "probs": PROBS},
                            lambda total_count, probs: stats.nbinom(total_count, 1 - probs), {"probs": 1.0}, -1.0),
    "Multinomial": Row("Multinomial", {"total_count": 6, "probs": CLASSES}, None, {"total_count": -1}, np.ones(4)),
    "MultivariateNormal": Row(
        "MultivariateNormal", {"loc": numbers(-1, 1, 2, D), "covariance_matrix": COVARIANCE}, None,
        {"covariance_matrix": -np.eye(D)}, np.full(D, np.nan)),
    "MultivariateNormal tril": Row("MultivariateNormal", {"loc": numbers(-1, 1, 2, D), "scale_tril": LOWER}, None,
                                   {"scale_tril": np.ones((D, D))}, np.full(D, np.nan)),
    "MultivariateNormal precision": Row(
        "MultivariateNormal", {"loc": numbers(-1, 1, 2, D), "precision_matrix": COVARIANCE}, None,
        {"precision_matrix": np.zeros((D, D))}, np.full(D, np.nan)),
    "LowRankMultivariateNormal": Row(
        "LowRankMultivariateNormal",
        {"loc": numbers(-1, 1, 2, D), "cov_factor": numbers(-1, 1, 2, D, 2), "cov_diag": numbers(0.5, 1.5, 2, D)}, None,
        {"cov_diag": np.zeros(D)}, np.full(D, np.nan)),
    "RelaxedBernoulli": Row("RelaxedBernoulli", {"temperature": 0.7, "probs": PROBS}, None, {"probs": 1.0}, 1.5),
    "LogitRelaxedBernoulli": Row("LogitRelaxedBernoulli", {"temperature": 0.7, "logits": LOC}, None,
                                 {"temperature": 0.0}, np.nan),
    "RelaxedOneHotCategorical": Row("RelaxedOneHotCategorical", {"temperature": 0.7, "probs": CLASSES}, None,
                                    {"temperature": -1.0}, np.ones(4)),
}  # fmt: skip
NOT_IN_TORCH = {"Logistic"}
IMPLICIT = {"Gamma", "Chi2", "InverseGamma", "Beta", "Dirichlet", "StudentT"}
each = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
QUANTITIES = ("mean", "variance", "stddev", "mode")

_COUNTS = "of counts: a sum over the terms up to each"
_VECTORS = "of vectors: no order to go up by"
_INCOMPLETE_BETA = "the incomplete beta function is no operation here"
_INVERSE = "the incomplete gamma function has no inverse in closed form"
_RELAXED = "PyTorch has none either"
WITHOUT: dict[str, dict[str, str]] = {
    "StudentT": dict.fromkeys(("cdf", "icdf"), _INCOMPLETE_BETA),
    "Beta": dict.fromkeys(("cdf", "icdf"), _INCOMPLETE_BETA),
    **dict.fromkeys(("Gamma", "Chi2", "InverseGamma"), {"icdf": _INVERSE}),
    "Uniform": {"mode": "every value is one"},
    **dict.fromkeys(("Bernoulli", "Binomial", "Geometric"), dict.fromkeys(("cdf", "icdf"), _COUNTS)),
    **dict.fromkeys(("Poisson", "NegativeBinomial"), dict.fromkeys(("cdf", "icdf", "entropy"), _COUNTS)),
    "Categorical": dict.fromkeys(("cdf", "icdf", "mean", "variance", "stddev"), "the classes are names, not numbers"),
    "Multinomial": dict.fromkeys(("cdf", "icdf", "entropy", "mode"), _VECTORS),
    **dict.fromkeys(
        ("Dirichlet", "OneHotCategorical", "OneHotCategoricalStraightThrough", "MultivariateNormal",
         "LowRankMultivariateNormal"), dict.fromkeys(("cdf", "icdf"), _VECTORS),
    ),
    **dict.fromkeys(
        ("RelaxedBernoulli", "LogitRelaxedBernoulli", "RelaxedOneHotCategorical"),
        dict.fromkeys((*QUANTITIES, "entropy", "cdf", "icdf"), _RELAXED),
    ),
}  # fmt: skip
"""The families without a formula of something, and why."""


def reparameterised(row: Row) -> bool:
    return row.make().has_rsample and row.kind != "OneHotCategoricalStraightThrough"


def each_where(condition: Callable[[Row], Any]) -> Any:
    chosen = {name: row for name, row in TABLE.items() if condition(row)}
    return pytest.mark.parametrize("row", chosen.values(), ids=chosen)


def quantity(d: Any, name: str, *values: Any) -> Any:
    """A property, or a method at values; None, and an error that says so, for exactly what is in WITHOUT."""
    if name in WITHOUT.get(type(d).__name__, {}):
        formula = name.replace("stddev", "variance")
        with pytest.raises(ArgumentError, match=f"{type(d).__name__} has no closed form of its {formula}") as caught:
            evaluated(d, name, *values)
        assert __file__ in str(caught.value)
        return None
    return evaluated(d, name, *values)


def evaluated(d: Any, name: str, *values: Any) -> Any:
    found = getattr(d, name)
    return found(*values) if callable(found) else found


def test_the_table_has_every_distribution() -> None:
    combined = {"Distribution", "LocationScale", "Independent", "MixtureSameFamily", "TransformedDistribution",
                "ExpRelaxedCategorical"}  # fmt: skip
    kinds = {name for name in distributions.__all__ if isinstance(getattr(distributions, name), type)}
    kinds = {name for name in kinds if issubclass(getattr(distributions, name), distributions.Distribution)}
    assert {row.kind for row in TABLE.values()} == kinds - combined


@each
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shapes_and_dtypes(row: Row, dtype: str) -> None:
    given = {k: gmcore.tensor(x.astype(dtype), requires_grad=True) for k, x in row.differentiable.items()}
    d = row.make(**row.of_dtype(dtype) | given)
    whole = d.batch_shape + d.event_shape
    assert d.batch_shape == (2,)
    for sample_shape in ((), (4,), (0,), (2, 3)):
        x = d.sample(sample_shape, Generator(1))
        assert x.shape == sample_shape + whole and not x.requires_grad
        assert x.dtype == ("int64" if row.kind == "Categorical" else dtype)
        log_prob = d.log_prob(x)
        assert log_prob.shape == sample_shape + d.batch_shape and log_prob.dtype == dtype
    assert d.sample(4, Generator(1)).shape == (4, *whole)
    for name in (*QUANTITIES, "entropy"):
        found = quantity(d, name)
        if found is not None and (row.kind, name) != ("Categorical", "mode"):
            assert found.shape == (d.batch_shape if name == "entropy" else whole) and found.dtype == dtype
    ys = [ops.sum(d.log_prob(d.sample((), Generator(2))))]
    if d.has_rsample:
        x = d.rsample((3,), Generator(1))
        assert x.dtype == dtype and x.requires_grad and x.shape == (3, *whole)
        np.testing.assert_array_equal(x.detach().numpy(), d.sample((3,), Generator(1)).numpy())
        ys.append(ops.sum(x))
    else:
        with pytest.raises(GraphError, match=f"{row.kind} has no rsample: .*score function"):
            d.rsample()
    for y in ys:
        for g, x in zip(gmcore.grad(y, given.values(), fill=True, retain_graph=True), given.values()):
            assert g.shape == x.shape and g.dtype == dtype


@each
def test_float32_is_float64_but_for_rounding(row: Row) -> None:
    single = row.of_dtype("float32")
    double = {k: x.astype(np.float64) for k, x in single.items()}
    x, y = (row.make(False, **given).sample((50,), Generator(4)).numpy() for given in (single, double))
    # The same words; a few roundings, of exponents up to 15 in logarithms of gamma numbers. A count may go the other
    # way where its word falls between two roundings of a probability: not in these.
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=3e-6)


@each_where(lambda row: row.scipy)
def test_against_scipy(row: Row) -> None:
    d, theirs = row.make(), row.scipy(**row.parameters)
    x = d.sample((6,), Generator(1)).numpy()
    log_density = theirs.logpmf if hasattr(theirs.dist, "pmf") else theirs.logpdf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # SciPy's moments that do not exist
        mean, variance = np.broadcast_arrays(theirs.mean(), theirs.var(), np.zeros(2))[:2]
    np.testing.assert_allclose(d.log_prob(x).numpy(), log_density(x), rtol=1e-11, atol=1e-12)
    for found, expected in ((d.mean.numpy(), mean), (d.variance.numpy(), variance)):
        # Of those that do not exist, SciPy and PyTorch say infinity or NaN with different reasons.
        exists = np.isfinite(expected)
        np.testing.assert_array_equal(np.isfinite(found), exists)
        np.testing.assert_allclose(found[exists], expected[exists], rtol=1e-11, atol=1e-15)
    if (found := quantity(d, "entropy")) is not None:  # SciPy sums counts until 1e-10 is left
        np.testing.assert_allclose(found.numpy(), theirs.entropy() + np.zeros(2), rtol=1e-8, atol=1e-12)
    if (cdf := quantity(d, "cdf", x)) is not None:
        np.testing.assert_allclose(cdf.numpy(), theirs.cdf(x), rtol=1e-10, atol=1e-14)
    shares = np.array([[0.1], [0.5], [0.9]])
    if (icdf := quantity(d, "icdf", shares)) is not None:
        np.testing.assert_allclose(icdf.numpy(), theirs.ppf(shares), rtol=1e-10, atol=1e-14)


@each_where(lambda row: row.kind not in NOT_IN_TORCH)
def test_against_torch(row: Row) -> None:
    torch = pytest.importorskip("torch")
    d = row.make()

    def convert(x: Any) -> Any:
        return torch.tensor(x) if isinstance(x, np.ndarray) else x

    theirs = getattr(torch.distributions, row.kind if row.kind != "LogitRelaxedBernoulli" else "RelaxedBernoulli")
    if row.kind == "LogitRelaxedBernoulli":
        theirs = torch.distributions.relaxed_bernoulli.LogitRelaxedBernoulli
    theirs = theirs(**{k: convert(x) for k, x in row.parameters.items() if k != "temperature"} | (
        {"temperature": torch.tensor(row.parameters["temperature"], dtype=torch.float64)}
        if "temperature" in row.parameters else {}
    ))  # fmt: skip
    assert d.batch_shape == tuple(theirs.batch_shape) and d.event_shape == tuple(theirs.event_shape)
    assert d.has_rsample == (theirs.has_rsample or row.kind == "LogitRelaxedBernoulli")  # theirs has it all the same
    x = d.sample((6,), Generator(1)).numpy()
    # Products and sums of some 20 terms; log(1 - x) of PyTorch near 0.
    np.testing.assert_allclose(d.log_prob(x).numpy(), theirs.log_prob(torch.tensor(x)), rtol=1e-10, atol=1e-11)
    for name in (*QUANTITIES, "entropy"):
        found = quantity(d, name)
        if found is None or (row.kind, name) == ("Beta", "mode"):  # theirs is an end of [0, 1] where there is none
            continue
        if (row.kind, name) == ("Dirichlet", "mode"):
            found = found[1:]  # likewise
        if (row.kind, name) == ("Binomial", "entropy") and np.ndim(row.parameters["total_count"]):
            with pytest.raises(NotImplementedError, match="Inhomogeneous total count"):
                theirs.entropy()
            continue
        expected = evaluated(theirs, name).numpy()[-len(found.numpy()) :]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12, err_msg=name)
    for name, values in (("cdf", x), ("icdf", np.array([[0.1], [0.5], [0.9]]))):
        if (found := quantity(d, name, values)) is not None:
            expected = getattr(theirs, name)(torch.tensor(values))
            np.testing.assert_allclose(found.numpy(), expected, rtol=1e-8, atol=1e-12, err_msg=name)


N = 20_000
# All bounds of z-scores are 5: some 300 numbers are compared, each beyond it once in 1.7 million of other seeds, had it
# a normal distribution; the means of 20,000 numbers with the tails of these have.
Z = 5.0


def within(sample: np.ndarray, expected: np.ndarray) -> None:
    """The mean over the first axis is `expected`, within Z standard errors."""
    error = Z * sample.std(axis=0) / np.sqrt(len(sample)) + 1e-9
    assert (np.abs(sample.mean(axis=0) - expected) < error).all(), (sample.mean(axis=0), expected, error)


@each_where(lambda row: row.kind != "Cauchy" and row.parameters.get("df", [9])[0] > 2 or row.kind == "Chi2")
def test_samples_have_the_moments_and_the_entropy(row: Row) -> None:
    d = row.make()
    x = d.sample((N,), Generator(11))
    mean, variance, entropy = (quantity(d, name) for name in ("mean", "variance", "entropy"))
    if mean is not None:
        within(x.numpy(), mean.numpy())
        within((x.numpy() - mean.numpy()) ** 2, variance.numpy())
    if entropy is not None:
        within(-d.log_prob(x).numpy(), entropy.numpy())


OF_NAMES_OR_COUNTS = {"Bernoulli", "Categorical", "Binomial", "Poisson", "Geometric", "NegativeBinomial"}
RELAXED_CDF: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "RelaxedBernoulli": lambda x: special.expit(0.7 * special.logit(x) - special.logit(PROBS)),
    "LogitRelaxedBernoulli": lambda x: special.expit(0.7 * x - LOC),
}
"""The temperature is 0.7: x = (logits + a number of the logistic distribution) / 0.7, or its sigmoid."""


@each_where(lambda row: row.kind not in OF_NAMES_OR_COUNTS and not row.make().event_shape)
def test_samples_have_the_distribution_function(row: Row) -> None:
    """Kolmogorov & Smirnov: sqrt(n) sup|F_n - F| is above 2.7 once in 10^6 of other seeds."""
    d = row.make()
    x = d.sample((N,), Generator(12)).numpy()
    cdf = quantity(d, "cdf", x)
    if cdf is None:
        u = RELAXED_CDF[row.kind](x) if row.scipy is None else row.scipy(**row.parameters).cdf(x)
    else:
        u = cdf.numpy()
    u = np.sort(u, axis=0)
    rank = np.arange(1, N + 1)[:, None] / N
    assert np.maximum(rank - u, u - rank + 1 / N).max() * np.sqrt(N) < 2.7


@each_where(lambda row: row.scipy and hasattr(row.scipy(**row.parameters).dist, "pmf"))
def test_counts_have_their_probabilities(row: Row) -> None:
    d, theirs = row.make(), row.scipy(**row.parameters)
    x = d.sample((N,), Generator(13)).numpy()
    values = np.arange(0, 60)[:, None]
    expected = theirs.pmf(values)
    found = (x[:, None] == values).mean(axis=0)
    error = Z * np.sqrt(expected * (1 - expected) / N) + 12 / N  # rare counts come by ones, not by halves
    assert (np.abs(found - expected) < error).all()


@each
def test_derivatives_of_log_prob_and_entropy(row: Row) -> None:
    x = row.make().sample((2,), Generator(3)).numpy()
    names = list(row.differentiable)

    def log_prob(*parameters: Tensor) -> Tensor:
        return row.make(False, **dict(zip(names, parameters, strict=True))).log_prob(x)

    assert gradcheck(log_prob, list(row.differentiable.values()), order=2, directions=1)
    if quantity(row.make(), "entropy") is not None:
        assert gradcheck(
            lambda *p: row.make(False, **dict(zip(names, p, strict=True))).entropy(),
            list(row.differentiable.values()),
            order=2,
            directions=1,
        )


@each_where(lambda row: reparameterised(row) and row.kind not in IMPLICIT)
def test_derivatives_of_rsample_at_fixed_noise(row: Row) -> None:
    names = list(row.differentiable)

    def sample(*parameters: Tensor) -> Tensor:
        return row.make(False, **dict(zip(names, parameters, strict=True))).rsample((3,), Generator(5))

    assert gradcheck(sample, list(row.differentiable.values()), order=2, directions=1)


@each_where(lambda row: reparameterised(row) and row.kind in {"Gamma", "Chi2", "InverseGamma"})
def test_implicit_derivatives_keep_the_probability(row: Row) -> None:
    """F(x(theta); theta) is constant, by the derivatives of the cdf in x and theta, which finite differences check."""
    given = {k: gmcore.tensor(x, requires_grad=True) for k, x in row.differentiable.items()}
    d = row.make(**given)
    for seed in range(20):
        gradients = gmcore.grad(ops.sum(d.cdf(d.rsample((), Generator(seed)))), given.values())
        for g in gradients:
            np.testing.assert_allclose(g.numpy(), 0.0, atol=1e-12)


def has_moments(row: Row) -> bool:
    with gmkernels.use("reference"):  # asked while tests are collected, by every process: compile nothing for it
        variance = quantity(row.make(), "variance")
    return variance is not None and bool(np.isfinite(variance.numpy()).all())


@each_where(lambda row: reparameterised(row) and has_moments(row))
def test_rsample_gives_the_gradients_of_the_moments(row: Row) -> None:
    """d/dtheta of E[x] and E[x^2] = var + mean^2, from a mean of derivatives along the samples."""
    names, n = list(row.differentiable), 5000
    once = [gmcore.tensor(x, requires_grad=True) for x in row.differentiable.values()]
    many = [
        gmcore.tensor(np.broadcast_to(x, (n, *x.shape)).copy(), requires_grad=True) for x in row.differentiable.values()
    ]
    one, all_of_them = (row.make(**dict(zip(names, p, strict=True))) for p in (once, many))
    x = all_of_them.rsample((), Generator(21))
    weights = np.linspace(1.0, 2.0, x[0].size).reshape(x.shape[1:])  # components apart: a sum of a simplex is constant
    for of_samples, exact in (
        (ops.sum(weights * x), ops.sum(weights * one.mean)),
        (ops.sum(weights * x * x), ops.sum(weights * (one.variance + one.mean * one.mean))),
    ):
        found = gmcore.grad(of_samples, many, fill=True, retain_graph=True)
        expected = gmcore.grad(exact, once, fill=True, retain_graph=True)
        for name, g, e in zip(names, found, expected, strict=True):
            if name not in ("covariance_matrix", "precision_matrix"):  # E[x^2] sees the symmetric part only
                within(g.numpy(), e.numpy())


@each
def test_expand_repeats_the_batch(row: Row) -> None:
    d = row.make()
    wide = d.expand((3, 2))
    assert wide.batch_shape == (3, 2) and wide.event_shape == d.event_shape and type(wide) is type(d)
    x = d.sample((3,), Generator(6))
    np.testing.assert_allclose(wide.log_prob(x).numpy(), d.log_prob(x).numpy(), rtol=1e-14)
    assert wide.sample((4,), Generator(1)).shape == (4, 3, 2, *d.event_shape)
    with pytest.raises(ShapeError):
        d.expand((5,))


@each_where(lambda row: row.bad)
def test_bad_parameters_are_named(row: Row) -> None:
    (name,) = row.bad
    what = "temperature" if name == "temperature" else f"{name} must be"
    with pytest.raises(ArgumentError, match=rf"\w+: .*{what} .*, got"):
        row.make(**row.bad)


@each_where(lambda row: row.outside is not None)
def test_values_outside_the_support_are_named(row: Row) -> None:
    with pytest.raises(ArgumentError, match=rf"{row.kind}: value must be .*, got"):
        row.make().log_prob(np.asarray(row.outside))


@each
def test_values_of_another_shape_are_refused(row: Row) -> None:
    d = row.make(False)
    for shape in ((5,), (2, 7), (*d.batch_shape, *(n + 1 for n in d.event_shape), 3)):
        with pytest.raises(ShapeError, match=rf"{row.kind}: a value of shape .* does not broadcast"):
            d.log_prob(np.ones(shape))


def test_numpy_integers_are_lengths_and_counts() -> None:
    n = np.int64(3)
    d = distributions.Normal(0.0, 1.0)
    assert d.sample(n).shape == d.sample((n,)).shape == d.sample(np.array([3])).shape == ops.normal(n).shape == (3,)
    assert distributions.Categorical(np.ones(2)).sample(n).shape == (3,)
    assert distributions.Multinomial(n, np.ones(2)).sample().numpy().sum() == 3
    assert ops.reshape(np.zeros(3), n).shape == ops.tile(np.zeros(1), n).shape == (3,)
    for wrong in (2.5, "a", (1.5,)):
        with pytest.raises(ShapeError, match="a shape is an integer or several, got"):
            d.sample(wrong)


def test_exactly_one_of_probs_and_logits() -> None:
    for kind in ("Bernoulli", "Geometric", "Categorical", "OneHotCategorical"):
        for given, found in (({}, "neither"), ({"probs": [0.5], "logits": [0.5]}, "both")):
            with pytest.raises(GmcoreError, match=f"{kind}: expected exactly one of probs and logits, got {found}"):
                getattr(distributions, kind)(**given)


def on_a_device(row: Row, device: str) -> list[np.ndarray]:
    """A sample, what there is in closed form, the log-probability of the sample and its gradients."""
    arrays = {k: x for k, x in row.parameters.items() if isinstance(x, np.ndarray)}
    given = {k: gmcore.tensor(x, device=device, requires_grad=k in row.differentiable) for k, x in arrays.items()}
    d = row.make(**given)
    sample = d.sample((3,), generator=Generator(1))
    found = [sample, d.log_prob(sample)]
    for name in (*QUANTITIES, "entropy"):
        with contextlib.suppress(ArgumentError):  # no closed form
            found.append(d.entropy() if name == "entropy" else getattr(d, name))
    assert {x.device for x in found} == {next(iter(given.values())).device}
    leaves = [x for x in given.values() if x.requires_grad]
    gradients = gmcore.grad(ops.sum(found[1]), leaves) if found[1].requires_grad else []
    return [x.detach().cpu().numpy() for x in (*found, *gradients)]


@each
def test_on_a_gpu(row: Row) -> None:
    """Where its parameters are, and with the numbers of the CPU."""
    with gmkernels.use("reference"):
        for found, expected in zip(on_a_device(row, "cuda"), on_a_device(row, "cpu"), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)  # float64; CuPy's functions differ
        there = {k: gmcore.tensor(np.asarray(x), device="cuda") for k, x in {**row.parameters, **row.bad}.items()}
        with pytest.raises(ArgumentError, match="must be") if row.bad else contextlib.nullcontext():
            row.make(**there)


def there(x: Any, device: str) -> Tensor:
    return gmcore.tensor(np.array(x), device=device)


def normal(device: str, *loc: float) -> Any:
    return distributions.Normal(there(loc or (0.0, 1.0), device), np.float64(1.5))


MADE_OF_OTHERS: dict[str, Callable[[str], Tensor]] = {
    "mixture": lambda device: distributions.MixtureSameFamily(
        distributions.Categorical(probs=there([0.2, 0.8], device)), normal(device)
    ).sample((4,), generator=Generator(3)),
    "independent": lambda device: distributions.Independent(normal(device), 1).log_prob(there([0.1, 0.2], device)),
    "affine": lambda device: distributions.TransformedDistribution(
        normal(device), distributions.AffineTransform(there([1.0, 2.0], device), there([-1.0, 2.0], device))
    ).icdf(there([0.1, 0.2], device)),
    "stick breaking": lambda device: distributions.TransformedDistribution(
        normal(device), distributions.StickBreakingTransform()
    ).log_prob(there([0.2, 0.3, 0.5], device)),
    "divergence": lambda device: distributions.kl_divergence(
        distributions.Geometric(there([0.2, 0.8], device)), distributions.Geometric(there([0.5, 0.5], device))
    ),
    "no support": lambda device: distributions.kl_divergence(
        normal(device), distributions.Uniform(there([0.0, 0.0], device), 1.0)
    ),
    "all values": lambda device: distributions.OneHotCategorical(probs=there([0.2, 0.8], device)).enumerate_support(),
    "Gumbel": lambda device: distributions.gumbel_softmax(
        there([[0.1, 0.2, 0.3]], device), 0.5, hard=True, generator=Generator(3)
    ),
    "a list": lambda device: normal(device).log_prob([0.3, 0.4]),
}


@pytest.mark.parametrize("make", MADE_OF_OTHERS.values(), ids=MADE_OF_OTHERS)
def test_what_is_made_of_others_on_a_gpu(make: Callable[[str], Tensor]) -> None:
    with gmkernels.use("reference"):
        found, expected = make("cuda"), make("cpu")
    assert found.device == "cuda:0"
    np.testing.assert_allclose(found.cpu().numpy(), expected.numpy(), rtol=1e-9, atol=1e-11)


def test_parameters_on_two_devices_are_refused() -> None:
    with pytest.raises(DeviceError, match="several devices: loc on cpu, scale on cuda:0; move some with .to.'cuda:0'"):
        distributions.Normal(there([0.0], "cpu"), there([1.0], "cuda"))
