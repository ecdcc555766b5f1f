"""Calls of the sums at the sizes at which they are measured, and the limits of their kernels."""

from tests.support.ahead import Case

_SHAPE = (10_000, 10_000)
CASES = [
    Case("sum", (_SHAPE,), {"axis": axes, "keepdims": False}, {"cuda": 10, "triton": 7}, dtypes=("float32",))
    for axes in ((0,), (0, 1))
]
