"""The roofline: a floor is the largest of what bytes, flops and slots each cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmkernels.cost import Cost, Device, nominal_cpu

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


def test_nominal_rates_are_positive_and_the_same_each_time() -> None:
    device = nominal_cpu()
    assert min(device.copy_rate, device.product_rate, device.slot_rate) > 0
    assert nominal_cpu() is device
