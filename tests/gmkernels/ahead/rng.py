"""Calls of `gmkernels.rng` at the sizes at which they are measured, and the limits of their kernels."""

from tests.support.ahead import KEY, Case

N = {"shape": (100_000_000,)}
SINGLE, DOUBLE = {**N, "dtype": "float32"}, {**N, "dtype": "float64"}

# A third of the bytes of a thread are the key.
CASES = [
    Case("random_words", (KEY,), N, budget={"triton": 25}, wide={"triton": 0.5}, dtypes=("float32", "float64")),
    Case("uniform", (KEY,), SINGLE, budget={"triton": 28}, wide={"triton": 0.5}, dtypes=("float32",)),
    Case("uniform", (KEY,), DOUBLE, dtypes=("float64",)),
    Case("normal", (KEY,), SINGLE, budget={"triton": 60}, wide={"triton": 0.5}, dtypes=("float32",)),
    Case("normal", (KEY,), DOUBLE, dtypes=("float64",)),
]
