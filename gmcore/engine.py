"""The backward pass.

Reverse accumulation over the tape, from the newest node to the oldest. Nodes carry a sequence number, so a
heap gives the order without recursion and a chain of any length works. Gradients are kept per (node, output).
With `create_graph` the derivative rules are recorded themselves, which gives derivatives of any order.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from heapq import heappop, heappush
from typing import Any, cast

import numpy as np

from gmcore import tensor as _tensor
from gmcore.errors import DtypeError, GraphError, ShapeError
from gmcore.op import Edge, Node
from gmcore.tensor import Leaf, Tensor, _grad_enabled, as_tensor

_NOTHING: frozenset[Any] = frozenset()


def _root_gradient(y: Tensor, gradient: Any) -> Tensor:
    """The gradient to start from at `y`, checked; ones where it may be left out."""
    if y._edge is None:
        raise GraphError(
            "this tensor does not require a gradient: no leaf with requires_grad=True led to it, or it was computed "
            "inside no_grad()"
        )
    if gradient is None:
        if y.size != 1:
            raise GraphError(f"a tensor of shape {y.shape} needs a gradient to start from; sum it first, or pass one")
        return Tensor(np.ones(y.shape, y.dtype))
    if not isinstance(gradient, Tensor):
        gradient = as_tensor(gradient)
    given, array = gradient._data, y._data
    if given.shape != array.shape:
        raise ShapeError(f"the gradient has shape {gradient.shape}, expected the tensor's shape {y.shape}")
    if given.dtype != array.dtype:
        raise DtypeError(f"the gradient is {gradient.dtype}, expected the tensor's dtype {y.dtype}")
    return gradient


def _towards(roots: Sequence[Node | Leaf], targets: set[Edge]) -> dict[Node, list[bool]]:
    """For every node between the roots and the targets: which of its inputs lead to a target."""
    found: dict[int, Node] = {}
    stack = [node for node in roots if isinstance(node, Node)]
    while stack:
        node = stack.pop()
        if node.sequence not in found:
            found[node.sequence] = node
            stack += [e[0] for e in node.edges if e is not None and isinstance(e[0], Node)]
    needs: dict[Node, list[bool]] = {}
    for _, node in sorted(found.items()):  # an input's node is always older
        leads = [e is not None and (e in targets or e[0] in needs) for e in node.edges]
        if any(leads):
            needs[node] = leads
    return needs


def _sweep(
    roots: Sequence[tuple[Edge, Tensor]],
    needs: dict[Node, list[bool]] | None,
    targets: Set[Node | Leaf],
    create_graph: bool,
    retain_graph: bool,
) -> dict[Node | Leaf, list[Tensor | None]]:
    """Run the derivative rules from the roots down; returns the gradients of the leaves and the targets, per output.

    `needs` restricts the sweep to nodes on the way to the targets; None follows every edge.
    """
    arrived: dict[Node | Leaf, list[Tensor | None]] = {}  # sums of the gradients of each node's outputs so far
    owned: set[Edge] | None = None  # sums whose array nobody else has
    done: dict[Node | Leaf, list[Tensor | None]] | None = {} if targets else None
    heap: list[tuple[int, Node]] = []

    token = _grad_enabled.set(create_graph)
    try:
        arrivals = roots
        while True:
            for edge, g in arrivals:
                node, slot = edge
                sums = arrived.get(node)
                if sums is None:
                    if type(node) is Leaf:
                        arrived[node] = [g]
                        continue
                    sums = arrived[node] = [None] * node.plan.outputs
                    if needs is None or node in needs:
                        heappush(heap, (-node.sequence, node))
                total = sums[slot]
                if total is None:
                    sums[slot] = g
                elif create_graph:
                    sums[slot] = total + g
                elif owned and edge in owned:
                    np.add(total._data, g._data, out=total._data)
                else:
                    # The first two may be anybody's (an op can hand one array to two inputs): add into a new one.
                    sums[slot] = _sum(total, g)
                    owned = owned or set()
                    owned.add(edge)
            if not heap:
                return arrived | done if done else arrived
            node = heappop(heap)[1]
            sums = arrived.pop(node)
            if done is not None and node in targets:
                done[node] = sums
            arrivals = node.vjp(sums, None if needs is None else needs[node], create_graph)
            if not retain_graph:
                node.saved = None
    finally:
        _grad_enabled.reset(token)


def _sum(a: Tensor, b: Tensor) -> Tensor:
    """a + b in new memory, off the tape."""
    total = np.add(a._data, b._data)
    return Tensor(total if type(total) is np.ndarray else np.asarray(total))


def backward(y: Tensor, gradient: Tensor | None, retain_graph: bool) -> None:
    """Add the gradients of `y` to the `grad` of the leaves it came from; see `Tensor.backward`."""
    start = _root_gradient(y, gradient)
    root: Any = y._edge
    found = _sweep([(root, start)], None, _NOTHING, False, retain_graph)
    taken = {id(start._data)}
    node: Any
    g: Any
    for node, (g,) in found.items():  # every edge was followed: what is left are leaves, of one gradient each
        leaf = node.tensor()
        if leaf is None:
            continue
        if leaf.grad is not None:
            leaf.grad = _sum(leaf.grad, g)
            continue
        # A leaf's gradient is its own memory: an op can hand one array to two inputs, or a view of another's.
        array = g._data
        owner = array if array.base is None else array.base
        if id(owner) in taken or (owner is not array and not array.flags.c_contiguous):
            g = Tensor(array.copy())
        taken.add(id(owner))
        leaf.grad = g


def grad(
    ys: Tensor | Sequence[Tensor],
    xs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    create_graph: bool = False,
    allow_unused: bool = False,
    *,
    retain_graph: bool | None = None,
    fill: bool = False,
) -> Any:
    """Gradients of the sum of `ys`, each contracted with its `grad_outputs`, with respect to `xs`.

    Parameters
    ----------
    ys, xs : a tensor or a sequence of tensors; `xs` may be leaves or intermediate tensors.
    grad_outputs : a gradient per y, of its shape and dtype; None for a y of one element is 1.
    create_graph : record the computation, so that the result can be differentiated again.
    allow_unused : give None for an x that no y depends on, instead of raising.
    retain_graph : keep the tape for another pass; by default it is kept only if `create_graph`.
    fill : give zeros for an x that no y depends on.

    Returns
    -------
    A tensor if `xs` is one, else a tuple of tensors, each of its x's shape and dtype.

    Raises
    ------
    GraphError : a y or an x that is not on the tape, an unused x, a freed tape, a changed array, or an
        operation without a derivative.
    """
    single = isinstance(xs, Tensor)
    ys = [ys] if isinstance(ys, Tensor) else list(ys)
    xs = [xs] if isinstance(xs, Tensor) else list(xs)
    gs = [None] * len(ys) if grad_outputs is None else grad_outputs
    gs = [gs] if isinstance(gs, (Tensor, np.ndarray)) else list(gs)
    if len(gs) != len(ys):
        raise GraphError(f"{len(gs)} grad_outputs for {len(ys)} ys; give one each")
    for i, x in enumerate(xs):
        if x._edge is None:
            raise GraphError(f"x number {i} does not require a gradient; set requires_grad=True before using it")
    roots = [(cast(Edge, y._edge), _root_gradient(y, g)) for y, g in zip(ys, gs, strict=True)]
    edges = [cast(Edge, x._edge) for x in xs]
    needs = _towards([edge[0] for edge, _ in roots], set(edges))
    retain = create_graph if retain_graph is None else retain_graph
    sums = _sweep(roots, needs, {node for node, _ in edges}, create_graph, retain)
    found = [sums[node][slot] if node in sums else None for node, slot in edges]
    for i, (x, g) in enumerate(zip(xs, found, strict=True)):
        if g is None and fill:
            found[i] = Tensor(np.zeros(x.shape, x.dtype))
        elif g is None and not allow_unused:
            raise GraphError(f"x number {i} was not used to compute ys; pass allow_unused=True to get None for it")
    return found[0] if single else tuple(found)


_tensor._backward = backward
