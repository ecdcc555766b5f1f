"""Special functions in Numba: scalar functions of float64, mapped over blocks of elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numba.extending import register_jitable

from gmkernels.pool import block_kernel
from gmkernels.special.reference import BERNOULLI

Arrays = Sequence[np.ndarray]

jitable = register_jitable(error_model="numpy", no_cfunc_wrapper=True)

_BLOCK = 512
_EPSILON = 2.0**-53
_MOST_TERMS = 100_000
"""Of a series or continued fraction, which takes about 10 sqrt(a): enough for a up to 10^8."""


def _map(function: Any) -> Callable[..., None]:
    """The kernel of a function of one number."""

    @block_kernel
    def kernel(block, x, y):
        for i in range(block * _BLOCK, min(block * _BLOCK + _BLOCK, y.size)):
            y[i] = function(np.float64(x[i]))

    def call(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
        kernel(-(-outputs[0].size // _BLOCK), inputs[0].reshape(-1), outputs[0].reshape(-1))

    return call


# -- the error function and its inverse -----------------------------------------------------------------------
@jitable
def _erf(x):
    return math.erf(x)


@jitable
def _erfc(x):
    return math.erfc(x)


@jitable
def _erfcx(x):
    if x < 5.0:
        return math.exp(x * x) * math.erfc(x)
    tail = x  # 1/sqrt(pi) 1/(x + (1/2)/(x + (2/2)/(x + ...))): at x = 5, 40 terms are more than enough
    for k in range(40, 0, -1):
        tail = x + 0.5 * k / tail
    return 1.0 / (math.sqrt(math.pi) * tail)


@jitable
def _central(q):
    """The normal quantile of 1/2 + q, for |q| <= 0.425."""
    r = 0.180625 - q * q
    above = (((((((2.5090809287301226727e3 * r + 3.3430575583588128105e4) * r + 6.7265770927008700853e4) * r
              + 4.5921953931549871457e4) * r + 1.3731693765509461125e4) * r + 1.9715909503065514427e3) * r
              + 1.3314166789178437745e2) * r + 3.3871328727963666080e0)  # fmt: skip
    below = (((((((5.2264952788528545610e3 * r + 2.8729085735721942674e4) * r + 3.9307895800092710610e4) * r
              + 2.1213794301586595867e4) * r + 5.3941960214247511077e3) * r + 6.8718700749205790830e2) * r
              + 4.2313330701600911252e1) * r + 1.0)  # fmt: skip
    return q * above / below


@jitable
def _upper(p):
    """The normal quantile of 1 - p, for p < 0.075."""
    r = math.sqrt(-math.log(p))
    if r <= 5.0:
        r -= 1.6
        above = (((((((7.74545014278341407640e-4 * r + 2.27238449892691845833e-2) * r + 2.41780725177450611770e-1) * r
                  + 1.27045825245236838258e0) * r + 3.64784832476320460504e0) * r + 5.76949722146069140550e0) * r
                  + 4.63033784615654529590e0) * r + 1.42343711074968357734e0)  # fmt: skip
        below = (((((((1.05075007164441684324e-9 * r + 5.47593808499534494600e-4) * r + 1.51986665636164571966e-2) * r
                  + 1.48103976427480074590e-1) * r + 6.89767334985100004550e-1) * r + 1.67638483018380384940e0) * r
                  + 2.05319162663775882187e0) * r + 1.0)  # fmt: skip
    else:
        r -= 5.0
        above = (((((((2.01033439929228813265e-7 * r + 2.71155556874348757815e-5) * r + 1.24266094738807843860e-3) * r
                  + 2.65321895265761230930e-2) * r + 2.96560571828504891230e-1) * r + 1.78482653991729133580e0) * r
                  + 5.46378491116411436990e0) * r + 6.65790464350110377720e0)  # fmt: skip
        below = (((((((2.04426310338993978564e-15 * r + 1.42151175831644588870e-7) * r + 1.84631831751005468180e-5) * r
                  + 7.86869131145613259100e-4) * r + 1.48753612908506148525e-2) * r + 1.36929880922735805310e-1) * r
                  + 5.99832206555887937690e-1) * r + 1.0)  # fmt: skip
    return above / below


@jitable
def _ndtri(p):
    if p == 0.0 or p == 1.0:
        return -math.inf if p == 0.0 else math.inf
    if not 0.0 < p < 1.0:
        return math.nan
    if abs(p - 0.5) <= 0.425:
        return _central(p - 0.5)
    return -_upper(p) if p < 0.5 else _upper(1.0 - p)


@jitable
def _erfinv(x):
    size = abs(x)
    if size <= 0.85:
        return _central(0.5 * x) * math.sqrt(0.5)
    if size < 1.0:
        return math.copysign(_upper(0.5 * (1.0 - size)) * math.sqrt(0.5), x)  # 1 - |x| is exact
    return math.copysign(math.inf, x) if size == 1.0 else math.nan


erf, erfc, erfcx, erfinv, ndtri = _map(_erf), _map(_erfc), _map(_erfcx), _map(_erfinv), _map(_ndtri)


# -- the logarithm of the gamma function and its derivatives --------------------------------------------------
@jitable
def _lgamma(x):
    return math.lgamma(x)


lgamma = _map(_lgamma)


@jitable
def _polygamma_positive(x, n):
    """A&S 6.4.6 up to where the asymptotic series 6.4.11 (6.3.18 for n = 0) holds to a rounding."""
    factorial = math.gamma(n + 1.0)
    total = 0.0
    while x < 12.0 + n:
        total += factorial / x ** (n + 1)
        x += 1.0
    power = factorial / x ** (n + 1)  # n! / x^(n+1)
    tail = 0.5 * power
    term = 0.5 * power * (n + 1) / x  # (2k + n - 1)! / ((2k)! x^(2k+n)), now for k = 1
    for k in range(1, len(BERNOULLI) + 1):
        tail += BERNOULLI[k - 1] * term
        term *= (2 * k + n) * (2 * k + n + 1) / ((2 * k + 1) * (2 * k + 2) * x * x)
    total += tail
    if n == 0:
        return math.log(x) - total
    total += math.gamma(n) / x**n
    return total if n % 2 == 1 else -total


@jitable
def _cotangent_derivative(x, n):
    """d^n/dx^n of pi cot(pi x), by d cot = -(1 + cot^2)."""
    f = x - np.rint(x)
    # Near a half the tangent of what is missing to it keeps the digits.
    near_half = math.copysign(math.tan(math.pi * (0.5 - abs(f))), f)
    cotangent = near_half if abs(f) > 0.25 else 1.0 / math.tan(math.pi * f)
    coefficients = np.zeros(n + 2)  # of a polynomial in cot(pi x)
    coefficients[1] = 1.0
    for order in range(n):
        slope = np.zeros(n + 2)
        for k in range(1, order + 2):
            slope[k - 1] -= k * coefficients[k]
            slope[k + 1] -= k * coefficients[k]
        coefficients = slope
    total = 0.0
    for k in range(n + 1, -1, -1):
        total = total * cotangent + coefficients[k]
    return math.pi ** (n + 1) * total


@jitable
def _polygamma(x, n):
    if x > 0.0:
        if x == math.inf:
            return 0.0 if n > 0 else x
        return _polygamma_positive(x, n)
    if x != x or x == -math.inf:
        return math.nan
    if x == math.floor(x):
        return math.inf if n % 2 == 1 else -math.inf if x == 0.0 else math.nan
    reflected = _polygamma_positive(1.0 - x, n)
    return (reflected if n % 2 == 0 else -reflected) - _cotangent_derivative(x, n)


@block_kernel
def _polygamma_blocks(block, x, y, n):
    for i in range(block * _BLOCK, min(block * _BLOCK + _BLOCK, y.size)):
        y[i] = _polygamma(np.float64(x[i]), n)


def polygamma(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    _polygamma_blocks(-(-outputs[0].size // _BLOCK), inputs[0].reshape(-1), outputs[0].reshape(-1), attrs["n"])


# -- the incomplete gamma function and its derivative in a ----------------------------------------------------
@jitable
def _factor(a, x):
    """x^a e^-x / Gamma(a + 1)."""
    if a < 20.0:
        return math.exp(a * math.log(x) - x - math.lgamma(a + 1.0))
    # By Stirling's series, so that terms of size a log a do not cancel.
    d = (x - a) / a
    z = 1.0 / (a * a)
    correction = (1 / 12 - z * (1 / 360 - z * (1 / 1260 - z * (1 / 1680 - z / 1188)))) / a
    return math.exp(a * (math.log1p(d) - d) - correction) / math.sqrt(2.0 * math.pi * a)


@jitable
def _series(a, x):
    """The sum of x^n / (a + 1)...(a + n) over n >= 0, and its derivative in a. All terms have one sign."""
    term, harmonic, total, slope = 1.0, 0.0, 1.0, 0.0
    for n in range(1, _MOST_TERMS):
        term *= x / (a + n)
        harmonic += 1.0 / (a + n)
        total += term
        slope -= term * harmonic
        if term <= _EPSILON * total and term * harmonic <= -_EPSILON * slope:
            return total, slope
    return math.nan, math.nan


@jitable
def _fraction(a, x):
    """The continued fraction 1/(x+1-a - 1(1-a)/(x+3-a - 2(2-a)/(x+5-a - ...))) and its derivative in a.

    Lentz's method as in Numerical Recipes, every quantity with its derivative.
    """
    b = x + 1.0 - a
    c, c_slope = 1e300, 0.0
    d, d_slope = 1.0 / b, 1.0 / (b * b)
    h, h_slope = d, d_slope
    for i in range(1, _MOST_TERMS):
        numerator = -i * (i - a)  # its derivative is i, that of b is -1
        b += 2.0
        d_slope = i * d + numerator * d_slope - 1.0
        d = 1.0 / (numerator * d + b)
        d_slope *= -d * d
        c_slope = -1.0 + i / c - numerator * c_slope / (c * c)
        c = b + numerator / c
        step, step_slope = d * c, d_slope * c + d * c_slope
        h_slope = h_slope * step + h * step_slope
        h *= step
        if abs(step - 1.0) <= 4 * _EPSILON and abs(h * step_slope) <= 4 * _EPSILON * abs(h_slope):
            return h, h_slope
    return math.nan, math.nan


@jitable
def _gammainc(a, x):
    """P(a, x) and its derivative in a."""
    if not (a > 0.0 and x >= 0.0):
        return math.nan, math.nan
    if x == 0.0 or x == math.inf:
        return 0.0 if x == 0.0 else 1.0, 0.0
    factor = _factor(a, x)
    if x < a + 1.0:
        total, slope = _series(a, x)
        return factor * total, factor * (total * (math.log(x) - _polygamma_positive(a + 1.0, 0)) + slope)
    h, slope = _fraction(a, x)
    factor *= a
    return 1.0 - factor * h, -factor * (h * (math.log(x) - _polygamma_positive(a, 0)) + slope)


@block_kernel
def _gammainc_blocks(block, a, x, y, which):
    for i in range(block * _BLOCK, min(block * _BLOCK + _BLOCK, y.size)):
        p, dp_da = _gammainc(np.float64(a[i]), np.float64(x[i]))
        y[i] = dp_da if which else p


def gammainc(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    a, x, y = (v.reshape(-1) for v in (*inputs, *outputs))
    _gammainc_blocks(-(-y.size // _BLOCK), a, x, y, 0)


def gammainc_grad_a(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    a, x, y = (v.reshape(-1) for v in (*inputs, *outputs))
    _gammainc_blocks(-(-y.size // _BLOCK), a, x, y, 1)
