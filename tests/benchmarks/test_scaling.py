"""Exponents of known laws, poor fits that say so, memory that is alive."""

import json

import numpy as np
import pytest

from benchmarks import scaling
from benchmarks.workloads import STEPS, Step

SIZES = [10, 20, 40, 80]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(exponent):
    found = scaling.fit(SIZES, [3.0 * n**exponent for n in SIZES])
    assert found.exponent == pytest.approx(exponent, abs=1e-12)
    assert found.local == pytest.approx((exponent, exponent), abs=1e-12)
    assert found.deviation == pytest.approx(0, abs=1e-12) and not found.poor


def test_a_law_that_is_not_a_power_is_called_poor_with_the_exponents_at_its_ends():
    found = scaling.fit(SIZES, [100.0 + n * n for n in SIZES])
    assert found.poor
    assert found.local == pytest.approx((np.log2(500 / 200), np.log2(6500 / 1700)))
    curve = found.exponent
    assert found.local[0] < curve < found.local[1]


def test_noise_of_a_twentieth_is_no_poor_fit():
    assert not scaling.fit(SIZES, [1.05 * 10, 20, 0.95 * 40, 80]).poor


def test_peak_memory_counts_what_lives_at_once():
    def call():
        a = np.ones(1 << 20, np.uint8)
        del a
        b, c = np.ones(1 << 20, np.uint8), np.ones(1 << 20, np.uint8)
        return b, c

    assert 2 << 20 <= scaling.peak_memory(call) < (2 << 20) + 20_000


def test_what_a_call_keeps_for_the_next_is_counted():
    kept = {}
    assert scaling.peak_memory(lambda: kept.setdefault("state", np.ones(1 << 20, np.uint8))) >= 1 << 20


def test_cases_name_steps_and_sizes_that_they_take():
    for name, case in scaling.CASES.items():
        assert case.axis in STEPS[case.step].make.__annotations__, name
        assert len(case.sizes) >= 4 and list(case.sizes) == sorted(set(case.sizes)), name


def test_measured_cases_print_within_100_columns_and_survive_json(monkeypatch, capsys):
    def keeps(size):
        return lambda: np.ones(size, np.uint8)

    def grows_late(size):
        return lambda: np.ones(max(1 << 20, size), np.uint8)

    made = {name: Step(name, 1.0, make) for name, make in (("plain", keeps), ("late", grows_late))}
    monkeypatch.setattr(scaling, "STEPS", made)
    sizes = (1 << 20, 1 << 21, 1 << 22)
    monkeypatch.setattr(scaling, "CASES", {
        "plain-size": scaling.Case("plain", "size", sizes),
        "late-size": scaling.Case("late", "size", (1 << 18, 1 << 19, *sizes)),
    })  # fmt: skip
    figures = scaling.measure(["plain-size", "late-size"], seconds=0.0)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert json.loads(json.dumps(figures))["plain-size"]["sizes"] == list(sizes)
    exponent = figures["plain-size"]["fits"]["peak_bytes"]["exponent"]
    assert exponent == pytest.approx(1.0, abs=0.01)  # a kilobyte beside the megabytes
    (plain,), (late,) = ([line for line in lines if line.startswith(name)] for name in ("plain", "late"))
    assert plain.endswith(" 1.00") and " 4.19 MB" in plain and "~" in late.split()[-1]
    (note,) = [line for line in lines if line.startswith("    ~ memory")]
    assert "0.00 at 262144, 1.00 at 4194304" in note
