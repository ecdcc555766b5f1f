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

FLOAT32 = SimpleNamespace(
    float=np.float32,
    int=np.int32,
    mantissa=23,
    half=0x3F000000,  # bits of 1/2
    # -2 log(1 - g) = g Q(g) for 0 <= g <= 1/2, the largest relative error the least: Remez's exchange.
    log=(
        2.0, 0.9999857051, 0.6674012288, 0.4856101660, 0.5392254552,
        -0.4070777356, 2.515339277, -3.391623664, 2.882215732,
    ),
    # sin x = x + x^3 P(x^2), cos x = 1 - x^2/2 + x^4 P(x^2): Cephes, sinf and cosf.
    sin=(-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4),
    cos=(4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5),
)  # fmt: skip

FLOAT64 = SimpleNamespace(
    float=np.float64,
    int=np.int64,
    mantissa=52,
    half=0x3FE0000000000000,
    log=(
        2.0, 1.000000000000128, 0.6666666666331549, 0.5000000034782972, 0.3999998093661371,
        0.333339705071934, 0.28557281877290713, 0.252204972387629, 0.19717543235214627, 0.41273676185760877,
        -1.1926202539528048, 6.991930697298986, -26.013111202621086, 77.4765533135472, -174.59307677648522,
        296.7779936021925, -366.92622610434205, 313.4969273371988, -165.84649025792993, 41.64091222540322,
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
