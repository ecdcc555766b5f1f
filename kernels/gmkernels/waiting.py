"""How long programs have waited for kernels: to compile them, once, and to load them from the cache afterwards.

The cache's folder keeps both, for `gmcore doctor`: a line for each kernel compiled, and what the last process that
used kernels did. Times are processor seconds of the thread that waited, which other programs do not lengthen.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass
class Waiting:
    """Kernels compiled and loaded, and the seconds that took; `str()` says it in words."""

    compiled: int = 0
    compiling: float = 0.0
    loaded: int = 0
    loading: float = 0.0

    def __str__(self) -> str:
        return f"compiled {self.compiled} in {self.compiling:.2f} s, loaded {self.loaded} in {self.loading:.2f} s"


process = Waiting()
"""Of this process until now."""


_leave_out = False


@functools.cache
def _keep_at_exit(folder: Path) -> None:
    def keep() -> None:
        if not _leave_out:
            with contextlib.suppress(OSError):
                (folder / "last.json").write_text(json.dumps(asdict(process)))

    atexit.register(keep)


def note_compiled(folder: Path, name: str, seconds: float) -> None:
    """Count a kernel that was compiled, and add it to the list of the cache."""
    _keep_at_exit(folder)
    process.compiled += 1
    process.compiling += seconds
    with contextlib.suppress(OSError), open(folder / "compiled.tsv", "a") as file:
        file.write(f"{seconds:.3f}\t{name}\n")


def note_loaded(folder: Path, seconds: float) -> None:
    """Count a kernel that was loaded."""
    _keep_at_exit(folder)
    process.loaded += 1
    process.loading += seconds


def of_cache(folder: Path) -> Waiting:
    """All kernels that were ever compiled into a cache, by whatever process; those loaded are not counted there."""
    try:
        lines = (folder / "compiled.tsv").read_text().splitlines()
    except OSError:
        lines = []
    return Waiting(len(lines), sum(float(line.split("\t")[0]) for line in lines))


def of_last_process(folder: Path) -> Waiting | None:
    """Of the last process that used kernels of a cache and has ended; None where there is none."""
    try:
        return Waiting(**json.loads((folder / "last.json").read_text()))
    except (OSError, ValueError):
        return None


def leave_out() -> None:
    """Let this process, which only looks, not become the last one."""
    global _leave_out
    _leave_out = True
