"""Special functions in Numba: scalar functions of float64, mapped over blocks of elements.

The error function, its inverse and their kin, log Gamma and its first two derivatives have no branches, so that loops
over them take vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numba.extending import register_jitable

from gmkernels.elementary import exp, fma, inline, log, polynomial, select, sin
from gmkernels.pool import block_kernel, long_loop, part
from gmkernels.special.reference import BERNOULLI

Arrays = Sequence[np.ndarray]

jitable = register_jitable(error_model="numpy", no_cfunc_wrapper=True)

_BLOCK = 1024
_EPSILON = 2.0**-53
_MOST_TERMS = 100_000
"""Of a series or continued fraction, which takes about 10 sqrt(a): enough for a up to 10^8."""


def _map(function: Any) -> Callable[..., None]:
    """The kernel of a function of one number."""

    @jitable
    def loop(x, y):
        long_loop()
        for i in range(y.size):
            y[i] = function(np.float64(x[i]))

    @block_kernel
    def kernel(block, x, y):
        n = min(_BLOCK, y.size - block * _BLOCK)
        loop(part(x, block * _BLOCK, n), part(y, block * _BLOCK, n))

    def call(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
        kernel(-(-outputs[0].size // _BLOCK), inputs[0].reshape(-1), outputs[0].reshape(-1))

    return call


# -- the error function and its inverse -----------------------------------------------------------------------
# erf(x) / x in powers of x^2, from the first 12 terms of its Chebyshev expansion for |x| <= 1.
_erf_ratio = polynomial(
    (
        1.1283791670955126, -0.37612638903183543, 0.1128379167094513, -0.026866170643256995, 0.005223977607269946,
        -0.0008548325982543225, 0.00012055295112667001, -1.4924740785377576e-05, 1.6447471190594618e-06,
        -1.6208829856810202e-07, 1.3721520406351094e-08, -7.798543850549947e-10,
    ),
    np.float64, fused=True,
)  # fmt: skip
# (1 + 2 x) e^(x^2) erfc(x) for x >= 0 in powers of t = (x - 3.5) / (x + 3.5), from the first 24 terms of its Chebyshev
# expansion in t.
_SCALE = 3.5
_erfcx_product = polynomial(
    (
        1.2423492448711544, -0.1400091801376197, -0.010555596332221669, 0.09751909515328706, -0.11508959816003075,
        0.08798315382403678, -0.04882332583088402, 0.019099330953271165, -0.004215019879774186,
        -0.0003022679534333239, 0.0005643842668705102, -0.00012151212091980101, -4.2781739959539994e-05,
        2.4260300984917994e-05, 2.3273309537791425e-06, -3.814012584490695e-06, -4.309237398316666e-08,
        6.014823849950426e-07, -8.611571571113718e-09, -9.64004253144383e-08, 6.651894382376532e-10,
        1.3624442778701048e-08, 6.040390099342991e-11, -1.1656687889203665e-09,
    ),
    np.float64, fused=True,
)  # fmt: skip
_FAR = 40.0
"""Beyond this e^(x^2) is infinite, and its inverse 0."""


@inline
def _erfcx_of_size(x):
    """e^(x^2) erfc(x) for x >= 0."""
    t = 1.0 - 2.0 * _SCALE / (x + _SCALE)  # so written, it is 1 at infinity
    return _erfcx_product(t) / fma(2.0, x, 1.0)


@inline
def _exp_of_square(x, sign):
    """e^(sign x^2) for x >= 0; what the rounding of the square leaves is made good."""
    x = select(x > _FAR, _FAR, x)
    square = x * x
    return exp(sign * square) * fma(sign, fma(x, x, -square), 1.0)


@inline
def _erfc(x):
    tail = _exp_of_square(abs(x), -1.0) * _erfcx_of_size(abs(x))
    return select(x < 0.0, 2.0 - tail, tail)


@inline
def _erf(x):
    return select(abs(x) < 1.0, x * _erf_ratio(x * x), np.copysign(1.0 - _erfc(abs(x)), x))


@inline
def _erfcx(x):
    right = _erfcx_of_size(abs(x))
    return select(x < 0.0, 2.0 * _exp_of_square(abs(x), 1.0) - right, right)


# Wichura's rational functions: of 0.180625 - q^2, of r - 1.6 up to r = 5, and of r - 5, where r^2 = -log p.
_central_above, _central_below = (polynomial(c, np.float64, fused=True) for c in (
    (
        3.3871328727963665, 133.14166789178438, 1971.5909503065513, 13731.69376550946, 45921.95393154987,
        67265.7709270087, 33430.57558358813, 2509.0809287301227,
    ),
    (
        1.0, 42.31333070160091, 687.1870074920579, 5394.196021424751, 21213.794301586597, 39307.89580009271,
        28729.085735721943, 5226.495278852854,
    ),
))  # fmt: skip
_near_above, _near_below = (polynomial(c, np.float64, fused=True) for c in (
    (
        1.4234371107496835, 4.630337846156546, 5.769497221460691, 3.6478483247632045, 1.2704582524523684,
        0.2417807251774506, 0.022723844989269184, 0.0007745450142783414,
    ),
    (
        1.0, 2.053191626637759, 1.6763848301838038, 0.6897673349851, 0.14810397642748008, 0.015198666563616457,
        0.0005475938084995345, 1.0507500716444169e-09,
    ),
))  # fmt: skip
_far_above, _far_below = (polynomial(c, np.float64, fused=True) for c in (
    (
        6.657904643501103, 5.463784911164114, 1.7848265399172913, 0.29656057182850487, 0.026532189526576124,
        0.0012426609473880784, 2.7115555687434876e-05, 2.0103343992922881e-07,
    ),
    (
        1.0, 0.599832206555888, 0.1369298809227358, 0.014875361290850615, 0.0007868691311456133,
        1.8463183175100548e-05, 1.421511758316446e-07, 2.0442631033899397e-15,
    ),
))  # fmt: skip


@inline
def _central(q):
    """The normal quantile of 1/2 + q, for |q| <= 0.425."""
    r = 0.180625 - q * q
    return q * _central_above(r) / _central_below(r)


@inline
def _upper(p):
    """The normal quantile of 1 - p, for p < 0.075; infinity for 0."""
    r = np.sqrt(-log(p))
    near, far = r - 1.6, r - 5.0
    quantile = select(r <= 5.0, _near_above(near) / _near_below(near), _far_above(far) / _far_below(far))
    return select(p == 0.0, np.inf, quantile)


@inline
def _ndtri(p):
    q = p - 0.5
    return select(abs(q) <= 0.425, _central(q), np.copysign(_upper(select(q < 0.0, p, 1.0 - p)), q))


@inline
def _erfinv(x):
    upper = np.copysign(_upper(0.5 * (1.0 - abs(x))), x)  # 1 - |x| is exact
    return math.sqrt(0.5) * select(abs(x) <= 0.85, _central(0.5 * x), upper)


erf, erfc, erfcx, erfinv, ndtri = _map(_erf), _map(_erfc), _map(_erfcx), _map(_erfinv), _map(_ndtri)


# -- the logarithm of the gamma function and its derivatives --------------------------------------------------
# log Gamma(1 + f) / (f (f - 1)) for 0 <= f <= 1, in powers of 2 f - 1: 20 terms of its Chebyshev expansion.
_between_zeros = polynomial(
    (
        0.4831289505409809, -0.07297994795715297, 0.015727850268645514, -0.003913560937631769, 0.0010498186643088884,
        -0.00029455070139898493, 8.510090560189765e-05, -2.5094329864078195e-05, 7.51137972077015e-06,
        -2.2742409034140543e-06, 6.948881099397658e-07, -2.1388452890262906e-07, 6.613581822461987e-08,
        -2.057734525447198e-08, 6.575087168826431e-09, -2.0735267758524892e-09, 5.335379069152651e-10,
        -1.6381596734648426e-10, 1.0818879857139573e-10, -3.53647433811882e-11,
    ),
    np.float64, fused=True,
)  # fmt: skip
_STIRLING = 9
"""From here on Stirling's series holds to a rounding."""
_stirling = polynomial(
    [b / ((2 * k - 1) * 2 * k) for k, b in enumerate(BERNOULLI[:8], 1)], np.float64, fused=True
)  # fmt: skip


@inline
def _lgamma_positive(x):
    """Between the zeros 1 and 2 a polynomial, elsewhere below 9 the recurrence, then Stirling's series, A&S 6.1.41."""
    product = 1.0  # Gamma(x) / Gamma(1 + f), with f what x exceeds an integer by
    for i in range(1, _STIRLING - 1):
        product *= select(x - i >= 1.0, x - i, 1.0)
    small, f = x < _STIRLING, x - np.floor(x)
    logarithm = log(select(small & (x >= 1.0), product, x))
    recurred = fma(f * (f - 1.0), _between_zeros(2.0 * f - 1.0), select(x < 1.0, -logarithm, logarithm))
    series = fma(x - 0.5, logarithm - 1.0, _stirling(1.0 / (x * x)) / x + (0.5 * math.log(2.0 * math.pi) - 0.5))
    return select(small, recurred, series)


@inline
def _sine_of_pi(x):
    """|sin(pi x)|, and what x exceeds the nearest integer by."""
    f = x - np.rint(x)
    return sin(math.pi * abs(f)), f


@inline
def _lgamma(x):
    right = _lgamma_positive(select(x < 0.0, 1.0 - x, x))
    sine, _ = _sine_of_pi(x)
    left = select(sine > 0.0, log(math.pi / sine) - right, np.inf)
    return select(x < 0.0, left, right)


lgamma = _map(_lgamma)

_digamma_tail = polynomial([b / (2 * k) for k, b in enumerate(BERNOULLI[:10], 1)], np.float64, fused=True)


@inline
def _digamma_positive(x):
    """The asymptotic series A&S 6.3.18 of x, or of x + 8 < 16 and eight steps of the recurrence, in pairs of terms."""
    small = x < 8.0
    y = select(small, x + 8.0, x)
    series = log(y) - 0.5 / y - _digamma_tail(1.0 / (y * y)) / (y * y)
    a = x * (x + 7.0)
    b, c, d = a + 6.0, a + 10.0, a + 12.0  # (x + i) (x + 7 - i)
    steps = (2.0 * x + 7.0) * ((a + b) * (c * d) + (c + d) * (a * b)) / (a * b * (c * d))
    return series - select(small, steps, 0.0)


@inline
def _digamma(x):
    right = _digamma_positive(select(x < 0.0, 1.0 - x, x))
    sine, f = _sine_of_pi(x)
    cosine = sin(math.pi * (0.5 - abs(f)))  # keeps the digits near a half
    left = right - math.pi * np.copysign(cosine / sine, f)
    return select(x < 0.0, select(f == 0.0, np.nan, left), select(x == 0.0, -np.inf, right))


_trigamma_tail = polynomial(BERNOULLI, np.float64, fused=True)


@inline
def _two_steps(a, total):
    """1 / x^2 + 1 / y^2 of two numbers from their product a and the square of their sum."""
    return (total / a - 2.0) / a


@inline
def _trigamma_positive(x):
    """The same of the derivative, A&S 6.4.12."""
    small = x < 8.0
    y = select(small, x + 8.0, x)
    z = 1.0 / (y * y)
    series = 1.0 / y + 0.5 * z + _trigamma_tail(z) * z / y
    a, total = x * (x + 7.0), (2.0 * x + 7.0) * (2.0 * x + 7.0)
    steps = (
        _two_steps(a, total) + _two_steps(a + 6.0, total) + _two_steps(a + 10.0, total) + _two_steps(a + 12.0, total)
    )
    return series + select(small, steps, 0.0)


@inline
def _trigamma(x):
    right = _trigamma_positive(select(x < 0.0, 1.0 - x, x))
    ratio = math.pi / _sine_of_pi(x)[0]
    return select(x < 0.0, ratio * ratio - right, right)


_digamma_map, _trigamma_map = _map(_digamma), _map(_trigamma)


@jitable
def _polygamma_positive(x, n):
    """For n > 0: A&S 6.4.6 up to where the asymptotic series 6.4.11 holds to a rounding."""
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
            return 0.0
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
    if attrs["n"] < 2:
        return (_digamma_map, _trigamma_map)[attrs["n"]](inputs, outputs, workspace, attrs)
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
        return factor * total, factor * (total * (math.log(x) - _digamma_positive(a + 1.0)) + slope)
    h, slope = _fraction(a, x)
    factor *= a
    return 1.0 - factor * h, -factor * (h * (math.log(x) - _digamma_positive(a)) + slope)


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
