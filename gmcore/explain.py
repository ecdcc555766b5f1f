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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmcore.engine import _root_gradient, _sweep
from gmcore.hooks import Retain
from gmcore.op import Edge, Meta, Node, Op
from gmcore.tensor import Array, Leaf, Tensor
from gmcore.watch import Call, Watch, watch
from gmkernels.registry import entries

if TYPE_CHECKING:
    from gmcore import program as steps
    from gmcore.capture import Captured
    from gmcore.watch import Note


def recording() -> AbstractContextManager[None]:
    """Note the line of code and the kernels of each call inside the block, in this context, for `tape` to show."""
    return watch(Watch())


def _owner(array: Array) -> Array:
    """The array whose memory this one views; itself where that memory is no array's (a file's, another library's)."""
    return array.base if isinstance(array.base, type(array)) else array


def shown(meta: Meta | None) -> str:
    """A dtype and a shape, as in ``float32[2, 3]``."""
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
    saved_bytes: int | None
    """Memory that the node keeps alive and no older node nor a leaf does; None where it is freed."""

    @property
    def note(self) -> Note | None:
        return self.node.note

    @property
    def call(self) -> str:
        """The operation with the names of its inputs and its attributes."""
        attrs = [f"{k}={_brief(v)}" for k, v in self.node.attrs.items()]
        return f"{self.node.op.name}({', '.join([*self.arguments, *attrs])})"

    @property
    def saves(self) -> str:
        return "freed" if self.saved_bytes is None else _bytes(self.saved_bytes)


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
            size = None if node.saved is None else 0
            for array, _, _ in node.saved or ():
                owner = _owner(array)
                if id(owner) not in counted:
                    counted.add(id(owner))
                    size += owner.nbytes
            arguments = [
                shown(meta) if edge is None else self._names[edge] for edge, meta in zip(node.edges, given, strict=True)
            ]
            names = tuple([self._names[node, slot] for slot in slots])
            self.entries.append(Entry(node, names, tuple(arguments), tuple(outputs), size))

    @property
    def saved_bytes(self) -> int:
        return sum(entry.saved_bytes or 0 for entry in self.entries)

    def __str__(self) -> str:
        rows = [("value", "computed by", "shape", "saves", "kernel", "line")]
        for name, leaf in self.leaves.items():
            rows.append((name, "leaf", "gone" if leaf is None else shown((leaf.shape, leaf.dtype)), "", "", ""))
        for entry in self.entries:
            note = entry.note
            for i, (name, meta) in enumerate(zip(entry.names, entry.outputs, strict=True)):
                first = i == 0
                kernels = ", ".join(note.kernels) if note and first else ""
                line = short(note.line) if note and first else ""
                call, saves = (entry.call, entry.saves) if first else ("", "")
                rows.append((name, call, shown(meta), saves, kernels, line))
        return "\n".join([*_columns(rows), self.total])

    @property
    def total(self) -> str:
        """A line on `saved_bytes`."""
        return f"the tape keeps {_bytes(self.saved_bytes)} beside the leaves"

    def to_dot(self) -> str:
        """The tape in Graphviz's language: ``dot -Tsvg``."""
        lines = ["digraph tape {", "  rankdir=TB;", '  node [shape=box, fontname="monospace"];']
        for name, leaf in self.leaves.items():
            shape = "" if leaf is None else shown((leaf.shape, leaf.dtype))
            lines.append(f'  "{name}" [label="{name}\\n{shape}", style=filled, fillcolor=lightgrey];')
        for entry in self.entries:
            box = entry.names[0].partition(".")[0]
            lines.append(f'  "{box}" [label="{entry.node.op.name}\\n{", ".join(map(shown, entry.outputs))}"];')
            for edge in entry.node.edges:
                if edge is not None:
                    lines.append(f'  "{self._names[edge].partition(".")[0]}" -> "{box}";')
        return "\n".join([*lines, "}"])


def short(line: str) -> str:
    """A line of code without the folders of its file."""
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
            shapes = ", ".join(shown(meta) for meta in s.gradients if meta is not None)
            ran = f"  # {shapes}" + (f"; ran {', '.join(s.ran)}" if s.ran else "")
            lines.append(f"{', '.join(s.targets)}{',' if len(s.targets) == 1 else ''} = {s.source}{ran}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Pass:
    """A backward pass: the tape it found, and the program that it ran."""

    tape: Tape
    program: Program


class _Passes(Watch):
    def __init__(self) -> None:
        self.passes: list[Pass] = []
        self.awaited: set[Node] = set()
        """Nodes of the last pass whose rule has not run. Other rules belong to `grad`, or to a recomputation."""
        self.ran: list[str] = []

    def before_pass(self, y: Tensor) -> None:
        found = Tape(y)
        edge: Any = y._edge
        self.awaited = {entry.node for entry in found.entries}
        self.passes.append(Pass(found, Program(found._names.get(edge, "x1"), [])))

    def call(self, call: Call) -> None:
        self.ran.append(call.op.name)

    def before_rule(self, node: Node, grads: Sequence[Any]) -> None:
        if node in self.awaited:
            self.ran = []

    def after_rule(self, node: Node, found: Sequence[Tensor | None]) -> None:
        if node not in self.awaited:
            return
        self.awaited.remove(node)
        tape, program = self.passes[-1].tape, self.passes[-1].program
        targets = ["_" if g is None else f"g_{tape._names[edge]}" for edge, g in zip(node.edges, found, strict=True)]  # type: ignore[index]
        metas = [None if g is None else (g.shape, g.dtype) for g in found]
        source = _source(node, tape._names)
        program.statements.append(Statement(node, tuple(targets), source, tuple(metas), tuple(self.ran)))


def _source(node: Node, names: Mapping[Edge, str]) -> str:
    """The call of the node's rule, ``plan.source``, with what it looks up in the node written out."""
    plan = node.plan
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


@contextmanager
def passes() -> Iterator[list[Pass]]:
    """Note the lines and kernels of calls, as `recording`, and every backward pass inside the block, in this context.

    Yields
    ------
    The passes so far: a list to look at after the block.
    """
    watcher = _Passes()
    with watch(watcher):
        yield watcher.passes


def backward(y: Tensor, gradient: Tensor | None = None) -> Program:
    """The gradient program of `y`, from a real run of the backward pass, which leaves the tape and every `grad` as they
    were. Hooks on the way are called.

    Raises
    ------
    GraphError, ShapeError, DtypeError : as `Tensor.backward`.
    """
    start = _root_gradient(y, gradient)
    watcher = _Passes()
    edge: Any = y._edge
    hooked = [entry.node.hooks or {} for entry in Tape(y).entries]
    retained = [hook.tensor() for table in hooked for _, hook in table.values() if isinstance(hook, Retain)]
    before = [(tensor, tensor.grad) for tensor in retained if tensor is not None]
    try:
        with watch(watcher):
            _sweep([(edge, start)], None, frozenset(), False, True)
    finally:
        for tensor, grad in before:
            tensor.grad = grad
    return watcher.passes[0].program


def to_dot(y: Tensor) -> str:
    """The tape of `y` in Graphviz's language: ``dot -Tsvg``. Raises `GraphError` if `y` is not on the tape."""
    return tape(y).to_dot()


# -- a captured step -------------------------------------------------------------------------------------------
def captured(step: Captured[..., Any]) -> str:
    """The programs of a captured step, to print: every instruction, the memory it reads and writes, and for how long.

    Parameters
    ----------
    step : what `gmcore.capture` gave.

    Returns
    -------
    str: for each program its instructions in order. Memory is ``argument<i>`` of the step, ``host<i>``, which Python
        writes before each repetition (draws, hyperparameters), ``outside<i>`` (parameters, constants), or
        ``computed<i>``, with its place in the program's memory, its bytes and the last stage that uses it. What runs
        in one stage runs at once. After the name of a kernel stands its backend, after what it reads its scratch.
    """
    if step.refusal is not None:
        return f"eager: {step.refusal}"
    if not step.programs:
        return "no program yet: the step is being recorded at its first calls"
    return "\n\n".join(map(_program_text, step.programs))


def _program_text(program: steps.Program) -> str:
    blocks = program.offsets
    lines = [
        f"{len(program.instructions)} instructions in {program.depth} stages{program.form}; "
        f"{_bytes(program.size)} for {len(blocks)} arrays of {_bytes(sum(block.size for block in blocks))}",
        f"before each repetition: {len(program.recorder.arguments)} arguments copied, "
        f"{len(program.recorder.hosts)} calls of Python",
    ]
    for instruction, (stage, _) in zip(program.instructions, program.stages, strict=True):
        results, scratch = (
            [f"{place.block} {place}{_whereabouts(program, place.block)}" for place in written]
            for written in (instruction.writes, instruction.workspace)
        )
        mine = {place.block for place in instruction.writes}
        reads = {str(place.block): place for place in instruction.reads if place.block not in mine}
        backend = "" if instruction.plan is None else f": {instruction.plan.backend}"
        text = f"{stage:>3} {instruction.name}{backend} -> {', '.join(results) or 'nothing'}"
        if reads:
            text += f" <- {', '.join(f'{name} {place}' for name, place in reads.items())}"
        if scratch:
            text += f"; scratch {', '.join(scratch)}"
        lines += textwrap.wrap(text, 100, subsequent_indent="      ")
    return "\n".join(lines)


def _whereabouts(program: steps.Program, block: Any) -> str:
    if block in program.renewed:
        return f" in new memory, {_bytes(block.size)}, given to the caller"
    if block not in program.offsets:
        return ""
    last = program.lifetimes[block][1]
    until = last if last < program.depth else "the end"
    return f" at {program.offsets[block]}, {_bytes(block.size)}, until {until}"


# -- an operation ------------------------------------------------------------------------------------------------
def describe(op: Op) -> dict[str, Any]:
    """The declaration of an operation as data: its names, formula, source, kernels (dtypes by backend) and rules.

    ``forward`` is the source of the function that computes it, None where kernels do; ``vjp`` is a list of the inputs'
    names and the source of their rule, or the reason why there is none.
    """
    spec = getattr(op.forward, "spec", None)
    rules: dict[str, list[str]] = {}
    for i, rule in enumerate(op._rules):
        name = "all inputs" if op._joint else op.input_name(i)
        rules.setdefault(rule if isinstance(rule, str) else _source_of(rule), []).append(name)
    return {
        "op": op.name,
        "inputs": list(op.inputs),
        "outputs": list(op.outputs),
        "formula": op.formula,
        "source": op.source,
        "kernel": None if spec is None else spec.name,
        "backends": {} if spec is None else {name: list(e.dtypes) for name, e in entries(spec).items()},
        "forward": _source_of(op.forward) if spec is None else None,
        "vjp": [{"inputs": inputs, "rule": text} for text, inputs in rules.items()],
    }


def show(op: Op) -> str:
    """What `Op.show` gives: `describe`, to print."""
    about = describe(op)
    lines = [repr(op), f"formula: {op.formula}"]
    if op.source:
        lines.append(f"source:  {op.source}")
    if about["forward"] is None:
        backends = ", ".join(f"{name} ({', '.join(dtypes)})" for name, dtypes in about["backends"].items())
        lines.append(f"kernels: {about['kernel']}: {backends}")
    else:
        lines += ["kernels: none of its own; forward:", textwrap.indent(about["forward"], "    ")]
    for each in about["vjp"]:
        lines += [f"vjp for {', '.join(each['inputs'])}:", textwrap.indent(each["rule"], "    ")]
    if not about["vjp"]:
        lines.append("vjp:     none; the result carries no gradient")
    return "\n".join(lines)


def _source_of(function: Any) -> str:
    """The source of a function, or its name where there is none (a NumPy function)."""
    try:
        return f"{textwrap.dedent(inspect.getsource(function)).rstrip()}  # {Path(inspect.getfile(function)).name}"
    except (OSError, TypeError):
        return repr(function)


__all__ = ["Pass", "Program", "Tape", "backward", "describe", "passes", "recording", "show", "tape", "to_dot"]
