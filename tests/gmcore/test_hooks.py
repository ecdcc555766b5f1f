"""Hooks on tensors: what they see, what they replace, in which order, and that they leave nothing behind."""

import gc
from typing import Any

import numpy as np
import pytest

import gmcore
from gmcore import Tensor, grad, ops
from gmcore.errors import DtypeError, GraphError, ShapeError
from gmcore.op import OPS, Node
from gmcore.tensor import Leaf


def leaf(x: Any) -> Tensor:
    return gmcore.tensor(x, "float64", requires_grad=True)


def test_a_hook_sees_the_sum_over_all_paths_once() -> None:
    x = leaf([1.0, 2.0])
    y = x * 3.0
    seen: list[Any] = []
    y.register_hook(lambda g: seen.append(("y", g.tolist())))
    x.register_hook(lambda g: seen.append(("x", g.tolist())))
    ops.sum(y * y + y + x).backward()
    assert seen == [("y", [7.0, 13.0]), ("x", [22.0, 40.0])]


@pytest.mark.parametrize("by_grad", [False, True])
def test_a_hook_replaces_the_gradient(by_grad: bool) -> None:
    """Before it flows on, before it is kept and before it is added to a leaf; hooks run in their order."""
    x = leaf([1.0, 2.0])
    x.grad = gmcore.tensor([100.0, 100.0], "float64")
    y = x * 3.0
    y.register_hook(lambda g: g * 10.0)
    y.register_hook(lambda g: g + 1.0)
    x.register_hook(lambda g: -g)
    if by_grad:
        gy, gx = grad(ops.sum(y), [y, x])
        assert gy.tolist() == [11.0, 11.0] and gx.tolist() == [-33.0, -33.0]
        (gy,) = grad(ops.sum(y), [y])
        assert gy.tolist() == [11.0, 11.0]
    else:
        ops.sum(y).backward()
        assert x.grad.tolist() == [67.0, 67.0]


def test_hooks_under_create_graph_are_differentiated() -> None:
    x = leaf(2.0)
    y = x * x
    handle = y.register_hook(lambda g: g * x)
    g = grad(y * y, x, create_graph=True)  # 2 y x (2 x) = 4 x^4
    handle.remove()  # the second pass goes through y once more
    assert g.item() == 64.0 and grad(g, x).item() == 16.0 * 8.0


def test_handles_remove() -> None:
    x = leaf(2.0)
    handle = x.register_hook(lambda g: g * 5.0)
    after = x.register_post_accumulate_grad_hook(lambda t: pytest.fail("removed"))
    for h in (handle, after):
        h.remove()
        h.remove()
    (x * x).backward()
    assert x.grad is not None and x.grad.item() == 4.0


def test_a_hook_on_one_of_several_outputs() -> None:
    logits = leaf([0.3, -1.0, 0.7])
    log_prob, residual = OPS["linear_bernoulli_residual"](logits, np.eye(3), np.zeros(3), np.array([1.0, 0.0, 1.0]))
    seen: list[str] = []
    log_prob.register_hook(lambda g: seen.append("log_prob"))
    residual.register_hook(lambda g: seen.append("residual"))
    log_prob.backward()
    assert seen == ["log_prob"]


def test_retain_grad() -> None:
    x = leaf([1.0, 2.0])
    y = x * 3.0
    y.retain_grad()
    y.retain_grad()
    x.retain_grad()
    y.register_hook(lambda g: g * 2.0)  # what is kept is what flows on
    for times in (1.0, 2.0):
        ops.sum(y * y).backward(retain_graph=True)
        assert y.grad is not None and x.grad is not None
        assert y.grad.tolist() == [12.0 * times, 24.0 * times] and x.grad.tolist() == [36.0 * times, 72.0 * times]


def test_what_is_kept_is_nobody_elses_memory() -> None:
    x = leaf([1.0, 2.0])
    y = x + 0.0
    y.retain_grad()
    kept: list[Tensor] = []
    x.register_hook(kept.append)  # type: ignore[arg-type]
    ops.sum(y).backward()
    assert x.grad is not None and y.grad is not None
    x.grad.numpy(writable=True)[...] = 7.0
    assert kept[0].tolist() == [1.0, 1.0] == y.grad.tolist()


def test_post_accumulate_hooks_see_the_leaf_with_its_gradient() -> None:
    """An optimiser in the backward pass: the gradient is used and dropped as soon as it is complete."""
    x = leaf([1.0, 2.0])
    steps: list[list[float]] = []

    def step(t: Tensor) -> None:
        assert t is x and t.grad is not None
        steps.append(t.grad.tolist())
        t.grad = None

    x.register_post_accumulate_grad_hook(step)
    for _ in range(2):
        ops.sum(x * x + x).backward()
    assert steps == [[3.0, 5.0]] * 2 and x.grad is None
    grad(ops.sum(x * x), x)
    assert len(steps) == 2  # grad() accumulates nothing


def test_what_does_not_fit_is_refused() -> None:
    x = leaf([1.0, 2.0])
    for hook, kind, text in [
        (lambda g: ops.sum(g), ShapeError, r"gave shape \(\), expected the gradient's shape \(2,\)"),
        (lambda g: g.astype("float32"), DtypeError, "gave float32, expected a tensor of float64"),
        (lambda g: g.numpy(), DtypeError, "gave ndarray, expected a tensor"),
    ]:
        handle = x.register_hook(hook)  # type: ignore[arg-type]
        with pytest.raises(kind, match=text):
            ops.sum(x).backward()
        handle.remove()
    free = gmcore.tensor([1.0])
    for register in (free.register_hook, free.register_post_accumulate_grad_hook, lambda f: free.retain_grad()):
        with pytest.raises(GraphError, match="require"):
            register(print)  # type: ignore[operator]
    with pytest.raises(GraphError, match="only leaves"):
        (x * 2.0).register_post_accumulate_grad_hook(print)


def test_hooks_leave_nothing_behind() -> None:
    gc.disable()
    gc.freeze()
    try:
        x = leaf([1.0, 2.0])
        y = x * 3.0
        y.register_hook(lambda g: g * 2.0)
        x.register_hook(lambda g: None)
        x.register_post_accumulate_grad_hook(lambda t: None)
        y.retain_grad()
        ops.sum(y * y).backward()
        del x, y
        assert [o for o in gc.get_objects() if type(o) in (Tensor, Node, Leaf)] == []
    finally:
        gc.unfreeze()
        gc.enable()


def test_a_failing_hook_leaves_the_recording_flag_alone() -> None:
    x = leaf([1.0])
    x.register_hook(lambda g: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ops.sum(x * np.ones(1)).backward()
    assert gmcore.is_grad_enabled()
