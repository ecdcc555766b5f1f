"""Special functions: of the error function's family, and of the gamma function's.

Elementwise on float32 or float64 arrays; float32 is computed in float64 and rounded. The names are SciPy's,
but for `lgamma`. Each raises `KernelError` for arrays that are not floating, or not of one dtype and shape.
"""

from __future__ import annotations

from gmkernels.registry import Array, register, run
from gmkernels.special import reference, spec

for _spec in (
    spec.ERF, spec.ERFC, spec.ERFCX, spec.ERFINV, spec.NDTRI, spec.LGAMMA, spec.POLYGAMMA, spec.GAMMAINC,
    spec.GAMMAINC_GRAD_A,
):  # fmt: skip
    register(_spec, "reference", getattr(reference, _spec.name), overhead=2e-5, efficiency=0.002, host=True)
    register(_spec, "cpu", f"gmkernels.special.cpu:{_spec.name}", overhead=2e-5, efficiency=0.3)


def erf(x: Array, *, backend: str | None = None) -> Array:
    """2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x.

    Parameters
    ----------
    x : float32 or float64, any shape.

    Returns
    -------
    Array like `x`; NaN where it is.

    Raises
    ------
    KernelError : a dtype that is not floating.
    """
    return run(spec.ERF, (x,), backend=backend)[0]


def erfc(x: Array, *, backend: str | None = None) -> Array:
    """1 - erf(x), to full relative accuracy where it is small.

    Parameters
    ----------
    x : float32 or float64, any shape.

    Returns
    -------
    Array like `x`; NaN where it is.

    Raises
    ------
    KernelError : a dtype that is not floating.
    """
    return run(spec.ERFC, (x,), backend=backend)[0]


def erfcx(x: Array, *, backend: str | None = None) -> Array:
    """exp(x^2) erfc(x), which neither under- nor overflows for x > 0.

    Parameters
    ----------
    x : float32 or float64, any shape.

    Returns
    -------
    Array like `x`; inf where x is far below 0, NaN where it is NaN.

    Raises
    ------
    KernelError : a dtype that is not floating.
    """
    return run(spec.ERFCX, (x,), backend=backend)[0]


def erfinv(x: Array, *, backend: str | None = None) -> Array:
    """The y with erf(y) = x.

    Parameters
    ----------
    x : float32 or float64, any shape.

    Returns
    -------
    Array like `x`; infinite at -1 and 1, NaN beyond.

    Raises
    ------
    KernelError : a dtype that is not floating.
    """
    return run(spec.ERFINV, (x,), backend=backend)[0]


def ndtri(x: Array, *, backend: str | None = None) -> Array:
    """The normal quantile: the y below which a standard normal number lies with probability x.

    Parameters
    ----------
    x : float32 or float64, any shape.

    Returns
    -------
    Array like `x`; infinite at 0 and 1, NaN outside [0, 1].

    Raises
    ------
    KernelError : a dtype that is not floating.
    """
    return run(spec.NDTRI, (x,), backend=backend)[0]


def lgamma(x: Array, *, backend: str | None = None) -> Array:
    """log |Gamma(x)|.

    Parameters
    ----------
    x : float32 or float64, any shape.

    Returns
    -------
    Array like `x`; inf at 0 and the negative integers.

    Raises
    ------
    KernelError : a dtype that is not floating.
    """
    return run(spec.LGAMMA, (x,), backend=backend)[0]


def polygamma(n: int, x: Array, *, backend: str | None = None) -> Array:
    """The n-th derivative of digamma(x) = d/dx log Gamma(x).

    Parameters
    ----------
    n : order, 0 or more.
    x : float32 or float64, any shape.

    Returns
    -------
    Array like `x`. At the poles 0, -1, -2, ... it is inf for odd n; for even n, -inf at 0 and NaN at the others.

    Raises
    ------
    KernelError : a negative order, or a dtype that is not floating.
    """
    return run(spec.POLYGAMMA, (x,), {"n": n}, backend=backend)[0]


def gammainc(a: Array, x: Array, *, backend: str | None = None) -> Array:
    """The regularised lower incomplete gamma function P(a, x) = 1 / Gamma(a) int_0^x t^(a-1) e^-t dt.

    Parameters
    ----------
    a, x : float32 or float64, of one dtype and shape.

    Returns
    -------
    Array like `a`; NaN unless a > 0 and x >= 0, and for a > 10^8, where its series are too long.

    Raises
    ------
    KernelError : arrays that are not floating, or not of one dtype and shape.
    """
    return run(spec.GAMMAINC, (a, x), backend=backend)[0]


def gammainc_grad_a(a: Array, x: Array, *, backend: str | None = None) -> Array:
    """The derivative of `gammainc` with respect to a.

    Parameters
    ----------
    a, x : float32 or float64, of one dtype and shape.

    Returns
    -------
    Array like `a`; NaN as `gammainc`.

    Raises
    ------
    KernelError : arrays that are not floating, or not of one dtype and shape.
    """
    return run(spec.GAMMAINC_GRAD_A, (a, x), backend=backend)[0]
