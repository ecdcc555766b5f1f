"""The README's tables of measured steps: `python -m benchmarks.report [--check]`.

What `gmcore bench --json benchmarks/results/NAME.json` kept, times, or peaks of memory (with --memory), exponents (with
--scaling) or shares of floors (with --kernels), or what `python -m benchmarks.gpu` and `python -m benchmarks.published`
kept, is written between the README's lines `<!-- table: NAME -->` and `<!-- /table -->`. With --check nothing is
written, and the status is 1 if it should be.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import CAPTURED, EAGER
from benchmarks.gpu import AIMS, COMPILED, CUPY, JAX, TORCH, memory_text
from benchmarks.published import reached
from benchmarks.scaling import Fit
from benchmarks.workloads import STEPS
from gmkernels import bench

ROOT = Path(__file__).resolve().parents[1]
_PLACE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- /table -->)", re.S)


class ReportError(Exception):
    """Results and README do not fit each other."""


def table(results: Mapping[str, Any]) -> str:
    """The table of a file of results."""
    if "scaling" in results:
        return scaling_table(results["scaling"])
    if "memory" in results:
        return memory_table(results["memory"])
    if "published" in results:
        return published_table(results["published"])
    if "gpu" in results:
        return f"{gpu_table(results['kernels'])}\n\n{gpu_step_table(results['steps'])}"
    if "kernels" in results:
        return kernel_table(results["kernels"])
    return step_table(results["cases"], results.get("blas"))


def _check(figures: Mapping[str, Any]) -> None:
    for name in figures:
        if name not in STEPS:
            raise ReportError(f"{name}: not a step of benchmarks/workloads.py")


def _quartiles(ratio: Mapping[str, float]) -> str:
    return f" ({ratio['low']:.2f} - {ratio['high']:.2f})"


def step_table(cases: Mapping[str, Any], blas: str | None) -> str:
    """Our ratios to the best peer, and what is aimed at, with the quartiles over the blocks of what is to meet it.

    By MKL only of those steps that have an aim of their own there.
    """
    _check(cases)
    rows = ["| step | captured / best peer | eager | best peer | aim | met |", "|---|---|---|---|---|---|"]
    for name, step in STEPS.items():
        aim = step.aim_with_mkl if blas == "MKL" else step.aim
        if aim is None:
            continue
        if name not in cases:
            rows.append(f"| {step.title} | - | - | not measured | {aim:.2f} | - |")
            continue
        case = cases[name]
        if case["baseline"] in (CAPTURED, EAGER):
            raise ReportError(f"{name}: measured without peers")
        ratios = [case["contenders"].get(contender, {}).get("ratio") for contender in (CAPTURED, EAGER)]
        aimed = ratios[1 if step.of_tapes else 0]
        met = "-" if aimed is None else "yes" if round(aimed["median"], 2) <= aim else "no"
        captured, eager = ("-" if r is None else f"{r['median']:.2f}" + _quartiles(r) * (r is aimed) for r in ratios)
        rows.append(f"| {step.title} | {captured} | {eager} | {case['baseline']} | {aim:.2f} | {met} |")
    return "\n".join(rows)


def memory_table(steps: Mapping[str, Any]) -> str:
    """The peak of every contender, and in brackets what of it is held between steps, in MiB."""
    _check(steps)
    fullest = sorted(steps.values(), key=len, reverse=True)  # whose order of contenders has room for the others'
    contenders = list(dict.fromkeys(contender for figures in fullest for contender in figures))
    rows = [f"| MiB | {' | '.join(contenders)} |", "|---" * (len(contenders) + 1) + "|"]
    for name, figures in steps.items():
        peaks = (figures.get(contender, {}) for contender in contenders)
        cells = (f"{f['peak'] / 2**20:.1f} ({f['held'] / 2**20:.1f})" if "peak" in f else "-" for f in peaks)
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def scaling_table(cases: Mapping[str, Any]) -> str:
    """The exponents of time and memory in each size; where no power law fits, those at the two ends."""
    rows = ["| step, size | from | to | time, 1 thread | 2 threads | memory |", "|---|---|---|---|---|---|"]
    for name, case in cases.items():
        cells = []
        for what in ("seconds_1_threads", "seconds_2_threads", "peak_bytes"):
            fit = Fit(**case["fits"][what]) if what in case["fits"] else None
            cells.append("-" if fit is None else " to ".join(f"{e:.2f}" for e in (fit.local if fit.poor else fit[:1])))
        rows.append(f"| {name} | {case['sizes'][0]} | {case['sizes'][-1]} | {' | '.join(cells)} |")
    return "\n".join(rows)


def kernel_table(kernels: Mapping[str, Any]) -> str:
    """The kernels of a family that have the same bound: their times, and shares of the floor."""
    rows = ["| family | floor of | time, and share of the floor |", "|---|---|---|"]
    found: dict[tuple[str, str], list[str]] = {}
    for name, kernel in kernels.items():
        figures = f"{name} {bench.format_seconds(kernel['seconds'])} {kernel['share']:.0%}"
        found.setdefault((kernel["family"], kernel["bound"]), []).append(figures)
    rows += [f"| {family} | {bound} | {', '.join(figures)} |" for (family, bound), figures in found.items()]
    return "\n".join(rows)


RIVALS = (CUPY, TORCH, COMPILED, JAX)


def _over(seconds: float, other: float | None) -> str:
    return "-" if other is None else f"{seconds / other:.2f}"


def _aim(name: str, *measured: Any) -> list[str]:
    """The cells of what is aimed at, and whether it is met by what was measured, as `Aim.met` takes it."""
    return [AIMS[name].text(), AIMS[name].met(*measured)] if name in AIMS else ["-", "-"]


def gpu_table(kernels: Mapping[str, Any]) -> str:
    """Of each kernel our faster backend: its time, its share of the floor, and its time over that of each rival."""
    head = f"| kernel | backend | time | share of the floor | over {' | '.join(RIVALS)} | aim | met |"
    rows = [head, "|---" * 10 + "|"]
    for name, kernel in kernels.items():
        found = kernel["contenders"]
        ours = {contender: found[contender] for contender in found if contender not in RIVALS}
        best = min(ours, key=lambda contender: ours[contender]["seconds"])
        seconds = ours[best]["seconds"]
        ratios = [_over(seconds, found.get(rival, {}).get("seconds")) for rival in RIVALS]
        figures = [bench.format_seconds(seconds), f"{ours[best]['share']:.0%} ({kernel['bound']})", *ratios]
        figures += _aim(name, {who: c["seconds"] for who, c in found.items()}, ours[best]["share"], {}, best)
        rows.append(f"| {name} | {best} | {' | '.join(figures)} |")
    return "\n".join(rows)


def gpu_step_table(steps: Mapping[str, Any]) -> str:
    """The time of each step, captured and eager, that of the captured one over the peers', and peaks of memory beside
    what a step leaves."""
    rows = [f"| step | captured | eager | over {' | '.join(RIVALS[1:])} | memory | aim | met |", "|---" * 9 + "|"]
    for name, case in steps.items():
        seconds = {contender: c["seconds"]["median"] for contender, c in case["contenders"].items()}
        times = [bench.format_seconds(seconds[contender]) for contender in (CAPTURED, EAGER)]
        ratios = [_over(seconds[CAPTURED], seconds.get(rival)) for rival in RIVALS[1:]]
        ratios += [memory_text(case["peak"]), *_aim(name, seconds, 0.0, case["peak"], CAPTURED)]
        rows.append(f"| {case['title']} | {' | '.join([*times, *ratios])} |")
    return "\n".join(rows)


def published_table(figures: Mapping[str, Any]) -> str:
    """What papers print, what was reached, after how long, and how the recipes differ."""
    rows = [
        "| figure | published | reached | training, with validation | deviations from its recipe |",
        "|---" * 5 + "|",
    ]
    for figure in figures.values():
        found = f"{reached(figure)} ({figure['split']})"
        time = f"{figure['training_seconds'] / 60:.0f} min, {figure['steps']} steps"
        deviations = "; ".join(figure["deviations"])
        rows.append(f"| {figure['title']} | {figure['published']:.4g} | {found} | {time} | {deviations} |")
    return "\n".join(rows)


def render(readme: str, results: Path) -> str:
    """The README with the table of each file of the folder `results` in its place."""
    tables = {file.stem: table(json.loads(file.read_text())) for file in sorted(results.glob("*.json"))}
    places = [match[2] for match in _PLACE.finditer(readme)]
    if sorted(places) != sorted(tables):
        raise ReportError(f"README.md has places for the tables {places}, the results are {list(tables)}")
    return _PLACE.sub(lambda match: f"{match[1]}\n{tables[match[2]]}\n\n{match[3]}", readme)


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the README would change")
    check = parser.parse_args(argv).check
    readme = root / "README.md"
    before = readme.read_text(encoding="utf-8")
    try:
        after = render(before, root / "benchmarks" / "results")
    except ReportError as error:
        sys.exit(f"report: {error}")
    if after != before:
        if check:
            sys.exit("report: README.md differs from benchmarks/results: run `python -m benchmarks.report`")
        readme.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
