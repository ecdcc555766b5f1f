"""Every kernel is measured, at a size that its spec takes, and its floor claims no more work than its code does."""

import json
from importlib.util import find_spec

import numpy as np
import pytest

from benchmarks import check, kernels
from gmkernels import bench, registry
from gmkernels.cost import Device


@pytest.fixture
def hollow(monkeypatch):
    """Calls whose arrays have the shapes they have, and ones for numbers: half a second saved."""
    for name in ("_normal", "_positive", "_probabilities", "_bits"):
        monkeypatch.setattr(kernels, name, lambda *shape: np.broadcast_to(np.float32(1), shape))


def test_every_kernel_has_a_size_at_which_it_is_measured():
    shipped = [name for name, spec in registry.specs().items() if find_spec(f"gmkernels.{spec.family}") is not None]
    assert sorted(shipped) == sorted(kernels.CASES), (
        "each kernel needs a call in benchmarks/kernels.py, and each call one"
    )


def test_calls_fit_their_specs(hollow):
    for name, call in kernels.CASES.items():
        spec, (inputs, attrs, updated) = registry.specs()[name], call()
        spec.infer(*inputs, **attrs)  # raises where they do not
        cost = spec.cost(*inputs, **attrs)
        assert cost.bytes > 0 and cost.flops + cost.slots > 0, name
        assert bool(updated) == spec.updates, name
        assert not spec.draws or any(a is kernels.KEY for a in inputs), name


def test_table_fits_100_columns_and_names_what_bounds_a_kernel(hollow, monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure_cpu", lambda *copied: Device("test", 1e9, 1e9, 1e9))
    monkeypatch.setattr(bench, "least_time", lambda call, seconds: 0.125)
    monkeypatch.setattr(registry, "run", lambda *call, **outputs: ())
    figures = kernels.measure(["leaky_relu", "matmul", "dropout"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100 and len(lines) == 4
    assert [line.rpartition(" ")[2] for line in lines[1:]] == ["copy", "product", "slots"]
    matmul = figures["matmul"]
    assert matmul["flops"] == 2 * 1000 * 200 * 784 and matmul["floor"] == pytest.approx(matmul["flops"] / 1e9)
    assert matmul["share"] == pytest.approx(matmul["floor"] / 0.125)
    assert "1000x200 200x784" in lines[2] and "125 ms" in lines[2] and "251%" in lines[2]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "-"), (7, "7"), (999, "999"), (1000, "1.00k"), (999_600, "1.00M"), (2.5e7, "25.0M")]
)
def test_count(number, text):
    assert kernels._count(number) == text


def test_no_floor_counts_more_slots_than_the_code_executes(hollow):
    # A vector instruction executes one slot of each of at most 16 float32 elements.
    for counts in json.loads(check.BASELINE.read_text())["instructions"].values():
        for name, executed in counts.items():
            inputs, attrs, _ = kernels.CASES[name]()
            assert registry.specs()[name].cost(*inputs, **attrs).slots <= 16 * executed, name
