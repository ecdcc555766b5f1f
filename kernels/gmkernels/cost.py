"""What a kernel call must at least cost on a device.

A call moves `bytes`, performs `flops` in matrix products, and issues `slots` scalar instructions (an element
that needs 60 arithmetic instructions has 60 slots, however many the hardware executes at once). On a device
that can do each at a known rate, no kernel is faster than

    floor = max(bytes / copy_rate, flops / product_rate, slots / slot_rate)        [seconds]

the roofline of Williams, Waterman & Patterson (CACM 52(4), 2009) with an issue-slot roof beside the two usual
ones. The floor ranks kernels in `registry` and is what `bench` reports shares of.

It says nothing of waiting, which is most of the time of a kernel of a GPU that takes many steps one after another. Such
kernels are ranked by estimates of their own, made of the `LAUNCH`es, `BARRIER`s and `STEP`s of a call and the `rounds`
of its blocks. These numbers follow from what is published; no kernel of this package was measured for them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

STEP, BARRIER, LAUNCH = 2e-6, 1.5e-6, 3e-6
"""Seconds on a GPU of a step that waits for the one before it, and what comes to it where the blocks of a grid wait for
each other, or where it is a launch of its own. From an LSTM with 16 sequences of 1024 steps in bfloat16, forward
(Pöppel, Beck & Hochreiter, FlashRNN, arXiv:2412.07752): one kernel takes 1.99 ms with heads of 64; one whose blocks
wait for each other 4.87 ms with 768 units, of which exchanging states has a part; two launches a step 10.8 ms."""
CACHE_RATE = 1e11
"""Bytes/s that one multiprocessor reads from the second-level cache: 64 bytes a cycle at 1.6 GHz."""


@dataclass(frozen=True)
class Cost:
    """Work of one call: `bytes` moved, product `flops`, scalar instruction `slots`.

    Parameters
    ----------
    bytes : moved from and to memory.
    flops : multiplications and additions of matrix products.
    slots : other scalar instructions.
    itemsize : bytes of an operand of the products; None: of the widest floating input.
    """

    bytes: float = 0.0
    flops: float = 0.0
    slots: float = 0.0
    itemsize: int | None = None


@dataclass(frozen=True)
class Device:
    """Rates of a device: bytes/s copied, product flop/s and instruction slots/s in float32.

    float64 halves the product and the slot rates on a vector unit (`wide_factor`); the matrix units of a GPU multiply
    16-bit elements faster than a vector unit does wider ones (`half_factor`).

    Parameters
    ----------
    name : for people.
    copy_rate, product_rate, slot_rate : the rates; `floor` says of what.
    wide_factor : what is left of the product and slot rates with elements of more than 4 bytes.
    half_factor : what the product rate is multiplied by with elements of 2 bytes.
    multiprocessors : that share the rates.
    """

    name: str
    copy_rate: float
    product_rate: float
    slot_rate: float
    wide_factor: float = 0.5
    half_factor: float = 1.0
    multiprocessors: int = 1

    def floor(self, cost: Cost, itemsize: int = 4) -> float:
        """Least time in seconds in which this device can do `cost` on elements of `itemsize` bytes.

        Parameters
        ----------
        cost : the work of a call.
        itemsize : bytes of an element, unless the cost says it.

        Returns
        -------
        max(bytes / copy_rate, flops / product_rate, slots / slot_rate), the latter rates times `wide_factor` if wide,
        and the product rate times `half_factor` if elements have 2 bytes.
        """
        return max(self.times(cost, itemsize).values())

    def times(self, cost: Cost, itemsize: int = 4) -> dict[str, float]:
        """Seconds that the parts of `cost` take, each as if it were alone; the longest is what bounds a call.

        Parameters
        ----------
        cost : the work of a call.
        itemsize : bytes of an element, unless the cost says it.

        Returns
        -------
        dict: ``"copy"``, ``"product"`` and ``"slots"`` -> seconds.
        """
        itemsize = cost.itemsize or itemsize
        factor = 1.0 if itemsize <= 4 else self.wide_factor
        product = self.half_factor if itemsize == 2 else factor
        return {
            "copy": cost.bytes / self.copy_rate,
            "product": cost.flops / (self.product_rate * product),
            "slots": cost.slots / (self.slot_rate * factor),
        }

    def rounds(self, cost: Cost, blocks: int) -> float:
        """Seconds of a GPU for so many equal blocks, of which each multiprocessor has one at a time.

        Parameters
        ----------
        cost : of a block; its bytes come from the second-level cache, and a slot also reads a byte of shared memory.
        blocks : their number.
        """
        at_once = min(blocks, self.multiprocessors)
        parts = self.times(Cost(0.0, cost.flops, cost.slots, cost.itemsize))
        alone = self.multiprocessors * max(parts.values())
        read = cost.bytes / min(CACHE_RATE, self.copy_rate / max(1, at_once))
        return -(-blocks // self.multiprocessors) * max(alone, read)


@cache
def nominal_cpu() -> Device:
    """The CPU at nominal rates per core: enough to rank kernels without timing anything in a user's call.

    `bench.measure_cpu` gives the measured rates that reports use.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Device(f"cpu x{cores} (nominal)", 6e9 * min(cores, 4), 80e9 * cores, 20e9 * cores)


_HALF_FACTORS = {80: 12.8, 90: 11.8}
"""By compute capability: 0.8 of the peak of the matrix units on 16-bit elements, over that of multiply-adds."""
_PINS = 0.88
"""Share of the rate of a memory's pins that a copy reaches: 4.3 of 4.9 TB/s, measured on an H200."""


@cache
def nominal_gpu(number: int) -> Device:
    """A GPU at nominal rates: enough to rank kernels and to say how far a call is from its floor.

    The rates follow from clocks and widths: 128 instruction slots of a multiprocessor per cycle, as many multiply-adds
    in float32 (half of that on the A100's kind), and two transfers of the memory bus per cycle of the memory.

    Parameters
    ----------
    number : of the device.
    """
    import cupy

    device = cupy.cuda.Device(number)
    capability, has = int(device.compute_capability), device.attributes
    count = has["MultiProcessorCount"]
    lanes = count * (has.get("ClockRate") or 1_700_000) * 1e3 * 128
    pins = 2 * (has.get("MemoryClockRate") or 2_600_000) * 1e3 * has["GlobalMemoryBusWidth"] / 8
    half = _HALF_FACTORS[max((known for known in _HALF_FACTORS if known <= capability), default=80)]
    product = 2 * lanes / (2 if capability == 80 else 1)
    name = f"cuda:{number}, {capability / 10:.1f} (nominal)"
    return Device(name, _PINS * pins, product, lanes, half_factor=half, multiprocessors=count)
