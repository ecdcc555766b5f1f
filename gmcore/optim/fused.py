"""Optimisers that treat every element alike: one fused kernel, and the same update made of operations."""

from __future__ import annotations

import functools
import operator
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.device import allocating
from gmcore.errors import DeviceError
from gmcore.optim.optimizer import Group, Layout, Optimizer, State, check_gradient
from gmcore.tensor import Array, Tensor, enable_grad
from gmcore.watch import hosted, relies
from gmkernels.registry import KernelSpec, run


class FusedOptimizer(Optimizer):
    """Base of the optimisers whose step is one kernel over all parameters of a group.

    Notes
    -----
    A subclass names its kernel, says how the kernel's array of numbers is made from a group, and has the same update
    once more as a function of tensors, `update`. Parameters and raises as `Optimizer`.
    """

    kernel: KernelSpec
    """The update of many parameters at once, in place: inputs (grads, hyper), outputs (params, *states)."""

    # -- what a subclass says --------------------------------------------------------------------------
    @abstractmethod
    def hyper(self, group: Group, step: int) -> list[float]:
        """The kernel's hyper array at this step of a parameter (the first is 1)."""

    def state_names(self, group: Group) -> tuple[str, ...]:
        """The states, of those the kernel knows, that it uses with these hyperparameters."""
        return self._states

    def initial(self, name: str, group: Group) -> float:
        """What a state is full of before the first step."""
        return 0.0

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
        hyper : hyperparameters by name, such as ``optimizer.param_groups[0]``; the real ones may be tensors, and what
            is on or off is off where it is left out.

        Returns
        -------
        The new parameter and the new state.
        """

    # -- the step --------------------------------------------------------------------------------------
    @property
    def _states(self) -> tuple[str, ...]:
        """Names of the tensors of a state, in the order of the kernel's outputs."""
        return tuple([name[1:] for name in self.kernel.outputs[1:]])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        groups = [(group, list(group["params"])) for group in self.param_groups]
        relies(self._parameters(), functools.partial(self._has_groups, groups))
        for group in self.param_groups:
            self.check_group(group)
            used = self.state_names(group)
            ready = [(p, g) for p in group["params"] if (g := p._grad) is not None]
            for p, g in ready:
                check_gradient(p, g)
            # A call updates the parameters of one dtype, device and step: as a rule, the whole group.
            calls: dict[tuple[int, np.dtype[Any], str], list[tuple[Tensor, Tensor]]] = {}
            for p, g in ready:
                step = self._begun(p, group, used)["step"] if used else 0
                calls.setdefault((step, p._data.dtype, p.device), []).append((p, g))
            for pairs in calls.values():
                params = [p for p, _ in pairs]
                grads = tuple([g._data for _, g in pairs])
                arrays = tuple([p._data for p in params])
                # For a state it does not use the kernel wants arrays of these shapes all the same.
                outputs = [
                    tuple([self.state[p][name]._data for p in params]) if name in used else arrays
                    for name in self._states
                ]
                hyper = hosted(functools.partial(self._next_hyper, group, params, used))
                states = [self.state[p] for p in params] if used else []
                memory = [state[name]._data for state in states for name in used]
                relies(params, functools.partial(self._is_as_it_was, group, used, params, states, memory))
                allocating(run, self.kernel, (grads, hyper), outputs=(arrays, *outputs))
                for p in params:
                    p._written()
        return loss

    def _begun(self, p: Tensor, group: Group, used: tuple[str, ...]) -> State:
        """The state of the parameter, complete."""
        state = self.state.setdefault(p, {"step": 0})
        for name in used:
            if name not in state:
                state[name] = p.new_full(p.shape, self.initial(name, group))
            elif type(state[name]._data) is not type(p._data) and state[name].device != p.device:
                raise DeviceError(
                    f"{type(self).__name__}: {name} of a parameter is on {state[name].device} and the parameter on "
                    f"{p.device}; optimizer.load_state_dict(optimizer.state_dict()) takes what it remembers there"
                )
        return state

    def _next_hyper(self, group: Group, params: list[Tensor], used: tuple[str, ...]) -> np.ndarray:
        """Count a step of the parameters, and the kernel's hyper array at it.

        Each parameter has its own count, because one without a gradient does not step.
        """
        self.check_group(group)
        if used:
            for p in params:
                self.state[p]["step"] += 1
        return np.array(self.hyper(group, self.state[params[0]]["step"] if used else 1), np.float64)

    def _is_as_it_was(
        self, group: Group, used: tuple[str, ...], params: list[Tensor], states: list[State], memory: list[Array]
    ) -> bool:
        """Whether no other state was loaded or set, all are at one step, and the same hyperparameters are in use."""
        if self.state_names(group) != used or not all(map(operator.is_, map(self.state.get, params), states)):
            return False
        if not used:
            return True
        now = [state[name]._data if name in state else None for state in states for name in used]
        return all(map(operator.is_, now, memory)) and len({state["step"] for state in states}) <= 1

    def _has_groups(self, groups: list[tuple[Group, list[Tensor]]]) -> bool:
        """Whether these are all its groups and their parameters."""
        if len(self.param_groups) != len(groups):
            return False
        return all(
            [
                group is known
                and len(group["params"]) == len(params)
                and all(map(operator.is_, group["params"], params))
                for group, (known, params) in zip(self.param_groups, groups, strict=True)
            ]
        )

    def state_layout(self, p: Tensor, group: Group, found: Mapping[str, tuple[int, ...]]) -> Layout:
        # A state may be left from a time when it was used: momentum that is 0 now may come back.
        names = [name for name in self._states if name in found or name in self.state_names(group)]
        return {"step": None, **{name: p.shape for name in names}}


# -- what updates are made of ---------------------------------------------------------------------------------
def full_like(param: Tensor, value: float = 0.0) -> Tensor:
    """A state before the first step."""
    return param.new_full(param.shape, value)


def penalised(param: Tensor, grad: Tensor, hyper: Mapping[str, Any]) -> Tensor:
    """The gradient of what is minimised: of minus the objective if ``maximize``, and of the L2 penalty."""
    return (-grad if hyper.get("maximize") else grad) + hyper["weight_decay"] * param


def root(mean_square: Tensor) -> Tensor:
    """sqrt, with derivative 0 at 0.

    A running mean of squares is 0 where the gradient has been 0 at every step. The direction is divided by its root
    (and eps) and is 0 there itself, so the root's share of the derivative, proportional to it, is 0. The inner where
    keeps the infinite slope of sqrt out.
    """
    moved = ops.greater(mean_square, 0.0)
    return ops.where(moved, ops.sqrt(ops.where(moved, mean_square, 1.0)), 0.0)
