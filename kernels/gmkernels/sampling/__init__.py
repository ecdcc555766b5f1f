"""Sampling with its gradients: Gaussian (with KL and log density in the same pass), Bernoulli, and dropout.

Noise is a draw of the random stream of `gmkernels.rng` and is not stored: the backward pass draws it again
from the same key.
"""

from __future__ import annotations

from typing import Any

from gmkernels.registry import FLOATS, HALVES, register, run
from gmkernels.rng import as_key
from gmkernels.sampling import reference, spec

__all__ = ["bernoulli_sample", "bernoulli_sample_logits", "dropout", "gaussian_sample", "gaussian_sample_backward"]

for _spec in (
    spec.GAUSSIAN_SAMPLE,
    spec.GAUSSIAN_SAMPLE_BACKWARD,
    spec.BERNOULLI_SAMPLE,
    spec.BERNOULLI_SAMPLE_LOGITS,
    spec.DROPOUT,
):
    register(_spec, "reference", getattr(reference, _spec.name), overhead=3e-4, efficiency=0.02)
    register(_spec, "cpu", f"gmkernels.sampling.cpu:{_spec.name}", replays=True)
    register(_spec, "cuda", f"gmkernels.sampling.cuda:{_spec.name}", dtypes=FLOATS + HALVES, efficiency=0.9)
    register(_spec, "triton", f"gmkernels.sampling.triton:{_spec.name}", dtypes=FLOATS + HALVES, efficiency=0.9)


def gaussian_sample(
    mu: Any, logvar: Any, *, key: Any, samples: int | None = None, backend: str | None = None
) -> tuple[Any, Any, Any]:
    """Reparametrised sample of N(mu, exp logvar), its KL from the standard normal, and its log density.

    Parameters
    ----------
    mu, logvar : (..., D) float32 or float64, of one shape and dtype.
    key : uint64 array (seed, draw, offset), or a tuple (seed, draw[, offset]).
    samples : number of samples along a new leading axis; None for one without that axis.
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    z : (..., D), or (samples, ..., D): mu + exp(logvar / 2) eps, with eps in the C order of z.
    kl : (...): KL(N(mu, exp logvar) || N(0, 1)) = 1/2 sum(exp logvar + mu^2 - 1 - logvar).
    log_q : (...), or (samples, ...): log N(z; mu, exp logvar) = -1/2 sum(log 2 pi + logvar + eps^2).

    Notes
    -----
    Kingma & Welling, Auto-encoding variational Bayes (ICLR 2014), section 2.4 and appendix B.

    Raises
    ------
    KernelError : shapes or dtypes that do not fit.
    """
    return run(spec.GAUSSIAN_SAMPLE, (mu, logvar, as_key(key)), {"samples": samples}, backend=backend)


def gaussian_sample_backward(
    g_z: Any,
    g_kl: Any,
    g_log_q: Any,
    mu: Any,
    logvar: Any,
    *,
    key: Any,
    samples: int | None = None,
    backend: str | None = None,
) -> tuple[Any, Any]:
    """Gradient of `gaussian_sample` by mu and logvar, at fixed noise.

    Parameters
    ----------
    g_z, g_kl, g_log_q : gradients by z, kl and log_q, of their shapes.
    mu, logvar, key, samples : as given to `gaussian_sample`.
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    d_mu : (..., D): sum over samples of g_z, plus g_kl mu.
    d_logvar : (..., D): half of the sum over samples of g_z exp(logvar / 2) eps - g_log_q, plus
        g_kl (exp logvar - 1) / 2.

    Raises
    ------
    KernelError : shapes or dtypes that do not fit.
    """
    inputs = (g_z, g_kl, g_log_q, mu, logvar, as_key(key))
    return run(spec.GAUSSIAN_SAMPLE_BACKWARD, inputs, {"samples": samples}, backend=backend)


def bernoulli_sample(probs: Any, *, key: Any, samples: int | None = None, backend: str | None = None) -> Any:
    """Samples in {0, 1}, 1 with the given probability.

    Parameters
    ----------
    probs : float32 or float64 of any shape.
    key : uint64 array (seed, draw, offset), or a tuple (seed, draw[, offset]).
    samples : number of samples along a new leading axis; None for one without that axis.
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    The shape of `probs`, or (samples, ...), in its dtype. 1 where the 32-bit word is below floor(p 2^32):
    p = 1 always, p = 0 never. NaN where p is not in [0, 1].

    Raises
    ------
    KernelError : a dtype or key of another form.
    """
    return run(spec.BERNOULLI_SAMPLE, (probs, as_key(key)), {"samples": samples}, backend=backend)[0]


def bernoulli_sample_logits(logits: Any, *, key: Any, samples: int | None = None, backend: str | None = None) -> Any:
    """`bernoulli_sample` of probabilities sigmoid(logits).

    Parameters
    ----------
    logits : float32 or float64 of any shape.
    key : uint64 array (seed, draw, offset), or a tuple (seed, draw[, offset]).
    samples : number of samples along a new leading axis; None for one without that axis.
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    The shape of `logits`, or (samples, ...), in its dtype; NaN where the logit is NaN.

    Notes
    -----
    float32 and float64 run the same words, and differ where the word falls between the two roundings of the
    probability: less than once in a million draws.

    Raises
    ------
    KernelError : a dtype or key of another form.
    """
    return run(spec.BERNOULLI_SAMPLE_LOGITS, (logits, as_key(key)), {"samples": samples}, backend=backend)[0]


def dropout(x: Any, p: float = 0.5, *, key: Any, backend: str | None = None) -> Any:
    """x / (1 - p) where an element is kept, which happens with probability 1 - p; 0 elsewhere.

    Parameters
    ----------
    x : float32 or float64 of any shape.
    p : probability that an element is dropped, in [0, 1].
    key : uint64 array (seed, draw, offset), or a tuple (seed, draw[, offset]).
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    The shape and dtype of `x`. An element is kept where its 32-bit word is below floor((1 - p) 2^32): all of them
    at p = 0, none at p = 1. A dropped element is 0 also where x is infinite or NaN.

    Notes
    -----
    The gradient is `dropout` of the gradient of the result, with the same p and key. Srivastava, Hinton,
    Krizhevsky, Sutskever & Salakhutdinov, Dropout (JMLR 15, 2014), scaled while training.

    Raises
    ------
    KernelError : p outside [0, 1], or a dtype or key of another form.
    """
    return run(spec.DROPOUT, (x, as_key(key)), {"p": p}, backend=backend)[0]
