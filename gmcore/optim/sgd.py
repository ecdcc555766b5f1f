"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gmcore.errors import ArgumentError
from gmcore.optim.fused import FusedOptimizer, penalised
from gmcore.optim.optimizer import Group, State
from gmcore.tensor import Tensor
from gmkernels.optim import spec


class SGD(FusedOptimizer):
    """Steps along the gradient, or along its decaying sum.

        g <- (-g if maximize else g) + weight_decay p
        b <- momentum b + (1 - dampening) g        (b <- g at the first step)
        p <- p - lr (g + momentum b)  if nesterov, else  p - lr b;  p - lr g without momentum

    Parameters
    ----------
    params : tensors, or parameter groups (see `Optimizer`).
    lr : learning rate.
    momentum, dampening : weights of the decaying sum.
    weight_decay : factor of the L2 penalty's gradient.
    nesterov : look ahead along the sum; needs momentum, and no dampening.
    maximize : climb instead.
    foreach, differentiable, fused : how PyTorch computes it; here one kernel updates a whole group, so ``fused=True``
        changes nothing and what would ask for another way is refused.

    Raises
    ------
    ArgumentError : a hyperparameter outside its range, or one that is not supported, by name; and what `Optimizer`
        raises.

    Notes
    -----
    State of a parameter with momentum: ``step`` and ``momentum_buffer`` (b); without, none.

    References
    ----------
    Sutskever, Martens, Dahl & Hinton, On the importance of initialization and momentum in deep learning, ICML 2013.
    """

    kernel = spec.SGD

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        self._refuse_ways(foreach=foreach, differentiable=differentiable, fused=fused)
        values = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, {**values, "nesterov": nesterov, "maximize": maximize})

    def check_group(self, group: Group) -> None:
        self._check_numbers(group, "lr", "momentum", "dampening", "weight_decay")
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ArgumentError(
                f"SGD: nesterov needs a positive momentum and no dampening, got momentum={group['momentum']!r}, "
                f"dampening={group['dampening']!r}"
            )

    def state_names(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def hyper(self, group: Group, step: int) -> list[float]:
        names = ("lr", "momentum", "dampening", "nesterov", "weight_decay", "maximize")
        return [*[group[name] for name in names], step]

    @staticmethod
    def update(param: Tensor, grad: Tensor, state: State, hyper: Mapping[str, Any]) -> tuple[Tensor, State]:
        momentum = hyper["momentum"]
        g = penalised(param, grad, hyper)
        if not isinstance(momentum, Tensor) and momentum == 0:
            return param - hyper["lr"] * g, state
        b = momentum * state["momentum_buffer"] + (1.0 - hyper["dampening"]) * g if state else g
        direction = g + momentum * b if hyper.get("nesterov") else b
        return param - hyper["lr"] * direction, {"step": state.get("step", 0) + 1, "momentum_buffer": b}
