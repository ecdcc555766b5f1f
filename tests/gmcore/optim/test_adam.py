import numpy as np
import pytest

from gmcore import grad, gradcheck, nn, ops, optim, tensor
from gmcore.errors import ArgumentError

OPTIONS = [{}, {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1}, {"betas": (0.0, 0.999)}]
SHAPES = ((7, 5), (5,), ())
# 100 steps, each a few roundings of numbers of order 1 (and of the sum, at most 100 u = 1.2e-5 in float32, where
# roundings that cancel leave about 10 u = 1.2e-6).
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


def problem(dtype):
    """Starting points, and a gradient that depends on where one is: of a smooth, not convex, function."""
    rng = np.random.default_rng(0)
    starts = [np.asarray(rng.uniform(0.5, 2.0, shape), dtype) for shape in SHAPES]
    noise = rng.standard_normal(100)
    return starts, lambda x, step: np.asarray(np.sin(3.0 * x) + x + 0.1 * noise[step], dtype)


def fused(dtype, options):
    starts, gradient = problem(dtype)
    params = [nn.Parameter(x) for x in starts]
    optimizer = optim.Adam(params, **options)
    for step in range(100):
        for p in params:
            p.grad = tensor(gradient(p._data, step))
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_pure_update_is_the_fused_one(options, dtype):
    params, optimizer = fused(dtype, options)
    starts, gradient = problem(dtype)
    for start, expected in zip(starts, params, strict=True):
        x, state = tensor(start), {}
        for step in range(100):
            x, state = optim.Adam.update(x, tensor(gradient(x._data, step)), state, optimizer.param_groups[0])
        assert state["step"] == optimizer.state[expected]["step"] == 100
        for name, value in {"exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}.items():
            found = optimizer.state[expected][name]
            assert value.dtype == found.dtype == dtype
            np.testing.assert_allclose(value.numpy(), found.numpy(), rtol=10 * TOLERANCE[dtype], atol=TOLERANCE[dtype])
        assert x.dtype == expected.dtype == dtype
        np.testing.assert_allclose(x.numpy(), expected.detach().numpy(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_matches_torch(options, dtype):
    torch = pytest.importorskip("torch")
    starts, gradient = problem(dtype)
    theirs = [torch.nn.Parameter(torch.tensor(x)) for x in starts]
    optimizer = torch.optim.Adam(theirs, **options)
    for step in range(100):
        for p in theirs:
            p.grad = torch.tensor(gradient(p.detach().numpy(), step))
        optimizer.step()
    params, _ = fused(dtype, options)
    for ours, expected in zip(params, theirs, strict=True):
        np.testing.assert_allclose(
            ours.detach().numpy(), expected.detach().numpy(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


def test_first_step_is_the_sign_of_the_gradient():
    """m / sqrt(v) = g / |g| at t = 1, whatever the scale (Kingma & Ba, section 2.1)."""
    p = nn.Parameter(np.zeros(4))
    optimizer = optim.Adam([p], lr=0.1, eps=0.0)
    p.grad = tensor(np.array([1e-9, -1e3, 5.0, -0.1]))
    optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), [-0.1, 0.1, -0.1, 0.1], rtol=1e-12)


def test_minimises_a_quadratic():
    p = nn.Parameter(np.array([3.0, -2.0]))
    optimizer = optim.Adam([p], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        ops.square(p - np.array([1.0, 2.0])).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), [1.0, 2.0], atol=0.02)


def test_unrolled_steps_differentiate_to_second_order():
    """Three steps on (x - a)^4 as a function of where they start, of a, and of the learning rate."""

    def unrolled(x, a, lr):
        state = {}
        for _ in range(3):
            x, state = optim.Adam.update(
                x, 4.0 * (x - a) ** 3.0, state, {"lr": lr, "betas": (0.9, 0.99), "eps": 1e-2, "weight_decay": 0.1}
            )
        return x

    rng = np.random.default_rng(0)
    a = rng.uniform(0.0, 1.0, 4)
    assert gradcheck(unrolled, [a + rng.uniform(0.5, 1.5, 4), a, np.array(0.03)], order=2)


def test_update_has_its_derivative_where_the_gradient_is_zero():
    """At t = 1 the step is lr g / (|g| + eps), whose slope at 0 is lr / eps: not NaN from the root of 0."""
    g = tensor(np.array([0.0, 1.0]), requires_grad=True)
    hyper = {"lr": 0.5, "betas": (0.9, 0.999), "eps": 0.25, "weight_decay": 0.0}
    new, _ = optim.Adam.update(tensor(np.zeros(2)), g, {}, hyper)
    np.testing.assert_allclose(grad(new.sum(), g).numpy(), [-0.5 / 0.25, -0.5 * 0.25 / 1.25**2], rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amsgrad": True}, "amsgrad=True is not supported"),
        ({"maximize": True}, "maximize=True is not supported; minimise the negative"),
        ({"capturable": True}, "capturable=True is not supported"),
        ({"differentiable": True}, "differentiable=True is not supported; use Adam.update"),
        ({"decoupled_weight_decay": True}, "decoupled_weight_decay=True is not supported"),
        ({"foreach": True}, "foreach=True is not supported"),
        ({"fused": False}, "fused=False is not supported"),
        ({"lr": -1.0}, "lr must be a number in"),
        ({"lr": float("nan")}, "lr must be a number in"),
        ({"lr": "0.1"}, "lr must be a number in"),
        ({"eps": -1e-8}, "eps must be a number in"),
        ({"weight_decay": float("inf")}, "weight_decay must be a number in"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be a number in \[0, 1.0\), got 1.0"),
        ({"betas": (-0.1, 0.9)}, r"betas\[0\] must be a number"),
        ({"betas": 0.9}, "betas must be two numbers"),
        ({"betas": (0.9, 0.99, 0.999)}, "betas must be two numbers"),
    ],
)
def test_constructor_refuses(options, message):
    with pytest.raises(ArgumentError, match=f"Adam: {message}"):
        optim.Adam([nn.Parameter([1.0])], **options)


def test_constructor_takes_what_changes_nothing():
    optim.Adam([nn.Parameter([1.0])], 1e-3, (0.9, 0.999), 1e-8, 0, False, foreach=None, fused=True, maximize=False)
