"""The importance-weighted bound of Burda, Grosse & Salakhutdinov (ICLR 2016), and its gradient."""

from __future__ import annotations

from gmkernels.iwae import reference, spec
from gmkernels.registry import Array, register, run

for _spec in (spec.IWAE_BOUND, spec.IWAE_BOUND_BACKWARD):
    register(_spec, "reference", getattr(reference, _spec.name), overhead=2e-5, efficiency=0.1)
    register(_spec, "cpu", f"gmkernels.iwae.cpu:{_spec.name}", overhead=2e-5, efficiency=0.6)


def iwae_bound(log_w: Array, *, axis: int = 0, backend: str | None = None) -> tuple[Array, Array, Array]:
    """The importance-weighted bound, the normalised weights, and the effective sample size.

        bound = logsumexp_k(log_w_k) - log K,    weights = softmax_k(log_w),    ess = 1 / sum_k weights_k^2

    Parameters
    ----------
    log_w : log importance weights log p(x, z_k) - log q(z_k | x), float32 or float64, at least 1-d
    axis : the axis of the K samples

    Returns
    -------
    bound : the shape of log_w without the axis
    weights : the shape of log_w
    ess : the shape of bound; between 1 and K

    Raises
    ------
    KernelError : a dtype that is not floating, an axis that log_w does not have, or K = 0.

    Notes
    -----
    A weight is 0 where log_w = -inf. If all are -inf, bound is -inf and weights and ess are 0. If some are
    +inf, bound is +inf and these share the weight evenly. A NaN among the samples makes all three NaN.

    References
    ----------
    Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, ICLR 2016, eq. 8 and 14.
    """
    bound, weights, ess = run(spec.IWAE_BOUND, (log_w,), {"axis": axis}, backend=backend)
    return bound, weights, ess


def iwae_bound_backward(g_bound: Array, weights: Array, *, axis: int = 0, backend: str | None = None) -> Array:
    """Gradient of the bound with respect to log_w: ``g_bound * weights``.

    Parameters
    ----------
    g_bound : gradient with respect to the bound, the shape of weights without the axis
    weights : normalised weights, as `iwae_bound` returns them
    axis : the axis of the samples

    Returns
    -------
    The gradient with respect to log_w, in the shape of weights.

    Raises
    ------
    KernelError : shapes or dtypes that do not fit, or no samples.

    References
    ----------
    Burda, Grosse & Salakhutdinov, Importance Weighted Autoencoders, ICLR 2016, eq. 13.
    """
    return run(spec.IWAE_BOUND_BACKWARD, (g_bound, weights), {"axis": axis}, backend=backend)[0]
