"""What `import gmcore` costs an embedder."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import gmcore
import gmkernels

ROOTS = [str(Path(module.__file__).parents[1]) for module in (gmcore, gmkernels)]  # type: ignore[arg-type]


def run(code: str, **environment: str) -> str:
    """Standard output of a fresh interpreter, without site hooks that import anything on their own."""
    prelude = f"import sys; sys.path[:0] = {ROOTS!r}\n"
    return subprocess.run(
        [sys.executable, "-c", prelude + code], env=os.environ | environment, check=True, capture_output=True, text=True
    ).stdout


def test_heavy_packages_wait_for_their_first_use() -> None:
    heavy = ("numba", "llvmlite", "scipy", "sklearn", "matplotlib", "rich", "torch", "cupy", "triton", "safetensors",
             "threadpoolctl", "gmcore.models", "gmcore.data", "gmcore.train")  # fmt: skip
    loaded = run("import gmcore; print(*sys.modules)").split()
    assert not set(heavy) & set(loaded)
    # what needs no compiled kernel does not import the compiler either
    code = "import gmcore; x = gmcore.tensor([1.0], requires_grad=True); (x * x).sum().backward()\n"
    assert run(code + "print('numba' in sys.modules)").strip() == "False"


@pytest.mark.slow
@pytest.mark.alone
def test_import_takes_a_tenth_of_a_second_beyond_numpy(tmp_path: Path) -> None:
    """At most 0.1 s, on a machine where importing NumPy takes at most 0.1 s; in proportion on a slower one.

    Both are timed inside one interpreter, NumPy first, so start-up and the state of the file cache count for
    neither; the median of five interpreters, and the ratio to NumPy's own time, take out a busy machine. The first
    interpreter writes bytecode, as an installation does.
    """
    code = (
        "from time import process_time as now\n"
        "start = now(); import numpy; middle = now(); import gmcore; end = now()\n"
        "print(middle - start, end - middle)"
    )
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    times = [tuple(map(float, run(code, **bytecode).split())) for _ in range(6)]
    numpy, ours = (statistics.median(column) for column in zip(*times[1:]))
    assert ours < 0.1 * max(1.0, numpy / 0.1), f"import gmcore takes {ours:.3f} s, numpy {numpy:.3f} s"


def test_lazy_names() -> None:
    assert run("import gmcore; print(gmcore.nn.__name__, callable(gmcore.fit))").split() == ["gmcore.nn", "True"]
    assert run("import gmcore\ntry: gmcore.nothing\nexcept AttributeError as e: print(e)").strip().endswith("'nothing'")
    assert set(gmcore.__all__) >= {"tensor", "grad", "no_grad", "Generator", "manual_seed", "ops", "nn", "optim"}
