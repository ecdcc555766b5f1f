"""Watching the engine at work: what `detect_anomaly`, `gmcore.explain` and `gmcore.capture` hang on.

The engine asks at every call whether to record it. The answer, the mode of the context (`gmcore.tensor._mode`), is
True or False, or a `Watched` where a watch is open: so a watch costs nothing where there is none, and each thread and
task has its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gmcore.device import memory_error
from gmcore.errors import user_line
from gmcore.tensor import Array, Tensor, _mode
from gmkernels import KernelSpec, select

if TYPE_CHECKING:
    from gmcore.op import Edge, Node, Op

Meta = tuple[tuple[int, ...], Any]
"""Shape and dtype."""


@dataclass(frozen=True)
class Note:
    """What a tape node knows of its call only if a watch was open: see `Node.note`."""

    line: str
    inputs: tuple[Meta, ...]
    outputs: tuple[Meta, ...]
    kernels: tuple[str, ...]
    """``"name: backend"`` of the kernels that ran."""


class Call(NamedTuple):
    """A call of an operation, as watches are told of it."""

    op: Op
    inputs: Sequence[Tensor]
    attrs: Mapping[str, Any]
    outputs: Sequence[Tensor]
    line: str
    rule: Node | None
    """The node whose derivative rule made the call; None where the user did."""


class Watch:
    """Base of the watches: told of every operation and every derivative rule in its context.

    And of what happens outside operations, which a recording of a step needs: `computed` and the methods after it.
    """

    def call(self, call: Call) -> None:
        """An operation was called."""

    def before_pass(self, y: Tensor) -> None:
        """A backward pass comes next: `y` has the place on the tape, the shape and the dtype of what it begins at."""

    def before_rule(self, node: Node, grads: Sequence[Tensor | None]) -> None:
        """The gradients of the outputs of `node` are complete; its rule comes next."""

    def after_rule(self, node: Node, found: Sequence[Tensor | None]) -> None:
        """The rule of `node` has run and `found` the gradients of its inputs, None where none was wanted."""

    def computed(
        self, function: Callable[..., Any], arrays: Sequence[Array], options: Mapping[str, Any], result: Any
    ) -> None:
        """``function(*arrays, **options)`` gave `result`: an array, a tuple of them, or None. See `computed`."""

    def hosted(self, function: Callable[[], Any], result: Any) -> None:
        """``function()`` gave `result`: an array or None. See `hosted`."""

    def read(self, tensor: Tensor) -> None:
        """Python code was given the numbers in a tensor."""

    def derived(self, tensor: Tensor) -> None:
        """A tensor was made, outside operations, of memory that is another's or that `computed` gave."""

    def wrote(self, tensor: Tensor) -> None:
        """The memory of a tensor was written."""

    def unrepeatable(self, reason: str) -> None:
        """Python code did what a captured step cannot repeat."""

    def relies(self, tensors: Sequence[Tensor], holds: Callable[[], bool] | None, counted: bool) -> None:
        """These tensors were used, and what is done with them is the same as long as ``holds()``: see `relies`."""


class Watched:
    """The mode of a context in which watches are open: what the engine calls there, and whether it records."""

    __slots__ = ("_recording", "_watches", "_rule", "_kernels")

    def __init__(self, recording: bool, watches: tuple[Watch, ...], rule: Node | None, kernels: list[str]) -> None:
        self._recording = recording
        self._watches = watches
        self._rule = rule
        """The node whose derivative rule is running."""
        self._kernels = kernels
        """Those that have run since the last operation."""

    def __bool__(self) -> bool:
        return self._recording

    def recording(self, recording: bool) -> Watched:
        """The same mode, with recording on or off."""
        return Watched(recording, self._watches, self._rule, self._kernels)

    def inside(self, rule: Node | None) -> Watched:
        """The same mode, inside the derivative rule of a node; inside None what runs counts as the user's."""
        return Watched(self._recording, self._watches, rule, self._kernels)

    def tell(self, event: str, *what: Any) -> None:
        """Call the method `event` of the watches."""
        for each in self._watches:
            getattr(each, event)(*what)

    def called(self, op: Op, inputs: Sequence[Tensor], attrs: Mapping[str, Any], outputs: Sequence[Tensor]) -> None:
        """Tell the watches of a call, and put a note on the node that it left on the tape."""
        rule = self._rule
        if rule is None:
            line = user_line(models=True)
        else:
            line = f"{rule.note.line if rule.note else '?'}, in the gradient of {rule.op.name}"
        kernels = tuple(self._kernels)
        self._kernels.clear()
        for y in outputs:
            if y._edge is not None:
                metas = [tuple([(x._data.shape, x._data.dtype) for x in tensors]) for tensors in (inputs, outputs)]
                y._edge[0].note = Note(line, metas[0], metas[1], kernels)
                break
        for each in self._watches:
            each.call(Call(op, inputs, attrs, outputs, line, rule))

    def kernel_ran(self, spec: KernelSpec, arrays: Sequence[Any], attrs: Mapping[str, Any]) -> None:
        """Keep which kernel an operation has just run, for the note on its node."""
        self._kernels.append(f"{spec.name}: {select(spec, arrays, attrs).backend}")

    def before_pass(self, edge: Edge, gradient: Tensor) -> None:
        """Tell the watches of a backward pass that comes next, and begins at this place of the tape."""
        if self._rule is None:
            y = Tensor(gradient._data)
            y._edge = edge
            for each in self._watches:
                each.before_pass(y)

    def run_rule(self, node: Node, grads: list[Any], needs: Sequence[bool] | None, create_graph: bool) -> Any:
        """``node.vjp(...)``, watched. A rule inside a rule is part of it."""
        watches = self._watches if self._rule is None else ()
        for each in watches:
            each.before_rule(node, grads)
        token = _mode.set(self.inside(node))
        try:
            found = node.vjp(grads, needs, create_graph)
        finally:
            _mode.reset(token)
        if watches:
            rest = iter(found)
            by_input = [next(rest)[1] if need else None for need in needs or node.plan.needs]
            for each in watches:
                each.after_rule(node, by_input)
        return found


@contextmanager
def watch(by: Watch) -> Iterator[None]:
    """Tell `by` of what runs inside the block, in this context only."""
    mode = _mode.get()
    watches, rule = ((), None) if type(mode) is bool else (mode._watches, mode._rule)
    # The list of kernels is a new one: a call that failed after its kernel ran may have left a name in the old.
    token = _mode.set(Watched(bool(mode), (*watches, by), rule, []))
    try:
        yield
    finally:
        _mode.reset(token)


@contextmanager
def no_rule() -> Iterator[None]:
    """What runs inside the block counts as the user's, though a derivative rule runs it (a recomputation)."""
    mode = _mode.get()
    token = _mode.set(mode if type(mode) is bool else mode.inside(None))
    try:
        yield
    finally:
        _mode.reset(token)


@contextmanager
def unwatched() -> Iterator[None]:
    """Tell no watch of what runs inside the block."""
    token = _mode.set(bool(_mode.get()))
    try:
        yield
    finally:
        _mode.reset(token)


def is_watched() -> bool:
    """Whether a watch is open in this context."""
    return type(_mode.get()) is not bool


def computed(function: Callable[..., Any], *arrays: Array, **options: Any) -> Any:
    """``function(*arrays, **options)``, by which a step computes something that is no operation.

    A captured step calls it again at this place. The function lives as long as its module and reads nothing else that
    changes; what it returns is new memory, a view of its arrays, or, with ``out=``, that array; or None, if it only
    raises for arrays that will not do.
    """
    try:
        result = function(*arrays, **options)
    except MemoryError as error:
        raise memory_error(error) from None
    if isinstance(result, np.generic):  # which NumPy makes of arrays of no dimensions
        result = np.asarray(result)
    mode = _mode.get()
    if type(mode) is not bool:
        mode.tell("computed", function, arrays, options, result)
    return result


def hosted(function: Callable[[], Any]) -> Any:
    """``function()``, by which Python tells a step something that changes: a count, a rate, the key of a draw.

    A captured step calls it again each time, before it computes anything, in the order in which such calls were made.
    It returns a new array, whose memory the step reads, or None.
    """
    result = function()
    mode = _mode.get()
    if type(mode) is not bool:
        mode.tell("hosted", function, result)
    return result


def computed_tensor(function: Callable[..., Any], *arrays: Array, **options: Any) -> Tensor:
    """The array of `computed` as a tensor."""
    return derived(Tensor(computed(function, *arrays, **options)))


def derived(tensor: Tensor) -> Tensor:
    """Tell of a tensor that no operation has made; returns it."""
    mode = _mode.get()
    if type(mode) is not bool:
        mode.tell("derived", tensor)
    return tensor


def unrepeatable(reason: str) -> None:
    """Tell that Python did what a captured step cannot repeat; `reason` goes on from "cannot be repeated: "."""
    mode = _mode.get()
    if type(mode) is not bool:
        mode.tell("unrepeatable", reason)


_readers: dict[type, Callable[[Any, str], Any]] = {}
_readings = 0
_lock = threading.Lock()


def reads(cls: type, reader: Callable[[Any, str], Any]) -> None:
    """Have ``reader(object, name)`` give the attributes of objects of this class while a step is recorded, in any
    thread; it tells of those that the step `relies` on."""
    with _lock:
        _readers[cls] = reader
        if _readings:  # a step that imports what has the class
            type.__setattr__(cls, "__getattribute__", reader)


@contextmanager
def reading() -> Iterator[None]:
    """Let the readers of `reads` see each attribute that is read. At other times reading one costs nothing more."""
    global _readings
    with _lock:
        _readings += 1
        for cls, reader in _readers.items():
            type.__setattr__(cls, "__getattribute__", reader)
    try:
        yield
    finally:
        with _lock:
            _readings -= 1
            if not _readings:
                for cls in _readers:
                    type.__delattr__(cls, "__getattribute__")


def relies(tensors: Sequence[Tensor], holds: Callable[[], bool] | None = None, counted: bool = False) -> None:
    """Tell that these tensors, or their gradients, come next, and for how long a captured step may go on as recorded.

    A captured step asks ``holds()`` before each repetition, and is recorded anew where that is false. If it is
    `counted`, only a change that `gmcore.hooks.changed` counts can make it false.
    """
    mode = _mode.get()
    if type(mode) is not bool:
        mode.tell("relies", tensors, holds, counted)
