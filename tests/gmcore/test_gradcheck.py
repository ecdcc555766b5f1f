"""gradcheck accepts right derivatives of every order, and finds a wrong one wherever it is."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gmcore
from gmcore import Tensor, gradcheck, ops
from gmcore.errors import DtypeError
from gmcore.op import OPS, Op

X = np.array([0.3, -1.2, 2.1])


@pytest.fixture
def declare() -> Iterator[Callable[..., Op]]:
    """Declare ops that are gone after the test."""
    before = set(OPS)
    yield lambda name, inputs, **how: Op(name, inputs, formula=name, examples=lambda rng: [], **how)
    for name in set(OPS) - before:
        del OPS[name]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_accepts_right_derivatives(order: int) -> None:
    assert gradcheck(lambda x: ops.sin(x) * ops.exp(x), [X], order=order)


def test_accepts_several_inputs_and_outputs() -> None:
    assert gradcheck(lambda x, y: (x * y, ops.sum(x), ops.greater(x, y)), [X, X[::-1].copy()], order=3)


def test_inputs_that_are_not_float64_are_passed_on() -> None:
    index = np.array([2, 0])
    assert gradcheck(lambda x, i: x[i] * x[0], [X, index], order=2)


def test_constants_have_zero_derivatives() -> None:
    assert gradcheck(lambda x, y: x * 2.0, [X, X], order=3)
    assert gradcheck(lambda x: gmcore.tensor([1.0], "float64"), [X], order=2)


@pytest.mark.parametrize("element", range(3))
def test_finds_one_wrong_element(declare: Callable[..., Op], element: int) -> None:
    slightly = Tensor(np.where(np.arange(3) == element, 1.0 + 1e-4, 1.0))
    wrong = declare("wrong", "x", forward=np.sin, vjp=[lambda g, x: g * ops.cos(x) * slightly])
    with pytest.raises(AssertionError, match=r"derivative of order 1: tape .*, finite differences"):
        gradcheck(wrong, [X])


def test_finds_a_sign_error(declare: Callable[..., Op]) -> None:
    wrong = declare("wrong", "x y", forward=np.subtract, vjp=[lambda g: g, lambda g: g])
    with pytest.raises(AssertionError, match="order 1"):
        gradcheck(wrong, [X, X])


def test_finds_a_missing_path(declare: Callable[..., Op]) -> None:
    wrong = declare("wrong", "x y", forward=np.multiply, vjp=[lambda g, y: g * y, lambda g: g * 0.0])
    with pytest.raises(AssertionError, match="order 1"):
        gradcheck(wrong, [X, X])
    assert gradcheck(lambda x: wrong(x, Tensor(X)), [X])


@pytest.mark.parametrize("order", [2, 3])
def test_finds_a_derivative_wrong_in_a_higher_order_only(declare: Callable[..., Op], order: int) -> None:
    """A rule that detaches what it should differentiate is right once, and wrong from the next order on."""
    rules: dict[int, Callable[..., Any]] = {
        2: lambda g, out: g * out.detach(),
        3: lambda g, out: g * right(ops.log(out)),
    }
    right = declare("inner", "x", forward=np.exp, vjp=[lambda g, out: g * out.detach()])
    wrong = declare("wrong", "x", forward=np.exp, vjp=[rules[order]])
    assert gradcheck(wrong, [X], order=order - 1)
    with pytest.raises(AssertionError, match=f"derivative of order {order}"):
        gradcheck(wrong, [X], order=order)


def test_finds_a_detached_path() -> None:
    with pytest.raises(AssertionError, match="order 1"):
        gradcheck(lambda x: x * x.detach(), [X])


def test_a_nan_fails(declare: Callable[..., Op]) -> None:
    wrong = declare("wrong", "x", forward=np.sin, vjp=[lambda g: g * float("nan")])
    with pytest.raises(AssertionError, match="tape nan"):
        gradcheck(wrong, [X])


def test_refuses_float32() -> None:
    with pytest.raises(DtypeError, match="input 1 is float32; finite differences need float64"):
        gradcheck(lambda x, y: x * y, [X, X.astype(np.float32)])
    with pytest.raises(DtypeError, match="no float64 input"):
        gradcheck(lambda i: i, [np.arange(3)])


def test_inputs_are_left_alone() -> None:
    x = gmcore.tensor(X, requires_grad=True)
    gradcheck(lambda x: x * x, [x], order=2)
    assert x.grad is None and x.version == 0
    np.testing.assert_array_equal(x.detach().numpy(), X)


def test_works_inside_no_grad() -> None:
    with gmcore.no_grad():
        assert gradcheck(lambda x: x * x * x, [X], order=3)


def test_numbers_reach_fused_kernels_as_arrays() -> None:
    """A moved input of no dimensions is still an array."""
    assert gradcheck(OPS["bernoulli_log_prob_backward"], [np.asarray(0.7), X, np.abs(X) / 3], order=2)
