"""The last layer of a decoder on GPUs: several tiles, slices and parts, ragged edges, shared rows of x, half types."""

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from gmkernels import launch, registry
from gmkernels.likelihood import cuda, spec
from tests.support import ahead

cupy = pytest.importorskip("cupy")
ml_dtypes = pytest.importorskip("ml_dtypes")

BACKENDS = [b for b in ("triton", "cuda") if b in registry.entries(spec.LINEAR_BERNOULLI_LOG_PROB)]
EPSILON = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of one rounding."""
HALF = {"triton": "float16", "cuda": "bfloat16"}
"""That which the emulation of a backend has right."""


def layer(leading, n, k, x_ndim, dtype, seed=0):
    rng = np.random.default_rng(seed)
    h, weight = rng.standard_normal((*leading, k)), rng.standard_normal((n, k)) / np.sqrt(max(k, 1))
    x = rng.random((*leading, n)[len(leading) + 1 - x_ndim :])
    return [a.astype(dtype) for a in (rng.standard_normal(leading), h, weight, rng.standard_normal(n), x)]


def run(op, inputs, backend):
    return [
        out.get().astype(np.float64) for out in registry.run(op, [cupy.asarray(a) for a in inputs], backend=backend)
    ]


def formula(g, h, weight, bias, x):
    """log p, the gradients, and for each of these the sum of the magnitudes of what is added, in float64."""
    g, h, weight, bias, x = (a.astype(np.float64) for a in (g, h, weight, bias, x))
    logits = h @ weight.T + bias
    cost = np.logaddexp(0, logits) - x * logits
    slope = x - 1 / (1 + np.exp(-logits))
    r = (g[..., None] * slope).reshape(g.size, -1)
    rows = h.reshape(g.size, -1)
    sums = (cost.sum(-1), (abs(r) @ abs(weight)).reshape(h.shape), abs(r).T @ abs(rows), abs(r).sum(0))
    return (-cost.sum(-1), (r @ weight).reshape(h.shape), r.T @ rows, r.sum(0)), sums


def check(inputs, backend, dtype):
    """Logits are off by k roundings at most, and so are residuals, which are a quarter of their bound at least on
    average; sums of m terms by m of them and those of the terms; a result rounds once to its type."""
    g, h, weight, bias, x = inputs
    expected, sums = formula(*inputs)
    found = [*run(spec.LINEAR_BERNOULLI_LOG_PROB, inputs[1:], backend)]
    found += run(spec.LINEAR_BERNOULLI_LOG_PROB_BACKWARD, inputs, backend)
    u = min(EPSILON[dtype], EPSILON["float32"])
    k, terms = h.shape[-1], (len(weight), len(weight), g.size, g.size)
    for a, b, total, m in zip(found, expected, sums, terms, strict=True):
        bound = u * (np.sqrt(m) + 8 * np.sqrt(k) + 40) * total + 1.01 * EPSILON[dtype] * abs(b) + 1e-7 * u
        if dtype in ("float16", "bfloat16"):  # residuals in two parts
            bound += 2 * EPSILON[dtype] ** 2 * total + 2.0**-24 * (dtype == "float16") * (1 + total)
        assert a.shape == b.shape
        assert (abs(a - b) <= bound).all()


SHAPES = [  # leading axes, out, in, axes of x
    ((3, 50), 70, 9, 2),  # several tiles of rows and columns, two parts of the sums over rows
    ((131,), 65, 1, 1),
    ((2, 35), 130, 33, 3),  # two parts of the sums over the weight
    ((5,), 3, 300, 1),  # two slices of the gradients' columns
    ((33,), 20, 0, 2),  # gradients of the bias alone
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "leading, n, k, x_ndim", [SHAPES[0], *(pytest.param(*s, marks=pytest.mark.slow) for s in SHAPES[1:])]
)
def test_tiles_slices_and_parts(leading, n, k, x_ndim, backend):
    check(layer(leading, n, k, x_ndim, np.float32), backend, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_indices_of_64_bits(backend, monkeypatch):
    monkeypatch.setattr(launch, "LARGEST_SIZE", -1)  # of arrays that 32 bits suffice for
    check(layer((3, 50), 70, 9, 2, np.float32), backend, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("half", [False, True])
def test_other_dtypes(half, backend):
    dtype = HALF[backend] if half else "float64"
    for leading, n, k, x_ndim in SHAPES[::2]:
        check(layer(leading, n, k, x_ndim, dtype), backend, dtype)


def test_the_first_shape_has_parts():
    for itemsize in (2, 4, 8):
        assert spec.gpu_parts(150, 70, 9, itemsize) == 1 and spec.gpu_parts(70, 150, 9, itemsize) == 2
        assert spec.gpu_parts(70, 130, 33, itemsize) == 2  # and the third of the gradient of h


@pytest.mark.parametrize("backend", BACKENDS)
def test_residuals_beyond_the_edges_are_not_added(backend):
    """Infinite numbers in rows that others share no tile with stay there; NaN would come from 0 times infinity."""
    g, h, weight, bias, x = layer((70,), 66, 5, 2, np.float32)
    bias[65] = np.inf
    x[:, 65] = 1.0
    log_p = run(spec.LINEAR_BERNOULLI_LOG_PROB, (h, weight, bias, x), backend)[0]
    assert np.isfinite(log_p).all()
    for gradient in run(spec.LINEAR_BERNOULLI_LOG_PROB_BACKWARD, (g, h, weight, bias, x), backend):
        assert np.isfinite(gradient).all()


# ---------------------------------------------------------------------------------------------------------
# Machine code
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype, multiplies, share", [("float32", "FFMA", 0.75), ("float16", "HMMA.16816.F32", 0)])
def test_machine_code_of_cuda(dtype, multiplies, share, monkeypatch):
    """At the size of an IWAE: on tensor cores, or almost nothing but multiply-adds in the loops; as many blocks on a
    multiprocessor as intended; copies of 16 bytes, but for float's, which are transposed on the way."""
    kept, read = [], ahead.read
    monkeypatch.setattr(ahead, "read", lambda cubin, capability: (kept.append(cubin), read(cubin, capability))[1])
    ahead._cuda_reports.cache_clear()
    shapes = (50, 100, 200), (784, 200), (784,), (100, 784)
    forward = ahead.launches(ahead.Case("linear_bernoulli_log_prob", shapes, {}), "cuda", dtype)
    inputs = ((50, 100), *shapes)
    backward = ahead.launches(ahead.Case("linear_bernoulli_log_prob_backward", inputs, {}), "cuda", dtype)
    names = "linear_log_prob", "gradient_of_rows", "gradient_of_weight"
    reports = {one.report.name: one.report for one in (*forward, *backward)}
    tiles = cuda.TILES[dtype][spec.GPU_COLUMNS], *[cuda._GRADIENT_TILES[np.dtype(dtype).itemsize]] * 2
    for name, tile in zip(names, tiles, strict=True):
        report = reports[name]
        assert report.spills == 0
        assert report.registers * tile.threads * tile.blocks <= 65536
        widths = {32} if dtype == "float32" else {128, 64} if name != "linear_log_prob" else {128}
        assert set(report.loops[0].loads) <= widths
        if share:  # the first loop is that of the logits
            multiply_adds = tile.warp_m // 4 * tile.warp_n // 8 * tile.k
            assert multiply_adds / report.hottest.instructions >= share
    seen = set()
    for cubin in kept:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(cubin)
            code = subprocess.run([ahead._tool("cuobjdump"), "-sass", file.name], check=True, capture_output=True)
        text = code.stdout.decode()
        for name in names:
            body = text.partition(f"Function : {name}\n")[2].partition("Function :")[0]
            if body:
                seen.add(name)
                assert multiplies in body
    assert seen == set(names)


def test_shared_memory_fits_the_smaller_devices():
    for itemsize, tile in cuda._GRADIENT_TILES.items():
        ways = [cuda.Copy(way, itemsize) for way in range(4)]
        fixed = tile.m * (16 + 8 * tile.n // 32)  # what the kernel declares
        assert max(cuda._shared(tile, a, b, itemsize) for a in ways for b in ways) + fixed <= 99 << 10
