"""The README shows what was measured."""

import json
import shutil

import pytest

from benchmarks import report
from benchmarks.workloads import STEPS

RESULTS = "benchmarks/results/cpu-2core.json"


def case(**medians):
    """A measured case, its quartiles a tenth to either side."""
    spread = {name: {"median": m, "low": 0.9 * m, "high": 1.1 * m} for name, m in medians.items()}
    return {"baseline": "PyTorch", "contenders": {name: {"ratio": ratio} for name, ratio in spread.items()}}


@pytest.fixture
def checkout(tmp_path):
    """A copy of the README and of the results."""
    (tmp_path / RESULTS).parent.mkdir(parents=True)
    for file in ("README.md", RESULTS):
        shutil.copy(report.ROOT / file, tmp_path / file)
    return tmp_path


def change(checkout, edit):
    figures = json.loads((checkout / RESULTS).read_text())
    edit(figures["cases"])
    (checkout / RESULTS).write_text(json.dumps(figures))


def test_the_readme_is_in_step_with_the_results():
    report.main(["--check"])


def test_every_step_is_measured_and_shown():
    cases = json.loads((report.ROOT / RESULTS).read_text())["cases"]
    readme = (report.ROOT / "README.md").read_text()
    assert cases.keys() == STEPS.keys()
    assert all(f"\n| {step.title} | " in readme for step in STEPS.values())


def test_a_row_has_our_ratio_with_quartiles_our_parts_the_best_other_peer_and_the_aim():
    contenders = {"gmcore": 0.5, "gmcore, kernels alone": 0.4, "PyTorch": 1.0, "slow": 3.0, "fast": 0.8}
    rows = report.table({"cd-step": case(**contenders), "vae-step": case(gmcore=2.0, PyTorch=1.0)}).splitlines()
    title = STEPS["cd-step"].title
    assert rows[2] == f"| {title} | 0.50 (0.45 - 0.55); kernels alone 0.40 | fast 0.80 (0.72 - 0.88) | 0.80 |"
    assert rows[3] == f"| {STEPS['vae-step'].title} | 2.00 (1.80 - 2.20) | - | 0.70 |"
    assert {row.count("|") for row in rows} == {5}


def test_check_notices_a_changed_figure_and_writing_mends_only_the_table(checkout):
    before = (checkout / "README.md").read_text()
    change(checkout, lambda cases: cases["vae-step"]["contenders"]["gmcore"]["ratio"].update(median=0.124, low=0.115))
    with pytest.raises(SystemExit, match="README.md differs from .*: run `python -m benchmarks.report`"):
        report.main(["--check"], checkout)
    assert (checkout / "README.md").read_text() == before
    report.main([], checkout)
    report.main(["--check"], checkout)
    old, new = before.splitlines(), (checkout / "README.md").read_text().splitlines()
    ((was, now),) = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    assert was.startswith(f"| {STEPS['vae-step'].title} | ") and " | 0.12 (0." in now


def test_a_table_changed_by_hand_is_noticed(checkout):
    readme = checkout / "README.md"
    readme.write_text(readme.read_text().replace(" | 0.70 |\n", " | 0.71 |\n"))
    with pytest.raises(SystemExit, match="README.md differs"):
        report.main(["--check"], checkout)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda cases: cases.update({"other-step": cases["vae-step"]}), "other-step: not a step"),
        (lambda cases: cases["vae-step"].update(baseline="gmcore"), "vae-step: measured without PyTorch"),
    ],
)
def test_results_that_cannot_be_shown_are_named(checkout, edit, message):
    change(checkout, edit)
    with pytest.raises(SystemExit, match=message):
        report.main([], checkout)


def test_results_without_a_place_and_a_place_without_results_are_named(checkout):
    results = checkout / RESULTS
    shutil.copy(results, results.with_name("gpu.json"))
    with pytest.raises(SystemExit, match=r"places for the tables \['cpu-2core'\].*\['cpu-2core', 'gpu'\]"):
        report.main([], checkout)
    results.with_name("gpu.json").unlink()
    results.unlink()
    with pytest.raises(SystemExit, match=r"the results are \[\]"):
        report.main([], checkout)
