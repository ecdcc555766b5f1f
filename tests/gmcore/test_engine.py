"""The backward pass: graphs of all forms, what it refuses, threads, memory, ops declared outside the package."""

import copy
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import gmcore
from gmcore import Tensor, grad, gradcheck, no_grad, ops
from gmcore.engine import by_decomposition, step
from gmcore.errors import DtypeError, GraphError, ShapeError, UnknownNameError
from gmcore.op import OPS, Node, Op
from gmcore.tensor import Leaf
from gmcore.watch import Watch, watch


def leaf(x: Any, dtype: str = "float64") -> Tensor:
    return gmcore.tensor(x, dtype=dtype, requires_grad=True)


def values(*tensors: Tensor) -> list[Any]:
    return [t.tolist() for t in tensors]


@pytest.fixture
def declare() -> Iterator[Callable[..., Op]]:
    """Declare ops that are gone after the test."""
    before = set(OPS)
    yield lambda name, inputs, *outputs, **how: Op(name, inputs, *outputs, formula=name, examples=lambda rng: [], **how)
    for name in set(OPS) - before:
        del OPS[name]


# -- graphs ----------------------------------------------------------------------------------------------------
def test_twenty_thousand_chained_ops() -> None:
    """Backward and deallocation of a long chain, without recursion; the second order through it as well."""
    x = leaf(1.0)
    y = x
    for _ in range(20_000):
        y = y * 1.0001
    (g,) = grad([y], [x], create_graph=True)
    assert g.item() == pytest.approx(1.0001**20_000)
    y.backward()
    assert x.grad is not None and x.grad.item() == pytest.approx(1.0001**20_000)
    del y, g


def test_twenty_thousand_terms_into_one_leaf() -> None:
    x = leaf([1.0, 2.0])
    total = x * 0.0
    for _ in range(20_000):
        total = total + x
    ops.sum(total).backward()
    assert values(x.grad) == [[20_000.0, 20_000.0]]


@pytest.mark.parametrize("function", [ops.mean, lambda x: ops.sum(x.T * np.arange(6.0).reshape(3, 2))])
def test_a_leafs_gradient_is_plain_memory(function: Callable[[Tensor], Tensor]) -> None:
    """Also where the rule gives a view with strides of its own, or one number for all elements."""
    x = leaf(np.ones((2, 3)))
    function(x).backward()
    assert x.grad is not None
    array = x.grad.numpy(writable=True)
    assert array.flags.c_contiguous and array.flags.writeable


def test_gradients_of_two_leaves_are_independent() -> None:
    """An op may hand one array to both inputs; the leaves must not share it, nor the gradient passed in."""
    a, b = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    seed = np.array([5.0, 6.0])
    (a + b).backward(seed)
    assert a.grad is not None and b.grad is not None and a.grad is not b.grad
    a.grad.numpy(writable=True)[...] = 0.0
    assert values(b.grad) == [[5.0, 6.0]] and seed.tolist() == [5.0, 6.0]
    (a + b).backward(seed)
    assert values(a.grad, b.grad) == [[5.0, 6.0], [10.0, 12.0]] and seed.tolist() == [5.0, 6.0]


def test_gradients_of_leaves_can_be_written() -> None:
    """Clipping in place needs memory of the leaf's own, not a broadcast of one number."""
    x = leaf(np.ones((2, 3)))
    ops.sum(x).backward()
    assert x.grad is not None
    memory = x.grad.numpy(writable=True)
    memory[0, 0] = 7.0
    assert memory.tolist() == [[7.0, 1.0, 1.0], [1.0, 1.0, 1.0]]


def test_the_gradient_passed_in_is_not_written() -> None:
    """Several paths add up; the first arrival may be the caller's own array."""
    x = leaf([1.0, 2.0])
    seed = np.array([1.0, 1.0])
    y = x + 0.0
    grad([y, y + x, x * 2.0], [x], [seed, seed, seed], retain_graph=True)
    (y + y + x + x).backward(seed)
    assert seed.tolist() == [1.0, 1.0] and values(x.grad) == [[4.0, 4.0]]


@pytest.mark.parametrize("times", [2, 3, 4, 7])
def test_an_input_used_several_times(times: int) -> None:
    x = leaf([1.0, -2.0])
    y = x
    for _ in range(times - 1):
        y = y + x
    ops.sum(y).backward()
    assert values(x.grad) == [[times, times]]
    x.grad = None
    intermediate = x * 1.0
    ops.sum(ops.concatenate([intermediate] * times)).backward()
    assert values(x.grad) == [[times, times]]


def test_accumulation_of_one_branch_does_not_reach_into_another() -> None:
    """The array that arrives first at a is also b's; adding to a's gradient must leave b's alone."""
    x = leaf([1.0])
    a, b = x * 1.0, x * 1.0
    y = ops.sum((a + b) + a + a)
    ga, gb, gx = grad(y, [a, b, x])
    assert values(ga, gb, gx) == [[3.0], [1.0], [4.0]]


def test_a_gradient_that_is_kept_is_not_added_to_later() -> None:
    """d y/d a is wanted itself and also flows on to x, through views of its memory."""
    x = leaf(np.arange(4.0))
    a = ops.reshape(x, (2, 2))
    y = ops.sum(a * a) + ops.sum(ops.reshape(a, (4,)) * x) + ops.sum(x)
    ga, gx = grad(y, [a, x])
    np.testing.assert_array_equal(ga.numpy(), 3 * np.arange(4.0).reshape(2, 2))
    np.testing.assert_array_equal(gx.numpy(), 4 * np.arange(4.0) + 1)


def test_diamonds() -> None:
    """2^30 paths, 30 levels: each node runs once."""
    x = leaf(1.0)
    y = x
    for _ in range(30):
        y = y + y
    assert grad(y, x).item() == 2.0**30
    z = x
    for _ in range(30):
        z = ops.sin(z) * 0.5 + z * 0.5
    assert gradcheck(lambda x: ops.sin(ops.exp(x) * ops.tanh(x) + ops.exp(x)) * ops.tanh(x), [np.array([0.3, 1.0])], 3)


def test_gradients_of_intermediate_tensors() -> None:
    x = leaf(3.0)
    y = x * x
    z = y * x
    assert values(*grad(z, [x, y, z])) == [27.0, 3.0, 1.0]
    # x1 is an ancestor of x2: d/dx1 takes the paths through x2 as well
    x2 = x * 2.0
    assert values(*grad(x2 * x2 + x, [x, x2])) == [25.0, 12.0]


def test_gradient_of_a_tensor_with_respect_to_itself() -> None:
    x = leaf([1.0, 2.0])
    y = x * 3.0
    assert values(grad(x, x, np.array([5.0, 6.0]))) == [[5.0, 6.0]]
    assert values(*grad(y, [y, x], np.array([1.0, 1.0]))) == [[1.0, 1.0], [3.0, 3.0]]
    x.backward(np.array([1.0, 1.0]))
    assert values(x.grad) == [[1.0, 1.0]]


def test_several_ys() -> None:
    x = leaf(2.0)
    y = x * x
    z = ops.exp(y)
    # y is an ancestor of z, and is given twice
    (g,) = grad([y, z, y], [x], [None, 1.0 * gmcore.tensor(2.0, "float64"), gmcore.tensor(10.0, "float64")])
    assert g.item() == pytest.approx(2 * 2.0 * 11 + 2 * np.exp(4.0) * 4.0)


def test_several_outputs_of_one_op() -> None:
    h = leaf(np.array([0.3, -1.0, 0.7]))

    def outputs() -> tuple[Tensor, Tensor]:
        return OPS["linear_bernoulli_residual"](h, np.eye(3), np.zeros(3), np.array([1.0, 0.0, 1.0]))

    for i in range(2):
        g = grad(ops.sum(outputs()[i]), h)
        together = outputs()
        weights = [np.zeros(t.shape) for t in together]
        weights[i] += 1.0
        np.testing.assert_allclose(grad(together, h, weights).numpy(), g.numpy(), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("order", range(1, 6))
def test_derivatives_of_any_order(order: int) -> None:
    x = leaf(0.7)
    y = ops.exp(2.0 * x) + x**5.0
    for _ in range(order):
        y = grad(y, x, create_graph=True)
    falling = np.prod([5.0 - i for i in range(order)])
    assert y.item() == pytest.approx(2.0**order * np.exp(1.4) + falling * 0.7 ** (5 - order), rel=1e-13)


def test_backward_through_a_gradient() -> None:
    """A gradient penalty: backward() of a function of grad(..., create_graph=True)."""
    w, x = leaf([0.5, -1.0]), leaf([2.0, 3.0])
    g = grad(ops.sum(ops.tanh(w * x)), x, create_graph=True)
    ops.sum(g * g).backward()
    t = np.tanh([1.0, -3.0])
    g_value = (1 - t**2) * [0.5, -1.0]
    expected = 2 * g_value * ((1 - t**2) - 2 * t * (1 - t**2) * np.array([2.0, 3.0]) * [0.5, -1.0])
    np.testing.assert_allclose(w.grad.numpy(), expected, rtol=1e-13)  # type: ignore[union-attr]


def test_without_create_graph_gradients_are_off_the_tape() -> None:
    x = leaf(2.0)
    g = grad(x * x * x, x)
    assert not g.requires_grad
    with pytest.raises(GraphError, match="does not require a gradient"):
        grad(g, x)


def test_only_the_nodes_on_the_way_are_run(declare: Callable[..., Op]) -> None:
    """A rule with no derivative is no obstacle off the path, nor for an input that is not asked for."""
    stuck = declare("stuck", "x", forward=np.floor, vjp=["floors are flat; use the input"])
    x, w = leaf(1.5), leaf(2.0)
    assert grad(stuck(x) * w, w).item() == 1.0
    with pytest.raises(GraphError, match="stuck has no derivative with respect to x: floors are flat; use the input"):
        grad(stuck(x) * w, [x, w])
    with pytest.raises(GraphError, match="stuck has no derivative"):
        (stuck(x) * w).backward()


def test_unused_inputs() -> None:
    x, unused = leaf([1.0]), leaf([[1.0, 2.0]])
    with pytest.raises(GraphError, match="x number 1 was not used.*allow_unused=True"):
        grad(ops.sum(x), [x, unused])
    assert grad(ops.sum(x), [x, unused], allow_unused=True)[1] is None
    zeros = grad(ops.sum(x), [x, unused], fill=True)[1]
    assert values(zeros) == [[[0.0, 0.0]]] and zeros.dtype == np.float64
    with pytest.raises(GraphError, match="x number 0 does not require a gradient; set requires_grad=True"):
        grad(ops.sum(x), gmcore.tensor([1.0]))


# -- what a tape is good for -------------------------------------------------------------------------------------
def test_a_freed_tape() -> None:
    x = leaf([1.0, 2.0])
    y = ops.sum(x * x)
    y.backward(retain_graph=True)
    y.backward()
    assert values(x.grad) == [[4.0, 8.0]]
    with pytest.raises(GraphError, match="backward a second time.*retain_graph=True"):
        y.backward()
    with pytest.raises(GraphError, match="backward a second time"):
        grad(y, x)
    assert values(x.grad) == [[4.0, 8.0]]


def test_create_graph_keeps_the_tape() -> None:
    x = leaf(2.0)
    y = x * x
    grad(y, x, create_graph=True)
    assert grad(y, x).item() == 4.0
    with pytest.raises(GraphError, match="a second time"):
        grad(y, x)
    y = x * x
    grad(y, x, create_graph=True, retain_graph=False)
    with pytest.raises(GraphError, match="a second time"):
        grad(y, x)


def write_by_copy(x: Tensor) -> None:
    x.copy_(np.zeros(x.shape))


def write_by_numpy(x: Tensor) -> None:
    x.detach().numpy(writable=True)[...] = 0.0


def write_by_optimiser(x: Tensor) -> None:
    from gmcore import optim

    x.grad = gmcore.tensor(np.ones(x.shape))
    optim.SGD([x], lr=0.1).step()


WRITES = [write_by_copy, write_by_numpy, write_by_optimiser]
CHANGED = "was changed after it was recorded.*Call backward\\(\\) before optimiser steps"


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x,
        ops.sin,
        lambda x: ops.reshape(x, (2, 1)) ** 2.0,
        lambda x: ops.sin(x[::-1]),
        lambda x: ops.cos(ops.transpose(ops.broadcast_to(ops.expand_dims(x, 0), (3, 2)))),
        lambda x: x.detach() * x,
        lambda x: x @ x,
        lambda x: ops.logsumexp(x),
        lambda x: ops.linear(x, np.ones((3, 2))) * ops.concatenate([x, x[:1]]),
    ],
)
def test_a_leaf_changed_after_it_was_saved(write: Callable[[Tensor], None], function: Callable[..., Tensor]) -> None:
    """Also through views: a reshaped tensor has the memory, and so the version, of its leaf."""
    x = leaf([1.0, 2.0])
    y = ops.sum(function(x))
    write(x)
    with pytest.raises(GraphError, match=CHANGED):
        y.backward()
    ops.sum(function(x)).backward()  # recorded after the change: fine


@pytest.mark.parametrize("write", WRITES)
def test_a_change_that_nothing_saved_is_fine(write: Callable[[Tensor], None]) -> None:
    x = leaf([1.0, 2.0])
    y, z = ops.sum(3.0 * x), ops.sum(ops.exp(x))  # the first saves 3, the second its output
    write(x)
    x.grad = None
    y.backward()
    z.backward()
    np.testing.assert_array_equal(x.grad.numpy(), 3.0 + np.exp([1.0, 2.0]))  # type: ignore[attr-defined]


def test_a_change_is_seen_by_the_second_order_too() -> None:
    x = leaf([1.0, 2.0])
    g = ops.sum(grad(ops.sum(x * x * x), x, create_graph=True))
    write_by_copy(x)
    with pytest.raises(GraphError, match=CHANGED):
        g.backward()


def test_a_write_to_a_view_of_the_leaf_is_seen() -> None:
    x = leaf([1.0, 2.0])
    y = ops.sum(x * x)
    with no_grad():
        view = ops.reshape(x, (2, 1))
    view.copy_([[5.0], [6.0]])
    with pytest.raises(GraphError, match=CHANGED):
        y.backward()


# -- step by step ----------------------------------------------------------------------------------------------
def random_program(seed: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A loss, an intermediate result with a hook, and leaves; each result is used several times, or not at all."""
    rng = np.random.default_rng(seed)
    xs = [leaf(rng.standard_normal(3)) for _ in range(2)]
    known = list(xs)
    for _ in range(12):
        x, y = (known[i] for i in rng.integers(0, len(known), 2))
        known.append(
            [x * y, x + x, ops.tanh(x), ops.importance_weights(x)[0] - y, ops.concatenate([x, y])[1:4]][rng.integers(5)]
        )
    middle = known[5]
    middle.retain_grad()
    middle.register_hook(lambda g: g * 2.0)
    return ops.sum(ops.stack(known[3:])), middle, xs


class Seen(Watch):
    def __init__(self) -> None:
        self.rules: list[tuple[Any, ...]] = []

    def before_rule(self, node: Node, grads: Any) -> None:
        self.rules.append((node.op.name, bits(grads)))

    def after_rule(self, node: Node, found: Any) -> None:
        self.rules[-1] += (bits([g for g in found if g is not None]),)


def bits(tensors: Any) -> list[bytes | None]:
    return [None if t is None else t.detach().numpy().tobytes() for t in tensors]


@pytest.mark.parametrize("seed", range(8))
def test_step_runs_the_rules_of_backward(seed: int) -> None:
    loss, middle, xs = random_program(seed)
    seen = Seen()
    with watch(seen):
        loss.backward()
    expected = bits([middle.grad, *[x.grad for x in xs]])
    loss, middle, xs = random_program(seed)
    rules = []
    for node, incoming, outgoing, waiting in step(loss):
        rules.append((node.op.name, bits(incoming), bits([g for _, g in outgoing])))
        assert gmcore.is_grad_enabled() and all(x.grad is None for x in xs)
        # what went out has arrived, and what waits is to come: nodes not yet run, and leaves
        assert all(place in waiting for (place, _), _ in outgoing) and node not in waiting
        assert all(isinstance(place, Leaf) or place.saved is not None for place in waiting)
    assert rules == seen.rules and len(rules) >= 10
    assert bits([middle.grad, *[x.grad for x in xs]]) == expected


def test_step_runs_one_rule_at_a_time(declare: Callable[..., Op]) -> None:
    ran: list[str] = []

    def rule(g: Tensor, name: str) -> Tensor:
        ran.append(name)
        return g * 2.0

    double = declare("double", "x", forward=lambda x, name: x * 2.0, vjp=[rule])
    x = leaf(1.0)
    steps = step(double(double(double(x, name="a"), name="b"), name="c"))
    assert ran == []
    for expected in ("c", "cb", "cba"):
        next(steps)
        assert "".join(ran) == expected and x.grad is None
    assert next(steps, None) is None and x.grad is not None and x.grad.item() == 8.0


@pytest.mark.parametrize("retain_graph", [False, True])
def test_a_pass_left_half_way(retain_graph: bool) -> None:
    """It has added to no leaf, shows what had arrived, has freed what it ran, and leaves nothing else behind."""
    gc.disable()
    gc.freeze()
    try:
        x = leaf([1.0, 2.0])
        x.grad = gmcore.tensor([100.0, 100.0], "float64")
        y = x * x
        loss = ops.sum(y * x)
        steps = step(loss, retain_graph=retain_graph)
        next(steps)
        node, _, _, waiting = next(steps)
        assert node.op.name == "multiply" and waiting[x._node][0].tolist() == y.tolist()  # type: ignore[index]
        steps.close()  # type: ignore[attr-defined]
        assert gmcore.is_grad_enabled() and x.grad.tolist() == [100.0, 100.0]
        if retain_graph:
            loss.backward()
            assert x.grad.tolist() == [103.0, 112.0]
        else:
            with pytest.raises(GraphError, match=r"freed by the first pass \(at sum\)"):
                loss.backward()
            ops.sum(y).backward()  # had not been reached
            assert x.grad.tolist() == [102.0, 104.0]
        del x, y, loss, steps, node, waiting, _
        assert [o for o in gc.get_objects() if type(o) in (Tensor, Node, Leaf)] == []
    finally:
        gc.unfreeze()
        gc.enable()


def test_steps_may_be_taken_in_turn_and_under_other_flags() -> None:
    """Two passes at once, one of them inside no_grad, each from wherever it is asked for."""
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    for_x, for_y = step(ops.sum(ops.exp(x * x))), step(ops.sum(ops.tanh(y) * y))
    while True:
        with no_grad():
            one = next(for_x, None)
            assert not gmcore.is_grad_enabled()
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(next, for_y, None).result()
        if one is None and other is None:
            break
    np.testing.assert_allclose(x.grad, 2.0 * x.detach().numpy() * np.exp(x.detach().numpy() ** 2), rtol=1e-14)
    t = np.tanh(y.detach().numpy())
    np.testing.assert_allclose(y.grad, t + (1.0 - t * t) * y.detach().numpy(), rtol=1e-14)


def test_step_shows_what_came_before_an_error() -> None:
    x = leaf([0.5, 0.5])
    y = ops.sum(ops.bernoulli_sample(x) * 2.0)
    seen = []
    with pytest.raises(GraphError, match="bernoulli_sample has no derivative"):
        for node, *_ in step(y):
            seen.append(node.op.name)
    assert seen == ["sum", "multiply"] and gmcore.is_grad_enabled()
    with pytest.raises(GraphError, match="does not require a gradient"):
        next(step(x.detach()))
    assert list(step(x, np.ones(2))) == [] and x.grad is not None and x.grad.tolist() == [1.0, 1.0]


# -- flags -----------------------------------------------------------------------------------------------------
def test_no_grad_and_enable_grad_nest() -> None:
    x = leaf(1.0)
    with no_grad():
        assert not (x * x).requires_grad
        with gmcore.enable_grad():
            assert (x * x).requires_grad
            with no_grad():
                assert not gmcore.is_grad_enabled()
            assert gmcore.is_grad_enabled()
        assert not gmcore.is_grad_enabled()
    assert gmcore.is_grad_enabled()

    @gmcore.no_grad()
    def decorated() -> bool:
        return gmcore.is_grad_enabled()

    assert not decorated() and not decorated() and gmcore.is_grad_enabled()


def test_flags_are_restored_by_exceptions(declare: Callable[..., Op]) -> None:
    with pytest.raises(ZeroDivisionError), no_grad():
        raise ZeroDivisionError
    assert gmcore.is_grad_enabled()

    def fails(g: Tensor) -> Tensor:
        assert not gmcore.is_grad_enabled()
        raise ZeroDivisionError

    failing = declare("failing", "x", forward=np.positive, vjp=[fails])
    with pytest.raises(ZeroDivisionError):
        failing(leaf(1.0)).backward()
    assert gmcore.is_grad_enabled()


def test_gradients_inside_no_grad() -> None:
    """backward needs a tape that was recorded; it does not need recording to be on."""
    x = leaf(3.0)
    y = x * x
    with no_grad():
        y.backward()
        g = grad(x * 1.0, x) if (x * 1.0).requires_grad else None
    assert g is None and values(x.grad) == [6.0]


def test_detach_cuts_the_tape_and_shares_memory() -> None:
    x = leaf([2.0])
    y = x * x.detach()
    y.backward()
    assert values(x.grad) == [[2.0]]
    d = x.detach()
    assert d.is_leaf and not d.requires_grad and np.shares_memory(d.numpy(), x.detach().numpy())
    before = x.version
    d.copy_([7.0])
    assert values(x) == [[7.0]] and x.version == before + 1


# -- refusals ----------------------------------------------------------------------------------------------------
def test_backward_needs_a_tape_and_a_gradient() -> None:
    with pytest.raises(GraphError, match="no leaf with requires_grad=True led to it.* inside no_grad"):
        (gmcore.tensor(1.0) * 2.0).backward()
    x = leaf([1.0, 2.0])
    y = x * 2.0
    with pytest.raises(GraphError, match=r"shape \(2,\) needs a gradient to start from; sum it first, or pass one"):
        y.backward()
    with pytest.raises(ShapeError, match=r"the gradient has shape \(3,\), expected the tensor's shape \(2,\)"):
        y.backward(np.ones(3))
    with pytest.raises(DtypeError, match="the gradient is float32, expected the tensor's dtype float64"):
        y.backward(np.ones(2, np.float32))
    with pytest.raises(ShapeError, match="expected the tensor's shape"):
        grad(y, x, np.ones((2, 1)))
    with pytest.raises(GraphError, match="2 grad_outputs for 1 ys"):
        grad(y, x, [np.ones(2), np.ones(2)])
    y.backward(gmcore.tensor(np.ones(2)))
    assert values(x.grad) == [[2.0, 2.0]]


def test_only_floats_can_require_a_gradient() -> None:
    for x in ([1, 2], [True, False]):
        with pytest.raises(DtypeError, match="only floating tensors can require a gradient, this one is (int64|bool)"):
            gmcore.tensor(x, requires_grad=True)
    with pytest.raises(DtypeError, match="only floating tensors"):
        gmcore.tensor([1, 2]).requires_grad = True
    with pytest.raises(DtypeError, match=r"cast: int64 carries no gradient; call \.detach\(\) first"):
        leaf([1.0]).astype("int64")


def test_only_leaves_change() -> None:
    x = leaf([1.0])
    y = x * 2.0
    with pytest.raises(GraphError, match="only a leaf can stop requiring a gradient; use .detach()"):
        y.requires_grad = False
    with pytest.raises(GraphError, match="copy_ writes into leaves only; this tensor was computed by multiply"):
        y.copy_([1.0])
    x.requires_grad = False
    assert not (x * 2.0).requires_grad
    with pytest.raises(ShapeError, match=r"copy_: expected the shape \(1,\), got \(2,\)"):
        x.copy_([1.0, 2.0])


def test_samples_name_the_remedy() -> None:
    p = leaf([0.2, 0.7])
    with pytest.raises(GraphError, match=r"bernoulli_sample has no derivative with respect to probs: .*\.detach\(\)"):
        ops.sum(ops.bernoulli_sample(p)).backward()
    key = gmcore.Generator(0).draw()
    with pytest.raises(DtypeError):
        key.requires_grad = True


# -- derivative rules that are defective ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "rule, text",
    [
        (lambda g: None, "gave no gradient for x"),
        (lambda g: ops.sum(g), r"the gradient of x is float64\[\], expected float64\[2\]"),
        (lambda g: ops.expand_dims(g, 0), r"the gradient of x is float64\[1, 2\], expected float64\[2\]"),
        (lambda g: g.astype("float32"), r"the gradient of x is float32\[2\], expected float64\[2\]"),
    ],
)
def test_a_defective_rule_is_caught(declare: Callable[..., Op], rule: Callable[..., Any], text: str) -> None:
    x = leaf([1.0, 2.0])
    wrong = declare("wrong", "x", forward=np.positive, vjp=[rule])
    with pytest.raises(GraphError, match=f"wrong.*{text}.*a defect of its vjp"):
        ops.sum(wrong(x)).backward()
    joint = declare("joint", "x y", forward=np.add, vjp=lambda g: [g, rule(g)])
    with pytest.raises(GraphError, match=f"joint.*{text.replace(' x', ' y')}.*a defect of its vjp"):
        ops.sum(joint(x, x)).backward()


def test_declarations_are_checked(declare: Callable[..., Op]) -> None:
    with pytest.raises(UnknownNameError, match="'add' is declared already"):
        declare("add", "x", forward=np.positive, vjp=None)
    with pytest.raises(ValueError, match="op wrong: 1 derivative rules for 2 inputs"):
        declare("wrong", "x y", forward=np.add, vjp=[lambda g: g])


# -- ops declared outside the package ------------------------------------------------------------------------------
def test_an_op_from_outside(declare: Callable[..., Op]) -> None:
    rule = lambda g, x, out: g * (ops.cos(x) - out) / x  # noqa: E731 - as rules are written
    sinc = declare("outside_sinc", "x", forward=lambda x: np.sin(x) / x, vjp=[rule])
    assert gradcheck(sinc, [np.array([0.5, -2.0])], order=3)
    with pytest.raises(ShapeError, match=rf"outside_norm\(x: float64\[2\]\).*called at {__file__}:"):
        declare("outside_norm", "x", forward=lambda x: np.linalg.norm(x, axis=3), vjp=None)(leaf([1.0, 2.0]))


def test_an_op_with_attributes_shapes_and_needs(declare: Callable[..., Op]) -> None:
    seen = []

    def rule(
        g_a: Tensor, g_b: Tensor, x: Tensor, y_shape: Any, y_dtype: Any, power: float, needs: Any, grads: Any
    ) -> list[Tensor]:
        seen.append((y_shape, y_dtype, power, tuple(needs), len(grads)))
        return [g_a * power * x ** (power - 1.0), ops.broadcast_to(ops.sum(g_b), y_shape)]

    op = declare("outside_pair", "x y", "a b", forward=lambda x, y, power: (x**power, np.asarray(y.sum())), vjp=rule)
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0, 5.0])
    a, _ = op(x, y, power=3.0)
    gx, gy = grad(ops.sum(a), [x, y])
    assert values(gx, gy) == [[3.0, 12.0], [0.0, 0.0, 0.0]]
    a, b = op(x, y, power=3.0)
    grad(ops.sum(a) * b, x)
    assert seen == [((3,), np.float64, 3.0, (True, True), 2), ((3,), np.float64, 3.0, (True, False), 2)]


@pytest.fixture
def fused(declare: Callable[..., Op]) -> Callable[..., Any]:
    """x sin(y) + exp(x y) with a fused backward whose own derivative goes through the plain formula."""

    def plain(g: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        e = ops.exp(x * y)
        return g * (ops.sin(y) + e * y), g * (x * ops.cos(y) + e * x)

    def backward(g: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        e = np.exp(x * y)
        return g * (np.sin(y) + e * y), g * (x * np.cos(y) + e * x)

    gradient = declare("sine_backward", "g x y", "d_x d_y", forward=backward, vjp=by_decomposition("g x y", plain))
    return declare(
        "sine", "x y", forward=lambda x, y: x * np.sin(y) + np.exp(x * y), vjp=lambda g, x, y: list(gradient(g, x, y))
    )


DEPENDENT: dict[str, Callable[..., Any]] = {
    "independent": lambda f, x, y: f(x, y),
    "the same tensor twice": lambda f, x, y: f(x, x),
    "one computed from the other": lambda f, x, y: f(x, ops.sin(x) * y),
    "both from a third": lambda f, x, y: f(x * y, x + y),
    "an input used elsewhere": lambda f, x, y: f(x, y) * x + f(y, x),
    "in itself": lambda f, x, y: f(0.3 * f(x, y), x),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_by_decomposition(fused: Callable[..., Any], name: str) -> None:
    """Second and third order, also where the inputs of the fused op are not independent."""
    x, y = np.array([0.5, -0.4]), np.array([0.3, 0.8])
    assert gradcheck(lambda x, y: DEPENDENT[name](fused, x, y), [x, y], order=3)
    # the fused op and the plain formula give the same fourth derivatives
    derivatives = []
    for f in (fused, lambda x, y: x * ops.sin(y) + ops.exp(x * y)):
        a, b = leaf(x), leaf(y)
        out = DEPENDENT[name](f, a, b)
        for _ in range(4):
            gs = grad(ops.sum(out), [a, b], create_graph=True, fill=True)
            out = gs[0] * 0.7 + gs[1]
        derivatives.append(out.detach().numpy())
    np.testing.assert_allclose(*derivatives, rtol=1e-11)


def test_by_decomposition_for_some_inputs(fused: Callable[..., Any]) -> None:
    x, y = np.array([0.5, -0.4]), np.array([0.3, 0.8])
    assert gradcheck(lambda x: fused(x, y), [x], order=3)
    assert gradcheck(lambda y: fused(x, y), [y], order=3)


# -- threads ---------------------------------------------------------------------------------------------------
def in_threads(f: Callable[[int], Any], n: int = 8) -> list[Any]:
    results: list[Any] = [None] * n
    gate = threading.Barrier(n)

    def work(i: int) -> None:
        gate.wait()
        try:
            results[i] = f(i)
        except BaseException as error:  # noqa: BLE001 - shown by the assertion of the caller
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def train_a_little(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    w1, w2 = leaf(rng.standard_normal((6, 5)) * 0.3), leaf(rng.standard_normal((1, 6)) * 0.3)
    x, y = rng.standard_normal((16, 5)), rng.standard_normal((16, 1))
    generator = gmcore.manual_seed(seed)
    for _ in range(25):
        noise = ops.normal((16, 1), dtype="float64")
        loss = ops.mean(ops.square(ops.linear(ops.linear(x, w1, activation="tanh"), w2) - y + 0.1 * noise))
        penalty = ops.sum(ops.square(grad(loss, w1, create_graph=True)))
        g1, g2 = grad(loss + penalty, [w1, w2])
        w1.copy_(w1.detach().numpy() - 0.1 * g1.numpy())
        w2.copy_(w2.detach().numpy() - 0.1 * g2.numpy())
    assert generator.state == (seed, 25)
    return w1.detach().numpy().tobytes() + w2.detach().numpy().tobytes()


def test_threads_get_what_one_thread_gets() -> None:
    """Eight threads train eight models at once, bit for bit as one after the other; generators are their own."""
    expected = [train_a_little(i) for i in range(8)]
    assert in_threads(train_a_little) == expected


def test_threads_share_a_leaf() -> None:
    x = leaf(np.linspace(-1.0, 1.0, 50))
    results = in_threads(lambda i: grad(ops.sum(ops.sin(x * (i + 1.0))), x).numpy().tobytes())
    assert results == [((i + 1.0) * np.cos((i + 1.0) * x.detach().numpy())).tobytes() for i in range(8)]


def test_flags_are_of_one_thread() -> None:
    turn = threading.Barrier(2)

    def work(i: int) -> bool:
        if i == 0:
            with no_grad():
                turn.wait()
                turn.wait()
                return gmcore.is_grad_enabled()
        turn.wait()
        enabled = gmcore.is_grad_enabled()
        turn.wait()
        return enabled

    assert in_threads(work, 2) == [False, True]
    with no_grad():
        assert in_threads(lambda i: gmcore.is_grad_enabled(), 1) == [True]


# -- memory ----------------------------------------------------------------------------------------------------
def test_the_tape_refers_to_no_tensor() -> None:
    """Dropping the result drops the tape, without the garbage collector; a dead leaf is no error."""
    gc.disable()
    gc.freeze()
    try:
        x = leaf([1.0, 2.0])
        y = ops.sum(x * x)
        g = grad(y, x, create_graph=True)
        h = ops.sum(g * g)
        del y, g
        del x
        h.backward()
        del h
        assert [o for o in gc.get_objects() if type(o) in (Tensor, Node, Leaf)] == []
    finally:
        gc.unfreeze()
        gc.enable()


def test_backward_frees_memory_on_the_way() -> None:
    x = leaf(np.ones(1000))
    y = x
    nodes = []
    for _ in range(3):
        y = ops.sin(y)
        nodes.append(y._node)
    out = ops.sum(y)
    out.backward(retain_graph=True)
    assert all(isinstance(n, Node) and n.saved for n in nodes)
    out.backward()
    assert all(isinstance(n, Node) and not n.saved for n in nodes)


def grows_by(step: Callable[[], None], steps: int) -> int:
    """Blocks of memory that `steps` steps leave behind, without the garbage collector."""
    for _ in range(2):  # what the first collection has emptied is filled again
        for _ in range(min(steps // 8, 125)):
            step()  # compiles kernels, fills caches and Python's free lists
        gc.collect()
    gc.disable()
    try:
        before = sys.getallocatedblocks()
        for _ in range(steps):
            step()
        assert gc.collect() == 0, "the steps left cycles to the garbage collector"
        # The collection has also emptied Python's own lists of free tuples and numbers.
        return sys.getallocatedblocks() - before
    finally:
        gc.enable()


def mlp_step() -> Callable[[], None]:
    rng = np.random.default_rng(0)
    w1, w2 = leaf(rng.standard_normal((8, 4)), "float32"), leaf(rng.standard_normal((1, 8)), "float32")
    x = rng.standard_normal((16, 4)).astype(np.float32)

    def step() -> None:
        out = ops.linear(ops.linear(x, w1, activation="tanh"), w2)
        ops.mean(ops.square(out - ops.normal(out.shape))).backward()
        for w in (w1, w2):
            assert w.grad is not None
            w.copy_(w.detach().numpy() - np.float32(0.01) * w.grad.numpy())
            w.grad = None

    return step


# An object leaked by a step, of any kind, is at least a block.
def test_memory_of_training_is_flat() -> None:
    assert grows_by(mlp_step(), 600) < 150


@pytest.mark.slow
@pytest.mark.alone
def test_memory_of_second_order_training_is_flat() -> None:
    x = leaf(np.ones((4, 3)))

    def step() -> None:
        loss = ops.sum(ops.linear(x, x, activation="softplus"))
        g = grad(loss, x, create_graph=True)
        (ops.sum(g * g) + loss).backward()
        x.grad = None

    assert grows_by(step, 1000) < 250


@pytest.mark.slow
@pytest.mark.alone
def test_memory_of_a_hundred_thousand_steps_is_flat() -> None:
    """Python's blocks, and the peak of the whole process, in which 100,000 blocks of 40 bytes are 4 MB."""
    resource = pytest.importorskip("resource")
    step = mlp_step()
    grows_by(step, 1000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert grows_by(step, 100_000) < 1000
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert kilobytes < 2000 * (1024 if sys.platform == "darwin" else 1)


def test_a_leaf_can_be_copied_with_its_flag() -> None:
    x = leaf([1.0])
    y = copy.deepcopy(x)
    (x * y).backward()
    assert values(x.grad, y.grad) == [[1.0], [1.0]]
    with pytest.raises(GraphError, match="only leaves can be copied.*detach"):
        copy.deepcopy(x * 2.0)


def test_an_indexed_copy_does_not_share_its_leafs_version() -> None:
    """x[[0, 1]] is a copy, so writing into x later leaves what was saved of it intact; x[:2] is a view."""
    for index, is_copy in (([0, 1], True), (slice(0, 2), False)):
        x = leaf([1.0, 2.0, 3.0])
        y = ops.sum(ops.square(x[index]))
        x.copy_(np.zeros(3))
        if is_copy:
            y.backward()
            assert x.grad is not None and x.grad.tolist() == [2.0, 4.0, 0.0]
        else:
            with pytest.raises(GraphError, match="was changed after it was recorded"):
                y.backward()


def test_a_joint_rule_with_too_few_gradients_is_caught(declare: Callable[..., Op]) -> None:
    op = declare("outside_short", "x y", forward=np.add, vjp=lambda g: [g])
    with pytest.raises(GraphError, match="outside_short: 1 gradients for 2 inputs"):
        ops.sum(op(leaf([1.0]), leaf([2.0]))).backward()
