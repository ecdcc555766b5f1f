"""What optimisers do to many arrays at once: updates, running averages, the norm of gradients.

In all of them ``params``, ``grads`` and the states are sequences of arrays, all of one dtype; an entry of each has
one shape. Parameters and states change in place. States that the options do not need may be left out. The options
are those of the optimiser of that name in ``torch.optim``; ``step`` is the number of this step, the first is 1.

Each raises `KernelError` for mixed dtypes, and for parameters or states that do not match their gradients or are
not C-contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gmkernels.optim import reference, spec
from gmkernels.registry import FLOATS, HALVES, Array, KernelError, register, run

Arrays = Sequence[Array]

for _spec, _reference, _cpu in (
    (spec.SGD, (30e-6, 0.2), (15e-6, 0.7)),
    (spec.ADAM, (60e-6, 0.15), (15e-6, 0.7)),
    (spec.ADAGRAD, (40e-6, 0.2), (15e-6, 0.7)),
    (spec.RMSPROP, (50e-6, 0.15), (15e-6, 0.7)),
    (spec.ADADELTA, (60e-6, 0.15), (15e-6, 0.7)),
    (spec.AVERAGE, (20e-6, 0.2), (15e-6, 0.7)),
    (spec.TOTAL_NORM, (40e-6, 0.1), (15e-6, 0.5)),
):
    register(
        _spec, "reference", getattr(reference, _spec.name),
        strided=True, overhead=_reference[0], efficiency=_reference[1],
    )  # fmt: skip
    register(
        _spec, "cpu", f"gmkernels.optim.cpu:{_spec.name}", overhead=_cpu[0], efficiency=_cpu[1], replays=True
    )  # fmt: skip
    register(_spec, "cuda", f"gmkernels.optim.cuda:{_spec.name}", dtypes=FLOATS + HALVES, efficiency=0.9)

# One launch for each array, which are usually some ten: CUDA C takes them all in one.
for _spec in (spec.SGD, spec.ADAM, spec.TOTAL_NORM):
    register(
        _spec, "triton", f"gmkernels.optim.triton:{_spec.name}",
        dtypes=FLOATS + HALVES, overhead=1e-4, efficiency=0.9,
    )  # fmt: skip


def sgd(
    params: Arrays,
    grads: Arrays,
    momentum_buffer: Arrays | None = None,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    maximize: bool = False,
    step: int,
    backend: str | None = None,
) -> None:
    """One step of stochastic gradient descent, in place.

        g <- (-g if maximize else g) + weight_decay p
        b <- momentum b + (1 - dampening) g        (b <- g at the first step)
        p <- p - lr (g + momentum b)  if nesterov, else  p - lr b;  p - lr g without momentum

    Parameters
    ----------
    params, grads : sequences of arrays of one floating dtype, in pairs of one shape; params are C-contiguous.
    momentum_buffer : b, arrays like params; needed with momentum only.
    lr : learning rate.
    momentum, dampening : weights of the decaying sum b.
    nesterov : whether to look ahead along the sum.
    weight_decay : factor of the L2 penalty's gradient.
    maximize : whether to climb instead.
    step : number of this step; 1 fills b.

    Raises
    ------
    KernelError : arrays that do not fit each other, or a state that is needed and not given.

    References
    ----------
    Sutskever, Martens, Dahl & Hinton, On the importance of initialization and momentum in deep learning, ICML 2013.
    """
    hyper = np.array([lr, momentum, dampening, nesterov, weight_decay, maximize, step], np.float64)
    outputs = (tuple(params), _state("momentum_buffer", momentum_buffer, momentum != 0, params))
    run(spec.SGD, (tuple(grads), hyper), outputs=outputs, backend=backend)


def adam(
    params: Arrays,
    grads: Arrays,
    exp_avg: Arrays,
    exp_avg_sq: Arrays,
    max_exp_avg_sq: Arrays | None = None,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    amsgrad: bool = False,
    maximize: bool = False,
    step: int,
    backend: str | None = None,
) -> None:
    """One step of Adam, or of AdamW, in place.

        g <- (-g if maximize else g) + weight_decay p          (decoupled: p <- (1 - lr weight_decay) p)
        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        p <- p - lr / (1 - beta1^t) m / (sqrt(w / (1 - beta2^t)) + eps),   w = v, or the largest v so far (amsgrad)

    Parameters
    ----------
    params, grads : sequences of arrays of one floating dtype, in pairs of one shape; params are C-contiguous.
    exp_avg, exp_avg_sq : m and v, arrays like params; zeros before the first step.
    max_exp_avg_sq : w, arrays like params; needed with amsgrad only.
    lr : learning rate.
    betas : (beta1, beta2), the decays of the two means.
    eps : added to the root.
    weight_decay : factor of the L2 penalty's gradient, or of the shrinking.
    decoupled_weight_decay : whether to shrink the parameters instead of the penalty (AdamW).
    amsgrad : whether to divide by the root of the largest v so far.
    maximize : whether to climb instead.
    step : number t of this step, from 1.

    Raises
    ------
    KernelError : arrays that do not fit each other, or a state that is needed and not given.

    References
    ----------
    Kingma & Ba, Adam: a method for stochastic optimization, ICLR 2015, Algorithm 1.
    """
    hyper = np.array([lr, *betas, eps, weight_decay, decoupled_weight_decay, amsgrad, maximize, step], np.float64)
    largest = _state("max_exp_avg_sq", max_exp_avg_sq, amsgrad, params)
    outputs = (tuple(params), tuple(exp_avg), tuple(exp_avg_sq), largest)
    run(spec.ADAM, (tuple(grads), hyper), outputs=outputs, backend=backend)


def adagrad(
    params: Arrays,
    grads: Arrays,
    sum: Arrays,
    *,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    maximize: bool = False,
    step: int,
    backend: str | None = None,
) -> None:
    """One step of Adagrad, in place.

        g <- (-g if maximize else g) + weight_decay p
        s <- s + g^2
        p <- p - lr / (1 + (t - 1) lr_decay) g / (sqrt(s) + eps)

    Parameters
    ----------
    params, grads : sequences of arrays of one floating dtype, in pairs of one shape; params are C-contiguous.
    sum : s, arrays like params.
    lr : learning rate.
    lr_decay : how fast the rate falls with the number of steps.
    eps : added to the root.
    weight_decay : factor of the L2 penalty's gradient.
    maximize : whether to climb instead.
    step : number t of this step, from 1.

    Raises
    ------
    KernelError : arrays that do not fit each other.

    References
    ----------
    Duchi, Hazan & Singer, Adaptive subgradient methods, JMLR 12, 2011.
    """
    hyper = np.array([lr, lr_decay, eps, weight_decay, maximize, step], np.float64)
    run(spec.ADAGRAD, (tuple(grads), hyper), outputs=(tuple(params), tuple(sum)), backend=backend)


def rmsprop(
    params: Arrays,
    grads: Arrays,
    square_avg: Arrays,
    grad_avg: Arrays | None = None,
    momentum_buffer: Arrays | None = None,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
    backend: str | None = None,
) -> None:
    """One step of RMSprop, in place.

        g <- (-g if maximize else g) + weight_decay p
        v <- alpha v + (1 - alpha) g^2
        m <- alpha m + (1 - alpha) g;  w = max(v - m^2, 0)  if centered, else  w = v
        b <- momentum b + g / (sqrt(w) + eps)
        p <- p - lr b

    Parameters
    ----------
    params, grads : sequences of arrays of one floating dtype, in pairs of one shape; params are C-contiguous.
    square_avg : v, arrays like params; zeros before the first step.
    grad_avg : m, likewise; needed where centered only.
    momentum_buffer : b, likewise; needed with momentum only.
    lr : learning rate.
    alpha : decay of the running means.
    eps : added to the root.
    weight_decay : factor of the L2 penalty's gradient.
    momentum : decay of the sum of the scaled gradients.
    centered : whether to scale by the running standard deviation.
    maximize : whether to climb instead.

    Raises
    ------
    KernelError : arrays that do not fit each other, or a state that is needed and not given.

    References
    ----------
    Tieleman & Hinton, Neural networks for machine learning, lecture 6.5, 2012; Graves, arXiv:1308.0850, eq. 38-45.
    """
    hyper = np.array([lr, alpha, eps, weight_decay, momentum, centered, maximize], np.float64)
    means = _state("grad_avg", grad_avg, centered, params)
    outputs = (
        tuple(params),
        tuple(square_avg),
        means,
        _state("momentum_buffer", momentum_buffer, momentum != 0, params),
    )
    run(spec.RMSPROP, (tuple(grads), hyper), outputs=outputs, backend=backend)


def adadelta(
    params: Arrays,
    grads: Arrays,
    square_avg: Arrays,
    acc_delta: Arrays,
    *,
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    maximize: bool = False,
    backend: str | None = None,
) -> None:
    """One step of Adadelta, in place.

        g <- (-g if maximize else g) + weight_decay p
        v <- rho v + (1 - rho) g^2
        d = sqrt(u + eps) / sqrt(v + eps) g
        u <- rho u + (1 - rho) d^2
        p <- p - lr d

    Parameters
    ----------
    params, grads : sequences of arrays of one floating dtype, in pairs of one shape; params are C-contiguous.
    square_avg, acc_delta : v and u, arrays like params; zeros before the first step.
    lr : factor on the step.
    rho : decay of the running means.
    eps : added inside the roots.
    weight_decay : factor of the L2 penalty's gradient.
    maximize : whether to climb instead.

    Raises
    ------
    KernelError : arrays that do not fit each other.

    References
    ----------
    Zeiler, ADADELTA: an adaptive learning rate method, arXiv:1212.5701, Algorithm 1.
    """
    hyper = np.array([lr, rho, eps, weight_decay, maximize], np.float64)
    outputs = (tuple(params), tuple(square_avg), tuple(acc_delta))
    run(spec.ADADELTA, (tuple(grads), hyper), outputs=outputs, backend=backend)


def average(averages: Arrays, params: Arrays, *, decay: float, backend: str | None = None) -> None:
    """Move running averages towards the parameters, in place: ``a += (1 - decay) (p - a)``.

    Parameters
    ----------
    averages, params : sequences of arrays of one floating dtype, in pairs of one shape; averages are C-contiguous.
    decay : in [0, 1].

    Raises
    ------
    KernelError : arrays that do not fit each other, or a `decay` outside [0, 1].
    """
    if not 0 <= decay <= 1:
        raise KernelError(f"average: expected a decay in [0, 1], got {decay!r}")
    run(spec.AVERAGE, (tuple(params), np.array([decay], np.float64)), outputs=(tuple(averages),), backend=backend)


def total_norm(grads: Arrays, *, norm_type: float = 2.0, backend: str | None = None) -> Array:
    """The norm of all elements of all gradients together, accumulated and returned in float64.

    Parameters
    ----------
    norm_type : a positive number, or inf for the largest magnitude
    grads : arrays of one floating dtype, of any shapes

    Returns
    -------
    () float64, 0 for no elements

    Raises
    ------
    KernelError : mixed dtypes, or a `norm_type` that is not positive.
    """
    return run(spec.TOTAL_NORM, (tuple(grads),), {"norm_type": float(norm_type)}, backend=backend)[0]


def _state(name: str, arrays: Arrays | None, used: bool, params: Arrays) -> tuple[Array, ...]:
    """The arrays of a state. Where it is not used, the parameters may stand in for them: nothing touches them."""
    if arrays is None and used:
        raise KernelError(f"{name} is needed with these options")
    return tuple(params if arrays is None else arrays)
