"""Published figures, computed anew: `python -m benchmarks.published NAME [--device cuda]`.

Each of `FIGURES` is a number of a paper, and the training and evaluation that should give it. The command trains by
`gmcore.fit`, captured, and writes what was reached, after how long, and every deviation from the paper's recipe, those
of the command line included, into `benchmarks/results/<device>-published.json`. A run that was interrupted goes on with
--resume.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gmcore
from gmcore.cli.output import Progress
from gmcore.device import cupy, gpu_number
from gmcore.errors import GmcoreError
from gmcore.run import read_config, recipe_of
from gmcore.train import Run, fit
from gmkernels import KernelError

RESULTS = Path(__file__).parent / "results"


class Figure(NamedTuple):
    """A number of a paper, and how it is computed here."""

    title: str
    published: float
    """In the sign and the unit of the model's figure: larger is better."""
    source: str
    model: str
    data: str
    settings: Mapping[str, Any]
    """Of the model and its recipe, where they are not the defaults."""
    deviations: tuple[str, ...]
    """From the paper's recipe."""
    split: str = "test"
    """Whose figure is compared."""


_BURDA = "Burda, Grosse & Salakhutdinov, ICLR 2016, table 1"
_STOCHASTIC_LAYER = {"latent_size": 50, "hidden_sizes": [200, 200], "activation": "tanh", "eps": 1e-4,
                     "batch_size": 20, "epochs": 3280, "schedule": "iwae", "binarize": "dynamic",
                     "eval_samples": 5000}  # fmt: skip
_OF_BURDA = (
    "Adam's beta1 is 0.9; the authors' code has 0.99, and starts the second moment at 1",
    "50,000 training images; the authors' code has 59,600",
)

FIGURES: dict[str, Figure] = {
    "rbm": Figure(
        "RBM, 500 hidden units, binarised MNIST",
        -86.34,
        "Salakhutdinov & Murray, ICML 2008, table 1 (CD-25)",
        "rbm",
        "binarized-mnist",
        {"hidden_size": 500, "steps": 25, "chains": 100, "temperatures": 14_500, "eval_samples": 100,
         "batch_size": 100, "epochs": 250, "learning_rate": 0.01, "schedule": "inverse-250", "momentum": 0.9,
         "nesterov": True, "weight_decay": 4e-4, "binarize": "none"},
        (
            "PCD-25 with 100 chains; the paper has CD-25",
            "50,000 training images in one fixed binarisation; the paper has 60,000",
            "250 epochs of batches of 100, a rate that falls from 0.01 to 0.001 as 1 / (1 + epoch / 28), Nesterov's "
            "momentum of 0.9 and a penalty of 2e-4 |W|^2: not the paper's, which does not print its own, but those of "
            "a later program (natural_bm) for the same figure",
            "that program trains on grey values as probabilities, lowers the rate at each step, and warms its momentum "
            "up and at last down; here it is constant, and the rate falls from epoch to epoch",
        ),
    ),
    "iwae": Figure(
        "IWAE, k = 50, one stochastic layer, MNIST binarised anew in each epoch",
        -84.78,
        _BURDA,
        "iwae",
        "mnist",
        {**_STOCHASTIC_LAYER, "samples": 50},
        _OF_BURDA,
    ),
    "vae": Figure(
        "VAE, one stochastic layer, MNIST binarised anew in each epoch",
        -86.76,
        _BURDA,
        "vae",
        "mnist",
        {**_STOCHASTIC_LAYER, "samples": 1},
        (*_OF_BURDA, "the divergence from the prior is in closed form, where the authors' code draws it"),
    ),
    "char-rnn": Figure(
        "LSTM language model of characters, 2 x 512, tiny Shakespeare, nats per character",
        -1.395,
        "Karpathy, char-rnn, 2015: validation loss of the checkpoint that its README names, after 30 epochs",
        "char_rnn",
        "tinyshakespeare",
        {"cell": "lstm", "hidden_size": 512, "num_layers": 2, "dropout": 0.5, "sequence_length": 100,
         "batch_size": 50, "epochs": 30},
        (
            "sizes, dropout and length of the excerpts are not printed with that checkpoint",
            "Adam in place of RMSprop",
            "weights begin within 1 / sqrt(512), where char-rnn has 0.08, and forget biases of 1",
            "90 % of the text are for training and 5 % for validation; char-rnn has 95 and 5",
            "the whole gradient is clipped to norm 5, where char-rnn clips its elements",
        ),
        "valid",
    ),
}  # fmt: skip


def compute(name: str, chosen: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Train and evaluate as a figure asks, and tell what was reached.

    Parameters
    ----------
    name : of `FIGURES`.
    chosen : settings in place of the figure's; each is a deviation.
    options : of `gmcore.fit`: device, data_dir, out, resume, progress.
    """
    figure = FIGURES[name]
    if options.get("resume"):
        run = fit(figure.model, **options)
    else:
        run = fit(figure.model, figure.data, settings={**figure.settings, **chosen}, **options)
    return describe(figure, run)


def describe(figure: Figure, run: Run) -> dict[str, Any]:
    """What a run has reached beside the figure that it is to reach."""
    config = read_config(run.path)
    used = {**config["config"], **vars(recipe_of(config))}
    changed = [f"{key} {used[key]} in place of {value}" for key, value in figure.settings.items() if used[key] != value]
    last = run.metrics[-2]  # of the last epoch; after it comes the test split
    reached = last["valid_bound"] if figure.split == "valid" else run.result["bound"]
    return {
        "title": figure.title,
        "published": figure.published,
        "source": figure.source,
        "split": figure.split,
        "reached": reached,
        "deviations": [*figure.deviations, *changed],
        "steps": last["step"],
        "training_seconds": last["seconds"],
        "evaluation_seconds": run.result["seconds"],
        "test": run.result,
        "recipe": {key: used[key] for key in sorted(used)},
        "gmcore": gmcore.__version__,
    }


def reached(found: Mapping[str, Any]) -> str:
    """The figure that a run reached, with the interval of confidence that an annealed log Z leaves it."""
    test = found["test"]
    if test.get("log_z_by") != "annealing":
        return f"{found['reached']:.4g}"
    low, high = (found["reached"] + test["log_z"] - end for end in reversed(test["log_z_interval"]))
    return f"{found['reached']:.4g} (95 %: {low:.4g} to {high:.4g})"


def device_name(device: str) -> str:
    """What files of results are named after: ``"nvidia-h200"``, ``"cpu-2core"``."""
    number = gpu_number(device)
    if number is None:
        return f"cpu-{os.cpu_count()}core"
    name = cupy().cuda.runtime.getDeviceProperties(number)["name"]
    return name.decode().lower().replace(" ", "-")


def main(argv: Sequence[str] | None = None, results: Path = RESULTS) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.published", description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=FIGURES)
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of data sets")
    parser.add_argument("--epochs", type=int, metavar="N", help="a deviation; default: the recipe's")
    parser.add_argument("--batch-size", type=int, metavar="N", help="a deviation; default: the recipe's")
    parser.add_argument("--out", metavar="RUN", help="folder of the run")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run")
    arguments = parser.parse_args(argv)
    given = {"epochs": arguments.epochs, "batch_size": arguments.batch_size}
    if arguments.resume and any(value is not None for value in (*given.values(), arguments.out)):
        parser.error("--resume goes on with a run as it was begun: no --epochs, --batch-size or --out beside it")
    try:
        with Progress() as progress:
            found = compute(
                arguments.name,
                {key: value for key, value in given.items() if value is not None},
                device=arguments.device,
                data_dir=arguments.data_dir,
                out=arguments.out,
                resume=arguments.resume,
                progress=progress,
            )
    except (GmcoreError, KernelError) as error:
        parser.exit(2, f"{parser.prog}: error: {' '.join(str(error).split())}\n")
    path = results / f"{device_name(arguments.device)}-published.json"
    figures = json.loads(path.read_text())["published"] if path.exists() else {}
    path.write_text(json.dumps({"published": figures | {arguments.name: found}}, indent=1) + "\n")
    print(
        f"{found['title']}: {reached(found)}, published {found['published']:.4g}; "
        f"{found['training_seconds']:.0f} s of training with validation, {found['evaluation_seconds']:.0f} s of test"
    )
    print("\n".join(f"  deviation: {deviation}" for deviation in found["deviations"]))
    print(f"written to {path}")


if __name__ == "__main__":
    main()
