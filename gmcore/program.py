"""A recorded step as a program: its instructions, its memory, and the repetition.

The program is data (`Program.instructions`, with the place in memory and the lifetime of every block); only `_bind`
knows how an instruction is run on the CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gmcore.op import Op
from gmcore.recorder import Block, Instruction, Place, Recorder, mapped, places
from gmcore.tensor import Array, Tensor, copied
from gmkernels import KernelSpec, arithmetic, pool

ALIGNMENT = 64  # bytes of a cache line, and of the widest vectors


class Program:
    """What a captured step runs.

    Parameters
    ----------
    recorder : the recording.
    result : what the step returned.

    Attributes
    ----------
    recorder : the recording; its `arguments` and `hosts` are what is read from outside at each repetition.
    instructions : list of `gmcore.recorder.Instruction`, those whose results matter.
    offsets : block -> its place in the memory that the program keeps, in bytes; blocks that are never in use at once
        may lie in one place.
    lifetimes : block -> the numbers of the first and the last instruction that use it.
    size : bytes of that memory.
    """

    def __init__(self, recorder: Recorder, result: Any) -> None:
        self.recorder = recorder
        self._result = mapped(result, self._returned)
        self._gradients = [(t, None if t.grad is None else self._returned(t.grad)) for t in recorder.tensors.values()]
        kept = {place.block for place in places((self._result, [place for _, place in self._gradients]))}
        self.instructions = _needed(recorder.instructions, kept)
        self.lifetimes = _lifetimes(self.instructions, kept)
        self.offsets, self.size = _planned(self.instructions, self.lifetimes)
        self._memory: dict[Block, Array] = {}
        self._allocate()
        self._body = self._bound()
        self._inputs = [self.array(place) for place in recorder.arguments]
        self._hosts = [(f, None if place is None else self.array(place)) for f, place in recorder.hosts]
        self._leaves = [(t, t._data) for t in recorder.tensors.values()]
        self._counters = [t._counter() for t in recorder.written]
        self._final = [(t, Tensor(self.array(g)) if isinstance(g, Place) else g) for t, g in self._gradients]

    # -- memory ----------------------------------------------------------------------------------------------
    def _returned(self, value: Any) -> Any:
        """A returned array as a place in memory that the program writes; itself if it is outside."""
        array = value._data if isinstance(value, Tensor) else value
        place = self.recorder.known(array)
        if place is None or place.block is None or place.block.kind == "outside":
            return value
        place.wraps = isinstance(value, Tensor)
        return place

    def _allocate(self) -> None:
        self._arena = _aligned(self.size)
        for block, offset in self.offsets.items():
            self._memory[block] = self._arena[offset : offset + block.size]
        for place in (*self.recorder.arguments, *[place for _, place in self.recorder.hosts]):
            if place is not None and place.block is not None:
                self._memory.setdefault(place.block, _aligned(place.block.size))

    def array(self, place: Place) -> Array:
        """The array at a place, in the program's memory."""
        if place.array is not None:
            return place.array
        assert place.block is not None
        return np.ndarray(place.shape, place.dtype, self._memory[place.block], place.offset, place.strides)

    # -- running ---------------------------------------------------------------------------------------------
    def holds(self) -> bool:
        """Whether the step is still what was recorded."""
        for tensor, array in self._leaves:
            if tensor._data is not array:
                return False
        return all(condition() for condition in self.recorder.conditions)

    def run(self, arguments: Sequence[Array]) -> Any:
        """Repeat the step on other arguments of the same shapes and dtypes."""
        for function, array in self._hosts:
            if array is None:
                function()
            else:
                array[...] = function()
        for array, argument in zip(self._inputs, arguments, strict=True):
            array[...] = argument
        for call in self._body:
            call()
        for counter in self._counters:
            counter[0] += 1
        for leaf, gradient in self._final:
            leaf.grad = gradient
        return mapped(self._result, self._copy)

    def _copy(self, value: Any) -> Any:
        if not isinstance(value, Place):
            return value
        array = self.array(value).copy()
        return Tensor(array) if value.wraps else array

    def _bound(self) -> list[Callable[[], Any]]:
        """The instructions as calls without arguments; launches with no other call between them are one."""
        calls: list[Callable[[], Any]] = []
        together: list[tuple[Instruction, Sequence[pool.Launch]]] = []
        for instruction in self.instructions:
            if (launches := self._launches(instruction)) is not None:
                together.append((instruction, launches))
                continue
            if together:
                calls.append(pool.Launches(self._stages(together)))
                together = []
            calls.append(self._bind(instruction))
        return [*calls, pool.Launches(self._stages(together))] if together else calls

    def _launches(self, instruction: Instruction) -> Sequence[pool.Launch] | None:
        """The launches on the program's memory that an instruction is; None if it is more."""
        if instruction.launches is not None:
            return [self._moved(launch) for launch in instruction.launches]
        call = instruction.call
        function = call.forward if isinstance(call, Op) else call
        out = instruction.outputs[0] if len(instruction.outputs) == 1 else None
        if out is None or set(instruction.attrs) - {"out"}:
            return None
        inputs = tuple(self.array(place) for place in instruction.inputs if isinstance(place, Place))
        if len(inputs) < len(instruction.inputs):
            return None
        launch = arithmetic.launch(np.positive if function is copied else function, inputs, self.array(out))
        return None if launch is None else [launch]

    def _stages(self, together: Sequence[tuple[Instruction, Sequence[pool.Launch]]]) -> list[list[pool.Launch]]:
        """The launches of instructions, each in the first stage in which all that it needs is there."""
        stages: list[list[pool.Launch]] = []
        before: list[tuple[int, list[tuple[int, int]], list[tuple[int, int]]]] = []
        for instruction, launches in together:
            reads = self._extents(instruction.reads)
            writes = self._extents([*instruction.writes, *instruction.workspace])
            first = 0
            for end, its_reads, its_writes in before:
                if end > first and (_meet(its_writes, [*reads, *writes]) or _meet(its_reads, writes)):
                    first = end
            stages += [[] for _ in range(first + len(launches) - len(stages))]
            for stage, launch in enumerate(launches, first):
                stages[stage].append(launch)
            before.append((first + len(launches), reads, writes))
        return stages

    def _extents(self, some: Sequence[Place]) -> list[tuple[int, int]]:
        """First and last byte of the memory of some places."""
        return [np.lib.array_utils.byte_bounds(self.array(place)) for place in some if place.block is not None]

    def _moved(self, launch: pool.Launch) -> pool.Launch:
        """A launch on the program's memory."""

        def moved(a: Any) -> Any:
            if isinstance(a, Place):
                return self.array(a)
            numbers = np.array(a.numbers)
            for index, (block, offset) in a.found.items():
                start = block.start if block.kind == "outside" else self._memory[block].ctypes.data
                numbers[index] = start + offset
            return numbers if isinstance(a.numbers, np.ndarray) else int(numbers)

        return launch._replace(arguments=tuple(map(moved, launch.arguments)))

    def _bind(self, instruction: Instruction) -> Callable[[], Any]:
        """An instruction as a call without arguments."""
        here = functools.partial(mapped, function=self.array)
        call = instruction.call
        if isinstance(call, KernelSpec):
            inputs, outputs = here(instruction.inputs)
            workspace = here(instruction.workspace)
            assert instruction.plan is not None
            return functools.partial(instruction.plan.kernel, inputs, outputs, workspace, instruction.attrs)
        inputs, attrs = here(instruction.inputs), here(instruction.attrs)
        outputs = [None if place is None else self.array(place) for place in instruction.outputs]
        if isinstance(call, Op):
            if isinstance(call.forward, np.ufunc):
                return functools.partial(call.forward, *inputs, out=outputs[0])
            return functools.partial(_store, functools.partial(call.compute, inputs, attrs), outputs)
        function = functools.partial(call, *inputs, **attrs)
        if "out" in attrs or not outputs:
            return function
        return functools.partial(_store, function, outputs)


def _store(function: Callable[[], Any], outputs: Sequence[Array | None]) -> None:
    """Write what a function gives into the program's memory."""
    results = function()
    for out, result in zip(outputs, results if isinstance(results, tuple) else (results,), strict=True):
        if out is not None:
            out[...] = result


def _aligned(size: int) -> Array:
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size]


# -- what is needed, for how long, and where ----------------------------------------------------------------------
def _needed(instructions: Sequence[Instruction], kept: set[Block | None]) -> list[Instruction]:
    """Those that lead to what is kept, or to memory outside, or that check something."""
    wanted, found = set(kept), []
    for instruction in reversed(instructions):
        writes = instruction.writes
        if writes and not any(p.block in wanted or (p.block and p.block.kind == "outside") for p in writes):
            continue
        found.append(instruction)
        wanted.update(place.block for place in instruction.reads)
    return found[::-1]


def _lifetimes(instructions: Sequence[Instruction], kept: set[Block | None]) -> dict[Block, tuple[int, int]]:
    """The first and the last instruction that use each block of computed memory."""
    spans: dict[Block, tuple[int, int]] = {}
    for i, instruction in enumerate(instructions):
        for place in (*instruction.reads, *instruction.writes, *instruction.workspace):
            if (block := place.block) is not None and block.kind == "computed":
                spans[block] = (spans[block][0] if block in spans else i, i)
    return {block: (first, len(instructions) if block in kept else last) for block, (first, last) in spans.items()}


def _planned(
    instructions: Sequence[Instruction], lifetimes: dict[Block, tuple[int, int]]
) -> tuple[dict[Block, int], int]:
    """Offsets of the blocks, and the size of the whole: largest first, each as low as fits beside those alive with it.

    An elementwise NumPy function whose input is used for the last time writes its result there.
    """
    spans = dict(lifetimes)
    home: dict[Block, Block] = {block: block for block in spans}
    for i, instruction in enumerate(instructions):
        if not (isinstance(instruction.call, Op) and isinstance(instruction.call.forward, np.ufunc)):
            continue
        out = instruction.writes[0]
        for place in instruction.reads:
            if place.block in home and out.block in spans and place.key[2:] == out.key[2:]:
                taken = home[place.block]
                if taken.size == out.block.size and spans[taken][1] == spans[out.block][0] == i:
                    home[out.block] = taken
                    spans[taken] = (spans[taken][0], spans.pop(out.block)[1])
                    break
    starts: dict[Block, int] = {}
    total = 0
    for block in sorted(spans, key=lambda b: (-b.size, b.number)):
        first, last = spans[block]
        beside = [
            (starts[b], starts[b] + _rounded(b.size)) for b in starts if spans[b][0] <= last and first <= spans[b][1]
        ]
        at = 0
        for start, end in sorted(beside):
            if start - at >= block.size:
                break
            at = max(at, end)
        starts[block] = at
        total = max(total, at + _rounded(block.size))
    return {block: starts[taken] for block, taken in home.items()}, total


def _meet(some: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> bool:
    """Whether a byte is in the extents of both."""
    return any(start < its_end and its_start < end for start, end in some for its_start, its_end in others)


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


__all__ = ["Program"]
