"""Report what gmcore finds on this machine: versions, threads, BLAS, caches, GPUs, optional packages."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import tempfile
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(arguments: argparse.Namespace) -> None:
    from gmcore.cli import output

    report = examine()
    if arguments.json:
        output.print_json(report)
        return
    for section, fields in report.items():
        print(section)
        for name, value in fields.items():
            print(f"  {name:<18} {value}")


def examine() -> dict[str, dict[str, str]]:
    """What there is, by section, name and text."""
    from gmkernels import devices

    return {
        "versions": _versions(),
        "kernels": _kernels(),
        "GPU": devices.examine(),
        "data": _data(),
        "optional packages": _optional(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _versions() -> dict[str, str]:
    import gmcore

    found = {"gmcore": gmcore.__version__, "python": platform.python_version(), "platform": platform.platform()}
    return found | {package: _version(package) for package in ("numpy", "numba", "safetensors", "threadpoolctl")}


def _kernels() -> dict[str, str]:
    import numba
    import threadpoolctl

    from gmkernels import blas, pool, rng, waiting

    folder = pool.cache_folder()
    waiting.leave_out()  # the last process is to be the last that did something
    # Compiles, caches and runs one kernel on all threads: only then does Numba know its threading layer.
    rng.uniform((1 << 20,), key=(0, 0), backend="cpu")
    try:
        layer: str = numba.threading_layer()  # type: ignore[attr-defined]
    except ValueError:
        layer = "none (one thread)"
    libraries = [
        f"{lib['internal_api']} {lib.get('version')} ({lib.get('architecture', 'unknown architecture')})"
        for lib in threadpoolctl.threadpool_info()
        if lib["user_api"] == "blas"
    ]
    ever = waiting.of_cache(folder)
    return {
        "threads": f"{pool.get_num_threads()} of {os.cpu_count()} processors",
        "threading layer": layer,
        "BLAS": ", ".join(libraries) or "not recognised",
        "products": blas.describe().removeprefix("products "),
        "cache": _folder(folder),
        "compiled kernels": "work",
        "ever compiled": f"{ever.compiled} in {ever.compiling:.2f} s",
        "last process": str(waiting.of_last_process(folder) or "none has used this cache"),
    }


def _data() -> dict[str, str]:
    from gmcore.data import cache_dir

    return {"cache": _folder(cache_dir()), "GMCORE_DATA": os.environ.get("GMCORE_DATA", "not set")}


def _folder(path: Path) -> str:
    """A folder and whether files can be written there, or could be once it is made."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return f"{path} (writable)"
    except OSError as error:
        return f"{path} (not writable: {error.strerror})"


def _optional() -> dict[str, str]:
    from gmcore.extras import EXTRAS, install_command

    def state(extra: str, packages: tuple[str, ...]) -> str:
        missing = [package for package in packages if not _present(package)]
        if missing:
            return f"lacks {', '.join(missing)}: {install_command(extra)}"
        return f"present ({', '.join(packages)})"

    return {extra: state(extra, packages) for extra, packages in EXTRAS.items()}


def _present(package: str) -> bool:
    """Whether there is a module of that name or, for libraries without one (mkl), a distribution."""
    return importlib.util.find_spec(package) is not None or _version(package) != "not installed"
