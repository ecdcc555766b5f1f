"""Contenders are checked before they are timed, and what is missing is said."""

import numpy as np
import pytest

from benchmarks import compare, peers

NAME = "mlp-step"


@pytest.fixture
def rivals(tiny, monkeypatch):
    """Peers of `NAME` by name, each a function of the workload; without waiting."""
    made = {}
    monkeypatch.setattr(peers, "make", lambda contender, name, workload, device: made[contender](workload))
    monkeypatch.setattr(peers, "library", lambda contender: np)
    monkeypatch.setattr(peers, "contenders", lambda name: list(made))
    monkeypatch.setattr(peers, "absent", lambda: {"JAX": "jax is not installed"})
    monkeypatch.setattr(compare, "TIMING", {"blocks": 2, "seconds": 0.001, "pause": 0.0})
    return made


def same(workload):
    """A rival that does what gmcore does."""
    return compare.build(NAME, compare.EAGER, workload)


def test_the_baseline_is_the_peer_of_least_median_over_all_runs(rivals):
    rivals |= {"PyTorch": same, "torch.compile": same}
    case = compare.Case(NAME)
    case.run()
    case.run()
    assert {len(times) for times in case.blocks.values()} == {4}
    case.blocks = {"gmcore, eager": [1, 1, 1], "PyTorch": [2, 9, 4], "torch.compile": [3, 3, 3]}
    assert case.result().baseline == "torch.compile"
    assert case.result().ratio("gmcore, eager").median == pytest.approx(1 / 3)


def test_without_peers_gmcore_is_timed_alone(rivals):
    case = compare.Case(NAME)
    case.run()
    assert case.result().baseline == compare.EAGER and case.absent == {"JAX": "jax is not installed"}


def test_a_peer_that_cannot_run_is_left_out_by_name(rivals):
    def broken(workload):
        raise RuntimeError("no compiler\n" + "of any kind\n" * 100)

    rivals |= {"PyTorch": same, "torch.compile": broken}
    case = compare.Case(NAME)
    assert case.absent == {"JAX": "jax is not installed", "torch.compile": "RuntimeError: no compiler"}
    assert [*case.steps] == [*compare.OURS, "PyTorch"]


def test_a_peer_that_computes_something_else_stops_the_comparison(rivals):
    rivals["PyTorch"] = lambda workload: lambda *noise: np.float32(1.0)
    with pytest.raises(compare.Disagreement, match="mlp-step: gmcore gives .*, PyTorch .*: nothing to compare"):
        compare.Case(NAME)


def test_the_second_loss_shows_an_update_that_is_wrong(rivals):
    def no_update(workload):
        first = same(workload)()
        return lambda *noise: first

    rivals["PyTorch"] = no_update
    with pytest.raises(compare.Disagreement):
        compare.Case(NAME)


def test_a_repeated_step_that_stands_still_stops_the_comparison(rivals, monkeypatch):
    def stuck(workload):
        results = []

        def step(*arguments):
            if len(results) < 4:
                results.append(workload.step(*arguments))
            return results[-1]

        return workload._replace(step=step)

    monkeypatch.setitem(compare.OURS, compare.CAPTURED, stuck)
    with pytest.raises(compare.Disagreement, match="gmcore, captured"):
        compare.Case(NAME)


@pytest.mark.parametrize("factor, agree", [(1 + 3e-5, True), (1 + 3e-4, False), (np.nan, False)])
def test_what_agrees_differs_by_rounding_only(factor, agree):
    found = np.linspace(-1.0, 1.0, 7, dtype=np.float32)
    if agree:
        compare.check(NAME, "PyTorch", [found], [found * factor])
    else:
        with pytest.raises(compare.Disagreement):
            compare.check(NAME, "PyTorch", [found], [found * factor])


def test_measure_prints_what_it_times_and_what_it_leaves_out(rivals, capsys):
    rivals["PyTorch"] = same
    figures = compare.measure([NAME])
    printed = capsys.readouterr().out
    assert "JAX: not measured, since jax is not installed" in printed and "to PyTorch" in printed
    assert "run 2 of 2: mlp-step" in printed and max(map(len, printed.splitlines())) <= 100
    assert figures[NAME]["absent"] == {"JAX": "jax is not installed"} and figures[NAME]["runs"] == 2
