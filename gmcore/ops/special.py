"""Special functions: SciPy's names, but for `lgamma`, each with its derivative beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gmcore.errors import ArgumentError
from gmcore.op import Example, Op, Rule, kernel, user_line
from gmcore.ops.elementwise import (
    Domain,
    _binary_examples,
    _unary_examples,
    between_integers,
    equal,
    exp,
    less,
    log,
    log1p,
    positive,
    real,
    square,
    unit,
    where,
)
from gmcore.tensor import Tensor, as_tensor
from gmkernels import KernelSpec
from gmkernels.special import spec

_TWO_OVER_ROOT_PI = 2.0 / math.sqrt(math.pi)
_ROOT_HALF = math.sqrt(0.5)


def _floating(function: KernelSpec) -> Callable[..., Any]:
    """The kernel on floating arrays of one dtype and shape: as NumPy does, integers become float64."""
    run = kernel(function)

    def forward(*arrays: Any, **attrs: Any) -> Any:
        dtype = np.result_type(*arrays, np.float32)
        shape = np.broadcast_shapes(*[x.shape for x in arrays])
        return run(*[np.broadcast_to(x.astype(dtype, copy=False), shape) for x in arrays], **attrs)

    return forward


def _unary(function: KernelSpec, rule: Rule, domain: Domain) -> Op:
    return Op(
        function.name,
        "x",
        forward=_floating(function),
        vjp=[rule],
        formula=function.formula,
        source=function.source,
        examples=_unary_examples(domain),
    )


# -- the error function's family: Phi is the normal distribution function -------------------------------------
def _erfcx_slope(x: Tensor, out: Tensor) -> Tensor:
    """2 x out - 2 / sqrt(pi); from 10 on, where these cancel, its asymptotic series, NIST 7.12.1: nine terms of it."""
    far = less(10.0, x)
    z = -0.5 / square(where(far, x, 10.0))
    series = z * 0.0
    for factor in range(17, 0, -2):
        series = factor * z * (1.0 + series)
    return where(far, _TWO_OVER_ROOT_PI * series, 2.0 * where(far, 0.0, x) * out - _TWO_OVER_ROOT_PI)


erf = _unary(spec.ERF, lambda g, x: g * (_TWO_OVER_ROOT_PI * exp(-square(x))), real)
erfc = _unary(spec.ERFC, lambda g, x: g * (-_TWO_OVER_ROOT_PI * exp(-square(x))), real)
erfcx = _unary(spec.ERFCX, lambda g, x, out: g * _erfcx_slope(x, out), real)
erfinv = _unary(spec.ERFINV, lambda g, out: g * (exp(square(out)) / _TWO_OVER_ROOT_PI), unit)
ndtri = _unary(
    spec.NDTRI,
    lambda g, out: g * (math.sqrt(2.0 * math.pi) * exp(0.5 * square(out))),
    lambda rng, shape: rng.uniform(0.1, 0.9, shape),
)


def ndtr(x: Any) -> Tensor:
    """Phi(x) = erfc(-x / sqrt 2) / 2, the standard normal distribution function.

    Returns
    -------
    x.shape; float32 stays float32, integers become float64.
    """
    return 0.5 * erfc(-_ROOT_HALF * as_tensor(x))


def log_ndtr(x: Any) -> Tensor:
    """log Phi(x), also where Phi(x) is too small for a number.

    Returns
    -------
    x.shape; float32 stays float32, integers become float64.

    Notes
    -----
    Below -1 it is log(erfcx(-x / sqrt 2) / 2) - x^2 / 2. Its derivatives of order n lose digits as x^2n does, to -14.
    """
    x = as_tensor(x)
    low = less(x, -1.0)
    # Neither branch sees the other's arguments, which could overflow.
    tail = where(low, x, -1.0)
    body = where(low, -1.0, x)
    below = log(0.5 * erfcx(-_ROOT_HALF * tail)) - 0.5 * square(tail)
    return where(low, below, log1p(-0.5 * erfc(_ROOT_HALF * body)))


# -- the logarithm of the gamma function and its derivatives --------------------------------------------------
def _polygamma_examples(rng: np.random.Generator) -> Iterator[Example]:
    for n, shape in ((0, ()), (1, (0,)), (0, (2, 1, 3)), (2, (4,))):
        yield (n, positive(rng, shape)), {}
    yield (1, between_integers(rng, (3,))), {}


lgamma = _unary(spec.LGAMMA, lambda g, x: g * digamma(x), between_integers)
_polygamma: Op = Op(
    "polygamma",
    "x",
    forward=_floating(spec.POLYGAMMA),
    vjp=[lambda g, x, n: g * _polygamma(x, n=n + 1)],
    formula=spec.POLYGAMMA.formula,
    source=spec.POLYGAMMA.source,
    examples=_polygamma_examples,
)


def polygamma(n: int, x: Any) -> Tensor:
    """The n-th derivative of `digamma`: d^(n+1)/dx^(n+1) log Gamma(x).

    Parameters
    ----------
    n : order, 0 or more.
    x : any shape.

    Returns
    -------
    x.shape; float32 stays float32, integers become float64. At the poles 0, -1, -2, ... it is inf for odd n; for even
    n, -inf at 0 and NaN at the others.

    Raises
    ------
    ArgumentError : n is negative.
    """
    if n < 0:
        raise ArgumentError(f"polygamma: expected an order n >= 0, got {n} (called at {user_line()})")
    return _polygamma(x, n=n)


_polygamma.public = polygamma


def digamma(x: Any) -> Tensor:
    """d/dx log Gamma(x); at the poles, -inf at 0 and NaN at -1, -2, ...

    Returns
    -------
    x.shape; float32 stays float32, integers become float64.
    """
    return _polygamma(x, n=0)


# -- x log y -------------------------------------------------------------------------------------------------
def _xlogy_examples(rng: np.random.Generator) -> Iterator[Example]:
    for a, b in (((), ()), ((0,), ()), ((4,), (4,)), ((2, 1), (1, 3))):
        yield (real(rng, a), positive(rng, b)), {}


def _xlogy_forward(x: Any, y: Any) -> Any:
    return x * np.log(np.where((x == 0) & (y == 0), y.dtype.type(1), y))


def _xlogy_slope(x: Tensor, y: Tensor) -> Tensor:
    """x / y, and 0 where both are 0."""
    return x / where(where(equal(x, 0.0), equal(y, 0.0), False), 1.0, y)


xlogy = Op(
    "xlogy",
    "x y",
    forward=_xlogy_forward,
    vjp=[lambda g, y: g * log(y), lambda g, x, y: g * _xlogy_slope(x, y)],
    formula="x log y, and 0 where both are 0; there, its slope in x is minus infinity and in y is taken as 0",
    broadcast=True,
    examples=_xlogy_examples,
)


# -- the incomplete gamma function ----------------------------------------------------------------------------
def _gamma_density(a: Tensor, x: Tensor) -> Tensor:
    """x^(a-1) e^-x / Gamma(a), the derivative of P(a, x) in x."""
    with np.errstate(divide="ignore"):  # at x = 0
        return exp(xlogy(a - 1.0, x) - x - lgamma(a))


_gammainc_grad_a = Op(
    "gammainc_grad_a",
    "a x",
    forward=_floating(spec.GAMMAINC_GRAD_A),
    vjp=[
        "only the first derivative in a is known; take higher ones in x, or compute with a held fixed (a.detach())",
        lambda g, a, x: g * (_gamma_density(a, x) * (log(x) - digamma(a))),
    ],
    formula=spec.GAMMAINC_GRAD_A.formula,
    source=spec.GAMMAINC_GRAD_A.source,
    broadcast=True,
    examples=_binary_examples(positive, positive),
)
gammainc = Op(
    "gammainc",
    "a x",
    forward=_floating(spec.GAMMAINC),
    vjp=[
        lambda g, a, x: g * _gammainc_grad_a(a, x),
        lambda g, a, x: g * _gamma_density(a, x),
    ],
    formula=f"P(a, x) = {spec.GAMMAINC.formula}, for a > 0 and x >= 0",
    source=spec.GAMMAINC.source,
    broadcast=True,
    examples=_binary_examples(positive, positive),
)
