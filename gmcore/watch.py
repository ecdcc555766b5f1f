"""Watching the engine at work: what `detect_anomaly` and `gmcore.explain` hang on.

The engine asks at every call whether to record it. The answer, the mode of the context (`gmcore.tensor._mode`), is
True or False, or a `Watched` where a watch is open: so a watch costs nothing where there is none, and each thread and
task has its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gmcore.errors import user_line
from gmcore.tensor import Tensor, _mode
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


class Watch:
    """Base of the watches: told of every operation and every derivative rule in its context."""

    def call(self, op: Op, inputs: Sequence[Tensor], outputs: Sequence[Tensor], line: str, rule: Node | None) -> None:
        """`op` was called at `line`; by the derivative rule of the node `rule`, if not None."""

    def before_pass(self, y: Tensor) -> None:
        """A backward pass comes next: `y` has the place on the tape, the shape and the dtype of what it begins at."""

    def before_rule(self, node: Node, grads: Sequence[Tensor | None]) -> None:
        """The gradients of the outputs of `node` are complete; its rule comes next."""

    def after_rule(self, node: Node, found: Sequence[Tensor | None]) -> None:
        """The rule of `node` has run and `found` the gradients of its inputs, None where none was wanted."""


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

    def called(self, op: Op, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
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
            each.call(op, inputs, outputs, line, rule)

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
