"""Hooks on tensors: functions that see, and may replace, a gradient on its way back.

They hang on the place of the tape that a tensor came from (`Node.hooks`, `Leaf.hooks`), so a tensor without hooks
costs the backward pass one look.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from gmcore.errors import DtypeError, ShapeError
from gmkernels.arrays import Array, as_array

if TYPE_CHECKING:
    from gmcore.tensor import Tensor

_numbers = itertools.count()
_changes = 0


def changes() -> int:
    """How often a hook, what a leaf requires, or an attribute of a module was changed: while it stays, so do these."""
    return _changes


def changed() -> None:
    """Count such a change."""
    global _changes
    _changes += 1


class RemovableHandle:
    """What registering a hook returns: `remove` takes the hook out again, and so does leaving a ``with`` block.

    Parameters
    ----------
    table : the hooks by number, in the order of their calls; the new one is put into it.
    hook : what is kept of it there.
    prepend : put it before the others.
    """

    __slots__ = ("_table", "_number")

    def __init__(self, table: dict[int, Any], hook: Any, prepend: bool = False) -> None:
        self._table = table
        self._number = next(_numbers)
        others = dict(table) if prepend else {}
        for number in others:
            del table[number]
        table[self._number] = hook
        table.update(others)
        changed()

    def remove(self) -> None:
        """Take the hook out; nothing happens the second time."""
        self._table.pop(self._number, None)
        changed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


class Retain:
    """The hook of `Tensor.retain_grad`: adds the gradient to ``tensor.grad``. Refers to the tensor weakly."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = weakref.ref(tensor)

    def __call__(self, g: Tensor) -> None:
        from gmcore.watch import computed_tensor  # which needs tensors, and these need hooks

        tensor = self.tensor()
        if tensor is not None:
            arrays = [g._data] if tensor.grad is None else [tensor.grad._data, g._data]
            tensor.grad = computed_tensor(_total, *arrays)


def _total(*arrays: Array) -> Array:
    """The sum of one or two arrays, in new memory."""
    return arrays[0].copy() if len(arrays) == 1 else as_array(arrays[0] + arrays[1])


def register(place: Any, slot: int, hook: Callable[..., Any]) -> RemovableHandle:
    """Run `hook` on the gradient of output `slot` of a `Node` or `Leaf`."""
    if place.hooks is None:
        place.hooks = {}
    return RemovableHandle(place.hooks, (slot, hook))


def run(place: Any, sums: list[Any]) -> None:
    """Let the hooks of a `Node` or `Leaf` see and replace `sums`, the gradients of its outputs.

    In the order they were registered, except that `retain_grad` keeps what the others made of it.
    """
    for slot, hook in sorted(place.hooks.values(), key=lambda entry: isinstance(entry[1], Retain)):
        g = sums[slot]
        if g is None:
            continue
        new = hook(g)
        if new is None:
            continue
        name = getattr(hook, "__qualname__", type(hook).__name__)
        if not isinstance(new, type(g)) or new.dtype != g.dtype:
            given = new.dtype if isinstance(new, type(g)) else type(new).__name__
            raise DtypeError(f"hook {name}: gave {given}, expected a tensor of {g.dtype}, like the gradient, or None")
        if new.shape != g.shape:
            raise ShapeError(f"hook {name}: gave shape {new.shape}, expected the gradient's shape {g.shape}, or None")
        sums[slot] = new
