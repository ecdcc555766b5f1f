"""Convolution over one axis, its transpose, every option against PyTorch; half types; errors."""

from typing import Any

import numpy as np
import pytest

import gmcore
from gmcore import ops, tensor
from gmcore.errors import ArgumentError, DtypeError, ShapeError

RNG = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


CALLS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "conv1d": ((2, 2, 7), (3, 2, 3), {}),
    "conv1d strided": ((4, 9), (2, 2, 2), {"stride": (2,), "padding": 1, "dilation": 2, "groups": 2}),
    "conv1d same": ((1, 2, 5), (1, 2, 3), {"padding": "same", "dilation": 2}),
    "conv_transpose1d": ((2, 2, 4), (2, 3, 3), {}),
    "conv_transpose1d strided": (
        (4, 5), (4, 1, 3), {"stride": 3, "padding": 1, "output_padding": (2,), "groups": 2, "dilation": 2},
    ),
    "conv_transpose2d": ((2, 2, 3, 2), (2, 3, 2, 3), {}),
    "conv_transpose2d strided": (
        (1, 4, 3, 4), (4, 1, 2, 3),
        {"stride": (2, 3), "padding": (0, 2), "output_padding": (1, 2), "groups": 2, "dilation": (3, 1)},
    ),
    "conv_transpose2d of one image": ((2, 3, 2), (2, 3, 2, 3), {"stride": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_is_torchs_to_second_order(name: str, agrees_with_torch: Any) -> None:
    torch = pytest.importorskip("torch")
    x, weight, options = CALLS[name]
    filters = weight[0] if "transpose" not in name else weight[1] * options.get("groups", 1)
    function = name.split()[0]
    agrees_with_torch(
        lambda *arrays: getattr(ops, function)(*arrays, **options),
        lambda *arrays: getattr(torch.nn.functional, function)(*arrays, **options),
        [numbers(*x), numbers(*weight), numbers(filters)],
    )


def test_the_transpose_is_adjoint_and_differentiable_to_third_order() -> None:
    options: dict[str, Any] = {"stride": 2, "padding": 1}
    x, weight = numbers(1, 2, 5, 4), numbers(3, 2, 3, 2)
    y = ops.conv2d(x, weight, **options)
    g = numbers(*y.shape)
    back = ops.conv_transpose2d(g, weight, output_padding=(0, 0), **options)
    assert back.shape == x.shape
    assert (y.numpy() * g).sum() == pytest.approx((x * back.numpy()).sum(), abs=1e-12)
    assert gmcore.gradcheck(
        lambda *xs: ops.conv_transpose2d(*xs, **options), [g, weight, numbers(2)], order=3, directions=1
    )


def test_mixed_derivatives_of_one_product_in_any_order() -> None:
    """The second gradient crosses from one operation of the family to the next."""
    arrays = [numbers(2, 2, 4, 3), numbers(2, 2, 2, 2)]
    x, weight = (tensor(a, requires_grad=True) for a in arrays)
    loss = ops.sum(ops.conv2d(x, weight, stride=2, padding=1) ** 3)
    first = gmcore.grad(loss, weight, create_graph=True)
    second = gmcore.grad(ops.sum(first * first), x, create_graph=True)
    third = gmcore.grad(ops.sum(second * second), weight)

    def gradient_size(w: np.ndarray) -> float:
        xs, ws = (tensor(a, requires_grad=True) for a in (arrays[0], w))
        g = gmcore.grad(ops.sum(ops.conv2d(xs, ws, stride=2, padding=1) ** 3), ws, create_graph=True)
        return float((gmcore.grad(ops.sum(g * g), xs).numpy() ** 2).sum())

    direction, step = numbers(2, 2, 2, 2), 1e-5
    slope = (gradient_size(arrays[1] + step * direction) - gradient_size(arrays[1] - step * direction)) / (2 * step)
    assert (third.numpy() * direction).sum() == pytest.approx(slope, rel=1e-7)


def test_one_axis_is_two_of_height_one() -> None:
    x, weight, bias = numbers(2, 3, 8), numbers(4, 3, 3), numbers(4)
    found = ops.conv1d(x, weight, bias, 2, 1, 1)
    expected = ops.conv2d(x[:, :, None], weight[:, :, None], bias, (1, 2), (0, 1))
    np.testing.assert_array_equal(found.numpy(), expected.numpy()[:, :, 0])


def test_half_types_add_up_in_float32() -> None:
    x, weight = numbers(2, 8, 6, 6).astype(np.float16), numbers(3, 8, 3, 3).astype(np.float16)
    y = ops.conv2d(x, weight)
    exact = ops.conv2d(x.astype(float), weight.astype(float)).numpy()
    assert y.dtype == np.float16
    np.testing.assert_allclose(y.numpy(), exact, rtol=2**-11, atol=1e-4)  # one rounding to float16


X, W = np.ones((2, 4, 5, 5)), np.ones((6, 2, 3, 3))


@pytest.mark.parametrize("call, kind, message", [
    (lambda: ops.conv2d(X[0, 0], W), ShapeError, r"conv2d: expected an input \(N, C, H, W\) or \(C, H, W\), .*\(5, 5"),
    (lambda: ops.conv1d(X, W), ShapeError, r"conv1d: expected an input \(N, C, L\) or \(C, L\), got shape \(2, 4, 5"),
    (lambda: ops.conv2d(X, W[0]), ShapeError, r"conv2d: expected a weight \(O, C / groups, kH, kW\); got input"),
    (lambda: ops.conv2d(X, W), ShapeError, r"conv2d: .* for C = 4 channels .*; got input float64\[2, 4, 5, 5\], w"),
    (lambda: ops.conv2d(X, W[:5], groups=2), ShapeError, r"in equal groups; got .*float64\[5, 2, 3, 3\], groups=2"),
    (lambda: ops.conv1d(X[0], W[0], groups=3), ShapeError, r"conv1d: expected a weight \(O, C / groups, k\)"),
    (lambda: ops.conv_transpose2d(X, W), ShapeError, r"conv_transpose2d: expected a weight \(C, O / groups, kH, kW\)"),
    (lambda: ops.conv2d(X, W, np.ones(5), groups=2), ShapeError, r"conv2d: expected a bias \[6\], not \[5\]; got"),
    (lambda: ops.conv2d(X, W, dilation=3, groups=2), ShapeError, "conv2d: .* kernel no larger than the padded input"),
    (lambda: ops.conv2d(X, W[:, :, :0], groups=2), ShapeError, r"conv2d: expected a weight .*\[6, 2, 0, 3\]"),
    (lambda: ops.conv2d(X, W, groups=0), ArgumentError, "conv2d: groups=0; expected a positive integer"),
    (lambda: ops.conv2d(X, W, stride=0, groups=2), ArgumentError, "conv2d: stride=0; expected an integer or 2 of them"),
    (lambda: ops.conv2d(X, W, padding=(1, -1), groups=2), ArgumentError, r"conv2d: padding=\(1, -1\); .* at least 0"),
    (lambda: ops.conv2d(X, W, dilation=(1, 1, 1), groups=2), ArgumentError, r"conv2d: dilation=\(1, 1, 1\)"),
    (lambda: ops.conv2d(X, W, padding="full", groups=2), ArgumentError, "conv2d: padding='full'"),
    (lambda: ops.conv2d(X, W, stride=2, padding="same", groups=2), ArgumentError, "conv2d: padding='same' needs a"),
    (lambda: ops.conv2d(X, W.astype("f"), groups=2), DtypeError, "conv2d: expected arrays of one dtype; .* weight fl"),
    (lambda: ops.conv2d(X, W, np.ones(6, "f"), groups=2), DtypeError, "conv2d: expected a bias float64, not float32"),
    (lambda: ops.conv2d(X.astype(int), W), DtypeError, "conv2d: expected floating numbers, got int64"),
    (lambda: ops.conv_transpose2d(X, W.reshape(4, 3, 3, 3), stride=2, output_padding=2), ArgumentError,
     "conv_transpose2d: output_padding=2; expected less than the stride, 2"),
    (lambda: ops.conv_transpose2d(X, W.reshape(4, 3, 3, 3), padding=4), ShapeError, "an output of at least one"),
])  # fmt: skip
def test_errors_name_what_was_given(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        call()
    assert "test_conv.py:" in str(error.value)
