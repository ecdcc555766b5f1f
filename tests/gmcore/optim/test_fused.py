"""Every fused optimiser, with its options: its step, its pure update and PyTorch's optimiser are one thing."""

import inspect

import numpy as np
import pytest

from gmcore import grad, gradcheck, nn, ops, optim, tensor
from gmcore.errors import ArgumentError

OPTIONS = {
    "SGD": [
        {"lr": 0.1},
        {"lr": 0.1, "weight_decay": 0.2},
        {"lr": 0.02, "momentum": 0.9},
        {"lr": 0.02, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
        {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ],
    "Adam": [
        {},
        {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.1},
        {"betas": (0.0, 0.999)},
        {"lr": 0.01, "betas": (0.99, 0.999), "eps": 1e-4},  # the released code of IWAE
        {"lr": 0.05, "amsgrad": True},
        {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ],
    "AdamW": [{}, {"lr": 0.05, "weight_decay": 0.3, "amsgrad": True}],
    "Adagrad": [{}, {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.1, "initial_accumulator_value": 0.2, "eps": 1e-3}],
    "RMSprop": [
        {},
        {"alpha": 0.9, "weight_decay": 0.1, "eps": 1e-3},
        {"momentum": 0.9, "lr": 1e-3},
        {"centered": True, "eps": 1e-2},
        {"centered": True, "momentum": 0.5, "alpha": 0.95, "eps": 1e-2, "weight_decay": 0.1},
    ],
    "Adadelta": [{}, {"lr": 0.5, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.1}],
}
CASES = [(kind, options) for kind, cases in OPTIONS.items() for options in cases]
# Climbing is descending the negative: one case a kind.
CASES += [(kind, {**cases[-1], "maximize": True}) for kind, cases in OPTIONS.items()]
TABLE = [pytest.param(kind, options, id=f"{kind}-{options}") for kind, options in CASES]

SHAPES = ((7, 5), (5,), ())
# 100 steps, each a few roundings of numbers of order 1: at most 100 u = 6e-6 in float32 a rounding, where those that
# cancel leave about 10 u. Dividing by the root of a small mean loses a digit or two more of the step, not of the sum.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


def problem(dtype, options):
    """Starting points, and a gradient that depends on where one is: of a smooth, not convex, function."""
    rng = np.random.default_rng(0)
    starts = [np.asarray(rng.uniform(0.5, 2.0, shape), dtype) for shape in SHAPES]
    noise = rng.standard_normal(100)
    sign = -1.0 if options.get("maximize") else 1.0
    return starts, lambda x, step: np.asarray(sign * (np.sin(2.0 * x) + x + 0.1 * noise[step]), dtype)


def fused(kind, dtype, options):
    starts, gradient = problem(dtype, options)
    params = [nn.Parameter(x) for x in starts]
    optimizer = getattr(optim, kind)(params, **options)
    for step in range(100):
        for p in params:
            p.grad = tensor(gradient(p._data, step))
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind, options", TABLE)
def test_100_steps_equal_pytorch_and_the_pure_update(kind, options, dtype):
    params, optimizer = fused(kind, dtype, options)
    starts, gradient = problem(dtype, options)
    tolerance = TOLERANCE[dtype]

    for start, expected in zip(starts, params, strict=True):
        x, state = tensor(start), {}
        for step in range(100):
            x, state = optimizer.update(x, tensor(gradient(x._data, step)), state, optimizer.param_groups[0])
        assert x.dtype == expected.dtype == dtype
        np.testing.assert_allclose(x.numpy(), expected.detach().numpy(), rtol=tolerance, atol=tolerance)
        found = optimizer.state.get(expected, {})
        assert state.keys() == found.keys()
        for name, value in state.items():
            if name == "step":
                assert value == found["step"] == 100
            else:
                assert value.dtype == found[name].dtype == dtype
                np.testing.assert_allclose(
                    value.numpy(), found[name].numpy(), rtol=10 * tolerance, atol=tolerance, err_msg=name
                )

    torch = pytest.importorskip("torch")
    theirs = [torch.nn.Parameter(torch.tensor(x)) for x in starts]
    peer = getattr(torch.optim, kind)(theirs, **options)
    for step in range(100):
        for p in theirs:
            p.grad = torch.tensor(gradient(p.detach().numpy(), step))
        peer.step()
    for ours, p in zip(params, theirs, strict=True):
        np.testing.assert_allclose(ours.detach().numpy(), p.detach().numpy(), rtol=tolerance, atol=tolerance)
        for name, value in optimizer.state.get(ours, {}).items():
            if name != "step":
                np.testing.assert_allclose(
                    value.numpy(), peer.state[p][name].numpy(), rtol=10 * tolerance, atol=tolerance, err_msg=name
                )


@pytest.mark.parametrize("kind, options", TABLE)
def test_unrolled_steps_differentiate_to_second_order(kind, options):
    """Three steps on (x - a)^4 as a function of where they start, of a, and of the learning rate."""
    optimizer = getattr(optim, kind)([nn.Parameter([1.0])], **{**options, "eps": 0.1} if "SGD" not in kind else options)
    hyper = dict(optimizer.param_groups[0])

    def unrolled(x, a, lr):
        state = {}
        for _ in range(3):
            x, state = optimizer.update(x, (x - a) ** 3.0, state, {**hyper, "lr": lr})
        return x

    rng = np.random.default_rng(0)
    a = rng.uniform(0.0, 1.0, 2)
    assert gradcheck(unrolled, [a + rng.uniform(0.5, 1.5, 2), a, np.array(0.03)], order=2)


@pytest.mark.parametrize("kind", OPTIONS)
def test_real_hyperparameters_may_be_tensors_with_a_gradient(kind):
    hyper = dict(getattr(optim, kind)([nn.Parameter([1.0])]).param_groups[0])
    hyper |= {"lr": tensor(0.1, dtype="float64", requires_grad=True)}
    hyper |= {"weight_decay": tensor(0.2, dtype="float64", requires_grad=True)}
    x, state = tensor(np.array([1.0, 2.0])), {}
    for _ in range(2):
        x, state = getattr(optim, kind).update(x, ops.sin(x), state, hyper)
    for value in grad(x.sum(), [hyper["lr"], hyper["weight_decay"]]):
        assert np.isfinite(value.numpy()).all() and value.numpy() != 0


@pytest.mark.parametrize("kind, options", TABLE)
def test_update_has_a_finite_derivative_where_the_gradient_is_zero(kind, options):
    hyper = getattr(optim, kind)([nn.Parameter([1.0])], **{**options, "weight_decay": 0.0}).param_groups[0]
    g = tensor(np.array([0.0, 1.0]), requires_grad=True)
    new, _ = getattr(optim, kind).update(tensor(np.zeros(2)), g, {}, hyper)
    assert np.isfinite(grad(new.sum(), g).numpy()).all()


@pytest.mark.parametrize("kind", OPTIONS)
def test_constructor_has_the_arguments_of_pytorch(kind):
    torch = pytest.importorskip("torch")

    def arguments(optimizer):
        return [(p.name, p.kind, p.default) for p in inspect.signature(optimizer).parameters.values()]

    assert arguments(getattr(optim, kind)) == arguments(getattr(torch.optim, kind))


@pytest.mark.parametrize("kind", OPTIONS)
def test_other_ways_of_computing_are_refused_by_name(kind):
    taken = inspect.signature(getattr(optim, kind)).parameters
    messages = {
        ("foreach", True): "one fused kernel",
        ("foreach", False): "one fused kernel",
        ("fused", False): "one fused kernel",
        ("capturable", True): "leave it out",
        ("differentiable", True): f"use {kind}.update, which is made of operations",
    }
    for (name, value), remedy in messages.items():
        if name in taken:
            with pytest.raises(ArgumentError, match=f"{kind}: {name}={value} is not supported; .*{remedy}"):
                getattr(optim, kind)([nn.Parameter([1.0])], **{name: value})
    if "fused" in taken:
        getattr(optim, kind)([nn.Parameter([1.0])], fused=True, foreach=None)


@pytest.mark.parametrize("kind", OPTIONS)
def test_numbers_out_of_range_are_refused_by_name(kind):
    real = [
        p.name for p in inspect.signature(getattr(optim, kind)).parameters.values() if type(p.default) in (int, float)
    ]
    assert "lr" in real and "weight_decay" in real
    for name in real:
        for value in (-1.0, float("nan"), float("inf"), "0.1", None):
            with pytest.raises(ArgumentError, match=f"{kind}: {name} must be a number in"):
                getattr(optim, kind)([nn.Parameter([1.0])], **{name: value})


def test_states_follow_the_options():
    (p,) = params = [nn.Parameter(np.ones(3))]
    optimizer = optim.RMSprop(params, momentum=0.0)
    for momentum, centered, expected in (
        (0.0, False, {"square_avg"}),
        (0.9, False, {"square_avg", "momentum_buffer"}),
        (0.0, True, {"square_avg", "momentum_buffer", "grad_avg"}),  # kept, for when momentum comes back
    ):
        optimizer.param_groups[0].update(momentum=momentum, centered=centered)
        p.grad = tensor(np.ones(3))
        optimizer.step()
        assert optimizer.state[p].keys() - {"step"} == expected
        other = optim.RMSprop([nn.Parameter(p)])
        other.load_state_dict(optimizer.state_dict())
        assert other.state_dict().keys() == optimizer.state_dict().keys()
