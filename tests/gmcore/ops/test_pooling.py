"""Pooling over one axis and by number of windows, unpooling, against PyTorch; inverses; errors."""

from typing import Any

import numpy as np
import pytest

import gmcore
from gmcore import ops
from gmcore.errors import ArgumentError, DtypeError, ShapeError

RNG = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


CALLS: dict[str, tuple[tuple[int, ...], Any]] = {
    "max_pool1d": ((2, 3, 9), lambda f, x: f.max_pool1d(x, 3, 2, 1, 2, True)),
    "max_pool1d of one": ((3, 6), lambda f, x: f.max_pool1d(x, 2)),
    "avg_pool1d": ((2, 3, 8), lambda f, x: f.avg_pool1d(x, 3, 2, 1, True, False)),
    "avg_pool1d of one": ((3, 7), lambda f, x: f.avg_pool1d(x, (2,), padding=1)),
    "adaptive_avg_pool1d": ((2, 3, 7), lambda f, x: f.adaptive_avg_pool1d(x, 3)),
    "adaptive_avg_pool2d": ((2, 3, 7, 4), lambda f, x: f.adaptive_avg_pool2d(x, (3, None))),
    "adaptive_avg_pool2d of one": ((3, 5, 4), lambda f, x: f.adaptive_avg_pool2d(x, 6)),
    "global average": ((2, 3, 7, 4), lambda f, x: f.adaptive_avg_pool2d(x, 1)),
}


@pytest.mark.parametrize("name", CALLS)
def test_is_torchs_to_second_order(name: str, agrees_with_torch: Any) -> None:
    torch = pytest.importorskip("torch")
    shape, call = CALLS[name]
    agrees_with_torch(lambda x: call(ops, x), lambda x: call(torch.nn.functional, x), [numbers(*shape)])


@pytest.mark.parametrize("shape, options", [
    ((2, 3, 6, 4), {"kernel_size": 2}),
    ((3, 6, 5), {"kernel_size": (2, 3), "stride": (3, 3), "padding": (1, 0)}),
    ((2, 3, 6), {"kernel_size": 3}),
    ((3, 6), {"kernel_size": 2, "stride": 4}),
])  # fmt: skip
def test_unpooling_is_torchs(shape: tuple[int, ...], options: dict[str, Any], agrees_with_torch: Any) -> None:
    """Where windows do not overlap; PyTorch gives elements that are overwritten a gradient too."""
    torch = pytest.importorskip("torch")
    axes = 1 if shape[-2:] in ((3, 6),) else 2
    x = numbers(*shape)
    y, indices = getattr(ops, f"max_pool{axes}d")(x, **options, return_indices=True)
    size = shape[-axes:]
    agrees_with_torch(
        lambda y: getattr(ops, f"max_unpool{axes}d")(y, indices, **options, output_size=size),
        lambda y: getattr(torch.nn.functional, f"max_unpool{axes}d")(
            y, torch.tensor(indices.numpy()), **options, output_size=size
        ),
        [y.numpy().copy()],
    )


@pytest.mark.parametrize("kernel_size, stride", [(2, 2), (3, 2), (3, 1)])
def test_unpooling_keeps_the_maxima_and_nothing_else(kernel_size: int, stride: int) -> None:
    """Also where windows overlap and find the same maximum: it is there once."""
    x = 5.0 + RNG.permutation(2 * 3 * 7 * 7).reshape(2, 3, 7, 7)
    y, indices = ops.max_pool2d(x, kernel_size, stride, return_indices=True)
    back = ops.max_unpool2d(y, indices, kernel_size, stride, output_size=(7, 7)).numpy()
    found = np.zeros_like(x, bool).reshape(2, 3, 49)
    np.put_along_axis(found, indices.numpy().reshape(2, 3, -1), True, 2)
    np.testing.assert_array_equal(back, np.where(found.reshape(x.shape), x, 0.0))
    again = ops.max_pool2d(back, kernel_size, stride)
    np.testing.assert_array_equal(again.numpy(), y.numpy())


def test_unpooled_maxima_have_the_gradient_of_the_elements_they_are() -> None:
    x = 0.3 * RNG.permutation(25).reshape(1, 1, 5, 5)

    def kept(x: Any) -> Any:
        y, indices = ops.max_pool2d(x * x, 3, 1, return_indices=True)
        return ops.max_unpool2d(y, indices, 3, 1)

    assert gmcore.gradcheck(kept, [x], order=3, directions=2)


def test_float32_and_places_survive() -> None:
    x = gmcore.tensor(numbers(1, 1, 4, 4).astype(np.float32), requires_grad=True)
    y, indices = ops.max_pool2d(x, 2, return_indices=True)
    assert (y.dtype, indices.dtype) == (np.float32, np.int64) and not indices.requires_grad
    assert ops.adaptive_avg_pool2d(x, 2).dtype == np.float32
    half = ops.avg_pool2d(x.detach().numpy().astype(np.float16), 2)
    assert half.dtype == np.float16


X = np.ones((2, 3, 4, 5))
PLACES = np.zeros((2, 3, 2, 2), int)


@pytest.mark.parametrize("call, kind, message", [
    (lambda: ops.max_pool2d(X[0, 0], 2), ShapeError, r"max_pool2d: expected an input \(N, C, H, W\) or .*\(4, 5\)"),
    (lambda: ops.max_pool1d(X, 2), ShapeError, r"max_pool1d: expected an input \(N, C, L\) or \(C, L\)"),
    (lambda: ops.max_pool2d(X, 6), ShapeError, r"max_pool2d: expected .* no larger .* got input float64\[2, 3, 4, 5\]"),
    (lambda: ops.max_pool1d(X[0], 9), ShapeError, r"max_pool1d: expected .* no larger .* got input float64\[3, 4, 5\]"),
    (lambda: ops.max_pool2d(X, 2, padding=2), ShapeError, "max_pool2d: expected a padding of at most half the kernel"),
    (lambda: ops.avg_pool2d(X, 0), ArgumentError, "avg_pool2d: kernel_size=0; expected an integer or 2 of them"),
    (lambda: ops.avg_pool2d(X, 2, stride=(1, 0)), ArgumentError, r"avg_pool2d: stride=\(1, 0\)"),
    (lambda: ops.avg_pool2d(X, 2, padding=-1), ArgumentError, "avg_pool2d: padding=-1"),
    (lambda: ops.avg_pool2d(X, 2, divisor_override=0), ArgumentError, "avg_pool2d: divisor_override=0"),
    (lambda: ops.max_pool2d(X.astype(int), 2), DtypeError, "max_pool2d: expected floating numbers, got int64"),
    (lambda: ops.adaptive_avg_pool2d(X, (2, 0)), ArgumentError, r"adaptive_avg_pool2d: output_size=\[2, 0\]"),
    (lambda: ops.adaptive_avg_pool2d(X[:, :, :0], 2), ShapeError, r"adaptive_avg_pool2d: .*\(2, 3, 0, 5\)"),
    (lambda: ops.max_unpool2d(X[..., :2], PLACES, 2), ShapeError, r"max_unpool2d: .* shape \(2, 3, 4, 2\), got int64"),
    (lambda: ops.max_unpool2d(X[:, :, :2, :2], PLACES * 0.5, 2), DtypeError, "max_unpool2d: expected integer indices"),
    (lambda: ops.max_unpool2d(X[:, :, :2, :2], PLACES + 16, 2), ArgumentError, "max_unpool2d: indices from 16 to 16"),
    (lambda: ops.max_unpool2d(X[:, :, :2, :2], PLACES, 2, output_size=(6, 4)), ArgumentError,
     r"max_unpool2d: output_size=\(6, 4\); expected \(4, 4\), give or take less than the stride"),
])  # fmt: skip
def test_errors_name_what_was_given(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        call()
    assert "test_pooling.py:" in str(error.value)
