"""Finding the operation that first made a NaN or an infinity."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

from gmcore.errors import AnomalyError, shown
from gmcore.tensor import Tensor, is_floating
from gmcore.watch import Call, Watch, watch

if TYPE_CHECKING:
    from gmcore.op import Node


def detect_anomaly() -> AbstractContextManager[None]:
    """Raise, inside the block, at the operation that first makes a NaN or an infinity, forward or backward.

    A NaN in a result always raises; an infinity only where all inputs were finite, so constants such as a mask of
    minus infinities pass. Of a derivative rule only what it returns counts: a value that it masks again is no anomaly.
    The error names the operation and the line that called it, also for the backward pass, if the forward pass ran
    inside the block as well. In this context (thread) only; every result is looked through, so it is slow.

    Raises
    ------
    AnomalyError : inside the block.
    """
    return watch(_Anomalies())


def _flaw(x: Tensor, infinities: bool = True) -> str | None:
    """What is wrong with `x`: "NaN", "infinity" if those count, or None."""
    if not is_floating(x.dtype):
        return None
    if np.isnan(x._data).any():
        return "NaN"
    return "infinity" if infinities and np.isinf(x._data).any() else None


class _Anomalies(Watch):
    def __init__(self) -> None:
        self.inside: str | None = None
        """The operation that first made one inside the rule that is running."""

    def call(self, call: Call) -> None:
        op = call.op
        given = [_flaw(x) for x in call.inputs]
        for name, y in zip(op.outputs * len(call.outputs), call.outputs, strict=False):
            flaw = _flaw(y, infinities=not any(given))
            if flaw is None:
                continue
            if call.rule is not None:
                self.inside = self.inside or op.name
                return
            arguments = ", ".join(f"{op.input_name(i)}: {shown(x)}" for i, x in enumerate(call.inputs))
            at = next((i for i, flawed in enumerate(given) if flawed == flaw), None)
            origin = "" if at is None else f"; it was given {flaw} in its {op.input_name(at)}, made outside the block"
            raise AnomalyError(f"{op.name}({arguments}) made {flaw} in its {name}{origin} (called at {call.line})")

    def before_rule(self, node: Node, grads: Sequence[Tensor | None]) -> None:
        self.inside = None
        for g in grads:
            if g is not None and (flaw := _flaw(g)):
                raise AnomalyError(
                    f"backward: the gradient of the result of {node.op.name} ({shown(g)}) has {flaw}, but nothing "
                    "that flowed into it: the gradient passed in, a hook, or the sum over several paths made it"
                    f"{_line(node)}"
                )

    def after_rule(self, node: Node, found: Sequence[Tensor | None]) -> None:
        for i, g in enumerate(found):
            if g is not None and (flaw := _flaw(g)):
                inside = "" if self.inside is None else f", first in {self.inside}"
                raise AnomalyError(
                    f"backward through {node.op.name} made {flaw} in the gradient of its {node.op.input_name(i)} "
                    f"({shown(g)}) from finite gradients{inside}{_line(node)}"
                )


def _line(node: Node) -> str:
    if node.note is None:
        return " (to see the line that called it, run the forward pass inside detect_anomaly() too)"
    return f" (called at {node.note.line})"
