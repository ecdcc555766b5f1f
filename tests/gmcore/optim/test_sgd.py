import numpy as np
import pytest

from gmcore import gradcheck, nn, optim, tensor
from gmcore.errors import ArgumentError

OPTIONS = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.2},
    {"lr": 0.02, "momentum": 0.9},
    {"lr": 0.02, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
    {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
]
SHAPES = ((7, 5), (5,), ())
# 100 contracting steps, each a few roundings of numbers of order 1.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


def problem(dtype):
    """Starting points and a gradient that depends on where one is."""
    rng = np.random.default_rng(0)
    starts = [np.asarray(rng.uniform(0.5, 2.0, shape), dtype) for shape in SHAPES]
    noise = rng.standard_normal(100)
    return starts, lambda x, step: np.asarray(np.sin(x) + x + 0.1 * noise[step], dtype)


def fused(dtype, options):
    starts, gradient = problem(dtype)
    params = [nn.Parameter(x) for x in starts]
    optimizer = optim.SGD(params, **options)
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
            x, state = optim.SGD.update(x, tensor(gradient(x._data, step)), state, optimizer.param_groups[0])
        assert x.dtype == expected.dtype == dtype
        np.testing.assert_allclose(x.numpy(), expected.detach().numpy(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        found = optimizer.state.get(expected, {})
        assert state.keys() == found.keys()
        if state:
            buffer = found["momentum_buffer"]
            assert state["step"] == found["step"] == 100 and buffer.dtype == state["momentum_buffer"].dtype == dtype
            np.testing.assert_allclose(
                state["momentum_buffer"].numpy(), buffer.numpy(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
            )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_matches_torch(options, dtype):
    torch = pytest.importorskip("torch")
    starts, gradient = problem(dtype)
    theirs = [torch.nn.Parameter(torch.tensor(x)) for x in starts]
    optimizer = torch.optim.SGD(theirs, **options)
    for step in range(100):
        for p in theirs:
            p.grad = torch.tensor(gradient(p.detach().numpy(), step))
        optimizer.step()
    params, _ = fused(dtype, options)
    for ours, expected in zip(params, theirs, strict=True):
        np.testing.assert_allclose(
            ours.detach().numpy(), expected.detach().numpy(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )


def test_without_momentum_it_is_gradient_descent_and_keeps_no_state():
    p = nn.Parameter(np.array([1.0, 2.0]))
    optimizer = optim.SGD([p], lr=0.5)
    for _ in range(2):
        p.grad = tensor(np.array([1.0, -1.0]))
        optimizer.step()
    np.testing.assert_array_equal(p.detach().numpy(), [0.0, 3.0])
    assert optimizer.state == {}


def test_momentum_switched_on_later_starts_from_its_first_gradient():
    p = nn.Parameter(np.array([0.0]))
    optimizer = optim.SGD([p], lr=1.0, dampening=0.5)
    for momentum, expected in ((0.0, -1.0), (0.5, -2.0), (0.5, -3.0)):
        optimizer.param_groups[0]["momentum"] = momentum
        p.grad = tensor(np.array([1.0]))
        optimizer.step()
        # b = 1 at its first step, then 0.5 * 1 + 0.5 * 1.
        assert p.item() == expected


def test_unrolled_steps_differentiate_to_second_order():
    def unrolled(x, lr, momentum):
        state = {}
        hyper = {"lr": lr, "momentum": momentum, "dampening": 0.1, "nesterov": True, "weight_decay": 0.1}
        for _ in range(3):
            x, state = optim.SGD.update(x, 4.0 * x**3.0, state, hyper)
        return x

    start = np.random.default_rng(0).uniform(0.5, 1.0, 4)
    assert gradcheck(unrolled, [start, np.array(0.02), np.array(0.7)], order=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maximize": True}, "maximize=True is not supported; minimise the negative"),
        ({"differentiable": True}, "differentiable=True is not supported; use SGD.update"),
        ({"foreach": False}, "foreach=False is not supported"),
        ({"fused": False}, "fused=False is not supported"),
        ({"lr": -1.0}, "lr must be a number in"),
        ({"momentum": -0.1}, "momentum must be a number in"),
        ({"dampening": None}, "dampening must be a number in"),
        ({"weight_decay": -0.1}, "weight_decay must be a number in"),
        ({"nesterov": True}, "nesterov needs a positive momentum"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, "nesterov needs a positive momentum and no dampening"),
    ],
)
def test_constructor_refuses(options, message):
    with pytest.raises(ArgumentError, match=f"SGD: {message}"):
        optim.SGD([nn.Parameter([1.0])], **options)
