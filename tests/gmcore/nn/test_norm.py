import numpy as np
import pytest

from gmcore import nn, tensor
from gmcore.errors import ArgumentError, ShapeError

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


def test_training_standardises_and_evaluation_repeats_the_running_statistics():
    layer = nn.BatchNorm1d(4, momentum=1.0)
    y = layer(X).detach().numpy()
    np.testing.assert_allclose(y.mean(0), 0.0, atol=1e-6)
    np.testing.assert_allclose(y.var(0), 1.0, rtol=1e-4)
    n = len(X)
    expected = (X - X.mean(0)) / np.sqrt(X.var(0) * n / (n - 1) + 1e-5)
    np.testing.assert_allclose(layer.eval()(X).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    assert layer.num_batches_tracked.item() == 1
    np.testing.assert_allclose(layer(X[:1]).detach().numpy(), expected[:1], rtol=1e-4, atol=1e-5)


def test_without_momentum_the_statistics_are_averages_of_the_batches():
    layer = nn.BatchNorm1d(4, momentum=None)
    batches = [X + i for i in range(3)]
    for batch in batches:
        layer(batch)
    np.testing.assert_allclose(layer.running_mean.numpy(), np.mean([b.mean(0) for b in batches], 0), rtol=1e-5)
    layer.reset_parameters()
    assert layer.running_mean.tolist() == [0.0] * 4 and layer.num_batches_tracked.item() == 0


def test_a_refused_batch_leaves_no_trace():
    layer = nn.BatchNorm1d(4)
    with pytest.raises(ShapeError, match="more than one value per channel"):
        layer(X[:1])
    assert layer.num_batches_tracked.item() == 0 and layer.running_var.tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (lambda **how: nn.LayerNorm((2, 3), **how), {"weight": (2, 3), "bias": (2, 3)}),
        (lambda **how: nn.LayerNorm(3, bias=False, **how), {"weight": (3,)}),
        (lambda **how: nn.LayerNorm(3, elementwise_affine=False, **how), {}),
        (lambda **how: nn.RMSNorm(3, **how), {"weight": (3,)}),
        (lambda **how: nn.GroupNorm(2, 4, **how), {"weight": (4,), "bias": (4,)}),
        (lambda **how: nn.BatchNorm1d(4, affine=False, **how), {}),
        (lambda **how: nn.BatchNorm1d(4, **how), {"weight": (4,), "bias": (4,)}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_start_as_the_identity_in_the_dtype_asked_for(make, parameters, dtype):
    layer = make(dtype=dtype, device="cpu")
    assert {name: p.shape for name, p in layer.named_parameters()} == parameters
    for name, p in layer.named_parameters():
        assert p.dtype == dtype and (p.detach().numpy() == (name == "weight")).all()
        p.copy_(np.full(p.shape, 3.0))
    layer.reset_parameters()
    assert all((p.detach().numpy() == (name == "weight")).all() for name, p in layer.named_parameters())


def test_errors_name_the_layer_and_the_shapes():
    for layer, shape, match in (
        (nn.BatchNorm1d(4), (6, 3), r"BatchNorm1d: expected an input \(N, 4\) or \(N, 4, L\), got \(6, 3\)"),
        (nn.BatchNorm1d(4), (4,), r"BatchNorm1d: expected .* got \(4,\)"),
        (nn.BatchNorm1d(4), (2, 4, 3, 3), r"BatchNorm1d: expected .* got \(2, 4, 3, 3\)"),
        (nn.GroupNorm(2, 4), (2, 6), r"GroupNorm: expected an input \(N, 4, \.\.\.\), got \(2, 6\)"),
        (nn.LayerNorm(4), (2, 3), r"last axes are \(4,\), got \(2, 3\)"),
    ):
        with pytest.raises(ShapeError, match=match):
            layer(tensor(np.ones(shape)))
    for make, match in (
        (lambda: nn.BatchNorm1d(0), "num_features must be a positive integer, got 0"),
        (lambda: nn.LayerNorm(()), "normalized_shape is empty"),
        (lambda: nn.LayerNorm((3, -1)), "normalized_shape must be a positive integer, got -1"),
        (lambda: nn.GroupNorm(3, 4), "num_channels=4 is no multiple of num_groups=3"),
        (lambda: nn.RMSNorm(3, dtype="int64"), "floating dtype"),
    ):
        with pytest.raises(ArgumentError, match=match):
            make()
