"""Dense layers in CUDA C: every way to copy an operand, every tile, parts of a sum, all activations, the machine code."""

import itertools
import math

import numpy as np
import pytest

from gmkernels import registry
from gmkernels.dense import cuda, spec
from tests.support import ahead

cupy = pytest.importorskip("cupy")
ml_dtypes = pytest.importorskip("ml_dtypes")

DTYPES = ("float32", "float64", "float16", "bfloat16")
EPSILON = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of one rounding."""


def run(op, inputs, **attrs):
    return [out.get() for out in registry.run(op, inputs, attrs, backend="cuda")]


def device(x, layout):
    """x on the device: with rows or columns in a row of memory, 16-byte aligned or not, or with neither."""
    rows, columns = x.shape
    if layout == "transposed":
        return device(x.T, "aligned").T
    if layout == "transposed off":
        return device(x.T, "off").T
    if layout == "aligned":  # rows of whole 16 bytes, which end in what must not be read
        wide = cupy.full((rows, columns + -columns % 8), np.nan, x.dtype)
        wide[:, :columns] = cupy.asarray(x)
        return wide[:, :columns]
    if layout == "off":
        room = cupy.full(x.size + 1, np.nan, x.dtype)
        room[1:] = cupy.asarray(x).reshape(-1)
        return room[1:].reshape(rows, columns)
    assert layout == "strided"
    room = cupy.full((2 * rows, 3 * columns), np.nan, x.dtype)
    room[::-2, ::3] = cupy.asarray(x)
    return room[::-2, ::3]


LAYOUTS = ("aligned", "off", "transposed", "transposed off", "strided")


def matrices(m, k, n, dtype, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((m, k)).astype(dtype)
    b = rng.standard_normal((k, n)).astype(dtype)
    return a, b


def bound(a, b, dtype):
    """Of the error of a product: a sum of k terms rounds k times, in the type that is computed in, and once at the end."""
    k = a.shape[1]
    computed = min(EPSILON[dtype], EPSILON["float32"])
    size = np.abs(a.astype(np.float64)) @ np.abs(b.astype(np.float64))
    return (k + 1) * computed * size + 1.01 * EPSILON[dtype] * np.abs(a.astype(np.float64) @ b.astype(np.float64))


def check(c, a, b, dtype):
    exact = a.astype(np.float64) @ b.astype(np.float64)
    assert c.dtype == a.dtype
    error = np.abs(c.astype(np.float64) - exact)
    assert (error <= bound(a, b, dtype)).all(), error.max()


def copies(a_layout, b_layout, dtype):
    """How operands of these layouts are copied, as cuda.cu calls it."""
    names = {"aligned": "ALONG", "off": "RUNS", "transposed": "ACROSS", "transposed off": "ELEMENTS", "strided": "ELEMENTS"}
    turned = {"aligned": "transposed", "transposed": "aligned", "off": "transposed off", "transposed off": "off"}
    made = [names[a_layout], names[turned.get(b_layout, b_layout)]]
    return ["RUNS" if name == "ALONG" and dtype == "float32" else name for name in made]


@pytest.mark.parametrize("dtype", ["float32", *(pytest.param(d, marks=pytest.mark.slow) for d in DTYPES[1:])])
def test_layouts_make_no_difference(dtype, monkeypatch):
    """Not even to the last bit: they change how elements come into shared memory, not what is added to what."""
    a, b = matrices(37, 75, 41, dtype)
    seen, first = set(), None
    defines = cuda._Tile.defines
    monkeypatch.setattr(cuda._Tile, "defines", lambda tile, *copies: seen.add(copies) or defines(tile, *copies))
    pairs = list(itertools.product(LAYOUTS, LAYOUTS))
    if dtype == "float32":  # each way to copy once: compiling them takes long
        pairs = [("aligned", "off"), ("transposed", "aligned"), ("strided", "transposed off")]
    for a_layout, b_layout in pairs:
        (c,) = run(spec.MATMUL, (device(a, a_layout), device(b, b_layout)))
        if first is None:
            check(c, a, b, dtype)
            first = c
        np.testing.assert_array_equal(c, first, f"a {a_layout}, b {b_layout}")
    names = ("ELEMENTS", "RUNS", "ACROSS", "ALONG")
    expected = {tuple(names.index(name) for name in copies(*pair, dtype)) for pair in pairs}
    assert seen == expected
