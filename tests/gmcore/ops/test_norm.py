"""Layers of normalisation against PyTorch to second order; their precision, statistics and errors."""

import numpy as np
import pytest

import gmcore
from gmcore import ops, tensor
from gmcore.errors import ArgumentError, ShapeError

RNG = np.random.default_rng(0)
X, W, B = RNG.standard_normal((4, 3)), RNG.uniform(0.5, 1.5, 3), RNG.standard_normal(3)
LAYERS = {
    "layer_norm": (lambda f, x, w, b: f.layer_norm(x, (3,), w, b), X, True),
    "rms_norm": (lambda f, x, w, b: f.rms_norm(x, (3,), w, eps=0.1), X, False),
    "group_norm": (lambda f, x, w, b: f.group_norm(x, 1, w, b), RNG.standard_normal((2, 3, 2)), True),
    "batch_norm": (lambda f, x, w, b: f.batch_norm(x, None, None, w, b, training=True), X, True),
    "batch_norm of rows": (
        lambda f, x, w, b: f.batch_norm(x, None, None, w, b, True, 0.1, 0.2), RNG.standard_normal((2, 3, 4)), True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_is_torchs_to_second_order(name, agrees_with_torch):
    torch = pytest.importorskip("torch")
    layer, x, biased = LAYERS[name]
    arrays = [x, W, B] if biased else [x, W]
    agrees_with_torch(
        lambda x, w, b=None: layer(ops, x, w, b),
        lambda x, w, b=None: layer(torch.nn.functional, x, w, b),
        arrays,
    )


def test_evaluation_uses_the_running_statistics(agrees_with_torch):
    torch = pytest.importorskip("torch")
    mean, var = np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.0, 2.0])
    agrees_with_torch(
        lambda x, w, b: ops.batch_norm(x, tensor(mean), tensor(var), w, b),
        lambda x, w, b: torch.nn.functional.batch_norm(x, torch.tensor(mean), torch.tensor(var), w, b),
        [X, W, B],
    )


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e5])
def test_float32_is_as_precise_far_from_zero(offset):
    """The deviations are exact up to the rounding of the input itself: no digits are lost to the mean."""
    x = (RNG.standard_normal((1000, 5)) + offset).astype(np.float32)
    exact = x.astype(np.float64)
    out, mean, var = (t.numpy() for t in ops.standardize(x, axis=0))
    assert out.dtype == mean.dtype == var.dtype == np.float32
    # The sums of 1000 terms of order 1 have at most 1000 roundings of 6e-8, in practice the root of that many.
    np.testing.assert_allclose(var, exact.var(0, keepdims=True), rtol=1e-5)
    expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(mean, exact.mean(0, keepdims=True), rtol=2e-7, atol=2e-6)


def test_constant_rows_are_zeros_with_a_finite_gradient():
    x = tensor(np.full((2, 3), 7.0, np.float32), requires_grad=True)
    out = ops.layer_norm(x, 3)
    assert not out.detach().numpy().any()
    assert np.isfinite(gmcore.grad(out, x, np.ones((2, 3), np.float32)).numpy()).all()


def test_half_types_keep_their_statistics_in_float32():
    x = np.array([[60000.0, 59000.0, 58000.0]], np.float16)
    out, mean, var = ops.standardize(x, axis=1)
    assert (out.dtype, mean.dtype, var.dtype) == (np.float16, np.float32, np.float32)
    assert mean.item() == 59008.0 or abs(mean.item() - 59000.0) < 32  # float16 is spaced by 32 there
    assert abs(out.numpy()).max() < 1.3
    t = tensor(np.array([[1.0, 2.0, 4.0]], np.float16), requires_grad=True)
    out, mean, var = ops.standardize(t, axis=1)
    g = gmcore.grad([out, mean, var], t, [np.ones((1, 3), np.float16), *[np.ones((1, 1), np.float32)] * 2])
    assert g.dtype == np.float16
    # the derivative of mean + var; a sum of standardised numbers is constant
    np.testing.assert_allclose(g.numpy(), [[1 / 3 + 2 / 3 * (x - 7 / 3) for x in (1, 2, 4)]], atol=2e-3)


def test_running_statistics_move_by_the_momentum():
    mean, var = tensor(np.zeros(3)), tensor(np.ones(3))
    ops.batch_norm(X, mean, var, training=True, momentum=0.25)
    np.testing.assert_allclose(mean.numpy(), 0.25 * X.mean(0), rtol=1e-14)
    np.testing.assert_allclose(var.numpy(), 0.75 + 0.25 * X.var(0, ddof=1), rtol=1e-14)
    assert mean.version == var.version == 1
    ops.batch_norm(X, mean, var)
    assert mean.version == 1


def test_errors():
    for call, match in (
        (lambda: ops.layer_norm(X, 4), r"layer_norm: expected an input whose last axes are \(4,\), got \(4, 3\)"),
        (lambda: ops.rms_norm(X, ()), r"rms_norm: expected an input whose last axes are \(\)"),
        (lambda: ops.layer_norm(X, 3, np.ones(2)), r"layer_norm: weight \(2,\) does not fit input \(4, 3\)"),
        (lambda: ops.layer_norm(X, 3, None, np.ones(2)), r"layer_norm: bias \(2,\) does not fit"),
        (lambda: ops.group_norm(X, 2), r"group_norm: .* C a multiple of num_groups=2, got \(4, 3\)"),
        (lambda: ops.batch_norm(X[0], None, None, training=True), r"batch_norm: expected input \(N, C\)"),
        (lambda: ops.batch_norm(X[:1], None, None, training=True), r"more than one value per channel, got \(1, 3\)"),
        (lambda: ops.batch_norm(X, tensor(np.zeros(2)), tensor(np.ones(3))), r"running_mean \(2,\) does not fit"),
    ):
        with pytest.raises(ShapeError, match=match + r".*test_norm\.py:\d"):
            call()
    with pytest.raises(ArgumentError, match="running_mean is None outside training"):
        ops.batch_norm(X, None, None)
    with pytest.raises(ArgumentError, match=r"standardize: no elements along axis \(0,\) of shape \(0, 3\)"):
        ops.standardize(np.zeros((0, 3)), axis=0)
