import numpy as np
import pytest

from gmcore import gradcheck, nn, tensor
from gmcore.errors import ArgumentError, ShapeError

X = np.array([-800.0, -30.0, -1.5, -0.0, 0.0, 0.25, 2.0, 19.0, 30.0, 800.0])
FORMULAS = [
    (nn.Identity(), lambda x: x),
    (nn.Tanh(), np.tanh),
    (nn.Sigmoid(), lambda x: np.exp(-np.logaddexp(0.0, -x))),
    (nn.ReLU(), lambda x: np.maximum(x, 0.0)),
    (nn.Softplus(), lambda x: np.logaddexp(0.0, x)),
    (nn.Softplus(2.5), lambda x: np.logaddexp(0.0, 2.5 * x) / 2.5),
    (nn.PReLU(), lambda x: np.maximum(x, 0.25 * x)),
    (nn.CELU(2.0), lambda x: np.where(x > 0, x, 2.0 * np.expm1(np.minimum(x, 0.0) / 2.0))),
    (nn.Threshold(0.1, 20.0), lambda x: np.where(x > 0.1, x, 20.0)),
    (nn.Hardshrink(), lambda x: np.where(abs(x) > 0.5, x, 0.0)),
    (nn.Softshrink(0.1), lambda x: np.sign(x) * np.maximum(abs(x) - 0.1, 0.0)),
]
MODULES = [pytest.param(module, formula, id=repr(module)) for module, formula in FORMULAS]


@pytest.mark.parametrize(("module", "formula"), MODULES)
def test_formula_without_overflow(module, formula):
    # sigmoid is 1/2 + tanh(x/2)/2: absolute, not relative, precision in its left tail.
    np.testing.assert_allclose(module(tensor(X)).detach().numpy(), formula(X), rtol=4e-16, atol=3e-16)


@pytest.mark.parametrize(("module", "formula"), MODULES)
def test_gradients_of_order_two(module, formula):
    assert gradcheck(module, [np.array([-2.0, -0.3, 0.4, 3.0])], order=2)


@pytest.mark.parametrize(("module", "formula"), MODULES)
def test_float32_stays_float32(module, formula):
    x = tensor(X.astype(np.float32), requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == np.float32


def test_matches_torch():
    torch = pytest.importorskip("torch")
    x = X[np.abs(X) <= 30]  # eight numbers
    for name, args in (
        ("Softplus", (0.5,)),
        ("Sigmoid", ()),
        ("Tanh", ()),
        ("ReLU", ()),
        ("Identity", (3,)),
        ("CELU", (0.7,)),
        ("Mish", ()),
        ("ReLU6", ()),
        ("Hardsigmoid", ()),
        ("Hardswish", ()),
        ("Hardshrink", (0.7,)),
        ("Softshrink", (0.7,)),
        ("Tanhshrink", ()),
        ("Threshold", (0.1, 2.0)),
        ("GLU", ()),
        ("GLU", (0,)),
    ):
        ours, theirs = getattr(nn, name)(*args), getattr(torch.nn, name)(*args)
        # 2e-9 is what PyTorch leaves out of softplus beyond its threshold.
        np.testing.assert_allclose(ours(tensor(x)).numpy(), theirs(torch.tensor(x)).numpy(), rtol=0, atol=5e-9)


def test_arguments_of_torch_are_taken_or_refused_by_name():
    nn.Identity(54, unused=True)
    nn.Softplus(beta=2.0, threshold=20.0)
    nn.ReLU(inplace=False)
    with pytest.raises(ArgumentError, match="inplace=True"):
        nn.ReLU(inplace=True)
    with pytest.raises(ArgumentError, match="threshold=5"):
        nn.Softplus(threshold=5)
    for beta in (0.0, -1.0, float("nan")):
        with pytest.raises(ArgumentError, match="beta must be positive"):
            nn.Softplus(beta)


def test_slopes_and_gates_of_other_sizes_are_refused():
    x = np.ones((2, 3, 4), np.float32)
    assert nn.PReLU(3)(x).shape == x.shape
    with pytest.raises(ShapeError, match=r"prelu: .*one for each channel .*\(2, 3, 4\) and weight \(2,\)"):
        nn.PReLU(2)(x)
    with pytest.raises(ShapeError, match=r"glu: expected an even number along axis 1, got \(2, 3, 4\)"):
        nn.GLU(1)(x)
    with pytest.raises(ArgumentError, match="num_parameters"):
        nn.PReLU(0)
    with pytest.raises(ArgumentError, match="alpha must be positive"):
        nn.CELU(0.0)(x)
    with pytest.raises(ArgumentError, match="lambd must be at least 0"):
        nn.Softshrink(-1.0)(x)


def test_prelu_exchanges_weights_with_torch(tmp_path):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.PReLU(3)
    with torch.no_grad():
        theirs.weight.uniform_()
    ours = nn.PReLU(3)
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(ours(x).detach().numpy(), theirs(torch.tensor(x)).detach().numpy())
