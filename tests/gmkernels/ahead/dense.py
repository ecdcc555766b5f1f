"""Calls of dense layers at the sizes at which they are measured, and the limits of their kernels."""

from tests.support.ahead import Case

_LARGE = (4096, 4096)
# Of a product: instructions for each element that is loaded. CUDA C copies columns of float32 one by one.
_LIMITS = {"budget": {"cuda": 85, "triton": 35}, "wide": {"triton": 1.0}, "elements": 3 * 4096**2}
CASES = [
    Case("linear", (_LARGE, _LARGE, (4096,)), {"activation": "tanh"}, **_LIMITS),
    Case("linear", ((100, 784), (500, 784), (500,)), {"activation": "tanh"}),  # in parts, which a launch adds
    Case("matmul", (_LARGE, _LARGE), {}, **_LIMITS),
    Case("matmul", ((64, 100, 50), (64, 50, 100)), {}),
    Case("activation_backward", (_LARGE, _LARGE), {"activation": "tanh"}, {"cuda": 8, "triton": 10}, 1.0),
    Case("activation_backward", (_LARGE, _LARGE), {"activation": "softplus"}, {"cuda": 8, "triton": 60}, 1.0,
         dtypes=("float32", "float64")),
]  # fmt: skip
