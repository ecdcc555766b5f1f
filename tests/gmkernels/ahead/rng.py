"""Calls of `gmkernels.rng` that are compiled ahead of time."""

from tests.support.ahead import KEY, Case

SHAPE = (10**8,)

CASES = [
    Case("random_words", (KEY,), {"shape": SHAPE}, budget={"triton": 25}, wide=0.9, dtypes=("float32",)),
    Case("uniform", (KEY,), {"shape": SHAPE, "dtype": "float32"}, budget={"triton": 28}, wide=0.9, dtypes=("float32",)),
    Case("uniform", (KEY,), {"shape": SHAPE, "dtype": "float64"}, dtypes=("float64",)),
    Case("normal", (KEY,), {"shape": SHAPE, "dtype": "float32"}, budget={"triton": 60}, wide=0.9, dtypes=("float32",)),
    Case("normal", (KEY,), {"shape": SHAPE, "dtype": "float64"}, dtypes=("float64",)),
]
