"""Sampling by rejection: gamma numbers with their implicit derivative, and the counts of Poisson and Bernoulli trials.

The words of the attempts follow the sub-counter rule that `spec` states, so samples depend on the key and the
parameters only. float32 is computed in float64 and rounded.
"""

from __future__ import annotations

from typing import Any

from gmkernels.registry import Array, register, run
from gmkernels.rejection import reference, spec
from gmkernels.rng import as_key

__all__ = ["binomial", "poisson", "standard_gamma", "standard_gamma_grad"]

for _spec in (spec.STANDARD_GAMMA, spec.STANDARD_GAMMA_GRAD, spec.POISSON, spec.BINOMIAL):
    register(_spec, "reference", getattr(reference, _spec.name), overhead=3e-4, efficiency=0.005, host=True)
    register(_spec, "cpu", f"gmkernels.rejection.cpu:{_spec.name}", overhead=2e-5, efficiency=0.3)


def standard_gamma(a: Array, *, key: Any, log: bool = False, backend: str | None = None) -> Array:
    """Gamma numbers of shape `a` and rate 1, or their logarithms.

    Parameters
    ----------
    a : float32 or float64, of any shape.
    key : uint64 array (seed, draw, offset), or a tuple (seed, draw[, offset]).
    log : give log x, which cannot underflow: for a of 0.01, x is below the least float32 two times in five.
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    Array like `a`; NaN where not 0 < a < inf. Without `log`, at least the least normal number of the dtype.

    Notes
    -----
    Marsaglia & Tsang, A simple method for generating gamma variables (ACM TOMS 26, 2000).

    Raises
    ------
    KernelError : a dtype or a key of another form.
    """
    return run(spec.STANDARD_GAMMA, (a, as_key(key)), {"log": log}, backend=backend)[0]


def standard_gamma_grad(a: Array, x: Array, *, log: bool = False, backend: str | None = None) -> Array:
    """The derivative in `a` of the sample `x` of `standard_gamma`: dx/da = -(dP(a, x)/da) / (dP(a, x)/dx).

    Parameters
    ----------
    a : float32 or float64, of any shape.
    x : the sample, or its logarithm, of that dtype and shape.
    log : whether `x` is the logarithm; the result is then that logarithm's derivative.
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    Array like `a`.

    Raises
    ------
    KernelError : arrays that are not floating, or not of one dtype and shape.

    References
    ----------
    Figurnov, Mohamed & Mnih, Implicit reparameterization gradients, NeurIPS 2018.
    """
    return run(spec.STANDARD_GAMMA_GRAD, (a, x), {"log": log}, backend=backend)[0]


def poisson(rate: Array, *, key: Any, backend: str | None = None) -> Array:
    """Poisson numbers, by transformed rejection, or by inversion for rates below 10.

    Parameters
    ----------
    rate : float32 or float64, of any shape.
    key : uint64 array (seed, draw, offset), or a tuple (seed, draw[, offset]).
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    Array like `rate`; NaN where not 0 <= rate < inf.

    Raises
    ------
    KernelError : a dtype or a key of another form.

    References
    ----------
    Hormann, The transformed rejection method for generating Poisson random variables, 1993.
    """
    return run(spec.POISSON, (rate, as_key(key)), backend=backend)[0]


def binomial(n: Array, p: Array, *, key: Any, backend: str | None = None) -> Array:
    """Numbers of successes in n trials of probability p.

    Parameters
    ----------
    n, p : float32 or float64, of one dtype and shape.
    key : uint64 array (seed, draw, offset), or a tuple (seed, draw[, offset]).
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    Array like `n`; NaN unless n is a natural number and p in [0, 1].

    Notes
    -----
    Hormann's transformed rejection (1993), or inversion where n p or n (1 - p) is below 10.

    Raises
    ------
    KernelError : arrays or a key of another form.
    """
    return run(spec.BINOMIAL, (n, p, as_key(key)), backend=backend)[0]
