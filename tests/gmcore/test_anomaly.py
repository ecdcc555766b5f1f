"""detect_anomaly names the operation that first made a NaN or an infinity, and the line that called it."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gmcore
from gmcore import Tensor, detect_anomaly, ops
from gmcore.errors import AnomalyError
from gmcore.op import OPS, Op
from gmcore.tensor import _mode

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def leaf(x: Any) -> Tensor:
    return gmcore.tensor(x, "float64", requires_grad=True)


def line_of(f: Callable[..., Any]) -> str:
    return f"{__file__}:{f.__code__.co_firstlineno + 1}"


@pytest.mark.parametrize("recorded", [True, False])
def test_forward(recorded: bool) -> None:
    def compute(x: Tensor) -> Tensor:
        y = ops.log(x)
        return ops.exp(y) * 2.0

    for value, text in ((0.0, "infinity"), (-1.0, "NaN")):
        with pytest.raises(AnomalyError, match=rf"log\(x: float64\[2\]\) made {text} in its out") as caught:
            with detect_anomaly(), gmcore.set_grad_enabled(recorded):
                compute(leaf([1.0, value]))
        assert line_of(compute) in str(caught.value)
    compute(leaf([0.0]))  # nothing is looked at outside


def test_backward() -> None:
    def compute(x: Tensor) -> Tensor:
        y = ops.sqrt(x)
        return ops.sum(y * 3.0)

    with detect_anomaly():
        y = compute(leaf([4.0, 0.0]))
        with pytest.raises(AnomalyError, match=r"backward through sqrt made infinity .*first in divide") as caught:
            y.backward()
        assert line_of(compute) in str(caught.value)
    y = compute(leaf([4.0, 0.0]))
    with detect_anomaly(), pytest.raises(AnomalyError, match="sqrt .*run the forward pass inside"):
        y.backward()


def test_an_input_that_is_given_twice_is_named_by_its_place() -> None:
    rules = [lambda g: g, lambda g: g * np.inf]
    op = Op("given_twice", "x y", forward=np.add, vjp=rules, formula="x + y", examples=lambda rng: [])
    try:
        x = leaf([1.0])
        with detect_anomaly(), pytest.raises(AnomalyError, match="made infinity in the gradient of its y "):
            op(x, x).backward()
    finally:
        del OPS["given_twice"]


def test_second_order() -> None:
    """d2/dx2 |x|^1.5 is infinite at 0: an operation of the first gradient is named, and whose gradient that was."""

    def compute(x: Tensor) -> Tensor:
        y = x**1.5
        return ops.sum(y)

    x = leaf([1.0, 0.0])
    with detect_anomaly():
        g = gmcore.grad(compute(x), x, create_graph=True)
        with pytest.raises(AnomalyError, match="backward through power made .*, in the gradient of power") as caught:
            ops.sum(g).backward()
        assert line_of(compute) in str(caught.value)


def test_a_constant_infinity_passes_and_a_nan_that_comes_of_it_does_not() -> None:
    mask = np.array([0.0, -np.inf])
    x = leaf([1.0, 2.0])
    with detect_anomaly():
        ops.sum(ops.exp(x + mask)).backward()
        with pytest.raises(AnomalyError, match="multiply.* made NaN in its out"):
            (x - 2.0) * mask
        with pytest.raises(AnomalyError, match="add.* made NaN .*given NaN in its y, made outside"):
            x + np.array([np.nan, 1.0])


def test_masked_inside_a_rule_is_no_anomaly() -> None:
    """power's rule takes log 0 and throws it away."""
    x, y = leaf([0.0, 2.0]), leaf([2.0, 2.0])
    with detect_anomaly():
        ops.sum(x**y).backward()


def test_a_gradient_that_is_bad_from_the_start_or_by_a_hook() -> None:
    x = leaf([1.0])
    with detect_anomaly():
        with pytest.raises(AnomalyError, match="gradient of the result of multiply .* has NaN, but nothing"):
            (x * 2.0).backward(np.array([np.nan]))
        y = x * 2.0
        y.register_hook(lambda g: Tensor(g._data * np.inf))
        with pytest.raises(AnomalyError, match="gradient of the result of multiply .* has infinity"):
            ops.sum(y).backward()


def test_inside_a_checkpoint() -> None:
    def compute(x: Tensor) -> Tensor:
        return ops.sqrt(x) * 2.0

    with detect_anomaly():
        y = ops.sum(gmcore.checkpoint(compute, leaf([0.0])))
        with pytest.raises(AnomalyError, match="backward through sqrt") as caught:
            y.backward()
        assert line_of(compute) in str(caught.value)


def test_of_this_thread_only_and_nothing_stays() -> None:
    results: list[Any] = []

    def other() -> None:
        results.append(ops.log(leaf([0.0])).item())

    with detect_anomaly():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        ops.exp(leaf([0.0]))
    assert results == [-np.inf] and _mode.get() is True
    with pytest.raises(ZeroDivisionError), detect_anomaly():
        raise ZeroDivisionError
    assert _mode.get() is True
