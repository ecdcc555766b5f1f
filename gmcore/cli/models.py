"""List the models; or show one: its source, what it computes, its recipe and its settings."""

from __future__ import annotations

import argparse
import dataclasses
import inspect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="show this one")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(arguments: argparse.Namespace) -> None:
    from gmcore import models
    from gmcore.cli import output

    names = models.names() if arguments.model is None else [arguments.model]
    classes = [models.get(name) for name in names]
    if arguments.json:
        output.print_json(
            [
                {
                    "name": cls.name,
                    "summary": cls.summary,
                    "source": cls.source,
                    "recipe": dataclasses.asdict(cls.recipe),
                    "settings": list(cls.settings),
                }
                for cls in classes
            ]
        )
    elif arguments.model is None:
        output.print_table(("model", "summary"), [(c.name, c.summary) for c in classes])
        print("gmcore models MODEL: its source, what it computes, its recipe and settings")
    else:
        (cls,) = classes
        print(f"{cls.name}: {cls.summary}\n{cls.source}\n\n{inspect.getdoc(cls)}\n")
        defaults = inspect.signature(cls).parameters
        settings = [(name, defaults[name].default if name in defaults else "") for name in cls.settings]
        recipe = dataclasses.asdict(cls.recipe).items()
        rows = [(name, str(value), "model") for name, value in settings]
        output.print_table(("--set", "default", "of"), [*rows, *[(name, str(v), "recipe") for name, v in recipe]])
