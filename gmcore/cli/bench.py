"""Time training steps and operations of gmcore beside PyTorch, in alternating blocks, and print their ratios.

The steps are those of `benchmarks/` in gmcore's source, so the command works from a checkout.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import gmcore
from gmcore.errors import ArgumentError, MissingPackageError, unknown_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="a step, e.g. vae-step (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE, a .json file")


def run(arguments: argparse.Namespace) -> None:
    from gmcore.io import write_atomically

    out = arguments.json
    if out is not None and (out.suffix != ".json" or not out.parent.is_dir()):
        raise ArgumentError(f"--json {out}: expected a file that ends in .json, in a folder that exists")
    compare = _comparison()
    for name in arguments.names:
        if name not in compare.CASES:
            raise unknown_name("step", name, compare.CASES)
    cases = compare.measure(arguments.names or compare.CASES)
    if out is not None:
        write_atomically(out, (json.dumps(compare.machine() | {"cases": cases}, indent=1) + "\n").encode())


def _comparison() -> Any:
    """The module `benchmarks.compare` of the checkout that this package is in."""
    root = Path(gmcore.__file__).resolve().parents[1]
    if not (root / "benchmarks" / "compare.py").is_file():
        raise MissingPackageError(
            "bench needs the folder benchmarks/ of gmcore's source, which is not installed with it: "
            "pip install -e '.[app,peers]' in a checkout, and run the gmcore of that installation"
        )
    sys.path.insert(0, str(root))
    return importlib.import_module("benchmarks.compare")
