"""Watching the engine at work: what `detect_anomaly` and `gmcore.explain` hang on.

The engine looks at `watching` once per call and once per derivative rule. It is empty unless a watch is open in some
thread, so that is all a watch costs where there is none. Which watches see a call is a matter of the context.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gmcore.errors import user_line
from gmkernels import KernelSpec, select

if TYPE_CHECKING:
    from gmcore.op import Node, Op
    from gmcore.tensor import Tensor

watching: list[Watch] = []
"""The watches that are open, in any thread."""

_watches: ContextVar[tuple[Watch, ...]] = ContextVar("gmcore.watches", default=())
_rule: ContextVar[Node | None] = ContextVar("gmcore.rule", default=None)
_chosen: ContextVar[tuple[str, ...]] = ContextVar("gmcore.chosen", default=())

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
        """A backward pass from `y` comes next."""

    def before_rule(self, node: Node, grads: Sequence[Tensor | None]) -> None:
        """The gradients of the outputs of `node` are complete; its rule comes next."""

    def after_rule(self, node: Node, found: Sequence[Tensor | None]) -> None:
        """The rule of `node` has run and `found` the gradients of its inputs, None where none was wanted."""


@contextmanager
def watch(by: Watch) -> Iterator[None]:
    """Tell `by` of what runs inside the block, in this context only."""
    watching.append(by)
    try:
        token = _watches.set((*_watches.get(), by))
        _chosen.set(())  # a call that failed after its kernel ran, inside an earlier watch, has left its name
        try:
            yield
        finally:
            _watches.reset(token)
    finally:
        watching.remove(by)


@contextmanager
def no_rule() -> Iterator[None]:
    """What runs inside the block counts as the user's, though a derivative rule runs it (a recomputation)."""
    token = _rule.set(None)
    try:
        yield
    finally:
        _rule.reset(token)


def called(op: Op, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Tell the watches of a call, and put a note on the node that it left on the tape."""
    watches = _watches.get()
    if not watches:
        return
    rule = _rule.get()
    if rule is None:
        line = user_line(models=True)
    else:
        line = f"{rule.note.line if rule.note else '?'}, in the gradient of {rule.op.name}"
    kernels = _chosen.get()
    _chosen.set(())
    for y in outputs:
        if y._edge is not None:
            metas = [tuple([(x._data.shape, x._data.dtype) for x in tensors]) for tensors in (inputs, outputs)]
            y._edge[0].note = Note(line, metas[0], metas[1], kernels)
            break
    for each in watches:
        each.call(op, inputs, outputs, line, rule)


def kernel_ran(spec: KernelSpec, arrays: Sequence[Any], attrs: Mapping[str, Any]) -> None:
    """Keep which kernel an operation has just run, for the note on its node."""
    if _watches.get():
        _chosen.set((*_chosen.get(), f"{spec.name}: {select(spec, arrays, attrs).backend}"))


def before_pass(y: Tensor) -> None:
    """Tell the watches of a backward pass that comes next."""
    for each in _watches.get():
        each.before_pass(y)


def run_rule(node: Node, grads: list[Any], needs: Sequence[bool] | None, create_graph: bool) -> Any:
    """``node.vjp(...)``, watched. A rule inside a rule is part of it."""
    watches = _watches.get() if _rule.get() is None else ()
    for each in watches:
        each.before_rule(node, grads)
    token = _rule.set(node)
    try:
        found = node.vjp(grads, needs, create_graph)
    finally:
        _rule.reset(token)
    if watches:
        rest = iter(found)
        by_input = [next(rest)[1] if need else None for need in needs or node.plan.needs]
        for each in watches:
            each.after_rule(node, by_input)
    return found
