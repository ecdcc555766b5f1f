"""The tape made visible: what was recorded, and what the backward pass makes of it.

    with gmcore.explain.recording():          # notes the lines and the kernels; without it they are left out
        loss = model.loss(x)
    print(gmcore.explain.tape(loss))
    print(gmcore.explain.backward(loss))

Everything is read from the nodes that the engine itself uses and from a real run of it.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmcore.engine import _root_gradient, _sweep
from gmcore.op import Edge, Meta, Node, Op
from gmcore.tensor import Array, Leaf, Tensor
from gmcore.watch import Watch, watch
from gmkernels.registry import entries

if TYPE_CHECKING:
    from gmcore.watch import Note


def recording() -> AbstractContextManager[None]:
    """Note the line of code and the kernels of each call inside the block, in this context, for `tape` to show."""
    return watch(Watch())


def _owner(array: Array) -> Array:
    """The array whose memory this one views."""
    return array if array.base is None else array.base


def _shown(meta: Meta | None) -> str:
    return "?" if meta is None else f"{meta[1]}{list(meta[0])}"


def _bytes(n: int) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000  # type: ignore[assignment]
    return f"{n:.3g} GB"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


@dataclass(frozen=True)
class Entry:
    """One node of a `Tape`."""

    node: Node
    names: tuple[str, ...]
    """Of its results: ``v3``, or ``v3.weights`` where there are several."""
    arguments: tuple[str, ...]
    """Names of its inputs; of those off the tape only shape and dtype, and that only if it was recorded."""
    outputs: tuple[Meta | None, ...]
    saved_bytes: int
    """Memory that the node keeps alive and no older node nor a leaf does."""

    @property
    def note(self) -> Note | None:
        return self.node.note


class Tape:
    """What a tensor was computed from, oldest first; `str()` prints it.

    Attributes
    ----------
    entries : an `Entry` for each node.
    leaves : leaf tensors by name.
    saved_bytes : memory that the tape keeps alive, without the leaves'.
    """

    def __init__(self, y: Tensor) -> None:
        metas: dict[Edge, Meta] = {y._edge: (y.shape, y.dtype)} if y._edge is not None else {}
        nodes: dict[int, Node] = {}
        found: dict[Leaf, Tensor | None] = {}
        stack = [y._edge]
        while stack:
            edge = stack.pop()
            if edge is None:
                continue
            node = edge[0]
            if isinstance(node, Leaf):
                found[node] = node.tensor()
            elif node.sequence not in nodes:
                nodes[node.sequence] = node
                stack += node.edges
                metas |= {e: meta for e, meta in zip(node.edges, node.input_meta, strict=True) if e is not None}
        ordered = [node for _, node in sorted(nodes.items())]
        self._names: dict[Edge, str] = {}
        self.leaves: dict[str, Tensor | None] = {}
        for edges in [*[node.edges for node in ordered], [y._edge]]:
            for edge in edges:
                if edge is not None and edge[0] in found and edge not in self._names:
                    self._names[edge] = f"x{len(self.leaves) + 1}"
                    self.leaves[self._names[edge]] = found[edge[0]]
        self.entries: list[Entry] = []
        counted = {id(_owner(leaf._data)) for leaf in found.values() if leaf is not None}
        for number, node in enumerate(ordered, 1):
            slots = range(node.plan.outputs or len(node.output_meta or ()))
            for slot in slots:
                part = f".{node.op.outputs[min(slot, len(node.op.outputs) - 1)].lstrip('*')}" if len(slots) > 1 else ""
                self._names[node, slot] = f"v{number}{part}"
            given = node.note.inputs if node.note else node.input_meta
            outputs = [node.output_meta[slot] if node.output_meta else metas.get((node, slot)) for slot in slots]
            size = 0
            for array, _, _ in node.saved or ():
                owner = _owner(array)
                if id(owner) not in counted:
                    counted.add(id(owner))
                    size += owner.nbytes
            arguments = [
                _shown(meta) if edge is None else self._names[edge]
                for edge, meta in zip(node.edges, given, strict=True)
            ]
            names = tuple([self._names[node, slot] for slot in slots])
            self.entries.append(Entry(node, names, tuple(arguments), tuple(outputs), size))

    @property
    def saved_bytes(self) -> int:
        return sum(entry.saved_bytes for entry in self.entries)

    def __str__(self) -> str:
        rows = [("value", "computed by", "shape", "saves", "kernel", "line")]
        for name, leaf in self.leaves.items():
            rows.append((name, "leaf", "gone" if leaf is None else _shown((leaf.shape, leaf.dtype)), "", "", ""))
        for entry in self.entries:
            note = entry.note
            attrs = [f"{k}={_brief(v)}" for k, v in entry.node.attrs.items()]
            call = f"{entry.node.op.name}({', '.join([*entry.arguments, *attrs])})"
            for i, (name, meta) in enumerate(zip(entry.names, entry.outputs, strict=True)):
                first = i == 0
                kernels = ", ".join(note.kernels) if note and first else ""
                line = _short(note.line) if note and first else ""
                saves = ("freed" if entry.node.saved is None else _bytes(entry.saved_bytes)) if first else ""
                rows.append((name, call if first else "", _shown(meta), saves, kernels, line))
        lines = _columns(rows)
        lines.append(f"the tape keeps {_bytes(self.saved_bytes)} beside the leaves")
        return "\n".join(lines)


def _short(line: str) -> str:
    """A line without the folders of its file."""
    return re.sub(r"[^\s,]*?([^/\\]+\.py:\d+)", r"\1", line)


def _brief(value: Any) -> str:
    return textwrap.shorten(re.sub(r" at 0x\w+", "", repr(value)), 40, placeholder="...")


def tape(y: Tensor) -> Tape:
    """What `y` was computed from: operations, shapes, dtypes, saved bytes, and, where it was computed inside
    `recording`, the kernels that ran and the lines that called them.

    Raises
    ------
    GraphError : `y` is not on the tape.
    """
    _root_gradient(y, y.detach())
    return Tape(y)


# -- the gradient program ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Statement:
    """One rule that the backward pass ran."""

    node: Node
    targets: tuple[str, ...]
    """Names of the gradients found: ``g_x1``; ``_`` for an input that wants none."""
    source: str
    """The engine's own call of the rule, with the values' names put in."""
    gradients: tuple[Meta | None, ...]
    ran: tuple[str, ...]
    """Names of the operations that the rule ran."""


class _Program(Watch):
    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.statements: list[Statement] = []
        self.ran: list[str] = []

    def call(self, op: Op, inputs: Sequence[Tensor], outputs: Sequence[Tensor], line: str, rule: Node | None) -> None:
        self.ran.append(op.name)

    def before_rule(self, node: Node, grads: Sequence[Any]) -> None:
        self.ran = []

    def after_rule(self, node: Node, grads: Sequence[Any], found: Sequence[tuple[Edge, Tensor]]) -> None:
        names = self.tape._names
        given = iter(found)
        arrivals = [next(given) if need else None for need in node.plan.needs]
        targets = tuple(["_" if a is None else f"g_{names[a[0]]}" for a in arrivals])
        metas = tuple([None if a is None else (a[1].shape, a[1].dtype) for a in arrivals])
        self.statements.append(Statement(node, targets, self._source(node), metas, tuple(self.ran)))

    def _source(self, node: Node) -> str:
        """``plan.source`` with what it looks up in the node written out."""
        names, plan = self.tape._names, node.plan
        saved = [
            names[node, ~i] if i < 0 else node.op.input_name(i) if node.edges[i] is None else names[node.edges[i]]  # type: ignore[index]
            for i in plan.kept
        ]

        def value(match: re.Match[str]) -> str:
            table, key = match[1], match[2]
            if table == "grads":
                return f"g_{names[node, int(key)]}"
            if table == "saved":
                return f"[{', '.join(saved)}]" if key.startswith(":") else saved[int(key)]
            if table == "node.attrs":
                return _brief(node.attrs[key.strip("'")])
            return repr(node.input_meta[int(key)][int(match[3])])

        text = re.sub(r"(grads|saved|node\.attrs|node\.input_meta)\[([^\]]+)\](?:\[(\d)\])?", value, plan.source)
        return re.sub(r" if needs\[\d+\] else None|one_each\(node, (.*)\)$", r"\1", text)


class Program:
    """The rules that a backward pass ran, in order; `str()` prints them as assignments to gradients ``g_...``."""

    def __init__(self, root: str, statements: Sequence[Statement]) -> None:
        self.root = root
        self.statements = list(statements)

    def __str__(self) -> str:
        lines = [f"g_{self.root} = the gradient to start from"]
        arrived: set[str] = set()
        for s in self.statements:
            lines.append(f"# {s.node.op!r}: {s.node.op.formula}")
            for target in s.targets:
                if target in arrived:
                    lines.append(f"# adds to {target}")
            arrived |= set(s.targets) - {"_"}
            shapes = ", ".join(_shown(meta) for meta in s.gradients if meta is not None)
            ran = f"  # {shapes}" + (f"; ran {', '.join(s.ran)}" if s.ran else "")
            lines.append(f"{', '.join(s.targets)}{',' if len(s.targets) == 1 else ''} = {s.source}{ran}")
        return "\n".join(lines)


def backward(y: Tensor, gradient: Tensor | None = None) -> Program:
    """The gradient program of `y`, from a real run of the backward pass, which leaves the tape and `grad` as they were.

    Raises
    ------
    As `Tensor.backward`.
    """
    start = _root_gradient(y, gradient)
    found = tape(y)
    program = _Program(found)
    edge: Any = y._edge
    with watch(program):
        _sweep([(edge, start)], None, frozenset(), False, True)
    return Program(found._names.get(edge, "x1"), program.statements)


def to_dot(y: Tensor) -> str:
    """The tape of `y` in Graphviz's language: ``dot -Tsvg``."""
    found = tape(y)
    lines = ["digraph tape {", "  rankdir=TB;", '  node [shape=box, fontname="monospace"];']
    for name, leaf in found.leaves.items():
        shape = "" if leaf is None else _shown((leaf.shape, leaf.dtype))
        lines.append(f'  "{name}" [label="{name}\\n{shape}", style=filled, fillcolor=lightgrey];')
    for entry in found.entries:
        box = entry.names[0].partition(".")[0]
        lines.append(f'  "{box}" [label="{entry.node.op.name}\\n{", ".join(map(_shown, entry.outputs))}"];')
        for edge in entry.node.edges:
            if edge is not None:
                lines.append(f'  "{found._names[edge].partition(".")[0]}" -> "{box}";')
    return "\n".join([*lines, "}"])


def show(op: Op) -> str:
    """What `Op.show` gives."""
    lines = [repr(op), f"formula: {op.formula}"]
    if op.source:
        lines.append(f"source:  {op.source}")
    spec = getattr(op.forward, "spec", None)
    if spec is not None:
        kernels = ", ".join(f"{name} ({', '.join(e.dtypes)})" for name, e in entries(spec).items())
        lines.append(f"kernels: {spec.name}: {kernels}")
    else:
        lines.append(f"kernels: none of its own; forward is {_source_of(op.forward)}")
    texts: dict[str, list[str]] = {}
    for i, rule in enumerate(op._rules):
        name = "all inputs" if op._joint else op.input_name(i)
        texts.setdefault(rule if isinstance(rule, str) else _source_of(rule), []).append(name)
    for text, inputs in texts.items():
        lines += [f"vjp for {', '.join(inputs)}:", textwrap.indent(text, "    ")]
    if not op._rules:
        lines.append("vjp:     none; the result carries no gradient")
    return "\n".join(lines)


def _source_of(function: Any) -> str:
    """The source of a function, or its name where there is none (a NumPy function)."""
    try:
        return f"{textwrap.dedent(inspect.getsource(function)).rstrip()}  # {Path(inspect.getfile(function)).name}"
    except (OSError, TypeError):
        return repr(function)


__all__ = ["Program", "Tape", "backward", "recording", "show", "tape", "to_dot"]
