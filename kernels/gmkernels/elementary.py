"""Elementary functions that vectorise: exp, expm1, log, log1p, sigmoid, softplus, tanh, sin, cos.

Numba's loops over `math.exp` and its kin call the C library once per element. The functions here are
polynomials and selects without branches, which LLVM turns into vector code when a loop in a block kernel
calls them on float32 or float64 scalars:

    for i in range(x.size):
        y[i] = exp(x[i])

A result has the argument's dtype, and depends on the argument only: not on whether the vector or the scalar
part of a loop computed it. The same source runs on NumPy arrays too. log, log1p, sin and cos round every
multiplication and addition, so NumPy gives the same bits, and normal variates made with them are the same on
every backend. The others use fused multiply-adds, spelled out; NumPy agrees within their error.

Largest error found against long double, in units in the last place of the result: exp 1.2, expm1 2.0,
log 0.9, log1p 1.4, sigmoid 2.4, softplus 3.4, tanh 2.5, sin and cos 2.4. The tests assert 4 for all of them.

Infinities, zeros and NaN give what the C library gives, except: arguments and results that are denormal may
count as zero, as they do inside kernels; a zero may lose its sign; and sin and cos are NaN where |x| > 10000,
since the reduction of the argument no longer holds there.

Method: the argument is reduced as Cody & Waite do (Software Manual for the Elementary Functions, 1980), by
constants whose leading parts have few bits, so that their products with the integer are exact; polynomials,
near-minimax in the relative error of the result, then serve the reduced interval. The logarithm is
log u = 2 atanh(f / (2 + f)) with f = u - 1, as in fdlibm (Sun Microsystems, 1993).
"""

# mypy: disable-error-code="call-arg, no-untyped-def, no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload, register_jitable

INLINE: Any = {"forceinline": True, "no_cfunc_wrapper": True}
"""Options of code that becomes part of its callers, and is called by nothing else."""

inline = register_jitable(error_model="numpy", **INLINE)
"""Decorator of such a function."""

# ---------------------------------------------------------------------------------------------------------
# Constants of the two dtypes
# ---------------------------------------------------------------------------------------------------------

LIMIT = 10000.0
"""sin and cos are NaN beyond this."""

_FLOAT32 = SimpleNamespace(
    float=np.float32,
    int=np.int32,
    bits=23,
    tiny=2.0**-126,
    exp_range=(-87.33654, 88.72283),  # exp is normal and finite inside
    # ln 2 and pi / 2 as sums of numbers of 11 bits or fewer, and a last one of all bits
    ln2=(0.693359375, -2.12194440054690583e-4),
    half_pi=(1.5703125, 0.0004837512969970703, 7.549533620476723e-08, 2.5633440682570896e-12),
    # (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2
    exp=(0.5, 0.1666654348373413, 0.041666436940431595, 0.008366537280380726, 0.001393756945617497),
    # (2 atanh(s) / s - 2) / s^2 in s^2, for 1 + f in [sqrt(1/2), sqrt(2)], and for f in [0, 1]
    log=(0.6666666269302368, 0.40000972151756287, 0.28498780727386475, 0.2427942156791687),
    log1p_unit=(
        0.6666667461395264, 0.3999894857406616, 0.2861521244049072, 0.21443885564804077, 0.24245256185531616,
    ),
    # (sin(r) / r - 1) / r^2 and (cos(r) - 1 + r^2 / 2) / r^4 in r^2, for |r| <= pi / 4
    sin=(-0.16666655242443085, 0.008332191035151482, -0.00019518600311130285),
    cos=(0.04166664555668831, -0.001388730714097619, 2.44318216573447e-05),
)  # fmt: skip

_FLOAT64 = SimpleNamespace(
    float=np.float64,
    int=np.int64,
    bits=52,
    tiny=2.0**-1022,
    exp_range=(-708.3964185322641, 709.782712893384),
    # parts of 33 bits or fewer
    ln2=(0.6931471803691238, 1.9082149292705877e-10),
    half_pi=(1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21, 0.0),
    exp=(
        0.5000000000000006, 0.16666666666666682, 0.04166666666657341, 0.008333333333317098,
        0.0013888888932460698, 0.00019841269897318247, 2.4801504356087312e-05, 2.755723317071803e-06,
        2.762635549630184e-07, 2.5112814794834497e-08,
    ),
    log=(
        0.6666666666666735, 0.3999999999941056, 0.2857142874323643, 0.2222219848945815,
        0.18183568595008356, 0.15313942068997602, 0.1479703634875846,
    ),
    log1p_unit=(
        0.6666666666666631, 0.4000000000015622, 0.28571428547950317, 0.22222223964950893,
        0.1818174406726768, 0.15386557228308115, 0.1330100636949071, 0.1210583805024538,
        0.08341163893271716, 0.17016616013609961,
    ),
    sin=(
        -0.16666666666666632, 0.008333333333322472, -0.00019841269829835406, 2.75573136972166e-06,
        -2.5050758474613345e-08, 1.5896796038185157e-10,
    ),
    cos=(
        0.0416666666666666, -0.0013888888888874463, 2.4801587289659224e-05, -2.755731439613298e-07,
        2.087572845863491e-09, -1.1359884491072839e-11,
    ),
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Instructions: bit casts, selects, maxima, fused multiply-adds
# ---------------------------------------------------------------------------------------------------------

TWIN = {"float32": "int32", "int32": "float32", "float64": "int64", "int64": "float64"}


def same_bits(x: Any) -> Any:
    """The integer with the bits of a floating-point number, or the number with the bits of an integer."""
    return x.view(TWIN[x.dtype.name])


@intrinsic
def _bitcast(typing_context: Any, x: Any) -> Any:
    twin = getattr(types, TWIN[x.name])

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(sig.return_type))

    return twin(x), generate


@overload(same_bits, jit_options=INLINE)
def _same_bits(x):
    if isinstance(x, types.Number):
        return lambda x: _bitcast(x)


def select(condition: Any, x: Any, y: Any) -> Any:
    """x where the condition holds, else y, without a branch (Numba's `np.where` builds arrays)."""
    return np.where(condition, x, y)[()]


@intrinsic
def _select_instruction(typing_context: Any, condition: Any, x: Any, y: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(*args)

    return x(types.boolean, x, x), generate


@overload(select, jit_options=INLINE)
def _select(condition, x, y):
    if isinstance(condition, types.Boolean):
        return lambda condition, x, y: _select_instruction(condition, x, y)


def maximum(x: Any, y: Any) -> Any:
    """The larger number, or NaN if one is; unlike one made with `select`, its reductions vectorise."""
    return np.maximum(x, y)


@intrinsic
def _maximum_instruction(typing_context: Any, x: Any, y: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        signature = ir.FunctionType(kind, [kind, kind])
        return builder.call(builder.module.declare_intrinsic("llvm.maximum", [kind], signature), args)

    return x(x, x), generate


@overload(maximum, jit_options=INLINE)
def _maximum(x, y):
    return lambda x, y: _maximum_instruction(x, y)


HAS_FMA = llvmlite.binding.get_host_cpu_features().get("fma", True)


def fma(x: Any, y: Any, z: Any) -> Any:
    """x y + z; in compiled code rounded once, on machines that can (x86-64 since 2013, ARM)."""
    return x * y + z


@intrinsic
def _fma_instruction(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fma(*args)

    return x(x, x, x), generate


@overload(fma, jit_options=INLINE)
def _fma(x, y, z):
    if isinstance(x, types.Number) and isinstance(y, types.Number):
        return (lambda x, y, z: _fma_instruction(x, y, z)) if HAS_FMA else (lambda x, y, z: x * y + z)


# ---------------------------------------------------------------------------------------------------------
# The functions
# ---------------------------------------------------------------------------------------------------------


def polynomial(coefficients: Sequence[float], dtype: type, fused: bool) -> Callable[[Any], Any]:
    """The function z -> c0 + z (c1 + z (c2 + ...)), spelled out: Numba unrolls no loop over a tuple."""
    *names, source = [f"c{i}" for i in range(len(coefficients))]
    for name in reversed(names):
        source = f"fma(z, {source}, {name})" if fused else f"{name} + z * ({source})"
    scope: dict[str, Any] = {f"c{i}": dtype(c) for i, c in enumerate(coefficients)}
    return inline(eval(f"lambda z: {source}", scope | {"fma": fma}))


def _narrowed(integer: type) -> Callable[[Any], Any]:
    """An integer as one of the dtype: arithmetic of two int32 may give an int64. A vector's keeps its dtype."""

    def whole(x: Any) -> Any:
        return integer(x)

    @overload(whole, jit_options=INLINE)
    def compiled(x):
        return (lambda x: integer(x)) if isinstance(x, types.Integer) else lambda x: x

    return whole


def _functions(c: SimpleNamespace) -> dict[str, Callable[[Any], Any]]:
    """The functions for one dtype, whose constants are `c`. Inside them every number has that dtype."""
    real, integer, bits = c.float, c.int, c.int(c.bits)
    whole = _narrowed(integer)
    zero, half, one, two = real(0), real(0.5), real(1), real(2)
    infinity, nan, tiny = real(np.inf), real(np.nan), real(c.tiny)
    bias = integer((1 << (8 * integer(0).itemsize - 2 - c.bits)) - 1)

    # Adding 1.5 * 2^bits rounds a small number to the nearest integer and leaves it in the low bits.
    shifter = real(1.5 * 2.0**c.bits)
    shifter_bits = same_bits(shifter)
    biased_shifter = shifter + real(bias)
    ln2, ln2_high, ln2_low = real(np.log(2)), real(c.ln2[0]), real(c.ln2[1])
    power_low = real(-float(bias) * np.log(2))
    log2_e, two_over_pi = real(1 / np.log(2)), real(2 / np.pi)
    exp_low, exp_high = real(c.exp_range[0]), real(c.exp_range[1])
    expm1_low = real(-(c.bits + 3) * np.log(2))  # expm1 rounds to -1 here
    sqrt_half_bits = same_bits(real(np.sqrt(0.5)))
    exponent_mask = integer(-1 << c.bits)
    half_pi_0, half_pi_1, half_pi_2, half_pi_3 = (real(part) for part in c.half_pi)
    limit = real(LIMIT)
    exp_tail, log1p_unit_tail = (polynomial(p, real, fused=True) for p in (c.exp, c.log1p_unit))
    log_tail, sin_tail, cos_tail = (polynomial(p, real, fused=False) for p in (c.log, c.sin, c.cos))

    @inline
    def reduced_exp(x):
        """n and r where x = n ln 2 + r and |r| <= ln(2) / 2."""
        shifted = fma(x, log2_e, shifter)
        n = shifted - shifter
        return whole(same_bits(shifted) - shifter_bits), fma(n, -ln2_low, fma(n, -ln2_high, x))

    @inline
    def exp_of_rest(r):
        """e^r for |r| <= ln(2) / 2."""
        return fma(r, fma(r, exp_tail(r), one), one)

    @inline
    def exp(x):
        n, r = reduced_exp(x)
        y = same_bits(whole(same_bits(exp_of_rest(r)) + whole(n << bits)))  # n is added to the exponent
        y = select(x >= exp_low, y, zero)
        return select(x <= exp_high, y, x + infinity)

    @inline
    def exp_factors(x):
        # A shifter with the exponents' bias leaves n + bias in the low bits: 2^n after one shift, and 0 at the clamp.
        x = select(x < power_low, power_low, x)
        shifted = fma(x, log2_e, biased_shifter)
        r = fma(shifted - biased_shifter, -ln2, x)
        return exp_of_rest(r), same_bits(whole(same_bits(shifted) << bits))

    @inline
    def expm1(x):
        n, r = reduced_exp(select(x < expm1_low, expm1_low, x))
        q = fma(r * r, exp_tail(r), r)
        power = same_bits(whole(whole(n + bias - integer(1)) << bits))  # 2^(n - 1): 2^n may overflow
        y = two * fma(power, q, power - half)
        return select(x <= exp_high, y, x + infinity)

    @inline
    def reduced_log(u):
        """n, still where exponents are, and f: u = 2^n (1 + f), 1 + f in [sqrt(1/2), sqrt(2)]."""
        above = whole(same_bits(u) - sqrt_half_bits)
        n = whole(above & exponent_mask)
        return n, same_bits(whole(same_bits(u) - n)) - one

    @inline
    def log_of(n, f):
        s = f / (two + f)
        z = s * s
        square = half * f * f
        exponent = real(whole(n >> bits))
        tail = s * (square + z * log_tail(z)) + exponent * ln2_low
        return exponent * ln2_high - ((square - tail) - f)

    @inline
    def log(x):
        n, f = reduced_log(x)
        y = log_of(n, f)
        y = select(x < infinity, y, x)
        return select(x < tiny, select(x > -tiny, -infinity, nan), y)

    @inline
    def log1p(x):
        u = one + x
        lost = select(x < one, x - (u - one), one - (u - x))  # in the rounding of u
        n, f = reduced_log(u)
        # 2^(1 - n): the bits of 2^-n for the largest n are those of no number
        power = same_bits(whole(whole((bias + integer(1)) << bits) - n))
        y = log_of(n, f + half * (lost * power))
        y = select(x < infinity, y, x)
        return select(x <= -one, select(x == -one, -infinity, nan), y)

    @inline
    def log1p_unit(z):
        s = z / (two + z)
        w = s * s
        return s * fma(w, log1p_unit_tail(w), two)

    @inline
    def sigmoid(x):
        z = exp(-abs(x))
        return select(x < zero, z, one) / (one + z)

    @inline
    def softplus(x):
        return select(x < zero, zero, x) + log1p_unit(exp(-abs(x)))

    @inline
    def tanh(x):
        q = expm1(-two * abs(x))
        return np.copysign(q / (two + q), x)

    @inline
    def quadrant(x):
        """n and r where x = n pi/2 + r and |r| <= pi/4."""
        shifted = x * two_over_pi + shifter
        n = shifted - shifter
        r = (((x - n * half_pi_0) - n * half_pi_1) - n * half_pi_2) - n * half_pi_3
        return whole(same_bits(shifted) - shifter_bits), select(abs(x) <= limit, r, nan)

    @inline
    def sine_of(n, r):
        """sin(n pi/2 + r)."""
        z = r * r
        sine = r + r * (z * sin_tail(z))
        cosine = (one - half * z) + z * z * cos_tail(z)
        y = select(whole(n & integer(1)) == integer(0), sine, cosine)
        return select(whole(n & integer(2)) == integer(0), y, -y)

    @inline
    def sin(x):
        n, r = quadrant(x)
        return sine_of(n, r)

    @inline
    def cos(x):
        n, r = quadrant(x)
        return sine_of(whole(n + integer(1)), r)

    return dict(exp=exp, exp_factors=exp_factors, expm1=expm1, log=log, log1p=log1p, log1p_unit=log1p_unit,
                sigmoid=sigmoid, softplus=softplus, tanh=tanh, sin=sin, cos=cos)  # fmt: skip


_BODIES = {np.dtype(c.float): _functions(c) for c in (_FLOAT32, _FLOAT64)}
_NUMBA_DTYPES = {types.float32: np.dtype(np.float32), types.float64: np.dtype(np.float64)}


def _dispatched(name: str, doc: str) -> Callable[[Any], Any]:
    """The function of that name: on NumPy arrays and scalars here, and inside compiled code by overload."""

    def function(x: Any) -> Any:
        x = np.asarray(x)
        with np.errstate(all="ignore"):
            return _BODIES[x.dtype][name](x[...])

    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc

    @overload(function, jit_options={"error_model": "numpy", **INLINE})
    def compiled(x):
        kind = getattr(x, "dtype", x)  # of a vector's numbers (`lanes.Vector`), or of the number
        if kind in _NUMBA_DTYPES and not isinstance(x, types.Array):
            body = _BODIES[_NUMBA_DTYPES[kind]][name]
            return lambda x: body(x)

    return function


exp = _dispatched("exp", "e^x.")
exp_factors = _dispatched(
    "exp_factors",
    """p in [0.7, 1.5] and q = 2^n, 0 below normal numbers: p q = e^x, for x <= 0 that is a rounded difference.

    In a sum the product costs nothing: ``fma(p, q, total)``. ln 2 is one number here, whose rounding changes e^x by
    less than that of x has.
    """,
)
expm1 = _dispatched("expm1", "e^x - 1, accurate near 0.")
log = _dispatched("log", "Natural logarithm; -inf at 0 and NaN below.")
log1p = _dispatched("log1p", "log(1 + x), accurate near 0; -inf at -1 and NaN below.")
log1p_unit = _dispatched("log1p_unit", "log(1 + x) for 0 <= x <= 1, in half the time of log1p.")
sigmoid = _dispatched("sigmoid", "1 / (1 + e^-x).")
softplus = _dispatched("softplus", "log(1 + e^x).")
tanh = _dispatched("tanh", "Hyperbolic tangent.")
sin = _dispatched("sin", "Sine, for |x| <= 10000; NaN beyond.")
cos = _dispatched("cos", "Cosine, for |x| <= 10000; NaN beyond.")
