"""A kernel or a step that got slower is noticed, noise is not, and an unknown machine is said to be unknown."""

import json

import pytest

from benchmarks import check, instructions, kernels
from benchmarks.workloads import CPU_STEPS
from gmcore.errors import GmcoreError

KERNEL, STEP = "leaky_relu", "small-op"
EAGER = f"{STEP} eager"


@pytest.fixture
def measured(monkeypatch):
    """What the next check finds, by name, in place of measuring; each step's list is used up, but for its last."""
    found = {KERNEL: 1000, EAGER: [2.0]}

    def time_steps(names, rounds=0):
        return {name: found[name].pop(0) if len(found[name]) > 1 else found[name][0] for name in names}

    monkeypatch.setattr(check, "count_instructions", lambda names: {name: found[name] for name in names})
    monkeypatch.setattr(check, "time_steps", time_steps)
    return found


@pytest.fixture
def baseline(tmp_path, measured):
    """A baseline of 1000 instructions and a ratio of 2."""
    file = tmp_path / "baseline.json"
    check.main([KERNEL, STEP, "--update"], file)
    return file


def test_an_unchanged_machine_passes(baseline, capsys):
    check.main([KERNEL, STEP], baseline)
    assert capsys.readouterr().out.count(" 0 of 1 worse") == 2


@pytest.mark.parametrize("change", [{KERNEL: 1031}, {EAGER: [2.51]}])
def test_worse_by_more_than_the_margin_fails_with_the_name_and_both_figures(baseline, measured, capsys, change):
    measured.update(change)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="slower than benchmarks/baseline.json"):
        check.main([KERNEL, STEP], baseline)
    ((line, name),) = [
        (line, name)
        for line in capsys.readouterr().out.splitlines()
        for name in change
        if line.startswith(f"  {name} ")
    ]
    assert "WORSE" in line and ("1031" in line and "1000" in line and "+3.1%" in line or "2.51" in line)
    check.main([KERNEL, STEP, "--update"], baseline)
    check.main([KERNEL, STEP], baseline)


@pytest.mark.parametrize("change", [{KERNEL: 1029}, {EAGER: [2.49]}, {KERNEL: 500, EAGER: [0.5]}])
def test_within_the_margin_or_better_passes(baseline, measured, change):
    measured.update(change)
    check.main([KERNEL, STEP], baseline)


def test_a_step_that_others_slowed_down_is_measured_again(baseline, measured):
    measured[EAGER] = [4.0, 3.0, 2.1]
    check.main([STEP], baseline)
    measured[EAGER] = [4.0, 3.0, 2.6, 2.0]  # a fourth time would be one too many
    with pytest.raises(SystemExit):
        check.main([STEP], baseline)


@pytest.mark.parametrize(("module", "function"), [(instructions, "target"), (check, "machine")])
def test_an_unknown_machine_is_not_compared_and_told_how(baseline, measured, capsys, monkeypatch, module, function):
    monkeypatch.setattr(module, function, lambda: "another machine")
    monkeypatch.setattr(check, "machine", check.machine if module is check else lambda: "another")
    measured.update({KERNEL: 10_000, EAGER: [100.0]})
    if module is instructions:
        check.main([KERNEL], baseline)
    else:
        check.main([STEP], baseline)
    printed = " ".join(capsys.readouterr().out.split())
    assert "NOT CHECKED: there is no baseline for another machine" in printed
    assert "python -m benchmarks.check --update" in printed


def test_a_machine_without_a_counter_says_so(baseline, capsys, monkeypatch):
    monkeypatch.setattr(instructions, "unavailable", lambda: "no counter here")
    check.main([KERNEL], baseline)
    assert "kernels: NOT CHECKED: no counter here" in capsys.readouterr().out


def test_update_of_one_name_keeps_the_others_and_other_machines(baseline, measured, monkeypatch):
    before = json.loads(baseline.read_text())
    ours = instructions.target()
    measured[KERNEL] = 7
    monkeypatch.setattr(instructions, "target", lambda: "another")
    check.main([KERNEL, "--update"], baseline)
    after = json.loads(baseline.read_text())
    assert after["instructions"] == {ours: {KERNEL: 1000}, "another": {KERNEL: 7}}
    assert after["steps"] == before["steps"]


def test_update_of_everything_forgets_what_is_gone(baseline, monkeypatch):
    kept = json.loads(baseline.read_text())
    kept["instructions"][instructions.target()]["removed"] = 5
    baseline.write_text(json.dumps(kept))
    monkeypatch.setattr(kernels, "CASES", {KERNEL: None})
    monkeypatch.setattr(check, "CPU_STEPS", ())
    check.main(["--update"], baseline)
    assert json.loads(baseline.read_text())["instructions"] == {instructions.target(): {KERNEL: 1000}}


def test_an_unknown_name_is_refused(baseline):
    with pytest.raises(GmcoreError, match="did you mean 'leaky_relu'"):
        check.main(["leaky_rel"], baseline)


def test_table_lists_everything_within_100_columns(baseline, capsys):
    capsys.readouterr()
    check.main([KERNEL, STEP, "--table"], baseline)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["kernels,", KERNEL, "steps,", STEP]
    assert max(map(len, lines)) <= 100


def test_the_committed_baseline_is_of_kernels_and_steps_that_exist():
    kept = json.loads(check.BASELINE.read_text())
    assert kept["instructions"] and kept["steps"]
    assert all(figures.keys() <= kernels.CASES.keys() for figures in kept["instructions"].values())
    assert all(figures.keys() <= set(check.steps()) for figures in kept["steps"].values())


def test_every_step_is_checked_in_every_form():
    assert {name.partition(" ")[0] for name in check.steps()} == set(CPU_STEPS)
    assert "vae-step eager" in check.steps() and "small-op captured" not in check.steps()


@pytest.mark.skipif(instructions.unavailable() is not None, reason=str(instructions.unavailable()))
def test_a_real_kernel_and_a_real_step_are_noticed_beside_a_baseline_a_fifth_lower(tmp_path, monkeypatch, capsys):
    file = tmp_path / "baseline.json"
    monkeypatch.setattr(check, "ROUNDS", 1)
    check.main([KERNEL, STEP, "--update"], file)
    kept = json.loads(file.read_text())
    kept["instructions"][instructions.target()][KERNEL] *= 0.8
    kept["steps"][check.machine()][EAGER] *= 0.2  # a fifth of it: noise of a loaded machine does not matter
    file.write_text(json.dumps(kept))
    with pytest.raises(SystemExit):
        check.main([KERNEL, STEP], file)
    printed = capsys.readouterr().out
    assert printed.count("WORSE") == 2 and "+25.0%" in printed
