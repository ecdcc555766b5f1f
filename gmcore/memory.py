"""How much memory a piece of code needs at its peak."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class PeakMemory:
    """What `peak_memory` measures."""

    start: int
    """Bytes in use when the block was entered."""
    peak: int = 0
    """Most bytes in use inside the block beyond those of its start; set when the block is left."""


_open: list[PeakMemory] = []
_lock = threading.Lock()


def _settle() -> None:
    """Give the peak since the last call to every open block, and start a new one."""
    peak = tracemalloc.get_traced_memory()[1]
    for block in _open:
        block.peak = max(block.peak, peak - block.start)
    tracemalloc.reset_peak()


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measure the peak of the memory that Python and NumPy allocate inside the block, in all threads.

    Blocks nest. It counts by `tracemalloc`, which sees the buffers of NumPy but not what compiled code allocates by
    itself, and makes allocations some three times as slow: measure in a run of its own, not beside a timing.

        with gmcore.peak_memory() as memory:
            loss(x).backward()
        memory.peak                           # bytes
    """
    with _lock:
        if started := not tracemalloc.is_tracing():
            tracemalloc.start()
        _settle()
        block = PeakMemory(tracemalloc.get_traced_memory()[0])
        _open.append(block)
    try:
        yield block
    finally:
        with _lock:
            _settle()
            _open[:] = [other for other in _open if other is not block]
            if started:
                tracemalloc.stop()
