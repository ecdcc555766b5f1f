"""The command line: ``gmcore COMMAND``.

Each command is a module with its options (`add_arguments`) and what it does (`run`), which imports what it needs:
the help and a mistyped option are answered at once. Bad input ends with status 2 and one line, Ctrl-C with 130.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import gmcore
from gmcore.cli import bench, doctor, evaluate, explain, kernels, models, sample, train
from gmcore.errors import ArgumentError, GmcoreError, unknown_name
from gmkernels import KernelError

COMMANDS = {
    "train": (train, "train a model on a data set, or continue a run"),
    "sample": (sample, "draw samples from the model of a run"),
    "evaluate": (evaluate, "measure the bound of a run's model on a split"),
    "models": (models, "list the models and their settings"),
    "kernels": (kernels, "list the kernels and their backends, or explain one"),
    "explain": (explain, "show the tape and gradient program of a model's training step, or an operation"),
    "bench": (bench, "time training steps beside PyTorch, JAX and scikit-learn, from a checkout"),
    "doctor": (doctor, "report versions, threads, caches and optional packages"),
}


class _Parser(argparse.ArgumentParser):
    """A parser that raises, instead of printing its usage and ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message} (see {self.prog} --help)")


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    about = "Train deep generative models and see what they learned."
    parser = _Parser(prog="gmcore", description=about, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"gmcore {gmcore.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    commands = {}
    for name, (module, summary) in COMMANDS.items():
        commands[name] = subparsers.add_parser(name, help=summary, description=module.__doc__, allow_abbrev=False)
        module.add_arguments(commands[name])
    return parser, commands


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser, commands = _parser()
    if argv and not argv[0].startswith("-") and argv[0] not in commands:
        raise unknown_name("command", argv[0], commands)
    arguments, extra = parser.parse_known_args(argv)
    if extra:
        of = commands.get(arguments.command, parser)
        unknown = [word for word in extra if word.startswith("-")]
        if unknown:
            raise unknown_name(f"option of {of.prog}", unknown[0].partition("=")[0], of._option_string_actions)
        of.error(f"unexpected {' '.join(extra)!r}")
    if arguments.command is None:
        parser.print_help()
    return arguments


def _warn(message: Warning | str, *details: Any, **more: Any) -> None:
    print(f"gmcore: warning: {message}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0, 2 for bad input, 130 after Ctrl-C."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            arguments = _parse(sys.argv[1:] if argv is None else argv)
            if arguments.command is not None:
                COMMANDS[arguments.command][0].run(arguments)
            sys.stdout.flush()
        return 0
    except (GmcoreError, KernelError) as error:
        print(f"gmcore: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"gmcore: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has gone; what is left in the buffer has nowhere to go either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


__all__ = ["COMMANDS", "main"]
