"""Adagrad."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gmcore import ops
from gmcore.optim.fused import FusedOptimizer, full_like, penalised, root
from gmcore.optim.optimizer import Group, State
from gmcore.tensor import Tensor
from gmkernels.optim import spec


class Adagrad(FusedOptimizer):
    """Steps along the gradient, scaled by the root of the sum of its squares so far.

        g <- (-g if maximize else g) + weight_decay p
        s <- s + g^2                                          (initial_accumulator_value at first)
        p <- p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)

    Parameters
    ----------
    params : tensors, or parameter groups (see `Optimizer`).
    lr : learning rate.
    lr_decay : how fast the rate falls with the number of steps t.
    weight_decay : factor of the L2 penalty's gradient.
    initial_accumulator_value : s before the first step.
    eps : added to the root, outside it.
    maximize : climb instead.
    foreach, differentiable, fused : as for `SGD`.

    Raises
    ------
    ArgumentError : a hyperparameter outside its range, or one that is not supported, by name; and what `Optimizer`
        raises.

    Notes
    -----
    State of a parameter: ``step`` and ``sum`` (s).

    References
    ----------
    Duchi, Hazan & Singer, Adaptive subgradient methods for online learning and stochastic optimization, JMLR 12, 2011.
    """

    kernel = spec.ADAGRAD

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        self._refuse_ways(foreach=foreach, differentiable=differentiable, fused=fused)
        values = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps, "maximize": maximize}
        super().__init__(params, {**values, "initial_accumulator_value": initial_accumulator_value})

    def check_group(self, group: Group) -> None:
        self._check_numbers(group, "lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")

    def initial(self, name: str, group: Group) -> float:
        return group["initial_accumulator_value"]

    def hyper(self, group: Group, step: int) -> list[float]:
        return [*[group[name] for name in ("lr", "lr_decay", "eps", "weight_decay", "maximize")], step]

    @staticmethod
    def update(param: Tensor, grad: Tensor, state: State, hyper: Mapping[str, Any]) -> tuple[Tensor, State]:
        t = state.get("step", 0) + 1
        g = penalised(param, grad, hyper)
        s = (state["sum"] if state else full_like(param, hyper["initial_accumulator_value"])) + ops.square(g)
        rate = hyper["lr"] / (1.0 + (t - 1.0) * hyper["lr_decay"])
        return param - rate * g / (root(s) + hyper["eps"]), {"step": t, "sum": s}
