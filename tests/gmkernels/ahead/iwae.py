"""Calls of the importance-weighted bound at the sizes at which it is measured, and the limits of their kernels."""

from tests.support.ahead import Case

# A thread that reads 4 bytes of an element has 31 instructions in the time that the H200 takes to copy them.
CASES = [
    Case("iwae_bound", ((50, 2_000_000),), {"axis": 0}, budget={"cuda": 31, "triton": 31}, wide=1.0),
    Case("iwae_bound", ((2_000_000, 52),), {"axis": 1}, budget={"cuda": 31, "triton": 31}, wide=1.0),
    Case("iwae_bound", ((5000, 101),), {"axis": 0}, budget={"cuda": 31, "triton": 31}),
    Case("iwae_bound_backward", ((2_000_000,), (50, 2_000_000), (2_000_000,), (2_000_000,)), {"axis": 0},
         budget={"cuda": 62, "triton": 62}, wide=1.0),
    Case("iwae_bound_backward", ((2_000_000,), (2_000_000, 52), (2_000_000,), (2_000_000,)), {"axis": 1},
         budget={"cuda": 62, "triton": 62}, wide=1.0),
]  # fmt: skip
