"""GPU kernels on arrays of more than 2^31 elements, in streams, again and again, and under compute-sanitizer.

Where there is no GPU all but the last are rehearsed on small arrays, in Triton's interpreter and on the emulator.
"""

import shutil
import subprocess
import sys

import numpy as np
import pytest

import gmkernels
from gmkernels import registry
from tests.support.cupy_stand_in import has_gpu

TAIL = 992
"""Elements after the first `BEYOND`: those of which a 32-bit index is wrong."""
BEYOND = 2**31 if has_gpu() else 2**13
ROW = 32
DTYPE = np.float16  # for room: of the largest, two arrays of 4 GiB are there at once
KEY = gmkernels.key_array(5, 6)

on_gpu = [pytest.mark.gpu] if has_gpu() else [pytest.mark.slow]
pytestmark = on_gpu


def numbers(*shape):
    """Numbers that differ from each other, in -1 to 1, without an array of 64-bit indices."""
    import cupy

    x = cupy.empty(shape, DTYPE)
    flat = x.reshape(-1)
    for start in range(0, flat.size, 1 << 26):
        part = flat[start : start + (1 << 26)]
        part[...] = cupy.sin(cupy.arange(part.size, dtype=np.float32) + np.float32(start % 1009)).astype(DTYPE)
    return x


def rows(n):
    return n // ROW, ROW


def shifted(key, elements):
    import cupy

    return cupy.asarray(key + np.array((0, 0, elements), np.uint64))


CASES = {
    "dropout": (lambda n: (numbers(n), KEY), {"p": 0.25}),
    "bernoulli_sample_logits": (lambda n: (numbers(n), KEY), {"samples": None}),
    "gaussian_sample": (lambda n: (numbers(*rows(n)), numbers(*rows(n)), KEY), {"samples": None}),
    "bernoulli_log_prob": (lambda n: (numbers(*rows(n)), numbers(*rows(n))), {}),
    "activation_backward": (lambda n: (numbers(n), numbers(n)), {"activation": "tanh"}),
    "leaky_relu": (lambda n: (numbers(n),), {"negative_slope": 0.1}),
    "iwae_bound": (lambda n: (numbers(*rows(n)),), {"axis": 1}),
    "softmax_cross_entropy": (lambda n: (numbers(*rows(n)), classes(n // ROW)), {}),
}


def classes(n):
    import cupy

    return cupy.full(n, 3, np.int64)


def cases():
    return [
        pytest.param(op, backend, id=f"{op}-{backend}")
        for op in CASES
        for backend in ("triton", "cuda")
        if backend in registry.entries(op) and "float16" in registry.entries(op)[backend].dtypes
    ]


def device(inputs):
    import cupy

    return tuple(cupy.asarray(a) for a in inputs)


@pytest.mark.parametrize("op, backend", cases())
def test_what_lies_beyond_32_bits_is_what_it_is_alone(op, backend):
    make, attrs = CASES[op]
    inputs = device(make(BEYOND + TAIL))
    spec = registry.specs()[op]
    whole = registry.run(spec, inputs, attrs, backend=backend)
    tail = []
    for a in inputs:
        if a.dtype == np.uint64:
            tail.append(shifted(KEY, BEYOND))
        else:
            tail.append(a[BEYOND * len(a) // (BEYOND + TAIL) :].copy())
    alone = registry.run(spec, tail, attrs, backend=backend)
    for name, a, b in zip(spec.outputs, whole, alone, strict=True):
        if name != "d_bias":  # a sum over everything
            np.testing.assert_array_equal(a[len(a) - len(b) :].get(), b.get(), name)


@pytest.mark.parametrize("op, backend", cases())
def test_results_are_the_same_bits_run_after_run_and_in_any_stream(op, backend):
    import cupy

    make, attrs = CASES[op]
    inputs = device(make(TAIL * 8))
    spec = registry.specs()[op]
    first = [a.get() for a in registry.run(spec, inputs, attrs, backend=backend)]
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
    cupy.cuda.get_current_stream().synchronize()
    found = []
    for stream in streams:
        with stream:
            found.append(registry.run(spec, inputs, attrs, backend=backend))
    for stream, results in zip(streams, found, strict=True):
        stream.synchronize()
        for a, b in zip(results, first, strict=True):
            assert a.get().tobytes() == b.tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool):
    """On the family tests of some kernels that use shared memory."""
    if (sanitizer := shutil.which("compute-sanitizer")) is None:
        pytest.skip("compute-sanitizer, of the CUDA toolkit, is not installed")
    program = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "-p", "no:cacheprovider"]
    chosen = "test_agrees and float32 and cuda and (gaussian_sample or iwae or linear or adam or softmax)"
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", *program, "-k", chosen]
    run = subprocess.run([*command, "tests/gmkernels/test_specs.py"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
