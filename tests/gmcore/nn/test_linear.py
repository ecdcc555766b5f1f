import numpy as np
import pytest

from gmcore import Generator, grad, gradcheck, manual_seed, nn, ops
from gmcore.errors import ArgumentError, ShapeError


@pytest.mark.parametrize("leading", [(), (0,), (5,), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_is_an_affine_map_of_the_last_axis(leading, bias):
    layer = nn.Linear(3, 2, bias=bias, dtype="float64")
    x = np.random.default_rng(0).standard_normal((*leading, 3))
    expected = x @ layer.weight.detach().numpy().T + (layer.bias.detach().numpy() if bias else 0.0)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=0, atol=1e-14)
    assert list(layer.state_dict()) == (["weight", "bias"] if bias else ["weight"])


def test_gradients_of_order_two():
    layer = nn.Linear(3, 2, dtype="float64")

    def f(x, weight, bias):
        return ops.square(ops.linear(x, weight, bias))

    x = np.random.default_rng(0).standard_normal((4, 3))
    assert gradcheck(f, [x, layer.weight, layer.bias], order=2)


def test_bernoulli_log_prob_fuses_a_linear_layer_and_calls_any_other():
    class Doubled(nn.Linear):
        def forward(self, input):
            return 2.0 * super().forward(input)

    rng = np.random.default_rng(0)
    h, x, seen = rng.standard_normal((4, 2, 3)), rng.random((2, 5)), []
    layer, bare = nn.Linear(3, 5, dtype="float64"), nn.Linear(3, 5, bias=False, dtype="float64")
    hooked, doubled = nn.Linear(3, 5, dtype="float64"), Doubled(3, 5, dtype="float64")
    hooked.register_forward_hook(lambda *_: seen.append(1))
    for module in (layer, bare, hooked, doubled):
        found, expected = nn.bernoulli_log_prob(module, h, x), ops.bernoulli_log_prob(module(h), x)
        np.testing.assert_allclose(found.detach().numpy(), expected.detach().numpy(), rtol=1e-13)
        fused = found._node.op.name == "linear_bernoulli_residual"
        assert fused == (module in (layer, bare))
        parameters = list(module.parameters())
        for a, b in zip(grad(found.sum(), parameters), grad(expected.sum(), parameters), strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=1e-13)  # eight terms below 3
    assert len(seen) == 2
    with pytest.raises(ShapeError, match="linear_bernoulli"):
        nn.bernoulli_log_prob(layer, h, x[:, :4])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept(dtype):
    layer = nn.Linear(3, 2, dtype=dtype)
    y = layer(np.ones((4, 3), dtype))
    y.sum().backward()
    assert {t.dtype.name for t in (layer.weight, layer.bias, y, layer.weight.grad, layer.bias.grad)} == {dtype}
    assert nn.Linear(3, 2).weight.dtype == np.float32


def test_initialisation_is_uniform_within_the_bound_of_torch_and_fixed_by_the_seed():
    manual_seed(3)
    a = nn.Linear(400, 300)
    manual_seed(3)
    b = nn.Linear(400, 300)
    np.testing.assert_array_equal(a.weight.detach().numpy(), b.weight.detach().numpy())
    np.testing.assert_array_equal(a.bias.detach().numpy(), b.bias.detach().numpy())
    bound = 1.0 / np.sqrt(400.0)
    for values in (a.weight.detach().numpy() / bound, a.bias.detach().numpy() / bound):
        assert np.abs(values).max() <= 1.0 + 1e-6 and np.abs(values).max() > 0.97
        # Mean and variance of U(-1, 1) are 0 and 1/3 with standard errors 0.58 / sqrt(n) and 0.3 / sqrt(n).
        assert abs(values.mean()) < 5 * 0.58 / np.sqrt(values.size)
        assert abs(values.var() - 1 / 3) < 5 * 0.3 / np.sqrt(values.size)
    a.reset_parameters(Generator(3))
    np.testing.assert_array_equal(a.weight.detach().numpy(), b.weight.detach().numpy())


def test_initialisation_has_the_range_of_torch():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Linear(50, 4000)
    ours = nn.Linear(50, 4000)
    for name in ("weight", "bias"):
        a, b = getattr(ours, name).detach().numpy(), getattr(theirs, name).detach().numpy()
        # The largest of n uniforms is 1 / n short of the bound: 4000 biases agree within a percent.
        np.testing.assert_allclose(np.abs(a).max(), np.abs(b).max(), rtol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 2), "in_features must be a positive integer, got 0"),
        ((2, -1), "out_features must be a positive integer, got -1"),
        ((2.0, 1), "in_features must be a positive integer, got 2.0"),
        ((2, 1, True, "gpu"), "device 'gpu'; expected 'cpu', 'cuda' or 'cuda:0'"),
        ((2, 1, True, None, "int64"), "floating dtype"),
    ],
)
def test_constructor_refuses(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        nn.Linear(*arguments)


# -- Bilinear ------------------------------------------------------------------------------------------------------
def test_bilinear_is_a_form_for_each_output():
    layer = nn.Bilinear(3, 2, 4, dtype="float64")
    rng = np.random.default_rng(0)
    for leading in ((), (0,), (5,), (2, 3)):
        a, b = rng.standard_normal((*leading, 3)), rng.standard_normal((*leading, 2))
        w, c = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        expected = np.stack([(a @ w[k] * b).sum(-1) + c[k] for k in range(4)], -1)
        np.testing.assert_allclose(layer(a, b).detach().numpy(), expected, rtol=0, atol=1e-14)
    a, b = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    assert gradcheck(lambda a, b, w: ops.einsum("...i,kij,...j->...k", a, w, b), [a, b, layer.weight], order=2)


def test_bilinear_starts_within_the_bound_of_torch():
    layer = nn.Bilinear(100, 20, 30)
    for values in (layer.weight.detach().numpy() * 10.0, layer.bias.detach().numpy() * 10.0):
        assert np.abs(values).max() <= 1.0 + 1e-6 and np.abs(values).max() > 0.8


def test_errors_name_the_layer_and_the_shapes():
    with pytest.raises(ShapeError, match=r"Linear: expected an input \(\.\.\., 3\), got \(4, 5\).*test_linear\.py:\d"):
        nn.Linear(3, 2)(np.ones((4, 5), np.float32))
    layer = nn.Bilinear(3, 2, 4)
    for shapes in (((5, 3), (5, 3)), ((5, 2), (5, 2)), ((5, 3), (4, 2)), ((3,), (1, 2))):
        with pytest.raises(ShapeError, match=r"Bilinear: expected inputs \(\.\.\., 3\) and \(\.\.\., 2\), got"):
            layer(*(np.ones(s, np.float32) for s in shapes))
    with pytest.raises(ArgumentError, match="Bilinear: in2_features must be a positive integer"):
        nn.Bilinear(3, 0, 4)
