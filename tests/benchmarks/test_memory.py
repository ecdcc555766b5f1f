"""Peaks of processes."""

import json
import subprocess

import numpy as np
import pytest

from benchmarks import compare, memory, peers

pytestmark = pytest.mark.skipif(not memory.CLEAR_REFS.exists(), reason="needs /proc/self/clear_refs, which Linux has")

MIB = 2**20


def touched(mib):
    return np.ones(mib * MIB, np.uint8)


def test_held_and_peak_of_known_arrays(tiny, monkeypatch):
    sizes_made = []

    def build(name, contender, workload, sizes):
        sizes_made.append(sizes)
        kept = []

        def step():
            if not kept:
                touched(50)  # what only a first step needs is neither held nor in the peak
                kept.append(touched(10))
            touched(20)

        return step

    monkeypatch.setattr(compare, "build", build)
    found = memory.measure_here("mlp-step", compare.EAGER)
    assert found["held"] == pytest.approx(10 * MIB, abs=4 * MIB)
    assert found["peak"] == pytest.approx(30 * MIB, abs=4 * MIB)
    assert sizes_made == [tiny["mlp-step"].small, {}]


def test_a_contender_that_fails_in_its_process_is_named(monkeypatch, capsys):
    def run(command, **options):
        _, _, module, name, contender = command
        assert (module, name) == ("benchmarks.memory", "small-op")
        if contender == "PyTorch":
            return subprocess.CompletedProcess(command, 1, "", "Traceback ...\nImportError: no libgomp\n")
        return subprocess.CompletedProcess(
            command, 0, "warned\n" + json.dumps({"held": MIB, "peak": 3 * MIB}) + "\n", ""
        )

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(peers, "contenders", lambda name: ["PyTorch"])
    monkeypatch.setattr(peers, "absent", lambda: {"JAX": "jax is not installed"})
    found = memory.measure(["small-op"])
    assert found == {"small-op": {compare.EAGER: {"held": MIB, "peak": 3 * MIB},
                                  "PyTorch": {"absent": "ImportError: no libgomp"}}}  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert "JAX: not measured, since jax is not installed" in lines
    assert f"{'small-op':<20}{'gmcore, eager':<20}{'3.0':>10}{'1.0':>10}" in lines
    assert f"{'small-op':<20}{'PyTorch':<20}{'-':>10}{'-':>10}" in lines


@pytest.mark.slow
def test_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(peers, "contenders", lambda name: [])
    found = memory.measure(["small-op"])["small-op"][compare.EAGER]
    assert found["held"] <= found["peak"] < 100 * MIB


def test_without_proc_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "none")
    with pytest.raises(memory.ArgumentError, match="--memory: needs /proc/self/clear_refs"):
        memory.measure(["small-op"])
