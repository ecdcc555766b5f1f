"""Special functions from their definitions, one Python number at a time: the version to teach from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Arrays = Sequence[np.ndarray]
Kernel = Callable[[Arrays, Arrays, Arrays, Mapping[str, Any]], None]

BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510, 43867 / 798, -174611 / 330,
             854513 / 138, -236364091 / 2730)  # fmt: skip
"""The Bernoulli numbers B_2, B_4, ..."""


def _elementwise(function: Callable[..., float]) -> Kernel:
    """The kernel that calls `function(*elements, **attrs)` for each element."""

    def kernel(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
        columns = [x.reshape(-1).tolist() for x in inputs]
        with np.errstate(over="ignore"):  # of a float64 that float32 cannot hold
            outputs[0].reshape(-1)[...] = [function(*row, **attrs) for row in zip(*columns, strict=True)]

    return kernel


def _is_pole(x: float) -> bool:
    return x == -math.inf or (x <= 0 and x == math.floor(x))


def _erfcx(x: float) -> float:
    if x < 5:
        return math.exp(x * x) * math.erfc(x) if x > -26 else math.inf
    # e^(x^2) erfc(x) = 1/sqrt(pi) 1/(x + (1/2)/(x + (2/2)/(x + (3/2)/(x + ...))))
    tail = x
    for k in range(60, 0, -1):
        tail = x + 0.5 * k / tail
    return 1 / (math.sqrt(math.pi) * tail)


def _ndtri(p: float) -> float:
    if not 0 < p < 1:
        return -math.inf if p == 0 else math.inf if p == 1 else math.nan
    from statistics import NormalDist  # here, because it takes as long to import as half this package

    return NormalDist().inv_cdf(p)


def _erfinv(x: float) -> float:
    y = math.copysign(_ndtri((1 - abs(x)) / 2) / math.sqrt(2), x)
    if abs(x) < 0.5:  # 1 - |x| lost digits of x; a step of Newton's method gives them back
        y -= (math.erf(y) - x) * math.exp(y * y) * math.sqrt(math.pi) / 2
    return y


def _lgamma(x: float) -> float:
    return math.inf if _is_pole(x) else math.lgamma(x)


def _cotangent(x: float, n: int) -> float:
    """The n-th derivative of pi cot(pi x): of a polynomial in c = cot(pi x), by dc/dx = -pi (1 + c^2)."""
    of_c = np.polynomial.Polynomial([0.0, 1.0])
    for _ in range(n):
        of_c = -of_c.deriv() * np.polynomial.Polynomial([1.0, 0.0, 1.0])
    return float(math.pi ** (n + 1) * of_c(1 / math.tan(math.pi * (x - round(x)))))


def _polygamma(x: float, n: int) -> float:
    if math.isnan(x) or x == -math.inf:
        return math.nan
    if _is_pole(x):
        return math.inf if n % 2 else -math.inf if x == 0 else math.nan
    if x == math.inf:
        return 0.0 if n else math.inf
    if x < 0:  # psi_n(1 - x) (-1)^n - psi_n(x) = d^n/dx^n pi cot(pi x)
        return (-1) ** n * _polygamma(1 - x, n) - _cotangent(x, n)
    # psi_n(x) = psi_n(x + 1) - (-1)^n n! / x^(n+1), up to where the asymptotic series holds
    terms = []
    while x < 12 + n:
        terms.append(-math.factorial(n) / x ** (n + 1))
        x += 1
    terms.append(math.log(x) if n == 0 else -math.factorial(n - 1) / x**n)
    terms.append(-math.factorial(n) / (2 * x ** (n + 1)))
    for k, b in enumerate(BERNOULLI, 1):
        terms.append(-b * math.factorial(2 * k + n - 1) / math.factorial(2 * k) / x ** (2 * k + n))
    return (-1) ** n * math.fsum(terms)


def _series(a: float, x: float) -> tuple[float, float, float]:
    """x^a e^-x / Gamma(a + 1); the sum of x^n / (a + 1)...(a + n) over n >= 0; and its derivative in a."""
    factor = math.exp(a * math.log(x) - x - math.lgamma(a + 1))
    term, harmonic, n = 1.0, 0.0, 0
    total, slope = [1.0], [0.0]
    while n < x or term > 1e-20 * total[0]:
        n += 1
        term *= x / (a + n)
        harmonic += 1 / (a + n)
        total.append(term)
        slope.append(-term * harmonic)
    return factor, math.fsum(total), math.fsum(slope)


def _gammainc(a: float, x: float) -> float:
    if not (a > 0 and x >= 0):
        return math.nan
    if x in (0, math.inf):
        return float(x > 0)
    factor, total, _ = _series(a, x)
    return factor * total


def _gammainc_grad_a(a: float, x: float) -> float:
    if not (a > 0 and x >= 0):
        return math.nan
    if x in (0, math.inf):
        return 0.0
    factor, total, slope = _series(a, x)
    return factor * (total * (math.log(x) - _polygamma(a + 1, 0)) + slope)


erf, erfc = _elementwise(math.erf), _elementwise(math.erfc)
erfcx, erfinv, ndtri = _elementwise(_erfcx), _elementwise(_erfinv), _elementwise(_ndtri)
lgamma, polygamma = _elementwise(_lgamma), _elementwise(_polygamma)
gammainc, gammainc_grad_a = _elementwise(_gammainc), _elementwise(_gammainc_grad_a)
