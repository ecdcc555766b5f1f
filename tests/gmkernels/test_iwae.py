"""The importance-weighted bound: closed forms, known inequalities, and rows with infinities and NaN."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmkernels import KernelError
from gmkernels.iwae import iwae_bound, iwae_bound_backward

BACKENDS = ("reference", "cpu")
shapes = st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(1, 300))


def log_weights(shape, seed=0, dtype=np.float64):
    return (3 * np.random.default_rng(seed).standard_normal(shape) - 90).astype(dtype)


def bound_and_weights(log_w, **options):
    bound, highest, scale = iwae_bound(log_w, **options)
    return bound, iwae_bound_backward(np.ones_like(bound), log_w, highest, scale, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25)
@given(shape=shapes, axis=st.integers(-3, 2))
def test_matches_the_formula(backend, shape, axis):
    log_w = log_weights(shape)
    bound, weights = bound_and_weights(log_w, axis=axis, backend=backend)
    w = np.exp(log_w + 90)
    np.testing.assert_allclose(bound, np.log(w.mean(axis)) - 90, rtol=1e-13)
    np.testing.assert_allclose(weights, w / w.sum(axis, keepdims=True), rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_sample_is_the_evidence_lower_bound(backend):
    log_w = log_weights((1, 101), dtype=np.float32)
    bound, weights = bound_and_weights(log_w, backend=backend)
    np.testing.assert_array_equal(bound, log_w[0])
    assert np.all(weights == 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bound_is_at_least_the_mean_and_at_most_the_highest(backend):
    log_w = log_weights((50, 999))
    bound, weights = bound_and_weights(log_w, backend=backend)
    assert np.all(bound >= log_w.mean(0)) and np.all(bound <= log_w.max(0))
    np.testing.assert_allclose(weights.sum(0), 1, rtol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_of_large_log_weights_sum_to_one(backend, axis):
    """They are not relative to the bound, whose rounding at -1e5 is 0.4 per cent of a float32 weight."""
    log_w = 1000 * log_weights((70, 70), dtype=np.float32)
    _, weights = bound_and_weights(log_w, axis=axis, backend=backend)
    np.testing.assert_allclose(weights.sum(axis, np.float64), 1, rtol=70 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["rising", "falling"])
def test_samples_in_order(order, backend):
    """Each sample is the highest so far, or the first is the highest of all; over several runs of the sums."""
    k = np.arange(300.0)[order]
    bound, weights = bound_and_weights(np.stack([k, k], 1), backend=backend)
    expected = np.exp(k - 299) * (1 - np.exp(-1)) / (1 - np.exp(-300))  # a geometric series
    np.testing.assert_allclose(weights, np.stack([expected, expected], 1), rtol=1e-12)
    np.testing.assert_allclose(bound, 299 - np.log1p(-np.exp(-1)) - np.log(300), rtol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_a_shift_of_the_log_weights_shifts_the_bound(backend, shift):
    log_w = np.round(log_weights((50, 99)) * 1024) / 1024  # so that the sum is exact
    bound, weights = bound_and_weights(log_w, backend=backend)
    moved, same = bound_and_weights(log_w + shift, backend=backend)
    np.testing.assert_allclose(moved, bound + shift, rtol=1e-12)
    np.testing.assert_array_equal(same, weights)


INF, NAN = np.inf, np.nan
SPECIAL = [  # log weights, then bound and weights
    ([0.0, -INF, 0.0], np.log(2 / 3), [0.5, 0, 0.5]),
    ([-INF, -INF, -INF], -INF, [0, 0, 0]),
    ([INF, 1.0, INF], INF, [0.5, 0, 0.5]),
    ([INF, -INF, 0.0], INF, [1, 0, 0]),
    ([INF, INF, INF], INF, [1 / 3, 1 / 3, 1 / 3]),
    ([NAN, 1.0, INF], NAN, [NAN, NAN, NAN]),
    ([-INF, NAN, -INF], NAN, [NAN, NAN, NAN]),
    ([-INF, -INF, NAN], NAN, [NAN, NAN, NAN]),
    ([1000.0, 1000.0, -1000.0], 1000 + np.log(2 / 3), [0.5, 0.5, 0]),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("axis", [0, 1])
def test_special_rows(axis, dtype, backend):
    log_w, bound, weights = (np.array(part, dtype) for part in zip(*SPECIAL, strict=True))
    if axis == 0:
        log_w, weights = np.ascontiguousarray(log_w.T), weights.T
    rtol = 4 * np.finfo(dtype).eps
    outputs = bound_and_weights(log_w, axis=axis, backend=backend)
    for actual, expected in zip(outputs, (bound, weights), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=rtol)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gradient_by_differences(backend, axis):
    log_w = log_weights((4, 5, 3))
    g = np.random.default_rng(1).standard_normal(np.delete(log_w.shape, axis))
    _, highest, scale = iwae_bound(log_w, axis=axis, backend=backend)
    gradient = iwae_bound_backward(g, log_w, highest, scale, axis=axis, backend=backend)
    step = 1e-5
    for i in np.ndindex(log_w.shape):
        difference = np.zeros_like(log_w)
        difference[i] = step
        up, down = (iwae_bound(log_w + s * difference, axis=axis, backend=backend)[0] for s in (1, -1))
        assert gradient[i] == pytest.approx(np.sum(g * (up - down)) / (2 * step), abs=1e-8)


def test_many_samples_are_few_enough_programs_of_triton(monkeypatch):
    """A grid has up to 65535 programs along its second axis; here it has 2."""
    triton = pytest.importorskip("gmkernels.iwae.triton")
    import cupy

    log_w = log_weights((100, 5), dtype=np.float32)
    bound, highest, scale = iwae_bound(log_w)
    given = [np.ones_like(bound), log_w, highest, scale]
    expected = iwae_bound_backward(*given)
    monkeypatch.setattr(triton, "_MOST_PIECES", 2)
    run, grids = triton.launch.triton, []
    monkeypatch.setattr(triton.launch, "triton", lambda k, grid, *a, **o: grids.append(grid) or run(k, grid, *a, **o))
    found = iwae_bound_backward(*map(cupy.asarray, given), backend="triton")
    assert [grid[1] for grid in grids] == [2]
    np.testing.assert_allclose(found.get(), expected, rtol=2e-5)


def test_matches_pytorch():
    torch = pytest.importorskip("torch")
    log_w = log_weights((50, 2003), dtype=np.float32)
    leaf = torch.from_numpy(log_w).requires_grad_()
    expected = torch.logsumexp(leaf, 0) - np.log(50)
    expected.sum().backward()
    bound, gradient = bound_and_weights(log_w)
    np.testing.assert_allclose(bound, expected.detach(), rtol=1e-6)
    np.testing.assert_allclose(gradient, leaf.grad, rtol=2e-5, atol=1e-30)


@pytest.mark.parametrize(
    "log_w, axis, message",
    [
        (np.float64(1), 0, r"log_w of shape \(\) has no axis 0"),
        (np.ones((2, 3)), 2, r"log_w of shape \(2, 3\) has no axis 2"),
        (np.ones((2, 3)), -3, "has no axis -3"),
        (np.ones((0, 3)), 0, r"log_w of shape \(0, 3\) has no samples along axis 0"),
        (np.ones((2, 3), int), 0, "expected a floating log_w, got int64"),
    ],
)
def test_refusals(log_w, axis, message):
    with pytest.raises(KernelError, match=f"iwae_bound: .*{message}"):
        iwae_bound(np.asarray(log_w), axis=axis)


def test_backward_refuses_a_gradient_that_does_not_fit():
    with pytest.raises(KernelError, match=r"bound_backward: expected g_bound float64\[3\].*float64\[2\]"):
        iwae_bound_backward(np.ones(2), np.ones((2, 3)), np.ones(3), np.ones(3))
