"""The numbers that define the random stream. Their bits are part of the stream: every backend uses these.

Philox4x32-10: Salmon, Moraes, Dror & Shaw, Parallel random numbers: as easy as 1, 2, 3 (SC 2011), Random123.

The logarithm, sine and cosine of the normals live in this family, not in `elementary`, because a better
polynomial there must not change anybody's samples.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
"""Added to the two key words after each round: the golden ratio and sqrt(3) - 1, times 2^32."""

NEAR_ONE = 0xB504F334
"""Words from here on have u > sqrt(1/2): their logarithm is taken from the complemented word."""

FLOAT32 = SimpleNamespace(
    float=np.float32,
    int=np.int32,
    mantissa=23,
    one=0x3F800000,  # bits of 1
    root_half=0x3F3504F3,  # bits of sqrt(1/2)
    # log(1 + f) = f - f^2/2 + f^3 P(f): Moshier's Cephes, logf. ln 2 in two parts, the first of few bits.
    ln2=(0.693359375, -2.12194440e-4),
    log=(
        3.3333331174e-1, -2.4999993993e-1, 2.0000714765e-1, -1.6668057665e-1, 1.4249322787e-1,
        -1.2420140846e-1, 1.1676998740e-1, -1.1514610310e-1, 7.0376836292e-2,
    ),
    # sin x = x + x^3 P(x^2), cos x = 1 - x^2/2 + x^4 P(x^2): Cephes, sinf and cosf.
    sin=(-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4),
    cos=(4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5),
)  # fmt: skip

FLOAT64 = SimpleNamespace(
    float=np.float64,
    int=np.int64,
    mantissa=52,
    one=0x3FF0000000000000,
    root_half=0x3FE6A09E667F3BCD,
    # log(1 + f) = f - (f^2/2 - s (f^2/2 + R(s^2))), s = f / (2 + f): fdlibm, e_log.c.
    ln2=(6.93147180369123816490e-01, 1.90821492927058770002e-10),
    log=(
        6.666666666666735130e-01, 3.999999999940941908e-01, 2.857142874366239149e-01,
        2.222219843214978396e-01, 1.818357216161805012e-01, 1.531383769920937332e-01,
        1.479819860511658591e-01,
    ),
    # fdlibm, k_sin.c and k_cos.c.
    sin=(
        -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04,
        2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10,
    ),
    cos=(
        4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05,
        -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11,
    ),
)  # fmt: skip

TURN = 2 * math.pi / 2**32
"""Angle of one unit of a word."""


def of(dtype: Any) -> SimpleNamespace:
    """The constants for float32 or float64."""
    return FLOAT32 if np.dtype(dtype) == np.float32 else FLOAT64
