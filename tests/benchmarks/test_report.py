"""The README shows what was measured."""

import json
import shutil

import pytest

from benchmarks import kernels, report
from benchmarks.workloads import CPU_STEPS, STEPS

RESULTS = "benchmarks/results/cpu-2core.json"


def case(baseline, **medians):
    """A measured case of ours, its quartiles a tenth to either side."""
    spread = {name: {"median": m, "low": 0.9 * m, "high": 1.1 * m} for name, m in medians.items()}
    return {"baseline": baseline, "contenders": {f"gmcore, {name}": {"ratio": ratio} for name, ratio in spread.items()}}


@pytest.fixture
def checkout(tmp_path):
    """A copy of the README and of the results."""
    results = "benchmarks/results"
    shutil.copytree(report.ROOT / results, tmp_path / results)
    shutil.copy(report.ROOT / "README.md", tmp_path)
    return tmp_path


def change(checkout, edit):
    figures = json.loads((checkout / RESULTS).read_text())
    edit(figures["cases"])
    (checkout / RESULTS).write_text(json.dumps(figures))


def test_the_readme_is_in_step_with_the_results():
    report.main(["--check"])


def test_every_step_is_shown():
    readme = (report.ROOT / "README.md").read_text()
    assert all(f"\n| {step.title} | " in readme for step in map(STEPS.get, CPU_STEPS))


def test_a_row_has_our_ratios_the_best_peer_the_aim_and_whether_it_is_met():
    cases = {
        "cd-step": case("JAX", captured=0.804, eager=0.95),
        "vae-step": case("torch.compile", captured=0.71, eager=1.5),
        "iwae-step": case("JAX", eager=0.5),
        "small-op": case("PyTorch", eager=0.39),
    }
    rows = {row.split("|")[1].strip(): row for row in report.table({"cases": cases, "blas": "OpenBLAS"}).splitlines()}

    def row(name):
        title = STEPS[name].title
        return rows[title].removeprefix(f"| {title} ")

    assert row("cd-step") == "| 0.80 (0.72 - 0.88) | 0.95 | JAX | 0.80 | yes |"
    assert row("vae-step") == "| 0.71 (0.64 - 0.78) | 1.50 | torch.compile | 0.70 | no |"
    assert row("iwae-step") == "| - | 0.50 | JAX | 0.65 | - |"  # the aim is the captured step's
    assert row("small-op") == "| - | 0.39 (0.35 - 0.43) | PyTorch | 0.40 | yes |"  # but not of a tape
    assert row("mlp-step") == "| - | - | not measured | 0.40 | - |"
    assert {line.count("|") for line in rows.values()} == {7} and max(map(len, rows.values())) <= 100


def test_aims_of_products_by_mkl():
    cases = {"vae-step": case("torch.compile", captured=0.68), "mlp-step": case("JAX", captured=0.3)}
    rows = report.table({"cases": cases, "blas": "MKL"})
    assert "| torch.compile | 0.65 | no |" in rows and STEPS["mlp-step"].title not in rows


def test_memory_is_a_table_of_peaks_and_what_is_held():
    figures = {"gmcore, eager": {"peak": 3 << 20, "held": 1 << 19}, "JAX": {"absent": "why"}}
    rows = report.table({"memory": {"vae-step": figures}}).splitlines()
    assert rows == ["| MiB | gmcore, eager | JAX |", "|---|---|---|", "| vae-step | 3.0 (0.5) | - |"]


def test_scaling_is_a_table_of_exponents_or_of_those_at_both_ends():
    good = {"exponent": 0.984, "deviation": 0.02, "local": (0.9, 1.1)}
    fits = {"seconds_1_threads": good, "peak_bytes": good | {"deviation": 0.2}}
    rows = report.table({"scaling": {"vae-batch": {"sizes": [25, 50, 400], "fits": fits}}}).splitlines()
    assert rows[2:] == ["| vae-batch | 25 | 400 | 0.98 | - | 0.90 to 1.10 |"]
    assert {line.count("|") for line in rows} == {7}


def test_kernels_stand_by_family_and_bound():
    kernel = {"family": "dense", "bound": "product", "seconds": 1.5e-3, "share": 0.914}
    figures = {"linear": kernel, "sum": kernel | {"family": "reduce", "bound": "copy"}, "matmul": kernel}
    assert report.table({"kernels": figures}).splitlines()[2:] == [
        "| dense | product | linear 1.5 ms 91%, matmul 1.5 ms 91% |",
        "| reduce | copy | sum 1.5 ms 91% |",
    ]


def test_every_kernel_is_shown():
    kept = json.loads((report.ROOT / "benchmarks/results/cpu-2core-zen5-kernels.json").read_text())
    assert kept["kernels"].keys() == kernels.CASES.keys()


def test_check_notices_a_changed_figure_and_writing_mends_only_the_table(checkout):
    before = (checkout / "README.md").read_text()
    ours = "gmcore, eager"
    change(checkout, lambda cases: cases["vae-step"]["contenders"][ours]["ratio"].update(median=0.124))
    with pytest.raises(SystemExit, match="README.md differs from .*: run `python -m benchmarks.report`"):
        report.main(["--check"], checkout)
    assert (checkout / "README.md").read_text() == before
    report.main([], checkout)
    report.main(["--check"], checkout)
    old, new = before.splitlines(), (checkout / "README.md").read_text().splitlines()
    ((was, now),) = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    assert was.startswith(f"| {STEPS['vae-step'].title} | ") and " | 0.12 |" in now


def test_a_table_changed_by_hand_is_noticed(checkout):
    readme = checkout / "README.md"
    readme.write_text(readme.read_text().replace(" | 0.70 |", " | 0.71 |"))
    with pytest.raises(SystemExit, match="README.md differs"):
        report.main(["--check"], checkout)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda cases: cases.update({"other-step": cases["vae-step"]}), "other-step: not a step"),
        (lambda cases: cases["vae-step"].update(baseline="gmcore, eager"), "vae-step: measured without peers"),
    ],
)
def test_results_that_cannot_be_shown_are_named(checkout, edit, message):
    change(checkout, edit)
    with pytest.raises(SystemExit, match=message):
        report.main([], checkout)


def test_results_without_a_place_and_a_place_without_results_are_named(checkout):
    results = checkout / RESULTS
    shutil.copy(results, results.with_name("gpu.json"))
    with pytest.raises(SystemExit, match=r"places for the tables \['cpu-2core', .*\], the results are \[.*, 'gpu'\]"):
        report.main([], checkout)
    results.with_name("gpu.json").unlink()
    for file in results.parent.glob("*.json"):
        file.unlink()
    with pytest.raises(SystemExit, match=r"the results are \[\]"):
        report.main([], checkout)
