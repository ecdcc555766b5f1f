"""Kernels and training steps on this machine's GPU: `python -m benchmarks.gpu`, in less than eight minutes at a time.

First what the GPU can do: its rates of copying and of products. Then each kernel of `KERNELS` on each backend, at sizes
beyond the caches: its time, its share of the floor that these rates set, and how it compares with what a user would
write in CuPy, in PyTorch, with torch.compile and in JAX. Then the steps of `STEPS`, captured, beside the same steps in
PyTorch, torch.compile(mode="reduce-overhead") and JAX; every contender must compute the same before it is timed. The
figures go to `benchmarks/results/<device>.json`, each as soon as it is there, from which `python -m benchmarks.report`
makes the README's tables. What the time does not suffice for is named at the end, for a second call.

`--share 1e-5` makes everything small: a rehearsal, which also runs where a GPU is emulated.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import math
import os
import shlex
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import compare, kernels, peers
from benchmarks.peers import expressions
from gmcore.device import cupy
from gmcore.errors import GmcoreError
from gmcore.io import write_atomically
from gmkernels import bench, registry
from gmkernels.cost import Device
from gmkernels.registry import Example

RESULTS = Path(__file__).parent / "results"
OURS = ("triton", "cuda")
CUPY, TORCH, COMPILED, JAX = "CuPy", "PyTorch", "torch.compile", "JAX"
TIMING: dict[str, Any] = {"blocks": 5, "seconds": 0.03, "pause": 0.0, "burst": 10}


class Step(NamedTuple):
    """A step of `workloads`, at sizes of its own."""

    name: str
    title: str
    sizes: Mapping[str, Any] = {}


STEPS: dict[str, Step] = {
    **{
        name: Step(name, compare.STEPS[name].title)
        for name in ("mlp-step", "vae-step", "iwae-step", "gaussian-sample", "iwae-bound", "last-layer")
    },
    **{
        f"cd-{k}, batch {n}": Step("cd-step", f"RBM 784 x 500, CD-{k}, batch {n}, SGD", {"steps": k, "batch": n})
        for k, n in ((1, 100), (1, 512), (25, 100), (25, 512))
    },
    **{
        f"lstm-sequence {n}": Step("lstm-sequence", f"LSTM of {n}, 1024 steps x 16, with gradients", {"units": n})
        for n in (64, 128, 768)
    },
    "lstm-sequence 768, bfloat16": Step(
        "lstm-sequence",
        "LSTM of 768 in bfloat16, 1024 steps x 16, with gradients",
        {"units": 768, "dtype": "bfloat16"},
    ),
    **{name: Step(name, compare.STEPS[name].title) for name in ("language-step", "discriminator-step")},
}


class Aim(NamedTuple):
    """What is aimed at on an H200."""

    times: Mapping[str, float] = {}
    """Our time over a rival's, at most."""
    share: float = 0.0
    """Of the floor, at least."""
    memory: Mapping[str, float] = {}
    """Our peak over a rival's, at most."""

    def text(self) -> str:
        parts = [f"{ratio:.2f} x {rival}" for rival, ratio in self.times.items()]
        parts += [f"memory {ratio:.2f} x {rival}" for rival, ratio in self.memory.items()]
        return ", ".join([f"{self.share:.0%} of the floor"] * (self.share > 0.0) + parts)

    def met(self, seconds: Mapping[str, float], share: float, peaks: Mapping[str, int], ours: str) -> str:
        """``"yes"``, ``"no"``, or ``"-"`` if nothing is missed as far as it was measured, which it was not in full.

        Parameters
        ----------
        seconds : by contender.
        share : of the floor, that we have.
        peaks : by contender, where they are compared.
        ours : the contender whose seconds are ours.
        """
        pairs = [(seconds[ours], seconds.get(rival), ratio) for rival, ratio in self.times.items()]
        pairs += [(peaks.get(compare.EAGER, 0), peaks.get(rival), ratio) for rival, ratio in self.memory.items()]
        missed = [round(own / other, 2) > ratio for own, other, ratio in pairs if other]
        if share < self.share or any(missed):
            return "no"
        return "yes" if len(missed) == len(pairs) else "-"


_FILLS = ("uniform", "normal", "gaussian_sample", "gaussian_sample_backward", "bernoulli_sample", "iwae_bound",
          "iwae_bound_backward")  # fmt: skip
AIMS: dict[str, Aim] = {
    **{name: Aim({COMPILED: 1.0}, share=0.9) for name in _FILLS},
    "gibbs_half_step 4096, bfloat16": Aim({TORCH: 0.5}, share=0.6),
    **{name: Aim({TORCH: 0.33, COMPILED: 1.0}) for name in ("vae-step", "iwae-step")},
    **{name: Aim({TORCH: 0.2}) for name in STEPS if name.startswith("cd-")},
    **{f"lstm-sequence {n}": Aim({TORCH: 1.0}) for n in (64, 128)},
    **{f"lstm-sequence 768{dtype}": Aim({TORCH: 1.5}) for dtype in ("", ", bfloat16")},
    "language-step": Aim({TORCH: 1.0}),
    "last-layer": Aim({COMPILED: 0.5}, memory={COMPILED: 0.1}),
}
"""Of kernels and steps by name; other rows have none."""
HYPER = (1e-3, 0.9, 0.999, 1e-8, 0.0, 0, 0, 0, 1)  # of Adam


# ---------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A kernel at a size."""

    op: str
    make: Callable[[float], Example]
    """Its inputs for a share of the usual size."""
    random: bool = False
    """Whether libraries draw numbers of their own, so that results are not compared."""


def _normal(*shape: int, dtype: str = "float32") -> Any:
    """Normal numbers on the GPU, of our own kernel, a draw each time."""
    import gmkernels

    key = cupy().asarray(gmkernels.key_array(1, next(_draws)))
    return gmkernels.normal(shape, key=key).astype(_dtype(dtype), copy=False)


_draws = iter(range(1 << 62))


def _dtype(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


def _bits(*shape: int) -> Any:
    return (_normal(*shape) > 1.0).astype(np.float32)


def _key() -> np.ndarray:
    return cupy().asarray(kernels.KEY)


def _rows(share: float, rows: float = 1e6) -> int:
    """So many rows, at least 8, in a multiple of 8."""
    return max(8, 8 * round(share * rows / 8))


def _axis(share: float, size: int) -> int:
    """The length of an axis that is the same at any share, but short in a rehearsal."""
    return size if share == 1.0 else min(size, 8)


def _size(share: float, size: int) -> int:
    """Of a matrix whose product takes that share of the time."""
    return max(16, 16 * round(share ** (1 / 3) * size / 16))


def _fill(share: float) -> Example:
    return Example((_key(),), {"shape": (_rows(share), _axis(share, 100)), "dtype": "float32"})


def _drawn(share: float) -> Any:
    """A hundred million numbers in rows of 100."""
    return _normal(_rows(share), _axis(share, 100))


def _sample(share: float) -> Example:
    return Example((_drawn(share), 0.1 * _drawn(share), _key()), {"samples": None})


def _sample_backward(share: float) -> Example:
    mu = _drawn(share)
    arrays = (_drawn(share), _normal(len(mu)), _normal(len(mu)), mu, 0.1 * _drawn(share))
    return Example((*arrays, _key()), {"samples": None})


def _weights(share: float) -> Any:
    """A hundred million numbers in columns of 50."""
    return _normal(_axis(share, 50), _rows(share, 2e6))


def _bound_backward(share: float) -> Example:
    log_w = 3.0 * _weights(share)
    highest = log_w.max(0)
    return Example((_normal(log_w.shape[1]), log_w, highest, 1.0 / np.exp(log_w - highest).sum(0)), {"axis": 0})


def _likelihood(share: float) -> tuple[Any, Any]:
    n, pixels = _rows(share, 2552), _axis(share, 784)
    return _normal(_axis(share, 50), n, pixels), _bits(n, pixels)


def _likelihood_backward(share: float) -> Example:
    logits, x = _likelihood(share)
    return Example((_normal(*logits.shape[:2]), logits, x), {})


def _last_layer(share: float) -> tuple[Any, ...]:
    """h, weight, bias and x of k = 50, hidden layers of 200 and images of 784."""
    n, pixels, hidden = _rows(share, 2000), _axis(share, 784), _axis(share, 200)
    h, weight = _normal(_axis(share, 50), n, hidden), _normal(pixels, hidden) / math.sqrt(hidden)
    return h, weight, _normal(pixels), _bits(n, pixels)


def _last_layer_backward(share: float) -> Example:
    h, *others = _last_layer(share)
    return Example((_normal(*h.shape[:2]), h, *others), {})


def _matrix(share: float) -> Any:
    """A hundred million numbers in rows of 1000."""
    return _normal(_rows(share, 1e5), _axis(share, 1000))


def _classes(share: float, make: Callable[[Any, Any], tuple[Any, ...]]) -> Example:
    logits = _matrix(share)
    return Example(make(logits, cupy().arange(len(logits)) % logits.shape[1]), {})


def _cross_entropy_backward(logits: Any, target: Any) -> tuple[Any, ...]:
    weights = np.exp(logits)
    return _normal(len(logits)), weights / weights.sum(1, keepdims=True), target


def _update(share: float) -> Example:
    """A hundred million parameters in arrays of many sizes."""
    shapes = [(_rows(share, rows), _axis(share, 100)) for rows in (4e5, 3e5, 2e5, 9e4, 1e4)]
    arrays = [tuple(np.abs(_normal(*shape)) for shape in shapes) for _ in range(5)]
    return Example((arrays[0], cupy().asarray(np.array(HYPER))), {}, tuple(arrays[1:]))


def _product(share: float, m: int, k: int, n: int, dtype: str = "float32") -> Example:
    m, k, n = (_size(share, size) for size in (m, k, n))
    return Example((_normal(m, k, dtype=dtype), (_normal(k, n) / math.sqrt(k)).astype(_dtype(dtype))), {})


def _layer(share: float, m: int, k: int, n: int) -> Example:
    m, k, n = (_size(share, size) for size in (m, k, n))
    return Example((_normal(m, k), _normal(n, k) / math.sqrt(k), _normal(n)), {"activation": "tanh"})


def _machine(share: float, visible: int, hidden: int, dtype: str = "float32") -> tuple[Any, ...]:
    """The weight and the biases of a restricted Boltzmann machine."""
    visible, hidden = _size(share, visible), _size(share, hidden)
    weight = _normal(hidden, visible) / math.sqrt(visible)
    return tuple(a.astype(_dtype(dtype)) for a in (weight, _normal(visible), _normal(hidden)))


def _half_step(share: float, size: int, dtype: str) -> Example:
    weight, _, bias = _machine(share, size, size, dtype)
    states = _bits(*weight.shape).astype(np.uint8)
    return Example((states, weight, bias, _key()), {"units": "bernoulli", "dtype": "uint8"})


def _divergence(share: float, rows: int, steps: int) -> Example:
    machine = _machine(share, 784, 500)
    data = _bits(_rows(share, rows), machine[0].shape[1])
    return Example((data, data, *machine, _key()), {"steps": _axis(share, steps), "units": "bernoulli"})


def _free_energy(share: float) -> Example:
    machine = _machine(share, 784, 500)
    return Example((_bits(_rows(share, 1e5), machine[0].shape[1]), *machine), {"units": "bernoulli"})


def _annealing(share: float) -> Example:
    machine = _machine(share, 784, 500)
    states, betas = _bits(_rows(share, 5000), machine[0].shape[1]), cupy().linspace(0.0, 1.0, _axis(share, 101))
    return Example((states, *machine, machine[1], betas, _key()), {"units": "bernoulli"})


def _sequence(share: float, units: int, dtype: str) -> tuple[Any, ...]:
    """What an LSTM reads, 16 sequences of 1024 steps: x, h0, c0, weight, batch_sizes."""
    steps, streams, units = _rows(share, 1024), 16, _size(share, units)
    weight = (_normal(4 * units, units) / math.sqrt(units)).astype(_dtype(dtype))
    states = (_normal(streams, units, dtype=dtype) for _ in range(2))
    x = _normal(steps * streams, 4 * units, dtype=dtype)
    return x, *states, weight, cupy().full(steps, streams, np.int64)


def _lstm(share: float, units: int, dtype: str) -> Example:
    return Example(_sequence(share, units, dtype), {"reverse": False})


def _lstm_backward(share: float, units: int, dtype: str) -> Example:
    x, h0, c0, weight, batch_sizes = inputs = _sequence(share, units, dtype)
    h, h_n, c_n, c, gates = registry.run(registry.specs()["lstm"], inputs, {"reverse": False})
    return Example((h, h_n, c_n, weight, h0, c0, h, c, gates, batch_sizes), {"reverse": False})


_CONVOLUTION = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1}
"""Of kernels of 3 x 3, as the expressions have it."""


def _planes(share: float, dtype: str = "float32") -> tuple[Any, Any]:
    """256 images of 64 channels, 28 x 28, and 64 filters of 3 x 3."""
    channels, size = _axis(share, 64), _axis(share, 28)
    weight = (_normal(channels, channels, 3, 3) / math.sqrt(9 * channels)).astype(_dtype(dtype))
    return _normal(_rows(share, 256), channels, size, size, dtype=dtype), weight


def _convolution(share: float, which: str, dtype: str = "float32") -> Example:
    x, weight = _planes(share, dtype)
    if which == "input":  # the planes of y are as those of x here
        return Example((x, weight), _CONVOLUTION | {"size": x.shape[2:]})
    if which == "weight":
        return Example((_planes(share, dtype)[0], x), _CONVOLUTION | {"size": (3, 3)})
    return Example((x, weight), _CONVOLUTION)


KERNELS: dict[str, Case] = {
    "uniform": Case("uniform", _fill, True),
    "normal": Case("normal", _fill, True),
    "gaussian_sample": Case("gaussian_sample", _sample, True),
    "gaussian_sample_backward": Case("gaussian_sample_backward", _sample_backward, True),
    "bernoulli_sample": Case(
        "bernoulli_sample", lambda s: Example((np.abs(np.sin(_drawn(s))), _key()), {"samples": None}), True
    ),
    "dropout": Case("dropout", lambda s: Example((_drawn(s), _key()), {"p": 0.5}), True),
    "iwae_bound": Case("iwae_bound", lambda s: Example((3.0 * _weights(s),), {"axis": 0})),
    "iwae_bound_backward": Case("iwae_bound_backward", _bound_backward),
    "bernoulli_log_prob": Case("bernoulli_log_prob", lambda s: Example(_likelihood(s), {})),
    "bernoulli_log_prob_backward": Case("bernoulli_log_prob_backward", _likelihood_backward),
    "linear_bernoulli_log_prob": Case("linear_bernoulli_log_prob", lambda s: Example(_last_layer(s), {})),
    "linear_bernoulli_log_prob_backward": Case("linear_bernoulli_log_prob_backward", _last_layer_backward),
    "softmax_cross_entropy": Case("softmax_cross_entropy", lambda s: _classes(s, lambda *both: both)),
    "softmax_cross_entropy_backward": Case(
        "softmax_cross_entropy_backward", lambda s: _classes(s, _cross_entropy_backward)
    ),
    "adam": Case("adam", _update),
    "activation_backward": Case(
        "activation_backward",
        lambda s: Example((_matrix(s), np.tanh(_matrix(s))), {"activation": "tanh"}),
    ),
    "sum": Case("sum", lambda s: Example((_matrix(s),), {"axis": (0,), "keepdims": False})),
    "matmul 1000 x 200 x 784": Case("matmul", lambda s: _product(s, 1000, 200, 784)),
    "matmul 784 x 1000 x 200": Case("matmul", lambda s: _product(s, 784, 1000, 200)),
    "matmul 4096": Case("matmul", lambda s: _product(s, 4096, 4096, 4096)),
    "matmul 4096, bfloat16": Case("matmul", lambda s: _product(s, 4096, 4096, 4096, "bfloat16")),
    "linear 1000 x 200 x 784, tanh": Case("linear", lambda s: _layer(s, 1000, 200, 784)),
    "linear 4096, tanh": Case("linear", lambda s: _layer(s, 4096, 4096, 4096)),
    "gibbs_half_step 4096, bfloat16": Case("gibbs_half_step", lambda s: _half_step(s, 4096, "bfloat16"), True),
    "gibbs_half_step 4096": Case("gibbs_half_step", lambda s: _half_step(s, 4096, "float32"), True),
    "CD-1, 784 x 500, batch 100": Case("contrastive_divergence", lambda s: _divergence(s, 100, 1), True),
    "CD-25, 784 x 500, batch 512": Case("contrastive_divergence", lambda s: _divergence(s, 512, 25), True),
    "free_energy": Case("free_energy", _free_energy),
    "AIS, 5000 runs, 100 temperatures": Case("annealed_importance_sampling", _annealing, True),
    **{
        f"lstm{backward} {units}, {dtype}": Case(
            f"lstm{backward}",
            functools.partial(_lstm_backward, units=units, dtype=dtype)
            if backward
            else functools.partial(_lstm, units=units, dtype=dtype),
        )
        for units, dtype in ((64, "float32"), (128, "float32"), (768, "float32"), (768, "bfloat16"))
        for backward in ("", "_backward")
    },
    **{
        f"conv2d{'_backward_' * bool(which)}{which}{', ' * bool(half)}{half}": Case(
            f"conv2d{'_backward_' * bool(which)}{which}",
            functools.partial(_convolution, which=which, dtype=half or "float32"),
        )
        for half in ("", "bfloat16")
        for which in ("", "input", "weight")
    },
}


def _own(op: str, example: Example) -> dict[str, Callable[[], Any]]:
    """The kernel's calls, by backend; those that refuse are left out."""
    spec = registry.specs()[op]
    inputs, attrs, updated = example
    found = {}
    for backend in OURS:
        entry = registry.entries(spec).get(backend)
        if entry is not None and entry.refusal(registry.signature(spec, inputs, attrs)) is None:
            outputs = updated if spec.updates else registry.run(spec, inputs, attrs, backend=backend)
            found[backend] = functools.partial(registry.run, spec, inputs, attrs, outputs=outputs, backend=backend)
    return found


def _arguments(op: str, example: Example) -> list[Any]:
    """What an expression is given: inputs without keys, attributes that are shapes, and what is updated."""
    if "shape" in example.attrs:
        return [example.attrs["shape"]]
    arrays = [a for a in example.inputs if isinstance(a, tuple) or a.dtype != np.uint64]
    if op == "gaussian_sample_backward":
        arrays.append(_normal(*arrays[0].shape))  # a library that does not draw again has kept the noise
    return [*arrays, *example.updated]


def _shared(function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
    """The arrays among the arguments as another library's, on the same memory."""

    def convert(a: Any) -> Any:
        if isinstance(a, tuple):
            return tuple(map(convert, a))
        return function(a) if isinstance(a, cupy().ndarray) else a

    return list(map(convert, arguments))


def _rivals(op: str, arguments: Sequence[Any]) -> dict[str, Callable[[], Callable[[], Any]]]:
    """The same in other libraries, those that are installed: what makes the call."""
    found: dict[str, Callable[[], Callable[[], Any]]] = {}
    if (expression := expressions.of_cupy().get(op)) is not None:
        found[CUPY] = functools.partial(functools.partial, expression, *arguments)
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available() and (of_torch := expressions.of_torch().get(op)) is not None:
            peers.library(TORCH).configure("cuda")
            found[TORCH] = lambda: functools.partial(of_torch, *_shared(torch.from_dlpack, arguments))
            if op != "adam":
                compiled = torch.compile(of_torch, dynamic=False)
                found[COMPILED] = lambda: functools.partial(compiled, *_shared(torch.from_dlpack, arguments))
    if importlib.util.find_spec("jax") is not None:
        import jax

        if jax.default_backend() == "gpu" and (of_jax := expressions.of_jax().get(op)) is not None:
            peers.library(JAX).configure("cuda")
            static = tuple(i for i, a in enumerate(arguments) if type(a) is tuple and type(a[0]) is int)
            jitted = jax.jit(of_jax, static_argnums=static)
            found[JAX] = lambda: functools.partial(jitted, *_shared(jax.dlpack.from_dlpack, arguments))
    return found


def _host(result: Any) -> np.ndarray:
    """The first array of a result, in float64."""
    first = result
    while isinstance(first, (tuple, list)):
        first = first[0]
    if hasattr(first, "get"):
        return first.get().astype(np.float64)
    return np.asarray(first.float().cpu() if hasattr(first, "cpu") else first, np.float64)


def measure_kernel(name: str, share: float, device: Device) -> dict[str, Any]:
    """Time a kernel's backends and its rivals; print a line of each, ours with the ratios to the rivals' times; return
    the figures."""
    case = KERNELS[name]
    spec = registry.specs()[case.op]
    example = case.make(share)
    calls, absent = _own(case.op, example), {}
    ours = list(calls)
    expected = None if case.random or spec.updates else {b: _host(call()) for b, call in calls.items()}
    for rival, make in _rivals(case.op, _arguments(case.op, example)).items():
        try:
            call = make()
            result = call()
        except Exception as error:  # whatever a library raises where it cannot compile, say, which is not our say
            absent[rival] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            continue
        for backend, own in (expected or {}).items():
            _compare(name, backend, own, rival, _host(result))
        calls[rival] = call
    synchronize = cupy().cuda.Device().synchronize
    times = bench.compare(calls, synchronize=synchronize, **TIMING)
    figures = {}
    for contender in calls:
        seconds = times.time(contender).median
        report = bench.KernelReport.of(spec, example.inputs, example.attrs, ours[0], seconds=seconds, device=device)
        figures[contender] = {"seconds": seconds, "share": report.share}
        print(
            f"{name[:30]:<31}{contender:<15}{bench.format_seconds(seconds):>8}{report.share:>7.0%} of the floor, "
            f"by {report.bound}{_beside_rivals(contender, times) if contender in ours else ''}",
            flush=True,
        )
    for rival, why in absent.items():
        print(textwrap.shorten(f"{name[:30]:<31}{rival}: not measured, since {why}", 110))
    return {"contenders": figures, "floor": report.floor, "bound": report.bound, "absent": absent}


def _beside_rivals(own: str, times: bench.Comparison) -> str:
    """Ratios of a backend's time to the rivals', in the same blocks: ``"; 0.25 x CuPy, 0.80 x PyTorch"``."""
    rivals = [contender for contender in times.blocks if contender not in OURS]
    ratios = [f"{bench.Comparison(rival, times.blocks).ratio(own).median:.2f} x {rival}" for rival in rivals]
    return "; " * bool(ratios) + ", ".join(ratios)


def _compare(name: str, backend: str, own: np.ndarray, rival: str, other: np.ndarray) -> None:
    """Raise unless two results agree as well as a product in TF32 or bfloat16 may."""
    distance = np.linalg.norm(own - other) / max(float(np.linalg.norm(other)), 1e-30)
    if not distance < 1e-2:
        raise compare.Disagreement(f"{name}: {backend} is {distance:.1e} from {rival}: nothing to compare")


# ---------------------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------------------


def measure_step(name: str, small: bool) -> dict[str, Any]:
    """Time a step, captured and eager, and the peers'; print the table and return the figures."""
    step, title, sizes = STEPS[name]
    sizes = {"device": "cuda", **sizes, **(compare.STEPS[step].small if small else {})}
    case = compare.Case(step, **sizes)
    case.run(synchronize=cupy().cuda.Device().synchronize, **TIMING)
    result = case.result()
    print(f"\n{name}: {title}\n{result}", flush=True)
    peaks = {who: _peak(who, case.steps[who]) for who in (compare.EAGER, TORCH) if who in case.steps}
    if COMPILED in case.steps and name in AIMS and AIMS[name].memory:
        peaks[COMPILED] = _peak(COMPILED, _without_graphs(step, sizes))
    print(f"at most beside what a step leaves: {memory_text(peaks)}", flush=True)
    return result.as_json() | {"title": title, "absent": case.absent, "peak": peaks}


def _peak(contender: str, call: Callable[[], Any]) -> int:
    """The most bytes of the GPU that a step has at once, beside what is there after it, its gradients and results
    among that. Not of captured steps, which have their memory before; JAX does not tell."""
    if contender == compare.EAGER:
        pool = cupy().cuda.MemoryPool()  # what a new pool has taken from the device is the peak
        with cupy().cuda.using_allocator(pool.malloc):
            left = call()
            peak = pool.total_bytes() - pool.used_bytes()
            del left
        return peak
    import torch

    torch.cuda.reset_peak_memory_stats()
    left = call()
    peak = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    del left
    return peak


def _without_graphs(step: str, sizes: Mapping[str, Any]) -> Callable[[], Any]:
    """A step of torch.compile without CUDA graphs: the same kernels and buffers, in memory that the library counts."""
    library = peers.library(COMPILED)
    kept, library.MODE = library.MODE, None
    try:
        call = compare.build(step, COMPILED, compare.STEPS[step].make(**sizes), sizes)
        for _ in range(compare.WARM_UP):
            call()
    finally:
        library.MODE = kept
    return call


def memory_text(peaks: Mapping[str, int]) -> str:
    """Our peak in MiB, and the others' with ours over them in brackets."""
    ours = peaks[compare.EAGER]
    others = {who: peak for who, peak in peaks.items() if who != compare.EAGER}
    texts = [f"{who} {peak / 2**20:.1f}" + f" ({ours / peak:.2f})" * (peak > 0) for who, peak in others.items()]
    return ", ".join([f"{ours / 2**20:.1f} MiB", *texts])


def measure(
    share: float = 1.0,
    names: Sequence[str] = (),
    minutes: float = math.inf,
    keep: Callable[[dict[str, Any]], None] = lambda figures: None,
) -> dict[str, Any]:
    """Measure the kernels and steps of these names, all by default, and return the figures.

    Parameters
    ----------
    minutes : after so many none is begun any more.
    keep : called with the figures so far after each: what was measured before a crash is not lost.

    A case that fails is told, kept among ``failed``, and the others are measured.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take three quarters of the memory
    started = time.monotonic()
    device = bench.measure_gpu(share)
    print(f"{device.name}: copies {device.copy_rate / 1e12:.2f} TB/s, float32 products "
          f"{device.product_rate / 1e12:.1f} Tflop/s, 16-bit {device.half_factor:.1f} times that\n")  # fmt: skip
    figures: dict[str, Any] = {
        "gpu": dataclasses.asdict(device), "kernels": {}, "steps": {}, "failed": {}, "versions": _versions(),
    }  # fmt: skip
    left = [name for name in (*KERNELS, *STEPS) if not names or name in names]
    left.sort(key=lambda name: name not in AIMS)  # what is aimed at comes first
    while left and time.monotonic() - started < 60.0 * minutes:
        name = left.pop(0)
        try:
            if name in KERNELS:
                figures["kernels"][name] = measure_kernel(name, share, device)
            else:
                figures["steps"][name] = measure_step(name, share < 1.0)
        except Exception as error:  # one kernel's defect is no reason not to measure the others
            traceback.print_exc()
            figures["failed"][name] = f"{type(error).__name__}: {error}"
        keep(figures)
        if name in figures["failed"] and not _works():
            print("the GPU takes nothing more from this process")
            break
    print(f"\nmeasured in {time.monotonic() - started:.0f} s")
    if left:
        print(f"the others: python -m benchmarks.gpu {shlex.join(left)}")
    return figures


def _works() -> bool:
    """Whether the GPU still computes for this process: not after an address that is none, say."""
    try:
        cupy().cuda.Device().synchronize()
    except cupy().cuda.runtime.CUDARuntimeError:
        return False
    return True


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("gmcore", "numpy", "cupy-cuda12x", "cupy-cuda13x", "triton", "torch", "jax"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _keep(figures: Mapping[str, Any], results: Path) -> None:
    """Write figures beside those of the same device that there are, in place of those of the same name."""
    path = results / (figures["gpu"]["name"].removesuffix(" (measured)").lower().replace(" ", "-") + ".json")
    kept = json.loads(path.read_text()) if path.exists() else {}
    merged = {kind: kept.get(kind, {}) | figures[kind] for kind in ("kernels", "steps", "failed")}
    merged["failed"] = {
        name: why for name, why in merged["failed"].items() if name not in figures["kernels"] | figures["steps"]
    }
    write_atomically(path, (json.dumps({**figures, **merged}, indent=1) + "\n").encode())


def main(argv: Sequence[str] | None = None, results: Path = RESULTS) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="kernels and steps (default: all)")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual sizes; less than 1 is a rehearsal")
    parser.add_argument("--minutes", type=float, default=7.0, help="after which no other is begun (default: 7)")
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        if name not in KERNELS and name not in STEPS:
            parser.error(f"{name}: expected {', '.join([*KERNELS, *STEPS])}")
    try:
        cupy()
    except GmcoreError as error:
        parser.error(str(error))
    keep = functools.partial(_keep, results=results) if arguments.share == 1.0 else lambda figures: None
    figures = measure(arguments.share, arguments.names, arguments.minutes, keep)
    if figures["failed"]:
        sys.exit("\n".join(["failed:", *(f"  {name}: {why}" for name, why in figures["failed"].items())]))


if __name__ == "__main__":
    main()
