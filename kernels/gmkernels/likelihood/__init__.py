"""Log-likelihoods p(x | logits) summed over the last axis, and their gradients."""

from __future__ import annotations

from gmkernels.likelihood import reference, spec
from gmkernels.registry import Array, register, run

for _spec in (spec.BERNOULLI_LOG_PROB, spec.BERNOULLI_LOG_PROB_BACKWARD):
    register(_spec, "reference", getattr(reference, _spec.name), overhead=2e-5, efficiency=0.1)
    register(_spec, "cpu", f"gmkernels.likelihood.cpu:{_spec.name}", overhead=2e-5, efficiency=0.6)


def bernoulli_log_prob(logits: Array, x: Array, *, backend: str | None = None) -> Array:
    """Log-probability of x under independent Bernoulli variables, summed over the last axis.

        log p(x) = sum_i x_i l_i - log(1 + exp(l_i))

    Parameters
    ----------
    logits : (..., n) float32 or float64
    x : values in [0, 1] of the same dtype, in the shape of logits or of its trailing axes: logits
        (k, batch, n) go with x (batch, n)

    Returns
    -------
    (...,), the shape of logits without its last axis

    Raises
    ------
    KernelError : shapes or dtypes that do not fit.

    Notes
    -----
    An infinite logit has probability 0 or 1: the term is 0 where x agrees with it, and -inf where not.
    """
    return run(spec.BERNOULLI_LOG_PROB, (logits, x), backend=backend)[0]


def bernoulli_log_prob_backward(g: Array, logits: Array, x: Array, *, backend: str | None = None) -> Array:
    """Gradient of `bernoulli_log_prob` with respect to the logits: ``g[..., None] * (x - sigmoid(logits))``.

    Parameters
    ----------
    g : (...,) gradient with respect to the log-probabilities
    logits : (..., n)
    x : the shape of logits or of its trailing axes

    Returns
    -------
    (..., n)

    Raises
    ------
    KernelError : shapes or dtypes that do not fit.
    """
    return run(spec.BERNOULLI_LOG_PROB_BACKWARD, (g, logits, x), backend=backend)[0]
