"""Jacobians, Hessians and their products, against PyTorch and against each other."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gmcore
from gmcore import Tensor, functional, ops
from gmcore.errors import DtypeError, GraphError, ShapeError

A, B = np.array([0.3, -0.7, 1.1]), np.array([[0.5, -0.2, 0.9], [1.2, 0.4, -0.6]])


def pair(lib: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """A function with two outputs, and one with a number, of two inputs in a library's operations."""

    def vector(a: Any, b: Any) -> Any:
        return lib.tanh(b @ a) * lib.exp(a[0]), a * a

    def number(a: Any, b: Any) -> Any:
        return (lib.tanh(b @ a) * lib.exp(a[0])).sum() + (a * a * a).sum()

    return vector, number


def arrays(x: Any) -> Any:
    return tuple(map(arrays, x)) if isinstance(x, tuple) else np.asarray(x.detach().numpy())


def same(found: Any, expected: Any) -> None:
    assert isinstance(found, tuple) == isinstance(expected, tuple)
    if isinstance(found, tuple):
        assert len(found) == len(expected)
        for f, e in zip(found, expected):
            same(f, e)
    else:
        assert found.shape == expected.shape and found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


VS: dict[str, Any] = {
    "vjp": (np.array([0.4, -1.0]), np.array([0.1, 0.2, 0.3])),
    "jvp": (A[::-1].copy(), B * 2 + 1),
    "hvp": (A[::-1].copy(), B * 2 + 1),
    "vhp": (A[::-1].copy(), B * 2 + 1),
}


@pytest.mark.parametrize("name", ["vjp", "jvp", "jacobian", "hessian", "hvp", "vhp"])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("single", [False, True])
def test_against_torch(name: str, create_graph: bool, single: bool) -> None:
    torch = pytest.importorskip("torch")
    results = []
    for lib, make, module in (
        (ops, lambda x: Tensor(x.copy()), functional),
        (torch, lambda x: torch.tensor(x), torch.autograd.functional),
    ):
        f = pair(lib)[name in ("hessian", "hvp", "vhp")]
        b = make(B)
        func = (lambda a, f=f, b=b: f(a, b)) if single else f
        inputs = make(A) if single else (make(A), b)
        v = VS.get(name)
        v = v and tuple(map(make, v))
        if single and v and name != "vjp":
            v = v[0]
        extra = () if v is None else (v,)
        results.append(arrays(getattr(module, name)(func, inputs, *extra, create_graph=create_graph)))
    same(*results)


def test_create_graph_differentiates_on() -> None:
    """The third derivative as the gradient of an entry of the Hessian; also with respect to a captured tensor."""
    x, c = (gmcore.tensor(v, "float64", requires_grad=True) for v in ([0.5, 2.0], [3.0, 5.0]))
    h = functional.hessian(lambda x: ops.sum(c * x**4.0), x, create_graph=True)
    gx, gc = gmcore.grad(h[1, 1], [x, c])
    np.testing.assert_allclose(gx.numpy(), [0.0, 24 * 5 * 2.0], rtol=1e-13)
    np.testing.assert_allclose(gc.numpy(), [0.0, 12 * 4.0], rtol=1e-13)
    off = functional.jacobian(ops.exp, x)
    assert not off.requires_grad
    # an input computed from another, and one given twice, count for themselves
    y = ops.exp(x)
    jx, jy = functional.jacobian(lambda x, y: ops.sum(x * y), (x, y), create_graph=True)
    same(arrays((jx, jy)), arrays((y, x)))


def test_consistency_of_products() -> None:
    f = pair(ops)[1]
    a, b = Tensor(A), Tensor(B)
    h = functional.hessian(lambda a: f(a, b), a)
    v = Tensor(VS["hvp"][0])
    np.testing.assert_allclose(functional.hvp(lambda a: f(a, b), a, v)[1].numpy(), h.numpy() @ v.numpy(), rtol=1e-12)
    assert gmcore.gradcheck(lambda a, v: functional.jvp(lambda x: ops.exp(x) * x, a, v, create_graph=True)[1],
                            [A, VS["hvp"][0]], order=2)  # fmt: skip


def test_independent_outputs_are_zero_or_refused() -> None:
    x = Tensor(A)
    constant = Tensor(np.ones(2))
    for name, func in (("vjp", lambda x: constant), ("jvp", lambda x: constant), ("jacobian", lambda x: constant),
                       ("hessian", lambda x: ops.sum(x)), ("hvp", lambda x: ops.sum(x))):  # fmt: skip
        v = {"vjp": constant, "jvp": x, "hvp": x}.get(name)
        args = () if v is None else (v,)
        found = getattr(functional, name)(func, x, *args)
        found = found[1] if isinstance(found, tuple) else found
        assert found.dtype == np.float64 and not found.numpy().any()
        with pytest.raises(GraphError, match=f"{name.replace('hvp', 'vhp')}: strict"):
            getattr(functional, name)(func, x, *args, strict=True)
    empty = functional.jacobian(lambda x: x[:0], x)
    assert empty.shape == (0, 3)


def test_bad_arguments() -> None:
    x = Tensor(A)
    with pytest.raises(ShapeError, match=r"vjp: v has shapes \[\(2,\)\], expected \[\(3,\)\]"):
        functional.vjp(ops.exp, x, np.ones(2))
    with pytest.raises(DtypeError, match="jvp: v has dtypes .*float32.*expected.*float64"):
        functional.jvp(ops.exp, x, np.ones(3, np.float32))
    with pytest.raises(ShapeError, match="vjp: v may be left out only for a single number"):
        functional.vjp(ops.exp, x)
    with pytest.raises(ShapeError, match=r"hessian: func gave \(3,\), expected a single number"):
        functional.hessian(ops.exp, x)
    with pytest.raises(DtypeError, match="input 0 is a list"):
        functional.jacobian(ops.exp, [[1.0]])
    with pytest.raises(DtypeError, match="output of func 0 is a float"):
        functional.jacobian(lambda x: 1.0, x)


def test_inside_no_grad() -> None:
    with gmcore.no_grad():
        assert functional.jacobian(ops.exp, Tensor(np.zeros(1))).tolist() == [[1.0]]
    assert functional.vjp(ops.sum, Tensor(A))[1].tolist() == [1.0, 1.0, 1.0]
