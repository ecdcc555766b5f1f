"""Exponents of known laws, poor fits that say so, memory that is alive."""

import json

import numpy as np
import pytest

from benchmarks import scaling, steps

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
        assert case.axis in steps.MAKE[case.step].__annotations__, name
        assert len(case.sizes) >= 4 and list(case.sizes) == sorted(set(case.sizes)), name


def test_a_measured_case_prints_within_100_columns_and_survives_json(monkeypatch, capsys):
    monkeypatch.setitem(scaling.CASES, "bound", scaling.Case("iwae-bound", "rows", (300, 600, 1200)))
    figures = scaling.measure(["bound"], seconds=0.0)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100 and lines[1].startswith("bound ")
    assert json.loads(json.dumps(figures))["bound"]["sizes"] == [300, 600, 1200]
    memory = figures["bound"]["peak_bytes"]
    assert memory[0] > 4 * 50 * 300  # the gradient, at least
    assert all("~" not in line for line in lines[1:2]) or any("no one exponent" in line for line in lines[2:])
