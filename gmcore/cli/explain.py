"""Show what the engine makes of a model or of an operation.

Of a model: the tape of the first training step on a data set, with the kernels that ran and the lines that called
them; the gradient program of its backward pass; or the tape for Graphviz. Of an operation: its formula, its kernels and
the source of its derivative.
"""

from __future__ import annotations

import argparse
import textwrap
from typing import TYPE_CHECKING, Any

from gmcore.errors import ArgumentError, unknown_name

if TYPE_CHECKING:
    from gmcore.explain import Pass
    from gmcore.op import Op

OF_A_MODEL = ("tape", "backward", "dot")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", help="a model that `gmcore models` lists, or an operation of gmcore.ops"
    )
    parser.add_argument(
        "--what", choices=(*OF_A_MODEL, "op"),
        help="of a model its tape (the default), its gradient program, or its tape for `dot -Tsvg`; or an operation",
    )  # fmt: skip
    parser.add_argument("--data", metavar="NAME", help="a data set by name, or a .npy or .npz file (default: digits)")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of data sets, or of the set's own files")
    parser.add_argument("--batch-size", type=int, metavar="N", help="examples in a batch (default: the model's recipe)")
    parser.add_argument("--seed", type=int, metavar="N", help="all that is random follows from it (default: 0)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
        help="a setting of the model or its recipe (see `gmcore models MODEL`), e.g. latent_size=10",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print all of it as JSON, for programs")


def run(arguments: argparse.Namespace) -> None:
    from gmcore import models, ops  # noqa: F401  (declares the operations)
    from gmcore.op import OPS

    name, what = arguments.name, arguments.what
    kinds = {"model": name in models.names(), "op": name in OPS}
    if what is None:
        if not any(kinds.values()):
            raise unknown_name("model or operation", name, [*models.names(), *OPS])
        if all(kinds.values()):
            raise ArgumentError(f"{name!r} is a model and an operation; say --what tape or --what op")
        what = "op" if kinds["op"] else "tape"
    if what == "op":
        if not kinds["op"]:
            raise unknown_name("operation", name, OPS)
        _explain_op(OPS[name], arguments)
    else:
        _explain_model(what, arguments)


# -- an operation ---------------------------------------------------------------------------------------------
def _explain_op(op: Op, arguments: argparse.Namespace) -> None:
    from gmcore.cli import output
    from gmcore.explain import describe

    given = {"--data": arguments.data, "--data-dir": arguments.data_dir, "--batch-size": arguments.batch_size}
    given |= {"--seed": arguments.seed, "--set": arguments.settings or None}
    for option, value in given.items():
        if value is not None:
            raise ArgumentError(f"{option} is for models; {op.name!r} is an operation")
    if arguments.json:
        output.print_json(describe(op))
    else:
        _print_code(op.show(), comment="    ")


# -- a model --------------------------------------------------------------------------------------------------
def _explain_model(what: str, arguments: argparse.Namespace) -> None:
    from gmcore import explain
    from gmcore.cli import output
    from gmcore.cli.train import parse_settings
    from gmcore.random import Generator
    from gmcore.streams import drawing_from, stream_seed
    from gmcore.train import assemble

    settings = parse_settings(arguments.settings)
    if arguments.batch_size is not None:
        settings["batch_size"] = arguments.batch_size
    seed = arguments.seed or 0
    model, recipe, dataset = assemble(arguments.name, arguments.data or "digits", arguments.data_dir, seed, settings)
    batch = model.train().batches(dataset, recipe, seed, 1)[0]
    noise = Generator(stream_seed(seed, "noise"))
    with explain.passes() as passes:
        step = drawing_from(noise, model.compute_gradients, batch, generator=noise)
    if not passes:
        raise ArgumentError(f"{model.name}: its training step makes no backward pass, so there is no tape to show")
    parameters = {id(p): name for name, p in model.named_parameters()}
    if arguments.json:
        output.print_json(
            {
                "model": model.name,
                "data": dataset.name,
                "batch_size": recipe.batch_size,
                "seed": seed,
                "loss": step.loss.item(),
                "passes": [_as_json(each, parameters) for each in passes],
            }
        )
        return
    for each in passes:
        if what == "dot":
            print(each.tape.to_dot())
            continue
        about = f"{model.name} on {dataset.name}, batch of {step.examples}, seed {seed}, loss {step.loss.item():.6g}"
        output.print_field("first step", about)
        _print_tape(each, parameters) if what == "tape" else _print_program(each, parameters)


def _leaves(each: Pass, parameters: dict[int, str]) -> list[tuple[str, str, str]]:
    """Name on the tape, dtype and shape, and name in the model of the leaves."""
    from gmcore.explain import shown

    return [
        (name, "gone", "") if leaf is None else (name, shown((leaf.shape, leaf.dtype)), parameters.get(id(leaf), ""))
        for name, leaf in each.tape.leaves.items()
    ]


def _print_tape(each: Pass, parameters: dict[int, str]) -> None:
    from gmcore.cli import output
    from gmcore.explain import short, shown

    rows = [(name, shape, "", f"leaf {parameter}") for name, shape, parameter in _leaves(each, parameters)]
    for entry in each.tape.entries:
        where = ", ".join([*entry.note.kernels, short(entry.note.line)]) if entry.note else ""
        for i, (name, meta) in enumerate(zip(entry.names, entry.outputs, strict=True)):
            rows.append((name, shown(meta), "" if i else entry.saves, "" if i else f"{entry.call}\n{where}"))
    output.print_table(("value", "shape", "saves", "computed by"), rows)
    print(each.tape.total)


def _print_program(each: Pass, parameters: dict[int, str]) -> None:
    for leaf in _leaves(each, parameters):
        print(f"# {'  '.join(leaf)}")
    _print_code(str(each.program), comment="    # ")


def _print_code(text: str, comment: str) -> None:
    """Print lines of code; of those too wide a comment at the end goes to a line of its own, the rest is wrapped."""
    from gmcore.cli.output import WIDTH

    for line in text.splitlines():
        code, _, remark = line.partition("  # ") if len(line) > WIDTH else (line, "", "")
        following = "#     " if line.startswith("#") else " " * (len(line) - len(line.lstrip()) + 4)
        for part, first, others in ((code, "", following), (remark, comment, comment)):
            for piece in textwrap.wrap(part, WIDTH, initial_indent=first, subsequent_indent=others,
                                       break_long_words=False, break_on_hyphens=False):  # fmt: skip
                print(piece)


def _as_json(each: Pass, parameters: dict[int, str]) -> dict[str, Any]:
    from gmcore.explain import shown

    tape = each.tape
    return {
        "leaves": [dict(zip(("name", "shape", "parameter"), leaf, strict=True)) for leaf in _leaves(each, parameters)],
        "saved_bytes": tape.saved_bytes,
        "tape": [
            {
                "values": dict(zip(entry.names, map(shown, entry.outputs), strict=True)),
                "op": entry.node.op.name,
                "call": entry.call,
                "saved_bytes": entry.saved_bytes,
                "kernels": list(entry.note.kernels) if entry.note else [],
                "line": entry.note.line if entry.note else None,
            }
            for entry in tape.entries
        ],
        "backward": [
            {
                "op": statement.node.op.name,
                "targets": list(statement.targets),
                "source": statement.source,
                "gradients": [None if meta is None else shown(meta) for meta in statement.gradients],
                "ran": list(statement.ran),
            }
            for statement in each.program.statements
        ],
    }
