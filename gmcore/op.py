"""How an operation is declared, and the node it leaves on the tape.

An `Op` is one declaration: names of inputs and outputs, a forward function on arrays, and a derivative rule
written in tensors, so that the rule of the rule, and any order after it, comes for free:

    tanh = Op("tanh", "x", forward=np.tanh, vjp=[lambda g, out: g * (1.0 - out * out)])

A rule says what it needs by the names of its parameters, and only that is kept on the tape:

    g            gradient of the output (``g_<name>`` where there are several outputs)
    x, out       an input or output of that name, as a tensor
    x_shape      the shape of an input;  x_dtype its dtype
    axis, ...    an attribute of the call
    needs        for a joint rule: which inputs want a gradient, a tuple of bools
    grads        for a joint rule: the gradients of all outputs, in order

`vjp` is one rule per input, or one joint rule that returns a gradient for every input. In place of a rule may
stand a string: why there is no derivative and what to do instead. Asking for that derivative raises it.
"""

from __future__ import annotations

import inspect
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gmcore.errors import DtypeError, GmcoreError, GraphError, ShapeError, UnknownNameError
from gmcore.tensor import Array, Tensor, _grad_enabled, as_tensor, enable_grad
from gmkernels import KernelSpec, run

Rule = Callable[..., Any]
Example = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a public function; arrays are float64 inputs to differentiate."""

OPS: dict[str, Op] = {}
"""Every declared operation by name."""

_PACKAGE = str(Path(__file__).parent) + os.sep
_sequence = itertools.count()


def user_line() -> str:
    """``file:line`` of the innermost frame outside this package, for error messages."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back  # type: ignore[assignment]
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "?"


def _shares_memory(view: Array, array: Array) -> bool:
    """Whether `view`, the result of a view operation on `array`, is not a copy after all."""
    base = view.base
    return view is array or (base is not None and (base is array or base is array.base))


class Op:
    """A declared operation; call it with tensors (or what `as_tensor` takes) and keyword attributes.

    Parameters
    ----------
    name : unique; shown in errors and on the tape.
    inputs, outputs : names separated by spaces. ``"*xs"`` alone: any number of inputs, whose shapes a joint rule
        gets as ``xs_shape``.
    forward : ``forward(*arrays, **attrs)`` -> array, or a tuple of arrays for several outputs.
    vjp : the derivative (see the module's docstring). None where the outputs are not floating.
    broadcast : inputs broadcast and promote as in NumPy; gradients are summed and cast back to each input.
    view : the (one) output may share the (one) input's memory.
    partial : the rule takes None for the gradient of an output that nothing used; otherwise it is zeros.
    formula, source : the mathematics in a line, and where it comes from.
    examples : ``examples(rng)`` -> iterable of (args, kwargs) for `public`; the generated tests run them.
    """

    def __init__(
        self,
        name: str,
        inputs: str,
        outputs: str = "out",
        *,
        forward: Callable[..., Any],
        vjp: Sequence[Rule | str] | Rule | None,
        formula: str,
        source: str = "",
        broadcast: bool = False,
        view: bool = False,
        partial: bool = False,
        examples: Callable[[np.random.Generator], Iterable[Example]],
    ) -> None:
        if name in OPS:
            raise UnknownNameError(f"an op called {name!r} is declared already")
        self.name = name
        self.inputs = tuple(inputs.split())
        self.outputs = tuple(outputs.split())
        self.forward = forward
        self.formula = formula
        self.source = source
        self.broadcast = broadcast
        self.view = view
        self.partial = partial
        self.examples = examples
        self.public: Callable[..., Any] = self
        """The function users call; the op itself unless the arguments want normalising first."""
        self.__name__ = name
        self.__doc__ = f"{formula}\n\n{source}".strip()
        self._joint = vjp if callable(vjp) else None
        rules: Sequence[Rule | str] = () if vjp is None else [vjp] if callable(vjp) else vjp
        if rules and not self._joint and len(rules) != len(self.inputs):
            raise ValueError(f"op {name}: {len(rules)} derivative rules for {len(self.inputs)} inputs")
        self._rules = tuple(rules)
        self._wants = tuple(self._parameters(rule) for rule in rules)
        self._plans: dict[int, _Plan] = {}
        OPS[name] = self

    def __repr__(self) -> str:
        return f"<op {self.name}({', '.join(self.inputs)}) -> {', '.join(self.outputs)}>"

    def input_name(self, i: int) -> str:
        name = self.inputs[min(i, len(self.inputs) - 1)]
        return f"{name[1:]}[{i}]" if name.startswith("*") else name

    def _parameters(self, rule: Rule | str) -> tuple[str, ...]:
        return () if isinstance(rule, str) else tuple(inspect.signature(rule).parameters)

    # -- forward ---------------------------------------------------------------------------------------
    def __call__(self, *inputs: Any, **attrs: Any) -> Any:
        try:
            arrays = [x._data for x in inputs]
        except AttributeError:
            inputs = self._coerce(inputs)
            arrays = [x._data for x in inputs]
        try:
            result = self.forward(*arrays, **attrs)
        except GmcoreError:
            raise
        except (ValueError, TypeError, IndexError) as error:
            raise self._input_error(inputs, attrs, error) from error
        outputs: tuple[Tensor, ...]
        if type(result) is np.ndarray:
            outputs = (Tensor(result),)
        elif type(result) is tuple:
            outputs = tuple([Tensor(array) for array in result])
        else:
            # NumPy returns a scalar, not an array, from operations on arrays of no dimensions.
            outputs = (Tensor(np.asarray(result) if isinstance(result, np.generic) else result),)
        if _grad_enabled.get():
            for x in inputs:
                if x._node is not None:
                    self._record(inputs, outputs, attrs)
                    break
        if self.view and _shares_memory(outputs[0]._data, arrays[0]):
            outputs[0]._version = inputs[0]._version
        return outputs if type(result) is tuple else outputs[0]

    def _coerce(self, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
        """Inputs as tensors; a Python number takes the dtype its tensor partners would give it (NEP 50)."""
        dtypes = [x.dtype for x in inputs if isinstance(x, (Tensor, np.ndarray, np.generic))]
        tensors = []
        for x in inputs:
            if type(x) in (int, float, bool) and dtypes:
                x = np.asarray(x, np.result_type(*dtypes, x))
            try:
                tensors.append(as_tensor(x))
            except DtypeError as error:
                raise DtypeError(f"{self.name}: {error} ({user_line()})") from None
        return tuple(tensors)

    def _input_error(self, inputs: Sequence[Tensor], attrs: Mapping[str, Any], error: Exception) -> GmcoreError:
        given = ", ".join(f"{self.input_name(i)}: {x.dtype}{list(x.shape)}" for i, x in enumerate(inputs))
        options = "".join(f", {k}={v!r}" for k, v in attrs.items())
        mixed = len({x.dtype for x in inputs if x.dtype.kind == "f"}) > 1
        kind = DtypeError if mixed or isinstance(error, TypeError) else ShapeError
        return kind(f"{self.name}({given}{options}): {error} (called at {user_line()})")

    # -- tape ------------------------------------------------------------------------------------------
    def _record(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], attrs: dict[str, Any]) -> None:
        node = None
        for slot, y in enumerate(outputs):
            if y._data.dtype.kind == "f":
                if node is None:
                    node = Node(self, inputs, outputs, attrs)
                y._node = node
                y._slot = slot


# What an argument of a derivative rule is, and which one.
_SAVED, _GRAD, _ATTR, _SHAPE, _DTYPE, _SHAPES, _NEEDS, _GRADS = range(8)


class _Plan:
    """What an op keeps, and with what it calls its rules, when the inputs in `mask` require gradients."""

    def __init__(self, op: Op, mask: int) -> None:
        if op._joint:
            rules: list[tuple[int, Rule | str]] = [(-1, op._joint)]
        elif op._rules:
            rules = [(i, rule) for i, rule in enumerate(op._rules) if mask >> i & 1]
        else:
            rules = [(i, f"{op.outputs[0]} is not differentiable") for i in range(len(op.inputs)) if mask >> i & 1]
        wanted = {name for i, _ in rules for name in (op._wants[max(i, 0)] if op._wants else ())}
        self.kept_inputs = [i for i, name in enumerate(op.inputs) if name in wanted]
        self.kept_outputs = [i for i, name in enumerate(op.outputs) if name in wanted]
        kept = [op.inputs[i] for i in self.kept_inputs] + [op.outputs[i] for i in self.kept_outputs]
        sources: dict[str, tuple[int, Any]] = {name: (_SAVED, k) for k, name in enumerate(kept)}
        for i, name in enumerate(op.inputs):
            sources[name + "_shape"], sources[name + "_dtype"] = (_SHAPE, i), (_DTYPE, i)
        for i, name in enumerate(op.outputs):
            sources["g_" + name if len(op.outputs) > 1 else "g"] = (_GRAD, i)
        if op.inputs[0].startswith("*"):
            sources[op.inputs[0][1:] + "_shape"] = (_SHAPES, None)
        sources["needs"], sources["grads"] = (_NEEDS, None), (_GRADS, None)
        self.rules = [
            (i, rule, [sources.get(name, (_ATTR, name)) for name in (op._wants[max(i, 0)] if op._wants else ())])
            for i, rule in rules
        ]
        """(which input, -1 for all; the rule; where its arguments come from)"""


class Node:
    """One recorded call: its op, where its inputs came from, and the arrays its derivative rule wants."""

    __slots__ = ("op", "plan", "attrs", "edges", "input_meta", "output_meta", "saved", "sequence", "freed")

    def __init__(
        self,
        op: Op,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        attrs: dict[str, Any],
    ) -> None:
        edges: list[tuple[Any, int] | None] = []
        meta = []
        mask, bit = 0, 1
        for x in inputs:
            producer, array = x._node, x._data
            if producer is None:
                edges.append(None)
            else:
                edges.append((producer, x._slot))
                mask |= bit
            bit <<= 1
            meta.append((array.shape, array.dtype))
        plan = op._plans.get(mask)
        if plan is None:
            plan = op._plans[mask] = _Plan(op, mask)
        saved = []
        for i in plan.kept_inputs:
            x = inputs[i]
            saved.append((x._data, x._version, x._version[0], i))
        for i in plan.kept_outputs:
            y = outputs[i]
            saved.append((y._data, y._version, y._version[0], ~i))
        output_meta = []
        for y in outputs:
            output_meta.append((y._data.shape, y._data.dtype))
        self.op = op
        self.plan = plan
        self.attrs = attrs
        self.edges = edges
        self.input_meta = meta
        self.output_meta = output_meta
        self.saved: list[tuple[Array, list[int], int, int]] = saved
        self.sequence = next(_sequence)
        self.freed = False

    def free(self) -> None:
        """Drop the saved arrays."""
        self.saved = []
        self.freed = True

    def unpack(self, connected: bool) -> list[Tensor]:
        """The saved arrays as tensors; `connected` ones are on the tape, for higher derivatives.

        Raises
        ------
        GraphError : one of them was written to since.
        """
        tensors = []
        for array, version, expected, index in self.saved:
            if version[0] != expected:
                name = self.op.outputs[~index] if index < 0 else self.op.input_name(index)
                raise GraphError(
                    f"backward through {self.op.name}: its {name} was changed after it was recorded (version "
                    f"{version[0]}, saved at {expected}). Call backward() before optimiser steps or copy_, or "
                    f"compute from a copy of it"
                )
            tensor = Tensor(array)
            if connected:
                tensor._version = version
                if index < 0:
                    tensor._node, tensor._slot = self, ~index
                elif (edge := self.edges[index]) is not None:
                    tensor._node, tensor._slot = edge
            tensors.append(tensor)
        return tensors

    def vjp(self, grads: list[Any], needs: Sequence[bool] | None, create_graph: bool) -> list[Tensor | None]:
        """Gradients of the inputs that `needs` names (None: of all on the tape), from those of the outputs.

        Raises
        ------
        GraphError : the tape was freed, a saved array was changed, or the op has no derivative.
        """
        op = self.op
        if self.freed:
            raise GraphError(
                f"backward a second time: the tape was freed by the first pass (at {op.name}). Compute the value "
                "again, or pass retain_graph=True to the first pass"
            )
        saved = self.unpack(create_graph)
        if len(grads) > 1 and not op.partial:
            grads = [
                Tensor(np.zeros(*meta)) if g is None else g for g, meta in zip(grads, self.output_meta, strict=True)
            ]
        found: list[Tensor | None] = [None] * len(self.edges)
        for i, rule, arguments in self.plan.rules:
            if i >= 0 and needs is not None and not needs[i]:
                continue
            if isinstance(rule, str):
                raise GraphError(f"{op.name} has no derivative with respect to {op.input_name(i)}: {rule}")
            values = []
            for kind, which in arguments:
                if kind == _SAVED:
                    values.append(saved[which])
                elif kind == _GRAD:
                    values.append(grads[which])
                elif kind == _ATTR:
                    values.append(self.attrs[which])
                elif kind == _SHAPE:
                    values.append(self.input_meta[which][0])
                elif kind == _DTYPE:
                    values.append(self.input_meta[which][1])
                elif kind == _SHAPES:
                    values.append([shape for shape, _ in self.input_meta])
                elif kind == _NEEDS:
                    values.append([e is not None for e in self.edges] if needs is None else needs)
                else:
                    values.append(grads)
            if i >= 0:
                found[i] = rule(*values)
            else:
                found = list(rule(*values))
                if len(found) != len(self.edges):
                    raise GraphError(
                        f"{op.name}: {len(found)} gradients for {len(self.edges)} inputs: a defect of its vjp"
                    )
        for i, edge in enumerate(self.edges):
            g = found[i]
            if edge is None or (needs is not None and not needs[i]):
                found[i] = None
            elif g is None or (g._data.shape, g._data.dtype) != self.input_meta[i]:
                found[i] = self._fit(i, g)
        return found

    def _fit(self, i: int, g: Tensor | None) -> Tensor:
        """The gradient of input `i` with broadcasting and promotion undone; any other misfit is an error."""
        shape, dtype = self.input_meta[i]
        if g is None:
            raise GraphError(f"{self.op.name} gave no gradient for {self.op.input_name(i)}: a defect of its vjp")
        if self.op.broadcast:
            if g._data.shape != shape:
                g = OPS["sum_to"].public(g, shape)
            if g._data.dtype != dtype:
                g = OPS["cast"].public(g, dtype)
        if g._data.shape != shape or g._data.dtype != dtype:
            raise GraphError(
                f"{self.op.name}: the gradient of {self.op.input_name(i)} is {g.dtype}{list(g.shape)}, expected "
                f"{dtype}{list(shape)}: a defect of its vjp"
            )
        return g


def kernel(spec: KernelSpec) -> Callable[..., Any]:
    """The forward function of an op that a kernel spec computes."""
    single = len(spec.outputs) == 1

    def forward(*arrays: Array, **attrs: Any) -> Any:
        outputs = run(spec, arrays, attrs)
        return outputs[0] if single else outputs

    return forward


def by_decomposition(op_inputs: str, function: Callable[..., Any], attrs: str = "") -> Rule:
    """A joint rule that differentiates `function`, a formula in plain operations equal to the op.

    For fused operations whose own derivative is seldom asked for: the first derivative of a gradient op is
    the second derivative of the fused op. `function` takes the op's inputs, then the attributes.
    """
    from gmcore import engine

    names, attr_names = op_inputs.split(), attrs.split()

    def rule(*values: Any) -> list[Tensor | None]:
        *rest, needs, grads = values
        tensors, options = rest[: len(names)], rest[len(names) :]
        create_graph = _grad_enabled.get()
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
        found = iter(
            engine.grad([y for y, _ in pairs], wanted, [g for _, g in pairs], create_graph=create_graph, fill=True)
        )
        return [next(found) if need else None for need in needs]

    parameters = [*names, *attr_names, "needs", "grads"]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    rule.__signature__ = inspect.Signature([inspect.Parameter(p, kind) for p in parameters])  # type: ignore[attr-defined]
    return rule


__all__ = ["OPS", "Node", "Op", "by_decomposition", "kernel", "user_line"]
