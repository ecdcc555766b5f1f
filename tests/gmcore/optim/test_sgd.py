import numpy as np
import pytest

from gmcore import gradcheck, nn, optim, tensor
from gmcore.errors import ArgumentError


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
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


def test_unrolled_steps_differentiate_with_respect_to_momentum():
    def unrolled(x, lr, momentum):
        state = {}
        hyper = {"lr": lr, "momentum": momentum, "dampening": 0.1, "nesterov": True, "weight_decay": 0.1}
        for _ in range(3):
            x, state = optim.SGD.update(x, 4.0 * x**3.0, state, hyper)
        return x

    start = np.random.default_rng(0).uniform(0.5, 1.0, 4)
    assert gradcheck(unrolled, [start, np.array(0.02), np.array(0.7)], order=2)
