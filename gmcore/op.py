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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from gmcore.device import constant_beside, device_of, gpu_number, memory_error
from gmcore.errors import (
    DeviceError,
    DtypeError,
    GmcoreError,
    GraphError,
    ShapeError,
    UnknownNameError,
    shown,
    user_line,
)
from gmcore.tensor import FLOATING, Array, Tensor, _mode, is_floating, native, wrap
from gmcore.watch import Meta, Note
from gmkernels import KernelSpec, run
from gmkernels.arrays import as_array, is_array, on_gpu
from gmkernels.registry import entries

Rule = Callable[..., Any]
Edge = tuple[Any, int]
"""A place on the tape: the `Node` that computed a tensor, or its `Leaf`; and which output of that it is."""
Example = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of a public function; arrays are float64 inputs to differentiate."""

OPS: dict[str, Op] = {}
"""Every declared operation by name."""

ON_CPU = ("key",)
"""Inputs of operations that stay in host memory, wherever the others are: a kernel takes along what it needs."""

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_sequence = itertools.count()
next_sequence = _sequence.__next__
"""The number of the next node; numbers grow with time."""


def _shares_memory(view: Array, array: Array) -> bool:
    """Whether `view`, the result of a view operation on `array`, is not a copy after all."""
    base = view.base
    return view is array or (base is not None and (base is array or base is array.base))


class Op:
    """A declared operation; call it with tensors (or what `as_tensor` takes) and keyword attributes.

    Parameters
    ----------
    name : unique; shown in errors and on the tape.
    inputs, outputs : names separated by spaces. ``"*xs"`` alone: any number of them; a joint rule gets the inputs
        as ``xs`` and their shapes as ``xs_shape``.
    forward : ``forward(*arrays, **attrs)`` -> array, or a tuple of arrays for several outputs.
    vjp : the derivative (see the module's docstring). None where the outputs are not floating.
    broadcast : inputs broadcast and promote as in NumPy; gradients are summed and cast back to each input.
    view : the (one) output may share the (one) input's memory.
    exact : nothing is rounded, so half types go through as they are; so it is for a `view`. Other operations compute
        half types in float32 and round their results.
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
        exact: bool = False,
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
        # NumPy's ufuncs round half types once, as `_in_single` does.
        self.exact = exact or view or isinstance(forward, np.ufunc)
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
        """By a number whose bits say which inputs are on the tape, after a leading 1."""
        OPS[name] = self

    def __repr__(self) -> str:
        return f"<op {self.name}({', '.join(self.inputs)}) -> {', '.join(self.outputs)}>"

    def show(self) -> str:
        """The formula, the source of the derivative rules and the kernels, to print."""
        from gmcore.explain import show  # explain looks at ops; an engine that nobody looks at does not need it

        return show(self)

    def input_name(self, i: int) -> str:
        name = self.inputs[min(i, len(self.inputs) - 1)]
        return f"{name[1:]}[{i}]" if name.startswith("*") else name

    def _parameters(self, rule: Rule | str) -> tuple[str, ...]:
        return () if isinstance(rule, str) else tuple(inspect.signature(rule).parameters)

    # -- forward ---------------------------------------------------------------------------------------
    def __call__(self, *inputs: Any, **attrs: Any) -> Any:
        # Written out in plain loops: this is the path of every small op, and a comprehension costs a call.
        arrays = []
        try:
            for x in inputs:
                arrays.append(x._data)
        except AttributeError:
            inputs = self._coerce(inputs)
            arrays = [x._data for x in inputs]
        try:
            if not self.exact and arrays[0].itemsize == 2:
                result = self._in_single(arrays, attrs)
            else:
                result = self.forward(*arrays, **attrs) if attrs else self.forward(*arrays)
        except GmcoreError:
            raise
        except (ValueError, TypeError, IndexError, MemoryError) as error:
            result = self._again_in_single(inputs, arrays, attrs, error)
        outputs: tuple[Tensor, ...]
        out: Any
        if type(result) is ndarray:
            out = Tensor(result)
            outputs = (out,)
        elif type(result) is tuple:
            out = outputs = tuple([Tensor(array) for array in result])
            if out and type(result[0]) is not ndarray:
                self._check_devices(inputs, result[0])
        elif isinstance(result, np.generic):
            # NumPy returns a scalar, not an array, from operations on arrays of no dimensions.
            out = Tensor(np.asarray(result))
            outputs = (out,)
        else:
            self._check_devices(inputs, result)
            out = Tensor(result)
            outputs = (out,)
        if self.view and _shares_memory(out._data, arrays[0]):
            out._version = inputs[0]._counter()
        mode = _mode.get()
        if mode is True:
            for x in inputs:
                if x._edge is not None:
                    if out is not outputs and ((dtype := out._data.dtype) is _FLOAT32 or dtype is _FLOAT64):
                        out._edge = (Node(self, inputs, outputs, attrs), 0)  # the usual case, a call shorter
                    else:
                        self._record(inputs, outputs, attrs)
                    break
        elif mode is not False:
            if mode and any(x._edge is not None for x in inputs):
                self._record(inputs, outputs, attrs)
            mode.called(self, inputs, attrs, outputs)
        return out

    apply = __call__
    """The same; calling a method is quicker than calling an instance, and operators of small tensors feel it."""

    def compute(self, arrays: Sequence[Array], attrs: Mapping[str, Any]) -> Any:
        """What the forward function gives, as in a call, for a step that is repeated without its tensors."""
        try:
            if not self.exact and arrays[0].itemsize == 2:
                return self._in_single(arrays, attrs)
            return self.forward(*arrays, **attrs)
        except GmcoreError:
            raise
        except (ValueError, TypeError, IndexError, MemoryError) as error:
            return self._again_in_single([Tensor(a) for a in arrays], arrays, attrs, error)

    def _coerce(self, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
        """Inputs as tensors; a Python number takes the dtype its tensor partners would give it (NEP 50), and like a
        number of NumPy's their device."""
        if len(inputs) == 2 and type(inputs[1]) is float and type(inputs[0]) is Tensor:
            array = inputs[0]._data  # as a rule; what follows takes three times as long
            if type(array) is ndarray and ((dtype := array.dtype) is _FLOAT32 or dtype is _FLOAT64):
                return inputs[0], Tensor(np.array(inputs[1], dtype))
        dtypes = []
        gpu = None
        for x in inputs:
            if isinstance(x, Tensor):
                array = x._data
                dtypes.append(array.dtype)
                if type(array) is not ndarray and _on_gpu(array):
                    gpu = array
            elif isinstance(x, (ndarray, np.generic)):
                dtypes.append(native(x.dtype))
        tensors = []
        for x in inputs:
            if type(x) in (int, float, bool) and dtypes:
                number = np.array(x, _weak(x, dtypes))
                tensors.append(Tensor(number if gpu is None else constant_beside(number, gpu)))
                continue
            if gpu is not None and isinstance(x, np.generic):
                tensors.append(Tensor(constant_beside(np.asarray(x), gpu)))
                continue
            try:
                tensors.append(wrap(x))
            except DtypeError as error:
                raise DtypeError(f"{self.name}: {error} (called at {user_line()})") from None
        return tuple(tensors)

    def _in_single(self, arrays: Sequence[Array], attrs: Mapping[str, Any]) -> Any:
        """The forward function with half types as storage: computed in float32, results rounded to the half type.

        So sums, products and losses accumulate in float32, and every kernel takes half types.
        """
        floats = {a.dtype for a in arrays if is_floating(a.dtype)}
        half = next((dtype for dtype in floats if dtype.itemsize == 2), None)
        if half is None or len(floats) > 1:  # two-byte integers; or a promotion, or an error, as for other dtypes
            return self.forward(*arrays, **attrs)
        if _on_gpu(arrays[0]) and _is_stored(half, self.forward):
            return self.forward(*arrays, **attrs)
        result = self.forward(*[a.astype(np.float32) if a.dtype == half else a for a in arrays], **attrs)
        if type(result) is tuple:
            return tuple([_rounded(y, half) for y in result])
        return _rounded(result, half)

    def _again_in_single(
        self, inputs: Sequence[Tensor], arrays: Sequence[Array], attrs: Mapping[str, Any], error: Exception
    ) -> Any:
        """The result of a call that was refused for a half type; any other error is raised."""
        if isinstance(error, TypeError) and any(a.itemsize == 2 and is_floating(a.dtype) for a in arrays):
            try:
                return self._in_single(arrays, attrs)
            except (ValueError, TypeError, IndexError, MemoryError) as again:
                error = again
        raise self._input_error(inputs, attrs, error) from error

    def _input_error(self, inputs: Sequence[Tensor], attrs: Mapping[str, Any], error: Exception) -> GmcoreError:
        """The error of a call that the forward function refused: a kernel or a NumPy function, which state a wrong
        dtype by a TypeError (a negative power of integers apart), and all else by a ValueError or an IndexError."""
        given = ", ".join(f"{self.input_name(i)}: {shown(x)}" for i, x in enumerate(inputs))
        options = "".join(f", {k}={shown(v)}" for k, v in attrs.items())
        if isinstance(error, MemoryError):
            raise memory_error(error, f"{self.name}({given}{options})") from None
        self._check_devices(inputs)
        kind: type[GmcoreError] = ShapeError
        expected = "shapes that broadcast" if self.broadcast else ""
        if isinstance(error, TypeError) or (self.broadcast and _broadcast([x.shape for x in inputs])):
            kind = DtypeError
            arguments = [a for args, _ in self.examples(np.random.default_rng(0)) for a in args]
            floating = any(isinstance(a, np.ndarray) and is_floating(a.dtype) for a in arguments)
            expected = "floating numbers" if floating else "booleans or integers"
        hint = f"; expected {expected}" if expected and "expected" not in str(error) else ""
        return kind(f"{self.name}({given}{options}): {error}{hint} (called at {user_line()})")

    def _check_devices(self, inputs: Sequence[Tensor], result: Array | None = None) -> None:
        """Raise `DeviceError` unless the inputs lie on one device, but for those that stay in host memory, and that is
        the current one: where it is not, CuPy refuses, or puts the `result` elsewhere."""
        if self.name == "to_device" or not all([is_array(x._data) for x in inputs]):  # one that is traced is nowhere
            return
        devices = {x.device for i, x in enumerate(inputs) if self.input_name(i) not in ON_CPU}
        if len(devices) > 1:
            given = ", ".join(f"{self.input_name(i)}: {shown(x)} on {x.device}" for i, x in enumerate(inputs))
            raise DeviceError(
                f"{self.name}({given}): expected all on one device; move some with .to({max(devices)!r}) "
                f"(called at {user_line()})"
            )
        if devices and "cpu" not in devices:
            (there,) = devices
            here = f"cuda:{gpu_number('cuda')}" if result is None else device_of(result)
            if there != here:
                raise DeviceError(
                    f"{self.name}: its inputs are on {there}, and the current GPU is {here}; call it inside "
                    f"`with cupy.cuda.Device({there[5:]}):` (called at {user_line()})"
                )

    # -- tape ------------------------------------------------------------------------------------------
    def _record(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], attrs: dict[str, Any]) -> None:
        node = None
        slot = 0
        for y in outputs:
            if y._data.dtype.kind in FLOATING:
                if node is None:
                    node = Node(self, inputs, outputs, attrs)
                y._edge = (node, slot)
            else:
                y._cut = self
            slot += 1


def _broadcast(shapes: Iterable[tuple[int, ...]]) -> bool:
    """Whether arrays of these shapes broadcast with each other."""
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return True


def _on_gpu(array: Any) -> bool:
    """Whether it is an array on a GPU; what a trace of an operation puts in the place of an array is none."""
    return is_array(array) and on_gpu(array)


def _rounded(y: Any, half: np.dtype[Any]) -> Array:
    """A result in float32 as one of a half type; any other as it is."""
    if y.dtype != np.float32:
        return y
    return as_array(y).astype(half)


def _weak(x: bool | int | float, dtypes: Sequence[np.dtype[Any]]) -> np.dtype[Any]:
    """The dtype of a Python number among arrays of `dtypes`."""
    common = dtypes[0] if len(dtypes) == 1 else np.result_type(*dtypes)
    # NumPy's rule for Python numbers does not know that bfloat16 is floating.
    return common if is_floating(common) else np.result_type(common, x)


class _Plan:
    """What an op keeps, and how it calls its rules, when the inputs in `mask` require gradients.

    The call is compiled from one line of Python, `source`, that names where each argument of each rule comes
    from; for ``x * y`` with a gradient wanted for x alone it is ``[rule_0(grads[0], saved[0]), None]``.
    """

    def __init__(self, op: Op, mask: int, inputs: int) -> None:
        self.op = op
        self.outputs = 0 if op.outputs[0].startswith("*") else len(op.outputs)
        """Number of outputs; 0 where it differs from call to call."""
        self.needs = asked = [mask >> i & 1 == 1 for i in range(inputs)]
        """Which inputs are on the tape."""
        wants = {i: names for i, names in enumerate(op._wants) if op._joint or asked[i]}
        wanted = {name for names in wants.values() for name in names}
        kept_inputs = [i for i, name in enumerate(op.inputs) if name in wanted]
        if variadic := op.inputs[0].startswith("*"):
            kept_inputs = list(range(inputs)) if op.inputs[0][1:] in wanted else []
        kept_outputs = [i for i, name in enumerate(op.outputs) if name in wanted]
        self.kept = [*kept_inputs, *(~i for i in kept_outputs)]
        """Which arrays are saved: inputs by number, outputs by ~number."""
        described = {name.removesuffix("_shape").removesuffix("_dtype") for name in wanted}
        self.described = [
            i for i, on_tape in enumerate(asked)
            if not on_tape and (i >= len(op.inputs) or op.inputs[i].removeprefix("*") in described)
        ]  # fmt: skip
        """Inputs off the tape whose shape or dtype a rule asks for."""

        kept_names = [op.input_name(i) for i in kept_inputs] + [op.outputs[i] for i in kept_outputs]
        sources = {name: f"saved[{k}]" for k, name in enumerate(kept_names)}
        for i, name in enumerate(op.inputs):
            sources[f"{name}_shape"] = f"node.input_meta[{i}][0]"
            sources[f"{name}_dtype"] = f"node.input_meta[{i}][1]"
        for i, name in enumerate(op.outputs):
            sources["g_" + name if len(op.outputs) > 1 else "g"] = f"grads[{i}]"
        if variadic:
            sources[op.inputs[0][1:]] = f"saved[:{inputs}]"
            sources[op.inputs[0][1:] + "_shape"] = "[shape for shape, _ in node.input_meta]"
        sources |= {"needs": "needs", "grads": "grads"}
        names: dict[str, Any] = {"refuse": _refuse, "one_each": _one_each}
        calls = []
        for i, arguments in wants.items():
            names[f"rule_{i}"] = op._rules[i]
            calls.append(f"rule_{i}({', '.join(sources.get(a, f'node.attrs[{a!r}]') for a in arguments)})")
        if op._joint:
            self.source = f"one_each(node, {calls[0]})"
        else:
            given = iter(calls)
            parts = []
            for i, wanted_here in enumerate(asked):
                call = "None"
                if wanted_here:
                    refused = not op._rules or isinstance(op._rules[i], str)
                    call = next(given) if op._rules else ""
                    call = f"refuse(node, {i})" if refused else call
                    call += f" if needs[{i}] else None"
                parts.append(call)
            self.source = f"[{', '.join(parts)}]"
        # The name of a file in this package keeps the line out of what `user_line` looks for.
        code = compile(f"lambda node, saved, grads, needs: {self.source}", f"{__file__}, rules of {op.name}", "eval")
        self.call = eval(code, names)


def _one_each(node: Node, found: Iterable[Tensor | None]) -> list[Tensor | None]:
    """What a joint rule gave, checked."""
    found = list(found)
    if len(found) != len(node.edges):
        raise GraphError(f"{node.op.name}: {len(found)} gradients for {len(node.edges)} inputs: a defect of its vjp")
    return found


def _refuse(node: Node, i: int) -> None:
    op = node.op
    why = op._rules[i] if op._rules else f"{op.outputs[0]} is not differentiable"
    raise GraphError(f"{op.name} has no derivative with respect to {op.input_name(i)}: {why}")


class Node:
    """One recorded call: its op, where its inputs came from, and the arrays its derivative rule wants."""

    __slots__ = ("plan", "attrs", "edges", "input_meta", "output_meta", "saved", "sequence", "hooks", "note")

    plan: _Plan
    attrs: dict[str, Any]
    edges: list[Edge | None]
    input_meta: list[tuple[tuple[int, ...], np.dtype[Any]]]
    """Shape and dtype of the inputs on the tape, and of others that a rule asks for."""
    output_meta: list[tuple[tuple[int, ...], np.dtype[Any]]] | None
    """Shape and dtype of the outputs where there are several: a gradient that is missing is zeros."""
    saved: list[tuple[Array, list[int], int]] | None
    """(array, its version counter, what that said) for each of ``plan.kept``; None once freed."""
    sequence: int
    hooks: dict[int, tuple[int, Callable[..., Any]]] | None
    """(output, function) of the hooks; see `gmcore.hooks`."""
    note: Note | None
    """Where it was called, and how; only if a watch was open (`gmcore.watch`)."""

    def __init__(self, op: Op, inputs: Sequence[Tensor], outputs: Sequence[Tensor], attrs: dict[str, Any]) -> None:
        edges: list[Edge | None] = []
        meta: list[Any] = []
        mask, bit = 0, 1
        for x in inputs:
            edge = x._edge
            edges.append(edge)
            if edge is not None:
                mask |= bit
                meta.append((x._data.shape, x._data.dtype))
            else:
                meta.append(None)
            bit <<= 1
        plan = op._plans.get(mask | bit)
        if plan is None:
            plan = op._plans[mask | bit] = _Plan(op, mask, len(inputs))
        for i in plan.described:
            meta[i] = (inputs[i]._data.shape, inputs[i]._data.dtype)
        saved = []
        for i in plan.kept:
            x = inputs[i] if i >= 0 else outputs[~i]
            version = x._version
            if version is None:
                version = x._version = [0]
            saved.append((x._data, version, version[0]))
        self.plan = plan
        self.attrs = attrs
        self.edges = edges
        self.input_meta = meta
        self.output_meta = [(y._data.shape, y._data.dtype) for y in outputs] if plan.outputs != 1 else None
        self.saved = saved
        self.sequence = next(_sequence)
        self.hooks = None
        self.note = None

    @property
    def op(self) -> Op:
        return self.plan.op

    def unpack(self, connected: bool) -> list[Tensor]:
        """The saved arrays as tensors; `connected` ones are on the tape, for higher derivatives.

        Raises
        ------
        GraphError : the tape was freed, or one of them was written to since.
        """
        if self.saved is None:
            raise GraphError(
                f"backward a second time: the tape was freed by the first pass (at {self.op.name}). Compute the value "
                "again, or pass retain_graph=True to the first pass"
            )
        tensors: list[Tensor] = []
        for array, version, expected in self.saved:
            if version[0] != expected:
                index = self.plan.kept[len(tensors)]
                name = self.op.outputs[~index] if index < 0 else self.op.input_name(index)
                raise GraphError(
                    f"backward through {self.op.name}: its {name} was changed after it was recorded (version "
                    f"{version[0]}, saved at {expected}). Call backward() before optimiser steps or copy_, or "
                    f"compute from a copy of it"
                )
            tensor = Tensor(array)
            if connected:
                index = self.plan.kept[len(tensors)]
                tensor._version = version
                tensor._edge = (self, ~index) if index < 0 else self.edges[index]
            tensors.append(tensor)
        return tensors

    def vjp(self, grads: list[Any], needs: Sequence[bool] | None, create_graph: bool) -> list[tuple[Edge, Tensor]]:
        """Gradients of the inputs that `needs` names (None: of all on the tape) from those of the outputs.

        Each comes with the place on the tape it goes to.

        Raises
        ------
        GraphError : the tape was freed, a saved array was changed, or the op has no derivative.
        """
        saved = self.unpack(create_graph)
        plan, edges, metas = self.plan, self.edges, self.input_meta
        if needs is None:
            needs = plan.needs
        if plan.outputs != 1 and not plan.op.partial:
            known = next(g for g in grads if g is not None)
            grads = [
                known.new_zeros(*meta) if g is None else g
                for g, meta in zip(grads, self.output_meta, strict=True)  # type: ignore[arg-type]
            ]
        found = plan.call(self, saved, grads, needs)
        arrivals: list[Any] = []
        i = 0
        for g in found:
            if needs[i]:
                shape, dtype = metas[i]
                if g is None or g._data.shape != shape or g._data.dtype is not dtype:
                    g = self._fit(i, g)
                arrivals.append((edges[i], g))
            i += 1
        return arrivals

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


class End(Node):
    """The place on the tape of a tensor that a repetition of a captured step has returned: a backward pass that comes
    here raises.

    Parameters
    ----------
    node : what computed the tensor when the step was recorded.
    """

    __slots__ = ()

    def __init__(self, node: Node) -> None:
        self.plan, self.attrs, self.input_meta, self.output_meta = node.plan, {}, [], node.output_meta
        self.edges = []
        self.saved = self.hooks = self.note = None
        self.sequence = next(_sequence)

    def unpack(self, connected: bool) -> list[Tensor]:
        raise GraphError(
            f"backward through a captured step (at {self.op.name}): a repetition leaves no tape, and the gradients of "
            "what it has used would be missing. Call backward() inside the step, or detach() what it returns"
        )


def kernel(spec: KernelSpec, otherwise: Callable[..., Any] | None = None) -> Callable[..., Any]:
    """The forward function of an op that a kernel spec computes; on what is no float32 or float64 array, `otherwise`
    does, if it is given."""
    single = len(spec.outputs) == 1

    def forward(*arrays: Array, **attrs: Any) -> Any:
        first = arrays[0]
        if otherwise is not None and (first.dtype.char not in "fd" or not (type(first) is ndarray or _on_gpu(first))):
            return otherwise(*arrays, **attrs)
        outputs = run(spec, arrays, attrs)
        mode = _mode.get()
        if type(mode) is not bool:
            mode.kernel_ran(spec, arrays, attrs)
        return outputs[0] if single else outputs

    vars(forward).update(spec=spec, takes_all=otherwise is None)
    return forward


def _is_stored(half: np.dtype[Any], forward: Callable[..., Any]) -> bool:
    """Whether a forward function is a kernel that stores a half type, as GPU kernels do, and computes in float32."""
    if not getattr(forward, "takes_all", False):
        return False
    return any(half.name in entry.dtypes for entry in entries(vars(forward)["spec"]).values())


__all__ = ["OPS", "Edge", "Example", "Meta", "Node", "Op", "kernel", "next_sequence", "user_line"]
