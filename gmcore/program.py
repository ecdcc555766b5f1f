"""A recorded step as a program: its instructions, its memory, and the repetition.

The program is data (`Program.instructions`, with the place in memory and the lifetime of every block). How it is
repeated is said twice: here, as calls and tables of launches on the CPU, and in `gmcore.graph`, as a CUDA graph.
"""

from __future__ import annotations

import functools
import mmap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gmcore import hooks
from gmcore.errors import CaptureError
from gmcore.op import End, Node, Op
from gmcore.recorder import Block, Instruction, Place, Recorder, mapped, places, standing
from gmcore.tensor import Array, Tensor, copied
from gmkernels import KernelSpec, arithmetic, buffers, pool
from gmkernels.arrays import namespace

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
    renewed : blocks whose memory each repetition takes anew, and gives to the caller as it is: large results.
    stages : of each instruction, the first and the last stage of the step at which it runs. Launches that need nothing
        of each other share a stage; a call of Python has one of its own.
    lifetimes : block -> the first and the last stage that uses it.
    size : bytes of that memory.
    """

    form = ""
    """What it is, for people, if not calls on the CPU."""

    def __init__(self, recorder: Recorder, result: Any) -> None:
        self.recorder = recorder
        self._anew = {block for block in recorder.anew if block.on_gpu or not recorder.gpus}
        self._result = mapped(result, self._returned, returned=True)
        changed = [t for name, t in recorder.tensors.items() if name not in recorder.unchanged]
        self._gradients = [(t, None if t.grad is None else self._returned(t.grad)) for t in changed]
        kept = {place.block for place in places((self._result, [place for _, place in self._gradients]))}
        self.instructions = self._wanted(_needed(recorder.instructions, kept))
        self.stages = _staged(self.instructions, list(map(self._launches, self.instructions)))
        self.lifetimes = _lifetimes(self.instructions, self.stages, dict.fromkeys(kept, self.depth))
        self.renewed = self._renewed(kept.difference(place.block for place in places([g for _, g in self._gradients])))
        spans = {block: span for block, span in self.lifetimes.items() if block not in self.renewed}
        self.offsets, self.size = _planned(self.instructions, self.stages, spans)
        self._memory: dict[Block, Array] = {}
        self._numbers: list[Array] = []  # that launches read, with addresses among them
        self._uses: dict[Block, list[tuple[Any, int, int]]] = {}
        self._allocate()
        self._constants = [self._constant(block) for block in self._anew]
        self._prepare()
        self._leaves = [(t, t._data) for t in recorder.tensors.values()]
        before = [(*key, value) for key, value in recorder.circumstances.items() if key not in recorder.free]
        self._had_gradients = [(recorder.tensors[t], value) for t, what, value in before if what == "gradient"]
        self._stood = [
            (recorder.tensors[t], number, value)
            for number, kind in enumerate(("requires", "hooks"))
            for t, what, value in before
            if what == kind
        ]
        self._looked_at = [(i, value) for i, what, value in before if what == "array"]
        self._settings = [s for number, s in enumerate(recorder.settings) if number not in recorder.switched]
        self._required = [t for t in recorder.tensors.values() if t.requires_grad]
        self._changes = -1  # none of those that are counted has been looked at
        self._counters = [t._counter() for t in recorder.written]
        given: set[int] = set()
        mapped(result, lambda part: given.add(id(part)), returned=True)
        self._final = [(t, self._left(t, g, given) if isinstance(g, Place) else g) for t, g in self._gradients]
        self._results = {place: self.array(place) for place in places(self._result) if place.block not in self.renewed}

    @property
    def depth(self) -> int:
        """Number of stages."""
        return 1 + max((last for _, last in self.stages), default=-1)

    # -- memory ----------------------------------------------------------------------------------------------
    def _returned(self, value: Any) -> Any:
        """A returned array as a place in memory that the program writes; itself if it is outside."""
        array = value._data if isinstance(value, Tensor) else value
        place = self.recorder.known(array)
        if place is None or place.block is None or (place.block.kind == "outside" and place.block not in self._anew):
            return value
        if isinstance(value, Tensor):
            if value.requires_grad and value.is_leaf:
                raise CaptureError(
                    "it returns a leaf that requires a gradient and that it has made: make that once, outside, and "
                    "write into it with copy_"
                )
            place.wraps = True
            if value._edge is not None and isinstance(node := value._edge[0], Node):
                place.end = End(node), value._edge[1]
        return place

    def _given(self, place: Place, array: Array) -> Any:
        """What the caller gets of a place: numbers of its own, as a tensor if it was one."""
        if not place.wraps:
            return array
        tensor = Tensor(array)
        if place.end is not None:
            place.end[0].edges = [leaf._edge for leaf in self._required]
            tensor._edge = place.end
        return tensor

    def _left(self, leaf: Tensor, place: Place, given: set[int]) -> Tensor:
        """The gradient of a leaf, in memory that each repetition writes: the tensor that the step has left there, which
        others may know, unless that was given to the caller."""
        array, gradient = self.array(place), leaf.grad
        assert gradient is not None
        if id(gradient) in given:
            return Tensor(array)
        array[...] = gradient._data
        gradient._data = array
        return gradient

    def _renewed(self, returned: set[Block | None]) -> list[Block]:
        """Those of the returned blocks that are better written where the caller has them than copied: nothing but
        launches uses them, which can be told other addresses."""
        others = [i for i in self.instructions if not self._launches(i)]
        bound = {p.block for i in others for p in (*i.reads, *i.writes, *i.workspace)}
        return [
            block
            for block in self.lifetimes
            if block in returned and block not in bound and block.size >= buffers.SMALLEST
        ]

    def _allocate(self) -> None:
        self._arena = _aligned(self.size)
        for block, offset in self.offsets.items():
            self._memory[block] = self._arena[offset : offset + block.size]
        for block in self.renewed:
            # Mapped, since the heap may lie so low that a size could pass for an address in it.
            self._memory[block] = np.frombuffer(mmap.mmap(-1, block.size), np.uint8)
        for place in (*self.recorder.arguments, *[place for _, place in self.recorder.hosts]):
            if place is not None and place.block is not None:
                self._memory.setdefault(place.block, _aligned(place.block.size))

    def _constant(self, block: Block) -> tuple[Array, Array]:
        """Memory for what the step makes anew and hands out, so that others may write there; and the numbers in it."""
        assert block.array is not None
        self._memory[block] = namespace(block.array).empty(block.size, np.uint8)
        return self.array(Place(block, block.array)), block.array.copy()

    def array(self, place: Place) -> Array:
        """The array at a place, in the program's memory."""
        if place.array is not None and place.block not in self._anew:
            return place.array
        assert place.block is not None
        return np.ndarray(place.shape, place.dtype, self._memory[place.block], place.offset, place.strides)

    # -- running ---------------------------------------------------------------------------------------------
    @property
    def was_repeated(self) -> bool:
        return self._changes >= 0

    def holds(self) -> bool:
        """Whether the step is still what was recorded."""
        for tensor, array in self._leaves:
            if tensor._data is not array:
                return False
        for condition in self.recorder.conditions:
            if not condition():
                return False
        return self._changes == hooks.changes() or all([setting() for setting in self._settings])

    def fits(self, arguments: Sequence[Array]) -> bool:
        """Whether all is as it was before the step that was recorded, as far as no other recording has shown that it
        does not matter; asked where it `holds`."""
        for tensor, has_gradient in self._had_gradients:
            if (tensor._grad is not None) is not has_gradient:
                return False
        if self._changes != (now := hooks.changes()):
            if not all([standing(tensor)[number] == before for tensor, number, before in self._stood]):
                return False
            self._changes = now
        if self.recorder.shares(arguments):
            return False
        return all([arguments[i].tobytes() == before for i, before in self._looked_at])

    def run(self, arguments: Sequence[Array]) -> Any:
        """Repeat the step on other arguments of the same shapes and dtypes."""
        for block, uses in self._uses.items():
            memory = self._memory[block] = buffers.empty((block.size,), np.dtype(np.uint8))
            start = pool.address(memory)
            for numbers, index, offset in uses:
                numbers[index] = start + offset
        for array, constant in self._constants:
            array[...] = constant
        self._repeat(arguments)
        for counter in self._counters:
            counter[0] += 1
        for leaf, gradient in self._final:
            leaf._grad = gradient
        result = mapped(self._result, self._copy, returned=True)
        for block in self._uses:  # it is the caller's
            del self._memory[block]
        return result

    def _prepare(self) -> None:
        """Make what `_repeat` needs, once the memory is there."""
        self._body = self._bound()
        records = [record for call in self._body if isinstance(call, pool.Launches) for record in call.records]
        for block in self.renewed:
            start = pool.address(self._memory[block])
            self._uses[block] = [
                (numbers, i, number - start)
                for numbers in (*records, *self._numbers)
                for i, number in enumerate(numbers.tolist())
                if start <= number < start + block.size
            ]
        self._first = [self._bind(check) for check in self._checks]
        self._inputs = [self.array(place) for place in self.recorder.arguments]
        self._hosts = [None if place is None else self.array(place) for _, place in self.recorder.hosts]

    def _repeat(self, arguments: Sequence[Array]) -> None:
        """The step's arguments, what Python tells it, and its instructions."""
        for array, argument in zip(self._inputs, arguments, strict=True):
            array[...] = argument
        for check in self._first:
            check()
        self._tell(self._hosts)
        for call in self._body:
            call()

    def _tell(self, hosts: Sequence[Array | None]) -> None:
        """Write what Python tells the step."""
        for (function, _), array in zip(self.recorder.hosts, hosts, strict=True):
            if array is None:
                function()
            else:
                array[...] = function()

    def _copy(self, value: Any) -> Any:
        if not isinstance(value, Place):
            return value
        if value.block in self._uses:
            return self._given(value, self.array(value))
        return self._given(value, self._results[value].copy(order="K"))

    def _bound(self) -> list[Callable[[], Any]]:
        """The instructions as calls without arguments; the stages of launches between two other calls are one."""
        calls: list[Callable[[], Any]] = []
        launches: dict[int, list[pool.Launch]] = {}

        def launch() -> None:
            if launches:
                calls.append(pool.Launches([launches[stage] for stage in sorted(launches)]))
                launches.clear()

        for instruction, (first, _) in zip(self.instructions, self.stages, strict=True):
            if self._launches(instruction):
                for stage, each in enumerate(self._launched(instruction), first):
                    launches.setdefault(stage, []).append(each)
            else:
                launch()
                calls.append(self._bind(instruction))
        launch()
        return calls

    def _wanted(self, instructions: list[Instruction]) -> list[Instruction]:
        """Those of the needed instructions that are repeated."""
        # What checks arguments comes first: a step that is refused has counted and drawn nothing.
        self._checks = [
            i for i in instructions if not i.writes and all(p.block and p.block.kind == "argument" for p in i.reads)
        ]
        return [i for i in instructions if i not in self._checks]

    def _launches(self, instruction: Instruction) -> int:
        """How many launches an instruction is; 0 for a call of Python."""
        if instruction.launches is not None:
            return len(instruction.launches)
        inputs, out = instruction.inputs, instruction.outputs[0] if len(instruction.outputs) == 1 else None
        if out is None or set(instruction.attrs) - {"out"} or not all(isinstance(each, Place) for each in inputs):
            return 0
        if any(each.overlaps(out) for each in inputs):  # NumPy reads it all before it writes there
            return 0
        return int(arithmetic.is_launched(_function(instruction), inputs, out))

    def _launched(self, instruction: Instruction) -> Sequence[pool.Launch]:
        """An instruction as launches on the program's memory."""
        if instruction.launches is not None:
            return [self._moved(launch) for launch in instruction.launches]
        inputs, out = mapped((instruction.inputs, instruction.outputs[0]), self.array)
        return [arithmetic.launch(_function(instruction), inputs, out)]

    def _moved(self, launch: pool.Launch) -> pool.Launch:
        """A launch on the program's memory."""

        def moved(a: Any) -> Any:
            if isinstance(a, Place):
                return self.array(a)
            numbers = np.array(a.numbers)
            for index, (block, offset) in a.found.items():
                start = self._memory[block].ctypes.data if block in self._memory else block.start
                numbers[index] = start + offset
            if not isinstance(a.numbers, np.ndarray):
                return int(numbers)
            self._numbers.append(numbers.reshape(-1))
            return numbers

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
            return functools.partial(_store, instruction, functools.partial(call.compute, inputs, attrs), outputs)
        function = functools.partial(call, *inputs, **attrs)
        if "out" in attrs or not outputs:
            return function
        if call is copied or isinstance(call, np.ufunc):
            return functools.partial(function, out=outputs[0])
        return functools.partial(_store, instruction, function, outputs)


def _store(instruction: Instruction, function: Callable[[], Any], outputs: Sequence[Array | None]) -> None:
    """Write what a function gives into the program's memory."""
    results = function()
    for out, result in zip(outputs, results if isinstance(results, tuple) else (results,), strict=True):
        if out is None:
            continue
        if np.shape(result) != out.shape:
            raise CaptureError(
                f"{instruction.name} (at {instruction.line}) gave the shape {out.shape} when the step was "
                f"recorded, and {np.shape(result)} now: shapes that numbers decide, as where a mask chooses elements, "
                "cannot be repeated. Weight the elements instead (gmcore.ops.where), or run the step eagerly"
            )
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


def _function(instruction: Instruction) -> Any:
    """What is called with the inputs of an instruction; of a copy, the NumPy function that copies."""
    call = instruction.call
    return call.forward if isinstance(call, Op) else np.positive if call is copied else call


def _staged(instructions: Sequence[Instruction], counts: Sequence[int]) -> list[tuple[int, int]]:
    """The stages of each instruction: as early as what it reads is there, and as nobody uses what it writes; and after
    the last call of Python. `counts` are the launches that an instruction is, 0 for a call of Python."""
    stages: list[tuple[int, int]] = []
    last = began = 0
    for instruction, launches in zip(instructions, counts, strict=True):
        first = last if launches == 0 else began
        reads, writes = _blocks(instruction.reads), _blocks([*instruction.writes, *instruction.workspace])
        for other, (_, end) in zip(instructions, stages, strict=False):
            written = _blocks([*other.writes, *other.workspace])
            if end >= first and (written & (reads | writes) or _blocks(other.reads) & writes):
                first = end + 1
        stages.append((first, first + max(1, launches) - 1))
        last = max(last, stages[-1][1] + 1)
        began = began if launches else last
    return stages


def _blocks(some: Sequence[Place]) -> set[Block]:
    return {place.block for place in some if place.block is not None}


def _lifetimes(
    instructions: Sequence[Instruction], stages: Sequence[tuple[int, int]], kept: dict[Block | None, int]
) -> dict[Block, tuple[int, int]]:
    """The first and the last stage that uses each block of computed memory; the last of what is `kept` is given."""
    spans: dict[Block, tuple[int, int]] = {}
    for instruction, (first, last) in zip(instructions, stages, strict=True):
        for block in _blocks([*instruction.reads, *instruction.writes, *instruction.workspace]):
            if block.kind == "computed":
                before = spans.get(block, (first, last))
                spans[block] = min(first, before[0]), max(last, before[1])
    return {block: (first, kept.get(block, last)) for block, (first, last) in spans.items()}


def _planned(
    instructions: Sequence[Instruction],
    stages: Sequence[tuple[int, int]],
    lifetimes: dict[Block, tuple[int, int]],
) -> tuple[dict[Block, int], int]:
    """Offsets of the blocks, and the size of the whole: largest first, each as low as fits beside those alive with it.

    An elementwise NumPy function whose input is used for the last time, and by nobody else in that stage, writes its
    result there; not where it reads another view of that memory too, of which it would overwrite what it needs later.
    """
    spans = dict(lifetimes)
    home: dict[Block, Block] = {block: block for block in spans}
    for instruction, (stage, _) in zip(instructions, stages, strict=True):
        if not isinstance(_function(instruction), np.ufunc):
            continue
        out = instruction.writes[0]
        for place in instruction.reads:
            if place.block in home and out.block in spans and place.key[2:] == out.key[2:]:
                taken = home[place.block]
                here = [
                    other
                    for other, (first, last) in zip(instructions, stages, strict=True)
                    if first <= stage <= last and any(p.block in home and home[p.block] is taken for p in other.reads)
                ]
                views = [p for p in instruction.reads if p.block in home and home[p.block] is taken]
                alone = here == [instruction] and all(p.key[2:] == out.key[2:] for p in views)
                if alone and taken.size == out.block.size and spans[taken][1] == spans[out.block][0] == stage:
                    home[out.block] = taken
                    spans[taken] = (spans[taken][0], spans.pop(out.block)[1])
                    break
    starts: dict[Block, int] = {}
    total = 0
    for block in sorted(spans, key=lambda b: (-b.size, b.number)):
        first, last = spans[block]
        beside = [
            (starts[b], starts[b] + rounded(b.size)) for b in starts if spans[b][0] <= last and first <= spans[b][1]
        ]
        at = 0
        for start, end in sorted(beside):
            if start - at >= block.size:
                break
            at = max(at, end)
        starts[block] = at
        total = max(total, at + rounded(block.size))
    return {block: starts[taken] for block, taken in home.items()}, total


def rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


__all__ = ["Program"]
