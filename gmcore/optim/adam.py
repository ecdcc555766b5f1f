"""Adam."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gmcore import ops
from gmcore.errors import ArgumentError
from gmcore.optim.optimizer import Group, Optimizer, State
from gmcore.tensor import Tensor
from gmkernels.dense import spec


class Adam(Optimizer):
    """Steps along the running mean of the gradient, scaled by the root of the running mean of its square.

        g <- g + weight_decay p
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        p <- p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)

    Parameters
    ----------
    params : tensors, or parameter groups (see `Optimizer`).
    lr : learning rate.
    betas : decay of the two means, in [0, 1).
    eps : added to the root.
    weight_decay : factor of the L2 penalty's gradient.
    foreach, fused : how PyTorch computes it; here one kernel updates a whole group, so ``fused=True`` changes nothing
        and what would ask for another way is refused.

    Raises
    ------
    ArgumentError : a hyperparameter outside its range, or one that is not supported (amsgrad, maximize, capturable,
        differentiable, decoupled_weight_decay, foreach), by name; and what `Optimizer` raises.

    Notes
    -----
    State of a parameter: ``step``, ``exp_avg`` (m), ``exp_avg_sq`` (v).

    References
    ----------
    Kingma & Ba, Adam: a method for stochastic optimization, ICLR 2015, Algorithm 1.
    """

    kernel = spec.ADAM

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        self._refuse("amsgrad", amsgrad, "the plain running mean of squares is used, leave it out")
        self._refuse("maximize", maximize, "minimise the negative objective")
        self._refuse("capturable", capturable, "leave it out")
        self._refuse("differentiable", differentiable, "use Adam.update, which is made of operations")
        self._refuse("decoupled_weight_decay", decoupled_weight_decay, "weight_decay adds an L2 penalty, leave it out")
        self._refuse("foreach", foreach, "one fused kernel updates all parameters, leave it out", (None,))
        self._refuse("fused", fused, "one fused kernel updates all parameters, leave it out", (None, True))
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def check_group(self, group: Group) -> None:
        for name in ("lr", "eps", "weight_decay"):
            self._check_number(name, group[name])
        betas = group["betas"]
        if not (isinstance(betas, (tuple, list)) and len(betas) == 2):
            raise ArgumentError(f"Adam: betas must be two numbers in [0, 1), got {betas!r}")
        for i, beta in enumerate(betas):
            self._check_number(f"betas[{i}]", beta, below=1.0)

    def hyper(self, group: Group, step: int) -> list[float]:
        return [group["lr"], *group["betas"], group["eps"], group["weight_decay"], step]

    @staticmethod
    def update(param: Tensor, grad: Tensor, state: State, hyper: Mapping[str, Any]) -> tuple[Tensor, State]:
        zeros = Tensor(np.zeros(param.shape, param.dtype))
        beta1, beta2 = hyper["betas"]
        t = state.get("step", 0) + 1
        g = grad + hyper["weight_decay"] * param
        m = beta1 * state.get("exp_avg", zeros) + (1.0 - beta1) * g
        v = beta2 * state.get("exp_avg_sq", zeros) + (1.0 - beta2) * ops.square(g)
        # sqrt has no derivative at v = 0, where g has been 0 at every step and so is m: the root's share of the
        # derivative, proportional to m, is 0 there. The inner where keeps its infinity out.
        moved = ops.greater(v, 0.0)
        root = ops.where(moved, ops.sqrt(ops.where(moved, v / (1.0 - beta2**t), 1.0)), 0.0)
        new_param = param - hyper["lr"] / (1.0 - beta1**t) * m / (root + hyper["eps"])
        return new_param, {"step": t, "exp_avg": m, "exp_avg_sq": v}
