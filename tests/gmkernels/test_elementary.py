"""Elementary functions against the C library in long double, and at the points where formulas break."""

import numpy as np
import pytest

from gmkernels import elementary
from gmkernels.pool import block_kernel

NAMES = ("exp", "expm1", "log", "log1p", "log1p_unit", "sigmoid", "softplus", "tanh", "sin", "cos")
BITWISE = ("log", "log1p", "sin", "cos")
ULPS = 4

if np.finfo(np.longdouble).nmant <= 52:
    pytest.skip("no long double wider than float64 to compare with", allow_module_level=True)


def make_loop(name):
    function = getattr(elementary, name)

    def loop(block, x, y):
        for i in range(x.size):
            y[i] = function(x[i])

    loop.__qualname__ = f"{name}_loop"
    return block_kernel(loop)


LOOPS = {name: make_loop(name) for name in NAMES}
EXACT = {
    "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "log1p_unit": np.log1p,
    "sigmoid": lambda x: np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x))),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "tanh": np.tanh, "sin": np.sin, "cos": np.cos,
}  # fmt: skip


def compiled(name, x):
    y = np.full_like(x, np.nan)
    LOOPS[name](1, x, y)
    return y


def arguments(name, dtype):
    """Dense and random arguments over the range of the function, and near the points where it vanishes."""
    rng = np.random.default_rng(1)
    n = 100_000
    low, high = np.log(np.finfo(dtype).tiny), np.log(np.finfo(dtype).max)
    near = rng.standard_normal(n) * 10.0 ** rng.integers(-6, 2, n)
    if name in ("log", "log1p"):
        x = np.concatenate([np.exp(rng.uniform(low, high, n)), np.linspace(0.4, 2.5, n), 1 + 0.01 * near])
        if name == "log1p":
            x = np.concatenate([x, near, x[n:] - 1])
        x = x[x > 0] if name == "log" else x[x > -1]
    elif name == "log1p_unit":
        x = np.concatenate([np.linspace(0, 1, n), rng.random(n) ** 12])
    elif name in ("sin", "cos"):
        limit = elementary.LIMIT
        x = np.concatenate([rng.uniform(-limit, limit, n), np.arange(-6366, 6367) * (np.pi / 2), near])
        x = x[np.abs(x) <= limit]
    else:
        x = np.concatenate([rng.uniform(low, high, n), np.linspace(-20, 20, n), near])
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_error(name, dtype):
    x = arguments(name, dtype)
    exact = EXACT[name](x.astype(np.longdouble))
    info = np.finfo(dtype)
    # Twice the smallest normal number: a denormal intermediate may be flushed.
    normal = (np.abs(exact) >= 2 * info.tiny) & (np.abs(exact) <= info.max)
    assert normal.mean() > 0.4
    last_place = np.ldexp(np.longdouble(1), np.frexp(exact[normal])[1] - 1 - info.nmant)
    for y in (compiled(name, x), getattr(elementary, name)(x)):
        assert y.dtype == dtype
        assert np.max(np.abs(y[normal] - exact[normal]) / last_place) <= ULPS
        assert np.all(np.abs(y[np.abs(exact) < info.tiny / 2]) <= 2 * info.tiny)


SPECIAL = {
    "exp": [(-np.inf, 0), (0, 1), (np.inf, np.inf), (1e4, np.inf), (-1e4, 0), (1e30, np.inf), (-1e30, 0)],
    "expm1": [(-np.inf, -1), (0, 0), (np.inf, np.inf), (1e4, np.inf), (-1e4, -1), (-1e30, -1)],
    "log": [(np.inf, np.inf), (0, -np.inf), (-0.0, -np.inf), (1, 0), (-1, np.nan), (-np.inf, np.nan)],
    "log1p": [(np.inf, np.inf), (-1, -np.inf), (0, 0), (-2, np.nan), (-np.inf, np.nan)],
    "log1p_unit": [(0, 0)],
    "sigmoid": [(-np.inf, 0), (0, 0.5), (np.inf, 1), (1e4, 1), (-1e4, 0)],
    "softplus": [(-np.inf, 0), (np.inf, np.inf), (1e4, 1e4), (-1e4, 0), (2.0**100, 2.0**100)],
    "tanh": [(-np.inf, -1), (0, 0), (np.inf, 1), (1e4, 1), (-1e4, -1)],
    "sin": [(0, 0), (np.inf, np.nan), (-np.inf, np.nan), (10001, np.nan), (1e30, np.nan)],
    "cos": [(0, 1), (np.inf, np.nan), (-np.inf, np.nan), (-10001, np.nan), (1e30, np.nan)],
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_special_values(name, dtype):
    points = [*SPECIAL[name], (np.nan, np.nan)]
    x = np.tile(np.array([x for x, _ in points], dtype), 9)  # the vector part of the loop and the rest
    expected = np.tile(np.array([y for _, y in points], dtype), 9)
    np.testing.assert_array_equal(compiled(name, x), expected)
    np.testing.assert_array_equal(getattr(elementary, name)(x), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_edges_of_exp(dtype):
    info = np.finfo(dtype)
    top = np.log(info.max.astype(np.longdouble)).astype(dtype)
    top = top if np.exp(top.astype(np.longdouble)) <= info.max else np.nextafter(top, dtype(0))
    x = np.array([top, np.nextafter(top, dtype(np.inf))], dtype)
    y = compiled("exp", x)
    assert np.isfinite(y[0]) and y[0] > 0.99 * info.max and y[1] == np.inf


@block_kernel
def factors(block, x, p, q):
    for i in range(x.size):
        p[i], q[i] = elementary.exp_factors(x[i])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp_factors(dtype):
    info = np.finfo(dtype)
    rng = np.random.default_rng(3)
    x = np.concatenate([-(10.0 ** rng.uniform(-3, 3.5, 50_001)), [0.0, -np.inf]]).astype(dtype)
    compiled = np.empty_like(x), np.empty_like(x)
    factors(1, x, *compiled)
    exact = np.exp(x.astype(np.longdouble))
    for p, q in (compiled, elementary.exp_factors(x)):
        assert np.all((p > 0.7) & (p < 1.5))
        assert np.all(np.frexp(q)[0] == np.where(q == 0, 0, 0.5)) and np.all(q[exact < info.tiny / 2] == 0)
        # A few roundings of the polynomial; of ln 2, and of its product where that is not fused, half a bit of x each.
        error = np.abs(p.astype(np.longdouble) * q - exact)
        bound = info.eps * (1 + np.abs(x[:-1])) * exact[:-1] + info.tiny
        assert np.all(error[:-1] <= bound) and error[-1] == 0


@pytest.mark.parametrize("dtype, bits", [(np.float32, np.uint32), (np.float64, np.uint64)])
def test_exp_factors_of_any_nan(dtype, bits):
    x = (np.full(64, np.nan, dtype).view(bits) + np.arange(64, dtype=bits)).view(dtype)
    p, q = np.empty_like(x), np.empty_like(x)
    factors(1, x, p, q)
    assert np.isnan(p * q).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", BITWISE)
def test_numpy_gives_the_same_bits(name, dtype):
    x = arguments(name, dtype)
    assert compiled(name, x).tobytes() == getattr(elementary, name)(x).tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_result_does_not_depend_on_position(name, dtype):
    x = arguments(name, dtype)[:64]
    whole = compiled(name, x)
    assert whole.tobytes() == b"".join(compiled(name, x[i : i + 1]).tobytes() for i in range(x.size))


@pytest.mark.parametrize("name", NAMES)
def test_scalars_keep_their_dtype(name):
    for dtype in (np.float32, np.float64):
        assert getattr(elementary, name)(dtype(0.5)).dtype == dtype


@block_kernel
def largest(block, x, y):
    highest = x.dtype.type(-np.inf)
    for i in range(x.size):
        highest = elementary.maximum(highest, x[i])
    y[0] = highest


def test_maximum_propagates_nan():
    x = np.random.default_rng(2).standard_normal(1001)
    y = np.empty(1)
    largest(1, x, y)
    assert y[0] == x.max()
    for position in (0, 500, 1000):
        x[position] = np.nan
        largest(1, x, y)
        assert np.isnan(y[0])
        x[position] = 0
