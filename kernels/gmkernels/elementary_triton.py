"""What Triton kernels share: the type to compute with, the number of a program, and elementary functions.

The functions are in float32 and float64. Triton's `tl.log` is the device's accurate one (1 ulp). Its `tl.exp` of
float32 multiplies by log2(e) and takes the hardware's power of two (2 ulp): the product rounds, so the result is off by
up to (1 + |x|) 1e-7, relative. Of the arguments that kernels give it, which are not positive, the absolute error stays
below 2e-7. `tl.exp2` is that power alone, and `tl.rsqrt` the hardware's too.

Others rest on these two by identities whose small errors cancel: Higham, Accuracy and Stability of Numerical
Algorithms, 2nd edition, section 1.14.1 and problem 1.5.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def widened(x):
    """`x` in the type to compute with: float64 as it is, everything else in float32."""
    if x.dtype == tl.float64:
        return x
    else:
        return x.to(tl.float32)


@triton.jit
def number_of(axis: tl.constexpr, WIDE: tl.constexpr):
    """The number of this program along an axis of the grid, in the type of offsets."""
    number = tl.program_id(axis)
    if WIDE:
        number = number.to(tl.int64)
    return number


@triton.jit
def log1p_unit(z):
    """log(1 + z) for z in [0, 1].

    float64: the logarithm of the rounded sum, times what the rounding took from z. float32: 2 artanh s with
    s = z / (2 + z) <= 1/3, by a polynomial in s^2 (minimax, relative error 4e-9); all in all off by 4 u.
    """
    if z.dtype == tl.float64:
        u = 1 + z
        return tl.where(u == 1, z, tl.log(u) * (z / (u - 1)))
    else:
        s = z / (2 + z)
        t = s * s
        p = tl.fma(t, 0.2817828357219696, 0.27960553765296936)
        p = tl.fma(t, p, 0.400249183177948)
        p = tl.fma(t, p, 0.6666631698608398)
        return s * tl.fma(t, p, 2.0)


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0. The logarithm undoes the error of the exponential, of which (u - 1) / log(u) is smooth."""
    u = tl.exp(x)
    return tl.where(u == 1, x, tl.where(u == 0, -1.0, (u - 1) * (x / tl.log(u))))


@triton.jit
def _reciprocal(y):
    """1 / y for y in [1, 2]. float32: the hardware's root of it (2^-22.9), squared, and a step of Newton's: 1 ulp, in a
    third of the instructions of Triton's division, which serves all magnitudes."""
    if y.dtype == tl.float64:
        return 1 / y
    else:
        root = tl.rsqrt(y)
        r = root * root
        return tl.fma(r, tl.fma(-r, y, 1.0), r)


@triton.jit
def _exp_minus(x):
    """exp(-x) for x >= 0; in float32 denormal results are 0."""
    if x.dtype == tl.float64:
        return tl.exp(-x)
    else:
        return tl.exp2(x * -1.4426950408889634)


@triton.jit
def tanh(x):
    """float64: from `expm1`. float32: below 1/2 by a polynomial in x^2 (minimax, relative error 1.5e-8), above it from
    exp(-2 |x|), where the difference loses little: 3 ulp."""
    if x.dtype == tl.float64:
        t = expm1(-2 * tl.abs(x))
        return tl.where(x < 0, t, -t) / (2 + t)
    else:
        t = x * x
        p = tl.fma(t, 0.0172414667904377, -0.05304548144340515)
        p = tl.fma(t, p, 0.13325878977775574)
        p = tl.fma(t, p, -0.333331435918808)
        z = _exp_minus(2 * tl.abs(x))
        large = (1 - z) * _reciprocal(1 + z)
        return tl.where(tl.abs(x) < 0.5, tl.fma(x * t, p, x), tl.where(x < 0, -large, large))


@triton.jit
def sigmoid(x):
    z = _exp_minus(tl.abs(x))
    return tl.where(x > 0, 1.0, z) * _reciprocal(1 + z)


@triton.jit
def softplus(x):
    return tl.maximum(x, 0.0) + log1p_unit(tl.exp(-tl.abs(x)))
