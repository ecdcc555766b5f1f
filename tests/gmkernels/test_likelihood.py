"""Bernoulli log-probabilities: closed forms, infinite logits, broadcasting, gradients."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmkernels import KernelError, registry
from gmkernels.dense.tiles import tiles
from gmkernels.likelihood import (
    bernoulli_log_prob,
    bernoulli_log_prob_backward,
    cpu,
    linear_bernoulli_log_prob,
    linear_bernoulli_log_prob_backward,
    linear_bernoulli_residual,
    linear_bernoulli_residual_backward,
    spec,
)

BACKENDS = ("reference", "cpu")


def softplus(x):
    return np.logaddexp(0, x)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 300)),
    x_ndim=st.integers(1, 3),
    binary=st.booleans(),
)
def test_matches_the_formula(backend, shape, x_ndim, binary):
    rng = np.random.default_rng(0)
    logits = 5 * rng.standard_normal(shape)
    x = rng.random(shape[3 - x_ndim :])
    x = np.round(x) if binary else x
    expected = np.sum(x * logits - softplus(logits), -1)
    log_p = bernoulli_log_prob(logits, x, backend=backend)
    np.testing.assert_allclose(log_p, expected, rtol=1e-12, atol=1e-12)
    g = rng.standard_normal(shape[:-1])
    expected = g[..., None] * (x - 1 / (1 + np.exp(-logits)))
    d_logits = bernoulli_log_prob_backward(g, logits, x, backend=backend)
    np.testing.assert_allclose(d_logits, expected, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_logits(backend, dtype):
    inf, nan = np.inf, np.nan
    cases = [  # logit, x, log p, slope
        (inf, 1, 0, 0), (-inf, 0, 0, 0), (inf, 0, -inf, -1), (-inf, 1, -inf, 1), (inf, 0.5, -inf, -0.5),
        (nan, 0, nan, nan), (nan, 1, nan, nan), (0, nan, nan, nan), (1, nan, nan, nan),
        (0, 1, -np.log(2), 0.5), (1e30, 1, 0, 0), (1e30, 0, -1e30, -1),
        (80, 1, -np.exp(-80), np.exp(-80)), (-80, 0, -np.exp(-80), -np.exp(-80)),
    ]  # fmt: skip
    logit, x, log_p, slope = np.array(cases, dtype).T
    rtol = 8 * np.finfo(dtype).eps
    columns = logit[:, None].copy(), x[:, None].copy()
    np.testing.assert_allclose(bernoulli_log_prob(*columns, backend=backend), log_p, rtol=rtol)
    g = np.ones_like(logit)
    d_logits = bernoulli_log_prob_backward(g, *columns, backend=backend)
    np.testing.assert_allclose(d_logits[:, 0], slope, rtol=rtol)


@pytest.mark.parametrize("backend", BACKENDS)
def test_probabilities_of_all_binary_vectors_add_up_to_one(backend):
    logits = np.random.default_rng(1).standard_normal(10)
    every = (np.arange(1024)[:, None] >> np.arange(10) & 1).astype(float)
    log_p = bernoulli_log_prob(np.tile(logits, (1024, 1)), every, backend=backend)
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (0, 0), (2, 0, 0)])
def test_empty(shape, backend):
    logits = np.ones(shape)
    log_p = bernoulli_log_prob(logits, logits, backend=backend)
    assert log_p.shape == shape[:-1] and np.all(log_p == 0)
    assert bernoulli_log_prob_backward(log_p, logits, logits, backend=backend).shape == shape


def test_leading_axes_of_x_are_shared():
    rng = np.random.default_rng(2)
    logits, x = rng.standard_normal((7, 5, 1033)), rng.random((5, 1033))
    shared = bernoulli_log_prob(logits, x, backend="cpu")
    np.testing.assert_array_equal(shared, [bernoulli_log_prob(sample, x, backend="cpu") for sample in logits])


@pytest.mark.parametrize("length", [16383, 16384, 16385, 32769])
def test_rows_about_the_length_of_a_block(length):
    rng = np.random.default_rng(3)
    logits, x = rng.standard_normal((3, length)), rng.random(length)
    expected = np.sum(x * logits - softplus(logits), -1)
    np.testing.assert_allclose(bernoulli_log_prob(logits, x, backend="cpu"), expected, rtol=1e-13)
    g = np.array([1.0, 2.0, 3.0])
    expected = g[:, None] * (x - 1 / (1 + np.exp(-logits)))
    np.testing.assert_allclose(bernoulli_log_prob_backward(g, logits, x, backend="cpu"), expected, atol=1e-14)


def test_matches_pytorch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    logits, x = rng.standard_normal((100, 784)).astype(np.float32), rng.random((100, 784)).astype(np.float32)
    leaf = torch.from_numpy(logits).requires_grad_()
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
    loss = cross_entropy(leaf, torch.from_numpy(x), reduction="none").sum(-1)
    loss.sum().backward()
    np.testing.assert_allclose(bernoulli_log_prob(logits, x), -loss.detach(), rtol=1e-5)
    gradient = bernoulli_log_prob_backward(-np.ones(100, np.float32), logits, x)
    np.testing.assert_allclose(gradient, leaf.grad, atol=3e-7)


@pytest.mark.parametrize(
    "logits, x",
    [
        (np.ones((2, 3)), np.ones((3, 2))),
        (np.ones((2, 3)), np.ones((1, 3))),
        (np.ones((2, 3)), np.ones((2, 3), np.float32)),
        (np.ones(3), np.ones((2, 3))),
        (np.ones(3, int), np.ones(3, int)),
        (np.ones(()), np.ones(())),
    ],
)
def test_refusals(logits, x):
    with pytest.raises(KernelError, match="bernoulli_log_prob: expected floating logits"):
        bernoulli_log_prob(logits, x)


def test_backward_refuses_a_gradient_that_does_not_fit():
    with pytest.raises(KernelError, match=r"log_prob_backward: expected g float64\[2\].*got float64\[3\]"):
        bernoulli_log_prob_backward(np.ones(3), np.ones((2, 3)), np.ones((2, 3)))


@pytest.mark.parametrize("shape, n", [((7, 5, 16), 40), ((64, 130), 523)])  # one tile; two column tiles
def test_of_a_linear_layer_is_that_of_its_output(shape, n):
    rng = np.random.default_rng(4)
    h, weight, bias = rng.standard_normal(shape), rng.standard_normal((n, shape[-1])) / 9, rng.standard_normal(n)
    x, g = rng.random((*shape[1:-1], n)), rng.standard_normal(shape[:-1])
    logits = h @ weight.T + bias
    log_p, residual = linear_bernoulli_residual(h, weight, bias, x, backend="cpu")
    np.testing.assert_allclose(log_p, bernoulli_log_prob(logits, x, backend="cpu"), rtol=1e-13)
    np.testing.assert_allclose(residual, bernoulli_log_prob_backward(np.ones_like(g), logits, x), atol=1e-14)
    d_logits = bernoulli_log_prob_backward(g, logits, x).reshape(g.size, n)
    expected = (d_logits @ weight).reshape(h.shape), d_logits.T @ h.reshape(g.size, -1), d_logits.sum(0)
    found = linear_bernoulli_residual_backward(g, residual, h, weight, backend="cpu")
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)  # 523 products below 1


@pytest.mark.parametrize("shape, n, x_ndim", [((7, 5, 16), 40, 2), ((3, 64, 13), 300, 2), ((161, 9), 257, 1)])
def test_of_a_linear_layer_without_its_output(shape, n, x_ndim, monkeypatch):
    """One part of the rows or several, which begin amid the rows of x; whole tiles and not."""
    rng = np.random.default_rng(5)
    h, weight, bias = rng.standard_normal(shape), rng.standard_normal((n, shape[-1])) / 9, rng.standard_normal(n)
    x, g = rng.random((*shape[:-1], n)[len(shape) - x_ndim :]), rng.standard_normal(shape[:-1])
    expected, residual = linear_bernoulli_residual(h, weight, bias, x, backend="cpu")
    log_p = linear_bernoulli_log_prob(h, weight, bias, x, backend="cpu")
    np.testing.assert_allclose(log_p, expected, rtol=1e-13)
    expected = linear_bernoulli_residual_backward(g, residual, h, weight, backend="cpu")
    for rows in (g.size, 48, 3):
        monkeypatch.setattr(spec, "RESIDUAL_BYTES", rows * n * 8)
        registry._plans.clear()
        found = linear_bernoulli_log_prob_backward(g, h, weight, bias, x, backend="cpu")
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)  # 192 products below 1


def test_no_part_of_the_rows_leaves_its_workspace(monkeypatch):
    """The last part has fewer rows, for which products by themselves would have tiles of other shapes."""
    rows, part, n, k = 189, 104, 200, 200
    assert tiles(part, k, n) == (2, 1) and tiles(rows - part, k, n) == (1, 2)
    monkeypatch.setattr(spec, "RESIDUAL_BYTES", part * n * 8)
    rng = np.random.default_rng(5)
    inputs = [rng.standard_normal(s) for s in ((rows,), (rows, k), (n, k), (n,))] + [rng.random((rows, n))]
    outputs = [np.empty(s) for s in ((rows, k), (n, k), (n,))]
    layout = spec.LINEAR_BERNOULLI_LOG_PROB_BACKWARD.workspace(*inputs)
    guarded = [np.full(math.prod(shape) + 256, 5.0, dtype) for shape, dtype in layout]
    workspace = [a[128:-128].reshape(shape) for a, (shape, _) in zip(guarded, layout, strict=True)]
    cpu.linear_bernoulli_log_prob_backward(inputs, outputs, workspace, {})
    assert all((a[:128] == 5.0).all() and (a[-128:] == 5.0).all() for a in guarded)
    residual = inputs[4] - 1 / (1 + np.exp(-(inputs[1] @ inputs[2].T + inputs[3])))
    np.testing.assert_allclose(outputs[2], inputs[0] @ residual, atol=1e-12)


@pytest.mark.parametrize("library", ["numpy", "cupy"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows, n, k", [(784, 784, 200), (5000, 784, 200), (100_000, 784, 200), (100_000, 3000, 500)])
def test_workspaces_are_small_beside_the_logits(rows, n, k, dtype, library):
    """On a GPU a third of the logits at most, or 4 MB; on the CPU what does not grow with the rows."""
    library = pytest.importorskip(library)
    virtual = [library.broadcast_to(library.zeros((), dtype), s) for s in ((rows,), (rows, k), (n, k), (n,), (n,))]

    def taken(workspace, *inputs):
        return sum(math.prod(shape) * np.dtype(d).itemsize for shape, d in workspace(*inputs))

    logits = rows * n * np.dtype(dtype).itemsize
    forward = taken(spec.LINEAR_BERNOULLI_LOG_PROB.workspace, *virtual[1:])
    backward = taken(spec.LINEAR_BERNOULLI_LOG_PROB_BACKWARD.workspace, *virtual)
    if library is np:
        assert forward <= 1.1 * n * k * np.dtype(dtype).itemsize
        assert (
            backward <= min(logits, spec.RESIDUAL_BYTES) * (1.1 + k / n) + 1.1 * (n * k + n) * np.dtype(dtype).itemsize
        )
    else:
        assert forward <= 0.04 * logits and backward <= (1 + 1 / k) * max(logits / 3, 2 << 21)
