import math

import numpy as np
import pytest

from gmcore import nn, ops, optim, tensor
from gmcore.errors import ArgumentError

SHAPES = ((7, 5), (0,), (), (3,))
NORMS = [1.0, 2.0, 3.5, math.inf]


def parameters(dtype="float64", scale=1.0):
    rng = np.random.default_rng(0)
    params = [nn.Parameter(np.zeros(shape, dtype)) for shape in SHAPES]
    for p in params:
        p.grad = tensor(np.asarray(scale * rng.standard_normal(p.shape), dtype))
    return [*params, nn.Parameter(np.zeros(2, dtype))]  # the last has no gradient


def gradients(params):
    return [p.grad.numpy().copy() for p in params if p.grad is not None]


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("norm_type", NORMS)
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e3])
def test_norm_is_that_of_pytorch(norm_type, max_norm, dtype, tolerance):
    torch = pytest.importorskip("torch")
    params = parameters(dtype)
    theirs = [torch.nn.Parameter(torch.zeros(p.shape, dtype=getattr(torch, dtype))) for p in params]
    for p, q in zip(params, theirs, strict=True):
        if p.grad is not None and p.size:  # PyTorch has no infinity norm of an empty tensor
            q.grad = torch.tensor(p.grad.numpy().copy())
    norm = optim.clip_grad_norm_(params, max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    assert norm.dtype == dtype and norm.shape == ()
    np.testing.assert_allclose(norm.numpy(), expected.numpy(), rtol=tolerance)
    for p, q in zip(params, theirs, strict=True):
        if q.grad is not None:
            assert p.grad.dtype == dtype and p.grad.shape == p.shape
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=tolerance)


def test_norm_below_the_bound_leaves_the_gradients_as_they_are():
    params = parameters()
    before = [p.grad for p in params]
    optim.clip_grad_norm_((p for p in params), math.inf)
    assert all(p.grad is g for p, g in zip(params, before, strict=True))


def test_norm_is_over_all_dtypes_and_one_tensor_will_do():
    a, b = nn.Parameter(np.zeros(2, np.float32)), nn.Parameter(np.zeros(1))
    a.grad, b.grad = tensor(np.array([0.0, 3.0], np.float32)), tensor(np.array([4.0]))
    norm = optim.clip_grad_norm_([a, b], 1.0)
    assert norm.dtype == np.float64 and norm.item() == pytest.approx(5.0, rel=1e-15)
    np.testing.assert_allclose(a.grad.numpy(), [0.0, 0.6], rtol=1e-6)
    np.testing.assert_allclose(b.grad.numpy(), [0.8], rtol=1e-6)
    assert (a.grad.dtype, b.grad.dtype) == (np.float32, np.float64)
    assert optim.clip_grad_norm_(b, 1.0).item() == pytest.approx(0.8, rel=1e-6)
    assert optim.clip_grad_norm_([], 1.0).item() == 0.0


def test_a_gradient_that_two_parameters_share_is_clipped_for_each():
    a, b, other = nn.Parameter(np.zeros(2)), nn.Parameter(np.zeros(2)), tensor(np.array([3.0, 4.0]))
    a.grad = b.grad = other
    optim.clip_grad_norm_([a], 1.0)
    np.testing.assert_allclose(a.grad.numpy(), [0.6, 0.8], rtol=1e-6)
    optim.clip_grad_value_([b], 3.5)
    np.testing.assert_array_equal(b.grad.numpy(), [3.0, 3.5])
    np.testing.assert_array_equal(other.numpy(), [3.0, 4.0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("norm_type", NORMS)
def test_norms_that_are_not_finite(bad, norm_type):
    params = parameters()
    params[3].grad = tensor(np.array([1.0, bad, 1.0]))
    before = gradients(params)
    with pytest.raises(
        ArgumentError, match=rf"norm of the gradients is {bad}.* number 3 of those given, of shape \(3,"
    ):
        optim.clip_grad_norm_(params, 1.0, norm_type, error_if_nonfinite=True)
    for g, expected in zip(gradients(params), before, strict=True):
        np.testing.assert_array_equal(g, expected)
    assert not np.isfinite(optim.clip_grad_norm_(params, 1.0, norm_type).item())
    # As in PyTorch: NaN everywhere, or 0 but for the infinite ones.
    np.testing.assert_array_equal(params[3].grad.numpy(), np.full(3, np.nan) if np.isnan(bad) else [0.0, np.nan, 0.0])


def test_a_finite_gradient_whose_norm_overflows():
    p = nn.Parameter(np.zeros(2))
    p.grad = tensor(np.full(2, 1e200))
    with pytest.raises(ArgumentError, match="every element is finite"):
        optim.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_value_is_that_of_pytorch(dtype):
    torch = pytest.importorskip("torch")
    params = parameters(dtype)
    params[3].grad = tensor(np.array([-np.inf, np.nan, np.inf], dtype))
    expected = []
    for g in gradients(params):
        q = torch.nn.Parameter(torch.zeros(g.shape, dtype=getattr(torch, dtype)))
        q.grad = torch.tensor(g)
        torch.nn.utils.clip_grad_value_([q], 0.3)
        expected.append(q.grad.numpy())
    optim.clip_grad_value_(params, 0.3)
    for g, e in zip(gradients(params), expected, strict=True):
        assert g.dtype == e.dtype
        np.testing.assert_array_equal(g, e)


def test_clipped_gradients_train():
    p = nn.Parameter(np.array([30.0, 40.0]))
    ops.square(p).sum().backward()
    optimizer = optim.SGD([p], lr=1.0)
    assert nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 5.0).item() == pytest.approx(100.0)
    optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), [27.0, 36.0], rtol=1e-7)  # 1e-6 is added to the norm of 100


def test_refusals():
    p = nn.Parameter(np.zeros(2))
    for bad in (-1.0, math.nan, "1", None):
        with pytest.raises(ArgumentError, match="clip_grad_norm_: max_norm must be a number of at least 0"):
            optim.clip_grad_norm_([p], bad)
        with pytest.raises(ArgumentError, match="clip_grad_value_: clip_value must be a number of at least 0"):
            optim.clip_grad_value_([p], bad)
    for bad in (0.0, -2.0, math.nan, "fro"):
        with pytest.raises(ArgumentError, match="norm_type must be a positive number or inf"):
            optim.clip_grad_norm_([p], 1.0, bad)
    with pytest.raises(ArgumentError, match="foreach=True is not supported"):
        optim.clip_grad_norm_([p], 1.0, foreach=True)
    with pytest.raises(ArgumentError, match="foreach=False is not supported"):
        optim.clip_grad_value_([p], 1.0, foreach=False)
    with pytest.raises(ArgumentError, match="parameter 1 is a float"):
        optim.clip_grad_norm_([p, 1.0], 1.0)
