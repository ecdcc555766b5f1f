"""The random stream in NumPy: what every other backend must reproduce.

One arithmetic operation at a time, each correctly rounded (+, -, *, sqrt, and / in float64), in the order
written here and without fused multiply-add: so the results are the same bits wherever IEEE 754 holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.arrays import is_array, namespace
from gmkernels.rng import constants

U32 = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def philox4x32(counter: Sequence[Any], key: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
    """Four random words for each counter: Philox4x32-10.

    Parameters
    ----------
    counter : four words (uint64 values below 2^32, or arrays of them).
    key : two words.

    Returns
    -------
    Four arrays of uint32, of the counter's shape.

    Notes
    -----
    A round multiplies two of the words by constants to 64 bits and lets the high halves, mixed with the other
    two words and the key, change places with the low halves. The key moves on by a Weyl sequence.
    """
    c0, c1, c2, c3 = (c.astype(np.uint64) if is_array(c) else np.uint64(c) for c in counter)
    k0, k1 = (int(k) for k in key)
    m0, m1 = (np.uint64(m) for m in constants.MULTIPLIERS)
    for _ in range(constants.ROUNDS):
        p0, p1 = m0 * c0, m1 * c2
        c0, c2 = (p1 >> HALF) ^ c1 ^ np.uint64(k0), (p0 >> HALF) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & U32, p0 & U32
        k0, k1 = (k0 + constants.WEYL[0]) & 0xFFFFFFFF, (k1 + constants.WEYL[1]) & 0xFFFFFFFF
    return tuple(c.astype(np.uint32) for c in (c0, c1, c2, c3))  # type: ignore[return-value]


def groups(key: Any, n: int, start: int = 0) -> tuple[np.ndarray, int]:
    """The words of elements ``start`` to ``start + n``, in whole groups of four: shape (groups, 4).

    Returns them with the lane at which the first element lies. `start` counts from the key's offset.
    """
    seed, draw, offset = key.tolist()
    first = offset + start
    lane = first % 4
    group = namespace(key).arange((lane + n + 3) // 4, dtype=np.uint64) + np.uint64(first // 4 % 2**62)
    group &= np.uint64(2**62 - 1)  # element indices wrap at 2^64
    draw_words = (np.uint64(draw & 0xFFFFFFFF), np.uint64(draw >> 32))
    words = philox4x32((group & U32, group >> HALF, *draw_words), (seed & 0xFFFFFFFF, seed >> 32))
    return np.stack(words, axis=-1), lane


def words(key: Any, n: int, start: int = 0) -> np.ndarray:
    """Stream elements ``start`` to ``start + n``: uint32."""
    w, lane = groups(key, n, start)
    return w.ravel()[lane : lane + n]


def uniforms(w: np.ndarray, dtype: Any) -> np.ndarray:
    """u = w 2^-32 + 2^-33, in (0, 1]."""
    f = np.dtype(dtype).type
    return w.astype(f) * f(2.0**-32) + f(2.0**-33)


def polynomial(coefficients: Sequence[float], x: np.ndarray) -> np.ndarray:
    """c0 + x (c1 + x (c2 + ...))."""
    f = x.dtype.type
    y = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        y = f(c) + x * y
    return y


def even_odd_polynomial(coefficients: Sequence[float], x: np.ndarray) -> np.ndarray:
    """The same polynomial as (c0 + c2 x^2 + ...) + x (c1 + c3 x^2 + ...): two short chains of operations."""
    return polynomial(coefficients[0::2], x * x) + x * polynomial(coefficients[1::2], x * x)


def minus_two_log_uniforms(w: np.ndarray, dtype: Any) -> np.ndarray:
    """-2 log u of the uniforms of words, with full relative accuracy also near u = 1.

    u = 2^-k (1 - g) with g in [0, 1/2], so -2 log u = k 2 log 2 - 2 log(1 - g), a sum of positive numbers. In the
    upper half k = 0, and g = 1 - u is minus the uniform of the word as a signed number, which loses no digits.
    """
    c = constants.of(dtype)
    real, integer = c.float, c.int
    upper = w >= np.uint32(1 << 31)
    t = w.view(np.int32).astype(real) * real(2.0**-32) + real(2.0**-33)
    bits = t.view(integer)
    k = np.where(upper, integer(0), integer(c.half >> c.mantissa) - (bits >> integer(c.mantissa)))
    mantissa = (bits & integer((1 << c.mantissa) - 1)) | integer(c.half)
    g = np.where(upper, -t, real(1) - mantissa.view(real))
    return k.astype(real) * real(2 * math.log(2)) + g * even_odd_polynomial(c.log, g)


def cos_sin(w: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of the angles 2 pi w / 2^32.

    The angle is q quarter turns, q the nearest, and a remainder of at most an eighth: exact in integers.
    """
    c = constants.of(dtype)
    f = c.float
    q = (w + np.uint32(1 << 29)) >> np.uint32(30)
    x = (w << np.uint32(2)).view(np.int32).astype(f) * f(constants.TURN / 4)  # the top bits are whole quarters
    z = x * x
    sin = x + x * z * polynomial(c.sin, z)
    cos = (f(1) - f(0.5) * z) + z * z * polynomial(c.cos, z)
    odd = (q & np.uint32(1)) == 1
    cos, sin = np.where(odd, sin, cos), np.where(odd, cos, sin)
    return np.where((q == 1) | (q == 2), -cos, cos), np.where(q >= 2, -sin, sin)


def normals(w: np.ndarray, dtype: Any) -> np.ndarray:
    """Standard normals of whole groups of words, shape (groups, 4): Box & Muller on words (0, 1) and (2, 3).

    z0 = r cos(theta), z1 = r sin(theta), r = sqrt(-2 log u), theta = 2 pi w1 / 2^32; |z| <= 6.77.
    """
    z = namespace(w).empty(w.shape, dtype)
    r = np.sqrt(minus_two_log_uniforms(w[:, 0::2], dtype))
    cos, sin = cos_sin(w[:, 1::2], dtype)
    z[:, 0::2] = r * cos
    z[:, 1::2] = r * sin
    return z


def normal_elements(key: Any, n: int, dtype: Any, start: int = 0) -> np.ndarray:
    """Standard normals of the elements ``start`` to ``start + n`` of a key's stream."""
    w, lane = groups(key, n, start)
    return normals(w, dtype).ravel()[lane : lane + n]


# ---------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------

Arrays = Sequence[Any]


def random_words(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    (out,) = outputs
    out.reshape(-1)[:] = words(inputs[0], out.size)


def uniform(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    (out,) = outputs
    out.reshape(-1)[:] = uniforms(words(inputs[0], out.size), out.dtype)


def normal(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    (out,) = outputs
    out.reshape(-1)[:] = normal_elements(inputs[0], out.size, out.dtype)
