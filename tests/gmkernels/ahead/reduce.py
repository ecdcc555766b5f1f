from tests.support.ahead import Case

CASES = [
    Case("sum", ((100_000_000,),), {"axis": (0,), "keepdims": False}, budget={"cuda": 31, "triton": 6}, wide=1.0),
    Case("sum", ((10_000, 10_000),), {"axis": (0,), "keepdims": False}, budget={"cuda": 31, "triton": 7}, wide=1.0),
    Case("sum", ((10_000, 9_999),), {"axis": (0,), "keepdims": False}, budget={"cuda": 31, "triton": 15}),
]
