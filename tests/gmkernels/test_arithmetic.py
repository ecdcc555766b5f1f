"""Launched arithmetic gives NumPy's results bit for bit, whatever the layout, or is not launched."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmkernels import arithmetic
from gmkernels.pool import Launches

BINARY = (np.add, np.subtract, np.multiply, np.divide)
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-310, -3e-312, 1e-40, -2e-39, 1e308, 3e38]


@st.composite
def operands(draw):
    """Two operands that broadcast: parts, transposes and rows of arrays in which denormals abound."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 65, 700]), max_size=2)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    found = []
    for _ in range(2):
        kept = tuple(n if draw(st.booleans()) else 1 for n in shape)[draw(st.integers(0, len(shape))) :]
        numbers = np.where(rng.random(kept) < 0.3, rng.choice(SPECIAL, kept), rng.standard_normal(kept))
        found.append((np.asfortranarray if draw(st.booleans()) else np.ascontiguousarray)(numbers).reshape(kept))
    return found


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, about what is special
@settings(max_examples=60)
@given(operands(), st.sampled_from(BINARY))
def test_bits_are_numpys(pair, function):
    a, b = pair
    expected = np.asarray(function(a, b))
    out = np.empty_like(expected, order="C")
    if not arithmetic.is_launched(function, (a, b), out):
        assert max(a.ndim, b.ndim) == 2 and not (a.flags.c_contiguous and b.flags.c_contiguous)
        return
    Launches([[arithmetic.launch(function, (a, b), out)]])()
    np.testing.assert_array_equal(out.view(np.int64)[~np.isnan(expected)], expected.view(np.int64)[~np.isnan(expected)])
    np.testing.assert_array_equal(np.isnan(out), np.isnan(expected))


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("other", [(3, 6001), (6001,), ()])
@pytest.mark.parametrize("function", BINARY)
def test_in_place(function, other, where):
    rng = np.random.default_rng(0)
    out, x = rng.standard_normal((3, 6001)), rng.standard_normal(other)
    inputs = (x, out) if where else (out, x)
    expected = function(*inputs)
    Launches([[arithmetic.launch(function, inputs, out)]])()
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", [np.negative, np.positive])
def test_unary_functions_of_several_blocks(function, dtype):
    with np.errstate(over="ignore"):
        x = np.resize(np.array(SPECIAL, dtype), (7, 6001)).T  # strided
    out = np.empty(x.T.shape, dtype)
    launch = arithmetic.launch(function, (x.T,), out)
    assert launch.blocks == 3
    Launches([[launch]])()
    np.testing.assert_array_equal(out.view(np.uint8), function(np.ascontiguousarray(x.T)).view(np.uint8))


@pytest.mark.parametrize(
    ("function", "shapes", "out"),
    [
        (np.maximum, [(3,), (3,)], np.empty(3)),
        (np.add, [(3,), (3,)], np.empty(3, np.float32)),
        (np.add, [(3,), (3,)], np.empty(6)[::2]),
        (np.add, [(2, 1, 3), (1, 5, 1)], np.empty((2, 5, 3))),
        (np.add, [(0,), (0,)], np.empty(0)),
    ],
)
def test_what_is_not_launched(function, shapes, out):
    assert not arithmetic.is_launched(function, tuple(map(np.zeros, shapes)), out)


def test_an_operand_that_runs_backwards_is_not_launched():
    assert not arithmetic.is_launched(np.negative, (np.zeros(4)[::-1],), np.empty(4))
    assert not arithmetic.is_launched(np.negative, (np.zeros((4, 3))[::-1],), np.empty((4, 3)))
