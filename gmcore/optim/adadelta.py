"""Adadelta."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gmcore import ops
from gmcore.optim.fused import FusedOptimizer, full_like, penalised
from gmcore.optim.optimizer import Group, State
from gmcore.tensor import Tensor
from gmkernels.optim import spec


class Adadelta(FusedOptimizer):
    """Steps along the gradient, scaled by the ratio of the running roots of the squares of steps and gradients.

        g <- (-g if maximize else g) + weight_decay p
        v <- rho v + (1 - rho) g^2
        d = sqrt(u + eps) / sqrt(v + eps) g
        u <- rho u + (1 - rho) d^2
        p <- p - lr d

    Parameters
    ----------
    params : tensors, or parameter groups (see `Optimizer`).
    lr : factor on the step.
    rho : decay of the running means, in [0, 1).
    eps : added inside the roots.
    weight_decay : factor of the L2 penalty's gradient.
    maximize : climb instead.
    foreach, capturable, differentiable : as for `SGD`.

    Raises
    ------
    ArgumentError : a hyperparameter outside its range, or one that is not supported, by name; and what `Optimizer`
        raises.

    Notes
    -----
    State of a parameter: ``step``, ``square_avg`` (v), ``acc_delta`` (u).

    References
    ----------
    Zeiler, ADADELTA: an adaptive learning rate method, arXiv:1212.5701, Algorithm 1.
    """

    kernel = spec.ADADELTA

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        self._refuse_ways(foreach=foreach, capturable=capturable, differentiable=differentiable)
        values = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, values)

    def check_group(self, group: Group) -> None:
        self._check_numbers(group, "lr", "eps", "weight_decay")
        self._check_number("rho", group["rho"], below=1.0)

    def hyper(self, group: Group, step: int) -> list[float]:
        return [group[name] for name in ("lr", "rho", "eps", "weight_decay", "maximize")]

    @staticmethod
    def update(param: Tensor, grad: Tensor, state: State, hyper: Mapping[str, Any]) -> tuple[Tensor, State]:
        rho, eps = hyper["rho"], hyper["eps"]
        g = penalised(param, grad, hyper)
        v = rho * state.get("square_avg", full_like(param)) + (1.0 - rho) * ops.square(g)
        u = state.get("acc_delta", full_like(param))
        d = ops.sqrt(u + eps) / ops.sqrt(v + eps) * g
        u = rho * u + (1.0 - rho) * ops.square(d)
        return param - hyper["lr"] * d, {"step": state.get("step", 0) + 1, "square_avg": v, "acc_delta": u}
