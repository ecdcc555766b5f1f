"""Calls of the sums at the sizes at which they are measured, and the limits of their kernels."""

from tests.support.ahead import Case

_SHAPE = (10_000, 10_000)
_BUDGET = {"cuda": 10, "triton": 7}
CASES = [
    Case("sum", (_SHAPE,), {"axis": (0,), "keepdims": False}, _BUDGET),
    Case("sum", (_SHAPE,), {"axis": (0, 1), "keepdims": False}, _BUDGET),
    Case("sum_to", (_SHAPE,), {"shape": _SHAPE[1:]}, _BUDGET),
]
