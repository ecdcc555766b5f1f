"""Softmax: rows with masked elements, extremes, and what float32 keeps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import special

import gmcore
from gmcore import ops
from gmcore.errors import DtypeError

INF = np.inf


def test_softmin(is_its_formula: Any) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3))
    is_its_formula(lambda x: ops.softmin(x, 0), lambda x: special.softmax(-x, 0), [x])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_masked_elements_have_no_weight_and_a_masked_row_none_at_all(dtype: str) -> None:
    x = gmcore.tensor([[0.0, -INF, 0.0], [-INF, -INF, -INF], [-INF, 5.0, -INF]], dtype, requires_grad=True)
    y, log_y = ops.softmax(x), ops.log_softmax(x)
    np.testing.assert_array_equal(y.detach().numpy(), [[0.5, 0, 0.5], [0, 0, 0], [0, 1, 0]])
    log_half = np.log(np.asarray(0.5, dtype))
    expected = [[log_half, -INF, log_half], [-INF, -INF, -INF], [-INF, 0, -INF]]
    np.testing.assert_array_equal(log_y.detach().numpy(), np.asarray(expected, dtype))
    weights = np.arange(9.0).reshape(3, 3).astype(dtype)
    first = gmcore.grad(y, x, weights, create_graph=True)
    np.testing.assert_array_equal(first.detach().numpy(), [[-0.5, 0, 0.5], [0, 0, 0], [0, 0, 0]])
    assert np.isfinite(gmcore.grad(first, x, weights).numpy()).all()
    g = gmcore.grad(log_y, x, weights).numpy()
    np.testing.assert_array_equal(g[0, [0, 2]], [-1.5, 0.5])  # g - softmax sum(g), of g = 0, 1, 2
    assert np.isfinite(g).all()


def test_infinity_and_nan_give_nan() -> None:
    x = np.array([[0.0, INF], [0.0, np.nan], [0.0, 0.0]])
    for function in (ops.softmax, ops.log_softmax):
        y = function(x).numpy()
        assert np.isnan(y[0, 1]) and np.isnan(y[1]).all() and np.isfinite(y[2]).all()


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
def test_a_shift_changes_nothing(shift: float) -> None:
    """Integers are exact in float32, so the shifted rows are the same numbers."""
    x = np.array([[1.0, 3.0, -20.0]], np.float32)
    for function in (ops.softmax, ops.log_softmax):
        np.testing.assert_array_equal(function(x + np.float32(shift)).numpy(), function(x).numpy())


def test_the_logarithm_does_not_underflow() -> None:
    x = np.array([0.0, -200.0, -1e4], np.float32)
    np.testing.assert_array_equal(ops.log_softmax(x).numpy(), x)
    assert ops.softmax(x).tolist() == [1.0, 0.0, 0.0]


def test_an_axis_of_length_zero() -> None:
    assert ops.softmax(np.ones((2, 0))).shape == ops.log_softmax(np.ones((0, 2)), axis=0).shape[::-1] == (2, 0)


@pytest.mark.parametrize("function", [ops.softmax, ops.log_softmax, lambda x, axis: ops.rms_norm(x, (3,))])
def test_integers_are_refused_by_name(function: Callable[..., Any]) -> None:
    with pytest.raises(DtypeError, match=rf"(softmax|rms_norm): expected floating numbers, got int64 .*{__file__}:"):
        function(np.ones((2, 3), np.int64), axis=-1)
