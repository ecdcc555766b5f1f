"""Published figures: their recipes fit the models, and a run tells what it reached and where it deviates."""

import json

import numpy as np
import pytest

from benchmarks import published, report
from gmcore.models.latent.vae import VAE
from gmcore.train import assemble, fit

SMALL = published.Figure(
    "VAE, digits",
    -20.0,
    "none",
    "vae",
    "digits",
    {"latent_size": 2, "hidden_sizes": [8], "epochs": 1, "batch_size": 200, "eval_samples": 2},
    ("smaller than anybody's",),
)


@pytest.mark.parametrize("name", published.FIGURES)
def test_the_settings_are_those_of_the_model(name, tmp_path):
    figure = published.FIGURES[name]
    text, images = tmp_path / "text.txt", tmp_path / "images.npy"
    text.write_text("to be or not to be " * 2000)
    np.save(images, np.random.default_rng(0).integers(0, 2, (100, 28, 28)).astype(np.float32))
    data = text if figure.model == "char_rnn" else images
    model, recipe, _ = assemble(figure.model, data, None, 0, figure.settings)
    used = {**json.loads(json.dumps(model.config)), **vars(recipe)}
    assert {key: used[key] for key in figure.settings} == dict(figure.settings)


@pytest.mark.slow
def test_a_run_is_written_with_its_deviations_and_becomes_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(published.FIGURES, "vae", SMALL)
    monkeypatch.setitem(published.FIGURES, "iwae", SMALL._replace(title="again", split="valid"))
    monkeypatch.setattr(published, "device_name", lambda device: f"a-{device}")
    published.main(["vae", "--epochs", "2", "--out", str(tmp_path / "run")], tmp_path)
    published.main(["iwae", "--resume", str(tmp_path / "run")], tmp_path)
    kept = json.loads((tmp_path / "a-cpu-published.json").read_text())
    vae, again = kept["published"]["vae"], kept["published"]["iwae"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert vae["reached"] == lines[-1]["bound"] and vae["steps"] == lines[1]["step"] == again["steps"]
    assert again["reached"] == lines[1]["valid_bound"] != vae["reached"]
    assert vae["deviations"] == ["smaller than anybody's", "epochs 2 in place of 1"]
    assert "deviation: epochs 2 in place of 1" in capsys.readouterr().out
    assert f"| VAE, digits | -20 | {vae['reached']:.4g} (test) | 0 min, {vae['steps']} steps | " in report.table(kept)


@pytest.mark.slow
def test_a_figure_is_computed_on_a_gpu(tmp_path, monkeypatch):
    """The VAE's recipe, captured, at small sizes."""
    np.save(tmp_path / "images.npy", (np.random.default_rng(0).random((24, 28, 28)) < 0.2).astype(np.float32))
    figure = published.FIGURES["vae"]
    small = {"latent_size": 2, "hidden_sizes": [8], "eval_samples": 2, "batch_size": 8, "epochs": 1}
    of_images = figure._replace(data=str(tmp_path / "images.npy"), settings={**figure.settings, **small})
    monkeypatch.setitem(published.FIGURES, "vae", of_images)
    published.main(["vae", "--device", "cuda", "--out", str(tmp_path / "run")], tmp_path)
    file = tmp_path / f"{published.device_name('cuda')}-published.json"
    found = json.loads(file.read_text())["published"]["vae"]
    assert found["steps"] >= 2 and np.isfinite(found["reached"]) and found["deviations"] == list(figure.deviations)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["device"] == "cuda:0"


def test_a_run_goes_on_as_it_was_begun(capsys):
    with pytest.raises(SystemExit):
        published.main(["vae", "--resume", "run", "--epochs", "3"])
    assert "--resume goes on with a run as it was begun" in capsys.readouterr().err


def test_files_are_named_after_the_device():
    assert published.device_name("cpu").startswith("cpu-")
    assert published.device_name("cuda") == published.device_name("cuda:0") != published.device_name("cpu")


def test_an_annealed_figure_is_shown_with_its_interval():
    found = {"title": "RBM", "published": -86.34, "split": "test", "reached": -86.5, "steps": 10, "training_seconds": 0}
    found |= {"deviations": [], "test": {"log_z": 450.0, "log_z_interval": [449.75, 450.5], "log_z_by": "annealing"}}
    assert published.reached(found) == "-86.5 (95 %: -87 to -86.25)"
    assert "| -86.34 | -86.5 (95 %: -87 to -86.25) (test) |" in report.table({"published": {"rbm": found}})
    found["test"]["log_z_by"] = "enumeration"
    assert published.reached(found) == "-86.5"


@pytest.mark.parametrize(
    "words, message",
    [
        (["rbm", "--device", "tpu"], "tpu"),
        (["rbm", "--epochs", "0"], "epochs"),
        (["rbm", "--resume", "{run}"], "a run of model 'vae', expected 'rbm'"),
        (["vae", "--resume", "{run}/nothing"], "not a run"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(published.FIGURES, "rbm", SMALL._replace(model="rbm", settings={"hidden_size": 2}))
    np.save(tmp_path / "rows.npy", np.eye(12, 4, dtype=np.float32))
    fit(VAE(4, 1, (2,)), tmp_path / "rows.npy", epochs=1, out=tmp_path)
    with pytest.raises(SystemExit) as stopped:
        published.main([word.replace("{run}", str(tmp_path)) for word in words], tmp_path)
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and line.count("\n") == 1 and message in line
    assert line.startswith("python -m benchmarks.published: error: ")
