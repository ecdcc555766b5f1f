"""Operations that sample by rejection: each element's attempts have words of their own in the common stream.

The rule by which they have them is stated in `gmkernels.rejection.spec`. Each operation takes one draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gmcore.op import Example, Op, kernel
from gmcore.ops.elementwise import exp, log, positive
from gmcore.ops.random import _EXAMPLE_KEY, _NO_PATH, _key
from gmcore.ops.special import digamma
from gmcore.random import Generator
from gmcore.tensor import Tensor
from gmkernels import KernelSpec
from gmkernels.rejection import spec

# -- the gamma distribution -----------------------------------------------------------------------------------
_NO_SECOND = (
    "only the first derivative in a is known. Call .detach() on the parameter where higher ones are taken, or use the "
    "score function (log_prob of the sample)"
)


def _gamma_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, logarithm in (((), False), ((5,), True), ((2, 3), False), ((0, 2), True)):
        yield (positive(rng, shape),), {"log": logarithm, "key": _EXAMPLE_KEY}


def _grad_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, logarithm in (((), False), ((5,), True), ((2, 3), False), ((0, 2), True)):
        x = positive(rng, shape)
        yield (positive(rng, shape), np.log(x) if logarithm else x), {"log": logarithm}


def _slope_of_slope(g: Tensor, a: Tensor, x: Tensor, out: Tensor, log: bool) -> Tensor:
    """s = -F_a / f has ds/dx = -(d log f / da) - s (d log f / dx), for the density f of x or of log x."""
    if log:
        return g * (digamma(a) - x - out * (a - exp(x)))
    return g * (digamma(a) - _log(x) - out * ((a - 1.0) / x - 1.0))


_log = log  # `log` is also the name of an attribute

_standard_gamma_grad = Op(
    "standard_gamma_grad",
    "a x",
    forward=kernel(spec.STANDARD_GAMMA_GRAD),
    vjp=[_NO_SECOND, _slope_of_slope],
    formula=spec.STANDARD_GAMMA_GRAD.formula,
    source=spec.STANDARD_GAMMA_GRAD.source,
    examples=_grad_examples,
)
_standard_gamma = Op(
    "standard_gamma",
    "a key",
    forward=kernel(spec.STANDARD_GAMMA),
    vjp=[lambda g, a, out, log: g * _standard_gamma_grad(a, out, log=log), "random words have no derivative"],
    formula="x with the density x^(a-1) e^-x / Gamma(a), or log x; dx/da at a fixed probability P(a, x)",
    source=f"{spec.STANDARD_GAMMA.source}; derivative: {spec.STANDARD_GAMMA_GRAD.source}",
    examples=_gamma_examples,
)


def standard_gamma(
    a: Any, *, log: bool = False, generator: Generator | None = None, key: Tensor | None = None
) -> Tensor:
    """Samples of the gamma distribution of shape `a` and rate 1, with their implicit derivative in `a`.

    Parameters
    ----------
    a : any shape, positive; float32 or float64.
    log : give log x, which cannot underflow: for a = 0.01, x is below the least float32 two times in five.
    generator : gives one draw; by default the context's.
    key : a draw taken before, to draw the same numbers again or part of them.

    Returns
    -------
    Tensor like `a`; NaN where `a` is not positive and finite. Without `log` at least the least normal number.

    Notes
    -----
    The derivative is dx/da = -(dP(a, x)/da) / (dP(a, x)/dx), by which x moves along a fixed value of its distribution
    function P (Figurnov, Mohamed & Mnih, Implicit reparameterization gradients, 2018), not along the words of the
    sampler, whose decisions jump: finite differences with a fixed key do not confirm it, expectations do.
    """
    return _standard_gamma(a, _key(generator, key), log=log)


_standard_gamma.public = standard_gamma


# -- counts -----------------------------------------------------------------------------------------------------
def _count(function: KernelSpec, examples: Callable[[np.random.Generator], Iterator[Example]]) -> Op:
    return Op(
        function.name,
        " ".join(function.inputs),
        forward=kernel(function),
        vjp=[_NO_PATH] * len(function.inputs),
        formula=function.formula,
        source=function.source,
        examples=examples,
    )


def _poisson_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape in ((), (5,), (2, 3), (0,)):
        yield (4.0 * positive(rng, shape),), {"key": _EXAMPLE_KEY}


def _binomial_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape in ((), (5,), (2, 3), (0,)):
        n = np.asarray(rng.integers(1, 20, shape) * 1.0)
        yield (n, rng.uniform(0.1, 0.9, shape)), {"key": _EXAMPLE_KEY}


_poisson = _count(spec.POISSON, _poisson_examples)
_binomial = _count(spec.BINOMIAL, _binomial_examples)


def poisson(rate: Any, *, generator: Generator | None = None, key: Tensor | None = None) -> Tensor:
    """Poisson counts.

    Parameters
    ----------
    rate : any shape; float32 or float64.
    generator, key : as in `standard_gamma`.

    Returns
    -------
    The shape and dtype of `rate`; NaN where it is negative or not finite. Without a derivative: asking for one raises
    `GraphError`.
    """
    return _poisson(rate, _key(generator, key))


def binomial(n: Any, p: Any, *, generator: Generator | None = None, key: Tensor | None = None) -> Tensor:
    """Numbers of successes in n trials of probability p.

    Parameters
    ----------
    n, p : of one shape; float32 or float64, of one dtype.
    generator, key : as in `standard_gamma`.

    Returns
    -------
    The shape and dtype of `n`; NaN unless n is a natural number and p in [0, 1]. Without a derivative: asking for one
    raises `GraphError`.
    """
    return _binomial(n, p, _key(generator, key))


_poisson.public, _binomial.public = poisson, binomial
