"""What optimisers share: parameter groups, state, saving."""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from gmcore.errors import ArgumentError, CheckpointError, DeviceError, DtypeError, ShapeError, unknown_name
from gmcore.tensor import Tensor, is_floating, on_host
from gmcore.watch import relies
from gmkernels.arrays import on_gpu

Group = dict[str, Any]
State = dict[str, Any]
"""What an optimiser remembers of one parameter: ``step``, an int, and tensors of the parameter's shape."""
Layout = dict[str, tuple[int, ...] | None]
"""Names in a `State`, with the shapes of its tensors, and None for what is a Python number."""

# What PyTorch's other ways of computing a step are called, the values that ask for none of them, and what is here.
_WAYS: dict[str, tuple[tuple[Any, ...], str]] = {
    "foreach": ((None,), "one fused kernel updates all parameters, leave it out"),
    "fused": ((None, True), "one fused kernel updates all parameters, leave it out"),
    "capturable": ((False,), "every step reads its numbers from memory as it is, leave it out"),
    "differentiable": ((False,), "use {kind}.update, which is made of operations"),
}


class Optimizer(ABC):
    """Base of the optimisers.

    Parameters
    ----------
    params : tensors, or mappings with ``"params"`` and values of their own for some of the hyperparameters.
    defaults : the hyperparameters of groups that do not give their own.

    Attributes
    ----------
    param_groups : list of dicts, ``"params"`` and the hyperparameters, read anew at every step.
    state : parameter -> its `State`, from its first step with a gradient.

    Raises
    ------
    ArgumentError : no parameters, one given twice, one that is no C-contiguous floating leaf, or hyperparameters
        outside their range.  UnknownNameError : a group with a hyperparameter that there is not.
    """

    def __init__(self, params: Iterable[Any], defaults: Group) -> None:
        if isinstance(params, (Tensor, Mapping)):
            raise ArgumentError(
                f"{type(self).__name__}: params is one {type(params).__name__}, expected an iterable of tensors or of "
                "mappings; put it in a list"
            )
        self.defaults = defaults
        self.param_groups: list[Group] = []
        self.state: dict[Tensor, State] = {}
        given = list(params)
        if not given:
            raise ArgumentError(f"{type(self).__name__}: params is empty; give the parameters to optimise")
        for group in given if isinstance(given[0], Mapping) else [{"params": given}]:
            self.add_param_group(group)

    # -- what a subclass says --------------------------------------------------------------------------
    @abstractmethod
    def check_group(self, group: Group) -> None:
        """Raise `ArgumentError` for hyperparameters outside their range."""

    @abstractmethod
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient, in place.

        Parameters
        ----------
        closure : computes the loss and its gradients first; its result is returned.

        Raises
        ------
        ArgumentError : hyperparameters set outside their range.
        ShapeError, DtypeError : a gradient, set by hand, that is not of its parameter's shape and dtype.
        """

    @abstractmethod
    def state_layout(self, p: Tensor, group: Group, found: Mapping[str, tuple[int, ...]]) -> Layout:
        """What a saved state of the parameter must hold, given what was found in it: names and shapes."""

    # -- groups ----------------------------------------------------------------------------------------
    def _refuse_ways(self, **ways: Any) -> None:
        """Raise `ArgumentError` for an argument of the PyTorch counterpart that asks for another way to compute."""
        for name, value in ways.items():
            taken, remedy = _WAYS[name]
            if value not in taken:
                kind = type(self).__name__
                raise ArgumentError(f"{kind}: {name}={value!r} is not supported; {remedy.format(kind=kind)}")

    def _check_numbers(self, group: Group, *names: str) -> None:
        for name in names:
            self._check_number(name, group[name])

    def _check_number(self, name: str, value: Any, below: float = math.inf) -> None:
        if type(value) is float and 0.0 <= value < below:
            return  # as a rule, and without a look at the abstract class
        if not (isinstance(value, numbers.Real) and 0.0 <= float(value) < below):
            raise ArgumentError(f"{type(self).__name__}: {name} must be a number in [0, {below}), got {value!r}")

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Optimise more parameters, with hyperparameters of their own.

        Parameters
        ----------
        param_group : ``"params"``, a tensor or several, and the hyperparameters that differ from the defaults.

        Raises
        ------
        ArgumentError, UnknownNameError : as the constructor.
        """
        kind = type(self).__name__
        if not isinstance(param_group, Mapping) or "params" not in param_group:
            raise ArgumentError(f"{kind}: a parameter group is a mapping with 'params', got {param_group!r}")
        for name in param_group:
            if name != "params" and name not in self.defaults:
                raise unknown_name(f"hyperparameter of {kind}", name, self.defaults)
        params = param_group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        taken = set(self._parameters())
        for i, p in enumerate(params):
            if not isinstance(p, Tensor):
                raise ArgumentError(f"{kind}: parameter {i} is a {type(p).__name__}, expected a tensor")
            if not p.is_leaf or not is_floating(p.dtype):
                raise ArgumentError(f"{kind}: parameter {i} is no floating leaf; optimise what it is computed from")
            if p.dtype.itemsize == 2:
                raise ArgumentError(
                    f"{kind}: parameter {i} is {p.dtype}, in which small steps are lost; optimise a float32 parameter "
                    f"and use .astype({p.dtype.name!r}) of it, an operation with a gradient"
                )
            if not (p._data.flags.c_contiguous and (on_gpu(p._data) or p._data.flags.writeable)):
                raise ArgumentError(
                    f"{kind}: the memory of parameter {i} is read-only or not C-contiguous; make it a "
                    "gmcore.nn.Parameter, which has memory of its own"
                )
            if p in taken:
                raise ArgumentError(f"{kind}: parameter {i} (shape {p.shape}) is given twice")
            taken.add(p)
        group = {**self.defaults, **param_group, "params": params}
        self.check_group(group)
        self.param_groups.append(group)

    def _parameters(self) -> list[Tensor]:
        """The parameters of all groups; a position here is a parameter's number in the state dict."""
        return [p for group in self.param_groups for p in group["params"]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients.

        Parameters
        ----------
        set_to_none : False to keep those that there are, as zeros.
        """
        relies(self._parameters())
        for p in self._parameters():
            if set_to_none:
                p._grad = None
            elif p._grad is not None:
                p._grad = p.new_zeros(p.shape)

    # -- saving ----------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, np.ndarray]:
        """All that is needed to go on exactly, as a flat mapping from names to arrays.

        ``param_groups.<i>.params`` are the numbers of the group's parameters, counted over all groups,
        ``param_groups.<i>.<name>`` its hyperparameters, ``state.<number>.<name>`` the state of a parameter. The
        state's arrays are read-only views of the optimiser's memory: copy them to keep a snapshot. Those of a GPU are
        copies in host memory.
        """
        numbers_of = {p: number for number, p in enumerate(self._parameters())}
        arrays = {}
        for i, group in enumerate(self.param_groups):
            arrays[f"param_groups.{i}.params"] = np.array([numbers_of[p] for p in group["params"]], np.int64)
            for name in self.defaults:
                arrays[f"param_groups.{i}.{name}"] = np.array(group[name])
        for p, number in numbers_of.items():
            for name, value in self.state.get(p, {}).items():
                arrays[f"state.{number}.{name}"] = value.cpu().numpy() if isinstance(value, Tensor) else np.array(value)
        return arrays

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from the `state_dict` of an optimiser of the same kind over parameters of the same shapes.

        Hyperparameters are taken from it; states are copied, in the dtype and to the device of their parameter.

        Raises
        ------
        CheckpointError : names or shapes that do not fit, all in one message; nothing is changed then.
        ArgumentError : hyperparameters outside their range.
        """
        arrays = {name: on_host(value) for name, value in state_dict.items()}
        groups, layout = self._groups_in(arrays)
        owners = dict(enumerate([(p, group) for group in groups for p in group["params"]]))
        layouts: dict[int, Layout] = {}
        for number, (p, group) in owners.items():
            prefix = f"state.{number}."
            if found := {name.removeprefix(prefix): a.shape for name, a in arrays.items() if name.startswith(prefix)}:
                layouts[number] = self.state_layout(p, group, found)
                layout |= {prefix + name: shape for name, shape in layouts[number].items()}
        self._check_layout(arrays, layout)
        for group in groups:
            self.check_group(group)
        states: dict[Tensor, State] = {}
        for number, names in layouts.items():
            p = owners[number][0]
            given = {name: arrays[f"state.{number}.{name}"] for name in names}
            states[p] = {
                name: array.item() if names[name] is None else p.beside(np.array(array, p.dtype, order="C"))
                for name, array in given.items()
            }
        self.param_groups, self.state = groups, states

    def _groups_in(self, arrays: Mapping[str, np.ndarray]) -> tuple[list[Group], Layout]:
        """The groups with the hyperparameters of a state dict, as far as they are there, and the names they need."""
        groups: list[Group] = []
        layout: Layout = {}
        for i, group in enumerate(self.param_groups):
            layout[f"param_groups.{i}.params"] = (len(group["params"]),)
            values = {}
            for name, default in self.defaults.items():
                key = f"param_groups.{i}.{name}"
                layout[key] = np.shape(default)
                if key in arrays:
                    value = arrays[key].tolist()
                    values[name] = tuple(value) if isinstance(value, list) else value
            groups.append({**group, **values})
        return groups, layout

    def _check_layout(self, arrays: Mapping[str, np.ndarray], layout: Layout) -> None:
        problems = [f"{name} is missing" for name in layout if name not in arrays]
        problems += [f"{name} is unexpected" for name in arrays if name not in layout]
        problems += [
            f"{name} has shape {arrays[name].shape}, expected {shape or ()}"
            for name, shape in layout.items()
            if name in arrays and arrays[name].shape != (shape or ())
        ]
        if problems:
            raise CheckpointError(f"the state dict does not fit this {type(self).__name__}: {'; '.join(problems)}")

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        for i, group in enumerate(self.param_groups):
            values = ", ".join(f"{name}={group[name]}" for name in self.defaults)
            lines.append(f"  group {i}: {len(group['params'])} parameters, {values}")
        return "\n".join([*lines, ")"])


def check_gradient(p: Tensor, grad: Tensor) -> None:
    """Raise unless `grad`, which may have been set by hand, has the shape, dtype and device of its parameter."""
    if grad._data.shape != p._data.shape:
        raise ShapeError(f"a gradient has shape {grad.shape}, expected its parameter's shape {p.shape}")
    if grad._data.dtype != p._data.dtype:
        raise DtypeError(f"a gradient is {grad.dtype}, expected its parameter's dtype {p.dtype}")
    if type(grad._data) is not type(p._data) and grad.device != p.device:
        raise DeviceError(f"a gradient is on {grad.device}, expected its parameter's device {p.device}")
