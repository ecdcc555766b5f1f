"""Elementwise operations: NumPy's names and broadcasting, each with its derivative beside it.

In the rules, g is the gradient of the result, `out` the result, and x and y the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gmcore.device import gpu_number, put
from gmcore.errors import ArgumentError, DtypeError, user_function
from gmcore.op import Example, Op, Rule, user_line
from gmcore.tensor import Tensor, as_dtype, as_tensor, finfo, is_floating

_LN_2, _LN_10 = math.log(2.0), math.log(10.0)

# Where the examples of an operation draw their numbers from; kept away from kinks, poles and ties, so that
# finite differences mean something.
Domain = Callable[["np.random.Generator", tuple[int, ...]], np.ndarray]


def real(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.1, 2.0, shape) * rng.choice([-1.0, 1.0], shape)


def positive(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.3, 2.0, shape)


def unit(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(-0.8, 0.8, shape)


def above_one(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(1.3, 3.0, shape)


def between_integers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(-3, 3, shape) + rng.uniform(0.1, 0.4, shape)


def boolean(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.random(shape) < 0.5


def _unary_examples(domain: Domain) -> Callable[[np.random.Generator], Iterator[Example]]:
    def examples(rng: np.random.Generator) -> Iterator[Example]:
        for shape in ((), (0,), (7,), (2, 1, 3)):
            yield (domain(rng, shape),), {}

    return examples


def _binary_examples(x: Domain, y: Domain) -> Callable[[np.random.Generator], Iterator[Example]]:
    shapes = (((), ()), ((0,), ()), ((4,), (4,)), ((2, 1), (1, 3)), ((3,), (2, 3)))

    def examples(rng: np.random.Generator) -> Iterator[Example]:
        for a, b in shapes:
            yield (x(rng, a), y(rng, b)), {}

    return examples


def _unary(name: str, forward: Callable[..., Any], rule: Rule | None, formula: str, domain: Domain = real) -> Op:
    rules = None if rule is None else [rule]
    return Op(name, "x", forward=forward, vjp=rules, formula=formula, examples=_unary_examples(domain))


def _binary(
    name: str,
    forward: Callable[..., Any],
    vjp: Sequence[Rule | str] | None,
    formula: str,
    x: Domain = real,
    y: Domain = real,
) -> Op:
    return Op(name, "x y", forward=forward, vjp=vjp, formula=formula, broadcast=True, examples=_binary_examples(x, y))


def as_floating(x: Any, name: str) -> Tensor:
    """`x` as a tensor of floating numbers, for the operation `name`. Raises `DtypeError` for others."""
    x = as_tensor(x)
    if not is_floating(x.dtype):
        raise DtypeError(f"{name}: expected floating numbers, got {x.dtype} (called at {user_line()})")
    return x


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
    "x^y; its derivative in y is taken as 0 for x <= 0",
    x=positive,
)
square = _unary("square", np.square, lambda g, x: g * (2.0 * x), "x^2")
absolute = _unary("absolute", np.absolute, lambda g, x: g * sign(x), "|x|; derivative 0 at 0")
reciprocal = _unary("reciprocal", np.reciprocal, lambda g, out: -g * out * out, "1 / x")
sqrt = _unary(
    "sqrt", np.sqrt, lambda g, out: g * (0.5 / out), "sqrt(x); NaN for x < 0, infinite derivative at 0", positive
)
cbrt = _unary(
    "cbrt", np.cbrt, lambda g, out: g / (3.0 * out * out), "the real cube root of x; infinite derivative at 0"
)
hypot = _binary(
    "hypot",
    np.hypot,
    # At the origin, where there is no derivative, 0 is the smallest of the subgradients.
    [
        lambda g, x, out: g * x / _where(equal(out, 0.0), 1.0, out),
        lambda g, y, out: g * y / _where(equal(out, 0.0), 1.0, out),
    ],
    "sqrt(x^2 + y^2) without overflow; derivative 0 at the origin",
)

# -- steps: their derivative is 0 wherever they have one ------------------------------------------------------
sign: Op = _unary("sign", np.sign, lambda g: g * 0.0, "-1, 0 or 1, as x is negative, 0 or positive; NaN stays")
floor = _unary("floor", np.floor, lambda g: g * 0.0, "the largest integer <= x; derivative 0", between_integers)
ceil = _unary("ceil", np.ceil, lambda g: g * 0.0, "the smallest integer >= x; derivative 0", between_integers)
trunc = _unary("trunc", np.trunc, lambda g: g * 0.0, "x without its fraction; derivative 0", between_integers)
rint = _unary(
    "rint", np.rint, lambda g: g * 0.0, "the nearest integer, the even one of two; derivative 0", between_integers
)
floor_divide: Op = _binary(
    "floor_divide",
    np.floor_divide,
    [lambda g: g * 0.0, lambda g: g * 0.0],
    "floor(x / y); derivative 0",
    between_integers,
    positive,
)
remainder: Op = _binary(
    "remainder",
    np.remainder,
    [lambda g: g, lambda g, x, y: -g * floor_divide(x, y)],
    "x - y floor(x / y), of the sign of y",
    between_integers,
    positive,
)

fmod = _binary(
    "fmod",
    np.fmod,
    [lambda g: g, lambda g, x, y: -g * trunc(divide(x, y))],
    "x - y trunc(x / y), of the sign of x",
    between_integers,
    positive,
)
heaviside = _binary(
    "heaviside",
    np.heaviside,
    [lambda g: g * 0.0, lambda g, x: where(equal(x, 0.0), g, 0.0)],
    "0, y or 1, as x is negative, 0 or positive; derivative 0 in x",
)
copysign: Op = _binary(
    "copysign",
    np.copysign,
    [lambda g, x, y: g * sign(x) * copysign(1.0, y), lambda g: g * 0.0],
    "|x| with the sign of y, that of a zero too; derivative 0 in y",
)

# -- exponentials, logarithms and activations -----------------------------------------------------------------
exp = _unary("exp", np.exp, lambda g, out: g * out, "e^x")
exp2 = _unary("exp2", np.exp2, lambda g, out: g * (out * _LN_2), "2^x")
expm1 = _unary("expm1", np.expm1, lambda g, out: g * (out + 1.0), "e^x - 1")
log: Op = _unary("log", np.log, lambda g, x: g / x, "log x; minus infinity at 0, NaN below", positive)
log2 = _unary("log2", np.log2, lambda g, x: g / (x * _LN_2), "log of x to base 2", positive)
log10 = _unary("log10", np.log10, lambda g, x: g / (x * _LN_10), "log of x to base 10", positive)
log1p = _unary("log1p", np.log1p, lambda g, x: g / (x + 1.0), "log(1 + x)", positive)
tanh = _unary("tanh", np.tanh, lambda g, out: g * (1.0 - out * out), "tanh x")


def _sigmoid(x: Any) -> Any:
    with np.errstate(over="ignore", under="ignore"):  # where e^-x is no number, 1 over it is none either, and rightly 0
        return 1.0 / (np.exp(-1.0 * x) + 1.0)


def _softplus(x: Any) -> Any:
    return np.maximum(x, 0) + np.log1p(np.exp(np.minimum(x, -1.0 * x)))  # -x of unsigned integers is none of theirs


sigmoid = _unary("sigmoid", _sigmoid, lambda g, out: g * (out * (1.0 - out)), "1 / (1 + e^-x) without overflow")
softplus = _unary("softplus", _softplus, lambda g, x: g * sigmoid(x), "log(1 + e^x) without overflow")
relu = _unary(
    "relu", lambda x: np.maximum(x, 0), lambda g, x: where(greater(x, 0.0), g, 0.0), "max(x, 0); derivative 0 at 0"
)


def _share(x: Tensor, y: Tensor) -> Tensor:
    """e^x / (e^x + e^y); a half each of two equal infinities."""
    same = logical_and(equal(x, y), isinf(x))
    return sigmoid(_where(same, 0.0, x) - _where(same, 0.0, y))


logaddexp = _binary(
    "logaddexp",
    np.logaddexp,
    [lambda g, x, y: g * _share(x, y), lambda g, x, y: g * _share(y, x)],
    "log(e^x + e^y) without overflow",
)

logaddexp2 = _binary(
    "logaddexp2",
    np.logaddexp2,
    [lambda g, x, y: g * _share(x * _LN_2, y * _LN_2), lambda g, x, y: g * _share(y * _LN_2, x * _LN_2)],
    "log to base 2 of 2^x + 2^y, without overflow",
)

# -- trigonometric and hyperbolic functions and their inverses ------------------------------------------------
# 1 - x^2 as (1 - x)(1 + x), which keeps its digits near the poles.
sin = _unary("sin", np.sin, lambda g, x: g * cos(x), "sin x")
cos: Op = _unary("cos", np.cos, lambda g, x: -g * sin(x), "cos x")
tan = _unary("tan", np.tan, lambda g, out: g * (1.0 + out * out), "tan x", unit)
arcsin = _unary("arcsin", np.arcsin, lambda g, x: g / sqrt((1.0 - x) * (1.0 + x)), "the y with sin y = x", unit)
arccos = _unary("arccos", np.arccos, lambda g, x: -g / sqrt((1.0 - x) * (1.0 + x)), "the y with cos y = x", unit)
arctan = _unary("arctan", np.arctan, lambda g, x: g / (1.0 + x * x), "the y with tan y = x")


def _over_square(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """z / (x^2 + y^2), whose squares may be beyond the dtype; 0 at the origin."""
    length = hypot(x, y)
    length = _where(equal(length, 0.0), 1.0, length)
    return z / length / length


arctan2 = _binary(
    "arctan2",
    np.arctan2,
    [lambda g, x, y: g * _over_square(y, x, y), lambda g, x, y: -g * _over_square(x, x, y)],
    "the angle, from -pi to pi, whose sine is to its cosine as x (the first argument) is to y; derivative 0 at the "
    "origin",
)
sinh = _unary("sinh", np.sinh, lambda g, x: g * cosh(x), "sinh x")
cosh: Op = _unary("cosh", np.cosh, lambda g, x: g * sinh(x), "cosh x")
arcsinh = _unary("arcsinh", np.arcsinh, lambda g, x: g / hypot(1.0, x), "the y with sinh y = x")
arccosh = _unary(
    "arccosh", np.arccosh, lambda g, x: g / sqrt((x - 1.0) * (x + 1.0)), "the y >= 0 with cosh y = x", above_one
)
arctanh = _unary("arctanh", np.arctanh, lambda g, x: g / ((1.0 - x) * (1.0 + x)), "the y with tanh y = x", unit)

# -- comparisons ---------------------------------------------------------------------------------------------
greater: Op = _binary("greater", np.greater, None, "x > y")
greater_equal = _binary("greater_equal", np.greater_equal, None, "x >= y")
less = _binary("less", np.less, None, "x < y")
less_equal = _binary("less_equal", np.less_equal, None, "x <= y")
equal: Op = _binary("equal", np.equal, None, "x == y")
not_equal = _binary("not_equal", np.not_equal, None, "x != y")
isfinite = _unary("isfinite", np.isfinite, None, "whether x is finite")
isinf: Op = _unary("isinf", np.isinf, None, "whether x is infinite")
isnan: Op = _unary("isnan", np.isnan, None, "whether x is not a number")
signbit = _unary("signbit", np.signbit, None, "whether the sign of x is minus, that of a zero too")
logical_and: Op = _binary("logical_and", np.logical_and, None, "whether x and y are true (not 0)")
logical_or: Op = _binary("logical_or", np.logical_or, None, "whether x or y is true")
logical_xor = _binary("logical_xor", np.logical_xor, None, "whether just one of x and y is true")
logical_not = _unary("logical_not", np.logical_not, None, "whether x is false (0)")

# Of booleans and integers; the operators &, |, ^ and ~.
bitwise_and = _binary("bitwise_and", np.bitwise_and, None, "x & y, bit by bit", boolean, boolean)
bitwise_or = _binary("bitwise_or", np.bitwise_or, None, "x | y, bit by bit", boolean, boolean)
bitwise_xor = _binary("bitwise_xor", np.bitwise_xor, None, "x ^ y, bit by bit", boolean, boolean)
invert = _unary("invert", np.invert, None, "~x, bit by bit", boolean)

maximum = _binary(
    "maximum",
    np.maximum,
    [
        lambda g, x, y: where(greater(x, y), g, where(equal(x, y), 0.5 * g, 0.0)),
        lambda g, x, y: where(less(x, y), g, where(equal(x, y), 0.5 * g, 0.0)),
    ],
    "max(x, y); a tie splits its gradient evenly, NaN stays",
)
minimum = _binary(
    "minimum",
    np.minimum,
    [
        lambda g, x, y: where(less(x, y), g, where(equal(x, y), 0.5 * g, 0.0)),
        lambda g, x, y: where(greater(x, y), g, where(equal(x, y), 0.5 * g, 0.0)),
    ],
    "min(x, y); a tie splits its gradient evenly, NaN stays",
)
fmax = _binary(
    "fmax",
    np.fmax,
    [
        lambda g, x, y: where(logical_or(greater(x, y), isnan(y)), g, where(equal(x, y), 0.5 * g, 0.0)),
        lambda g, x, y: where(logical_or(greater(y, x), isnan(x)), g, where(equal(x, y), 0.5 * g, 0.0)),
    ],
    "max(x, y), or the other one of a NaN; a tie splits its gradient evenly, two NaN give it to both",
)
fmin = _binary(
    "fmin",
    np.fmin,
    [
        lambda g, x, y: where(logical_or(less(x, y), isnan(y)), g, where(equal(x, y), 0.5 * g, 0.0)),
        lambda g, x, y: where(logical_or(less(y, x), isnan(x)), g, where(equal(x, y), 0.5 * g, 0.0)),
    ],
    "min(x, y), or the other one of a NaN; a tie splits its gradient evenly, two NaN give it to both",
)


def isclose(x: Any, y: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """Whether |x - y| <= atol + rtol |y|, or both are the same infinity.

    Parameters
    ----------
    x, y : of shapes that broadcast.
    rtol, atol : the tolerances.
    equal_nan : whether NaN is close to NaN.

    Returns
    -------
    The broadcast shape, bool.

    Raises
    ------
    ShapeError : shapes that do not broadcast.
    """
    finite = logical_and(isfinite(x), isfinite(y))
    # Infinities have no difference, and those of small integers are beyond their dtype.
    x0, y0 = (_where(finite, z, 0.0) for z in (x, y))
    near = _where(finite, less_equal(absolute(x0 - y0), atol + rtol * absolute(y0)), equal(x, y))
    return logical_or(near, logical_and(isnan(x), isnan(y))) if equal_nan else near


def clip(x: Any, min: Any = None, max: Any = None) -> Tensor:
    """min(max(x, min), max). The gradient is 1 inside, 0 outside, and a half at a limit, which is a tie; NaN stays.

    Parameters
    ----------
    x : any shape.
    min, max : the limits, numbers or arrays that broadcast with `x`; None, the default, for no limit.

    Returns
    -------
    The broadcast shape, in the dtype to which `x` and the limits promote.

    Raises
    ------
    ShapeError : shapes that do not broadcast.
    """
    x = x if min is None else maximum(x, min)
    return as_tensor(x) if max is None else minimum(x, max)


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


def where(condition: Any, x: Any = None, y: Any = None) -> Tensor:
    """x where the condition holds, else y.

    Parameters
    ----------
    condition : boolean.
    x, y : of shapes that broadcast with each other and the condition.

    Returns
    -------
    The broadcast shape, in the dtype to which x and y promote.

    Raises
    ------
    ArgumentError : x and y are not given.  DtypeError : a condition that is not boolean.
    ShapeError : shapes that do not broadcast.

    Notes
    -----
    A NaN or infinity in the branch not taken still reaches the gradient of what computed it, as 0 * inf: guard the
    input of a function outside its domain, not only its result.
    """
    if x is None or y is None:
        raise ArgumentError(
            "where: expected x and y; the places where a condition holds are numpy.nonzero(condition.numpy()) "
            f"(called at {user_line()})"
        )
    condition = as_tensor(condition)
    if condition.dtype.kind != "b":
        raise DtypeError(
            f"where: the condition is {condition.dtype}, expected bool; compare first (called at {user_line()})"
        )
    return _where(condition, x, y)


_where.public = where


def nan_to_num(x: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None) -> Tensor:
    """`x` with NaN and the infinities replaced; the gradient is 0 where something was.

    Parameters
    ----------
    x : any shape.
    nan : in place of NaN.
    posinf, neginf : in place of the infinities; None, the default, for the largest and the least number of the dtype.

    Returns
    -------
    x.shape, in the dtype of `x`; integers become float64.
    """
    x = as_tensor(x)
    limits = finfo(x.dtype if is_floating(x.dtype) else np.dtype(np.float64))
    high = float(limits.max) if posinf is None else posinf
    low = float(limits.min) if neginf is None else neginf
    return _where(isnan(x), nan, _where(equal(x, np.inf), high, _where(equal(x, -np.inf), low, x)))


def _cast_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape in ((), (0,), (5,), (2, 3)):
        yield (real(rng, shape), "float64"), {}


_cast = Op(
    "cast",
    "x",
    forward=lambda x, dtype: x.astype(dtype),
    vjp=[lambda g, x_dtype: cast(g, x_dtype)],
    exact=True,
    formula="x converted to another dtype",
    examples=_cast_examples,
)


def cast(x: Any, dtype: Any) -> Tensor:
    """`x` converted to another dtype; its gradient is converted back.

    Parameters
    ----------
    x : any shape.
    dtype : NumPy dtype of floats, integers or booleans, or its name.

    Returns
    -------
    x.shape, in that dtype; `x` itself where it has it.

    Raises
    ------
    DtypeError : not a dtype of numbers, or a tensor that requires a gradient cast to integers or booleans.
    """
    x, dtype = as_tensor(x), as_dtype(dtype)
    if not is_floating(dtype) and x.requires_grad:
        raise DtypeError(
            f"cast: {dtype} carries no gradient; call .detach() first if that is meant (called at {user_line()})"
        )
    return x if x.dtype == dtype else _cast(x, dtype=dtype)


_cast.public = cast


def _to_device_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape in ((), (0,), (2, 3)):
        yield (real(rng, shape), "cpu"), {}


_to_device: Op = Op(
    "to_device",
    "x",
    forward=lambda x, device, origin: put(x, device),
    vjp=[lambda g, device, origin: _to_device(g, device=origin, origin=device)],
    exact=True,
    formula="x on another device",
    examples=_to_device_examples,
)


def to_device(x: Any, device: str) -> Tensor:
    """`x` on a device; its gradient goes back to where `x` is.

    Parameters
    ----------
    x : any shape.
    device : ``"cpu"``; ``"cuda"`` for the current GPU, ``"cuda:1"`` for the second one.

    Returns
    -------
    x.shape, in the dtype of `x`; `x` itself where it is there.

    Raises
    ------
    ArgumentError : no name of a device.
    MissingPackageError, DeviceError : a GPU that is not there, or nothing to use it with.
    """
    x = as_tensor(x)
    number = gpu_number(device)
    device = "cpu" if number is None else f"cuda:{number}"
    return x if x.device == device else _to_device(x, device=device, origin=x.device)


_to_device.public = to_device


def dtype_of(dtype: Any) -> np.dtype[Any]:
    """A floating dtype from its name. Raises `ArgumentError` for anything else."""
    found = as_dtype(dtype)
    if not is_floating(found):
        raise ArgumentError(f"{user_function()}: expected a floating dtype, got {dtype!r} (called at {user_line()})")
    return found
