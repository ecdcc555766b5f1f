import numpy as np
import pytest

from gmcore import gradcheck, nn, tensor
from gmcore.errors import ArgumentError

X = np.array([-800.0, -30.0, -1.5, -0.0, 0.0, 0.25, 2.0, 19.0, 30.0, 800.0])
FORMULAS = [
    (nn.Identity(), lambda x: x),
    (nn.Tanh(), np.tanh),
    (nn.Sigmoid(), lambda x: np.exp(-np.logaddexp(0.0, -x))),
    (nn.ReLU(), lambda x: np.maximum(x, 0.0)),
    (nn.Softplus(), lambda x: np.logaddexp(0.0, x)),
    (nn.Softplus(2.5), lambda x: np.logaddexp(0.0, 2.5 * x) / 2.5),
]
MODULES = [pytest.param(module, formula, id=repr(module)) for module, formula in FORMULAS]


@pytest.mark.parametrize(("module", "formula"), MODULES)
def test_formula_without_overflow(module, formula):
    # sigmoid is 1/2 + tanh(x/2)/2: absolute, not relative, precision in its left tail.
    np.testing.assert_allclose(module(tensor(X)).numpy(), formula(X), rtol=4e-16, atol=3e-16)


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
    x = X[np.abs(X) <= 30]
    for name, args in (("Softplus", (0.5,)), ("Sigmoid", ()), ("Tanh", ()), ("ReLU", ()), ("Identity", (3,))):
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
