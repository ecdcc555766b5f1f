"""Every registered kernel spec at a size of the models that use it, with its share of the floor.

A spec without a call in `CALLS` runs its largest example: add a call when it gets a kernel worth measuring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import gmkernels.dense
import gmkernels.iwae
import gmkernels.likelihood
import gmkernels.rng
import gmkernels.sampling  # noqa: F401 - importing a family registers its kernels
from gmkernels import bench, registry
from gmkernels.registry import Example

BATCH, DATA, HIDDEN = 1000, 784, 200  # the widest layer of an IWAE: 20 images of 50 samples
KEY = np.array((1, 2, 0), np.uint64)


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _update(hyper: Sequence[float], states: int) -> Example:
    """A step on the parameters of a network 784-500-20-500-784."""
    shapes = ((500, 784), (20, 500), (500, 20), (784, 500))
    arrays = [tuple(np.abs(_normal(*s)) for s in shapes) for _ in range(2 + states)]
    return Example((arrays[0], np.array(hyper)), {}, tuple(arrays[1:]))


def _filled(**attrs: Any) -> Example:
    return Example((KEY,), {"shape": (2000, 1000)} | attrs)


CALLS: dict[str, Callable[[], Example]] = {
    "matmul": lambda: Example((_normal(BATCH, HIDDEN), _normal(HIDDEN, DATA)), {}),
    "linear": lambda: Example((_normal(BATCH, HIDDEN), _normal(DATA, HIDDEN), _normal(DATA)), {"activation": "tanh"}),
    "activation_backward": lambda: Example((_normal(BATCH, DATA), _normal(BATCH, DATA)), {"activation": "tanh"}),
    "adam": lambda: _update((1e-3, 0.9, 0.999, 1e-8, 0.0, 0, 0, 0, 1), 3),
    "adagrad": lambda: _update((1e-2, 0.0, 1e-10, 0.0, 0, 1), 1),
    "rmsprop": lambda: _update((1e-2, 0.99, 1e-8, 0.0, 0.0, 0, 0), 3),
    "adadelta": lambda: _update((1.0, 0.9, 1e-6, 0.0, 0), 2),
    "sgd": lambda: _update((1e-3, 0.9, 0.0, 0.0, 0.0, 0, 2), 1),
    "average": lambda: _update((0.999,), 0),
    "bernoulli_log_prob": lambda: Example((_normal(50, 20, DATA), _normal(20, DATA)), {}),
    "bernoulli_log_prob_backward": lambda: Example((_normal(50, 20), _normal(50, 20, DATA), _normal(20, DATA)), {}),
    "linear_bernoulli_log_prob": lambda: Example(
        (_normal(50, 20, HIDDEN), _normal(DATA, HIDDEN), _normal(DATA), _normal(20, DATA)), {}
    ),
    "linear_bernoulli_log_prob_backward": lambda: Example(
        (_normal(50, 20), _normal(50, 20, DATA), _normal(50, 20, HIDDEN), _normal(DATA, HIDDEN)), {}
    ),
    "iwae_bound": lambda: Example((_normal(50, 20_000),), {"axis": 0}),
    "iwae_bound_backward": lambda: Example((_normal(20_000), _normal(50, 20_000)), {"axis": 0}),
    "gaussian_sample": lambda: Example((_normal(20_000, 100), _normal(20_000, 100), KEY), {"samples": None}),
    "gaussian_sample_backward": lambda: Example(
        (_normal(20_000, 100), _normal(20_000), _normal(20_000), _normal(20_000, 100), _normal(20_000, 100), KEY),
        {"samples": None},
    ),
    "bernoulli_sample": lambda: Example((np.full((2000, 1000), 0.3, np.float32), KEY), {"samples": None}),
    "bernoulli_sample_logits": lambda: Example((_normal(2000, 1000), KEY), {"samples": None}),
    "random_words": lambda: _filled(),
    "uniform": lambda: _filled(dtype="float32"),
    "normal": lambda: _filled(dtype="float32"),
}


def _largest_example(spec: registry.KernelSpec) -> Example:
    examples = spec.examples(np.random.default_rng(0), np.dtype(np.float32))
    return max(examples, key=lambda e: sum(a.size for a in registry._flat(e.inputs)))


@pytest.mark.parametrize("name", sorted(registry.specs()))
def test_kernel(name: str, benchmark: Any) -> None:
    spec = registry.specs()[name]
    inputs, attrs, updated = CALLS[name]() if name in CALLS else _largest_example(spec)
    outputs = updated if spec.updates else registry.run(spec, inputs, attrs)
    benchmark(lambda: registry.run(spec, inputs, attrs, outputs=outputs))
    if not benchmark.disabled:
        report = bench.KernelReport.of(spec, inputs, attrs, seconds=benchmark.stats.stats.median)
        benchmark.extra_info |= {
            "backend": report.backend,
            "floor_us": report.floor * 1e6,
            "share_of_floor": report.share,
            "ns_per_element": report.seconds / max(1, report.elements) * 1e9,
        }
