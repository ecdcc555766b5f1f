"""Did a kernel or a step get slower? `python -m benchmarks.check [--table] [--update] [NAME ...]`

Two figures that a busy machine hardly changes are compared with those kept in `benchmarks/baseline.json`:

- the instructions that each kernel's compiled code executes at the size of `kernels.CASES` (see `instructions`);
- the time of each step, eager and captured, over that of a fixed piece of other work just before it (`references`):
  processor time of one thread, the least of a short block of each, and the median of the blocks' ratios.

Prints a line for each that is worse by more than a margin, and then ends with status 1. A baseline belongs to a
processor and to the versions of what makes its code; on another one nothing is compared, and the check says so.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import instructions, kernels
from benchmarks.compare import OURS, WARM_UP, contenders
from benchmarks.workloads import CPU_STEPS, STEPS
from gmcore.errors import GmcoreError, unknown_name
from gmcore.io import write_atomically
from gmkernels import blas, pool

BASELINE = Path(__file__).with_name("baseline.json")
COMMAND = "python -m benchmarks.check"
INSTRUCTIONS_MARGIN = 0.03
"""Counts repeat, but for kernels of short rows, where the distance of two arrays decides which version of a loop runs:
those differ by up to 1.1 % from one allocation to the next."""
STEPS_MARGIN = 0.25
"""With ten other processes on two processors, the ratios of steps of a millisecond and more spread by 5 % over runs, of
those below by 13 %; a step that is worse is measured again, up to `TRIES` times in all, for twice as long."""
ROUNDS = 12
TRIES = 3

OURS_PREFIX = "gmcore, "

Call = Callable[[], object]
Figures = dict[str, float]


OVERHEAD = ("small-op", "mlp-step")
"""Steps that the interpreter spends its time on, not kernels: it and vector code do not slow down alike."""


def references() -> dict[str, Call]:
    """What steps are compared with, without a line of our code."""
    return {"NumPy": _numpy_work(), "Python": _python_work}


def _python_work() -> None:
    """Calls, attributes, tuples and dictionaries."""
    kept: dict[int, tuple[str, int]] = {}
    for i in range(500):
        kept[i & 15] = (str(i), kept.setdefault(i & 7, ("", 0))[1].bit_length())


def _numpy_work() -> Call:
    """A product, elementary functions and a copy."""
    a = np.random.default_rng(0).standard_normal((384, 384), np.float32)
    c, large = np.empty_like(a), np.ones(1 << 20, np.float32)
    copy = np.empty_like(large)

    def call() -> None:
        np.matmul(a, a, out=c)
        np.tanh(a, out=c)
        np.exp(a, out=c)
        np.copyto(copy, large)

    return call


# ---------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------


def count_instructions(names: Iterable[str]) -> Figures:
    """Instructions of the kernels of these names."""
    with instructions.counting() as count:
        return {name: count(kernels.prepare(name)[2]) for name in names}


def _least(call: Call, seconds: float) -> float:
    """Least processor time of this thread in a call, of those of `seconds`."""
    least, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.thread_time()
        call()
        least = min(least, time.thread_time() - start)
        if time.perf_counter() > end:
            return least


def steps() -> list[str]:
    """Each step in each form that gmcore has for it: ``"vae-step eager"``."""
    return [
        f"{name} {form.removeprefix(OURS_PREFIX)}" for name in CPU_STEPS for form in OURS if form in contenders(name)
    ]


def _step(name: str) -> Call:
    step, _, form = name.partition(" ")
    return OURS[OURS_PREFIX + form](STEPS[step].make())


def time_steps(names: Sequence[str], rounds: int = ROUNDS) -> Figures:
    """Time of the steps of these names over that of their reference in the block before, on one thread.

    The median over the blocks: what slows a processor down for a second or two, slows both.
    """
    threads = pool.get_num_threads()
    pool.set_num_threads(1)
    try:
        with blas.single_threaded():
            against = references()
            calls = {name: _step(name) for name in names}
            for call in (*against.values(), *calls.values()):
                for _ in range(WARM_UP):
                    call()
            ratios: dict[str, list[float]] = {name: [] for name in names}
            for _ in range(rounds):
                for name, call in calls.items():
                    reference = against["Python" if name.partition(" ")[0] in OVERHEAD else "NumPy"]
                    before = _least(reference, 0.01)
                    ratios[name].append(_least(call, 0.01) / before)
    finally:
        pool.set_num_threads(threads)
    return {name: float(np.median(found)) for name, found in ratios.items()}


def machine() -> str:
    """What ratios of steps belong to: the processor by name, and what counts of instructions belong to."""
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists() and (found := re.search(r"model name\s*: (.*)", info.read_text())):
        name = found[1]
    return f"{name}, {instructions.target()}"


# ---------------------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """A figure beside its baseline, which is None where there is none."""

    name: str
    before: float | None
    now: float
    margin: float

    @property
    def worse(self) -> bool:
        return self.before is not None and self.now > self.before * (1 + self.margin)

    @property
    def better(self) -> bool:
        return self.before is not None and self.now < self.before * (1 - self.margin)

    def __str__(self) -> str:
        if self.before is None:
            return f"{self.name:<30} {'-':>14} {self.now:>14.6g}  no baseline"
        verdict = "  WORSE" if self.worse else "  better" if self.better else ""
        change = self.now / self.before - 1
        return f"{self.name:<30} {self.before:>14.6g} {self.now:>14.6g} {change:>+8.1%}{verdict}"


def compare(before: Mapping[str, float], now: Mapping[str, float], margin: float) -> list[Change]:
    """Each figure of `now` beside that of `before`."""
    return [Change(name, before.get(name), figure, margin) for name, figure in now.items()]


def _report(what: str, unit: str, belongs_to: str, changes: Sequence[Change], known: bool, table: bool) -> bool:
    """Print what was found; whether something is worse."""
    if known:
        worse, better = sum(c.worse for c in changes), sum(c.better for c in changes)
        new = sum(c.before is None for c in changes)
        print(f"{what}, by {unit}: {worse} of {len(changes)} worse than the baseline by more than "
              f"{changes[0].margin:.0%}, {better} better" + f", {new} without one" * bool(new))  # fmt: skip
    else:
        why = (
            f"{what}: NOT CHECKED: there is no baseline for {belongs_to}. "
            f"To make one, run `{COMMAND} --update` here, with the code as it was."
        )
        print(textwrap.fill(why, 100, subsequent_indent="  "))
    for change in changes:
        if table or change.worse:
            print(f"  {change}")
    return any(change.worse for change in changes)


def main(argv: Sequence[str] | None = None, file: Path = BASELINE) -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a kernel or a step (default: all)")
    parser.add_argument("--table", action="store_true", help="print every figure beside its baseline")
    parser.add_argument("--update", action="store_true", help="make what is measured now the baseline")
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        if name not in kernels.CASES and name not in CPU_STEPS:
            raise unknown_name("kernel or step", name, [*kernels.CASES, *CPU_STEPS])
    named = set(arguments.names or [*kernels.CASES, *CPU_STEPS])
    chosen_kernels = [name for name in kernels.CASES if name in named]
    chosen_steps = [name for name in steps() if name.partition(" ")[0] in named]
    kept = json.loads(file.read_text()) if file.exists() else {"instructions": {}, "steps": {}}
    worse = False

    if chosen_kernels and (reason := instructions.unavailable()):
        print(f"kernels: NOT CHECKED: {reason}")
    elif chosen_kernels:
        key = instructions.target()
        before = kept["instructions"].get(key, {})
        now = count_instructions(chosen_kernels)
        changes = compare(before, now, INSTRUCTIONS_MARGIN)
        worse |= _report("kernels", "instructions", key, changes, bool(before), arguments.table)
        kept["instructions"][key] = before | now if arguments.names else now

    if chosen_steps:
        key = machine()
        before = kept["steps"].get(key, {})
        now = time_steps(chosen_steps)
        changes = compare(before, now, STEPS_MARGIN)
        for _ in range(TRIES - 1):  # others on the machine make a step slower, never faster: look again
            if suspects := [c.name for c in changes if c.worse]:
                now |= {name: min(now[name], ratio) for name, ratio in time_steps(suspects, 2 * ROUNDS).items()}
                changes = compare(before, now, STEPS_MARGIN)
        worse |= _report("steps", "time over a reference's", key, changes, bool(before), arguments.table)
        kept["steps"][key] = before | now if arguments.names else now

    if arguments.update:
        write_atomically(file, (json.dumps(kept, indent=1, sort_keys=True) + "\n").encode())
        print(f"written: {file}")
    elif worse:
        sys.exit(f"slower than benchmarks/baseline.json says: mend it, or accept it with `{COMMAND} --update`")


if __name__ == "__main__":
    try:
        main()
    except GmcoreError as error:
        sys.exit(f"check: {error}")
