import numpy as np
import pytest

from gmcore import grad, nn, ops, optim, tensor
from gmcore.errors import ArgumentError


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


def test_update_has_its_derivative_where_the_gradient_is_zero():
    """At t = 1 the step is lr g / (|g| + eps), whose slope at 0 is lr / eps: not NaN from the root of 0."""
    g = tensor(np.array([0.0, 1.0]), requires_grad=True)
    hyper = {"lr": 0.5, "betas": (0.9, 0.999), "eps": 0.25, "weight_decay": 0.0}
    new, _ = optim.Adam.update(tensor(np.zeros(2)), g, {}, hyper)
    np.testing.assert_allclose(grad(new.sum(), g).numpy(), [-0.5 / 0.25, -0.5 * 0.25 / 1.25**2], rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
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


def test_a_state_set_before_the_first_step_is_taken():
    """v = 1 at first: m / (sqrt(v) + eps) = g / (sqrt((beta2 + (1 - beta2) g^2) / (1 - beta2)) + eps) at t = 1."""
    g, beta2 = np.array([0.5, -2.0]), 0.9
    p = nn.Parameter(np.zeros(2))
    optimizer = optim.Adam([p], lr=0.1, betas=(0.99, beta2), eps=1e-4)
    optimizer.state[p] = {"step": 0, "exp_avg_sq": tensor(np.ones(2))}
    p.grad = tensor(g)
    optimizer.step()
    expected = -0.1 * g / (np.sqrt((beta2 + (1 - beta2) * g**2) / (1 - beta2)) + 1e-4)
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-13)
