"""What a kernel call must at least cost on a device.

A call moves `bytes`, performs `flops` in matrix products, and issues `slots` scalar instructions (an element
that needs 60 arithmetic instructions has 60 slots, however many the hardware executes at once). On a device
that can do each at a known rate, no kernel is faster than

    floor = max(bytes / copy_rate, flops / product_rate, slots / slot_rate)        [seconds]

the roofline of Williams, Waterman & Patterson (CACM 52(4), 2009) with an issue-slot roof beside the two usual
ones. The floor ranks kernels in `registry` and is what `bench` reports shares of.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Cost:
    """Work of one call: `bytes` moved, product `flops`, scalar instruction `slots`.

    Parameters
    ----------
    bytes : moved from and to memory.
    flops : multiplications and additions of matrix products.
    slots : other scalar instructions.
    """

    bytes: float = 0.0
    flops: float = 0.0
    slots: float = 0.0


@dataclass(frozen=True)
class Device:
    """Rates of a device: bytes/s copied, product flop/s and instruction slots/s in float32.

    float64 halves the product and the slot rates on a vector unit (`wide_factor`).

    Parameters
    ----------
    name : for people.
    copy_rate, product_rate, slot_rate : the rates; `floor` says of what.
    wide_factor : what is left of the product and slot rates with elements of more than 4 bytes.
    """

    name: str
    copy_rate: float
    product_rate: float
    slot_rate: float
    wide_factor: float = 0.5

    def floor(self, cost: Cost, itemsize: int = 4) -> float:
        """Least time in seconds in which this device can do `cost` on elements of `itemsize` bytes.

        Parameters
        ----------
        cost : the work of a call.
        itemsize : bytes of an element.

        Returns
        -------
        max(bytes / copy_rate, flops / product_rate, slots / slot_rate), the latter rates times `wide_factor` if wide.
        """
        return max(self.times(cost, itemsize).values())

    def times(self, cost: Cost, itemsize: int = 4) -> dict[str, float]:
        """Seconds that the parts of `cost` take, each as if it were alone; the longest is what bounds a call.

        Parameters
        ----------
        cost : the work of a call.
        itemsize : bytes of an element.

        Returns
        -------
        dict: ``"copy"``, ``"product"`` and ``"slots"`` -> seconds.
        """
        factor = 1.0 if itemsize <= 4 else self.wide_factor
        return {
            "copy": cost.bytes / self.copy_rate,
            "product": cost.flops / (self.product_rate * factor),
            "slots": cost.slots / (self.slot_rate * factor),
        }


@cache
def nominal_cpu() -> Device:
    """The CPU at nominal rates per core: enough to rank kernels without timing anything in a user's call.

    `bench.measure_cpu` gives the measured rates that reports use.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Device(f"cpu x{cores} (nominal)", 6e9 * min(cores, 4), 80e9 * cores, 20e9 * cores)
