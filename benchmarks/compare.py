"""gmcore's steps against the same steps in other libraries (`peers`): what `gmcore bench` runs.

Before anything is timed, every contender makes two steps from the same weights, data and noise, and what comes out
must be the same: two losses, so that the second one shows the gradient and the update, or gradients, or parameters.
Then each draws its own noise. The contenders of a step are timed in alternating blocks with pauses
(`gmkernels.bench.compare`), all steps once and then once more, minutes later: two runs. Ratios are to the best peer,
the one with the least median.

Results that are kept, and the README's table of them: `gmcore bench --json benchmarks/results/cpu-2core.json`, then
`python -m benchmarks.report`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

import gmcore
from benchmarks import peers
from benchmarks.workloads import STEPS, Workload
from gmcore.errors import GmcoreError
from gmkernels import bench, blas, pool

CAPTURED, EAGER = "gmcore, captured", "gmcore, eager"
RUNS = 2
TIMING: dict[str, Any] = {"blocks": 5, "seconds": 0.1}
"""Of a run. A block has at least three steps."""
WARM_UP = 5
"""Steps before the timing, in which a step is compiled or captured (`gmcore.capture` records up to four)."""
TOLERANCE = {"cd-step": 1e-3}
"""Difference, relative in the mean, that rounding may make: 1e-4 unless told. Of the 130,000 units that CD-1 samples
one may fall to the other side, and then 500 of the 392,000 weights change otherwise: 3e-4. For each step of a chain."""
BFLOAT16_TOLERANCE = 2.0**-6
"""The same in bfloat16: both sides may be off by its epsilon, 2^-7."""


class Disagreement(GmcoreError):
    """A contender that does not compute what gmcore does: there is nothing to compare."""


OURS: dict[str, Callable[[Workload], Workload]] = {
    CAPTURED: lambda workload: workload._replace(step=gmcore.capture(workload.step)),
    EAGER: lambda workload: workload,
}
"""The forms in which gmcore makes a step."""


def contenders(name: str) -> list[str]:
    """Everything that can make a step here."""
    ours = [EAGER] if STEPS[name].of_tapes else [*OURS]
    return [*ours, *peers.contenders(name)]


def build(name: str, contender: str, workload: Workload, sizes: Mapping[str, Any] = {}) -> Callable[..., Any]:
    """A contender's step from the beginning of a workload of these sizes, which may name a device; of gmcore's, with a
    model of its own."""
    if contender in OURS:
        own = STEPS[name].make(**sizes)
        return OURS[contender](own._replace(data=(), weights={}, noise=((), ())))  # of `workload`: held once, not twice
    return peers.make(contender, name, workload, sizes.get("device", "cpu"))


def numbers(result: Any, workload: Workload) -> list[np.ndarray]:
    """What a step has returned, as arrays of its own; of parameters, how they have changed."""

    def copied(value: Any) -> np.ndarray:
        host = value.detach().cpu() if hasattr(value, "detach") else value
        if "bfloat16" in str(getattr(host, "dtype", "")):  # NumPy has none
            host = host.float() if hasattr(host, "float") else host.astype("float32")
        return np.array(host.numpy() if hasattr(host, "numpy") else host)

    if isinstance(result, Mapping):
        return [copied(value) - workload.weights[name] for name, value in sorted(result.items())]
    return [copied(value) for value in (result if isinstance(result, tuple) else (result,))]


def outcome(step: Callable[..., Any], workload: Workload, array: Callable[[Any], Any] = np.asarray) -> list[np.ndarray]:
    """The numbers of two steps with the workload's noise."""
    return [a for noise in workload.noise for a in numbers(step(*map(array, noise)), workload)]


def check(
    name: str,
    contender: str,
    expected: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    config: Mapping[str, Any] = {},
) -> None:
    """Raise `Disagreement` unless gmcore's outcome and a contender's, of a workload with this `config`, agree."""
    tolerance = TOLERANCE[name] * config.get("steps", 1) if name in TOLERANCE else 1e-4
    if config.get("dtype") == "bfloat16":
        tolerance = BFLOAT16_TOLERANCE
    for a, b in zip(expected, found, strict=True):
        if not np.abs(a - b).mean() <= tolerance * np.abs(a).mean():
            raise Disagreement(f"{name}: gmcore gives {a!r}, {contender} {b!r}: nothing to compare")


class Case:
    """The contenders of a step, checked and warm, and the times of their blocks.

    Parameters
    ----------
    name : of the step.
    sizes : of the workload; ``device="cuda"`` for one on a GPU.
    """

    def __init__(self, name: str, **sizes: Any) -> None:
        self.name = name
        self.steps: dict[str, Callable[..., Any]] = {}
        self.absent = {peer: why for peer, why in peers.absent().items() if name in peers.STEPS_OF[peer]}
        self.blocks: dict[str, list[float]] = {}
        for peer in peers.contenders(name):
            # Before anything of ours computes: PyTorch takes threads of ours that there are, with what they do to
            # denormals, for its own, and for functions of its MKL those of one that we have loaded.
            with contextlib.suppress(Exception):  # met again below, and named
                peers.library(peer).configure(sizes.get("device", "cpu"))
        workload = STEPS[name].make(**sizes)
        expected = outcome(workload, workload)
        later = [numbers(workload(), workload) for _ in range(WARM_UP)]
        for contender in contenders(name):
            try:
                step = build(name, contender, workload, sizes)
                array = peers.library(contender).array if contender in peers.LIBRARIES else np.asarray
                found = outcome(step, workload, array)
                results = [numbers(step(), workload) for _ in range(WARM_UP)]
            except Exception as error:  # whatever a library raises where it cannot compile, say, which is not our say
                if contender in OURS:
                    raise
                self.absent[contender] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                continue
            check(name, contender, expected, found, workload.config)
            if contender in OURS:  # with the same noise still; a captured step is repeated by now
                check(name, contender, later[-1], results[-1])
            self.steps[contender] = step

    def run(self, **timing: Any) -> None:
        """Time every contender once more; `timing` as for `bench.compare`."""
        for contender, times in bench.compare(self.steps, **(TIMING | timing)).blocks.items():
            self.blocks.setdefault(contender, []).extend(times)

    def result(self) -> bench.Comparison:
        """Times so far, and ratios to the best peer, or to ourselves where there is none."""
        medians = {contender: np.median(times) for contender, times in self.blocks.items()}
        rivals = [contender for contender in medians if contender not in OURS] or [EAGER]
        return bench.Comparison(min(rivals, key=lambda contender: medians[contender]), self.blocks)


def machine(names: Iterable[str]) -> dict[str, Any]:
    """What the times depend on: the device with its measured rates, BLAS, versions, treatment of denormals."""
    device, library = bench.measure_cpu(), blas.find()
    present = sorted({contender for name in names for contender in peers.contenders(name)})
    packages = ["numpy", *sorted({peers.DISTRIBUTIONS[contender] for contender in present})]
    return {
        "device": {"name": platform.processor() or platform.machine(), "threads": pool.get_num_threads(),
                   "copy_rate": device.copy_rate, "product_rate": device.product_rate, "slot_rate": device.slot_rate},
        "blas": library.name if library else "NumPy",
        "versions": {"gmcore": gmcore.__version__} | {name: importlib.metadata.version(name) for name in packages},
        "flushes_denormals": {contender: peers.library(contender).flushes_denormals() for contender in present},
    }  # fmt: skip


def measure(names: Sequence[str]) -> dict[str, Any]:
    """Time the steps of these names, print the table of each, and return the figures by name."""
    for contender, why in peers.absent().items():
        print(f"{contender}: not measured, since {why}")
    cases = []
    for run in range(1, RUNS + 1):
        for i, name in enumerate(names):
            started = time.monotonic()
            if run == 1:
                cases.append(Case(name))
            cases[i].run()
            print(f"run {run} of {RUNS}: {name} ({time.monotonic() - started:.0f} s)", flush=True)
    for case in cases:
        print(f"\n{case.name}\n{STEPS[case.name].title}\n{case.result()}")
        for contender, why in case.absent.items():
            print(textwrap.shorten(f"{contender}: not measured, since {why}", 100))
    return {case.name: case.result().as_json() | {"runs": RUNS, "absent": case.absent} for case in cases}
