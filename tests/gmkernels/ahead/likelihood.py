from tests.support.ahead import Case

CASES = [
    Case("bernoulli_log_prob", ((128_000, 784), (128_000, 784)), {}, budget={"cuda": 62, "triton": 40}, wide=1.0),
    Case("bernoulli_log_prob", ((128_000, 783), (128_000, 783)), {}, budget={"cuda": 62, "triton": 50}),
    Case(
        "bernoulli_log_prob_backward",
        ((128_000,), (128_000, 784), (128_000, 784)),
        {},
        budget={"cuda": 93, "triton": 50},
        wide=0.9,
    ),
]
