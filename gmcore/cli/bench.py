"""Time training steps of gmcore beside PyTorch, torch.compile, JAX and scikit-learn, and print their ratios.

With --kernels: each kernel at a size that people use, and its share of the floor that the measured rates of copying,
of products and of instruction slots set. With --scaling: exponents of time and memory in the sizes of the steps.

The steps are those of `benchmarks/` in gmcore's source, so the command works from a checkout. Libraries that are not
installed are named and left out; without any, gmcore is timed by itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import gmcore
from gmcore.errors import ArgumentError, MissingPackageError, unknown_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="a step, e.g. vae-step; or a kernel (default: all)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--memory", action="store_true", help="measure peak memory instead, each in its own process")
    instead.add_argument("--kernels", action="store_true", help="time kernels instead, beside the floor of each")
    instead.add_argument("--scaling", action="store_true", help="fit how a step's time and memory grow with its sizes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE, a .json file")


def run(arguments: argparse.Namespace) -> None:
    from gmcore.io import write_atomically

    out = arguments.json
    if out is not None and (out.suffix != ".json" or not out.parent.is_dir()):
        raise ArgumentError(f"--json {out}: expected a file that ends in .json, in a folder that exists")
    if arguments.kernels or arguments.scaling:
        return _run_suite("kernels" if arguments.kernels else "scaling", arguments.names, out)
    compare = _benchmarks("compare")
    for name in arguments.names:
        if name not in compare.STEPS:
            raise unknown_name("step", name, compare.STEPS)
    names = arguments.names or list(_benchmarks("workloads").CPU_STEPS)
    if arguments.memory:
        figures = {"memory": _benchmarks("memory").measure(names)}
    else:
        figures = {"cases": compare.measure(names)}
    if out is not None:
        write_atomically(out, (json.dumps(compare.machine(names) | figures, indent=1) + "\n").encode())


def _run_suite(kind: str, names: list[str], out: Path | None) -> None:
    """Run `benchmarks.kernels` or `benchmarks.scaling`."""
    from gmcore.io import write_atomically
    from gmkernels import bench, pool

    suite = _benchmarks(kind)
    for name in names:
        if name not in suite.CASES:
            raise unknown_name("kernel" if kind == "kernels" else kind, name, suite.CASES)
    if (busy := bench.describe_load()) is not None:
        print(f"gmcore: warning: {busy}", file=sys.stderr)
    figures = {kind: suite.measure(names or suite.CASES), "threads": pool.get_num_threads()}
    if kind == "kernels":
        figures["device"] = dataclasses.asdict(bench.measure_cpu())
    if out is not None:
        write_atomically(out, (json.dumps(figures, indent=1) + "\n").encode())


def _benchmarks(module: str) -> Any:
    """A module of `benchmarks` of the checkout that this package is in."""
    root = Path(gmcore.__file__).resolve().parents[1]
    if not (root / "benchmarks" / "compare.py").is_file():
        raise MissingPackageError(
            "bench needs the folder benchmarks/ of gmcore's source, which is not installed with it: "
            "pip install -e '.[app,peers]' in a checkout, and run the gmcore of that installation"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module(f"benchmarks.{module}")
