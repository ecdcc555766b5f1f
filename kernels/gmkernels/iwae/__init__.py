"""The importance-weighted bound of Burda, Grosse & Salakhutdinov (ICLR 2016), and its gradient."""

from __future__ import annotations

from gmkernels.iwae import reference, spec
from gmkernels.registry import FLOATS, HALVES, Array, register, run

for _spec in (spec.IWAE_BOUND, spec.IWAE_BOUND_BACKWARD):
    register(_spec, "reference", getattr(reference, _spec.name), overhead=2e-5, efficiency=0.1)
    register(_spec, "cpu", f"gmkernels.iwae.cpu:{_spec.name}", overhead=2e-5, efficiency=0.6, replays=True)
    register(_spec, "cuda", f"gmkernels.iwae.cuda:{_spec.name}", dtypes=FLOATS + HALVES, efficiency=0.9)
    register(_spec, "triton", f"gmkernels.iwae.triton:{_spec.name}", dtypes=FLOATS + HALVES, efficiency=0.9)


def iwae_bound(log_w: Array, *, axis: int = 0, backend: str | None = None) -> tuple[Array, Array, Array]:
    """The importance-weighted bound, and what the weights are computed from.

        bound = logsumexp_k(log_w_k) - log K,    highest = max_k log_w_k,    scale = 1 / sum_k exp(log_w_k - highest)

    The normalised weights are ``scale * exp(log_w - highest)``: `iwae_bound_backward` of a gradient of ones.

    Parameters
    ----------
    log_w : log importance weights log p(x, z_k) - log q(z_k | x), float32 or float64, at least 1-d
    axis : the axis of the K samples

    Returns
    -------
    bound, highest, scale : the shape of log_w without the axis

    Raises
    ------
    KernelError : a dtype that is not floating, an axis that log_w does not have, or K = 0.

    Notes
    -----
    The weight of log_w = -inf is 0. If all are -inf, bound is -inf and scale is 0. If some are +inf, bound is +inf
    and these share the weight evenly: the difference of equal infinities counts as 0. A NaN among the samples makes
    all three NaN.

    References
    ----------
    Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, ICLR 2016, eq. 8.
    """
    bound, highest, scale = run(spec.IWAE_BOUND, (log_w,), {"axis": axis}, backend=backend)
    return bound, highest, scale


def iwae_bound_backward(
    g_bound: Array, log_w: Array, highest: Array, scale: Array, *, axis: int = 0, backend: str | None = None
) -> Array:
    """Gradient of the bound with respect to log_w: g_bound times the normalised weights.

        d_log_w_k = g_bound scale exp(log_w_k - highest)

    Parameters
    ----------
    g_bound : gradient with respect to the bound, the shape of log_w without the axis
    log_w : as given to `iwae_bound`
    highest, scale : as `iwae_bound` returns them
    axis : the axis of the samples

    Returns
    -------
    The gradient with respect to log_w, in its shape.

    Raises
    ------
    KernelError : shapes or dtypes that do not fit, or no samples.

    References
    ----------
    Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, ICLR 2016, eq. 13 and 14.
    """
    return run(spec.IWAE_BOUND_BACKWARD, (g_bound, log_w, highest, scale), {"axis": axis}, backend=backend)[0]
