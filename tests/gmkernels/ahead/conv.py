"""Calls of convolutions at the sizes at which they are measured, and the limits of their kernels."""

from tests.support.ahead import Case

_PLANES, _SMALL, _WEIGHT = (256, 64, 28, 28), (256, 64, 14, 14), (64, 64, 3, 3)
_SAME = {"padding": ((1, 1), (1, 1))}
_HALVED = {"stride": (2, 2), **_SAME}
CASES = [
    Case("conv2d", (_PLANES, _WEIGHT, (64,)), _SAME),
    Case("conv2d_backward_input", (_SMALL, (64, 64, 4, 4)), {"size": (28, 28), **_HALVED}),
    Case("conv2d_backward_weight", (_PLANES, _PLANES), {"size": (3, 3), **_SAME}),
]
