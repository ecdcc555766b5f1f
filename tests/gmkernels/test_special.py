"""Special functions against SciPy and mpmath, on both sides of every switch between formulas."""

import numpy as np
import pytest
from scipy import special as scipy_special

from gmkernels import KernelError, special

SMALL = 10.0 ** -np.arange(1.0, 300.0, 7.0)
NEAR_ONE = 1.0 - 2.0 ** -np.arange(1.0, 53.0)
GRID = np.linspace(-1.0, 1.0, 2001)


def relative(found, expected):
    """Largest relative error; equal infinities and NaN in both have none."""
    found, expected = np.asarray(found), np.asarray(expected)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    same = (found == expected) | np.isnan(expected)
    with np.errstate(invalid="ignore"):
        return np.max(np.abs(found - expected)[~same] / np.abs(expected)[~same], initial=0.0)


@pytest.mark.parametrize(
    "name, x",
    [
        ("erf", np.concatenate([6 * GRID, SMALL, -SMALL])),
        ("erfc", np.concatenate([26 * GRID, SMALL])),
        ("erfcx", np.concatenate([26 * GRID, 4.9 + 0.2 * GRID, 1 / SMALL])),
        ("erfinv", np.concatenate([GRID, SMALL, NEAR_ONE, -NEAR_ONE, [1.5]])),
        ("ndtri", np.concatenate([GRID, SMALL, NEAR_ONE, 0.075 + 1e-3 * GRID, 0.925 + 1e-3 * GRID])),
        ("lgamma", np.concatenate([30 * GRID + 0.013, SMALL, 1 / SMALL[:40]])),
    ],
)
def test_matches_scipy(name, x):
    oracle = scipy_special.gammaln if name == "lgamma" else getattr(scipy_special, name)
    found = getattr(special, name)(x, backend="cpu")
    # SciPy's own error reaches 6e-14 where erfc is tiny and where lgamma passes through 0.
    assert relative(found, oracle(x)) < 2e-13


@pytest.mark.parametrize("name, low, high", [
    ("erf", -6, 6), ("erf", -1.1, 1.1), ("erfc", -6, 1), ("erfc", 0, 26), ("erfcx", -26, 1), ("erfcx", 0, 100),
])  # fmt: skip
def test_error_functions_are_the_oracles_to_three_roundings(name, low, high):
    mpmath = pytest.importorskip("mpmath")
    exact = {"erf": mpmath.erf, "erfc": mpmath.erfc, "erfcx": lambda x: mpmath.exp(x * x) * mpmath.erfc(x)}[name]
    x = np.random.default_rng(2).uniform(low, high, 500)
    found = getattr(special, name)(x, backend="cpu")
    with mpmath.workdps(40):
        errors = [abs(mpmath.mpf(y) / exact(mpmath.mpf(at)) - 1) for y, at in zip(found.tolist(), x.tolist())]
    assert max(errors) < 3 * np.finfo(float).eps


@pytest.mark.parametrize("low, high", [(1e-3, 1), (0.99, 1.01), (1, 3), (1.99, 2.01), (3, 9.1), (9, 1e3), (1e5, 1e9)])
def test_log_gamma_is_the_oracles_to_two_roundings(low, high):
    """Also near its zeros, 1 and 2, and on both sides of where Stirling's series takes over."""
    mpmath = pytest.importorskip("mpmath")
    x = np.random.default_rng(2).uniform(low, high, 300)
    found = special.lgamma(x, backend="cpu")
    with mpmath.workdps(40):
        errors = [abs(mpmath.mpf(y) / mpmath.loggamma(mpmath.mpf(at)) - 1) for y, at in zip(found.tolist(), x.tolist())]
    assert max(errors) < 2 * np.finfo(float).eps


def test_log_gamma_at_the_ends():
    x = np.array([-1e308, -1e300, -np.inf, -3.0, 0.0, 1e306, np.inf])
    np.testing.assert_array_equal(special.lgamma(x, backend="cpu"), np.inf)


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("low, high", [(1e-6, 1e-3), (1e-3, 1), (1, 3), (3, 8.1), (8, 16.1), (20, 1e9), (-30, -0.01)])
def test_digamma_and_trigamma_are_the_oracles_to_some_roundings(n, low, high):
    """Of their terms, which cancel where digamma passes through 0, and by reflection below 0."""
    mpmath = pytest.importorskip("mpmath")
    x = np.random.default_rng(2).uniform(low, high, 300)
    found = special.polygamma(n, x, backend="cpu")
    errors = []
    with mpmath.workdps(40):
        for y, at in zip(found.tolist(), x.tolist()):
            exact = mpmath.psi(n, mpmath.mpf(at))
            # pi cot(pi x) changes by 1 + its square, pi^2 / sin^2(pi x) by more, where x is rounded: in 1 - x
            terms = abs(exact) + (3 if n == 0 else 0) + (1 / mpmath.sin(mpmath.pi * at) ** 2 if at < 0 else 0)
            errors.append(abs(y - exact) / terms)
    assert max(errors) < 3 * np.finfo(float).eps


@pytest.mark.parametrize("name", ["erf", "erfc", "erfcx", "erfinv", "ndtri", "lgamma"])
def test_float32_is_float64_rounded(name):
    x = np.random.default_rng(0).uniform(0.0, 1.0, 1000).astype(np.float32)
    function = getattr(special, name)
    np.testing.assert_array_equal(function(x, backend="cpu"), function(x.astype(float), backend="cpu").astype("f"))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 12])
def test_polygamma_matches_scipy(n):
    positive = np.concatenate([np.linspace(0.01, 60.0, 3001), SMALL[:3], 1 / SMALL[:6]])
    oracle = scipy_special.digamma if n == 0 else lambda x: scipy_special.polygamma(n, x)
    found = special.polygamma(n, positive, backend="cpu")
    if n == 0:  # digamma crosses 0 at 1.46, where the error of its terms stays
        np.testing.assert_allclose(found, oracle(positive), rtol=1e-13, atol=2e-15)
    else:
        assert relative(found, oracle(positive)) < 1e-14


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4])
def test_polygamma_below_zero(n):
    """By its recurrence from x to x + 1, relative to its terms. At -k - 1/2 the even ones all but cancel."""
    x = -np.arange(6) + np.array([[-0.9], [-0.5], [-0.3], [-0.01]])
    step = -((-1.0) ** n) * scipy_special.factorial(n) / x ** (n + 1)
    higher, lower = special.polygamma(n, x + 1, backend="cpu"), special.polygamma(n, x, backend="cpu")
    scale = np.abs(higher) + np.abs(step)
    assert np.max(np.abs(lower - (higher + step)) / scale) < 1e-13


def test_polygamma_far_below_zero():
    """The reference, too, in no more steps than elsewhere."""
    x = np.array([-1e10 - 0.25, -1e3 - 0.75])
    for n in range(4):
        found = [special.polygamma(n, x, backend=backend) for backend in ("reference", "cpu")]
        np.testing.assert_allclose(*found, rtol=1e-13)


def test_polygamma_at_its_poles():
    poles = np.array([0.0, -1.0, -5.0])
    np.testing.assert_array_equal(special.polygamma(1, poles), [np.inf] * 3)
    np.testing.assert_array_equal(special.polygamma(2, poles), [-np.inf, np.nan, np.nan])


def gamma_grid():
    """a from 1e-3 to 1e6, and x from far below the mean to far above it; both sides of x = a + 1, and of a = 20."""
    a = np.concatenate([10.0 ** np.linspace(-3, 6, 46), [19.99, 20.01]])[:, None]
    x = np.concatenate([a * 10.0 ** np.linspace(-1, 1, 7), a + np.sqrt(a) * np.linspace(-3, 3, 7), a + [0.99, 1.01]], 1)
    return np.broadcast_to(a, x.shape)[x > 0].copy(), x[x > 0]


def test_gammainc_matches_scipy():
    a, x = gamma_grid()
    expected = scipy_special.gammainc(a, x)
    kept = expected > 1e-100  # SciPy's own error is 4e-13 there, and grows with -log P; ours is a tenth of it
    found = special.gammainc(a, x, backend="cpu")
    assert relative(found[kept], expected[kept]) < 1e-12


def test_gammainc_grad_a_is_the_oracles():
    mpmath = pytest.importorskip("mpmath")
    a = np.array([1e-3, 0.1, 0.1, 0.9, 3.0, 3.0, 3.0, 19.9, 20.1, 150.0, 150.0])
    x = np.array([1e-4, 0.01, 2.0, 1.0, 0.2, 3.99, 4.01, 30.0, 15.0, 120.0, 175.0])
    with mpmath.workdps(40):
        expected = [
            float(mpmath.diff(lambda t, q=q: mpmath.gammainc(t, 0, mpmath.mpf(q), regularized=True), mpmath.mpf(p)))
            for p, q in zip(a.tolist(), x.tolist())
        ]
    assert relative(special.gammainc_grad_a(a, x, backend="cpu"), expected) < 1e-13


def test_gammainc_grad_a_is_the_slope_of_gammainc():
    a, x = gamma_grid()
    h = 1e-3 * np.minimum(a, np.sqrt(a))
    p = [scipy_special.gammainc(a + k * h, x) for k in (-2, -1, 1, 2)]
    expected = (p[0] - 8 * p[1] + 8 * p[2] - p[3]) / (12 * h)
    # Relative to 1 / s, s the width of the rise: the five points are off by (h / s)^4 = 1e-12, and SciPy's error of up
    # to 1e-13 is divided by h / s = 1e-3.
    scale = 1 / np.minimum(a, np.sqrt(a))
    assert np.max(np.abs(special.gammainc_grad_a(a, x, backend="cpu") - expected) / scale) < 1e-9


def test_gammainc_at_its_ends():
    a, x = np.array([2.0, 2.0, 0.0, -1.0, 2.0, np.nan]), np.array([0.0, np.inf, 1.0, 1.0, -1.0, 1.0])
    for backend in ("reference", "cpu"):
        np.testing.assert_array_equal(special.gammainc(a, x, backend=backend), [0.0, 1.0] + [np.nan] * 4)
        np.testing.assert_array_equal(special.gammainc_grad_a(a, x, backend=backend), [0.0, 0.0] + [np.nan] * 4)


def test_gammainc_gives_up_by_nan():
    assert np.isnan(special.gammainc(np.array([1e12]), np.array([1e12]), backend="cpu"))[0]


@pytest.mark.parametrize(
    "call",
    [
        lambda: special.erf(np.ones(3, int)),
        lambda: special.gammainc(np.ones(3), np.ones(2)),
        lambda: special.gammainc(np.ones(3), np.ones(3, np.float32)),
        lambda: special.polygamma(-1, np.ones(3)),
    ],
)
def test_refusals(call):
    with pytest.raises(KernelError, match="expected"):
        call()
