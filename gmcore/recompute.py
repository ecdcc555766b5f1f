"""Gradient checkpointing: memory for time."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.engine import grad_between
from gmcore.errors import ArgumentError, GraphError
from gmcore.op import Edge, Example, Meta, Op, next_sequence
from gmcore.random import DrawLog
from gmcore.tensor import Leaf, Tensor, enable_grad, is_grad_enabled
from gmcore.watch import no_rule
from gmkernels.arrays import on_gpu


class _Segment:
    """A call that can be run again: the function, its arguments, its random draws, what it takes from the tape."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.draws = DrawLog()
        self.edges: tuple[Edge, ...] = ()
        self.arrays: tuple[Any, ...] = ()
        """The results of the first run, until the operation has taken them."""
        self.checksums: list[int] = []
        """Of those results: running it again must give the same bits, or the gradients would be those of another."""

    def run(self) -> tuple[Any, tuple[Tensor, ...], dict[Edge, Meta], int]:
        """The result; its tensors; the places on the tape that it used from outside; the number of its first node."""
        since = next_sequence()
        with enable_grad():
            result = self.function(*self.args, **self.kwargs)
        outputs = result if isinstance(result, tuple) else (result,)
        for y in outputs:
            if not isinstance(y, Tensor):
                raise ArgumentError(f"checkpoint: the function gave {type(y).__name__}, expected a tensor or a tuple")
        outside: dict[Edge, Meta] = {}
        seen: set[int] = set()
        stack = [(y._edge, (y.shape, y.dtype)) for y in outputs if y._edge is not None]
        while stack:
            edge, meta = stack.pop()
            node = edge[0]
            if isinstance(node, Leaf):
                if node.tensor() is not None:  # a leaf of the function's own is gone by now, and its gradient with it
                    outside[edge] = meta
            elif node.sequence <= since:
                outside[edge] = meta
            elif node.sequence not in seen:
                seen.add(node.sequence)
                stack += [(e, m) for e, m in zip(node.edges, node.input_meta, strict=True) if e is not None]
        return result, outputs, outside, since


def _checksums(tensors: Sequence[Tensor]) -> list[int]:
    """Of the numbers of results; of those on a GPU none, which would have to cross to the host."""
    arrays = [y._data for y in tensors if not on_gpu(y._data)]
    return [zlib.crc32(np.ascontiguousarray(a).reshape(-1).view(np.uint8).data) for a in arrays]


def _first_results(*arrays: Any, segment: _Segment) -> tuple[Any, ...]:
    results, segment.arrays = segment.arrays, ()
    return results


def _rule(xs: list[Tensor], segment: _Segment, needs: Sequence[bool], grads: Sequence[Tensor | None]) -> list[Any]:
    # xs are not used: they are saved for their versions, so that a leaf changed since is found out.
    create_graph = is_grad_enabled()
    with no_rule():
        with segment.draws.replay():
            _, outputs, outside, since = segment.run()
        same = len(outputs) == len(grads) and all(
            g is None or (g.shape == y.shape and g.dtype == y.dtype) for y, g in zip(outputs, grads, strict=True)
        )
        if not (same and set(outside) <= set(segment.edges) and _checksums(outputs) == segment.checksums):
            raise GraphError(
                "checkpoint: run again, the function used other tensors, or gave other shapes or numbers, than the "
                "first time; it must do the same each time (pass what changes between the passes as an argument, and "
                "draw noise from gmcore's generators)"
            )
        roots = [(y._edge, g) for y, g in zip(outputs, grads, strict=True) if g is not None and y._edge is not None]
        wanted = [edge for edge, need in zip(segment.edges, needs, strict=True) if need]
        found = iter(grad_between(roots, wanted, since, create_graph))
    filled = []
    for x, need in zip(xs, needs, strict=True):
        g = next(found) if need else None
        filled.append(x.new_zeros(x.shape) if need and g is None else g)
    return filled


def _examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape in ((), (0,), (3,), (2, 3)):
        yield (_example, rng.uniform(0.3, 2.0, shape), rng.uniform(0.3, 2.0, shape)), {}


def _example(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    return ops.tanh(ops.multiply(x, y)) * x, ops.exp(y) + ops.square(x)


_checkpoint = Op(
    "checkpoint",
    "*xs",
    "*outs",
    forward=_first_results,
    vjp=_rule,
    exact=True,
    partial=True,
    formula="function(*args), recomputed in the backward pass",
    source="Chen, Xu, Zhang & Guestrin 2016, Training deep nets with sublinear memory cost",
    examples=_examples,
)


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``function(*args, **kwargs)`` without keeping its tape: the backward pass runs it again.

    Parameters
    ----------
    function : gives a tensor or a tuple of tensors, and does the same each time it is run. Tensors it uses without
        their being arguments, such as the parameters of a module, get their gradients too. It draws the same random
        numbers again, from whatever generators.
    args, kwargs : handed to the function.

    Returns
    -------
    What the function gives. Derivatives of any order are exact; with ``create_graph`` the recomputed tape is kept.

    Raises
    ------
    ArgumentError : the function gives something else.
    GraphError : in the backward pass, if the function does not do the same again, or if a leaf it used was changed
        since.

    Notes
    -----
    What the function changes besides (running statistics) it changes twice. That it gives the same numbers again is
    looked at on the CPU only.
    """
    if not is_grad_enabled():
        return function(*args, **kwargs)
    segment = _Segment(function, args, kwargs)
    with segment.draws.record():
        result, outputs, outside, _ = segment.run()
    if not outside:
        return result
    segment.edges = tuple(outside)
    segment.arrays = tuple([y._data for y in outputs])
    segment.checksums = _checksums(outputs)
    tensors = []
    for edge, (shape, dtype) in outside.items():
        x = edge[0].tensor() if isinstance(edge[0], Leaf) else None
        if x is None:
            x = Tensor(np.broadcast_to(np.zeros((), dtype), shape))  # stands for a tensor that the caller keeps
            x._edge = edge
        tensors.append(x)
    del outputs
    found = _checkpoint(*tensors, segment=segment)
    return found if isinstance(result, tuple) else found[0]


_checkpoint.public = checkpoint
