"""Train a model on a data set and save it as a run; or continue a run."""

from __future__ import annotations

import argparse
import json
from typing import Any

from gmcore.errors import ArgumentError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a name that `gmcore models` lists")
    parser.add_argument("--data", metavar="NAME", help="its name, or a .npy, .npz or text file (default: digits)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of data sets, or of the set's own files")
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs in all (default: the model's recipe)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images in a batch (default: the model's recipe)")
    parser.add_argument("--seed", type=int, metavar="N", help="all that is random follows from it (default: 0)")
    parser.add_argument("--device", metavar="NAME", help="where to train: cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("--out", metavar="RUN", help="folder of the run (default: runs/MODEL-DATA-seedN)")
    parser.add_argument("--resume", metavar="RUN", help="continue this run, exactly where it stopped")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="a setting of the model or its recipe (see `gmcore models MODEL`), e.g. latent_size=10",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result as JSON, for programs")


def parse_settings(words: list[str]) -> dict[str, Any]:
    """Settings from ``key=value`` words; values are JSON, or strings where they are not.

    Raises
    ------
    ArgumentError : a word without a ``=`` or a key, or a key given twice.
    """
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not key or not equals:
            raise ArgumentError(f"--set {word}: expected KEY=VALUE")
        if key in settings:
            raise ArgumentError(f"--set {word}: {key} is set twice")
        try:
            settings[key] = json.loads(text)
        except ValueError:
            settings[key] = text
    return settings


def run(arguments: argparse.Namespace) -> None:
    from gmcore.cli import output
    from gmcore.train import fit

    settings = parse_settings(arguments.settings)
    with output.Progress() as progress:
        trained = fit(
            arguments.model,
            arguments.data,
            data_dir=arguments.data_dir,
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            out=arguments.out,
            resume=arguments.resume,
            device=arguments.device,
            settings=settings,
            progress=progress,
        )
    if arguments.json:
        output.print_json({**trained.result, "run": str(trained.path)})
        return
    output.print_result(trained.result)
    output.print_field("samples", trained.path / trained.model.samples_file)
    output.print_field("run", trained.path)
