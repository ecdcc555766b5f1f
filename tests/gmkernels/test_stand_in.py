"""The stand-in for CuPy: NumPy's values, CuPy's names, arguments and refusals."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests.support import cuda_stand_in, cupy_stand_in

THEIRS = """
import inspect, json, cupy
def parameters(function):
    if isinstance(function, cupy.ufunc): return "ufunc"
    try: return [str(p).split("=")[0].split(":")[0] for p in inspect.signature(function).parameters.values()]
    except (TypeError, ValueError): return None
members = lambda kind: [n for n in dir(kind) if not n.startswith("_")]
json.dump({
    "cupy": {n: parameters(getattr(cupy, n)) for n in dir(cupy)},
    "linalg": {n: parameters(getattr(cupy.linalg, n)) for n in dir(cupy.linalg)},
    "cuda": dir(cupy.cuda), "runtime": dir(cupy.cuda.runtime),
    "classes": {c.__name__: dir(c) for c in (cupy.ndarray, cupy.cuda.Stream, cupy.cuda.Event, cupy.cuda.Graph,
        cupy.cuda.Device, cupy.cuda.MemoryPool, cupy.cuda.MemoryPointer)},
}, __import__("sys").stdout)
"""


@pytest.fixture(scope="module")
def theirs():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", THEIRS], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"CuPy itself is not installed: {done.stderr.splitlines()[-1]}")
    return json.loads(done.stdout)


def test_all_that_it_has_cupy_has(theirs):
    ours = cupy_stand_in.modules()
    public = {name for name in vars(ours["cupy"]) if not name.startswith("_")}
    assert public <= theirs["cupy"].keys()
    assert {name for name in vars(ours["cupy.linalg"]) if not name.startswith("_")} <= theirs["linalg"].keys()
    assert {name for name in vars(ours["cupy.cuda"]) if not name.startswith("_")} <= set(theirs["cuda"])
    assert {name for name in vars(ours["cupy.cuda.runtime"]) if not name.startswith("_")} <= set(theirs["runtime"])
    for kind in (cupy_stand_in.ndarray, *(getattr(cuda_stand_in, n) for n in theirs["classes"] if n != "ndarray")):
        assert {n for n in dir(kind) if not n.startswith("_")} <= set(theirs["classes"][kind.__name__]) | {"host"}


def test_arguments_are_those_of_cupy(theirs):
    for text, home in (
        *((text, "cupy") for text in cupy_stand_in.FUNCTIONS.values()),
        (cupy_stand_in.LINALG, "linalg"),
    ):
        for name, parameters in cupy_stand_in._parse(text):
            expected = theirs[home][name]
            if expected == "ufunc" or name == "matmul":
                continue
            assert [p for p in parameters if p not in expected] == [], f"{name}{tuple(expected)}"
            positional = [p for p in expected if p in parameters]
            assert parameters == positional, f"{name}: in another order than {expected}"
    for name in cupy_stand_in.UFUNCS:
        assert theirs["cupy"][name] == "ufunc"


def test_mixing_with_numpy_is_refused():
    import cupy

    a, b = cupy.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    for mix in (
        lambda: a + b,
        lambda: b + a,
        lambda: np.add(a, b),
        lambda: np.where(a > 0, a, b),
        lambda: a.__iadd__(b),
    ):
        with pytest.raises(TypeError, match="Unsupported type <class 'numpy.ndarray'>"):
            mix()
    with pytest.raises(TypeError, match="Implicit conversion to a NumPy array is not allowed"):
        np.asarray(a)
    with pytest.raises(ValueError, match="non-scalar"):
        a[...] = b
