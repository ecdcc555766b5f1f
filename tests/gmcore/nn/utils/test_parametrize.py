"""Parametrised weights; those of PyTorch are compared in tests/gmcore/nn/test_exchange.py."""

import copy

import numpy as np
import pytest

from gmcore import grad, manual_seed, nn, ops, tensor
from gmcore.errors import ArgumentError, ShapeError
from gmcore.nn.utils.parametrizations import spectral_norm, weight_norm
from gmcore.nn.utils.parametrize import is_parametrized, register_parametrization, remove_parametrizations

X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


class Doubled(nn.Module):
    def forward(self, original):
        return 2.0 * original


def test_the_weight_is_computed_from_the_original_each_time():
    layer = nn.Linear(4, 3)
    weight, before = layer.weight, layer(X).detach().numpy()
    assert register_parametrization(layer, "weight", Doubled()) is layer
    assert isinstance(layer, nn.Linear) and is_parametrized(layer) and is_parametrized(layer, "weight")
    assert not is_parametrized(layer, "bias") and not is_parametrized(nn.Linear(4, 3))
    assert layer.parametrizations.weight.original is weight
    assert [name for name, _ in layer.named_parameters()] == ["bias", "parametrizations.weight.original"]
    bias = layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(X).detach().numpy() - bias, 2.0 * (before - bias), rtol=1e-5, atol=1e-6)
    weight.copy_(np.ones((3, 4)))
    np.testing.assert_array_equal(layer.weight.detach().numpy(), np.full((3, 4), 2.0))
    np.testing.assert_array_equal(grad(layer.weight.sum(), weight).numpy(), np.full((3, 4), 2.0))
    register_parametrization(layer, "weight", Doubled())
    np.testing.assert_array_equal(layer.weight.detach().numpy(), np.full((3, 4), 4.0))


@pytest.mark.parametrize("leave", [True, False])
def test_removing(leave):
    layer = register_parametrization(nn.Linear(4, 3), "weight", Doubled())
    original, value = layer.parametrizations.weight.original, layer.weight.detach().numpy()
    expected = value if leave else original.detach().numpy().copy()
    register_parametrization(layer, "bias", Doubled())
    assert remove_parametrizations(layer, "weight", leave) is layer
    assert layer.weight is original and type(layer) is not nn.Linear and is_parametrized(layer, "bias")
    np.testing.assert_array_equal(layer.weight.detach().numpy(), expected)
    remove_parametrizations(layer, "bias")
    assert type(layer) is nn.Linear and sorted(layer.state_dict()) == ["bias", "weight"]
    normed = weight_norm(nn.Linear(4, 3))
    value = normed.weight.detach().numpy()
    np.testing.assert_array_equal(remove_parametrizations(normed, "weight").weight.detach().numpy(), value)


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_one_module_is_not_another_and_a_copy_is_apart(norm):
    layer = norm(nn.Linear(4, 3))
    assert type(nn.Linear(4, 3)) is nn.Linear
    other = copy.deepcopy(layer).eval()
    layer.eval()
    before = other(X).detach().numpy()
    np.testing.assert_array_equal(layer(X).detach().numpy(), before)
    for p in layer.parameters():
        p.copy_(p.detach() * 3.0 + 1.0)
    np.testing.assert_array_equal(other(X).detach().numpy(), before)


def test_a_sequential_computes_the_parametrised_weight():
    model = nn.Sequential(weight_norm(nn.Linear(4, 3)), nn.Tanh())
    for p in model.parameters():
        p.copy_(p.detach() * 2.0)
    expected = np.tanh(X @ model[0].weight.detach().numpy().T + model[0].bias.detach().numpy())
    np.testing.assert_allclose(model(X).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_weight_norm_keeps_the_weight_at_first_and_its_length_is_g():
    layer = nn.Linear(4, 3, dtype="float64")
    before = layer.weight.detach().numpy()
    weight_norm(layer)
    np.testing.assert_allclose(layer.weight.detach().numpy(), before, rtol=1e-14)
    held = layer.parametrizations.weight
    held.original1.copy_(held.original1.detach() * 7.0)
    np.testing.assert_allclose(layer.weight.detach().numpy(), before, rtol=1e-14)
    held.original0.copy_(np.array([[1.0], [2.0], [3.0]]))
    np.testing.assert_allclose(np.linalg.norm(layer.weight.detach().numpy(), axis=1), [1.0, 2.0, 3.0], rtol=1e-14)


def test_spectral_norm_converges_to_the_largest_singular_value():
    manual_seed(0)
    layer = nn.Linear(6, 5, dtype="float64")
    w = layer.weight.detach().numpy()
    spectral_norm(layer, n_power_iterations=200)
    np.testing.assert_allclose(layer.weight.detach().numpy(), w / np.linalg.norm(w, 2), rtol=1e-9)
    # The gradient is that of the quotient, although the vectors are constants in it.
    original = layer.parametrizations.weight.original
    g = np.random.default_rng(1).standard_normal(w.shape)
    u, s, vt = np.linalg.svd(w)
    expected = g / s[0] - (g * w).sum() / s[0] ** 2 * np.outer(u[:, 0], vt[0])
    np.testing.assert_allclose(grad(layer.weight, original, g).numpy(), expected, rtol=1e-7, atol=1e-9)


def test_spectral_norm_iterates_in_training_only_and_keeps_the_tape():
    layer = spectral_norm(nn.Linear(6, 5))
    vectors = [b.numpy().copy() for b in layer.buffers()]
    layer.eval()(np.ones((1, 6), np.float32))
    for before, after in zip(vectors, layer.buffers(), strict=True):
        np.testing.assert_array_equal(before, after.numpy())
    first = layer.train().weight.sum()
    assert layer.weight.requires_grad
    assert any((before != after.numpy()).any() for before, after in zip(vectors, layer.buffers(), strict=True))
    first.backward()  # a later iteration has not changed what this one saved


def test_errors():
    class Shorter(nn.Module):
        def forward(self, original):
            return original[1:]

    layer = nn.Linear(4, 3)
    for call, match in (
        (lambda: register_parametrization(layer, "scale", Doubled()), "Linear has no parameter 'scale'"),
        (lambda: register_parametrization(layer, "weight", Shorter()), r"Shorter gives float32\[2, 4\], expected"),
        (lambda: remove_parametrizations(layer, "weight"), r"Linear\.weight is not parametrized"),
        (lambda: spectral_norm(layer, "scale"), "Linear has no parameter 'scale'"),
        (lambda: spectral_norm(layer, n_power_iterations=0), "n_power_iterations must be positive"),
    ):
        with pytest.raises(ArgumentError, match=match):
            call()
    with pytest.raises(ShapeError, match="dim 2 of a weight of shape"):
        weight_norm(layer, dim=2)
    assert type(layer) is nn.Linear and sorted(layer.state_dict()) == ["bias", "weight"]
    weight_norm(layer)
    with pytest.raises(ArgumentError, match="only a first parametrization"):
        weight_norm(layer)
    with pytest.raises(ArgumentError, match="has 2 originals; none can be left"):
        remove_parametrizations(layer, "weight", leave_parametrized=False)
    assert ops.sum(layer(tensor(X))).requires_grad
