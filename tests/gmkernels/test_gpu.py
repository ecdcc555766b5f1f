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
from gmkernels.registry import Example
from tests.gmkernels import test_specs
from tests.support.cupy_stand_in import has_gpu

TAIL = 992
"""Elements after the first `BEYOND`: those of which a 32-bit index is wrong."""
BEYOND = 2**31 if has_gpu() else 2**13
ROW = 32
DTYPE = np.float16  # for room: up to five arrays of 4 GiB are there at once
KEY = gmkernels.key_array(5, 6)


def numbers(*shape):
    """Numbers in -1 to 1, few of them beside each other alike, without an array of 64-bit indices.

    They are multiples of 1/256, so that a sum of few has the same bits in any order.
    """
    import cupy

    x = cupy.empty(shape, DTYPE)
    flat = x.reshape(-1)
    for start in range(0, flat.size, 1 << 26):
        part = flat[start : start + (1 << 26)]
        waves = cupy.sin(cupy.arange(part.size, dtype=np.float32) + np.float32(start % 1009))
        part[...] = (cupy.rint(256 * waves) / 256).astype(DTYPE)
    return x


def squares(n):
    """Numbers of which there are roots."""
    x = numbers(n)
    x *= x
    return x


def rows(n):
    return n // ROW, ROW


def classes(n):
    import cupy

    return cupy.full(n // ROW, 3, np.int64)


def column_sums():
    """A matrix that adds the first column to the last, the second to the last but one, and so on."""
    return np.eye(ROW, dtype=DTYPE) + np.eye(ROW, dtype=DTYPE)[::-1]


def shifted(key, elements):
    import cupy

    return cupy.asarray(key + np.array((0, 0, elements), np.uint64))


def bits(*shape):
    return (numbers(*shape) > 0).astype(np.uint8)


def images(n):
    return numbers(n // ROW, 2, 4, 4)


def sequences():
    """The inputs of an LSTM of 8 over 5 steps of 40 sequences and fewer."""
    sizes = np.array((40, 40, 31, 17, 2), np.int64)
    return numbers(sizes.sum(), 32), numbers(40, 8), numbers(40, 8), numbers(32, 8), sizes


def gradients_of_sequences():
    x, h0, c0, weight, sizes = sequences()
    rows = len(x)
    states = (numbers(rows, 8), numbers(40, 8), numbers(40, 8))
    return *states, weight, h0, c0, numbers(rows, 8), numbers(rows, 8), numbers(rows, 32), sizes


CONVOLUTION = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
MACHINE = {"units": "bernoulli"}
CASES = {
    "dropout": lambda n: Example((numbers(n), KEY), {"p": 0.25}),
    "bernoulli_sample_logits": lambda n: Example((numbers(n), KEY), {"samples": None}),
    "gaussian_sample": lambda n: Example((numbers(*rows(n)), numbers(*rows(n)), KEY), {"samples": None}),
    "gaussian_sample_backward": lambda n: Example(
        (numbers(*rows(n)), numbers(n // ROW), numbers(n // ROW), numbers(*rows(n)), numbers(*rows(n)), KEY),
        {"samples": None},
    ),
    "bernoulli_log_prob": lambda n: Example((numbers(*rows(n)), numbers(*rows(n))), {}),
    "bernoulli_log_prob_backward": lambda n: Example((numbers(n // ROW), numbers(*rows(n)), numbers(*rows(n))), {}),
    "activation_backward": lambda n: Example((numbers(n), numbers(n)), {"activation": "tanh"}),
    "leaky_relu": lambda n: Example((numbers(n),), {"negative_slope": 0.1}),
    "iwae_bound": lambda n: Example((numbers(*rows(n)),), {"axis": 1}),
    "iwae_bound_backward": lambda n: Example(
        (numbers(n // ROW), numbers(*rows(n)), numbers(n // ROW), numbers(n // ROW)), {"axis": 1}
    ),
    "softmax_cross_entropy": lambda n: Example((numbers(*rows(n)), classes(n)), {}),
    "softmax_cross_entropy_backward": lambda n: Example((numbers(n // ROW), numbers(*rows(n)), classes(n)), {}),
    "sum": lambda n: Example((numbers(*rows(n)),), {"axis": (1,), "keepdims": False}),
    "matmul": lambda n: Example((numbers(*rows(n)), column_sums()), {}),
    "sgd": lambda n: Example(
        ((numbers(n),), np.array((0.1, 0.9, 0.3, 1, 0.01, 0, 2))), {}, ((numbers(n),), (numbers(n),))
    ),
    "adam": lambda n: Example(
        ((numbers(n),), np.array((0.1, 0.9, 0.99, 1e-6, 0.1, 0, 1, 0, 3))),
        {},
        ((numbers(n),), (numbers(n),), (squares(n),), (squares(n),)),
    ),
    "gibbs_half_step": lambda n: Example(
        (bits(*rows(n)), column_sums(), column_sums()[0], KEY), MACHINE | {"dtype": "uint8"}
    ),
    "conv2d": lambda n: Example((images(n), numbers(2, 2, 3, 3)), CONVOLUTION),
    "conv2d_backward_input": lambda n: Example((images(n), numbers(2, 2, 3, 3)), CONVOLUTION | {"size": (4, 4)}),
    # One column: sums of one number, which have the same bits however rows are shared.
    "linear_bernoulli_log_prob": lambda n: Example(
        (numbers(*rows(n)), numbers(1, ROW), numbers(1), numbers(n // ROW, 1)), {}
    ),
    "linear_bernoulli_log_prob_backward": lambda n: Example(
        (numbers(n // ROW), numbers(*rows(n)), numbers(1, ROW), numbers(1), numbers(n // ROW, 1)), {}
    ),
}
OF_ALL_ROWS = {
    "contrastive_divergence": lambda n: Example(
        (bits(*rows(n)), bits(*rows(n)), numbers(40, ROW), numbers(ROW), numbers(40), KEY), MACHINE | {"steps": 3}
    ),
    "annealed_importance_sampling": lambda n: Example(
        (bits(*rows(n)), numbers(40, ROW), numbers(ROW), numbers(40), numbers(ROW), np.linspace(0, 1, 4), KEY), MACHINE
    ),
    "lstm": lambda n: Example(sequences(), {"reverse": False}),
    "lstm_backward": lambda n: Example(gradients_of_sequences(), {"reverse": False}),
    "conv2d_backward_weight": lambda n: Example((images(n), images(n)), CONVOLUTION | {"size": (3, 3)}),
}
"""Those that are no function of each row: what lies beyond 2^31 elements is nothing by itself."""


def cases(of):
    return [
        pytest.param(op, backend, id=f"{op}-{backend}")
        for op in of
        for backend in ("triton", "cuda")
        if backend in registry.entries(op) and "float16" in registry.entries(op)[backend].dtypes
    ]


def each(function, arrays):
    """The arrays, some of which are tuples of arrays, with `function` applied to each of them."""
    return tuple(each(function, a) if isinstance(a, tuple) else function(a) for a in arrays)


def run(op, example, backend):
    """The outputs of a call, in a list."""
    spec = registry.specs()[op]
    outputs = example.updated if spec.updates else None
    return list(registry.flat(registry.run(spec, example.inputs, example.attrs, outputs=outputs, backend=backend)))


def on_device(example):
    import cupy

    return example._replace(inputs=each(cupy.asarray, example.inputs))


def tail(a):
    """What of an array belongs to the last elements: of a small one, all."""
    if a.dtype == np.uint64:
        return shifted(KEY, BEYOND)
    return a[BEYOND * len(a) // (BEYOND + TAIL) :].copy() if len(a) >= BEYOND // ROW else a


@pytest.mark.slow
@pytest.mark.parametrize("op, backend", cases(CASES))
def test_what_lies_beyond_32_bits_is_what_it_is_alone(op, backend):
    example = on_device(CASES[op](BEYOND + TAIL))
    last = example._replace(inputs=each(tail, example.inputs), updated=each(tail, example.updated))
    whole, alone = run(op, example, backend), run(op, last, backend)
    for name, a, b in zip(registry.specs()[op].outputs, whole, alone, strict=True):
        if name not in ("d_weight", "d_bias"):  # sums over everything
            np.testing.assert_array_equal(a[len(a) - len(b) :].get(), b.get(), name)


@pytest.mark.slow
@pytest.mark.parametrize("op, backend", cases(CASES | OF_ALL_ROWS))
def test_results_are_the_same_bits_run_after_run_and_in_any_stream(op, backend):
    import cupy

    example = on_device((CASES | OF_ALL_ROWS)[op](TAIL * 8))

    def again():  # of what is updated, a copy
        return run(op, example._replace(updated=each(cupy.copy, example.updated)), backend)

    first = [a.get() for a in again()]
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(3)]
    cupy.cuda.get_current_stream().synchronize()
    found = []
    for stream in streams:
        with stream:
            found.append(again())
    for stream, results in zip(streams, found, strict=True):
        stream.synchronize()
        for a, b in zip(results, first, strict=True):
            assert a.get().tobytes() == b.tobytes()


SANITIZED = (
    "gaussian_sample", "gaussian_sample_backward", "iwae_bound", "iwae_bound_backward", "linear", "adam",
    "linear_bernoulli_log_prob", "softmax_cross_entropy", "softmax_cross_entropy_backward", "gibbs_half_step",
    "gibbs_chain", "contrastive_divergence", "annealed_importance_sampling", "boltzmann_sweep", "lstm", "lstm_backward",
    "gru", "gru_backward", "conv2d", "conv2d_backward_input", "conv2d_backward_weight",
)  # fmt: skip
"""Operations whose kernels in CUDA C use shared memory or shuffles."""


def sanitized():
    """The names of their cases among the tests generated from the specs."""
    return [f"{op}-cuda-gpu-float32" for op in SANITIZED]


def test_there_are_cases_for_compute_sanitizer():
    assert set(sanitized()) <= {case.id for case in test_specs.cases()}


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool):
    if (sanitizer := shutil.which("compute-sanitizer")) is None:
        pytest.skip("compute-sanitizer, of the CUDA toolkit, is not installed")
    program = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "-p", "no:cacheprovider"]
    tests = [f"{test_specs.__file__}::{test_specs.test_result.__name__}[{case}]" for case in sanitized()]
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", *program, *tests]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
