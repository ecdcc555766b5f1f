"""Derivatives of functions, with the names and arguments of `torch.autograd.functional`.

A function here takes tensors and gives a tensor or a tuple of them; `inputs` is a tensor or a tuple, and results have
the same form. All are exact. Inputs are used off their tape unless `create_graph`, which makes the results
differentiable, with respect to the inputs and to whatever else the function uses.

    strict : raise `GraphError` for an output that does not depend on an input, where there would be zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gmcore.engine import grad
from gmcore.errors import DtypeError, GraphError, ShapeError
from gmcore.ops import identity, reshape, stack
from gmcore.tensor import Tensor, as_tensor, enable_grad

Function = Callable[..., Any]
Pair = tuple[Any, Any]


def _as_tuple(x: Any, name: str) -> tuple[Tensor, ...]:
    found = tuple(x) if isinstance(x, (tuple, list)) else (x,)
    for i, t in enumerate(found):
        if not isinstance(t, Tensor):
            raise DtypeError(f"{name} {i} is a {type(t).__name__}, expected a tensor")
    return found


def _like(x: Any, found: Sequence[Any]) -> Any:
    """`found` as one tensor where `x` is one, else as a tuple."""
    return tuple(found) if isinstance(x, (tuple, list)) else found[0]


def _inputs(inputs: Any, create_graph: bool) -> list[Tensor]:
    """Each input at a place of the tape of its own, so that one used twice, or computed from another, counts once."""
    tensors = _as_tuple(inputs, "input")
    if create_graph:
        return [identity(x) if x.requires_grad else Tensor(x._data, requires_grad=True) for x in tensors]
    return [Tensor(x._data, requires_grad=True) for x in tensors]


def _vectors(v: Any, like: Sequence[Tensor], name: str) -> list[Tensor]:
    """The vector to multiply with, checked; 1 for a single number."""
    if v is None:
        if len(like) != 1 or like[0].size != 1:
            raise ShapeError(f"{name}: v may be left out only for a single number, not for {[x.shape for x in like]}")
        return [like[0].new_ones(like[0].shape)]
    found = [as_tensor(x) for x in (v if isinstance(v, (tuple, list)) else (v,))]
    if [x.shape for x in found] != [x.shape for x in like]:
        raise ShapeError(f"{name}: v has shapes {[x.shape for x in found]}, expected {[x.shape for x in like]}")
    if [x.dtype for x in found] != [x.dtype for x in like]:
        raise DtypeError(
            f"{name}: v has dtypes {[str(x.dtype) for x in found]}, expected {[str(x.dtype) for x in like]}"
        )
    return found


def _grad(
    ys: Sequence[Tensor], xs: Sequence[Tensor], vs: Sequence[Tensor], create_graph: bool, strict: bool, name: str
) -> list[Tensor]:
    """`grad` with zeros, or an error if `strict`, for what does not depend; the tape is kept."""
    pairs = [(y, v) for y, v in zip(ys, vs, strict=True) if y.requires_grad]
    found: Sequence[Any] = [None] * len(xs)
    if pairs:
        outputs, weights = [y for y, _ in pairs], [v for _, v in pairs]
        found = grad(outputs, list(xs), weights, create_graph, allow_unused=True, retain_graph=True)
    if strict and (len(pairs) < len(ys) or any(g is None for g in found)):
        raise GraphError(f"{name}: strict, but an output does not depend on one of the inputs")
    return [x.new_zeros(x.shape) if g is None else g for x, g in zip(xs, found, strict=True)]


def _results(ys: Any, tensors: Sequence[Tensor], create_graph: bool) -> Any:
    return _like(ys, tensors if create_graph else [y.detach() for y in tensors])


def vjp(
    func: Function, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False
) -> tuple[Any, Any]:
    """``func(*inputs)`` and v^T J, J its Jacobian.

    Parameters
    ----------
    v : shapes and dtypes of the outputs; may be left out where the output is a single number.

    Returns
    -------
    outputs, vjp : the latter in the form of `inputs`.

    Raises
    ------
    ShapeError, DtypeError : a `v` that does not fit.  GraphError : `strict`; an operation without a derivative.
    """
    with enable_grad():
        xs = _inputs(inputs, create_graph)
        ys = func(*xs)
        outputs = _as_tuple(ys, "output of func")
        found = _grad(outputs, xs, _vectors(v, outputs, "vjp"), create_graph, strict, "vjp")
    return _results(ys, outputs, create_graph), _like(inputs, found)


def jvp(
    func: Function, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False
) -> tuple[Any, Any]:
    """``func(*inputs)`` and J v.

    By two reverse passes: u^T J is linear in u, and its own transpose, applied to v, is J v. So every operation needs
    a second derivative, and the cost is that of two gradients.

    Parameters
    ----------
    v : shapes and dtypes of the inputs; may be left out where the input is a single number.

    Returns
    -------
    outputs, jvp : the latter in the form of the outputs.

    Raises
    ------
    As `vjp`.
    """
    with enable_grad():
        xs = _inputs(inputs, create_graph)
        ys = func(*xs)
        outputs = _as_tuple(ys, "output of func")
        vs = _vectors(v, xs, "jvp")
        us = [y.new_zeros(y.shape).requires_grad_() for y in outputs]
        found = _grad(_grad(outputs, xs, us, True, strict, "jvp"), us, vs, create_graph, strict, "jvp")
    return _results(ys, outputs, create_graph), _like(ys, found)


def _rows(y: Tensor, xs: Sequence[Tensor], create_graph: bool, strict: bool, name: str) -> list[Tensor]:
    """dy / dx for each x, of shape ``(*y.shape, *x.shape)``: a reverse pass for each element of y."""
    rows = []
    for i in range(y.size):
        unit = np.zeros(y.size, y.dtype)
        unit[i] = 1
        rows.append(_grad([y], xs, [y.beside(unit.reshape(y.shape))], create_graph, strict, name))
    if not rows:
        return [x.new_zeros((*y.shape, *x.shape)) for x in xs]
    return [reshape(stack(column), (*y.shape, *x.shape)) for column, x in zip(zip(*rows, strict=True), xs, strict=True)]


def jacobian(func: Function, inputs: Any, create_graph: bool = False, strict: bool = False) -> Any:
    """The Jacobian, by a reverse pass for each element of the outputs.

    Returns
    -------
    J of shape ``(*output.shape, *input.shape)``; for a tuple of inputs a tuple of them, and for a tuple of outputs a
    tuple of those: ``J[output][input]``.

    Raises
    ------
    As `vjp`.
    """
    with enable_grad():
        xs = _inputs(inputs, create_graph)
        ys = func(*xs)
        outputs = _as_tuple(ys, "output of func")
        found = [_like(inputs, _rows(y, xs, create_graph, strict, "jacobian")) for y in outputs]
    return _like(ys, found)


def _number(y: Any, name: str) -> Tensor:
    (value,) = _as_tuple(y, "output of func")[:1] if isinstance(y, Tensor) else (None,)
    if value is None or value.size != 1:
        raise ShapeError(f"{name}: func gave {getattr(y, 'shape', type(y).__name__)}, expected a single number")
    return value


def hessian(func: Function, inputs: Any, create_graph: bool = False, strict: bool = False) -> Any:
    """The Hessian of a function with one number as its result.

    Returns
    -------
    H of shape ``(*input.shape, *input.shape)``; for a tuple of inputs ``H[i][j]`` has the shapes of inputs i and j.

    Raises
    ------
    ShapeError : the result is not a single number.  Otherwise as `vjp`.
    """
    with enable_grad():
        xs = _inputs(inputs, create_graph)
        y = _number(func(*xs), "hessian")
        first = _grad([y], xs, [y.new_ones(y.shape)], True, strict, "hessian")
        return _like(inputs, [_like(inputs, _rows(g, xs, create_graph, strict, "hessian")) for g in first])


def vhp(
    func: Function, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False
) -> tuple[Any, Any]:
    """``func(*inputs)``, a single number, and v^T H, H its Hessian, which is symmetric: the same as `hvp`, by
    differentiating the gradient once more.

    Parameters
    ----------
    v : shapes and dtypes of the inputs; may be left out where the input is a single number.

    Raises
    ------
    ShapeError : the result is not a single number.  Otherwise as `vjp`.
    """
    with enable_grad():
        xs = _inputs(inputs, create_graph)
        y = _number(func(*xs), "vhp")
        vs = _vectors(v, xs, "vhp")
        first = _grad([y], xs, [y.new_ones(y.shape)], True, strict, "vhp")
        found = _grad(first, xs, vs, create_graph, strict, "vhp")
    return (y if create_graph else y.detach()), _like(inputs, found)


def hvp(
    func: Function, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False
) -> tuple[Any, Any]:
    """``func(*inputs)``, a single number, and H v: `vhp`, as H is symmetric. Two reverse passes, no Hessian made."""
    return vhp(func, inputs, v, create_graph, strict)


__all__ = ["hessian", "hvp", "jacobian", "jvp", "vhp", "vjp"]
