"""Peak memory of the steps, gmcore's and the peers': what `gmcore bench --memory` runs.

Every contender makes its steps in a process of its own. What is resident once it has made the same step at a small
size, so that its library, its compiler and its threads are there, and once the numbers of the step exist, counts for
nothing. Beyond that,

    held   what is resident between two steps: the contender's own copy of weights and batch, the state of the
           optimiser, planned buffers, code compiled for these sizes
    peak   the most that is resident in later steps (VmHWM of /proc/self/status, reset before them)

both after as many steps as it takes to compile or capture. Free pages are given back to the system before a reading.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import compare, peers
from benchmarks.workloads import STEPS, Workload
from gmcore.errors import ArgumentError

ROOT = Path(__file__).resolve().parents[1]
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEASURED_STEPS = 5


def _resident(field: str) -> int:
    """Bytes by /proc/self/status: of VmRSS now, of VmHWM at the most."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _settled() -> int:
    """Resident bytes without garbage."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return _resident("VmRSS")


def measure_here(name: str, contender: str) -> dict[str, int]:
    """Held and peak bytes of a contender's step, in a process that has done nothing else."""

    def started(sizes: Mapping[str, int], workload: Workload) -> Callable[..., Any]:
        step = compare.build(name, contender, workload, sizes)
        for _ in range(compare.WARM_UP):
            step()
        return step

    started(STEPS[name].small, STEPS[name].make(**STEPS[name].small))
    workload = STEPS[name].make()
    before = _settled()
    step = started({}, workload)
    held = _settled() - before
    CLEAR_REFS.write_text("5")
    for _ in range(MEASURED_STEPS):
        step()
    return {"held": held, "peak": _resident("VmHWM") - before}


def measure(names: Sequence[str]) -> dict[str, Any]:
    """Measure the steps of these names, print the table of each, and return the figures by name."""
    if not (STATUS.exists() and CLEAR_REFS.exists()):
        raise ArgumentError("--memory: needs /proc/self/clear_refs, which Linux has, to see the peak of a process")
    for contender, why in peers.absent().items():
        print(f"{contender}: not measured, since {why}")
    print("MiB beyond what is resident after a small step and with the numbers of this one\n")
    print(f"{'step':<20}{'contender':<20}{'peak':>10}{'held':>10}", flush=True)
    found: dict[str, Any] = {}
    for name in names:
        found[name] = {}
        for contender in compare.contenders(name):
            figures = _measure_apart(name, contender)
            found[name][contender] = figures
            peak, held = (f"{figures[key] / 2**20:.1f}" if key in figures else "-" for key in ("peak", "held"))
            print(f"{name:<20}{contender:<20}{peak:>10}{held:>10}", flush=True)
    return found


def _measure_apart(name: str, contender: str) -> dict[str, Any]:
    """`measure_here` in a process of its own; of a peer that fails there, why."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", name, contender],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if contender in compare.OURS:
        raise RuntimeError(done.stderr)
    return {"absent": done.stderr.strip().splitlines()[-1]}


if __name__ == "__main__":
    print(json.dumps(measure_here(*sys.argv[1:])))
