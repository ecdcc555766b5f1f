"""RMSprop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gmcore import ops
from gmcore.optim.fused import FusedOptimizer, full_like, penalised, root
from gmcore.optim.optimizer import Group, State
from gmcore.tensor import Tensor
from gmkernels.optim import spec


class RMSprop(FusedOptimizer):
    """Steps along the gradient, scaled by the root of the running mean of its square.

        g <- (-g if maximize else g) + weight_decay p
        v <- alpha v + (1 - alpha) g^2
        m <- alpha m + (1 - alpha) g;  w = max(v - m^2, 0)  if centered, else  w = v
        b <- momentum b + g / (sqrt(w) + eps)
        p <- p - lr b

    Parameters
    ----------
    params : tensors, or parameter groups (see `Optimizer`).
    lr : learning rate.
    alpha : decay of the running means.
    eps : added to the root, outside it.
    weight_decay : factor of the L2 penalty's gradient.
    momentum : decay of the sum of the scaled gradients.
    centered : scale by the running standard deviation.
    maximize : climb instead.
    capturable, foreach, differentiable : as for `SGD`.

    Raises
    ------
    ArgumentError : a hyperparameter outside its range, or one that is not supported, by name; and what `Optimizer`
        raises.

    Notes
    -----
    State of a parameter: ``step``, ``square_avg`` (v), where centered ``grad_avg`` (m), with momentum
    ``momentum_buffer`` (b). The variance v - m^2 is never negative but for rounding, which PyTorch turns into NaN.

    References
    ----------
    Tieleman & Hinton, Neural networks for machine learning, lecture 6.5, 2012. Graves, Generating sequences with
    recurrent neural networks, arXiv:1308.0850, eq. 38-45 (centered; eps is inside the root there).
    """

    kernel = spec.RMSPROP

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        self._refuse_ways(capturable=capturable, foreach=foreach, differentiable=differentiable)
        values = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, {**values, "centered": centered, "maximize": maximize})

    def check_group(self, group: Group) -> None:
        self._check_numbers(group, "lr", "eps", "weight_decay", "momentum")
        self._check_number("alpha", group["alpha"], below=1.0)

    def state_names(self, group: Group) -> tuple[str, ...]:
        used = {"square_avg": True, "grad_avg": group["centered"], "momentum_buffer": group["momentum"] != 0}
        return tuple([name for name in self._states if used[name]])

    def hyper(self, group: Group, step: int) -> list[float]:
        return [group[name] for name in ("lr", "alpha", "eps", "weight_decay", "momentum", "centered", "maximize")]

    @staticmethod
    def update(param: Tensor, grad: Tensor, state: State, hyper: Mapping[str, Any]) -> tuple[Tensor, State]:
        alpha, momentum = hyper["alpha"], hyper["momentum"]
        g = penalised(param, grad, hyper)
        v = alpha * state.get("square_avg", full_like(param)) + (1.0 - alpha) * ops.square(g)
        new = {"step": state.get("step", 0) + 1, "square_avg": v}
        if hyper.get("centered"):
            m = alpha * state.get("grad_avg", full_like(param)) + (1.0 - alpha) * g
            new["grad_avg"] = m
            v = v - ops.square(m)  # the root of what rounds below 0 is 0
        direction = g / (root(v) + hyper["eps"])
        if isinstance(momentum, Tensor) or momentum != 0:
            direction = momentum * state.get("momentum_buffer", full_like(param)) + direction
            new["momentum_buffer"] = direction
        return param - hyper["lr"] * direction, new
