"""The README's tables of measured steps: `python -m benchmarks.report [--check]`.

What `gmcore bench --json benchmarks/results/NAME.json` kept is written between the README's lines
`<!-- table: NAME -->` and `<!-- /table -->`. With --check nothing is written, and the status is 1 if it should be.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.workloads import STEPS

ROOT = Path(__file__).resolve().parents[1]
BASELINE = "PyTorch"
_PLACE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- /table -->)", re.S)


class ReportError(Exception):
    """Results and README do not fit each other."""


def _ratio(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f} ({found['low']:.2f} - {found['high']:.2f})"


def table(cases: Mapping[str, Any]) -> str:
    """The table of measured cases: their ratios to the baseline with quartiles, and what is aimed at."""
    rows = [f"| workload | gmcore / {BASELINE} | best other peer / {BASELINE} | aim |", "|---|---|---|---|"]
    for name, case in cases.items():
        if name not in STEPS:
            raise ReportError(f"{name}: not a step of benchmarks/workloads.py")
        if case["baseline"] != BASELINE:
            raise ReportError(f"{name}: measured without {BASELINE}")
        ratios = {contender: figures["ratio"] for contender, figures in case["contenders"].items()}
        ours = _ratio(ratios.pop("gmcore"))
        for part in [contender for contender in ratios if contender.startswith("gmcore, ")]:
            ours += f"; {part.removeprefix('gmcore, ')} {ratios.pop(part)['median']:.2f}"
        del ratios[BASELINE]
        best = min(ratios, key=lambda peer: ratios[peer]["median"], default=None)
        other = "-" if best is None else f"{best} {_ratio(ratios[best])}"
        rows.append(f"| {STEPS[name].title} | {ours} | {other} | {STEPS[name].aim:.2f} |")
    return "\n".join(rows)


def render(readme: str, results: Path) -> str:
    """The README with the table of each file of the folder `results` in its place."""
    tables = {file.stem: table(json.loads(file.read_text())["cases"]) for file in sorted(results.glob("*.json"))}
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
