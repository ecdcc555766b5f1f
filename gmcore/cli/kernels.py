"""List the kernels and the backends that have them; or explain one; or measure their launch configurations on a GPU."""

from __future__ import annotations

import argparse
import importlib
import math
import pkgutil
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("op", nargs="?", metavar="OP", help="explain this one")
    parser.add_argument(
        "--tune",
        action="store_true",
        help="measure launch configurations on this GPU (of OP or all) and keep the fastest",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(arguments: argparse.Namespace) -> None:
    import gmkernels
    from gmcore.cli import output
    from gmcore.errors import unknown_name
    from gmkernels.registry import BACKENDS

    for family in pkgutil.iter_modules(gmkernels.__path__, "gmkernels."):
        if family.ispkg:
            importlib.import_module(family.name)  # registers its kernels
    if arguments.tune:
        _tune(arguments.op, arguments.json)
        return
    specs = dict(sorted(gmkernels.specs().items(), key=lambda item: (item[1].family, item[0])))
    if arguments.op is not None and arguments.op not in specs:
        raise unknown_name("kernel", arguments.op, specs)
    chosen = list(specs.values()) if arguments.op is None else [specs[arguments.op]]
    dtypes = {s.name: {b: list(e.dtypes) for b, e in gmkernels.entries(s).items()} for s in chosen}
    if arguments.json:
        fields = ("name", "family", "inputs", "outputs", "formula", "source")
        described = [{**{f: getattr(s, f) for f in fields}, "backends": dtypes[s.name]} for s in chosen]
        output.print_json(described)
    elif arguments.op is None:
        short = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"}
        rows = []
        for spec in chosen:
            cells = [" ".join(short.get(d, d) for d in dtypes[spec.name].get(b, ["-"])) for b in BACKENDS]
            rows.append((spec.name, *cells, spec.formula))
        output.print_table(("kernel", *BACKENDS, "formula"), rows)
    else:
        _explain(chosen[0], dtypes[arguments.op])


def _tune(op: str | None, as_json: bool) -> None:
    """Measure the candidates of the kernels of an operation or family, or of all, and print their times."""
    from gmcore.cli import output
    from gmkernels import configurations

    found = list(configurations.tune(names=() if op is None else (op,)))
    if as_json:
        output.print_json([
            {**m._asdict(), "seconds": [s if s < math.inf else None for s in m.seconds], "best": m.best} for m in found
        ])  # fmt: skip
        return
    rows = [
        (m.kernel, f"{m.size:,}", "-" if m.best is None else str(m.best), " ".join(f"{1e6 * s:.1f}" for s in m.seconds))
        for m in found
    ]
    output.print_table(("kernel", "size", "best", "us by candidate"), rows)
    print(f"\nwritten to {configurations.FILE}")


def _explain(spec: Any, dtypes: dict[str, list[str]]) -> None:
    """Print a kernel's contract, and which backend its largest example would run on."""
    import numpy as np

    import gmkernels
    from gmcore.cli.output import print_field

    print_field("kernel", f"{spec.name}({', '.join(spec.inputs)}) -> {', '.join(spec.outputs)}")
    for name in ("family", "formula", "source"):
        print_field(name, getattr(spec, name))
    for backend, names in dtypes.items():
        print_field(backend, ", ".join(names))
    example = max(
        spec.examples(np.random.default_rng(0), np.float32),
        key=lambda e: sum(a.size for given in e.inputs for a in (given if type(given) is tuple else (given,))),
    )
    shapes = ", ".join(
        f"{name} {' '.join(str(list(a.shape)) for a in (given if type(given) is tuple else (given,)))}"
        for name, given in zip(spec.inputs, example.inputs, strict=False)
    )
    print_field("example", ", ".join([shapes, *[f"{k}={v}" for k, v in example.attrs.items()]]))
    print(gmkernels.explain(spec, *example.inputs, **example.attrs))
