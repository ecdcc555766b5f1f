"""Calls of `gmkernels.sampling` at the sizes at which they are measured, and the limits of their kernels."""

from tests.support.ahead import KEY, Case

# 12 bytes an element forward and 20 backward: the H200 issues 93 and 155 instructions in the time that it copies them.
# What is not wide are row sums, the key and the gradients of row sums.
ROWS, ONE = (1_000_000, 128), {"samples": None}
SINGLE = ("float32",)

CASES = [
    Case("gaussian_sample", (ROWS, ROWS, KEY), ONE, budget={"triton": 75}, wide={"triton": 0.9}),
    Case("gaussian_sample", ((20_000, 50), (20_000, 50), KEY), {"samples": 50},
         budget={"triton": 75}, wide={"triton": 0.85}, dtypes=SINGLE),
    Case("gaussian_sample", ((1000, 100_000), (1000, 100_000), KEY), ONE,
         budget={"triton": 75}, wide={"triton": 0.95}, dtypes=SINGLE),
    Case("gaussian_sample_backward", (ROWS, ROWS[:1], ROWS[:1], ROWS, ROWS, KEY), ONE,
         budget={"triton": 120}, wide={"triton": 0.6}),
    Case("gaussian_sample_backward", ((50, 100, 52), (100,), (50, 100), (100, 52), (100, 52), KEY), {"samples": 50},
         wide={"triton": 0.45}, dtypes=SINGLE),
    Case("bernoulli_sample", (ROWS, KEY), ONE, budget={"triton": 40}, wide={"triton": 0.7}),
    Case("bernoulli_sample_logits", (ROWS, KEY), {"samples": 4}, budget={"triton": 62}),
    Case("dropout", (ROWS, KEY), {"p": 0.5}, budget={"triton": 31}, wide={"triton": 0.7}),
]  # fmt: skip
