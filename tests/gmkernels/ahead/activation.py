from tests.support.ahead import Case

CASES = [
    Case("leaky_relu", ((100_000_000,),), {"negative_slope": 0.2}, budget={"cuda": 31, "triton": 8}, wide=1.0),
    Case(
        "leaky_relu_backward",
        ((100_000_000,),) * 2,
        {"negative_slope": 0.2},
        budget={"cuda": 31, "triton": 8},
        wide=1.0,
    ),
]
