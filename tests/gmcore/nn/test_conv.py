"""Layers of convolution: first weights, sizes asked for, paddings, errors; test_exchange.py compares with PyTorch."""

from typing import Any

import numpy as np
import pytest

from gmcore import manual_seed, nn, ops, tensor
from gmcore.errors import ArgumentError, ShapeError


@pytest.mark.parametrize("make, fan_in", [
    (lambda: nn.Conv2d(8, 300, (3, 2), groups=2), 24), (lambda: nn.Conv1d(8, 300, 5), 40),
    (lambda: nn.ConvTranspose2d(8, 300, 3, groups=2), 150 * 9), (lambda: nn.ConvTranspose1d(8, 300, 2), 600),
])  # fmt: skip
def test_first_weights_are_uniform_by_the_fan_in(make: Any, fan_in: int) -> None:
    manual_seed(0)
    layer = make()
    bound = fan_in**-0.5
    for p in layer.parameters():
        values = p.detach().numpy() / bound
        assert abs(values).max() <= 1.0 and values.dtype == np.float32
        # 300 values or more: the variance of U(-1, 1) is 1/3, its estimate has a standard deviation below 0.018.
        assert values.var() == pytest.approx(1 / 3, abs=0.08)


def test_the_size_of_a_transpose_can_be_asked_for() -> None:
    layer = nn.ConvTranspose2d(2, 3, 3, stride=(2, 3), padding=1)
    x = np.ones((1, 2, 4, 4), np.float32)
    for size in ((7, 10), (8, 12)):
        assert layer(x, output_size=size).shape == (1, 3, *size)
        assert layer(x, output_size=(1, 3, *size)).shape == (1, 3, *size)
    back = nn.Conv2d(3, 2, 3, stride=(2, 3), padding=1)
    assert back(layer(x, output_size=(8, 12))).shape == x.shape
    with pytest.raises(ArgumentError, match=r"ConvTranspose2d: output_size=\(9, 10\); expected from \(7, 10\)"):
        layer(x, output_size=(9, 10))
    assert nn.ConvTranspose1d(2, 1, 3, 2)(np.ones((2, 4), np.float32), [10]).shape == (1, 10)


def test_a_circular_padding_commutes_with_a_rotation() -> None:
    layer = nn.Conv2d(1, 2, 3, padding="same", padding_mode="circular", dtype="float64")
    x = np.random.default_rng(0).standard_normal((1, 1, 5, 6))
    rotated = layer(np.roll(x, (2, 1), (2, 3)))
    np.testing.assert_allclose(rotated.detach(), np.roll(layer(x).detach().numpy(), (2, 1), (2, 3)), rtol=0, atol=1e-14)


def test_arguments_are_shown() -> None:
    assert repr(nn.Conv2d(4, 2, 3, 2, 1, groups=2, bias=False)) == (
        "Conv2d(4, 2, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), groups=2, bias=False)"
    )
    assert "output_padding=(1,)" in repr(nn.ConvTranspose1d(1, 1, 3, 2, output_padding=1))


def test_dropout_of_planes() -> None:
    manual_seed(0)
    layer, x = nn.Dropout2d(0.25), tensor(np.ones((100, 40, 2, 3), np.float32))
    y = layer(x).numpy()
    assert ((y == 0).all((2, 3)) | np.isclose(y, 4 / 3).all((2, 3))).all()
    # 4000 planes: the share has a standard deviation of 0.007.
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.035)
    assert layer.eval()(x) is x
    with pytest.raises(ShapeError, match=r"Dropout2d: expected an input .* got \(3, 2\)"):
        layer(np.ones((3, 2), np.float32))


@pytest.mark.parametrize("make, message", [
    (lambda: nn.Conv2d(3, 4, 3, groups=2), "Conv2d: groups=2 does not divide in_channels=3 and out_channels=4"),
    (lambda: nn.Conv2d(0, 4, 3), "Conv2d: in_channels must be a positive integer, got 0"),
    (lambda: nn.Conv1d(1, 4, 0), "Conv1d: kernel_size=0; expected an integer, at least 1"),
    (lambda: nn.Conv1d(1, 4, 2, stride=0), "Conv1d: stride=0"),
    (lambda: nn.Conv2d(1, 4, 2, padding="full"), "Conv2d: padding='full'; expected integers, 'same' or 'valid'"),
    (lambda: nn.Conv2d(1, 4, 2, 2, padding="same"), r"Conv2d: padding='same' needs a stride of 1, got \(2, 2\)"),
    (lambda: nn.Conv2d(1, 4, 2, padding=-1), "Conv2d: padding=-1"),
    (lambda: nn.Conv2d(1, 4, 2, padding_mode="mirror"), "Conv2d: padding_mode='mirror'; expected 'zeros' or 'ref"),
    (lambda: nn.ConvTranspose2d(1, 4, 2, padding="same"), "ConvTranspose2d: padding='same'; expected integers"),
    (lambda: nn.ConvTranspose2d(1, 4, 2, padding_mode="reflect"), "ConvTranspose2d: padding_mode='reflect'; exp"),
    (lambda: nn.ConvTranspose1d(1, 4, 2, output_padding=1), r"ConvTranspose1d: output_padding=\(1,\); .* less than"),
])  # fmt: skip
def test_arguments_that_do_not_fit_are_named(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()


def test_inputs_that_do_not_fit_are_named() -> None:
    with pytest.raises(ShapeError, match=r"conv2d: .* for C = 3 channels .*input float32\[1, 3, 4, 4\].*test_conv\.py"):
        nn.Conv2d(2, 1, 3)(np.ones((1, 3, 4, 4), np.float32))
    with pytest.raises(ShapeError, match=r"Conv2d: expected an input of 3 or 4 axes, got \(4, 4\)"):
        nn.Conv2d(2, 1, 3, padding=1, padding_mode="reflect")(np.ones((4, 4), np.float32))


def test_a_generator_grows_what_a_discriminator_shrinks() -> None:
    """Shapes of the usual stacks, and a step of training that lowers the loss."""
    manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.ConvTranspose2d(4, 1, 4, 2, 1),
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((8, 1, 12, 12)).astype(np.float32)
    losses = []
    for _ in range(5):
        loss = ops.mean(ops.square(model(x) - x))
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        for p in model.parameters():
            p.copy_(p.detach().numpy() - 0.1 * p.grad.numpy())
    assert model(x).shape == x.shape
    assert losses == sorted(losses, reverse=True)
