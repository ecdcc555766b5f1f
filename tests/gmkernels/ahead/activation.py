"""Calls of the elementwise activations at the sizes at which they are measured, and the limits of their kernels."""

from tests.support.ahead import Case

_LIMITS = {"wide": {"cuda": 0.8, "triton": 1.0}}
_SHAPE = (100_000_000,)
CASES = [
    Case("leaky_relu", (_SHAPE,), {"negative_slope": 0.2}, {"cuda": 15, "triton": 8}, **_LIMITS),
    Case("leaky_relu_backward", (_SHAPE, _SHAPE), {"negative_slope": 0.2}, {"cuda": 15, "triton": 8}, **_LIMITS),
]
