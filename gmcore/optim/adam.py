"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gmcore import ops
from gmcore.errors import ArgumentError
from gmcore.optim.fused import FusedOptimizer, full_like, penalised, root
from gmcore.optim.optimizer import Group, State
from gmcore.tensor import Tensor
from gmkernels.optim import spec


class Adam(FusedOptimizer):
    """Steps along the running mean of the gradient, scaled by the root of the running mean of its square.

        g <- (-g if maximize else g) + weight_decay p
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        p <- p - lr / (1 - beta1^t) m / (sqrt(w / (1 - beta2^t)) + eps)

    with w = v, or the largest v so far (amsgrad). eps is added to the root of the corrected mean, outside it, as in
    the paper's Algorithm 1; the variant at the end of its section 2 (eps-hat, in released code of some papers) adds
    eps sqrt(1 - beta2^t) instead, which agrees after the first few 1 / (1 - beta2) steps.

    Parameters
    ----------
    params : tensors, or parameter groups (see `Optimizer`).
    lr : learning rate.
    betas : decay of the two means, in [0, 1).
    eps : added to the root.
    weight_decay : factor of the L2 penalty's gradient.
    amsgrad : divide by the root of the largest v so far.
    maximize : climb instead.
    decoupled_weight_decay : shrink the parameter, ``p <- (1 - lr weight_decay) p``, instead of the penalty (AdamW).
    foreach, capturable, differentiable, fused : as for `SGD`.

    Raises
    ------
    ArgumentError : a hyperparameter outside its range, or one that is not supported, by name; and what `Optimizer`
        raises.

    Notes
    -----
    State of a parameter: ``step``, ``exp_avg`` (m), ``exp_avg_sq`` (v), with amsgrad ``max_exp_avg_sq`` (w). A state
    may be set before the first step: the released code of the IWAE starts at v = 1, with beta1 = 0.99, eps = 1e-4:
    ``optimizer.state[p] = {"step": 0, "exp_avg_sq": gmcore.tensor(np.ones(p.shape, p.dtype))}``.

    References
    ----------
    Kingma & Ba, Adam: a method for stochastic optimization, ICLR 2015, Algorithm 1. Reddi, Kale & Kumar, On the
    convergence of Adam and beyond, ICLR 2018, Algorithm 2 (with Adam's corrections, as in PyTorch).
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
        self._refuse_ways(foreach=foreach, capturable=capturable, differentiable=differentiable, fused=fused)
        values = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        values |= {"maximize": maximize, "decoupled_weight_decay": decoupled_weight_decay}
        super().__init__(params, values)

    def check_group(self, group: Group) -> None:
        self._check_numbers(group, "lr", "eps", "weight_decay")
        betas = group["betas"]
        if not (isinstance(betas, (tuple, list)) and len(betas) == 2):
            raise ArgumentError(f"{type(self).__name__}: betas must be two numbers in [0, 1), got {betas!r}")
        for i, beta in enumerate(betas):
            self._check_number(f"betas[{i}]", beta, below=1.0)

    def state_names(self, group: Group) -> tuple[str, ...]:
        return self._states if group["amsgrad"] else self._states[:2]

    def hyper(self, group: Group, step: int) -> list[float]:
        flags = [group[name] for name in ("decoupled_weight_decay", "amsgrad", "maximize")]
        return [group["lr"], *group["betas"], group["eps"], group["weight_decay"], *flags, step]

    @staticmethod
    def update(param: Tensor, grad: Tensor, state: State, hyper: Mapping[str, Any]) -> tuple[Tensor, State]:
        beta1, beta2 = hyper["betas"]
        t = state.get("step", 0) + 1
        if hyper.get("decoupled_weight_decay"):
            param = (1.0 - hyper["lr"] * hyper["weight_decay"]) * param
            g = -grad if hyper.get("maximize") else grad
        else:
            g = penalised(param, grad, hyper)
        m = beta1 * state.get("exp_avg", full_like(param)) + (1.0 - beta1) * g
        v = beta2 * state.get("exp_avg_sq", full_like(param)) + (1.0 - beta2) * ops.square(g)
        new = {"step": t, "exp_avg": m, "exp_avg_sq": v}
        if hyper.get("amsgrad"):
            new["max_exp_avg_sq"] = ops.maximum(state.get("max_exp_avg_sq", full_like(param)), v)
        w = new.get("max_exp_avg_sq", v)
        return param - hyper["lr"] / (1.0 - beta1**t) * m / (root(w / (1.0 - beta2**t)) + hyper["eps"]), new


class AdamW(Adam):
    """Adam with weight decay decoupled from the gradient: ``p <- (1 - lr weight_decay) p`` before the step.

    Parameters
    ----------
    params, lr, betas, eps, amsgrad, maximize, foreach, capturable, differentiable, fused : as for `Adam`.
    weight_decay : the share of the parameter, per unit of `lr`, that a step takes away.

    Raises
    ------
    ArgumentError : as `Adam`.

    References
    ----------
    Loshchilov & Hutter, Decoupled weight decay regularization, ICLR 2019, Algorithm 2 (the schedule's factor in lr).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize, capturable=capturable,
            differentiable=differentiable, fused=fused, decoupled_weight_decay=True,
        )  # fmt: skip
