"""Softmax of rows: what every row must fulfil, extremes, and what is refused."""

import cupy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmkernels import KernelError, softmax_cross_entropy, softmax_cross_entropy_backward

BACKENDS = ("reference", "cpu")
INF = np.inf


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=20)
@given(rows=st.integers(1, 300), classes=st.integers(1, 300), seed=st.integers(0, 99))
def test_probabilities_losses_and_gradients_fit_each_other(backend, rows, classes, seed):
    rng = np.random.default_rng(seed)
    logits, target = 4 * rng.standard_normal((rows, classes)), rng.integers(0, classes, rows)
    loss, p = softmax_cross_entropy(logits, target, backend=backend)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-14)
    np.testing.assert_allclose(np.exp(-loss), p[np.arange(rows), target], rtol=1e-13)
    np.testing.assert_allclose(np.log(p / p[:, :1]), logits - logits[:, :1], atol=1e-13)
    g = rng.standard_normal(rows)
    d = softmax_cross_entropy_backward(g, p, target, backend=backend)
    np.testing.assert_allclose(d.sum(1), 0, atol=1e-14)  # a shift of all logits of a row changes nothing
    others = np.arange(classes) != target[:, None]
    np.testing.assert_array_equal(d[others], (g[:, None] * p)[others])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extremes(backend, dtype):
    logits = np.array([[-INF, 0, -INF], [-INF] * 3, [1e38, -1e38, 0], [0, INF, 0], [0, np.nan, 0]], dtype)
    loss, p = softmax_cross_entropy(logits, np.array([1, 0, 1, 0, 0]), backend=backend)
    np.testing.assert_array_equal(p[:3], [[0, 1, 0], [0, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(loss[:2], [0, INF])
    assert loss[2] == np.asarray(1e38, dtype) * 2 and np.isnan(loss[3:]).all()
    assert np.isnan(p[3, 1]) and np.isnan(p[4]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_refusals(backend):
    x, g = np.ones((2, 3)), np.ones(2)
    for target in ([0, 3], [-1, 0]):
        given = f"expected classes from 0 to 2, got {min(target)} to {max(target)}"
        with pytest.raises(KernelError, match=f"softmax_cross_entropy: {given}"):
            softmax_cross_entropy(x, np.array(target), backend=backend)
        with pytest.raises(KernelError, match=f"softmax_cross_entropy_backward: {given}"):
            softmax_cross_entropy_backward(g, x, np.array(target), backend=backend)
    with pytest.raises(KernelError, match=r"expected logits \(rows, classes\).* target int32\[2\]"):
        softmax_cross_entropy(x, np.zeros(2, np.int32), backend=backend)
    with pytest.raises(KernelError, match=r"expected g \(rows,\).*, got g float32\[2\], probabilities float64\[2, 3\]"):
        softmax_cross_entropy_backward(g.astype(np.float32), x, np.zeros(2, int), backend=backend)


@pytest.mark.parametrize("classes", [3, 8201])  # held in registers, and cut into pieces
def test_targets_that_are_no_class_give_nan_on_a_gpu(classes):
    x, target = cupy.zeros((3, classes), np.float32), cupy.asarray(np.array([1, classes, -1]))
    loss, p = softmax_cross_entropy(x, target, backend="cuda")
    np.testing.assert_allclose(loss.get(), [np.log(classes), np.nan, np.nan], rtol=1e-6)
    d = softmax_cross_entropy_backward(cupy.ones(3, np.float32), p, target, backend="cuda").get()
    assert np.isfinite(d[0]).all() and np.isnan(d[1:]).all()
