"""Every kernel at a size that people use, and its share of the floor: what `gmcore bench --kernels` prints.

`CASES` is the one place where these sizes stand; the pytest-benchmark suite (`test_kernels`) and the check of
instruction counts (`check`) run the same calls. They are the shapes of the steps in `workloads`: the layers of the
VAE and the IWAE, the machine of the RBM, the language model's 64 steps of 32 streams, the second convolution of the
discriminator. Kernels that no step uses run at the shape of the arrays that the models give them.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

import gmkernels
from gmkernels import bench, registry
from gmkernels.registry import Example, KernelSpec

for _family in pkgutil.iter_modules(gmkernels.__path__, "gmkernels."):
    if _family.ispkg:
        importlib.import_module(_family.name)  # registers its kernels

ROWS, DATA, HIDDEN = 1000, 784, 200  # the widest layer of the IWAE: 20 images of 50 samples
LATENT = 50
BATCH, UNITS = 100, 500  # of the VAE and the RBM
STEPS, STREAMS, CELLS, SYMBOLS = 64, 32, 256, 65  # of the language model
PLANES = (64, 32, 14, 14)  # what the discriminator's second convolution is given
SAMPLES = (20_000, 100)
BOUNDS = (50, 20_000)
KEY = np.array((1, 2, 0), np.uint64)


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _positive(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.5, 9.5, shape).astype(np.float32)


def _probabilities(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.01, 0.99, shape).astype(np.float32)


def _bits(*shape: int) -> np.ndarray:
    return (np.random.default_rng(0).random(shape) < 0.125).astype(np.float32)


def _classes() -> np.ndarray:
    """The symbols of the language model's batch."""
    return np.random.default_rng(0).integers(SYMBOLS, size=STEPS * STREAMS)


def _parameters() -> tuple[np.ndarray, ...]:
    """Arrays of the shapes of the weights of a network 784-500-20-500-784."""
    return tuple(np.abs(_normal(*shape)) for shape in ((500, 784), (20, 500), (500, 20), (784, 500)))


def _update(hyper: Sequence[float], states: int) -> Example:
    return Example((_parameters(), np.array(hyper)), {}, tuple(_parameters() for _ in range(1 + states)))


def _filled(**attrs: Any) -> Example:
    return Example((KEY,), {"shape": (2000, 1000)} | attrs)


def _convolution(*arrays: np.ndarray, **attrs: Any) -> Example:
    return Example(arrays, {"stride": (2, 2), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1} | attrs)


def _window(**attrs: Any) -> dict[str, Any]:
    return {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), **attrs}


def _average_window() -> dict[str, Any]:
    return _window(ceil_mode=False, count_include_pad=True, divisor=None)


def _recurrent(gates: int, *others: str, **attrs: Any) -> Example:
    """Arrays of the language model by name, with weights small enough for the states to stay in range."""
    rows, states = STEPS * STREAMS, (STREAMS, CELLS)
    of_rows = {"g_h", "h", "c", "reset"}
    shapes = {"x": (rows, gates * CELLS), "gates": (rows, gates * CELLS), "weight": (gates * CELLS, CELLS),
              "bias_n": (CELLS,)}  # fmt: skip
    arrays = [0.05 * _normal(*shapes.get(name, (rows, CELLS) if name in of_rows else states)) for name in others]
    return Example((*arrays, np.full(STEPS, STREAMS)), {"reverse": False} | attrs)


def _machine(*states: np.ndarray, hidden: int = UNITS) -> tuple[np.ndarray, ...]:
    return (*states, 0.05 * _normal(hidden, DATA), 0.1 * _normal(DATA), 0.1 * _normal(hidden))


CASES: dict[str, Callable[[], Example]] = {
    "leaky_relu": lambda: Example((_normal(*PLANES),), {"negative_slope": 0.2}),
    "leaky_relu_backward": lambda: Example((_normal(*PLANES), _normal(*PLANES)), {"negative_slope": 0.2}),
    "conv2d": lambda: _convolution(_normal(*PLANES), _normal(64, 32, 4, 4), _normal(64)),
    "conv2d_backward_input": lambda: _convolution(_normal(64, 64, 7, 7), _normal(64, 32, 4, 4), size=(14, 14)),
    "conv2d_backward_weight": lambda: _convolution(_normal(64, 64, 7, 7), _normal(*PLANES), size=(4, 4)),
    "matmul": lambda: Example((_normal(ROWS, HIDDEN), _normal(HIDDEN, DATA)), {}),
    "linear": lambda: Example((_normal(ROWS, HIDDEN), _normal(DATA, HIDDEN), _normal(DATA)), {"activation": "tanh"}),
    "activation_backward": lambda: Example((_normal(ROWS, DATA), _normal(ROWS, DATA)), {"activation": "tanh"}),
    "gibbs_half_step": lambda: Example(
        (_bits(BATCH, DATA), 0.05 * _normal(UNITS, DATA), _normal(UNITS), KEY),
        {"units": "bernoulli", "dtype": "float32"},
    ),
    "gibbs_chain": lambda: Example((*_machine(_bits(BATCH, DATA)), KEY), {"steps": 1, "units": "bernoulli"}),
    "free_energy": lambda: Example(_machine(_bits(BATCH, DATA)), {"units": "bernoulli"}),
    "contrastive_divergence": lambda: Example(
        (*_machine(_bits(BATCH, DATA), _bits(BATCH, DATA)), KEY), {"steps": 1, "units": "bernoulli"}
    ),
    "annealed_importance_sampling": lambda: Example(
        (*_machine(_bits(BATCH, DATA)), 0.1 * _normal(DATA), np.linspace(0.0, 1.0, 5), KEY), {"units": "bernoulli"}
    ),
    "boltzmann_sweep": lambda: Example(
        (_bits(BATCH, 128).astype(np.uint8), 0.05 * _normal(128, 128), _normal(128), np.arange(128) < 64, KEY),
        {"sweeps": 1},
    ),
    "gather_rows": lambda: Example((_normal(SYMBOLS, 4 * CELLS), _classes()), {}),
    "scatter_add_rows": lambda: Example((_normal(STEPS * STREAMS, 4 * CELLS), _classes()), {"rows": SYMBOLS}),
    "softmax_cross_entropy": lambda: Example((_normal(STEPS * STREAMS, SYMBOLS), _classes()), {}),
    "softmax_cross_entropy_backward": lambda: Example(
        (_normal(STEPS * STREAMS), _normal(STEPS * STREAMS, SYMBOLS), _classes()), {}
    ),
    "sum": lambda: Example((_normal(*PLANES),), {"axis": (0, 2, 3), "keepdims": False}),
    "sum_to": lambda: Example((_normal(STEPS * STREAMS, SYMBOLS),), {"shape": (SYMBOLS,)}),
    "iwae_bound": lambda: Example((_normal(*BOUNDS),), {"axis": 0}),
    "iwae_bound_backward": lambda: Example(
        (_normal(BOUNDS[1]), _normal(*BOUNDS), np.full(BOUNDS[1], 4.0, np.float32), _positive(BOUNDS[1])), {"axis": 0}
    ),
    "bernoulli_log_prob": lambda: Example((_normal(50, 20, DATA), _bits(20, DATA)), {}),
    "bernoulli_log_prob_backward": lambda: Example((_normal(50, 20), _normal(50, 20, DATA), _bits(20, DATA)), {}),
    **{
        name: lambda: Example((_normal(50, 20, HIDDEN), _normal(DATA, HIDDEN), _normal(DATA), _bits(20, DATA)), {})
        for name in ("linear_bernoulli_log_prob", "linear_bernoulli_residual")
    },
    "linear_bernoulli_log_prob_backward": lambda: Example(
        (_normal(50, 20), _normal(50, 20, HIDDEN), _normal(DATA, HIDDEN), _normal(DATA), _bits(20, DATA)), {}
    ),
    "linear_bernoulli_residual_backward": lambda: Example(
        (_normal(50, 20), _normal(50, 20, DATA), _normal(50, 20, HIDDEN), _normal(DATA, HIDDEN)), {}
    ),
    "solve_triangular": lambda: Example(
        (0.02 * _normal(LATENT, LATENT) + np.eye(LATENT, dtype=np.float32), _normal(LATENT, ROWS)),
        {"upper": False, "unitriangular": False},
    ),
    "batch_norm": lambda: Example((_normal(64 * 7 * 7, 64), _normal(64), _normal(64)), {"eps": 1e-5}),
    "batch_norm_backward": lambda: Example(
        (_normal(64 * 7 * 7, 64), _normal(64 * 7 * 7, 64), _normal(64), _normal(64), _positive(64)), {"eps": 1e-5}
    ),
    "adam": lambda: _update((1e-3, 0.9, 0.999, 1e-8, 0.0, 0, 0, 0, 1), 3),
    "adagrad": lambda: _update((1e-2, 0.0, 1e-10, 0.0, 0, 1), 1),
    "rmsprop": lambda: _update((1e-2, 0.99, 1e-8, 0.0, 0.0, 0, 0), 3),
    "adadelta": lambda: _update((1.0, 0.9, 1e-6, 0.0, 0), 2),
    "sgd": lambda: _update((1e-3, 0.9, 0.0, 0.0, 0.0, 0, 2), 1),
    "average": lambda: _update((0.999,), 0),
    "total_norm": lambda: Example((_parameters(),), {"norm_type": 2.0}),
    "avg_pool2d": lambda: Example((_normal(*PLANES),), _average_window()),
    "avg_pool2d_backward": lambda: Example((_normal(64, 32, 7, 7),), _average_window() | {"size": (14, 14)}),
    "max_pool2d": lambda: Example((_normal(*PLANES),), _window(dilation=(1, 1), ceil_mode=False)),
    "plane_gather": lambda: Example((_normal(*PLANES), np.zeros((64, 32, 7, 7), np.int64)), {}),
    "plane_scatter": lambda: Example(
        (_normal(64, 32, 7, 7), np.zeros((64, 32, 7, 7), np.int64)), {"size": (14, 14)}
    ),
    "rnn": lambda: _recurrent(1, "x", "h0", "weight", nonlinearity="tanh"),
    "rnn_backward": lambda: _recurrent(1, "g_h", "g_hn", "weight", "h0", "h", nonlinearity="tanh"),
    "gru": lambda: _recurrent(3, "x", "h0", "weight", "bias_n", reset_after=True),
    "gru_backward": lambda: _recurrent(
        3, "g_h", "g_hn", "weight", "h0", "h", "gates", "reset", reset_after=True
    ),
    "lstm": lambda: _recurrent(4, "x", "h0", "c0", "weight"),
    "lstm_backward": lambda: _recurrent(4, "g_h", "g_hn", "g_cn", "weight", "h0", "c0", "h", "c", "gates"),
    "binomial": lambda: Example((np.floor(_positive(ROWS, LATENT)), _probabilities(ROWS, LATENT), KEY), {}),
    "poisson": lambda: Example((_positive(ROWS, LATENT), KEY), {}),
    "standard_gamma": lambda: Example((_positive(ROWS, LATENT), KEY), {"log": False}),
    "standard_gamma_grad": lambda: Example((_positive(ROWS, LATENT), _positive(ROWS, LATENT)), {"log": False}),
    "random_words": lambda: _filled(),
    "uniform": lambda: _filled(dtype="float32"),
    "normal": lambda: _filled(dtype="float32"),
    "bernoulli_sample": lambda: Example((_probabilities(2000, 1000), KEY), {"samples": None}),
    "bernoulli_sample_logits": lambda: Example((_normal(2000, 1000), KEY), {"samples": None}),
    "dropout": lambda: Example((_normal(2000, 1000), KEY), {"p": 0.5}),
    "gaussian_sample": lambda: Example((_normal(*SAMPLES), _normal(*SAMPLES), KEY), {"samples": None}),
    "gaussian_sample_backward": lambda: Example(
        (_normal(*SAMPLES), _normal(SAMPLES[0]), _normal(SAMPLES[0]), _normal(*SAMPLES), _normal(*SAMPLES), KEY),
        {"samples": None},
    ),
    **{name: lambda: Example((_normal(ROWS, LATENT),), {}) for name in ("erf", "erfc", "erfcx")},
    "erfinv": lambda: Example((2 * _probabilities(ROWS, LATENT) - 1,), {}),
    "ndtri": lambda: Example((_probabilities(ROWS, LATENT),), {}),
    "lgamma": lambda: Example((_positive(ROWS, LATENT),), {}),
    "polygamma": lambda: Example((_positive(ROWS, LATENT),), {"n": 1}),
    "gammainc": lambda: Example((_positive(ROWS, LATENT), _positive(ROWS, LATENT)[::-1].copy()), {}),
    "gammainc_grad_a": lambda: Example((_positive(ROWS, LATENT), _positive(ROWS, LATENT)[::-1].copy()), {}),
}  # fmt: skip
"""By name of the spec: its inputs in float32, attributes, and the contents of outputs that it updates."""


def prepare(name: str) -> tuple[KernelSpec, Example, Callable[[], object]]:
    """A kernel's spec and example, and the call of it into outputs that are kept."""
    spec, example = registry.specs()[name], CASES[name]()
    inputs, attrs, updated = example
    outputs = updated if spec.updates else registry.run(spec, inputs, attrs)
    return spec, example, functools.partial(registry.run, spec, inputs, attrs, outputs=outputs)


def _shapes(example: Example) -> str:
    """The shapes of the inputs, as many as 20 columns hold."""
    arrays = [a for a in registry.flat(example.inputs) if a.ndim and a is not KEY]
    text = " ".join("x".join(map(str, a.shape)) for a in arrays) or "x".join(map(str, example.attrs["shape"]))
    while len(text) > 20:
        text = text.rpartition(" ")[0]
    return text


HEAD = (
    f"{'kernel':<28} {'shapes':<20} {'time':>7} {'bytes':>5} {'flops':>5} {'slots':>5} {'floor':>7} {'share':>5} "
    "bound by"
)


def _count(number: float) -> str:
    """Three digits and a prefix, in at most five columns: ``"16.0M"``."""
    for prefix, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * scale:
            return f"{number / scale:#.3g}".rstrip(".") + prefix
    return f"{number:.0f}" if number else "-"


def measure(names: Iterable[str], *, seconds: float = 0.3) -> dict[str, Any]:
    """Time the kernels of these names, print a line of each, and return the figures by name."""
    print(HEAD)
    figures = {}
    for name in names:
        spec, example, call = prepare(name)
        report = bench.KernelReport.of(spec, example.inputs, example.attrs, seconds=bench.least_time(call, seconds))
        cost = report.cost
        print(
            f"{name:<28} {_shapes(example):<20} {bench.format_seconds(report.seconds):>7} {_count(cost.bytes):>5} "
            f"{_count(cost.flops):>5} {_count(cost.slots):>5} {bench.format_seconds(report.floor):>7} "
            f"{report.share:>5.0%} {report.bound}",
            flush=True,
        )
        figures[name] = {
            "family": spec.family, "shapes": [list(a.shape) for a in registry.flat(example.inputs)],
            "backend": report.backend, "seconds": report.seconds, "floor": report.floor, "share": report.share,
            "bytes": cost.bytes, "flops": cost.flops, "slots": cost.slots, "bound": report.bound,
        }  # fmt: skip
    return figures
