"""Kernels whose Python runs once for calls of one form, and whose launches are repeated after that.

The Python of a CPU kernel finds out how its block kernels are launched: into how many blocks, with which sizes and with
which pointers. For small arrays that takes ten times as long as the work. Where it follows from the shapes, dtypes,
strides and attributes alone, a second call of the same form needs new pointers and nothing else.

What is to be repeated is found by a rehearsal, on arrays that nobody else has, in which nothing is launched and NumPy
is refused to write. Among the arguments there, a number in the range of an array's addresses is an address in it;
arrays of int64 that the kernel has made may hold such addresses, or counters, and others of its arrays are constants.
"""

from __future__ import annotations

import array
import mmap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gmkernels import pool
from gmkernels.blas import single_threaded
from gmkernels.registry import flat


class _Program(NamedTuple):
    """The launches of a call of a kernel."""

    memory: array.array[int]
    """The argument records of the launches, and arrays of int64 that they point to."""
    own: list[tuple[int, int]]
    """(place in `memory`, what lies there is the address of this other place in it, in bytes)."""
    given: list[tuple[int, int, int]]
    """(place in `memory`, what lies there is an address in this array of the call, so many bytes after its start)."""
    launches: list[tuple[int, int, int]]
    """(function, blocks, where its record begins, in bytes)."""
    alone: bool
    """Whether one calls BLAS."""
    kept: list[Any]
    """Arrays that the kernel's Python has made, which the records point to."""


class Replay:
    """A kernel, for calls whose arrays have the same shapes, dtypes and strides and whose attributes are the same.

    Parameters
    ----------
    kernel : all that its Python does follows from these.
    updates : it wants outputs that can be written, so that NumPy is not found out that writes there.
    """

    def __init__(self, kernel: Callable[..., None], updates: bool) -> None:
        self._kernel = kernel
        self._updates = updates
        self._is_new = True
        self._program: _Program | None = None

    def __call__(
        self, inputs: Sequence[Any], outputs: Sequence[Any], workspace: Sequence[Any], attrs: Mapping[str, Any]
    ) -> None:
        program = self._program
        if program is None or pool.is_watched():
            self._kernel(inputs, outputs, workspace, attrs)
            if self._is_new:
                self._is_new = False
                self._program = _rehearsed(self._kernel, self._updates, inputs, outputs, workspace, attrs)
            return
        memory, own, given, launches, alone, _ = program
        arrays = [*inputs, *outputs, *workspace]
        if type(arrays[0]) is tuple:
            arrays = list(flat(arrays))
        memory = memory[:]  # two threads may run one program
        start = memory.buffer_info()[0]
        for place, offset in own:
            memory[place] = start + offset
        addresses = pool.addresses(arrays)
        for place, number, offset in given:
            memory[place] = addresses[number] + offset
        if alone:
            with single_threaded():
                for function, blocks, record in launches:
                    pool.launch(function, blocks, start + record)
        else:
            for function, blocks, record in launches:
                pool.launch(function, blocks, start + record)


def _like(a: Any, writeable: bool) -> Any:
    """Other memory of the same form as an array, or as each of a tuple."""
    if type(a) is tuple:
        return tuple([_like(each, writeable) for each in a])
    # Mapped, since the heap may lie so low that a size could pass for an address in it.
    made = np.ndarray(a.shape, a.dtype, mmap.mmap(-1, a.nbytes + 1), 0, a.strides)
    made.flags.writeable = writeable
    return made


def _rehearsed(kernel: Callable[..., None], updates: bool, *call: Any) -> _Program | None:
    """What a kernel launches in calls like this one; None where that is not all that it does."""
    *parts, attrs = call
    if not all(a.flags.c_contiguous or (a.ndim == 2 and a.flags.f_contiguous) for part in parts for a in flat(part)):
        return None  # the kernel may pack it
    parts = [[_like(a, updates) for a in part] for part in parts]
    try:
        with pool.rehearsal() as launches, np.errstate(all="ignore"):
            kernel(*parts, attrs)
    except ValueError:  # it computes with NumPy, too
        return None
    return _program(launches, list(flat([a for part in parts for a in part]))) if launches else None


def _program(launches: Sequence[pool.Launch], arrays: Sequence[np.ndarray]) -> _Program:
    """The launches of a rehearsal on these arrays."""
    memory = array.array("q")
    own: list[tuple[int, int]] = []
    given: list[tuple[int, int, int]] = []
    table: list[tuple[int, int, int]] = []
    places: list[tuple[int, Any]] = []
    kept: list[Any] = []
    starts = pool.addresses(arrays)

    def append(value: int) -> bool:
        """Append a number; whether it is an address in one of the arrays."""
        memory.append(value)
        for number, (a, start) in enumerate(zip(arrays, starts, strict=True)):
            if start <= value < start + max(a.nbytes, 1):
                given.append((len(memory) - 1, number, value - start))
                return True
        return False

    for launch in launches:
        kinds, record = launch.kernel.record(launch.arguments)
        table.append((launch.kernel.address(kinds), launch.blocks, len(memory) * memory.itemsize))
        for i, a in enumerate(launch.arguments):
            if not append(record[2 * i]) and kinds[i]:
                if a.dtype == np.int64:
                    places.append((len(memory) - 1, a))
                else:
                    kept.append(a)
            memory.append(record[2 * i + 1])
    for place, a in places:
        own.append((place, len(memory) * memory.itemsize))
        for value in a.ravel().tolist():
            append(value)
    return _Program(memory, own, given, table, any(launch.alone for launch in launches), kept)
