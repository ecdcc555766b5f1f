"""Log-likelihoods p(x | logits) summed over the last axis, and their gradients."""

from __future__ import annotations

from gmkernels import blas
from gmkernels.likelihood import reference, spec
from gmkernels.registry import FLOATS, HALVES, Array, Signature, register, run

for _spec in (spec.BERNOULLI_LOG_PROB, spec.BERNOULLI_LOG_PROB_BACKWARD):
    register(_spec, "reference", getattr(reference, _spec.name), overhead=2e-5, efficiency=0.1)
    register(_spec, "cpu", f"gmkernels.likelihood.cpu:{_spec.name}", overhead=2e-5, efficiency=0.6, replays=True)
    register(_spec, "cuda", f"gmkernels.likelihood.cuda:{_spec.name}", dtypes=FLOATS + HALVES, efficiency=0.9)
    register(
        _spec, "triton", f"gmkernels.likelihood.triton:{_spec.name}",
        dtypes=FLOATS + HALVES, overhead=1e-5, efficiency=0.85,
    )  # fmt: skip


def _needs_blas(signature: Signature) -> str | None:
    return blas.available()


_FUSED = (spec.LINEAR_BERNOULLI_LOG_PROB, spec.LINEAR_BERNOULLI_LOG_PROB_BACKWARD)
for _spec in (*_FUSED, spec.LINEAR_BERNOULLI_RESIDUAL, spec.LINEAR_BERNOULLI_RESIDUAL_BACKWARD):
    register(_spec, "reference", getattr(reference, _spec.name), overhead=5e-5, efficiency=0.1)
    _with_blas = _spec is not spec.LINEAR_BERNOULLI_LOG_PROB
    register(
        _spec, "cpu", f"gmkernels.likelihood.cpu:{_spec.name}", overhead=3e-5, efficiency=0.6, replays=True,
        accepts=_needs_blas if _with_blas else None, note=blas.note if _with_blas else None,
    )  # fmt: skip
for _spec in _FUSED:
    # Triton multiplies float32 on tensor cores (see `gmkernels.dense.triton`), which the cost model takes for fma.
    register(
        _spec, "cuda", f"gmkernels.likelihood.cuda:{_spec.name}",
        dtypes=FLOATS + HALVES, overhead=1e-5, efficiency=0.5,
    )  # fmt: skip
    register(
        _spec, "triton", f"gmkernels.likelihood.triton:{_spec.name}",
        dtypes=FLOATS + HALVES, overhead=1e-5, efficiency=0.6,
    )  # fmt: skip


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


def linear_bernoulli_log_prob(h: Array, weight: Array, bias: Array, x: Array, *, backend: str | None = None) -> Array:
    """`bernoulli_log_prob` of the logits ``h @ weight.T + bias``, which are never stored.

        log p(x) = sum_i x_i l_i - log(1 + exp(l_i))

    Parameters
    ----------
    h : (..., in) float32 or float64, on a GPU also float16 or bfloat16
    weight : (out, in), as in ``torch.nn.functional.linear``
    bias : (out,)
    x : values in [0, 1], (..., out) or of the trailing axes of that: h (k, batch, in) goes with x (batch, out)

    Returns
    -------
    log_prob : (...,)

    Raises
    ------
    KernelError : shapes or dtypes that do not fit.
    """
    return run(spec.LINEAR_BERNOULLI_LOG_PROB, (h, weight, bias, x), backend=backend)[0]


def linear_bernoulli_log_prob_backward(
    g: Array, h: Array, weight: Array, bias: Array, x: Array, *, backend: str | None = None
) -> tuple[Array, Array, Array]:
    """Gradients of the log-probability that `linear_bernoulli_log_prob` gives; the logits are made again.

    Parameters
    ----------
    g : (...,) gradient with respect to the log-probabilities
    h, weight, bias, x : of the forward pass

    Returns
    -------
    d_h : (..., in);  d_weight : (out, in);  d_bias : (out,)

    Raises
    ------
    KernelError : shapes or dtypes that do not fit.
    """
    d_h, d_weight, d_bias = run(spec.LINEAR_BERNOULLI_LOG_PROB_BACKWARD, (g, h, weight, bias, x), backend=backend)
    return d_h, d_weight, d_bias


def linear_bernoulli_residual(
    h: Array, weight: Array, bias: Array, x: Array, *, backend: str | None = None
) -> tuple[Array, Array]:
    """`linear_bernoulli_log_prob`, and its gradient with respect to the logits: for a backward pass that is quicker.

    Parameters
    ----------
    h, weight, bias, x : as for `linear_bernoulli_log_prob`

    Returns
    -------
    log_prob : (...,)
    residual : (..., out), x - sigmoid(l)

    Raises
    ------
    KernelError : shapes or dtypes that do not fit.
    """
    log_prob, residual = run(spec.LINEAR_BERNOULLI_RESIDUAL, (h, weight, bias, x), backend=backend)
    return log_prob, residual


def linear_bernoulli_residual_backward(
    g: Array, residual: Array, h: Array, weight: Array, *, backend: str | None = None
) -> tuple[Array, Array, Array]:
    """Gradients of the log-probability that `linear_bernoulli_residual` gives.

    Parameters
    ----------
    g : (...,) gradient with respect to the log-probabilities
    residual : (..., out), of the forward pass
    h : (..., in)
    weight : (out, in)

    Returns
    -------
    d_h : (..., in);  d_weight : (out, in);  d_bias : (out,)

    Raises
    ------
    KernelError : shapes or dtypes that do not fit.
    """
    d_h, d_weight, d_bias = run(spec.LINEAR_BERNOULLI_RESIDUAL_BACKWARD, (g, residual, h, weight), backend=backend)
    return d_h, d_weight, d_bias
