"""Calls of the cross-entropy at the sizes at which it is measured, and the limits of its kernels."""

import numpy as np

from tests.support.ahead import Case

_TARGET = np.zeros(100_000, np.int64)
CASES = [
    Case("softmax_cross_entropy", ((100_000, 1000), _TARGET), {},
         {"cuda": 35, "triton": 45}, {"cuda": 0.7, "triton": 0.8}),
    Case("softmax_cross_entropy", ((1000, 100_000), _TARGET[:1000]), {}, {"cuda": 35, "triton": 31}),
    Case("softmax_cross_entropy_backward", ((100_000,), (100_000, 1000), _TARGET), {}, {"cuda": 15, "triton": 31}),
]  # fmt: skip
