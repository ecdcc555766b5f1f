"""The roofline: a floor is the largest of what bytes, flops and slots each cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmkernels.cost import CACHE_RATE, Cost, Device, nominal_cpu, nominal_gpu

DEVICE = Device("test", copy_rate=10.0, product_rate=100.0, slot_rate=50.0)
amounts = st.floats(0.0, 1e12)


@pytest.mark.parametrize(
    ("cost", "itemsize", "seconds"),
    [
        (Cost(), 4, 0.0),
        (Cost(bytes=30.0), 4, 3.0),
        (Cost(flops=200.0), 4, 2.0),
        (Cost(slots=200.0), 4, 4.0),
        (Cost(bytes=30.0, flops=400.0, slots=100.0), 4, 4.0),
        # float64 halves the product and slot rates; its bytes are counted in the cost already.
        (Cost(bytes=30.0), 8, 3.0),
        (Cost(flops=200.0), 8, 4.0),
        (Cost(slots=200.0), 8, 8.0),
        (Cost(flops=200.0), 2, 2.0),
    ],
)
def test_floor(cost: Cost, itemsize: int, seconds: float) -> None:
    assert DEVICE.floor(cost, itemsize) == pytest.approx(seconds)


@given(amounts, amounts, amounts, st.sampled_from([2, 4, 8]))
def test_floor_is_the_largest_of_its_parts(moved: float, flops: float, slots: float, itemsize: int) -> None:
    parts = [DEVICE.floor(c, itemsize) for c in (Cost(bytes=moved), Cost(flops=flops), Cost(slots=slots))]
    assert DEVICE.floor(Cost(moved, flops, slots), itemsize) == max(parts)


@given(amounts, amounts, amounts, st.integers(1, 8))
def test_a_faster_device_has_a_lower_floor(moved: float, flops: float, slots: float, factor: int) -> None:
    faster = Device("faster", 10.0 * factor, 100.0 * factor, 50.0 * factor)
    cost = Cost(moved, flops, slots)
    assert faster.floor(cost) == pytest.approx(DEVICE.floor(cost) / factor)


def test_a_cost_that_says_what_it_multiplies() -> None:
    halves = Device("halves", 10.0, 100.0, 50.0, half_factor=4.0)
    assert halves.floor(Cost(flops=400.0, itemsize=2), 8) == pytest.approx(1.0)
    assert halves.floor(Cost(slots=200.0, itemsize=2), 8) == pytest.approx(4.0)
    assert halves.floor(Cost(flops=400.0), 8) == pytest.approx(8.0)


def test_blocks_go_round_the_multiprocessors() -> None:
    device = Device("of 4", copy_rate=1e12, product_rate=4e9, slot_rate=8e9, multiprocessors=4)
    for blocks, rounds in ((0, 0), (1, 1), (4, 1), (5, 2), (12, 3)):
        assert device.rounds(Cost(flops=1e9), blocks) == pytest.approx(rounds)
        assert device.rounds(Cost(slots=4e9), blocks) == pytest.approx(2 * rounds)
    # One reads as fast as a multiprocessor can, all of them no faster than the device.
    assert device.rounds(Cost(bytes=1e12), 1) == pytest.approx(1e12 / CACHE_RATE)
    slow = Device("of 4", copy_rate=1e11, product_rate=4e9, slot_rate=8e9, multiprocessors=4)
    assert slow.rounds(Cost(bytes=1e11), 8) == pytest.approx(8.0)


def test_nominal_rates_are_positive_and_the_same_each_time() -> None:
    device = nominal_cpu()
    assert min(device.copy_rate, device.product_rate, device.slot_rate) > 0
    assert nominal_cpu() is device


def test_rates_of_a_gpu_are_those_of_its_clocks_and_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    class Card:
        compute_capability = "90"
        attributes = {
            "MultiProcessorCount": 132,
            "ClockRate": 1_980_000,
            "MemoryClockRate": 3_201_000,
            "GlobalMemoryBusWidth": 6144,
        }

        def __init__(self, number: int) -> None: ...

    monkeypatch.setattr("cupy.cuda.Device", Card)
    h200 = nominal_gpu(1000)  # a number that no test asks for: what is found stays
    # Published of the H200: 4.8 TB/s (4.3 measured), 67 TFLOP/s in float32, and 790 measured in bfloat16.
    assert h200.copy_rate == pytest.approx(4.3e12, rel=0.02)
    assert h200.product_rate == pytest.approx(67e12, rel=0.02)
    assert h200.product_rate * h200.half_factor == pytest.approx(790e12, rel=0.02)
    # 12 bytes take as long as 93 instruction slots.
    assert h200.slot_rate * 12 / h200.copy_rate == pytest.approx(93, rel=0.02)
    product = Cost(flops=1e12)
    seconds = h200.floor(product, 4)
    assert h200.floor(product, 8) == pytest.approx(2 * seconds)
    assert h200.floor(product, 2) == pytest.approx(seconds / h200.half_factor)
