"""Timing: medians, order of blocks, ratios within a block, the machine's rates, a kernel's report."""

import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gmkernels import KernelError, bench
from gmkernels.bench import Comparison, KernelReport
from gmkernels.cost import Device
from gmkernels.dense import spec
from gmkernels.optim.spec import SGD

BLOCKS = {"a": [1.0, 2.0, 3.0, 4.0, 100.0], "b": [2.0, 4.0, 6.0, 8.0, 50.0]}
QUICK = {"seconds": 0.002, "pause": 0.0}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """Rates that need no measuring: 1 GB/s, 1 Gflop/s, 1 Gslot/s."""
    found = Device("test", 1e9, 1e9, 1e9)
    monkeypatch.setattr(bench, "measure_cpu", lambda *copied: found)
    return found


class Clock:
    """A clock that a call advances by as long as it is said to take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0
        self.calls: list[str] = []
        monkeypatch.setattr(time, "perf_counter_ns", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.calls.append("sleep")

    def call(self, name: str, *durations: float) -> bench.Call:
        """A call that takes each of `durations` in turn, the last for ever."""
        left = list(durations)

        def advance() -> None:
            self.calls.append(name)
            self.now += round((left.pop(0) if len(left) > 1 else left[0]) * 1e9)

        return advance


def test_median_time_leaves_out_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert bench.median_time(clock.call("f", 5.0, 0.1), seconds=1.0) == pytest.approx(0.1)


def test_median_time_makes_at_least_three_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert bench.median_time(clock.call("f", 9.0, 1.0, 30.0, 2.0), seconds=0.1) == pytest.approx(2.0)
    assert len(clock.calls) == 4


def test_median_time_counts_the_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    launch, wait = clock.call("launch", 0.001), clock.call("wait", 0.5)
    assert bench.median_time(launch, seconds=1.0, synchronize=wait) == pytest.approx(0.501)


def test_compare_alternates_the_order_and_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    contenders = {name: clock.call(name, 1.0) for name in "abc"}
    bench.compare(contenders, blocks=3, seconds=0.1)
    order = [name for name, before in zip(clock.calls[1:], clock.calls, strict=False) if before == "sleep"]
    assert "".join(order) == "abc" + "cba" + "abc"


def test_compare_finds_the_ratio_of_known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = bench.compare({"slow": clock.call("slow", 0.03), "fast": clock.call("fast", 0.01)}, seconds=0.1)
    assert found.baseline == "slow"
    assert found.time("slow").median == pytest.approx(0.03)
    assert found.ratio("fast") == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_ratios_are_taken_block_by_block() -> None:
    found = Comparison("b", BLOCKS)
    assert found.ratio("a") == (0.5, 0.5, 0.5)  # the ratio of the medians is 3 / 6 too, but that of the last block is 2
    assert found.ratio("b") == (1.0, 1.0, 1.0)
    assert Comparison("a", {"a": [1.0, 10.0, 1.0], "b": [4.0, 20.0, 2.0]}).ratio("b").median == 2.0


def test_spread_is_the_median_and_the_quartiles() -> None:
    assert Comparison("a", BLOCKS).time("a") == (3.0, 2.0, 4.0)


def test_comparison_prints_within_100_columns() -> None:
    text = str(Comparison("a" * 60, {"a" * 60: [1e-9], "b" * 60: [12.3456]}))
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "12.3 s" in text and "1 ns" in text


def test_comparison_as_json_survives_a_round_trip() -> None:
    found = Comparison("b", BLOCKS).as_json()
    assert json.loads(json.dumps(found)) == found
    assert found["contenders"]["a"]["ratio"]["median"] == 0.5
    assert found["contenders"]["a"]["blocks"] == BLOCKS["a"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"contenders": {}}, "expected contenders"),
        ({"contenders": {"a": int}, "blocks": 0}, "at least 1 block"),
        ({"contenders": {"a": int}, "baseline": "b"}, "baseline 'b' is not among the contenders a"),
    ],
)
def test_compare_refuses(arguments: dict, expected: str) -> None:
    with pytest.raises(KernelError, match=expected):
        bench.compare(**arguments, **QUICK)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 ns"), (1.5e-9, "1.5 ns"), (2.5e-6, "2.5 us"), (0.1234, "123 ms"), (1.0, "1 s"), (99.99, "100 s")],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert bench.format_seconds(seconds) == text


def test_report_kernel(device: Device) -> None:
    a, b = np.ones((64, 32), np.float32), np.ones((32, 16), np.float32)
    report = bench.report_kernel(spec.MATMUL, (a, b), backend="reference", seconds=0.002)
    assert (report.op, report.backend, report.device) == ("matmul", "reference", device)
    assert report.elements == 2 * 64 * 32 * 16
    assert report.floor == pytest.approx(2 * 64 * 32 * 16 / 1e9)
    assert report.share == pytest.approx(report.floor / report.seconds)
    assert "matmul on reference" in str(report)


def test_report_names_what_bounds_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    a = np.ones((8, 8), np.float32)
    for rates, bound in (((1.0, 1e9, 1e9), "copy"), ((1e9, 1.0, 1e9), "product")):
        monkeypatch.setattr(bench, "measure_cpu", lambda copied, rates=rates: Device("test", *rates))
        report = KernelReport.of(spec.MATMUL, (a, a), {}, seconds=1.0)
        assert report.bound == bound and report.cost == spec.MATMUL.cost(a, a)


def test_least_time_is_the_least_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert bench.least_time(clock.call("f", 0.01, 0.5, 0.2, 0.4), 1.0) == pytest.approx(0.2)


def test_the_floor_of_a_copy_is_measured_in_as_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(bench, "measure_cpu", lambda copied: asked.append(copied) or Device("test", 1.0, 1.0, 1.0))
    a = np.ones((8, 8), np.float32)
    KernelReport.of(spec.MATMUL, (a, a), {}, seconds=1.0)
    assert asked == [3 * a.nbytes]


@pytest.mark.parametrize(("load", "busy"), [(0.4, False), (1.5, True)])
def test_a_busy_machine_is_described(monkeypatch: pytest.MonkeyPatch, load: float, busy: bool) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    text = bench.describe_load()
    assert (text is not None) == busy and (not busy or "1.5 processes want 2" in str(text))


def test_report_of_an_update_writes_into_the_outputs_it_is_given(device: Device) -> None:
    grads, params = (np.ones(100, np.float64),), (np.zeros(100, np.float64),)
    inputs = (grads, np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]))
    report = bench.report_kernel(SGD, inputs, outputs=(params, (np.zeros(100),)), seconds=0.002)
    assert report.elements == 100
    assert (params[0] < 0).all()
    with pytest.raises(KernelError, match="give outputs="):
        bench.report_kernel(SGD, inputs, seconds=0.002)


def test_floor_of_float64_uses_its_rates(device: Device) -> None:
    reports = [
        KernelReport.of(spec.MATMUL, (np.ones((8, 8), d), np.ones((8, 8), d)), {}, seconds=1.0) for d in ("f4", "f8")
    ]
    assert reports[1].floor == pytest.approx(2 * reports[0].floor)


def test_the_rate_of_16_bit_products_is_that_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    dtypes: list[str] = []
    product = cupy.matmul

    def recorded(a: Any, b: Any) -> Any:
        dtypes.append(f"{a.dtype} {b.dtype}")
        return product(a, b)

    def median_time(call: Callable[[], Any], **timing: Any) -> float:
        call()
        return 0.5 if "bfloat16 bfloat16" in dtypes else 1.0

    monkeypatch.setattr(cupy, "matmul", recorded)
    monkeypatch.setattr(bench, "median_time", median_time)
    device = bench.measure_gpu.__wrapped__(1e-9)
    assert dtypes == ["float32 float32", "bfloat16 bfloat16"]
    assert device.product_rate == 2 * 16**3 and device.half_factor == 2.0


@pytest.mark.slow
def test_measured_rates_are_those_of_a_machine() -> None:
    device = bench.measure_cpu()
    assert bench.measure_cpu() is device
    assert 1e8 < device.copy_rate < 1e13
    assert 1e8 < device.product_rate < 1e14
    assert 1e8 < device.slot_rate < 1e14
