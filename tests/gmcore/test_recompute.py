"""Checkpointing: the same numbers, draws and derivatives as without, in less memory, or an error."""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gmcore
from gmcore import Tensor, checkpoint, gradcheck, nn, ops
from gmcore.errors import ArgumentError, GraphError
from gmcore.op import Node
from gmcore.tensor import Leaf


def leaf(x: Any) -> Tensor:
    return gmcore.tensor(x, "float64", requires_grad=True)


def noisy(h: Tensor) -> Tensor:
    return ops.tanh(h) * ops.normal(h.shape, dtype="float64") + h


def run(use: Callable[..., Any]) -> tuple[list[np.ndarray], tuple[int, int]]:
    generator = gmcore.manual_seed(3)
    own = gmcore.Generator(5)
    x, w = leaf([0.3, 0.7]), leaf([1.3, -0.7])

    def block(h: Tensor) -> Tensor:
        inner = use(noisy, h * w)
        return noisy(inner) * w + ops.normal(h.shape, dtype="float64", generator=own)

    y = use(block, use(block, x * w))
    ops.sum(y * y + noisy(x)).backward()
    assert x.grad is not None and w.grad is not None
    return [t.detach().numpy() for t in (y, x.grad, w.grad)], generator.state


def test_nested_with_noise_and_captured_leaves() -> None:
    """Bit for bit what there is without checkpoints, but for the order in which the uses of a captured leaf are added:
    each part adds up its own first. The generator is where it would be."""
    (y, dx, dw), state = run(checkpoint)
    (plain_y, plain_dx, plain_dw), plain_state = run(lambda f, *args: f(*args))
    assert y.tobytes() == plain_y.tobytes() and dx.tobytes() == plain_dx.tobytes() and state == plain_state
    np.testing.assert_allclose(dw, plain_dw, rtol=1e-14)  # five terms, some of which cancel a little


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: checkpoint(lambda h: ops.exp(h * w) * x, x * w),
        lambda x, w: checkpoint(lambda a, b: a * b * x, x, x),  # the same tensor three times
        lambda x, w: checkpoint(lambda a, b: ops.sin(a) * b, x, ops.exp(x) * w),  # one computed from the other
        lambda x, w: checkpoint(lambda a: (checkpoint(ops.sin, a) * w, a)[0], x * w),
        lambda x, w: checkpoint(lambda a, b: (a * b, a), x, w)[1] * w,  # an input handed through
        lambda x, w: ops.sum(checkpoint(lambda a, scale: a * scale, x, 3.0) * w),
    ],
)
def test_derivatives_to_third_order(function: Callable[..., Any]) -> None:
    assert gradcheck(function, [np.array([0.4, -0.3]), np.array([0.6, 1.1])], order=3, directions=1)


def test_it_takes_less_memory() -> None:
    """Ten layers of 20 saved arrays: with checkpoints only the ten inputs stay, and one layer's tape at a time."""
    n, depth = 20_000, 10

    def layer(h: Tensor) -> Tensor:
        for _ in range(20):
            h = ops.sin(h)
        return h

    def peak(use: Callable[..., Any]) -> int:
        x = leaf(np.ones(n))
        with gmcore.peak_memory() as memory:
            h = x
            for _ in range(depth):
                h = use(layer, h)
            ops.sum(h).backward()
        return memory.peak

    array = 8 * n
    assert peak(lambda f, h: f(h)) > 200 * array
    assert peak(checkpoint) < (depth + 20 + 10) * array  # ten more for what a rule holds while it runs


def test_modules_get_their_gradients() -> None:
    layer = nn.Linear(3, 3)
    x = np.ones((2, 3), np.float32)
    ops.sum(checkpoint(layer, x) * 2.0).backward()
    found = [p.grad.tolist() for p in layer.parameters()]  # type: ignore[union-attr]
    layer.zero_grad()
    ops.sum(layer(x) * 2.0).backward()
    assert found == [p.grad.tolist() for p in layer.parameters()]  # type: ignore[union-attr]


def test_what_is_not_on_the_tape() -> None:
    x = gmcore.tensor([1.0])
    assert not checkpoint(ops.exp, x).requires_grad
    with gmcore.no_grad():
        assert not checkpoint(ops.exp, leaf([1.0])).requires_grad
    pair = checkpoint(lambda a: (a * 2.0, a > 0.0), leaf([1.0]))
    assert [t.requires_grad for t in pair] == [True, False]
    with pytest.raises(ArgumentError, match="checkpoint: the function gave list, expected a tensor or a tuple"):
        checkpoint(lambda a: [a], leaf([1.0]))


def test_what_is_not_the_same_again_is_refused() -> None:
    x, w, v = leaf([1.0]), leaf([2.0]), leaf([3.0])
    uses: list[Tensor] = [w]
    y = ops.sum(checkpoint(lambda a: a * uses[0], x))
    uses[0] = v
    with pytest.raises(GraphError, match="run again, the function used other tensors"):
        y.backward()
    rows = [1]
    y = ops.sum(checkpoint(lambda a: ops.broadcast_to(a, (rows[0],)) * 2.0, x))
    rows[0] = 2
    with pytest.raises(GraphError, match="other shapes"):
        y.backward()
    draws = [1]
    y = ops.sum(checkpoint(lambda a: sum((ops.normal((1,), dtype="float64") for _ in range(draws[0])), a * 2.0), x))
    draws[0] = 2
    with pytest.raises(GraphError, match="more random numbers than the 1 of the first time"):
        y.backward()
    y = ops.sum(checkpoint(lambda a: a * w, x))
    w.copy_([5.0])
    with pytest.raises(GraphError, match="was changed after it was recorded"):
        y.backward()


def test_hooks_run_once() -> None:
    x = leaf([1.0])
    h = x * 2.0
    seen: list[str] = []
    x.register_hook(lambda g: seen.append("x"))
    h.register_hook(lambda g: seen.append("h"))
    ops.sum(checkpoint(lambda a: a * x, h)).backward()
    assert seen == ["h", "x"]


def test_nothing_survives() -> None:
    def use() -> None:
        x = leaf([1.0, 2.0])
        y = ops.sum(checkpoint(lambda a: ops.sin(a) * x, x * 2.0))
        g = gmcore.grad(y, x, create_graph=True)
        ops.sum(g).backward()

    gc.disable()
    gc.freeze()
    try:
        use()
        assert [o for o in gc.get_objects() if type(o) in (Tensor, Node, Leaf)] == []
    finally:
        gc.unfreeze()
        gc.enable()


def test_other_numbers_the_second_time_are_refused() -> None:
    """A variable assigned anew between the passes, or noise that is not ours: wrong gradients if it went on."""
    scale = 2.0
    x = leaf([1.0, 2.0])
    y = ops.sum(checkpoint(lambda a: a * a * scale, x))
    scale = 3.0
    with pytest.raises(GraphError, match="gave other shapes or numbers"):
        y.backward()
    noise = np.random.default_rng(0)
    y = ops.sum(checkpoint(lambda a: a * a * noise.standard_normal(2), x))
    with pytest.raises(GraphError, match="gave other shapes or numbers"):
        y.backward()
