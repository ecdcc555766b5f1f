"""Calls of the log-likelihoods at the sizes at which they are measured, and the limits of their kernels."""

from tests.support.ahead import Case

# A kernel has 31 instructions for an element in the time that the H200 takes to copy 4 bytes of it; log1p takes most.
_LIMITS = {"wide": {"cuda": 1.0, "triton": 0.9}}
_SHAPE = (128_000, 784)
_H, _WEIGHT, _BIAS, _X = (50, 100, 200), (784, 200), (784,), (100, 784)  # the last layer of an IWAE
CASES = [
    Case("bernoulli_log_prob", (_SHAPE, _SHAPE), {}, budget={"cuda": 50, "triton": 40}, **_LIMITS),
    Case("bernoulli_log_prob_backward", (_SHAPE[:1], _SHAPE, _SHAPE), {}, budget={"cuda": 50, "triton": 50}, **_LIMITS),
    Case("linear_bernoulli_log_prob", (_H, _WEIGHT, _BIAS, _X), {}),
    Case("linear_bernoulli_log_prob_backward", (_H[:2], _H, _WEIGHT, _BIAS, _X), {}),
]
