"""Calls of the look-up of rows and of their sums at the sizes at which they are measured, and the kernels' limits."""

import numpy as np

from tests.support.ahead import Case

# A language model's 65 characters, 64 steps of 32 texts; and an embedding of 50,000 words.
_SHORT, _LONG = np.zeros(2048, np.int64), np.zeros(10_000, np.int64)
CASES = [
    Case("gather_rows", ((65, 1024), _SHORT), {}, {"cuda": 25}, {"cuda": 0.7}),
    Case("scatter_add_rows", ((2048, 1024), _SHORT), {"rows": 65}, {"cuda": 25}, dtypes=("float32",)),
    Case("scatter_add_rows", ((10_000, 512), _LONG), {"rows": 50_000}, wide={"cuda": 0.9}),
]
