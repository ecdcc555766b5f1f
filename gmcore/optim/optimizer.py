"""What optimisers share: parameter groups, state, the fused step, saving."""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from gmcore.errors import ArgumentError, CheckpointError, DtypeError, ShapeError, unknown_name
from gmcore.tensor import Tensor, enable_grad
from gmkernels.registry import KernelSpec, run

Group = dict[str, Any]
State = dict[str, Any]
"""What an optimiser remembers of one parameter: ``step``, an int, and tensors of the parameter's shape."""


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

    Notes
    -----
    A subclass names its fused kernel, says how its `hyper` array is made from a group, and has the same update
    once more as a function of tensors, `update`.
    """

    kernel: KernelSpec
    """The update of many parameters at once, in place: inputs (grads, hyper), outputs (params, *states)."""

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
    def hyper(self, group: Group, step: int) -> list[float]:
        """The kernel's hyper array at this step of a parameter (the first is 1)."""

    def keeps_state(self, group: Group) -> bool:
        """Whether the update of this group reads and writes the states."""
        return True

    @staticmethod
    @abstractmethod
    def update(param: Tensor, grad: Tensor, state: State, hyper: Mapping[str, Any]) -> tuple[Tensor, State]:
        """The update as a function of tensors, made of operations: nothing is changed, any derivative exists.

        An optimisation unrolled with it can be differentiated with respect to where it started and to its
        hyperparameters.

        Parameters
        ----------
        param, grad : tensors of one shape.
        state : ``{}`` before the first step, then what the last call gave; ``optimizer.state[p]`` has this form.
        hyper : hyperparameters by name, such as ``optimizer.param_groups[0]``; the real ones may be tensors.

        Returns
        -------
        The new parameter and the new state.
        """

    # -- groups ----------------------------------------------------------------------------------------
    def _refuse(self, name: str, value: Any, remedy: str, taken: tuple[Any, ...] = (False,)) -> None:
        """Raise `ArgumentError` for an argument of the PyTorch counterpart that has none of the values `taken`."""
        if value not in taken:
            raise ArgumentError(f"{type(self).__name__}: {name}={value!r} is not supported; {remedy}")

    def _check_number(self, name: str, value: Any, below: float = math.inf) -> None:
        if not (isinstance(value, numbers.Real) and 0.0 <= float(value) < below):
            raise ArgumentError(f"{type(self).__name__}: {name} must be a number in [0, {below}), got {value!r}")

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Optimise more parameters, with hyperparameters of their own; raises as the constructor."""
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
            if not p.is_leaf or p.dtype.kind != "f":
                raise ArgumentError(f"{kind}: parameter {i} is no floating leaf; optimise what it is computed from")
            if not (p._data.flags.c_contiguous and p._data.flags.writeable):
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
        """Forget the gradients, or set those that there are to zero."""
        for p in self._parameters():
            if set_to_none:
                p.grad = None
            elif p.grad is not None:
                p.grad = Tensor(np.zeros(p.shape, p.dtype))

    # -- the step --------------------------------------------------------------------------------------
    @property
    def _states(self) -> tuple[str, ...]:
        """Names of the tensors of a state, in the order of the kernel's outputs."""
        return tuple([name[1:] for name in self.kernel.outputs[1:]])

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
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.check_group(group)
            keeps_state = self.keeps_state(group)
            ready = [p for p in group["params"] if p.grad is not None]
            for p in ready:
                _check_gradient(p, p.grad)
            # A call updates the parameters of one dtype that are at the same step: as a rule, the whole group.
            calls: dict[tuple[int, np.dtype[Any]], list[Tensor]] = {}
            for p in ready:
                step = self._advance(p) if keeps_state else 1
                calls.setdefault((step, p.dtype), []).append(p)
            for (step, _), params in calls.items():
                grads = tuple([p.grad._data for p in params])  # type: ignore[union-attr]
                arrays = tuple([p._data for p in params])
                if keeps_state:
                    states = [tuple([self.state[p][name]._data for p in params]) for name in self._states]
                else:  # the kernel wants arrays of these shapes all the same, and leaves them alone
                    states = [arrays] * len(self._states)
                run(self.kernel, (grads, np.array(self.hyper(group, step), np.float64)), outputs=(arrays, *states))
                for p in params:
                    p._written()
        return loss

    def _advance(self, p: Tensor) -> int:
        """Count a step of the parameter. Each has its own count: one without a gradient does not step."""
        if p not in self.state:
            self.state[p] = {"step": 0, **{name: Tensor(np.zeros(p.shape, p.dtype)) for name in self._states}}
        self.state[p]["step"] += 1
        return self.state[p]["step"]

    # -- saving ----------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, np.ndarray]:
        """All that is needed to go on exactly, as a flat mapping from names to arrays.

        ``param_groups.<i>.params`` are the numbers of the group's parameters, counted over all groups,
        ``param_groups.<i>.<name>`` its hyperparameters, ``state.<number>.<name>`` the state of a parameter. The
        state's arrays are read-only views of the optimiser's memory: copy them to keep a snapshot.
        """
        numbers_of = {p: number for number, p in enumerate(self._parameters())}
        arrays = {}
        for i, group in enumerate(self.param_groups):
            arrays[f"param_groups.{i}.params"] = np.array([numbers_of[p] for p in group["params"]], np.int64)
            for name in self.defaults:
                arrays[f"param_groups.{i}.{name}"] = np.array(group[name])
        for p, number in numbers_of.items():
            for name, value in self.state.get(p, {}).items():
                arrays[f"state.{number}.{name}"] = value.numpy() if isinstance(value, Tensor) else np.array(value)
        return arrays

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from the `state_dict` of an optimiser of the same kind over parameters of the same shapes.

        Hyperparameters are taken from it; states are copied, in the dtype of their parameter.

        Raises
        ------
        CheckpointError : names or shapes that do not fit, all in one message; nothing is changed then.
        ArgumentError : hyperparameters outside their range.
        """
        arrays = {name: np.asarray(value) for name, value in state_dict.items()}
        stepped = {name.split(".")[1] for name in arrays if name.startswith("state.")}
        expected: dict[str, tuple[int, ...]] = {}
        for i, group in enumerate(self.param_groups):
            expected[f"param_groups.{i}.params"] = (len(group["params"]),)
            expected.update({f"param_groups.{i}.{name}": np.shape(value) for name, value in self.defaults.items()})
        for number, p in enumerate(self._parameters()):
            if str(number) in stepped:
                expected[f"state.{number}.step"] = ()
                expected.update({f"state.{number}.{name}": p.shape for name in self._states})
        problems = [f"{name} is missing" for name in expected if name not in arrays]
        problems += [f"{name} is unexpected" for name in arrays if name not in expected]
        problems += [
            f"{name} has shape {arrays[name].shape}, expected {shape}"
            for name, shape in expected.items()
            if name in arrays and arrays[name].shape != shape
        ]
        if problems:
            raise CheckpointError(f"the state dict does not fit this {type(self).__name__}: {'; '.join(problems)}")
        groups = []
        for i, group in enumerate(self.param_groups):
            values = {name: arrays[f"param_groups.{i}.{name}"].tolist() for name in self.defaults}
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
            groups.append({**values, "params": group["params"]})
            self.check_group(groups[-1])
        states: dict[Tensor, State] = {}
        for number, p in enumerate(self._parameters()):
            if str(number) in stepped:
                states[p] = {"step": int(arrays[f"state.{number}.step"])}
                for name in self._states:
                    states[p][name] = Tensor(np.array(arrays[f"state.{number}.{name}"], p.dtype, order="C"))
        self.param_groups, self.state = groups, states

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        for i, group in enumerate(self.param_groups):
            values = ", ".join(f"{name}={group[name]}" for name in self.defaults)
            lines.append(f"  group {i}: {len(group['params'])} parameters, {values}")
        return "\n".join([*lines, ")"])


def _check_gradient(p: Tensor, grad: Tensor) -> None:
    if grad.shape != p.shape:
        raise ShapeError(f"a gradient has shape {grad.shape}, expected its parameter's shape {p.shape}")
    if grad.dtype != p.dtype:
        raise DtypeError(f"a gradient is {grad.dtype}, expected its parameter's dtype {p.dtype}")
