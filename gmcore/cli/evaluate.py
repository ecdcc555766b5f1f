"""Measure the importance-weighted bound on log p(x) of a run's model, averaged over a split."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="RUN", help="folder of a run")
    parser.add_argument("--split", default="test", metavar="NAME", help="train, valid or test (default: test)")
    parser.add_argument("--samples", type=int, metavar="K", help="importance samples an image (default: the recipe's)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the samples (default: the run's)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--data-dir", metavar="DIR", help="where the data set is now, if not where it was")
    parser.add_argument("--device", metavar="NAME", help="where to compute it: cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(arguments: argparse.Namespace) -> None:
    from gmcore.cli import output
    from gmcore.evaluation import evaluate

    with output.Progress() as progress:
        result = evaluate(
            arguments.path,
            split=arguments.split,
            samples=arguments.samples,
            seed=arguments.seed,
            limit=arguments.limit,
            data_dir=arguments.data_dir,
            device=arguments.device,
            progress=progress,
        )
    if arguments.json:
        output.print_json(result)
    else:
        output.print_result(result)
