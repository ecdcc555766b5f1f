"""Elementwise functions as one loop: `fuse`.

A function of tensors is run once on stand-ins for arrays that write down what NumPy is asked to do with them. The
operations' forward functions, and after them their derivative rules, are what is asked; so the loop computes what the
operations would have computed, step by step, and nothing about derivatives is said a second time.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from gmcore.engine import grad
from gmcore.errors import ArgumentError, shown, user_line
from gmcore.op import OPS, Example, Op, kernel
from gmcore.ops.elementwise import cast, exp, multiply, tanh
from gmcore.ops.shape import sum_to
from gmcore.tensor import Leaf, Tensor, _mode, as_tensor, is_floating, is_grad_enabled
from gmkernels import KernelSpec
from gmkernels.chain import FUNCTIONS, SMALLEST, Program, kernel_spec

_DTYPES = ("float32", "float64")
_OF_MASKS = {"add": "logical_or", "multiply": "logical_and", "maximum": "logical_or", "minimum": "logical_and"}
"""What arithmetic on masks is."""


# -- writing down ----------------------------------------------------------------------------------------------
class _Trace:
    """The steps of a function so far; a step that was taken before is not taken again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps: list[tuple[str, tuple[Any, ...]]] = []
        self.numbers: dict[tuple[Any, ...], int] = {}
        self.in_gradient = False

    def step(self, function: str, operands: Sequence[Any]) -> str:
        key = (function, *map(repr, operands))  # 0.0 == -0.0, and NaN equals nothing
        if key not in self.numbers:
            self.numbers[key] = len(self.steps)
            self.steps.append((function, tuple(operands)))
        return f"t{self.numbers[key]}"

    def program(self, inputs: int, outputs: Sequence[Any]) -> Program:
        """What leads to the outputs, numbered anew."""
        needed: set[int] = set()
        stack = list(outputs)
        while stack:
            y = stack.pop()
            if isinstance(y, str) and y[0] == "t" and int(y[1:]) not in needed:
                needed.add(int(y[1:]))
                stack += self.steps[int(y[1:])][1]
        names = {f"t{old}": f"t{new}" for new, old in enumerate(sorted(needed))}
        steps = [(self.steps[i][0], tuple([names.get(x, x) for x in self.steps[i][1]])) for i in sorted(needed)]
        return Program(inputs, tuple(steps), tuple([names.get(y, y) for y in outputs]))

    def refusal(self, what: str) -> ArgumentError:
        return ArgumentError(f"fuse: {self.name}: {what} (called at {user_line()})")

    def not_elementwise(self) -> ArgumentError:
        """The refusal of the operation that is running; it may have called a kernel, whose lines are not the user's."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            op = frame.f_locals.get("self")
            if isinstance(op, Op):
                return ArgumentError(
                    f"fuse: {self.name}: {op.name} is not an elementwise operation that can be fused (called at "
                    f"{user_line(since=frame)})"
                )
            frame = frame.f_back
        return self.refusal("uses a tensor for something else than elementwise operations")


class _Traced(NDArrayOperatorsMixin):
    """Stands for an array: has a shape and a dtype, and no numbers."""

    base = None

    def __init__(self, trace: _Trace, name: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.trace, self.name, self.shape, self.dtype = trace, name, shape, dtype

    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: int(np.prod(self.shape)))
    itemsize = property(lambda self: self.dtype.itemsize)

    def __getattr__(self, name: str) -> Any:
        if name in ("item", "tolist", "view"):
            raise self.trace.refusal(
                "asks for the value of a tensor, which decides on nothing that is the same for all elements; select "
                "with ops.where"
            )
        if name.startswith("__"):
            raise AttributeError(name)
        raise self.trace.not_elementwise()

    def __getitem__(self, index: Any) -> Any:
        raise self.trace.not_elementwise()

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        if method != "__call__" or options or ufunc.nout != 1 or ufunc.__name__ not in FUNCTIONS:
            raise self.trace.not_elementwise()
        dtypes = [x.dtype if hasattr(x, "dtype") else type(x) for x in inputs]
        *taken, dtype = ufunc.resolve_dtypes((*dtypes, None))
        name = ufunc.__name__
        if dtype.kind == "f" and dtype.itemsize == 2:
            raise self.trace.refusal(f"computes {name} of a mask, in half precision; make numbers of it with ops.where")
        if all([each.kind == "b" for each in taken]):
            name = _OF_MASKS.get(name, name)
        masks = [name.startswith("logical") or each.kind == "b" for each in taken]
        return self._step(name, inputs, masks, dtype)

    def __array_function__(self, function: Any, types: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if function is np.where and len(args) == 3:
            dtype = np.result_type(*[x if np.isscalar(x) else x.dtype for x in args[1:]])
            return self._step("where", args, [True, dtype.kind == "b", dtype.kind == "b"], dtype)
        if function is np.broadcast_to:
            return _Traced(self.trace, self.name, args[1], self.dtype)
        # A rule sums a gradient to the shape of an input. Rules are linear in the gradient, and the other factors are
        # constant along the axes summed over: so the one sum at the end, which `_rule` takes, is the same.
        if function is np.sum and self.trace.in_gradient:
            return self
        raise self.trace.not_elementwise()

    def reshape(self, shape: tuple[int, ...]) -> _Traced:
        if not self.trace.in_gradient:
            raise self.trace.not_elementwise()
        return _Traced(self.trace, self.name, shape, self.dtype)

    def astype(self, dtype: Any) -> _Traced:
        if np.dtype(dtype) != self.dtype:
            raise self.trace.refusal(f"converts {self.dtype} to {dtype}; a loop has one dtype")
        return self

    def _step(self, function: str, inputs: Sequence[Any], masks: Sequence[bool], dtype: np.dtype[Any]) -> _Traced:
        """A step of the trace; `masks` says of each input whether it is taken as a mask, or as numbers."""
        shape = np.broadcast_shapes(*[np.shape(x) if not isinstance(x, _Traced) else x.shape for x in inputs])
        if function == "where" and not isinstance(inputs[0], _Traced) and not np.ndim(inputs[0]):
            taken = inputs[1 if inputs[0] else 2]  # a rule that asked about a number
            return _Traced(self.trace, taken.name if isinstance(taken, _Traced) else float(taken), shape, dtype)
        operands: list[Any] = []
        for x, mask in zip(inputs, masks, strict=True):
            if not isinstance(x, _Traced):
                if np.ndim(x):
                    raise self.trace.refusal(f"uses {shown(x)} from elsewhere; make it an argument")
                operands.append(self.trace.step("equal" if x else "not_equal", (0.0, 0.0)) if mask else float(x))
            elif mask and x.dtype.kind != "b":
                operands.append(self.trace.step("not_equal", (x.name, 0.0)))
            elif not mask and x.dtype.kind == "b":
                operands.append(self.trace.step("where", (x.name, 1.0, 0.0)))
            else:
                operands.append(x.name)
        return _Traced(self.trace, self.trace.step(function, operands), shape, dtype)


# -- what a traced function is ---------------------------------------------------------------------------------
class _Gradient:
    """The gradients of a chain: functions of the gradient of its result and of its arguments."""

    def __init__(self, name: str, spec: KernelSpec) -> None:
        self.name = f"gradient of {name}"
        self.spec = spec

    def __repr__(self) -> str:
        return self.name


class _Chain:
    """A function traced for arguments of given shapes: its programs, forward and backward."""

    def __init__(self, function: Callable[..., Tensor], name: str, metas: Sequence[tuple[Any, Any]]) -> None:
        self.function = function
        self.name = name
        self._metas = metas
        self.spec = kernel_spec(self._trace(None))
        self._gradients: dict[tuple[bool, ...], _Gradient] = {}

    def __repr__(self) -> str:
        return self.name

    def gradient(self, needs: tuple[bool, ...]) -> _Gradient:
        """The gradients of the arguments that `needs` names, before they are summed to the arguments' shapes."""
        if needs not in self._gradients:
            self._gradients[needs] = _Gradient(self.name, kernel_spec(self._trace(needs)))
        return self._gradients[needs]

    def _trace(self, needs: tuple[bool, ...] | None) -> Program:
        trace = _Trace(self.name)
        first = 0 if needs is None else 1
        token = _mode.set(True)
        try:
            xs = [
                Tensor(_Traced(trace, f"x{i + first}", *meta), requires_grad=True) for i, meta in enumerate(self._metas)
            ]
            y = self.function(*xs)
            shape = np.broadcast_shapes(*[shape for shape, _ in self._metas])
            if not isinstance(y, Tensor) or (y.shape, y.dtype) != (shape, self._metas[0][1]):
                expected = f"a tensor of the arguments' dtype and of their broadcast shape {shape}"
                raise trace.refusal(f"gives {shown(y)}, expected {expected}")
            if not isinstance(y._data, _Traced):
                raise trace.refusal("gives a tensor that does not depend on its arguments")
            self._only_from(xs, y, trace)
            if needs is None:
                return trace.program(len(xs), [y._data.name])
            trace.in_gradient = True
            wanted = [x for x, need in zip(xs, needs, strict=True) if need]
            g = Tensor(_Traced(trace, "x0", shape, y.dtype))
            found = (
                grad(y, wanted, g, create_graph=True, allow_unused=True) if y.requires_grad else [None] * len(wanted)
            )
            return trace.program(1 + len(xs), [0.0 if d is None else d._data.name for d in found])
        finally:
            _mode.reset(token)

    @staticmethod
    def _only_from(xs: Sequence[Tensor], y: Tensor, trace: _Trace) -> None:
        """Refuse a function whose result depends on other leaves than its arguments: their gradients would be lost."""
        own, seen, stack = {x._node for x in xs}, set(), [y._node]
        while stack:
            node = stack.pop()
            if node is None or node in seen or node in own:
                continue
            if isinstance(node, Leaf):
                raise trace.refusal("uses a tensor that requires a gradient and is no argument; make it one")
            seen.add(node)
            stack += [edge[0] for edge in node.edges if edge is not None]


# -- the operation -----------------------------------------------------------------------------------------------
def _rule(xs: list[Tensor], chain: _Chain, needs: tuple[bool, ...], grads: Sequence[Tensor]) -> list[Tensor | None]:
    if is_grad_enabled():  # for higher derivatives, by the operations that the function is made of
        own = [OPS["identity"](x) for x in xs]
        wanted = [x for x, need in zip(own, needs, strict=True) if need]
        found = iter(grad(chain.function(*own), wanted, grads[0], create_graph=True, fill=True))
    else:
        result = _fused(grads[0], *xs, chain=chain.gradient(tuple(needs)))
        found = iter(result if type(result) is tuple else (result,))
    return [sum_to(next(found), x.shape) if need else None for x, need in zip(xs, needs, strict=True)]


def _examples(rng: np.random.Generator) -> Iterator[Example]:
    for a, b in (((), ()), ((0,), ()), ((3,), (2, 3)), ((2, 1), (2, 3))):
        yield (_example, rng.uniform(0.3, 2.0, a), rng.uniform(0.3, 2.0, b)), {}


def _example(x: Any, y: Any) -> Tensor:
    return tanh(multiply(x, y)) * x + exp(-y)


_fused = Op(
    "fused",
    "*xs",
    "*outs",
    forward=lambda *xs, chain: kernel(chain.spec)(*xs),
    vjp=_rule,
    formula="an elementwise function of xs, or its gradients, in one pass",
    examples=_examples,
)


def fused(function: Callable[..., Tensor], *xs: Any) -> Tensor:
    """``fuse(function)(*xs)``, for a function that is called once.

    Parameters
    ----------
    function, xs : as for `fuse`.

    Returns
    -------
    What the function gives.

    Raises
    ------
    ArgumentError : as for `fuse`.
    """
    return fuse(function)(*xs)


_fused.public = fused


class _Fused:
    """A fused function: what `fuse` gives."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._chains: dict[Any, _Chain] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        values = (*args, *kwargs.values())
        tensors = [as_tensor(x) for x in values if isinstance(x, _ARRAYS)]
        dtypes = {x.dtype for x in tensors}
        if len(dtypes) == 1 and tensors[0].dtype.itemsize == 2 and is_floating(tensors[0].dtype):
            singles = [cast(x, np.float32) if isinstance(x, _ARRAYS) else x for x in values]
            found = self(*singles[: len(args)], **dict(zip(kwargs, singles[len(args) :], strict=True)))
            return cast(found, tensors[0].dtype)  # rounded once, as operations on half types are
        if len(dtypes) != 1 or tensors[0].dtype.name not in _DTYPES:
            return self._function(*map(_tensor, args), **{name: _tensor(x) for name, x in kwargs.items()})
        if any(type(x._data) is _Traced for x in tensors):  # part of a function that is being fused itself
            return self._function(*args, **kwargs)
        others = tuple([None if isinstance(x, _ARRAYS) else (x,) for x in values])
        kinds = tuple([x and (type(x[0]), repr(x[0]) if isinstance(x[0], _REALS) else x[0]) for x in others])
        key = (kinds, tuple(kwargs), tuple([x.shape for x in tensors]), tensors[0].dtype)
        try:
            chain = self._chains.get(key)
        except TypeError:
            raise ArgumentError(
                f"fuse: {self._name}: arguments that are no tensors must be hashable, got "
                f"{', '.join([shown(x[0]) for x in others if x])} (called at {user_line()})"
            ) from None
        if chain is None:
            wrapped, count, names = self._function, len(args), tuple(kwargs)  # not the arguments, which would live on

            def function(*xs: Tensor) -> Tensor:
                rest = iter(xs)
                given = [next(rest) if other is None else other[0] for other in others]
                return wrapped(*given[:count], **dict(zip(names, given[count:], strict=True)))

            chain = self._chains[key] = _Chain(function, self._name, [(x.shape, x.dtype) for x in tensors])
        return _fused(*tensors, chain=chain)

    @property
    def _name(self) -> str:
        return getattr(self._function, "__qualname__", repr(self._function))


_ARRAYS = (Tensor, np.ndarray)
_REALS = (float, complex, np.inexact)  # 0.0 == -0.0, and NaN equals nothing


def _tensor(x: Any) -> Any:
    """An array as a tensor; anything else as it is."""
    return as_tensor(x) if isinstance(x, _ARRAYS) else x


def fuse_large(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`fuse` for the package's own functions, which fuses where the first argument has enough elements to be compiled
    for, and elsewhere leaves the operations as they are."""
    in_one = _Fused(function)

    @functools.wraps(function)
    def chosen(x: Any, *args: Any, **kwargs: Any) -> Tensor:
        x = as_tensor(x)
        return (in_one if x.size >= SMALLEST else function)(x, *args, **kwargs)

    code: Any = chosen
    code.__code__ = code.__code__.replace(co_qualname=function.__qualname__)  # what errors name as the function
    return chosen


def fuse(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An elementwise function as one pass over memory, forward and backward. Also a decorator.

        @gmcore.fuse
        def swish(x, beta):
            return x * ops.sigmoid(beta * x)

    Parameters
    ----------
    function : takes tensors, and gives a tensor of the shape to which they broadcast. It is made of elementwise
        operations of `gmcore.ops` that `gmkernels.chain.FUNCTIONS` has, or that are made of those. Other arguments,
        and what it reads from elsewhere, are constants: the function is traced again when its arguments' shapes or
        their values change, but not when something elsewhere does.

    Returns
    -------
    A function of the same arguments and results, up to rounding.

    Raises
    ------
    ArgumentError : (when called) an operation that is not elementwise; a decision by the value of a tensor; a tensor
        from elsewhere that is no single number, or that requires a gradient; a result of another shape or dtype.

    Notes
    -----
    For each set of shapes and other arguments the function is run once on stand-ins for arrays; each program that comes
    out is compiled once, at its first use with 32768 elements or more, in about a second for the forward and another
    for the backward pass, and kept on disk. Smaller arrays take NumPy's functions, a pass for each step.

    The backward pass keeps the arguments only, and computes what it needs anew. Derivatives of order two and more are
    those of the operations, not fused. Arrays of other dtypes than float32 and float64, or of several, go through the
    operations too. In a compiled loop numbers below the normal ones count as zero, and the gradients of arguments that
    broadcast are summed last, which is the same where they are finite. Functions with a sine or a cosine are left to
    NumPy, whose arguments have no limit.

    The name is that of CuPy's function for the same purpose.
    """
    return _Fused(function)
