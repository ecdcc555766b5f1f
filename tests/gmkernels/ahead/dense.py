"""Calls of dense layers at the sizes at which they are measured, and the limits of their kernels."""

from tests.support.ahead import Case

_LARGE, _MOVED = (4096, 4096), 3 * 4096**2
# Of a product: instructions for each element of the operands that is loaded. CUDA C loads rows of float32 one by one.
_LIMITS = {"wide": {"triton": 1.0}, "elements": _MOVED}
CASES = [
    Case("linear", (_LARGE, _LARGE, (4096,)), {"activation": "tanh"}, **_LIMITS),
    # In parts, which a launch adds.
    Case("linear", ((100, 784), (500, 784), (500,)), {"activation": "tanh"}),
    Case("matmul", (_LARGE, _LARGE), {}, **_LIMITS),
    Case("activation_backward", (_LARGE, _LARGE), {"activation": "tanh"}, {"cuda": 8, "triton": 11}, 1.0),
    Case("activation_backward", (_LARGE, _LARGE), {"activation": "softplus"}, {"cuda": 40, "triton": 40}, 1.0),
]
