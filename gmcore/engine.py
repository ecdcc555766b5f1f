"""The backward pass.

Reverse accumulation over the tape, from the newest node to the oldest. Nodes carry a sequence number, so a
heap gives the order without recursion and a chain of any length works. Gradients are kept per (node, output).
With `create_graph` the derivative rules are recorded themselves, which gives derivatives of any order.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence, Set
from heapq import heappop, heappush
from typing import Any, NamedTuple, cast

import numpy as np

from gmcore import hooks
from gmcore import tensor as _tensor
from gmcore.errors import DeviceError, DtypeError, GraphError, ShapeError
from gmcore.op import OPS, Edge, Node, Rule
from gmcore.tensor import (
    Leaf,
    Tensor,
    _mode,
    as_tensor,
    copied,
    enable_grad,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from gmcore.watch import computed, computed_tensor, is_watched, relies
from gmkernels.arrays import is_array

_NOTHING: frozenset[Any] = frozenset()


def _root_gradient(y: Tensor, gradient: Any) -> Tensor:
    """The gradient to start from at `y`, checked; ones where it may be left out."""
    if y._edge is None:
        if (op := getattr(y, "_cut", None)) is not None:
            raise GraphError(f"{op.name} has no derivative: its result is {y.dtype}, which carries no gradient")
        raise GraphError(
            "this tensor does not require a gradient: no leaf with requires_grad=True led to it, or it was computed "
            "inside no_grad()"
        )
    if gradient is None:
        if y.size != 1:
            raise GraphError(f"a tensor of shape {y.shape} needs a gradient to start from; sum it first, or pass one")
        return y.new_ones(y.shape)
    if not isinstance(gradient, Tensor):
        gradient = as_tensor(gradient)
    given, array = gradient._data, y._data
    if type(given) is not type(array) and gradient.device != y.device:
        raise DeviceError(f"the gradient is on {gradient.device}, expected the tensor's device {y.device}")
    if given.shape != array.shape:
        raise ShapeError(f"the gradient has shape {gradient.shape}, expected the tensor's shape {y.shape}")
    if given.dtype != array.dtype:
        raise DtypeError(f"the gradient is {gradient.dtype}, expected the tensor's dtype {y.dtype}")
    return gradient


def _towards(roots: Sequence[Node | Leaf], targets: Set[Edge], since: int = -1) -> dict[Node, list[bool]]:
    """For every node between the roots and the targets, made after `since`: which of its inputs lead to a target."""
    found: dict[int, Node] = {}
    stack = list(roots)
    while stack:
        node = stack.pop()
        if isinstance(node, Node) and node.sequence > since and node.sequence not in found:
            found[node.sequence] = node
            stack += [e[0] for e in node.edges if e is not None]
    needs: dict[Node, list[bool]] = {}
    for _, node in sorted(found.items()):  # an input's node is always older
        leads = [e is not None and (e in targets or e[0] in needs) for e in node.edges]
        if any(leads):
            needs[node] = leads
    return needs


Sums = dict[Node | Leaf, list[Any]]
"""The gradients of the outputs of nodes and leaves, None where there is none."""


class Step(NamedTuple):
    """One derivative rule that a backward pass has run: what `step` yields."""

    node: Node
    incoming: list[Any]
    """The gradients of its outputs, None where there is none."""
    outgoing: Sequence[tuple[Edge, Tensor]]
    """Places on the tape, ``(node or leaf, output number)``, and the gradient that goes there."""
    waiting: Sums
    """The sums of what has arrived so far at leaves and at nodes still to come, as the pass keeps them: they change."""


class _Pause:
    """Where a sweep stands that runs one rule a call; a call sets the flags of the context and sets them back."""

    def __init__(self) -> None:
        self.arrived: Sums = {}
        self.heap: list[tuple[int, Node]] = []
        self.last: Step | None = None
        """The rule it has just run; None where none was left."""


def _sweep(
    roots: Sequence[tuple[Edge, Tensor]],
    needs: dict[Node, list[bool]] | None,
    targets: Set[Node | Leaf],
    create_graph: bool,
    retain_graph: bool,
    pause: _Pause | None = None,
) -> Sums:
    """Run the derivative rules from the roots down; returns the gradients of the leaves and the targets, per output.

    `needs` restricts the sweep to nodes on the way to the targets; None follows every edge. The hooks of the places
    where it ends, leaves and targets whose rule is not run, are left to the caller. With `pause` it goes on from there,
    returns after one rule, and is over when there was none to run.
    """
    arrived: Sums = {}  # sums of the gradients of each node's outputs so far
    owned: set[Edge] | None = None  # sums whose array nobody else has, that this call has made
    done: Sums | None = {} if targets else None
    heap: list[tuple[int, Node]] = []
    if pause is not None:
        arrived, heap, pause.last = pause.arrived, pause.heap, None

    mode = _mode.get()
    run_rule: Callable[..., list[tuple[Edge, Tensor]]]
    if type(mode) is bool:
        mode, run_rule = create_graph, Node.vjp
    else:
        mode = mode.recording(create_graph)
        run_rule = mode.run_rule
        if needs is None and roots:
            mode.before_pass(*roots[0])
    token = _mode.set(mode)
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
                    sums = arrived[node] = [None] * (node.plan.outputs or len(node.output_meta))
                    if needs is None or node in needs:
                        heappush(heap, (-node.sequence, node))
                total = sums[slot]
                if total is None:
                    sums[slot] = g
                elif create_graph:
                    sums[slot] = total + g
                elif owned and edge in owned:
                    if type(mode) is bool:
                        np.add(total._data, g._data, out=total._data)
                    else:
                        computed(np.add, total._data, g._data, out=total._data)
                else:
                    # The first two may be anybody's (an op can hand one array to two inputs): add into a new one.
                    sums[slot] = _sum(total, g)
                    owned = owned or set()
                    owned.add(edge)
            if not heap or (pause is not None and pause.last is not None):
                return arrived | done if done else arrived
            node = heappop(heap)[1]
            sums = arrived.pop(node)
            if node.hooks is not None:
                hooks.run(node, sums)
            if done is not None and node in targets:
                done[node] = sums
            wanted = None if needs is None else needs[node]
            arrivals = run_rule(node, sums, wanted, create_graph)
            if not retain_graph:
                node.saved = None
            if pause is not None:
                pause.last = Step(node, sums, arrivals, arrived)
    finally:
        _mode.reset(token)


def _sum(a: Tensor, b: Tensor) -> Tensor:
    """a + b in new memory, off the tape."""
    return computed_tensor(np.add, a._data, b._data)


def backward(y: Tensor, gradient: Tensor | None, retain_graph: bool) -> None:
    """Add the gradients of `y` to the `grad` of the leaves it came from; see `Tensor.backward`."""
    start = _root_gradient(y, gradient)
    root: Any = y._edge
    _accumulate(_sweep([(root, start)], None, _NOTHING, False, retain_graph), start)


def _accumulate(found: Sums, start: Tensor) -> None:
    """Add what a backward pass from the gradient `start` has found to the `grad` of the leaves."""
    taken = {id(start._data)}
    node: Any
    if is_watched():
        leaves: list[Any] = list(found)
        relies([leaf for node in leaves if (leaf := node.tensor()) is not None])
    for node, sums in found.items():  # every edge was followed: what is left are leaves, of one gradient each
        leaf = node.tensor()
        if leaf is None:
            continue
        if node.hooks is not None:
            with no_grad():
                hooks.run(node, sums)
        g = sums[0]
        if leaf._grad is not None:
            leaf._grad = _sum(leaf._grad, g)
        else:
            # A leaf's gradient is its own memory: an op can hand one array to two inputs, or a view of another's, and
            # hooks can keep what they saw.
            array = g._data
            owner = array if array.base is None else array.base
            if id(owner) in taken or (owner is not array and not array.flags.c_contiguous) or node.hooks:
                g = computed_tensor(copied, array)
            taken.add(id(owner))
            leaf._grad = g
        if node.accumulated is not None:
            for hook in list(node.accumulated.values()):
                hook(leaf)


def step(y: Tensor, gradient: Tensor | None = None, *, retain_graph: bool = False) -> Iterator[Step]:
    """The backward pass, one node at a time: to look at, and to teach from.

    It is the pass that `Tensor.backward` makes, and each ``next`` runs the rule of one node; the one that finds no
    node left adds the gradients to the `grad` of the leaves, all at once, and ends.

    Parameters
    ----------
    y, gradient, retain_graph : as for `Tensor.backward`.

    Yields
    ------
    Step : ``node, incoming, outgoing, waiting``; ``node.op`` is the operation, ``node.plan.source`` the call of its
        rule.

    Raises
    ------
    GraphError, ShapeError, DtypeError : as `Tensor.backward`, at the node concerned.

    Notes
    -----
    A pass that is left half way has added nothing to any `grad`, as one that ends in an error; what had arrived by then
    is in ``waiting``. The tape of the nodes it showed is freed, unless `retain_graph`; that of the others is there.
    """
    start = _root_gradient(y, gradient)
    pause = _Pause()
    arrivals: Any = [(y._edge, start)]
    while True:
        found = _sweep(arrivals, None, _NOTHING, False, retain_graph, pause)
        if pause.last is None:
            break
        yield pause.last
        arrivals = []
    _accumulate(found, start)


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
    gs = [gs] if isinstance(gs, Tensor) or is_array(gs) else list(gs)
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
    for node in {node for node, _ in edges}:
        if node.hooks is not None and node in sums and node not in needs:
            with set_grad_enabled(create_graph):
                hooks.run(node, sums[node])
    found = [sums[node][slot] if node in sums else None for node, slot in edges]
    for i, (x, g) in enumerate(zip(xs, found, strict=True)):
        if g is None and fill:
            found[i] = x.new_zeros(x.shape)
        elif g is None and not allow_unused:
            raise GraphError(f"x number {i} was not used to compute ys; pass allow_unused=True to get None for it")
    return found[0] if single else tuple(found)


def grad_between(
    roots: Sequence[tuple[Edge, Tensor]], targets: Sequence[Edge], since: int, create_graph: bool
) -> list[Any]:
    """Gradients at places on the tape, along the nodes made after number `since` only; None where none arrives."""
    needs = _towards([edge[0] for edge, _ in roots], set(targets), since)
    sums = _sweep(roots, needs, {node for node, _ in targets}, create_graph, create_graph)
    return [sums[node][slot] if node in sums else None for node, slot in targets]


def by_decomposition(op_inputs: str, function: Callable[..., Any], attrs: str = "") -> Rule:
    """A joint rule that differentiates `function`, a formula in plain operations equal to the op.

    For fused operations whose own derivative is seldom asked for: the first derivative of a gradient op is
    the second derivative of the fused op. `function` takes the op's inputs, then the attributes.
    """
    names, attr_names = op_inputs.split(), attrs.split()

    def rule(*values: Any) -> list[Tensor | None]:
        *rest, needs, grads = values
        tensors, options = rest[: len(names)], rest[len(names) :]
        create_graph = is_grad_enabled()
        with enable_grad():
            if create_graph:
                # Each input behind an identity of its own: one that is used twice, or computed from another,
                # would otherwise collect the other's gradient as well.
                tensors = [OPS["identity"](x) for x in tensors]
            else:
                tensors = [Tensor(x._data, requires_grad=need) for x, need in zip(tensors, needs, strict=True)]
            outputs = function(*tensors, *options)
        outputs = outputs if type(outputs) is tuple else (outputs,)
        pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None and y.requires_grad]
        wanted = [x for x, need in zip(tensors, needs, strict=True) if need]
        found = iter(grad([y for y, _ in pairs], wanted, [g for _, g in pairs], create_graph=create_graph, fill=True))
        return [next(found) if need else None for need in needs]

    parameters = [*names, *attr_names, "needs", "grads"]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    rule.__signature__ = inspect.Signature([inspect.Parameter(p, kind) for p in parameters])  # type: ignore[attr-defined]
    return rule


_tensor._backward = backward
_tensor._computed = computed
