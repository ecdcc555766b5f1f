"""The command line: what each command prints, and one clear line and status 2 for bad input."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import gmcore
from benchmarks import compare, kernels, memory, scaling, workloads
from gmcore import models
from gmcore.cli import COMMANDS, main
from gmcore.cli.train import parse_settings
from gmcore.errors import ArgumentError
from gmcore.extras import EXTRAS
from gmcore.models import language
from gmcore.models.recurrent import char_rnn
from gmcore.op import OPS
from gmcore.train import fit
from gmkernels import bench, configurations, entries
from gmkernels.cost import Device
from tests.support.cuda_stand_in import machine
from tests.support.cupy_stand_in import has_gpu

TINY = ["--set", "hidden_sizes=[8]", "--set", "latent_size=2", "--set", "eval_samples=20"]


OWN = ["--data", "own.npy", "--epochs", "2"]


def work_in(folder, monkeypatch):
    """A folder with forty 2x3 images as a file."""
    monkeypatch.setattr("gmkernels.registry._environment", "reference")  # nothing to compile
    monkeypatch.delenv("GMCORE_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(folder)
    np.save("own.npy", np.random.default_rng(0).uniform(size=(40, 2, 3)).astype(np.float32))


@pytest.fixture(autouse=True)
def workplace(monkeypatch, tmp_path):
    work_in(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        work_in(folder, monkeypatch)
        assert main(["train", "vae", *OWN, *TINY, "--out", "run"]) == 0
    return folder / "run"


@pytest.fixture
def run(trained):
    """A run of one's own, to change: a copy of one that all tests share."""
    shutil.copytree(trained, "run")
    return "run"


def test_the_bare_command_prints_help(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n    {name} " in printed for name in COMMANDS)


def test_help_and_bad_options_are_answered_without_numba():
    code = "import sys; from gmcore.cli import main; main([]); main(['trian']); sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_train_ends_with_the_bound_the_baseline_the_samples_and_the_run(capsys):
    assert main(["train", "iwae", *OWN, *TINY, "--set", "samples=3", "--seed", "4"]) == 0
    printed, progress = capsys.readouterr()
    path = "runs/iwae-own-seed4"
    result = json.loads(Path(path, "metrics.jsonl").read_text().splitlines()[-1])
    bound, baseline, samples, where = printed.splitlines()
    assert re.fullmatch(r"test bound +-\d+\.\d\d \+- \d\.\d\d nats \(own test, k = 20, n = 4, .*seed 4\)", bound)
    assert f"{result['bound']:.2f}" in bound and f"{result['baseline']:.2f}" in baseline
    assert samples.split() == ["samples", f"{path}/samples.png"] and where.split() == ["run", path]
    assert Path(path, "samples.png").read_bytes().startswith(b"\x89PNG")
    assert progress.count("validation ") == 2
    assert re.search(r"^steps  captured: \d+ calls on .* MB, planned once$", progress, re.MULTILINE)


def test_train_prints_json(capsys):
    assert main(["train", "vae", *OWN, *TINY, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["run"] == "runs/vae-own-seed0" and result["split"] == "test" and result["k"] == 20


def test_resume(run, capsys):
    assert main(["train", "--resume", run, "--epochs", "3"]) == 0
    assert [json.loads(line)["epoch"] for line in Path("run/metrics.jsonl").read_text().splitlines()] == [1, 2, 2, 3, 3]


def test_sample(run, capsys):
    assert main(["sample", run, "-n", "9"]) == 0
    assert capsys.readouterr().out == "run/samples-9-seed0.png\n"
    assert main(["sample", run, "-n", "5", "--seed", "3", "--out", "s.npy"]) == 0
    first = np.load("s.npy")
    assert first.shape == (5, 6) and np.all((first >= 0) & (first <= 1))
    for seed, equal in (("3", True), ("4", False)):
        assert main(["sample", run, "-n", "5", "--seed", seed, "--out", "t.npy"]) == 0
        assert np.array_equal(first, np.load("t.npy")) == equal


@pytest.fixture
def text_run(capsys, monkeypatch):
    """A run of the character language model on a text file."""
    monkeypatch.setattr(language, "SAMPLE_LENGTH", 30)
    monkeypatch.setattr(char_rnn, "FLOW_STEPS", 5)
    Path("song.txt").write_text("the cat sat on the mat, that is that\n" * 20)
    settings = ["hidden_size=4", "num_layers=1", "sequence_length=10"]
    words = [word for setting in settings for word in ("--set", setting)]
    arguments = ["--data", "song.txt", "--epochs", "1", "--batch-size", "3", "--out", "text", *words]
    assert main(["train", "char_rnn", *arguments]) == 0
    figure, baseline, samples, _ = capsys.readouterr().out.splitlines()
    number = r"-?\d+\.\d{3}"
    assert re.fullmatch(
        rf"test log-probability {number} nats per character, {number} bits \(song test, n = 36, seed 0\)", figure
    )
    assert baseline.endswith("nats per character (independent characters)") and samples.endswith("text/samples.txt")
    return "text"


def test_sample_text(text_run, capsys):
    assert main(["sample", text_run, "-n", "30", "--prime", "the c", "--temperature", "0.5", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("the c") and len(printed) == 36
    assert main(["sample", text_run, "-n", "30", "--prime", "the c", "--temperature", "0.5", "--out", "s.txt"]) == 0
    assert capsys.readouterr().out == "s.txt\n" and len(Path("s.txt").read_text()) == 35
    for bad, message in (
        (["--prime", "The"], "prime: the character 'T' at 0 of the text is none of the 13 of the vocabulary"),
        (["--temperature", "-1"], "temperature must be a number from 0 up, got -1.0"),
        (["--out", "no/where.txt"], "no/where.txt: cannot be written"),
    ):
        assert main(["sample", text_run, *bad]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_options_of_text_are_refused_where_there_is_none(run, capsys):
    assert main(["sample", run, "--prime", "a"]) == 2
    assert "--prime: vae draws data vectors, no text" in capsys.readouterr().err
    assert main(["train", "char_rnn", "--out", "x"]) == 2
    assert "char_rnn models text, and data set 'digits' holds none; give a UTF-8 file" in capsys.readouterr().err
    assert not Path("x").exists()


def test_evaluate_repeats_the_bound_of_training(run, capsys):
    reported = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    assert main(["evaluate", run, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    del result["seconds"], reported["seconds"]
    assert result == reported
    assert main(["evaluate", run, "--split", "train", "--samples", "7", "--limit", "3"]) == 0
    assert "(own train, k = 7, n = 3, dynamic binarisation, seed 0)" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["models"], ["kernels"], ["kernels", "gaussian_sample"], ["kernels", "adam"]])
def test_tables_fit_100_columns(arguments, capsys):
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines and max(map(len, lines)) <= 100


def test_models(capsys):
    assert main(["models"]) == 0
    assert {"iwae", "vae"} <= {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.split()}
    assert main(["models", "iwae"]) == 0
    printed = capsys.readouterr().out
    assert "Burda" in printed and re.search(r"latent_size +50 +model", printed)
    assert main(["models", "--json"]) == 0
    assert {model["name"] for model in json.loads(capsys.readouterr().out)} >= {"iwae", "vae"}


def test_kernels_lists_every_kernel_and_explains_each(capsys):
    assert main(["kernels", "--json"]) == 0
    kernels = {kernel["name"]: kernel for kernel in json.loads(capsys.readouterr().out)}
    assert {"gaussian_sample", "iwae_bound", "adam", "linear"} <= kernels.keys()
    for name, kernel in kernels.items():
        assert main(["kernels", name]) == 0
        printed = capsys.readouterr().out
        # Whatever it says of the reference, it runs on it: the environment prefers it here.
        assert re.search(r"^-> reference +estimated +[\d.]+ us +preferred by GMKERNELS_BACKEND", printed, re.M)
        assert "".join(kernel["formula"].split()) in "".join(printed.split())


def test_explain_shows_the_first_step_of_training(capsys):
    losses = []
    fit("iwae", "own.npy", epochs=1, settings=parse_settings(TINY[1::2]), seed=3, batch_size=5, out="run",
        progress=lambda event: losses.append(event.loss.item()) if event.stage == "step" else None)  # fmt: skip
    asked = ["explain", "iwae", *OWN[:2], *TINY, "--seed", "3", "--batch-size", "5"]
    assert main([*asked, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    (one,) = shown["passes"]
    assert shown["loss"] == losses[0] and shown["batch_size"] == 5
    ops = [entry["op"] for entry in one["tape"]]
    assert ops.count("linear") == 4 and ops.count("linear_bernoulli_residual") == 1 and ops[-1] == "negative"
    assert sorted(ops) == sorted(statement["op"] for statement in one["backward"])
    assert one["tape"][0]["kernels"] == ["linear: reference"] and "networks.py:" in one["tape"][0]["line"]
    assert one["saved_bytes"] == sum(entry["saved_bytes"] for entry in one["tape"]) > 0
    leaves = {leaf["name"]: leaf["parameter"] for leaf in one["leaves"]}
    assert leaves["x1"] == "encoder.trunk.0.weight" and len(leaves) == 10

    assert main(asked) == 0
    head, *table = capsys.readouterr().out.splitlines()
    assert head.split() == f"first step iwae on own, batch of 5, seed 3, loss {losses[0]:.6g}".split()
    assert [line.split()[2:] for line in table if line.split()[:1] == ["x1"]] == [["6]", "leaf", leaves["x1"]]]
    assert any("linear(float32[5, 6], x1, x2, activation='tanh')" in line for line in table)
    assert main([*asked, "--what", "backward"]) == 0
    program = capsys.readouterr().out
    assert "# x1  float32[8, 6]  encoder.trunk.0.weight" in program and "_, g_x1, g_x2 = rule_0(g_v1" in program
    for printed in (table, program.splitlines()):
        assert max(map(len, printed)) <= 100
    assert main([*asked, "--what", "dot"]) == 0
    dot = capsys.readouterr().out
    assert dot.startswith("digraph tape {") and dot.endswith("}\n") and '"x1" -> "v1";' in dot


def test_explain_shows_every_operation(capsys):
    for name, op in OPS.items():
        assert main(["explain", name]) == 0
        printed = capsys.readouterr().out
        assert max(map(len, printed.splitlines())) <= 100
        assert "".join(op.show().split()).replace("#", "") == "".join(printed.split()).replace("#", "")
    for name, backends, inputs in (("linear", list(entries("linear")), ["all inputs"]), ("multiply", [], ["x", "y"])):
        assert main(["explain", name, "--json"]) == 0
        described = json.loads(capsys.readouterr().out)
        assert (described["op"], described["formula"]) == (name, OPS[name].formula)
        assert list(described["backends"]) == backends and (described["forward"] is None) == bool(backends)
        assert [name for rule in described["vjp"] for name in rule["inputs"]] == inputs


def test_explain_of_other_steps_and_of_a_name_that_is_both(capsys, monkeypatch):
    class TwoPasses(models.get("vae")):
        name = "tanh"

        def compute_gradients(self, batch, *, generator):
            assert self.training
            gmcore.grad(self.loss(gmcore.tensor(batch), generator=generator)[0], list(self.parameters()))  # no pass
            super().compute_gradients(batch, generator=generator)
            return super().compute_gradients(batch, generator=generator)

    class NoPass(models.get("vae")):
        name = "closed"

        def compute_gradients(self, batch, *, generator):
            return models.Step(gmcore.tensor(0.0), {}, len(batch))

    for cls in (TwoPasses, NoPass):
        monkeypatch.setitem(models._registered, cls.name, cls)
    assert main(["explain", "tanh"]) == 2
    assert "'tanh' is a model and an operation; say --what tape or --what op" in capsys.readouterr().err
    assert main(["explain", "tanh", "--what", "op"]) == 0
    assert capsys.readouterr().out.startswith("<op tanh(x) -> out>")
    assert main(["explain", "tanh", *OWN[:2], *TINY, "--what", "tape"]) == 0
    assert capsys.readouterr().out.count("first step") == 2
    assert main(["explain", "closed", *OWN[:2], *TINY]) == 2
    assert "closed: its training step makes no backward pass" in capsys.readouterr().err


def test_doctor(capsys, monkeypatch):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["versions"]["numpy"] == np.__version__
    assert report["kernels"]["threading layer"] in ("omp", "tbb", "workqueue", "none (one thread)")
    assert "writable" in report["kernels"]["cache"]
    assert re.fullmatch(r"\d+ in [\d.]+ s", report["kernels"]["ever compiled"])
    assert report["kernels"]["last process"]
    assert report["optional packages"].keys() == EXTRAS.keys()
    assert report["GPU"]["state"] == "ready" and "compute capability" in report["GPU"]["cuda:0"]
    monkeypatch.setitem(EXTRAS, "app", ("no_such_package",))
    with machine(error=35):
        assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert 'lacks no_such_package: pip install "gmcore[app]"' in printed
    assert "there is no NVIDIA driver" in printed or has_gpu()


def test_kernels_are_tuned_on_a_gpu(capsys, monkeypatch):
    measured = configurations.Measurement("sum.triton", 1 << 20, (2e-6, 1e-6, float("inf")))
    monkeypatch.setattr(configurations, "tune", lambda names: iter([measured] if names == ("sum",) else []))
    assert main(["kernels", "--tune", "sum"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"sum.triton +1,048,576 +1 +2.0 1.0 inf", printed) and str(configurations.FILE) in printed.replace(
        "\n", ""
    )
    assert main(["kernels", "sum", "--tune", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"kernel": "sum.triton", "size": 1 << 20, "seconds": [2e-6, 1e-6, None], "best": 1}
    ]


@pytest.mark.skipif(has_gpu(), reason="asks the stand-in for CuPy")
def test_kernels_are_not_tuned_without_a_gpu(capsys):
    with machine(devices=0):
        assert main(["kernels", "--tune"]) == 2
    assert "are measured on a GPU: the driver sees no GPU" in capsys.readouterr().err


@pytest.fixture
def comparison(monkeypatch):
    """`gmcore bench` without peers, which would set PyTorch's flags for all tests, and without waiting."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for package in ("torch", "jax", "sklearn"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(compare, "TIMING", {"blocks": 1, "seconds": 0.001, "pause": 0.0})
    monkeypatch.setattr(bench, "measure_cpu", lambda *copied: Device("test", 1.0, 2.0, 3.0))


def test_bench_times_the_steps_it_is_asked_for(comparison, capsys):
    assert main(["bench", "small-op", "--json", "kept.json"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{peer}: not measured, since" in printed for peer in ("PyTorch", "torch.compile", "JAX"))
    assert "\nsmall-op\n8-element multiply, forward + backward\n" in printed and "vae-step" not in printed
    assert "\ngmcore, eager " in printed and max(map(len, printed.splitlines())) <= 100
    kept = json.loads(Path("kept.json").read_text())
    assert kept["device"]["copy_rate"] == 1.0 and "torch" not in kept["versions"]
    assert kept["cases"].keys() == {"small-op"}
    assert kept["cases"]["small-op"]["contenders"]["gmcore, eager"]["seconds"]["median"] > 0


def test_bench_runs_every_step_of_the_cpu_by_default(comparison, capsys, monkeypatch):
    for name, step in workloads.STEPS.items():
        monkeypatch.setitem(workloads.STEPS, name, step._replace(make=workloads.small_op))
    assert main(["bench"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line in workloads.STEPS] == list(workloads.CPU_STEPS)
    assert max(map(len, printed)) <= 100


def test_bench_measures_memory(comparison, capsys, monkeypatch):
    figures = {compare.CAPTURED: {"held": 3, "peak": 4}, compare.EAGER: {"held": 1, "peak": 2}}
    monkeypatch.setattr(memory, "_measure_apart", lambda name, contender: figures[contender])
    assert main(["bench", "vae-step", "--memory", "--json", "kept.json"]) == 0
    assert "vae-step            gmcore, eager" in capsys.readouterr().out
    assert json.loads(Path("kept.json").read_text())["memory"] == {"vae-step": figures}


@pytest.mark.parametrize(("suite", "name"), [(kernels, "total_norm"), (scaling, "vae-batch")])
def test_bench_runs_the_other_suites(comparison, capsys, monkeypatch, suite, name):
    kind = suite.__name__.rpartition(".")[2]
    monkeypatch.setattr(suite, "measure", lambda names: {n: "figures" for n in names})
    monkeypatch.setattr(bench, "describe_load", lambda: "a busy machine")
    assert main(["bench", f"--{kind}", name, "--json", "kept.json"]) == 0
    assert capsys.readouterr().err == "gmcore: warning: a busy machine\n"
    kept = json.loads(Path("kept.json").read_text())
    assert kept[kind] == {name: "figures"} and kept["threads"] >= 1
    assert kept.get("device", {}).get("copy_rate") == (1.0 if suite is kernels else None)
    assert main(["bench", f"--{kind}", "--json", "kept.json"]) == 0
    assert json.loads(Path("kept.json").read_text())[kind].keys() == suite.CASES.keys()
    assert main(["bench", f"--{kind}", name[:-1]]) == 2
    assert f"did you mean '{name}'" in capsys.readouterr().err
    assert main(["bench", f"--{kind}", "--memory"]) == 2


def test_bench_refuses_an_unknown_step_and_an_installation_without_source(comparison, capsys, monkeypatch):
    assert main(["bench", "small-op", "vea-step"]) == 2
    assert "unknown step 'vea-step'; did you mean 'vae-step'?" in capsys.readouterr().err
    monkeypatch.setattr(gmcore, "__file__", os.path.abspath("site-packages/gmcore/__init__.py"))
    assert main(["bench"]) == 2
    printed, errors = capsys.readouterr()
    assert not printed and len(errors.splitlines()) == 1 and "pip install -e '.[app,peers]' in a checkout" in errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["--versio"], "unknown option of gmcore '--versio'; did you mean '--version'?"),
        (["train", "vae", "--epoch", "3"], "unknown option of gmcore train '--epoch'; did you mean '--epochs'?"),
        (["train", "vae", "--epoch=3"], "did you mean '--epochs'?"),
        (["train", "vae", "iwae"], "unexpected 'iwae'"),
        (["train", "vae", "--epochs"], "--epochs: expected one argument"),
        (["train", "vae", "--epochs", "few"], "invalid int value: 'few'"),
        (["train", "vae", "--epochs", "0"], "epochs must be a positive integer, got 0"),
        (["train"], "name a model to train"),
        (["train", "iwea"], "unknown model 'iwea'; did you mean 'iwae'?"),
        (["train", "vae", "--data", "minst"], "unknown data set 'minst'; did you mean 'mnist'?"),
        (["train", "vae", "--data", "absent.npy"], "absent.npy"),
        (["train", "vae", "--data", "mnist", "--data-dir", "absent"], "data folder absent is not a folder"),
        (["train", "vae", "--device", "gpu"], "device 'gpu'; expected 'cpu', 'cuda' or 'cuda:0'"),
        (["train", "vae", "--set", "latent"], "--set latent: expected KEY=VALUE"),
        (["train", "vae", "--set", "latent_siz=2"], "did you mean 'latent_size'?"),
        (["train", "vae", "--set", "latent_size=0"], "latent_size must be a positive integer, got 0"),
        (["train", "iwae", "--set", "samples=0"], "samples must be a positive integer, got 0"),
        (["train", "vae", "--set", "latent_size=two"], "latent_size must be a positive integer, got 'two'"),
        (["train", "vae", "--data", ""], "unknown data set ''"),
        (["train", "vae", "--set", "learning_rate=abc"], "lr must be a number in [0, inf), got 'abc'"),
        (["train", "vae", "--set", "betas=3"], "betas must be two numbers in [0, 1), got 3"),
        (["train", "vae", "--set", "max_norm=abc"], "max_norm must be a number of at least 0, got 'abc'"),
        (["train", "vae", "--set", "schedule=[1]"], "unknown schedule '[1]'"),
        (["train", "vae", "--set", "optimizer=[1]"], "unknown optimizer '[1]'"),
        (["train", "vae", "--set", "activation=[1]"], "activation [1]; expected one of tanh"),
        (["train", "vae", "--set", "hidden_sizes=5"], "hidden_sizes must be several positive integers, got 5"),
        (["train", "char_rnn", "--data", __file__, "--set", "cell=[1]"], "cell [1]; expected one of lstm"),
        (["train", "char_rnn", "--data", __file__, "--set", "num_layers=a"], "num_layers must be a positive integer"),
        (["train", "char_rnn", "--data", __file__, "--set", "dropout=a"], "dropout must be in [0, 1], got 'a'"),
        (["train", "--resume", "absent"], "absent: not a run"),
        (["train", "--resume", "absent", "--seed", "3"], "seed: fixed by the run"),
        (["sample"], "the following arguments are required: RUN"),
        (["sample", "absent"], "absent: not a run"),
        (["evaluate", "absent"], "absent: not a run"),
        (["models", "va"], "did you mean 'vae'?"),
        (["explain"], "the following arguments are required: NAME"),
        (["explain", "iwea"], "unknown model or operation 'iwea'; did you mean 'iwae'?"),
        (["explain", "gausian_sample"], "did you mean 'gaussian_sample'?"),
        (["explain", "vae", "--what", "op"], "unknown operation 'vae'"),
        (["explain", "tanh", "--what", "dot"], "unknown model 'tanh'"),
        (["explain", "tanh", "--what", "tapes"], "invalid choice: 'tapes'"),
        (["explain", "tanh", "--batch-size", "3"], "--batch-size is for models; 'tanh' is an operation"),
        (["explain", "tanh", "--set", "a=3"], "--set is for models"),
        (["explain", "vae", "--batch-size", "0"], "batch_size must be a positive integer, got 0"),
        (["explain", "vae", "--set", "latent_siz=2"], "did you mean 'latent_size'?"),
        (["explain", "vae", "--data", "minst"], "did you mean 'mnist'?"),
        (["kernels", "gausian_sample"], "did you mean 'gaussian_sample'?"),
        (["bench", "--json", "vae-step"], "--json vae-step: expected a file that ends in .json"),
        (["bench", "--json", "absent/a.json"], "in a folder that exists"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys):
    assert main(arguments) == 2
    printed, errors = capsys.readouterr()
    (line,) = [line for line in errors.splitlines() if line]
    assert line.startswith("gmcore: error: ") and message in line and len(line) < 500
    assert not printed and not os.path.exists("runs")


@pytest.mark.parametrize(
    "array, message",
    [
        (np.full((20, 4), np.nan), "not finite"),
        (np.full((20, 4), 2.0), "not in [0, 1]"),
        (np.zeros((0, 4)), "(0, 4)"),
        (np.zeros(20), "(20,)"),
    ],
)
def test_bad_data(array, message, capsys):
    np.save("own.npy", array)
    assert main(["train", "vae", "--data", "own.npy"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and message in errors[0]
    assert not os.path.exists("runs")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train", "iwae", "--resume", "run"], "a run of model 'vae', expected 'iwae'"),
        (["train", "vae", "--out", "run"], "holds a run already; continue it with --resume run"),
        (["sample", "run", "-n", "0"], "-n must be a positive integer, got 0"),
        (["sample", "run", "--out", "a.jpg"], "ends in .png or .npy"),
        (["sample", "run", "--out", "absent/a.npy"], "cannot be written"),
        (["evaluate", "run", "--samples", "0"], "samples must be a positive integer, got 0"),
        (["evaluate", "run", "--split", "tests"], "unknown split 'tests'; did you mean 'test'?"),
    ],
)
def test_bad_use_of_a_run(run, arguments, message, capsys):
    before = {path.name: path.read_bytes() for path in Path(run).iterdir()}
    assert main(arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and message in errors[0]
    assert {path.name: path.read_bytes() for path in Path(run).iterdir()} == before


def test_samples_that_cannot_be_written_leave_the_old_ones(run, monkeypatch, capsys):
    assert main(["sample", run, "-n", "3", "--out", "samples.npy"]) == 0
    before = Path("samples.npy").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert main(["sample", run, "-n", "5", "--out", "samples.npy"]) == 2
    assert "samples.npy: cannot be written (No space left on device)" in capsys.readouterr().err
    assert Path("samples.npy").read_bytes() == before


def test_checkpoint_of_another_model(run, capsys):
    main(["train", "rbm", "--epochs", "1", "--out", "another", "--set", "hidden_size=2", "--set", "eval_samples=2"])
    Path(run, "checkpoint.safetensors").write_bytes(Path("another/checkpoint.safetensors").read_bytes())
    capsys.readouterr()
    for command in (["sample", run], ["evaluate", run], ["train", "--resume", run]):
        assert main(command) == 2
        assert "a checkpoint of rbm" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": "x"}, "lacks seed, or has another kind of value there"),
        ({"data": 5}, "lacks data"),
        ({"data": {}}, "lacks data.data_dir"),
        ({"recipe": 5}, "lacks recipe"),
        ({"device": "tpu"}, "device 'tpu'"),
    ],
)
def test_damaged_config(run, change, message, capsys):
    path = Path(run, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert main(["train", "--resume", run]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and message in errors[0]


@pytest.mark.parametrize("line", [b"5\n", b'{"a": 1}\n', b"\xff\n"])
def test_damaged_last_line_of_metrics(run, line):
    path = Path(run, "metrics.jsonl")
    before = path.read_bytes()
    path.write_bytes(before + line)
    assert main(["train", "--resume", run]) == 0
    assert path.read_bytes().splitlines()[0] == before.splitlines()[0]


def test_damaged_checkpoint(run, capsys):
    path = Path(run, "checkpoint.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    for command in (["sample", run], ["evaluate", run], ["train", "--resume", run]):
        assert main(command) == 2
        assert "truncated" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["rich", "matplotlib"])
def test_a_missing_package_is_named_with_its_remedy(package, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["train", "vae"]) == 2
    assert f'needs {package}, which is not installed: pip install "gmcore[app]"' in capsys.readouterr().err


def test_settings_are_json_or_words():
    words = ["a=1", "b=0.5", "c=[1, 2]", "d=none", "e=null", "f=true", "g=x=y", "h="]
    values = {"a": 1, "b": 0.5, "c": [1, 2], "d": "none", "e": None, "f": True, "g": "x=y", "h": ""}
    assert parse_settings(words) == values
    for bad in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(ArgumentError):
            parse_settings(bad)


def test_ctrl_c_where_nothing_is_trained(run, monkeypatch, capsys):
    monkeypatch.setattr("gmcore.evaluation.evaluate", lambda *arguments, **options: signal.raise_signal(signal.SIGINT))
    assert main(["evaluate", run]) == 130
    assert capsys.readouterr().err == "gmcore: interrupted\n"


def test_ctrl_c_ends_with_status_130_and_how_to_resume():
    command = [sys.executable, "-m", "gmcore", "train", "vae", "--data", "own.npy", *TINY]
    command += ["--epochs", "1000000", "--out", "run"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while not os.path.exists("run/metrics.jsonl") and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "gmcore: interrupted, and saved; continue with: gmcore train --resume run"
    assert "Traceback" not in errors
    reached = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])["epoch"]
    assert main(["train", "--resume", "run", "--epochs", str(reached + 2)]) == 0


@pytest.mark.slow
@pytest.mark.alone
def test_a_user_waits_for_compilers_once(monkeypatch):
    monkeypatch.setenv("GMKERNELS_CACHE", str(Path("cache").resolve()))

    def waited(*command):
        for words in (command, ("doctor", "--json")):
            done = subprocess.run([sys.executable, "-m", "gmcore", *words], check=True, capture_output=True, text=True)
        last = json.loads(done.stdout)["kernels"]["last process"]
        return [float(n) for n in re.fullmatch(r"compiled (.+) in (.+) s, loaded (.+) in (.+) s", last).groups()]

    compiled, compiling, *_ = waited("train", "iwae", "--epochs", "1", "--out", "first")
    assert compiled > 0 and compiling <= 30
    compiled, compiling, loaded, loading = waited("train", "iwae", "--epochs", "1", "--out", "second")
    assert compiled == 0 and loaded > 0 and compiling + loading <= 1


def test_a_reader_that_leaves_is_no_error(run):
    process = subprocess.run(
        f"{sys.executable} -m gmcore kernels --json | head -1", shell=True, capture_output=True, text=True
    )
    assert process.stdout == "[\n" and not process.stderr
