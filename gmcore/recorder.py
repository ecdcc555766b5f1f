"""What a step does, as a flat list of calls on arrays: the recording behind `gmcore.capture`.

A `Recorder` watches a step that runs eagerly. Each kernel call, each operation and each computation outside operations
(`gmcore.watch.computed`) becomes an `Instruction` on places in memory. Views need none: they are places in the memory
of what they view. All memory that the step touches is kept until the recording is compared with the next one, so that
no address means two things.
"""

from __future__ import annotations

import bisect
import copy
import dataclasses
import functools
import hashlib
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gmcore.errors import user_line
from gmcore.op import End, Node, Op
from gmcore.random import is_default
from gmcore.tensor import Array, Tensor, copied
from gmcore.watch import Call, Watch, reading, unwatched, watch
from gmkernels import KernelSpec, pool, registry
from gmkernels.arrays import address, byte_bounds, is_array, on_gpu
from gmkernels.buffers import is_loan


@dataclass(eq=False)
class Block:
    """A piece of memory that a step touches."""

    kind: str
    """``"argument"`` of the step; ``"host"``, written by Python before each repetition; ``"computed"`` by the step;
    ``"outside"``: it was there before, such as parameters and constants."""
    number: int
    """Among those of its kind, in the order in which they were seen."""
    array: Array | None
    """Keeps the memory, so that no address means two things."""
    start: int
    size: int
    gpu: int | None
    """Number of the GPU in whose memory it is; None in the CPU's."""
    digest: bytes | None = None
    """Of the numbers in memory outside, and in an argument, when the step first saw it; None if it was written then."""

    @property
    def on_gpu(self) -> bool:
        return self.gpu is not None

    def __repr__(self) -> str:
        return f"{self.kind}{self.number}"


class Place:
    """An array that an instruction reads or writes, by where it lies."""

    def __init__(self, block: Block | None, array: Array) -> None:
        self.block = block
        """None for an array of no elements, which lies nowhere."""
        self.offset = 0 if block is None else address(array) - block.start
        """From the start of the block to the first element, in bytes."""
        self.shape, self.strides, self.dtype = array.shape, array.strides, array.dtype
        self.array = array if block is None or block.kind == "outside" else None
        """The array itself, where its memory outlives the recording."""
        self.wraps = False
        """Whether the step returned it as a tensor."""
        self.end: tuple[End, int] | None = None
        """The place on the tape of that, if it was on the tape."""

    @property
    def key(self) -> tuple[Any, ...]:
        """What is the same in another recording of the same step, but for memory outside."""
        number = None if self.block is None or self.block.kind == "outside" else self.block.number
        return (
            None if self.block is None else self.block.kind,
            number,
            self.offset,
            self.shape,
            self.strides,
            self.dtype,
        )

    @property
    def bounds(self) -> tuple[int, int]:
        """The first byte in the block, and the one after the last."""
        spans = [(n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)]
        start, end = sum(s for s in spans if s < 0), sum(s for s in spans if s > 0)
        return self.offset + start, self.offset + end + self.dtype.itemsize

    def overlaps(self, other: Place, also_itself: bool = False) -> bool:
        """Whether this is another array, or also the same, that may have memory in common with it."""
        if self.block is None or self.block is not other.block or (self.key == other.key and not also_itself):
            return False
        (start, end), (first, last) = self.bounds, other.bounds
        return start < last and first < end

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(eq=False)
class Addresses:
    """Integers that a block kernel is launched with, some of which are addresses in blocks."""

    numbers: int | Array
    found: dict[tuple[int, ...], tuple[Block, int]]
    """By index: the block, and the offset in it."""


@dataclass(eq=False)
class Instruction:
    """One call of a step. Its arrays are given as `Place`, alone or inside tuples, lists and slices."""

    name: str
    """Of the kernel, operation or function."""
    call: Op | KernelSpec | Callable[..., Any]
    inputs: tuple[Any, ...]
    attrs: dict[str, Any]
    outputs: list[Place | None]
    """None where a result is a view of memory that is known."""
    line: str
    plan: registry.Plan | None = None
    """Of a kernel: what `registry.run` has derived from its call."""
    workspace: tuple[Place, ...] = ()
    launches: list[pool.Launch] | None = None
    """Of a kernel that does nothing but launch these block kernels; their arrays are given as `Place`."""

    @property
    def reads(self) -> list[Place]:
        return places((self.inputs, self.attrs))

    @property
    def writes(self) -> list[Place]:
        return [place for place in self.outputs if place is not None]


def mapped(value: Any, function: Callable[[Any], Any], returned: bool = False) -> Any:
    """`value` with `function` applied to the arrays, tensors and places in it, however deep in tuples, lists, dicts and
    slices; in what a step has `returned` in dataclasses too, which as arguments may be state that the step changes."""
    if isinstance(value, (np.ndarray, Tensor, Place)) or is_array(value):
        return function(value)
    if isinstance(value, tuple):
        parts = [mapped(part, function, returned) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [mapped(part, function, returned) for part in value]
    if isinstance(value, dict):
        named = {name: mapped(part, function, returned) for name, part in value.items()}
        if type(value) is dict:
            return named
        other = copy.copy(value)  # such as an OrderedDict
        other.update(named)
        return other
    if isinstance(value, slice):
        return slice(*[mapped(part, function, returned) for part in (value.start, value.stop, value.step)])
    if returned and dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed: Any = copy.copy(value)
        for field in dataclasses.fields(value):
            object.__setattr__(changed, field.name, mapped(getattr(value, field.name), function, returned))
        return changed
    return value


def places(value: Any) -> list[Place]:
    """The places in `value`, in order."""
    found: list[Place] = []
    mapped(value, lambda part: found.append(part) if isinstance(part, Place) else part, returned=True)
    return found


def _owner(array: Array) -> Array:
    """The array that holds the memory of a view: all arrays on that memory lead to it."""
    # A loan is the whole of what one array was lent; behind it is memory of many.
    while is_array(array.base) and not is_loan(array):
        array = array.base
    return array


def _digest(array: Array) -> bytes:
    data = np.ascontiguousarray(array.get() if on_gpu(array) else array)
    return hashlib.blake2b(data.reshape(-1).view(np.uint8).data, digest_size=16).digest()


_OPERATION, _RULE = Op.__call__.__code__, Node.vjp.__code__


def _operation() -> list[Array] | None:
    """The arrays of the operation whose forward function is about to run a kernel; None outside operations."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not _RULE:
        if frame.f_code is _OPERATION:
            return frame.f_locals["arrays"]
        frame = frame.f_back
    return None


def standing(tensor: Tensor) -> tuple[Any, ...]:
    """Whether a leaf requires a gradient, and its hooks."""
    if tensor._edge is None:
        return False, ()
    leaf = tensor._edge[0]
    return True, (*(leaf.hooks or ()), *(leaf.accumulated or ()))


def _has_gradient(tensor: Tensor, gradient: Tensor, array: Array) -> bool:
    return tensor.grad is gradient and gradient._data is array


class _Unchanged:
    """Whether a tensor that Python has looked at still holds the same numbers."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor, self._array = tensor, tensor._data
        self._content = self._now()

    def _now(self) -> Any:
        # Numbers on a GPU would have to be waited for.
        return self._tensor.version if on_gpu(self._array) else self._array.tobytes()

    def holds(self) -> bool:
        return self._tensor._data is self._array and self._now() == self._content


class Recorder(Watch):
    """Watches one eager run of a step.

    Parameters
    ----------
    arguments : the arrays that the step is given, and that differ from call to call.
    raw : numbers of those that are NumPy's own, and can be looked at without notice.
    earlier : an earlier recording, which knows what to look at before the step runs.
    """

    def __init__(self, arguments: Sequence[Array], raw: Sequence[int] = (), earlier: Recorder | None = None) -> None:
        self.instructions: list[Instruction] = []
        self.hosts: list[tuple[Callable[[], Any], Place | None]] = []
        """What Python tells the step, in order, and the memory it writes."""
        self.tensors: dict[int, Tensor] = {}
        """Tensors outside whose memory the step uses, by id; kept, so that ids stay theirs."""
        self.conditions: list[Callable[[], bool]] = []
        """What must hold for the recording to be what the step does."""
        self.settings: list[Callable[[], bool]] = []
        """Those of them that hold until `gmcore.hooks.changed` counts another change."""
        self.written: list[Tensor] = []
        """Tensors outside that are written, once each time."""
        self.refusal: str | None = None
        """Why the step cannot be repeated without Python."""
        self.made: list[weakref.ref[Tensor]] = []
        """The tensors of the step, after it those that outlive it and were not returned."""
        self.left: Any = None
        """After the step: what it returned, and the gradients that it leaves, with arrays as `Place`."""
        self.circumstances: dict[tuple[int, str], Any] = {}
        """What was so before the step and may decide what it does, by what it is said of."""
        self.free: set[tuple[int, str]] = set()
        """Those of the circumstances that were different in another recording of the same step. Hooks are never: that
        two of them leave a step as it is tells nothing of a third."""
        self.switched: set[int] = set()
        """Those of the settings, by number, that the step itself changes, and changes back before it relies on them."""
        self.accumulates = False
        """Whether a backward pass adds to a gradient that was there before the step."""
        self.unchanged: set[int] = set()
        """Of `tensors` those, by id, whose gradient the step has left as it was."""
        self.anew: set[Block] = set()
        """Memory outside that the step makes anew each time, with the same numbers, and hands out."""
        self._entered = {} if earlier is None else {id(t): (t.grad, standing(t)) for t in earlier.tensors.values()}
        self._before = {} if earlier is None else earlier.digests()
        self._earlier = [] if earlier is None else earlier.settings
        self._held = [setting() for setting in self._earlier]
        """Of the settings of an earlier recording, whether they held before this one."""
        self._again: list[bool] = []
        """Whether each did where the step relied on it."""
        self._ended: list[bool] = []
        """Whether the settings of this recording hold after it."""
        for i in raw:
            self.circumstances[i, "array"] = arguments[i].tobytes()
        self._counts = {"argument": 0, "host": 0, "computed": 0, "outside": 0}
        self._starts: list[int] = []
        self._blocks: list[Block] = []
        self._looked_at: list[tuple[Tensor, str]] = []
        self._running = False
        self._kernel: tuple[Array, Instruction] | None = None
        """What an operation that has not ended has run: its first output, and the call."""
        self._written: dict[int, list[Place]] | None = None
        """Places outside that the step writes, by the id of what holds their memory, once somebody has asked."""
        self.arguments = [self.place(a, "argument") for a in arguments]

    def digests(self) -> dict[tuple[int, int], bytes]:
        """Of the numbers that are now in each piece of memory outside, by its start and size."""
        outside = [block for block in self._blocks if block.kind == "outside"]
        return {(block.start, block.size): _digest(block.array) for block in outside}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what runs inside the block in this context."""
        with watch(self), registry.intercepted(self._run), reading():
            yield

    @property
    def gpus(self) -> set[int]:
        """Numbers of the GPUs whose memory the step uses."""
        return {block.gpu for block in self._blocks if block.gpu is not None}

    # -- memory ----------------------------------------------------------------------------------------------
    def _new_block(self, kind: str, array: Array, written: bool = False) -> Block:
        owner = _owner(array)
        start, end = byte_bounds(owner)
        gpu = owner.device.id if on_gpu(owner) else None
        block = Block(kind, self._counts[kind], owner, start, end - start, gpu)
        if kind in ("outside", "argument") and not written:
            block.digest = _digest(owner)
            if kind == "outside" and self._before.get((start, block.size), block.digest) != block.digest:
                self.unrepeatable("Python or NumPy writes into an array that an operation then reads; use copy_")
        self._counts[kind] += 1
        at = bisect.bisect(self._starts, start)
        self._starts.insert(at, start)
        self._blocks.insert(at, block)
        return block

    def known(self, array: Array) -> Place | None:
        """Where an array lies, if that memory has been seen."""
        if not array.size:
            return Place(None, array)
        block = self._block_at(byte_bounds(array)[0])
        return None if block is None else Place(block, array)

    def _block_at(self, address: int) -> Block | None:
        at = bisect.bisect(self._starts, address) - 1
        if at < 0 or address >= self._blocks[at].start + self._blocks[at].size:
            return None
        return self._blocks[at]

    def place(self, array: Array, kind: str = "outside") -> Place:
        """Where an array lies; memory not seen so far is of `kind`."""
        found = self.known(array)
        if found is None:
            found = Place(self._new_block(kind, array), array)
        return found

    def _argument(self, value: Any, returned: bool = False) -> Any:
        """`value` with its arrays as places."""
        return mapped(value, lambda part: self.place(part._data if isinstance(part, Tensor) else part), returned)

    # -- what the engine tells -------------------------------------------------------------------------------
    def call(self, call: Call) -> None:
        kernel, self._kernel = self._kernel, None
        if kernel is not None and kernel[0] is call.outputs[0]._data:
            kernel[1].line = call.line  # a kernel, which was seen as it ran, is all that the operation does
        else:
            if kernel is not None and kernel[1] is self.instructions[-1]:
                self.instructions.pop()
            arrays, results = (tuple([x._data for x in tensors]) for tensors in (call.inputs, call.outputs))
            self._add(call.op, call.op.name, arrays, call.attrs, results, call.line)
        for x in call.inputs:
            self._use(x)
        self.made += [weakref.ref(y) for y in call.outputs]

    def computed(
        self, function: Callable[..., Any], arrays: Sequence[Array], options: Mapping[str, Any], result: Any
    ) -> None:
        results = () if result is None else result if isinstance(result, tuple) else (result,)
        self._add(function, function.__name__.lstrip("_"), tuple(arrays), options, results, user_line(models=True))

    def _add(
        self,
        call: Any,
        name: str,
        inputs: tuple[Any, ...],
        attrs: Mapping[str, Any],
        results: tuple[Array, ...],
        line: str,
    ) -> None:
        target = attrs.get("out")
        if target is not None and self.known(target) is None:
            self._new_block("outside", target, written=True)
        given = self._argument(inputs)
        options = self._argument(dict(attrs))
        into = options.get("out")
        outputs: list[Place | None] = []
        for array in results:
            if into is not None:
                outputs.append(into)
            elif self.known(array) is not None:
                outputs.append(None)
            else:
                outputs.append(self.place(array, "computed"))
        if not results or any(place is not None for place in outputs):
            self.instructions.append(Instruction(name, call, given, options, outputs, line))

    def hosted(self, function: Callable[[], Any], result: Any) -> None:
        self.hosts.append((function, None if result is None else self.place(result, "host")))

    def read(self, tensor: Tensor) -> None:
        self._looked_at.append((tensor, user_line(models=True)))

    def derived(self, tensor: Tensor) -> None:
        self.made.append(weakref.ref(tensor))

    def unrepeatable(self, reason: str) -> None:
        self.refuse(f"{reason} (at {user_line(models=True)})")

    def refuse(self, reason: str) -> None:
        """Keep why the step cannot be repeated, if nothing else has been found before."""
        self.refusal = self.refusal or reason

    def wrote(self, tensor: Tensor) -> None:
        self._use(tensor)
        if not any(t is tensor for t in self.written):
            self.written.append(tensor)

    def relies(self, tensors: Sequence[Tensor], holds: Callable[[], bool] | None, counted: bool) -> None:
        for tensor in tensors:
            self._use(tensor)
        if holds is not None and counted:
            number = len(self.settings)
            with unwatched():
                self._again.append(number < len(self._earlier) and self._earlier[number]())
            self.settings.append(holds)
        elif holds is not None:
            self.conditions.append(holds)

    def _use(self, tensor: Tensor) -> None:
        """Keep a tensor outside: its memory may be exchanged, and its gradient is what a step leaves."""
        if tensor.is_leaf and id(tensor) not in self.tensors:
            found = self.known(tensor._data)
            block = None if found is None else found.block
            if tensor.requires_grad if block is None else block.kind == "outside":
                self.tensors[id(tensor)] = tensor

    # -- kernels ---------------------------------------------------------------------------------------------
    def _run(
        self,
        spec: KernelSpec,
        plan: registry.Plan,
        inputs: Sequence[Any],
        outputs: Sequence[Any] | None,
        attrs: Mapping[str, Any],
    ) -> tuple[Any, ...]:
        """Run a kernel in place of `registry.run`, and keep the call."""
        line = user_line(models=True)
        operation = _operation()
        # A kernel on arrays that its operation has made itself is a part of it.
        outside = self._running or (
            operation is not None and not all(any(a is b for b in operation) for a in registry.flat(inputs))
        )

        def packed(a: Array) -> Array:
            if not plan.pack or a.flags.c_contiguous:
                return a
            copy = copied(a)
            if not outside:
                self._add(copied, "pack", (a,), {}, (copy,), line)
            return copy

        inputs = mapped(tuple(inputs), packed)
        workspace = _allocated(spec, plan, plan.workspace)
        # Memory outside is looked at before the kernel writes into it.
        given, _ = (None, None) if outside else self._argument((inputs, outputs))
        outputs = tuple(_allocated(spec, plan, plan.outputs) if outputs is None else outputs)
        if outside:
            _run_plain(plan, inputs, outputs, workspace, attrs)
            return outputs
        self._running = True
        try:
            if plan.device is None:
                launches = _run_noting(plan.kernel, inputs, outputs, workspace, attrs, spec.updates)
            else:
                launches = None
                _run_plain(plan, inputs, outputs, workspace, attrs)
        finally:
            self._running = False
        written = [self.place(a, "computed") for a in registry.flat(outputs)]
        scratch = tuple([self.place(a, "computed") for a in workspace])
        if launches is not None:
            launches = self._movable(launches)
        results = self._argument(outputs)
        instruction = Instruction(
            spec.name, spec, (given, results), dict(attrs), [*written], line, plan, scratch, launches
        )
        self.instructions.append(instruction)
        if operation is not None:
            self._kernel = outputs[0], instruction
        return outputs

    def disown(self, later: Recorder) -> None:
        """Take their memory from tensors that have outlived the step though it did not return them.

        Those that a `later` recording finds outside stay: a state that this one has made.
        """
        for reference in self.made:
            tensor = reference()
            if tensor is not None and id(tensor) not in later.tensors:
                place = self.known(tensor._data)
                if place is not None and place.block is not None and place.block.kind != "outside":
                    del tensor._data
        self.made.clear()

    def release(self) -> None:
        """Let memory go that only the step itself uses: what is left is to be compared with another recording."""
        for block in self._blocks:
            if block.kind != "outside":
                block.array = None

    def _movable(self, launches: list[pool.Launch]) -> list[pool.Launch] | None:
        """Launches with arrays as `Place` and addresses as `Addresses`, so that a program may use other memory.

        None if one has an array that is neither the kernel's nor of int64. Those of int64 are tables of shapes and
        addresses; any other has been made by the kernel's Python, perhaps of numbers that change.
        """
        moved = []
        for launch in launches:
            arguments: list[Any] = []
            for a in launch.arguments:
                place = self.known(a) if isinstance(a, np.ndarray) else None
                if place is not None:
                    arguments.append(place)
                elif isinstance(a, np.ndarray) and a.dtype != np.int64:
                    return None
                else:
                    found = {}
                    for index, number in np.ndenumerate(a):
                        if (block := self._block_at(number)) is not None:
                            found[index] = block, int(number) - block.start
                    arguments.append(Addresses(a.copy() if isinstance(a, np.ndarray) else int(a), found))
            moved.append(launch._replace(arguments=tuple(arguments)))
        return moved

    # -- the end ---------------------------------------------------------------------------------------------
    def finish(self, result: Any) -> None:
        """After the step, which has returned `result`, in the context that called it."""
        for function, _ in self.hosts:
            generator = getattr(function, "__self__", None)
            if generator is not None and is_default(generator):
                self.conditions.append(functools.partial(is_default, generator))
                break
        keep = {id(t.grad) for t in self.tensors.values() if t.grad is not None}
        mapped(result, lambda part: keep.add(id(part)), returned=True)
        self.made = [each for each in self.made if (t := each()) is not None and id(t) not in keep]
        written = {place.block for instruction in self.instructions for place in instruction.writes}
        for tensor, line in self._looked_at:
            found = self.known(tensor._data)
            if found is None or found.block is None or (found.block.kind == "outside" and found.block not in written):
                self.conditions.append(_Unchanged(tensor).holds)
            else:
                self.refusal = self.refusal or (
                    f"Python looks at numbers that change from step to step (at {line}). What follows from them would "
                    "be repeated as it was in the first step: keep them in tensors (gmcore.ops.where chooses by "
                    "value), and look at what the step returns"
                )
        self._looked_at.clear()
        self._ended = [setting() for setting in self.settings]
        for block in self._blocks:
            if block.kind == "argument" and block in written:
                self.refusal = self.refusal or (
                    "it writes into an argument, of which a repetition has a copy: state that a step keeps lies in a "
                    "tensor that it does not get as an argument"
                )
            elif block.digest is not None and block not in written and _digest(block.array) != block.digest:
                self.refusal = self.refusal or (
                    f"Python or NumPy writes into {'an argument' if block.kind == 'argument' else 'an array'} of "
                    f"{block.size} bytes that operations read too: compute with gmcore.ops, or write with copy_"
                )
        self._note_circumstances()
        gradients = {id(t): None if id(t) in self.unchanged else t.grad for t in self.tensors.values()}
        self.left = self._argument(result, returned=True), self._argument(list(gradients.values()))

    def _note_circumstances(self) -> None:
        """What was so before the step, as far as that is known, and what it has left of it."""
        read = {place.block for instruction in self.instructions for place in instruction.reads}
        for name, tensor in self.tensors.items():
            if name not in self._entered:
                continue
            gradient, stood = self._entered[name]
            if tensor.grad is gradient:
                self.unchanged.add(name)
            self.circumstances[name, "gradient"] = gradient is not None
            self.circumstances[name, "requires"], self.circumstances[name, "hooks"] = stood
            if gradient is None or (found := self.known(gradient._data)) is None:
                continue
            if found.block is not None and found.block.kind == "outside" and found.block in read:
                self.accumulates = self.accumulates or any(
                    i.call is np.add and i.reads[0].key[2:] == found.key[2:] and i.reads[0].block is found.block
                    for i in self.instructions
                )
                self.conditions.append(functools.partial(_has_gradient, tensor, gradient, gradient._data))

    def shares(self, arrays: Sequence[Array]) -> bool:
        """Whether one of the arrays lies in memory outside that the step writes."""
        if self._written is None:
            self._written = {}
            for place in [p for i in self.instructions for p in i.writes]:
                if place.block is not None and place.block.kind == "outside":
                    self._written.setdefault(id(place.block.array), []).append(place)
        for array in arrays:
            owner = array if array.base is None else _owner(array)
            # What is no array, such as a file's memory, may be behind several.
            near = self._written.get(id(owner), ()) if owner.base is None else sum(self._written.values(), [])
            for place in near:
                if array.size and Place(place.block, array).overlaps(place, also_itself=True):
                    return True
        return False

    def agree(self, first: Recorder) -> None:
        """Take over what an earlier recording of the same step tells of it."""
        self.free = first.free | {
            key
            for key, value in self.circumstances.items()
            if key[1] != "hooks" and key in first.circumstances and first.circumstances[key] != value
        }
        # What a step switches to and fro, such as the training flag of a module, it finds as it left it.
        if len(self._held) == len(self.settings):
            self.switched = first.switched | {
                number
                for number, held in enumerate(self._held)
                if not held and (self._again[number] or not first._ended[number])
            }
        # Where there was no gradient before and is none after, another recording tells whether the step clears it.
        self.unchanged -= {name for name in self.unchanged if self._leaves_none(name) and first.clears(name)}

    def _leaves_none(self, name: int) -> bool:
        return name in self.unchanged and not self.circumstances[name, "gradient"]

    def clears(self, name: int) -> bool:
        return (name, "gradient") in self.circumstances and name not in self.unchanged

    def changes_differently(self, first: Recorder) -> bool:
        """Whether this recording leaves a gradient as it was, that another one changes, or the reverse."""
        return any(
            (name in self.unchanged) != (name in first.unchanged)
            for name in self.tensors
            if all((name, "gradient") in each.circumstances and not each._leaves_none(name) for each in (self, first))
        )


def _allocated(spec: KernelSpec, plan: registry.Plan, layout: registry.Layout) -> list[Array]:
    """Arrays for the results or the scratch of a kernel, each in memory of its own."""
    if plan.device is None:
        return [np.empty(shape, dtype) for shape, dtype in layout]
    import cupy

    from gmkernels import launch

    with cupy.cuda.Device(plan.device):
        return launch.allocate(f"{spec.name} (backend {plan.backend!r})", layout)


def _run_plain(plan: registry.Plan, inputs: Any, outputs: Any, workspace: Any, attrs: Mapping[str, Any]) -> None:
    """Run a kernel as `registry.run` does."""
    if plan.device is None:
        plan.kernel(inputs, outputs, workspace, attrs)
        return
    import cupy

    from gmkernels import launch

    with cupy.cuda.Device(plan.device):
        plan.kernel(mapped(inputs, lambda a: a if on_gpu(a) else launch.resident(a)), outputs, workspace, attrs)


def _run_noting(
    kernel: Any, inputs: Any, outputs: Any, workspace: Any, attrs: Mapping[str, Any], updates: bool
) -> list[pool.Launch] | None:
    """Run a kernel; the block kernels it launches, if launching them is all that it does to its memory.

    What it does by itself, before, between and after the launches, shows as a change of that memory, which is filled
    with nonsense first.
    """
    memory = [*workspace, *registry.flat(outputs)]
    for a in workspace if updates else memory:
        a.reshape(-1).view(np.uint8)[...] = 0xFF
    launches: list[pool.Launch] = []
    state = [_digest(a) for a in memory]
    launches_only = True

    @contextmanager
    def noted(launch: pool.Launch) -> Iterator[None]:
        nonlocal state, launches_only
        launches.append(launch)
        launches_only = launches_only and state == [_digest(a) for a in memory]
        yield
        state = [_digest(a) for a in memory]

    with pool.watched(noted):
        kernel(inputs, outputs, workspace, attrs)
    return launches if launches and launches_only and state == [_digest(a) for a in memory] else None


# -- two recordings ----------------------------------------------------------------------------------------------
def _same_function(a: Any, b: Any) -> bool:
    return a is b or a == b or (getattr(a, "__code__", a) is getattr(b, "__code__", b))


def difference(first: Recorder, second: Recorder) -> str | None:
    """Why `second` is not the same step as `first`; None if it is. Tells constants from what varies.

    Memory outside is the same if it is the same memory, or if it held the same numbers: a constant that is made anew.
    """
    other = _difference(first, second)
    if other is not None and (first.accumulates or second.accumulates):
        return (
            "backward() adds to a `.grad` that an earlier call has left, in memory that is new each time. Clear the "
            "gradients in the step, with zero_grad(); to add up those of several micro-batches, give it all of them, "
            "in a list, and call backward() for each inside"
        )
    return other


def _difference(first: Recorder, second: Recorder) -> str | None:
    if len(first.hosts) != len(second.hosts) or not all(
        _same_function(_unbound(f), _unbound(g)) for (f, _), (g, _) in zip(first.hosts, second.hosts, strict=True)
    ):
        return "it draws random numbers, or counts steps, differently from call to call"
    if (other := _first_difference(first, second)) is not None:
        return other
    written = {p.block for i in second.instructions for p in i.writes if p.block and p.block.kind == "outside"}
    pairs: dict[Block, Block] = {}
    for a, b in zip(first.instructions, second.instructions, strict=True):
        for p, q in zip([*a.reads, *a.writes], [*b.reads, *b.writes], strict=True):
            if p.block is None or q.block is None or p.block.kind != "outside":
                continue
            if pairs.setdefault(p.block, q.block) is not q.block:
                return f"{b.name} reads different memory from call to call (at {b.line})"
            if p.block.start == q.block.start:
                continue
            if q.block in written:
                return (
                    f"{b.name} writes into memory that is made anew in each step (at {b.line}); make it once, outside, "
                    "or return the result"
                )
            if p.block.digest != q.block.digest:
                return (
                    f"{b.name} reads an array of {q} that changes from step to step and that no operation of the step "
                    f"computes (at {b.line}): Python or NumPy made it, or an earlier step did. Give it to the step as "
                    "an argument, compute it with gmcore.ops, or keep it in a leaf that the step writes with copy_"
                )
    return _left_differently(first, second)


def _left_differently(first: Recorder, second: Recorder) -> str | None:
    """Why a repetition would not return what the step does, or leave its gradients."""
    if second.changes_differently(first):
        return "it leaves a gradient as it was in some calls and changes it in others"
    kept = [a in first.unchanged or b in second.unchanged for a, b in zip(first.tensors, second.tensors, strict=False)]
    (result, gradients), (result_now, gradients_now) = [
        (each.left[0], [None if keep else g for keep, g in zip(kept, each.left[1], strict=False)])
        for each in (first, second)
    ]
    if (other := _differing(result, result_now)) is not None:
        return (
            f"what it returns changes from call to call in more than the numbers of tensors: {other}. It may return "
            "tensors, arrays and what stays the same, in tuples, lists, dicts and dataclasses"
        )
    if (other := _differing(gradients, gradients_now)) is not None:
        return f"the gradients that it leaves change from call to call in more than their numbers: {other}"
    left = places((result, gradients)), places((result_now, gradients_now))
    for p, q in zip(*left, strict=True):
        if p.block is None or q.block is None or p.block.start == q.block.start:
            continue
        if q.block.kind == "outside":
            second.anew.add(q.block)
        if p.block.kind == "outside" and p.block.digest != q.block.digest:
            return (
                f"it returns an array of {q}, or leaves it as a gradient, that changes from step to step and that no "
                "operation of the step computes: Python or NumPy made it. Compute it with gmcore.ops"
            )
    return None


def _differing(a: Any, b: Any) -> str | None:
    """Where two values are not the same but for numbers in memory, in words."""
    if type(a) is type(b) and not isinstance(a, Place):
        parts: Any = None
        if isinstance(a, (tuple, list)) and len(a) == len(b):
            parts = zip(a, b, strict=True)
        elif isinstance(a, dict) and a.keys() == b.keys():
            parts = [(a[name], b[name]) for name in a]
        elif dataclasses.is_dataclass(a) and not isinstance(a, type):
            parts = [[getattr(each, field.name) for each in (a, b)] for field in dataclasses.fields(a)]
        if parts is not None:
            return next((found for pair in parts if (found := _differing(*pair)) is not None), None)
    return None if _same_values(a, b) else f"{_named(a)}, then {_named(b)}"


def _named(value: Any) -> str:
    return f"a new {type(value).__name__}" if type(value).__repr__ is object.__repr__ else f"{value}"[:60]


def _unbound(function: Any) -> Any:
    function = getattr(function, "func", function)  # of a functools.partial
    return getattr(function, "__func__", function)


def _first_difference(first: Recorder, second: Recorder) -> str | None:
    for a, b in zip(first.instructions, second.instructions, strict=False):
        if not _same_function(a.call, b.call) or len(a.reads) != len(b.reads) or len(a.writes) != len(b.writes):
            return f"it computes {a.name} (at {a.line}) in one call and {b.name} (at {b.line}) in the next"
        if not _same_values(a.attrs, b.attrs) or not _same_values(a.inputs, b.inputs):
            return (
                f"{b.name} is called with other options, shapes or places in memory from step to step (at {b.line}): "
                f"{_shown(a)}, then {_shown(b)}. A number that varies must be a tensor that is given to the step"
            )
        if [p and p.key for p in a.outputs] != [p and p.key for p in b.outputs]:
            return f"{b.name} gives other shapes from step to step (at {b.line})"
    if len(first.instructions) != len(second.instructions):
        longer = max(first.instructions, second.instructions, key=len)
        extra = longer[min(len(first.instructions), len(second.instructions))]
        return f"it computes {extra.name} (at {extra.line}) in some calls and not in others"
    return None


def _shown(instruction: Instruction) -> str:
    return ", ".join(
        [
            *map(str, instruction.reads),
            *[f"{k}={v!r}" for k, v in instruction.attrs.items() if not isinstance(v, Place)],
        ]
    )


def _same_values(a: Any, b: Any) -> bool:
    if isinstance(a, Place) and isinstance(b, Place):
        return a.key == b.key
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_same_values, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same_values(a[name], b[name]) for name in a)
    if isinstance(a, slice):
        return _same_values((a.start, a.stop, a.step), (b.start, b.stop, b.step))
    if isinstance(a, float) and a != a:
        return b != b
    return bool(a is b or a == b)


__all__ = ["Block", "Instruction", "Place", "Recorder", "difference", "mapped", "places", "standing"]
