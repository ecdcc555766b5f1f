"""A recorded step as a CUDA graph: all its kernels, launched by one call.

The program is planned as on the CPU. Its instructions then run once while the stream is captured, on memory that stays
where it is, and a repetition launches the graph. What Python tells a step (keys of draws, learning rates, counts) and
arguments in the CPU's memory are written into one page-locked buffer, copied to the GPU in front of the graph.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import cupy
import numpy as np

from gmcore.device import memory_error
from gmcore.errors import CaptureError, DeviceMemoryError
from gmcore.program import ALIGNMENT, Program, rounded
from gmcore.recorder import Block, Instruction, Place, Recorder, mapped, places
from gmcore.tensor import Array, Tensor
from gmkernels.arrays import on_gpu
from gmkernels.launch import describe_memory
from gmkernels.registry import OLDEST_GPU

BUFFERS = 4
"""Repetitions whose numbers from the CPU may be on their way: the next waits for the first of them."""
NO_MEMORY = 2  # cudaErrorMemoryAllocation
MOST_FROM_CPU = 1 << 24
"""Bytes that a repetition copies from the CPU at most; a step that wants more has its data on the wrong device."""


Check = Callable[..., None]


class _Buffer(NamedTuple):
    """Page-locked memory for what one repetition takes from the CPU."""

    memory: Array
    hosts: list[Array | None]
    """Where what Python tells the step is written."""
    copies: list[tuple[Array, Array]]
    """Arrays in memory outside, and where their numbers go."""
    arguments: list[Array | None]
    """Where the arguments in the CPU's memory go; None for those on the GPU."""
    checks: list[Check]
    """Of what was taken from the CPU, before anything is launched."""
    copied: Any
    """The event that the copy to the GPU is done."""


def _check(recorder: Recorder) -> None:
    """Raise `CaptureError` where a step that uses a GPU cannot be a CUDA graph."""
    if len(recorder.gpus) > 1:
        names = " and ".join(f"cuda:{number}" for number in sorted(recorder.gpus))
        raise CaptureError(f"it uses arrays on {names}, and a CUDA graph is of one GPU")
    for instruction in recorder.instructions:
        reads = [place for place in instruction.reads if place.block is not None]
        for place in instruction.writes:
            if place.block is None or place.block.on_gpu:
                continue
            if any(read.block.on_gpu for read in reads if read.block is not None):
                raise CaptureError(f"{instruction.name} brings numbers back to the CPU (at {instruction.line})")
            if place.block.kind == "outside":
                raise CaptureError(
                    f"{instruction.name} writes the CPU's memory (at {instruction.line}), and a CUDA graph cannot"
                )
    needed = sum(block.size for block in _of_cpu(recorder, recorder.instructions))
    if needed > MOST_FROM_CPU:
        raise CaptureError(
            f"it takes {needed / 1e6:.0f} MB from the CPU's memory at each call; keep its data on the GPU"
        )


def _of_cpu(recorder: Recorder, instructions: Sequence[Instruction]) -> list[Block]:
    """The memory of the CPU that a step reads and does not compute."""
    given = [*recorder.arguments, *[place for _, place in recorder.hosts if place is not None]]
    read = itertools.chain(given, *[instruction.reads for instruction in instructions])
    blocks = dict.fromkeys(place.block for place in read if place.block is not None)
    return [block for block in blocks if not block.on_gpu and block.kind != "computed"]


def _array(value: Any) -> Array:
    return value._data if isinstance(value, Tensor) else value


def _twin(value: Any) -> Any:
    copy = _array(value).copy()
    return Tensor(copy) if isinstance(value, Tensor) else copy


class GraphProgram(Program):
    """What a captured step runs on a GPU.

    Parameters
    ----------
    recorder, result : as of `gmcore.program.Program`, whose attributes it has.

    Raises
    ------
    CaptureError : an instruction that cannot be part of a CUDA graph.
    DeviceMemoryError : no room for its memory, or for the graph.
    """

    form = ", one CUDA graph"

    def __init__(self, recorder: Recorder, result: Any) -> None:
        _check(recorder)
        self._device = cupy.cuda.Device(*recorder.gpus)
        self._constants_of_cpu: list[Any] = []
        with self._device:
            try:
                super().__init__(recorder, result)
            except MemoryError as error:
                raise memory_error(error, self._name) from None

    @property
    def _name(self) -> str:
        return f"the CUDA graph of a step that computes in {self.size / 2**20:.1f} MiB"

    # -- memory ----------------------------------------------------------------------------------------------
    def _returned(self, value: Any) -> Any:
        found = super()._returned(value)
        if isinstance(found, Place):
            if found.block is not None and not found.block.on_gpu:
                raise CaptureError(
                    f"it returns an array of {found} in the CPU's memory, or leaves it as a gradient, and a CUDA graph "
                    "computes in the GPU's: move it there with to()"
                )
        elif (known := self.recorder.known(_array(found))) is not None and known.block in self.recorder.anew:
            found = _twin(found)  # the first one is the caller's, and so will others be
            self._constants_of_cpu.append(found)
        return found

    def _wanted(self, instructions: list[Instruction]) -> list[Instruction]:
        # Those without results check values. What the CPU gives is looked at there; for others Python would wait.
        given = _of_cpu(self.recorder, instructions)
        self._checks = [i for i in instructions if not i.writes and all(place.block in given for place in i.reads)]
        return [i for i in instructions if i.writes]

    def _launches(self, instruction: Instruction) -> int:
        return 0  # the tables of launches are the CPU's

    def _allocate(self) -> None:
        self._arena = cupy.empty(max(self.size, 1), np.uint8)
        for block, offset in self.offsets.items():
            self._memory[block] = self._arena[offset : offset + block.size]
        for place in self.recorder.arguments:
            if place.block is not None and place.block.on_gpu:
                # Zeros, since instructions run on it before there is an argument: an index may not lead astray.
                self._memory.setdefault(place.block, cupy.zeros(place.block.size, np.uint8))
        starts, size = {}, 0
        for block in _of_cpu(self.recorder, [*self.instructions, *self._checks]):
            starts[block], size = size, size + rounded(block.size)
        self._from_cpu = cupy.zeros(max(size, 1), np.uint8)
        for block, start in starts.items():
            self._memory[block] = self._from_cpu[start : start + block.size]
        self._buffers = itertools.cycle([self._buffer(starts, size) for _ in range(BUFFERS)])

    def _buffer(self, starts: dict[Block, int], size: int) -> _Buffer:
        memory = np.frombuffer(cupy.cuda.alloc_pinned_memory(max(size, ALIGNMENT)), np.uint8)[: max(size, 1)]

        def here(place: Place | None) -> Array | None:
            if place is None or place.block not in starts:
                return None
            return np.ndarray(place.shape, place.dtype, memory, starts[place.block] + place.offset, place.strides)

        copies = []
        for block, start in starts.items():
            if block.kind == "outside":
                whole = block.array
                assert whole is not None
                copies.append((whole, np.ndarray(whole.shape, whole.dtype, memory, start, whole.strides)))
        return _Buffer(
            memory,
            [here(place) for _, place in self.recorder.hosts],
            copies,
            [here(place) for place in self.recorder.arguments],
            [functools.partial(cast(Check, i.call), *mapped(i.inputs, here), **i.attrs) for i in self._checks],
            cupy.cuda.Event(disable_timing=True),
        )

    def array(self, place: Place) -> Array:
        if place.array is not None and on_gpu(place.array) and place.block not in self._anew:
            return place.array
        if place.block is None:
            return cupy.empty(place.shape, place.dtype)
        memory = self._memory[place.block]
        return cupy.ndarray(place.shape, place.dtype, memory.data + place.offset, place.strides)

    # -- running ---------------------------------------------------------------------------------------------
    def _prepare(self) -> None:
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._done = cupy.cuda.Event(disable_timing=True)  # the last repetition is
        self._inputs = [self.array(place) for place in self.recorder.arguments]
        # What the instructions allocate on the way belongs to the graph as long as it lives. Its pool does not get what
        # the usual one keeps for later, such as the memory of the recordings.
        cupy.get_default_memory_pool().free_all_blocks()
        self._pool = cupy.cuda.MemoryPool()
        self._body = self._bound()  # holds the kernels and the arrays that the graph uses
        written = dict.fromkeys(place.block for i in self.instructions for place in i.writes)
        changed = [block.array for block in written if block is not None and block.kind == "outside"]
        before = [(array, array.copy()) for array in changed if array is not None]  # not of the graph's memory
        cupy.cuda.get_current_stream().synchronize()
        with self._stream, cupy.cuda.using_allocator(self._pool.malloc):
            # Once without capturing: what is compiled, loaded or allocated at a first use is there afterwards.
            try:
                self._call()
            finally:
                for array, copy in before:
                    array[...] = copy
                self._stream.synchronize()
            self._stream.begin_capture()
            try:
                self._call()
            except BaseException:
                with contextlib.suppress(cupy.cuda.runtime.CUDARuntimeError):  # says that the capture is void
                    self._stream.end_capture()
                raise
            try:
                self._graph = self._stream.end_capture()
            except cupy.cuda.runtime.CUDARuntimeError as error:
                if error.status == NO_MEMORY:
                    raise DeviceMemoryError(describe_memory(error)) from None
                raise CaptureError(f"its kernels cannot be part of a CUDA graph: {error}") from error

    def _call(self) -> None:
        """Run the instructions, on the current stream."""
        for instruction, call in zip(self.instructions, self._body, strict=True):
            try:
                call()
            except MemoryError as error:
                raise memory_error(error, f"{instruction.name} (at {instruction.line})") from None
            except Exception as error:
                capability = int(self._device.compute_capability)
                reason = (
                    f"; on a GPU of compute capability {capability / 10:.1f} CuPy computes it, and the kernels that a "
                    f"graph can hold need {OLDEST_GPU / 10:.1f}"
                )
                raise CaptureError(
                    f"{instruction.name} (at {instruction.line}) cannot be part of a CUDA graph: {error}"
                    f"{reason if capability < OLDEST_GPU else ''}; eager steps can, as with "
                    "gmcore.capture(step, fallback=True)"
                ) from error

    def run(self, arguments: Sequence[Array]) -> Any:
        with self._device:
            try:  # while nothing has changed: who finds no room may call again
                self._room = [cupy.empty(place.shape, place.dtype) for place in places(self._result)]
            except MemoryError as error:
                raise memory_error(error, "the results of a captured step") from None
            stream = cupy.cuda.get_current_stream()
            stream.wait_event(self._done)
            try:
                return super().run(arguments)
            finally:
                self._done.record(stream)

    def _copy(self, value: Any) -> Any:
        if not isinstance(value, Place):
            return _twin(value) if any(value is each for each in self._constants_of_cpu) else value
        array = self._room.pop(0)
        array[...] = self._results[value]
        return self._given(value, array)

    def _repeat(self, arguments: Sequence[Array]) -> None:
        buffer = next(self._buffers)
        buffer.copied.synchronize()
        for source, target in buffer.copies:
            target[...] = source
        for array, target, argument in zip(self._inputs, buffer.arguments, arguments, strict=True):
            (array if target is None else target)[...] = argument
        for check in buffer.checks:
            check()
        self._tell(buffer.hosts)
        stream = cupy.cuda.get_current_stream()
        self._from_cpu.data.copy_from_host_async(buffer.memory.ctypes.data, buffer.memory.size, stream)
        buffer.copied.record(stream)
        self._graph.launch(stream)


__all__ = ["GraphProgram"]
