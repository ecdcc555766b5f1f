"""Calls of the optimisers at the sizes at which they are measured, and the limits of their kernels."""

import numpy as np

from tests.support.ahead import Case

_SHAPES = ((10_000, 10_000),)
_LIMITS = {"wide": {"cuda": 1.0}}
CASES = [
    Case("sgd", (_SHAPES, np.zeros(7)), {}, {"cuda": 20, "triton": 30}, updated=(_SHAPES,) * 2, **_LIMITS),
    Case("adam", (_SHAPES, np.zeros(9)), {}, {"cuda": 65, "triton": 100}, updated=(_SHAPES,) * 4, **_LIMITS),
    Case("adagrad", (_SHAPES, np.zeros(6)), {}, {"cuda": 45}, updated=(_SHAPES,) * 2, **_LIMITS),
    Case("rmsprop", (_SHAPES, np.zeros(7)), {}, {"cuda": 65}, updated=(_SHAPES,) * 4, **_LIMITS),
    Case("adadelta", (_SHAPES, np.zeros(5)), {}, {"cuda": 65}, updated=(_SHAPES,) * 3, **_LIMITS),
    Case("average", (_SHAPES, np.zeros(1)), {}, {"cuda": 13}, updated=(_SHAPES,), **_LIMITS),
    Case("total_norm", (_SHAPES,), {"norm_type": 2.0}, {"cuda": 10, "triton": 8}),
]
