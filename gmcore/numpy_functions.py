"""What NumPy's functions do with tensors: work as operations, or refuse. They never detach.

A function that `gmcore.ops` has under NumPy's name, ``np.exp(t)``, ``np.concatenate([t, t])``, is that operation,
as is an operator of an array and a tensor. Any other is computed on arrays where no tensor among its arguments
requires a gradient, and is refused where one does. `Tensor` hands its calls here by NumPy's two protocols.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

import gmcore.tensor
from gmcore import ops
from gmcore.errors import ArgumentError, GraphError
from gmcore.op import OPS, user_line
from gmcore.tensor import Tensor

_NAMES = (
    "all", "any", "argmax", "argmin", "argsort", "array_split", "atleast_1d", "atleast_2d", "atleast_3d",
    "broadcast_to", "clip", "concatenate", "cumprod", "cumsum", "diag", "diagonal", "dot", "einsum", "expand_dims",
    "flip", "inner", "max", "mean", "median", "meshgrid", "min", "moveaxis", "nan_to_num", "outer", "pad", "prod",
    "quantile", "ravel", "repeat", "reshape", "roll", "sort", "split", "squeeze", "stack", "std", "sum", "swapaxes",
    "take", "take_along_axis", "tensordot", "tile", "trace", "transpose", "tril", "triu", "var", "where",
)  # fmt: skip
"""Functions that mean the same in NumPy and here."""

FUNCTIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    **{getattr(np, name): getattr(ops, name) for name in _NAMES},
    **{getattr(np.linalg, name): getattr(ops, name) for name in ("cholesky", "det", "inv", "slogdet", "solve")},
    np.linalg.vector_norm: ops.norm,
    **{op.forward: op.public for op in OPS.values() if isinstance(op.forward, np.ufunc)},
    np.matmul: ops.matmul,
}
"""NumPy's function -> ours."""

_RENAMED = {"a_min": "min", "a_max": "max"}

SHAPE_ONLY = frozenset(
    (np.shape, np.ndim, np.size, np.zeros_like, np.ones_like, np.empty_like, np.result_type, np.iscomplexobj)
)
"""Functions whose result does not depend on the numbers in a tensor, and so has no gradient to lose."""


def call_ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``ufunc.method(*inputs, **kwargs)`` where there is a tensor among the arguments.

    Raises
    ------
    GraphError : it is no operation and would cut the tape.  ArgumentError : it would write into a tensor.
    """
    if method == "__call__" and not kwargs and ufunc in FUNCTIONS:
        return FUNCTIONS[ufunc](*inputs)
    call = getattr(ufunc, method)
    return _on_arrays(call, ufunc.__name__ if method == "__call__" else f"{ufunc.__name__}.{method}", inputs, kwargs)


def call_function(
    function: Callable[..., Any], types: Sequence[type[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """``function(*args, **kwargs)`` where there is a tensor among the arguments; raises as `call_ufunc`."""
    if not all(issubclass(kind, (Tensor, np.ndarray)) for kind in types):
        return NotImplemented
    ours = FUNCTIONS.get(function)
    if ours is not None:
        call = _translated(function, ours, args, kwargs)
        if call is not None:
            return ours(*call[0], **call[1])
    return _on_arrays(function, function.__name__, args, kwargs)


def _on_arrays(function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The function on the tensors' arrays, unless that would cut the tape."""
    if any(isinstance(x, Tensor) for x in _flat(kwargs.get("out"))):
        raise ArgumentError(f"numpy.{name}: out is a tensor, and tensors do not change (called at {user_line()})")
    if function not in SHAPE_ONLY and any(x.requires_grad for x in _flat((args, kwargs)) if isinstance(x, Tensor)):
        which = "with these arguments " if function in FUNCTIONS or name in ops.__all__ else ""
        raise GraphError(
            f"numpy.{name} {which}would cut the tape of a tensor that requires a gradient; use gmcore.ops, or "
            f".detach() if that is meant (called at {user_line()})"
        )
    return function(*_arrays(args), **_arrays(kwargs))


def _flat(value: Any) -> Iterator[Any]:
    """The leaves of nested lists, tuples and dictionaries."""
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        yield value
        return
    for item in value:
        yield from _flat(item)


def _arrays(value: Any) -> Any:
    """`value` with read-only arrays in the place of tensors."""
    if isinstance(value, Tensor):
        return value.detach().numpy()
    if isinstance(value, (list, tuple)):
        return type(value)([_arrays(item) for item in value])
    return {key: _arrays(item) for key, item in value.items()} if isinstance(value, dict) else value


@functools.cache
def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except ValueError:  # functions written in C have none; their arguments are passed on as they are
        return None


def _translated(
    function: Callable[..., Any], ours: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]] | None:
    """The arguments of NumPy's function as those of ours; None if ours does not take one of them.

    The first arguments, which ours needs, are matched by position, and the options by name: their order differs.
    """
    theirs, taken = _signature(function), _signature(ours)
    assert taken is not None  # a function of gmcore.ops
    positional: list[Any] = []
    options: dict[str, Any] = {}
    if theirs is None:
        positional, options = [*args], kwargs
    else:
        needed = sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in taken.parameters.values())
        bound = theirs.bind(*args, **kwargs).arguments
        for i, (name, value) in enumerate(bound.items()):
            kind = theirs.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                positional += value
            elif kind is inspect.Parameter.VAR_KEYWORD:
                options |= value
            elif i < needed:
                positional.append(value)
            else:
                options[_RENAMED.get(name, name)] = value
    try:
        taken.bind(*positional, **options)
    except TypeError:
        return None
    return positional, options


gmcore.tensor._numpy = sys.modules[__name__]
