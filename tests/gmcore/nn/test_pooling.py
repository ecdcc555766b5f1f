"""Layers of pooling: the way back, arguments, errors; test_exchange.py compares the others with PyTorch."""

from typing import Any

import numpy as np
import pytest

from gmcore import nn, ops
from gmcore.errors import ArgumentError, ShapeError

X = np.random.default_rng(0).standard_normal((2, 3, 4, 6)).astype(np.float32)


@pytest.mark.parametrize("down, up, x", [
    (nn.MaxPool2d((2, 3), return_indices=True), nn.MaxUnpool2d((2, 3)), X),
    (nn.MaxPool1d(2, return_indices=True), nn.MaxUnpool1d(2), X[0]),
])  # fmt: skip
def test_unpooling_puts_maxima_back(down: Any, up: Any, x: np.ndarray) -> None:
    y, indices = down(x)
    back = up(y, indices).numpy()
    assert back.shape == x.shape and (back[back != 0] == x[back != 0]).all()
    np.testing.assert_array_equal(np.sort(back[back != 0]), np.sort(y.numpy().ravel()))
    wide = nn.MaxUnpool2d((2, 3))(*down(x), output_size=(5, 6)) if x.ndim == 4 else up(y, indices, [7])
    assert wide.shape[-1] == (6 if x.ndim == 4 else 7)


def test_arguments_come_in_the_order_of_pytorch() -> None:
    layer = nn.MaxPool2d(2, 1, 1, 1, True, True)
    assert layer.return_indices and layer.ceil_mode and len(layer(X)) == 2
    assert repr(nn.MaxPool2d(2)) == (
        "MaxPool2d(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0), dilation=(1, 1), ceil_mode=False)"
    )
    np.testing.assert_array_equal(
        nn.AvgPool2d(2, 1, 1, True, False, 3)(X).numpy(), ops.avg_pool2d(X, 2, 1, 1, True, False, 3).numpy()
    )


def test_errors_name_the_layer_or_the_operation() -> None:
    for make, message in (
        (lambda: nn.MaxPool2d(0), "MaxPool2d: kernel_size=0"),
        (lambda: nn.MaxPool1d(2, stride=0), "MaxPool1d: stride=0"),
        (lambda: nn.MaxUnpool2d(2, padding=-1), "MaxUnpool2d: padding=-1"),
        (lambda: nn.AvgPool2d(), "AvgPool2d: missing a required argument"),
    ):
        with pytest.raises(ArgumentError, match=message):
            make()
    with pytest.raises(ShapeError, match=r"avg_pool2d: expected .* no larger .*test_pooling\.py"):
        nn.AvgPool2d(7)(X)
