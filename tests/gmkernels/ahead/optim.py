"""Calls of the optimisers at the sizes at which they are measured, and the limits of their kernels."""

import numpy as np

from tests.support.ahead import Case

_SHAPES = ((10_000, 10_000),)
_SGD, _ADAM = np.zeros(7), np.zeros(9)

# A kernel has 31 instructions for an element in the time that the H200 takes to copy 4 bytes of it.
CASES = [
    Case("sgd", (_SHAPES, _SGD), {}, budget={"cuda": 5 * 31, "triton": 30}, updated=(_SHAPES,) * 2),
    Case("adam", (_SHAPES, _ADAM), {}, budget={"cuda": 7 * 31, "triton": 100}, updated=(_SHAPES,) * 4),
    Case("total_norm", (_SHAPES,), {"norm_type": 2.0}, budget={"cuda": 31, "triton": 8}, wide=1.0),
]
