"""Batch normalisation: what does not change it, precision far from zero, channels apart, errors."""

import numpy as np
import pytest

from gmkernels import KernelError
from gmkernels.norm import batch_norm, batch_norm_backward

BACKENDS = ("reference", "cpu")
SHAPES = ((37, 5), (6, 5, 7), (3, 5, 4, 3))
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_shape = pytest.mark.parametrize("shape", SHAPES)


def arrays(shape: tuple[int, ...], dtype: str = "float64") -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal(shape), rng.standard_normal(shape)
    return tuple(a.astype(dtype) for a in (x, g, rng.uniform(0.5, 1.5, shape[1]), rng.standard_normal(shape[1])))


def along(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (0, *range(2, len(shape)))


@each_backend
@each_shape
def test_mean_and_variance_become_bias_and_weight(shape: tuple[int, ...], backend: str) -> None:
    x, _, weight, bias = arrays(shape)
    y, mean, var = batch_norm(x, weight, bias, eps=0.0, backend=backend)
    np.testing.assert_allclose([mean, var], [x.mean(along(shape)), x.var(along(shape))], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose([y.mean(along(shape)), y.std(along(shape))], [bias, weight], rtol=1e-12, atol=1e-14)


@each_backend
@each_shape
def test_scale_and_shift_of_the_input_do_not_matter(shape: tuple[int, ...], backend: str) -> None:
    x, g, weight, bias = arrays(shape)
    y, mean, var = batch_norm(x, weight, bias, eps=0.0, backend=backend)
    moved, mean_2, var_2 = batch_norm(4.0 * x + 8.0, weight, bias, eps=0.0, backend=backend)
    np.testing.assert_allclose(moved, y, rtol=0, atol=1e-13)
    gradients = batch_norm_backward(g, x, weight, mean, var, eps=0.0, backend=backend)
    scaled = batch_norm_backward(g, 4.0 * x + 8.0, weight, mean_2, var_2, eps=0.0, backend=backend)
    for found, expected in zip((4.0 * scaled[0], *scaled[1:]), gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    # So the gradient is orthogonal to both directions.
    d_x = gradients[0]
    np.testing.assert_allclose([d_x.sum(along(shape)), (d_x * x).sum(along(shape))], 0, rtol=0, atol=1e-12)


@each_backend
def test_the_order_of_elements_does_not_matter(backend: str) -> None:
    x, g, weight, bias = arrays((6, 5, 4))
    rows = batch_norm(x, weight, bias, backend=backend)
    as_rows = [a.transpose(0, 2, 1).reshape(24, 5) for a in (x, g)]
    columns = batch_norm(as_rows[0], weight, bias, backend=backend)
    np.testing.assert_allclose(columns[0].reshape(6, 4, 5).transpose(0, 2, 1), rows[0], rtol=0, atol=1e-14)
    found = batch_norm_backward(as_rows[1], as_rows[0], weight, *columns[1:], backend=backend)
    expected = batch_norm_backward(g, x, weight, *rows[1:], backend=backend)
    np.testing.assert_allclose(found[0].reshape(6, 4, 5).transpose(0, 2, 1), expected[0], rtol=0, atol=1e-14)
    np.testing.assert_allclose(found[1:], expected[1:], rtol=0, atol=1e-13)


@each_backend
@pytest.mark.parametrize("shape", [(1000, 3), (10, 3, 100)])
@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_float32_is_as_precise_far_from_zero(offset: float, shape: tuple[int, ...], backend: str) -> None:
    """Forward and backward: no digits are lost to the mean, though float32 spaces it by 1/128 at 1e5."""
    x, g, weight, bias = arrays(shape, "float32")
    x = (x + np.float32(offset)).astype(np.float32)
    exact = [a.astype(np.float64) for a in (x, weight, bias)]
    y, mean, var = batch_norm(x, weight, bias, backend=backend)
    expected = batch_norm(*exact, backend="reference")
    np.testing.assert_allclose(y, expected[0], rtol=0, atol=1e-5)  # some 20 roundings of 6e-8 of numbers up to 5
    np.testing.assert_allclose(var, expected[2], rtol=2e-6)
    found = batch_norm_backward(g, x, weight, mean, var, backend=backend)
    reference = batch_norm_backward(g.astype(float), exact[0], exact[1], *expected[1:], backend="reference")
    for a, b in zip(found, reference, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-5)  # sums of 1000 terms: as in the spec


@each_backend
@each_shape
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_nan_stays_in_its_channel(value: float, shape: tuple[int, ...], backend: str) -> None:
    x, g, weight, bias = arrays(shape)
    x[1, 2] = value
    y, mean, var = batch_norm(x, weight, bias, backend=backend)
    d_x, d_weight, d_bias = batch_norm_backward(g, x, weight, mean, var, backend=backend)
    others = [c for c in range(5) if c != 2]
    assert np.isnan(y[:, 2]).all() and np.isnan(var[2]) and np.isnan(d_x[:, 2]).all() and np.isnan(d_weight[2])
    for a in (y, d_x):
        assert np.isfinite(a[:, others]).all()
    assert np.isfinite(np.array([mean, var, d_weight, d_bias])[:, others]).all() and np.isfinite(d_bias[2])


@pytest.mark.parametrize("shape", [(60, 3), (15, 3, 4)])  # so that the mean is no number
@pytest.mark.parametrize("offset", [1e12, 1e15])
def test_float64_is_as_precise_far_from_zero(offset: float, shape: tuple[int, ...]) -> None:
    """The mean, which lies between two numbers, has a second part there too."""
    x = offset + 8.0 * np.random.default_rng(0).integers(-3, 4, shape)
    y, *_ = batch_norm(x, np.ones(3), np.zeros(3), eps=0.0, backend="cpu")
    d = x - offset
    d -= d.mean(along(shape), keepdims=True)
    np.testing.assert_allclose(y, d / np.sqrt((d * d).mean(along(shape), keepdims=True)), atol=1e-12)


@pytest.mark.parametrize("length", [2, 3, 17])
def test_no_more_terms_of_short_runs_are_added_in_float32_than_of_long_ones(length: int) -> None:
    g = np.full((20_000, 1, length), 0.1, np.float32)
    x = np.random.default_rng(0).standard_normal(g.shape).astype(np.float32)
    _, _, d_bias = batch_norm_backward(g, x, *np.ones((3, 1), np.float32), eps=1e-5, backend="cpu")
    np.testing.assert_allclose(d_bias, g.sum(dtype=float), rtol=64 * 2.0**-24)


@each_backend
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("place", [0, -1])
def test_an_infinity_makes_the_mean_infinite_wherever_it_is(shape: tuple[int, ...], place: int, backend: str) -> None:
    x, _, weight, bias = arrays(shape)
    x[place, 1] = np.inf
    with np.errstate(invalid="ignore"):
        _, mean, _ = batch_norm(x, weight, bias, eps=1e-5, backend=backend)
    assert mean[1] == np.inf and np.isfinite(np.delete(mean, 1)).all()


def test_misfits_are_named() -> None:
    x, g, weight, bias = arrays((4, 5, 2))
    for call, message in (
        (lambda: batch_norm(x[0, 0], weight, bias), "batch_norm: expected x"),
        (lambda: batch_norm(x, weight[:4], bias), r"batch_norm: .* got x float64\[4, 5, 2\], weight float64\[4\]"),
        (lambda: batch_norm(x, weight, bias.astype("f")), "batch_norm: .* of one dtype"),
        (lambda: batch_norm(x[:0], weight, bias), r"batch_norm: expected an element in each channel, got x"),
        (lambda: batch_norm_backward(g[:1], x, weight, bias, bias), "batch_norm_backward: .* that fit"),
    ):
        with pytest.raises(KernelError, match=message):
            call()
