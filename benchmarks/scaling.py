"""How the time and the memory of a step grow with its sizes: what `gmcore bench --scaling` prints.

Each of `CASES` is a step of `workloads` with one size varied. Its time, the least of several calls, is measured on one
thread and on two, and its memory: the peak of all arrays and Python objects that are alive during a step, gradients
and the optimiser's state included, parameters and data not, as `tracemalloc` counts them (while it traces, kernels
keep no buffers back). A power law c n^p is fitted by least squares in logarithms. Where a measured point is more than
10 % off the curve, there is no one exponent: the table marks it and gives the local ones at both ends.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.workloads import STEPS
from gmkernels import bench, pool

POOR = 0.10
"""Of a point's distance from the curve, relative: beyond it a fit is called poor."""


# ---------------------------------------------------------------------------------------------------------
# What is varied
# ---------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A step, its size that is varied, and the values of it."""

    step: str
    axis: str
    sizes: tuple[int, ...]


CASES: dict[str, Case] = {
    f"{step.removesuffix('-step')}-{axis}": Case(step, axis, sizes)
    for step, axis, sizes in (
        ("vae-step", "batch", (25, 50, 100, 200, 400)),
        ("vae-step", "hidden", (125, 250, 500, 1000)),
        ("iwae-step", "batch", (5, 10, 20, 40)),
        ("iwae-step", "samples", (6, 12, 25, 50, 100)),
        ("iwae-step", "hidden", (50, 100, 200, 400)),
        ("cd-step", "batch", (25, 50, 100, 200, 400)),
        ("cd-step", "hidden", (125, 250, 500, 1000)),
        ("language-step", "steps", (8, 16, 32, 64)),
        ("language-step", "streams", (8, 16, 32, 64)),
        ("language-step", "units", (64, 128, 256, 512)),
        ("discriminator-step", "batch", (16, 32, 64, 128)),
        ("gaussian-sample", "rows", (2_500, 5_000, 10_000, 20_000)),
        ("iwae-bound", "samples", (6, 12, 25, 50, 100)),
        ("iwae-bound", "rows", (5_000, 10_000, 20_000, 40_000)),
    )
}


# ---------------------------------------------------------------------------------------------------------
# Measuring and fitting
# ---------------------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """The power law through measured points."""

    exponent: float
    deviation: float
    """Largest distance of a point from the curve, relative to the curve."""
    local: tuple[float, float]
    """Exponents between the first two points and between the last two."""

    @property
    def poor(self) -> bool:
        return self.deviation > POOR


def fit(sizes: Sequence[float], values: Sequence[float]) -> Fit:
    """The least-squares line through the logarithms of `values` over those of `sizes`."""
    x, y = np.log(sizes), np.log(values)
    slope, offset = np.polyfit(x, y, 1)
    slopes = np.diff(y) / np.diff(x)
    off = np.abs(np.expm1(y - (slope * x + offset)))
    return Fit(float(slope), float(off.max()), (float(slopes[0]), float(slopes[-1])))


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes alive at the peak of a call, beyond what was alive before the first: that one is not counted."""
    gc.collect()
    tracemalloc.start()
    try:
        call()
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _thread_counts() -> list[int]:
    return sorted({1, min(2, pool.get_num_threads())})


def _measure(case: Case, seconds: float) -> dict[str, Any]:
    """Times by number of threads and peaks of memory, for each size."""
    times: dict[int, list[float]] = {threads: [] for threads in _thread_counts()}
    peaks, before = [], pool.get_num_threads()
    try:
        for size in case.sizes:
            call = STEPS[case.step].make(**{case.axis: size})
            for threads, found in times.items():
                pool.set_num_threads(threads)
                found.append(bench.least_time(call, seconds))
            peaks.append(peak_memory(STEPS[case.step].make(**{case.axis: size})))
    finally:
        pool.set_num_threads(before)
    measured = {f"seconds_{threads}_threads": found for threads, found in times.items()} | {"peak_bytes": peaks}
    return {
        "axis": case.axis,
        "sizes": list(case.sizes),
        **measured,
        "fits": {what: fit(case.sizes, found)._asdict() for what, found in measured.items()},
    }


# ---------------------------------------------------------------------------------------------------------
# Printing
# ---------------------------------------------------------------------------------------------------------

HEAD = (
    f"{'step-axis':<20} {'from':>6} {'to':>6}  {'1 thread':>9} {'exponent':>9}  "
    f"{'2 threads':>9} {'exponent':>9}  {'memory':>9} {'exponent':>9}"
)


def _lines(name: str, found: dict[str, Any]) -> list[str]:
    """The line of a case, with the figures at its largest size, and one for each poor fit."""
    sizes, fits = found["sizes"], {what: Fit(**values) for what, values in found["fits"].items()}
    cells, notes = [], []
    for what, label in (
        ("seconds_1_threads", "1 thread"),
        ("seconds_2_threads", "2 threads"),
        ("peak_bytes", "memory"),
    ):
        if what not in fits:
            cells.append(f"{'-':>9} {'-':>9}")
            continue
        last, curve = found[what][-1], fits[what]
        figure = f"{last / 1e6:.3g} MB" if what == "peak_bytes" else bench.format_seconds(last)
        cells.append(f"{figure:>9} {'~' * curve.poor + f'{curve.exponent:.2f}':>9}")
        if curve.poor:
            first, last_two = curve.local
            notes.append(f"    ~ {label}: no one exponent, the fit is {curve.deviation:.0%} off: {first:.2f} at "
                         f"{sizes[0]}, {last_two:.2f} at {sizes[-1]}")  # fmt: skip
    return [f"{name:<20} {sizes[0]:>6} {sizes[-1]:>6}  " + "  ".join(cells), *notes]


def measure(names: Iterable[str], *, seconds: float = 0.15) -> dict[str, Any]:
    """Measure the `CASES` of these names, print a line of each, and return the figures by name.

    Time and memory are printed at the largest size; a fit marked ~ is poor.
    """
    print(HEAD)
    figures = {}
    for name in names:
        figures[name] = _measure(CASES[name], seconds)
        print("\n".join(_lines(name, figures[name])), flush=True)
    return figures
