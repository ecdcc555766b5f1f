"""Calls of `gmkernels.sampling` that are compiled ahead of time."""

from tests.support.ahead import KEY, Case

ROWS = (10**6, 128)
"""The shape of the published floors: 12 bytes an element forward, in the time of which 93 instructions are issued."""

CASES = [
    Case("gaussian_sample", (ROWS, ROWS, KEY), {"samples": None}, budget={"triton": 80}, wide=0.9),
    Case("gaussian_sample", ((20000, 50), (20000, 50), KEY), {"samples": 50}, budget={"triton": 80}, wide=0.9),
    Case("gaussian_sample", ((1000, 100000), (1000, 100000), KEY), {"samples": None}, budget={"triton": 80}, wide=0.9),
    Case(
        "gaussian_sample_backward",
        (ROWS, ROWS[:1], ROWS[:1], ROWS, ROWS, KEY),
        {"samples": None},
        budget={"triton": 100},
        wide=0.7,
    ),
    Case(
        "gaussian_sample_backward",
        ((50, 100, 52), (100,), (50, 100), (100, 52), (100, 52), KEY),
        {"samples": 50},
        wide=0.5,
    ),
    Case("bernoulli_sample", (ROWS, KEY), {"samples": None}, budget={"triton": 35}, wide=0.9),
    Case("bernoulli_sample_logits", (ROWS, KEY), {"samples": 4}, budget={"triton": 62}, wide=0.9),
    Case("dropout", (ROWS, KEY), {"p": 0.5}, budget={"triton": 35}, wide=0.9),
]
