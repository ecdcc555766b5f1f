"""Elementwise operations: NumPy's names and broadcasting, each with its derivative beside it.

In the rules, g is the gradient of the result, `out` the result, and x and y the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gmcore.errors import ArgumentError, DtypeError
from gmcore.op import Example, Op, Rule
from gmcore.tensor import Tensor, as_tensor, check_device

# Where the examples of an operation draw their numbers from; kept away from kinks, poles and ties, so that
# finite differences mean something.
Domain = Callable[["np.random.Generator", tuple[int, ...]], np.ndarray]


def real(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.1, 2.0, shape) * rng.choice([-1.0, 1.0], shape)


def positive(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.3, 2.0, shape)


def _unary_examples(domain: Domain) -> Callable[[np.random.Generator], Iterator[Example]]:
    def examples(rng: np.random.Generator) -> Iterator[Example]:
        for shape in ((), (0,), (1,), (7,), (3, 0), (2, 5), (2, 1, 3)):
            yield (domain(rng, shape),), {}

    return examples


def _binary_examples(x: Domain, y: Domain) -> Callable[[np.random.Generator], Iterator[Example]]:
    shapes = (((), ()), ((0,), ()), ((3,), ()), ((4,), (4,)), ((2, 3), (3,)), ((2, 1), (1, 5)), ((1,), (3, 2)))

    def examples(rng: np.random.Generator) -> Iterator[Example]:
        for a, b in shapes:
            yield (x(rng, a), y(rng, b)), {}

    return examples


def _unary(name: str, forward: Callable[..., Any], rule: Rule, formula: str, domain: Domain = real) -> Op:
    return Op(name, "x", forward=forward, vjp=[rule], formula=formula, examples=_unary_examples(domain))


def _binary(
    name: str,
    forward: Callable[..., Any],
    vjp: Sequence[Rule | str] | None,
    formula: str,
    x: Domain = real,
    y: Domain = real,
) -> Op:
    return Op(name, "x y", forward=forward, vjp=vjp, formula=formula, broadcast=True, examples=_binary_examples(x, y))


identity = Op(
    "identity", "x", forward=lambda x: x, vjp=[lambda g: g], formula="x", view=True, examples=_unary_examples(real)
)

# -- arithmetic ---------------------------------------------------------------------------------------------
add = _binary("add", np.add, [lambda g: g, lambda g: g], "x + y")
subtract = _binary("subtract", np.subtract, [lambda g: g, lambda g: -g], "x - y")
multiply = _binary("multiply", np.multiply, [lambda g, y: g * y, lambda g, x: g * x], "x * y")
divide = _binary("divide", np.true_divide, [lambda g, y: g / y, lambda g, y, out: -g * out / y], "x / y")
negative = _unary("negative", np.negative, lambda g: -g, "-x")
power: Op = _binary(
    "power",
    np.power,
    [
        # x^(y-1) is infinite at x = 0, y = 0, where the derivative of the constant 1 is 0.
        lambda g, x, y: g * where(equal(y, 0.0), 0.0, y * power(x, where(equal(y, 0.0), 1.0, y - 1.0))),
        # d/dy 0^y = 0 for y > 0; log is only taken where x > 0.
        lambda g, x, out: g * out * log(where(greater(x, 0.0), x, 1.0)),
    ],
    "x ** y",
    x=positive,
)
square = _unary("square", np.square, lambda g, x: g * (2.0 * x), "x^2")
absolute = _unary("absolute", np.absolute, lambda g, x: g * sign(x), "|x|")
sign: Op = _unary("sign", np.sign, lambda g: g * 0.0, "-1, 0 or 1; its derivative is 0 wherever it has one")
sqrt = _unary("sqrt", np.sqrt, lambda g, out: g * (0.5 / out), "sqrt(x)", positive)

# -- exponentials and activations ----------------------------------------------------------------------------
exp = _unary("exp", np.exp, lambda g, out: g * out, "e^x")
expm1 = _unary("expm1", np.expm1, lambda g, out: g * (out + 1.0), "e^x - 1")
log: Op = _unary("log", np.log, lambda g, x: g / x, "log x", positive)
log1p = _unary("log1p", np.log1p, lambda g, x: g / (x + 1.0), "log(1 + x)", positive)
sin = _unary("sin", np.sin, lambda g, x: g * cos(x), "sin x")
cos: Op = _unary("cos", np.cos, lambda g, x: -g * sin(x), "cos x")
tanh = _unary("tanh", np.tanh, lambda g, out: g * (1.0 - out * out), "tanh x")


def _sigmoid(x: Any) -> Any:
    half = x.dtype.type(0.5)
    return half * np.tanh(half * x) + half


def _softplus(x: Any) -> Any:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.absolute(x)))


sigmoid = _unary("sigmoid", _sigmoid, lambda g, out: g * (out * (1.0 - out)), "1 / (1 + e^-x)")
softplus = _unary("softplus", _softplus, lambda g, x: g * sigmoid(x), "log(1 + e^x)")
relu = _unary(
    "relu", lambda x: np.maximum(x, 0), lambda g, x: where(greater(x, 0.0), g, 0.0), "max(x, 0); derivative 0 at 0"
)

# -- comparisons ---------------------------------------------------------------------------------------------
greater: Op = _binary("greater", np.greater, None, "x > y")
greater_equal = _binary("greater_equal", np.greater_equal, None, "x >= y")
less = _binary("less", np.less, None, "x < y")
less_equal = _binary("less_equal", np.less_equal, None, "x <= y")
equal: Op = _binary("equal", np.equal, None, "x == y")
not_equal = _binary("not_equal", np.not_equal, None, "x != y")
isfinite = Op(
    "isfinite", "x", forward=np.isfinite, vjp=None, formula="whether x is finite", examples=_unary_examples(real)
)

maximum = _binary(
    "maximum",
    np.maximum,
    [
        lambda g, x, y: where(greater(x, y), g, where(equal(x, y), 0.5 * g, 0.0)),
        lambda g, x, y: where(less(x, y), g, where(equal(x, y), 0.5 * g, 0.0)),
    ],
    "max(x, y); a tie splits its gradient evenly",
)
minimum = _binary(
    "minimum",
    np.minimum,
    [
        lambda g, x, y: where(less(x, y), g, where(equal(x, y), 0.5 * g, 0.0)),
        lambda g, x, y: where(greater(x, y), g, where(equal(x, y), 0.5 * g, 0.0)),
    ],
    "min(x, y); a tie splits its gradient evenly",
)


# -- selection and conversion --------------------------------------------------------------------------------
def _where_examples(rng: np.random.Generator) -> Iterator[Example]:
    for c, a, b in (((), (), ()), ((3,), (3,), ()), ((2, 1), (3,), (2, 3)), ((0,), (0,), (1,))):
        yield (rng.random(c) < 0.5, real(rng, a), real(rng, b)), {}


_where: Op = Op(
    "where",
    "condition x y",
    forward=np.where,
    vjp=[
        "a condition is true or false; differentiate a smooth weight instead",
        lambda g, condition: _where(condition, g, 0.0),
        lambda g, condition: _where(condition, 0.0, g),
    ],
    formula="x where condition, else y",
    broadcast=True,
    examples=_where_examples,
)


def where(condition: Any, x: Any, y: Any) -> Tensor:
    """x where `condition` (boolean) holds, else y; all three broadcast.

    A NaN or infinity in the branch not taken still reaches the gradient of what computed it, as 0 * inf:
    guard the input of a function outside its domain, not only its result.
    """
    condition = as_tensor(condition)
    if condition.dtype.kind != "b":
        raise DtypeError(f"where: the condition is {condition.dtype}, expected bool; compare first")
    return _where(condition, x, y)


_where.public = where


def _cast_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape in ((), (0,), (5,), (2, 3)):
        yield (real(rng, shape), "float64"), {}


_cast = Op(
    "cast",
    "x",
    forward=lambda x, dtype: x.astype(dtype),
    vjp=[lambda g, x_dtype: cast(g, x_dtype)],
    formula="x converted to another dtype",
    examples=_cast_examples,
)


def cast(x: Any, dtype: Any) -> Tensor:
    """`x` converted to `dtype`; its gradient is converted back.

    Raises
    ------
    DtypeError : not a dtype of numbers, or a tensor that requires a gradient cast to integers.
    """
    x, dtype = as_tensor(x), np.dtype(dtype)
    if dtype.kind not in "fiub":
        raise DtypeError(f"cast: expected a dtype of floats, integers or booleans, got {dtype}")
    if dtype.kind != "f" and x.requires_grad:
        raise DtypeError(f"cast: {dtype} carries no gradient; call .detach() first if that is meant")
    return x if x.dtype == dtype else _cast(x, dtype=dtype)


_cast.public = cast


def to_device(x: Any, device: str) -> Tensor:
    """`x` on `device`. Raises `ArgumentError` for a device that is not there."""
    x = as_tensor(x)
    check_device(device)
    return x


def dtype_of(dtype: Any) -> np.dtype[Any]:
    """A floating dtype from its name. Raises `ArgumentError` for anything else."""
    found = np.dtype(dtype)
    if found.kind != "f":
        raise ArgumentError(f"expected a floating dtype, got {dtype!r}")
    return found
