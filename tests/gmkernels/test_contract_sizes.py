"""On a GPU a kernel of ours runs every call at the sizes that reports are kept for, in every dtype that it stores.

The registry is asked, and nothing runs: the arrays lie in memory that nobody touches.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from gmkernels import registry
from gmkernels.arrays import address
from gmkernels.conv import spec as conv
from tests.support.cupy_stand_in import has_gpu

cupy = pytest.importorskip("cupy")
ml_dtypes = pytest.importorskip("ml_dtypes")
OURS = {"triton", "cuda"}
MOST_BYTES = 1 << 30
DTYPES = (*registry.FLOATS, *registry.HALVES)


class Of(NamedTuple):
    """An array that is not of the floating dtype."""

    dtype: str
    shape: tuple[int, ...]


KEY = Of("uint64", (3,))
Call = tuple[str, tuple[Any, ...], dict[str, Any]]
"""An operation; shapes of floating inputs, `Of`, or lists of those for a tuple of arrays; attributes."""


def _elementwise() -> Iterator[Call]:
    """A hundred million elements."""
    rows, n = (1_000_000, 100), 100_000_000
    for samples, of in ((None, rows), (50, (20_000, 100))):
        z = of if samples is None else (samples, *of)
        yield "gaussian_sample", (of, of, KEY), {"samples": samples}
        yield "gaussian_sample_backward", (z, of[:1], z[:-1], of, of, KEY), {"samples": samples}
        yield "bernoulli_sample", (of, KEY), {"samples": samples}
        yield "bernoulli_sample_logits", (of, KEY), {"samples": samples}
    yield "dropout", (rows, KEY), {"p": 0.5}
    yield "leaky_relu", ((n,),), {"negative_slope": 0.2}
    yield "leaky_relu_backward", ((n,), (n,)), {"negative_slope": 0.2}
    for samples, count in ((50, 2_000_000), (5000, 20_000)):
        columns = (count,)
        yield "iwae_bound", ((samples, count),), {"axis": 0}
        yield "iwae_bound_backward", (columns, (samples, count), columns, columns), {"axis": 0}
    yield "bernoulli_log_prob", ((128_000, 784), (128_000, 784)), {}
    yield "bernoulli_log_prob_backward", ((128_000,), (128_000, 784), (128_000, 784)), {}
    classes = Of("int64", (100_000,))
    yield "softmax_cross_entropy", ((100_000, 1000), classes), {}
    yield "softmax_cross_entropy_backward", ((100_000,), (100_000, 1000), classes), {}
    yield "sum", ((10_000, 10_000),), {"axis": (0,), "keepdims": False}
    yield "sum_to", ((10_000, 10_000),), {"shape": (10_000,)}
    for op, numbers in (("sgd", 7), ("adam", 9), ("adagrad", 6), ("rmsprop", 7), ("adadelta", 5), ("average", 1)):
        yield op, ([(10_000, 10_000), (10_000,)], Of("float64", (numbers,))), {}
    yield "total_norm", ([(10_000, 10_000), (10_000,)],), {"norm_type": 2.0}


def _products() -> Iterator[Call]:
    """Of 4096^3, and of the layers of the autoencoders: 100 images, and 20 with 50 samples each."""
    for n, inside, outside in ((4096, 4096, 4096), (100, 784, 500), (100, 20, 500), (1000, 200, 200), (1000, 50, 200)):
        yield "linear", ((n, inside), (outside, inside), (outside,)), {"activation": "tanh"}
        yield "matmul", ((n, outside), (outside, inside)), {}
        yield "activation_backward", ((n, outside), (n, outside)), {"activation": "tanh"}
    for samples, rows, hidden in ((1, 100, 500), (50, 20, 200), (50, 100, 200), (5000, 1, 200)):
        h, weight, x = (samples, rows, hidden), (784, hidden), (rows, 784)
        shapes = {"h": h, "weight": weight, "bias": (784,), "x": x, "g": h[:-1], "residual": (samples, rows, 784)}
        for op in ("linear_bernoulli_log_prob", "linear_bernoulli_log_prob_backward"):
            yield op, tuple([shapes[name] for name in registry.specs()[op].inputs]), {}


def _gibbs() -> Iterator[Call]:
    """A half-step of 4096^3, and a machine of 784 x 500 with batches of 100 and 512."""
    bernoulli = {"units": "bernoulli"}
    for n, visible, hidden in ((4096, 4096, 4096), (100, 784, 500), (512, 784, 500)):
        states, machine = Of("uint8", (n, visible)), ((hidden, visible), (visible,), (hidden,))
        yield "gibbs_half_step", (states, machine[0], machine[2], KEY), {**bernoulli, "dtype": "uint8"}
        yield "free_energy", (states, *machine), bernoulli
        for steps in (1, 25):
            for x in (states, (n, visible)):
                yield "gibbs_chain", (x, *machine, KEY), {"steps": steps, **bernoulli}
                yield "contrastive_divergence", (x, x, *machine, KEY), {"steps": steps, **bernoulli}
        for units in ("bernoulli", "gaussian"):
            yield "contrastive_divergence", ((n, visible), (100, visible), *machine, KEY), {"steps": 1, "units": units}
    weight, biases = (500, 784), ((784,), (500,), (784,))
    betas = Of("float64", (251,))
    yield "annealed_importance_sampling", (Of("uint8", (5000, 784)), weight, *biases, betas, KEY), bernoulli
    yield "boltzmann_sweep", ((100, 784), (784, 784), (784,), Of("bool", (784,)), KEY), {"sweeps": 1}


CELLS: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("rnn", 1, {"nonlinearity": "tanh"}), ("lstm", 4, {}), ("gru", 3, {"reset_after": True}),
)  # fmt: skip
"""Recurrent nets, and how many gates they have."""


def _recurrent() -> Iterator[Call]:
    """1024 steps of 16 sequences, hidden sizes 64, 128 and 768; 64 steps of 32 with 256."""
    for steps, batch, size in ((1024, 16, 64), (1024, 16, 128), (1024, 16, 768), (64, 32, 256)):
        for cell, gates, attrs in CELLS:
            n = steps * batch
            shapes: dict[str, Any] = dict.fromkeys(("h0", "c0", "g_hn", "g_cn"), (batch, size))
            shapes |= dict.fromkeys(("h", "c", "g_h", "reset"), (n, size))
            shapes |= {"x": (n, gates * size), "gates": (n, gates * size), "weight": (gates * size, size)}
            shapes |= {"bias_n": (size,), "batch_sizes": Of("int64", (steps,))}
            for op in (cell, f"{cell}_backward"):
                inputs = tuple([shapes[name] for name in registry.specs()[op].inputs])
                yield op, inputs, {**attrs, "reverse": False}


def _conv() -> Iterator[Call]:
    """The discriminator of 28 x 28 images, batch 64."""
    attrs = conv.Attrs(stride=(2, 2), padding=((1, 1), (1, 1)))._asdict()
    for channels, filters, size in ((1, 32, 28), (32, 64, 14)):
        x, weight, g = (64, channels, size, size), (filters, channels, 4, 4), (64, filters, size // 2, size // 2)
        yield "conv2d", (x, weight, (filters,)), attrs
        yield "conv2d_backward_input", (g, weight), {"size": (size, size), **attrs}
        yield "conv2d_backward_weight", (g, x), {"size": (4, 4), **attrs}


def _indexing() -> Iterator[Call]:
    """The characters of a language model."""
    yield "gather_rows", ((65, 1024), Of("int64", (2048,))), {}
    yield "scatter_add_rows", ((2048, 1024), Of("int64", (2048,))), {"rows": 65}


def _rng() -> Iterator[Call]:
    yield "random_words", (KEY,), {"shape": (100_000_000,)}
    for dtype in registry.FLOATS:
        yield "uniform", (KEY,), {"shape": (100_000_000,), "dtype": dtype}
        yield "normal", (KEY,), {"shape": (100_000_000,), "dtype": dtype}


CALLS = [
    call for calls in (_elementwise, _products, _gibbs, _recurrent, _conv, _indexing, _rng) for call in calls()
]  # fmt: skip
OPS = sorted({op for op, _, _ in CALLS})


@pytest.fixture(scope="module")
def memory() -> Iterator[Any]:
    """A place for all arrays. The stand-in's is none of a device, which would be filled, and takes no room."""
    array = cupy.empty(MOST_BYTES, np.uint8) if has_gpu() else np.empty(MOST_BYTES, np.uint8)
    there = cupy.cuda.UnownedMemory(address(array), MOST_BYTES, array, 0)
    yield cupy.cuda.MemoryPointer(there, 0)


def _placed(given: Any, dtype: str, memory: Any) -> Any:
    if isinstance(given, list):
        return tuple([_placed(part, dtype, memory) for part in given])
    shape, dtype = (given.shape, given.dtype) if isinstance(given, Of) else (given, dtype)
    return cupy.ndarray(shape, np.dtype(dtype), memory)


FLOATING = {op for op, inputs, _ in CALLS if not all(isinstance(part, Of) for part in inputs)}
"""Operations of a floating input."""


@pytest.mark.parametrize(
    "op, dtype", [(op, dtype) for op in OPS for dtype in (DTYPES if op in FLOATING else DTYPES[:1])]
)
def test_a_kernel_of_ours_runs(op: str, dtype: str, memory: Any) -> None:
    for inputs, attrs in ((inputs, attrs) for name, inputs, attrs in CALLS if name == op):
        explanation = registry.explain(op, *[_placed(part, dtype, memory) for part in inputs], **attrs)
        assert explanation.chosen in OURS, (inputs, str(explanation))


def test_no_operation_with_a_kernel_for_gpus_is_left_out() -> None:
    ours = {name for name, spec in registry.specs().items() if OURS & registry.entries(spec).keys()}
    assert ours == set(OPS)
