"""Timing: what this machine can do, contenders against each other, a kernel against its floor.

Absolute times on a shared machine say little, so `compare` reports ratios. Contenders run in one process, in
alternating blocks with a pause between: their thread pools spin for a while after a parallel region, and would
fight each other for the cores if calls alternated one by one. A ratio is taken within each block, so what slows
a whole block down cancels.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gmkernels import pool
from gmkernels.arrays import on_gpu
from gmkernels.cost import Cost, Device, nominal_gpu
from gmkernels.elementary import fma
from gmkernels.registry import KernelError, KernelSpec, flat, is_float, run, select
from gmkernels.rows import copy_row

Call = Callable[[], object]


def _no_wait() -> None:
    """Work on a CPU is done when its call returns."""


def median_time(call: Call, *, seconds: float = 0.2, synchronize: Call = _no_wait) -> float:
    """Median time of a call in seconds, over the calls of `seconds`, after a warm-up of a fifth of that.

    Parameters
    ----------
    synchronize : waits until the work that `call` started is done; part of the time measured.
    call : what to time, without arguments.
    seconds : length of the measurement.

    Returns
    -------
    Seconds of one call.
    """

    _times(call, seconds / 5, 1, synchronize)
    return float(np.median(_times(call, seconds, 3, synchronize))) * 1e-9


def _times(call: Call, duration: float, least: int, synchronize: Call = _no_wait) -> list[int]:
    """Nanoseconds of each call, for `duration` seconds and at least so many calls."""
    found: list[int] = []
    end = time.perf_counter_ns() + int(duration * 1e9)
    while len(found) < least or time.perf_counter_ns() < end:
        start = time.perf_counter_ns()
        call()
        synchronize()
        found.append(time.perf_counter_ns() - start)
    return found


def least_time(call: Call, seconds: float = 0.3) -> float:
    """Least time of a call: what the machine can do when nothing else wants it.

    Parameters
    ----------
    call : what to time, without arguments.
    seconds : length of the measurement.

    Returns
    -------
    Seconds of one call.
    """
    call()  # compiles
    return min(_times(call, seconds, 5)) * 1e-9


# ---------------------------------------------------------------------------------------------------------
# The machine
# ---------------------------------------------------------------------------------------------------------

_COPY_BYTES = 1 << 27  # of both arrays: beyond the caches
_COPY_BLOCK = 1 << 14
_PRODUCT_SIZE = 480  # whose sums are written once; of 1024 they are in two parts, and 4096 bytes apart: a fifth slower
_POLYNOMIAL_TILE, _POLYNOMIAL_PASSES, _POLYNOMIAL_SLOTS = 2048, 64, 18


@pool.block_kernel
def _copy(block: Any, x: Any, y: Any) -> None:
    low = block * _COPY_BLOCK
    width = min(_COPY_BLOCK, x.size - low)
    copy_row(pool.part(x, low, width), pool.part(y, low, width))


@pool.jitable
def _four_polynomials(tile: Any, a: Any, b: Any) -> None:
    # Enough independent arithmetic on an element to hide its load, its store and the latency.
    pool.long_loop()
    for i in range(tile.size):
        t = tile[i]
        p = fma(fma(fma(fma(t, a, b), a, b), b, a), a, b)
        q = fma(fma(fma(fma(t, b, b), a, b), b, a), b, b)
        r = fma(fma(fma(fma(t, a, a), a, b), b, a), a, a)
        s = fma(fma(fma(fma(t, b, a), b, b), b, a), a, b)
        tile[i] = fma(p, q, r * s)


@pool.block_kernel
def _polynomial(block: Any, factors: Any, x: Any) -> None:
    tile = x[block * _POLYNOMIAL_TILE : (block + 1) * _POLYNOMIAL_TILE]  # stays in the L1 cache
    for _ in range(_POLYNOMIAL_PASSES):
        _four_polynomials(tile, factors[0], factors[1])


@functools.cache
def measure_cpu(copied: int = _COPY_BYTES) -> Device:
    """The rates that this machine reaches with the pool's threads, in float32; measured once per process.

    The product rate is that of `matmul` as the registry runs it. The slot rate counts fused multiply-adds, one slot
    each, of a loop of the widest vectors in the L1 cache.

    Parameters
    ----------
    copied : bytes that the copy reads and writes, both counted, in which the copy rate is measured; that of as many
        as a kernel touches is higher than that of the memory where they stay in a cache from call to call.

    Returns
    -------
    A `Device`.
    """
    product_rate, slot_rate = _arithmetic_rates()
    x = np.ones(max(1, copied // 8), np.float32)
    y = np.empty_like(x)
    copy = least_time(lambda: _copy(-(-x.size // _COPY_BLOCK), x, y), 0.1)
    return Device(f"cpu x{pool.get_num_threads()} (measured)", 2 * x.nbytes / copy, product_rate, slot_rate)


@functools.cache
def _arithmetic_rates() -> tuple[float, float]:
    """Of products and of instruction slots."""
    from gmkernels.dense.spec import MATMUL

    a = np.ones((_PRODUCT_SIZE, _PRODUCT_SIZE), np.float32)
    c = np.empty_like(a)
    product = least_time(lambda: run(MATMUL, (a, a), outputs=(c,)))

    factors = np.array([0.5, 0.25], np.float32)
    tiles = np.ones(8 * pool.get_num_threads() * _POLYNOMIAL_TILE, np.float32)
    polynomial = least_time(lambda: _polynomial(tiles.size // _POLYNOMIAL_TILE, factors, tiles))
    return 2 * _PRODUCT_SIZE**3 / product, tiles.size * _POLYNOMIAL_PASSES * _POLYNOMIAL_SLOTS / polynomial


_GPU_COPY_BYTES = 1 << 30
_GPU_PRODUCT_SIZE = 8192
_LANES = 128  # of a multiprocessor: single-precision operations that it issues in a clock


@functools.cache
def measure_gpu(share: float = 1.0) -> Device:
    """The rates that the current GPU reaches; measured once per process.

    Parameters
    ----------
    share : of the usual sizes, for a rehearsal where there is no GPU.

    Returns
    -------
    A `Device`: bytes read and written by a copy of one GiB; flops of the product of two matrices of size 8192 by
    cuBLAS in float32 (without TF32), and in bfloat16 relative to that; and slots at the clock that the driver
        states, 128 a clock and multiprocessor.
    """
    import cupy
    from ml_dtypes import bfloat16

    device = cupy.cuda.Device()
    synchronize = device.synchronize

    def seconds(call: Call) -> float:
        return median_time(call, seconds=0.1, synchronize=synchronize)

    x = cupy.ones(max(16, int(share * _GPU_COPY_BYTES) // 4), np.float32)
    y = cupy.empty_like(x)
    copy = seconds(lambda: cupy.copyto(y, x))
    nominal = nominal_gpu(device.id)
    rates = {}
    n = max(16, int(share * _GPU_PRODUCT_SIZE))
    for dtype in (np.float32, bfloat16):
        # Random numbers: on ones the products draw less power and run faster.
        a = (cupy.sin(cupy.arange(n * n, dtype=np.float32)).reshape(n, n)).astype(dtype)
        rates[dtype] = 2 * n**3 / seconds(functools.partial(cupy.matmul, a, a))
    attributes = device.attributes
    clock = 1e3 * attributes.get("ClockRate", 0) * attributes["MultiProcessorCount"]
    return Device(
        f"{cupy.cuda.runtime.getDeviceProperties(device.id)['name'].decode()} (measured)",
        copy_rate=2 * x.nbytes / copy,
        product_rate=rates[np.float32],
        slot_rate=_LANES * clock if clock else nominal.slot_rate,
        wide_factor=nominal.wide_factor,
        half_factor=rates[bfloat16] / rates[np.float32],
    )


def describe_load() -> str | None:
    """A sentence that says so if other processes want the processors now, or None: times would tell little.

    Returns
    -------
    str, or None also where the system does not tell its load.
    """
    processors = os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load < 0.5 * processors:
        return None
    return (
        f"{load:.1f} processes want {processors} processors: times and shares of the floor are those of a busy machine"
    )


# ---------------------------------------------------------------------------------------------------------
# Contenders
# ---------------------------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """A median and its quartiles."""

    median: float
    low: float
    high: float


def _spread(values: Sequence[float]) -> Spread:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return Spread(float(median), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """Times of contenders, block by block; `str()` prints medians, quartiles and ratios to the baseline."""

    baseline: str
    blocks: dict[str, list[float]]
    """The median time in seconds of each block, by contender."""

    def time(self, name: str) -> Spread:
        """Seconds of a call, over the blocks."""
        return _spread(self.blocks[name])

    def ratio(self, name: str) -> Spread:
        """Time relative to the baseline's in the same block, over the blocks."""
        return _spread([a / b for a, b in zip(self.blocks[name], self.blocks[self.baseline], strict=True)])

    def as_json(self) -> dict[str, Any]:
        """For programs: seconds and ratios of each contender, as ``{"median", "low", "high"}``."""
        return {
            "baseline": self.baseline,
            "contenders": {
                name: {"seconds": self.time(name)._asdict(), "ratio": self.ratio(name)._asdict(), "blocks": times}
                for name, times in self.blocks.items()
            },
        }

    def __str__(self) -> str:
        lines = [f"{'contender':<26}{'median':>10}  {'quartiles':<19}{'to ' + self.baseline[:15]:>20}  quartiles"]
        for name in self.blocks:
            seconds, ratio = self.time(name), self.ratio(name)
            quartiles = f"{format_seconds(seconds.low)} - {format_seconds(seconds.high)}"
            lines.append(
                f"{name[:25]:<26}{format_seconds(seconds.median):>10}  {quartiles:<19}{ratio.median:>20.3g}"
                f"  {ratio.low:.3g} - {ratio.high:.3g}"
            )
        return "\n".join(lines)


def format_seconds(seconds: float) -> str:
    """Three digits and the unit: ``"12.3 us"``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def compare(
    contenders: Mapping[str, Call],
    *,
    baseline: str | None = None,
    blocks: int = 7,
    seconds: float = 0.3,
    pause: float = 0.25,
    synchronize: Call = _no_wait,
    burst: int = 1,
) -> Comparison:
    """Time `contenders` in alternating blocks, whose order is reversed from block to block.

    Parameters
    ----------
    contenders : name -> the call to time.
    baseline : the contender that ratios are relative to; the first if None.
    blocks : number of blocks of each contender.
    seconds : length of a block, after its warm-up (see `median_time`).
    pause : seconds between blocks, in which spinning thread pools go to sleep.
    synchronize : as in `median_time`.
    burst : calls between two readings of the clock: on a GPU so many are under way at once, as in a user's loop.

    Returns
    -------
    A `Comparison`, which prints as a table.

    Raises
    ------
    KernelError : no contenders, a baseline that is not among them, or no blocks.
    """
    names = list(contenders)
    if not names or blocks < 1:
        raise KernelError(f"compare: expected contenders and at least 1 block, got {names} and {blocks}")
    baseline = names[0] if baseline is None else baseline
    if baseline not in contenders:
        raise KernelError(f"compare: baseline {baseline!r} is not among the contenders {', '.join(names)}")
    found: dict[str, list[float]] = {name: [] for name in names}
    for block in range(blocks):
        for name in names if block % 2 == 0 else reversed(names):
            time.sleep(pause)
            call = contenders[name] if burst == 1 else functools.partial(_repeat, contenders[name], burst)
            found[name].append(median_time(call, seconds=seconds, synchronize=synchronize) / burst)
    return Comparison(baseline, found)


def _repeat(call: Call, times: int) -> None:
    for _ in range(times):
        call()


# ---------------------------------------------------------------------------------------------------------
# One kernel
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KernelReport:
    """The time of a kernel's call beside its floor on the device."""

    op: str
    backend: str
    device: Device
    cost: Cost
    seconds: float
    floor: float
    bound: str
    """The part of the cost that makes the floor: ``"copy"``, ``"product"`` or ``"slots"``."""
    elements: int
    """Size of the call, by the spec."""

    @classmethod
    def of(
        cls,
        spec: KernelSpec,
        inputs: Sequence[Any],
        attrs: Mapping[str, Any],
        backend: str | None = None,
        *,
        seconds: float,
        device: Device | None = None,
    ) -> KernelReport:
        """The report of a call that took `seconds`; on the measured device of its arrays, if none is given.

        On a CPU that copies as many bytes as the call reads and writes, since both stay in the same cache.
        """
        arrays = list(flat(inputs))
        itemsize = max((a.dtype.itemsize for a in arrays if is_float(a.dtype.name)), default=4)
        cost = spec.cost(*inputs, **attrs)
        if device is None:
            device = measure_gpu() if any(map(on_gpu, arrays)) else measure_cpu(int(cost.bytes))
        times = device.times(cost, itemsize)
        return cls(
            op=spec.name,
            backend=select(spec, inputs, attrs, backend).backend,
            device=device,
            cost=cost,
            seconds=seconds,
            floor=device.floor(cost, itemsize),
            bound=max(times, key=lambda part: times[part]),
            elements=spec.size(*inputs, **attrs) if spec.size else max((a.size for a in arrays), default=0),
        )

    @property
    def share(self) -> float:
        """Share of the floor that the kernel reaches."""
        return self.floor / self.seconds

    def __str__(self) -> str:
        return (
            f"{self.op} on {self.backend}: {format_seconds(self.seconds)}, {self.share:.0%} of the floor "
            f"{format_seconds(self.floor)}, {self.seconds / max(1, self.elements) * 1e9:.3g} ns/element"
        )


def report_kernel(
    spec: KernelSpec,
    inputs: Sequence[Any],
    attrs: Mapping[str, Any] | None = None,
    backend: str | None = None,
    *,
    outputs: Sequence[Any] | None = None,
    seconds: float = 0.2,
    synchronize: Call = _no_wait,
) -> KernelReport:
    """Median time of a call through `registry.run` with outputs of the caller's, and its floor on this machine.

    Parameters
    ----------
    spec, inputs, attrs, backend : as for `registry.run`.
    outputs : must be given for a spec that updates them in place; allocated once if None.
    seconds, synchronize : as in `median_time`.

    Returns
    -------
    A `KernelReport`, which prints as a line.

    Raises
    ------
    KernelError : a call that does not fit the spec, or a backend that refuses it.
    """
    attrs = attrs or {}
    if outputs is None:
        outputs = run(spec, inputs, attrs, backend=backend)
    call = functools.partial(run, spec, inputs, attrs, outputs=outputs, backend=backend)
    elapsed = median_time(call, seconds=seconds, synchronize=synchronize)
    return KernelReport.of(spec, inputs, attrs, backend, seconds=elapsed)
