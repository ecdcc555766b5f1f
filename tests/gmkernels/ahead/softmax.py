import numpy as np

from tests.support.ahead import Case

t = np.broadcast_to(np.zeros((), np.int64), (100_000,))
t2 = np.broadcast_to(np.zeros((), np.int64), (10_000,))
CASES = [
    Case("softmax_cross_entropy", ((100_000, 1000), t), {}, budget={"cuda": 62, "triton": 45}, wide=0.8),
    Case("softmax_cross_entropy", ((100_000, 10), t), {}, budget={"cuda": 62, "triton": 74}),
    Case("softmax_cross_entropy", ((10_000, 50_000), t2), {}, budget={"cuda": 62, "triton": 31}),
    Case(
        "softmax_cross_entropy_backward",
        ((100_000,), (100_000, 1000), t),
        {},
        budget={"cuda": 62, "triton": 31},
        wide=0.7,
    ),
]
