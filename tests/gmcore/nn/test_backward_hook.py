"""`register_full_backward_hook`: what it sees and what it may change, against PyTorch's where that is installed."""

import gc
from typing import Any

import numpy as np
import pytest

import gmcore
from gmcore import Tensor, nn, ops
from gmcore.errors import ArgumentError

A = np.array([[1.0, -2.0], [0.5, 3.0]])
B = np.array([[2.0, 0.25], [-1.0, 1.5]])


class TwoInTwoOut(nn.Module):
    def forward(self, a: Any, b: Any, scale: float = 1.0) -> tuple[Any, Any]:
        return a * b * scale, a + b


def leaves() -> tuple[Tensor, Tensor]:
    return gmcore.tensor(A, requires_grad=True), gmcore.tensor(B, requires_grad=True)


def test_sees_all_gradients_together_as_in_pytorch() -> None:
    torch = pytest.importorskip("torch")

    class Theirs(torch.nn.Module):
        forward = TwoInTwoOut.forward

    seen: list[list[Any]] = []
    for module, (a, b) in (
        (TwoInTwoOut(), leaves()),
        (Theirs(), tuple(torch.tensor(x, requires_grad=True) for x in (A, B))),
    ):
        calls: list[Any] = []
        module.register_full_backward_hook(lambda m, gi, go, calls=calls: calls.append((gi, go)))
        y, z = module(a, b, scale=3.0)
        (y * y + z).sum().backward()
        assert len(calls) == 1
        seen.append([np.asarray(g.detach()) for gradients in calls[0] for g in gradients])
    for ours, theirs in zip(*seen, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_replaces_the_gradients_of_the_inputs() -> None:
    module, (a, b) = TwoInTwoOut(), leaves()
    handle = module.register_full_backward_hook(lambda m, gi, go: (gi[1], 2.0 * gi[0]))
    y, _ = module(a, b)
    y.sum().backward()  # dy/da = b, dy/db = a
    assert a.grad is not None and b.grad is not None
    np.testing.assert_array_equal(a.grad.numpy(), A)
    np.testing.assert_array_equal(b.grad.numpy(), 2 * B)
    handle.remove()
    (g,) = gmcore.grad(module(a, b)[0].sum(), [a])
    np.testing.assert_array_equal(g.numpy(), B)


def test_hooks_run_in_order_and_again_in_a_second_pass() -> None:
    module, (a, b), order = TwoInTwoOut(), leaves(), []
    module.register_full_backward_hook(lambda m, gi, go: order.append(1))
    module.register_full_backward_hook(lambda m, gi, go: order.append(0), prepend=True)
    loss = module(a, b)[1].sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert order == [0, 1, 0, 1]


def test_without_inputs_that_require_a_gradient() -> None:
    layer, seen = nn.Linear(2, 3), []
    layer.register_full_backward_hook(lambda m, gi, go: seen.append((gi, go)))
    layer(gmcore.tensor(A.astype(np.float32))).sum().backward()
    ((grad_input, (grad_output,)),) = seen
    assert grad_input == (None,)
    np.testing.assert_array_equal(grad_output.numpy(), np.ones((2, 3)))
    assert layer.weight.grad is not None


def test_derivatives_of_higher_order_pass_through() -> None:
    module = TwoInTwoOut()
    module.register_full_backward_hook(lambda m, gi, go: None)
    assert gmcore.gradcheck(lambda a, b: ops.tanh(module(a, b)[0]), [A, B], order=2)


def test_leaves_no_cycles() -> None:
    module, (a, b) = TwoInTwoOut(), leaves()
    module.register_full_backward_hook(lambda m, gi, go: None)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            (g,) = gmcore.grad((module(a, b)[0] ** 2.0).sum(), [a], create_graph=True)
            g.sum().backward()
        del g
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_errors() -> None:
    module, (a, b) = TwoInTwoOut(), leaves()
    module.register_full_backward_hook(lambda m, gi, go: gi[0])
    with pytest.raises(ArgumentError, match="returned 1 gradients, expected 2"):
        module(a, b)[0].sum().backward()

    class Names(nn.Module):
        def forward(self, x: Any) -> dict[str, Any]:
            return {"x": x}

    named = Names()
    named.register_full_backward_hook(lambda m, gi, go: None)
    with pytest.raises(ArgumentError, match="returned a dict, expected a tensor or a tuple"):
        named(a)
