"""Contracts of the samplers by rejection, and the sub-counter rule that gives them their words.

The sub-counter rule
--------------------
Attempt t of element i uses one Philox block of its own, of four words:

    counter = (j low, j high + 2^16 t + 2^31, draw low, draw high),  key = (seed low, seed high),
    j = (offset + i) mod 2^48,  0 <= t < 2^15

The first accepted attempt gives the element. So an element depends on (seed, draw, offset + i) and its parameters
only: not on how many attempts its neighbours took, nor on layout, grid, threads or device; a piece that starts at
element k of the whole is drawn with offset k. The plain stream of `rng` has counters (g low, g high) with g < 2^62:
the bit 2^31 of the second word keeps the two apart. Elements 2^48 apart in one draw would share their words.

Everything is computed in float64, whatever the dtype, and the result rounded: float32 and float64 take the same
decisions. Two backends could part only where a word falls between two roundings of a bound: once in some 10^13 words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gmkernels.cost import Cost
from gmkernels.registry import FLOATS, Array, Example, KernelError, KernelSpec, Layout
from gmkernels.rng.spec import check_key, keys

MOST_ATTEMPTS = 2**15
"""An attempt fails with a probability below 0.4: nobody gets here."""
INDEX_BITS = 48
ATTEMPT_SHIFT = 16
"""Of the attempt in the counter's second word."""
REJECTION_BIT = 2**31
INVERSION_BELOW = 10.0
"""Means below which counts are drawn by inversion: the constants of the rejection hold from here on."""
HAT_RAISED = 1.006
"""Hormann's hat for Poisson counts lies below the probabilities, by up to 0.57 %, for means near 10. Raised, it covers
them, and the samples are exact; the tests check it."""
NEGLIGIBLE = 1e-20
"""Inversion stops at terms below this, which no uniform of 53 bits can tell from 0."""

_SHAPES = ((0,), (), (5,), (3, 43), (1031,))


def _check(op: str, *arrays: Array) -> None:
    first = arrays[0]
    if first.dtype.name not in FLOATS or any(a.dtype != first.dtype or a.shape != first.shape for a in arrays):
        given = ", ".join(f"{a.dtype}{list(a.shape)}" for a in arrays)
        raise KernelError(f"{op}: expected float32 or float64 arrays of one dtype and one shape, got {given}")


def _infer(op: str) -> Callable[..., Layout]:
    def infer(*inputs: Array, **attrs: Any) -> Layout:
        _check(op, *inputs[:-1])
        check_key(op, inputs[-1])
        return [(inputs[0].shape, inputs[0].dtype)]

    return infer


def _cost(slots: float) -> Callable[..., Cost]:
    def cost(*inputs: Array, **attrs: Any) -> Cost:
        x = inputs[0]
        return Cost(bytes=x.itemsize * x.size * len(inputs), slots=slots * x.size)

    return cost


# -- the gamma distribution -----------------------------------------------------------------------------------
def _gamma_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for number, (key, shape) in enumerate(zip(keys(rng), _SHAPES, strict=False)):
        a = np.asarray(np.exp(rng.uniform(-3.0, 5.0, shape)), dtype)
        yield Example((a, key), {"log": number % 2 == 1})
    edges = np.array([1.0, 0.0, -1.0, np.nan, np.inf, 1e-3, 1e12], dtype)
    yield Example((edges, next(keys(rng))), {"log": False})
    yield Example((edges, next(keys(rng))), {"log": True})


STANDARD_GAMMA = KernelSpec(
    name="standard_gamma",
    family="rejection",
    inputs=("a", "key"),
    outputs=("x",),
    infer=_infer("standard_gamma"),
    cost=_cost(200),
    examples=_gamma_examples,
    formula="x = d v with v = (1 + z / sqrt(9 d))^3, d = a - 1/3, accepted where v > 0 and log u < z^2/2 + d - d v + "
    "d log v; for a < 1 drawn with a + 1 and multiplied by u'^(1/a). z is the normal of words 0 and 1 of the attempt, "
    "u and u' the uniforms of words 2 and 3. log x if `log`; else at least the least normal number of the dtype. NaN "
    "unless 0 < a < inf",
    source="Marsaglia & Tsang, A simple method for generating gamma variables (ACM TOMS 26, 2000); the words: see the "
    "module's sub-counter rule",
    # float64: u^(1/a) is exp of a number up to 23 / 0.05, or 700 for a = 1e-3: half a unit in its last place, 6e-14.
    tolerance={"float32": (6.2e-8, 1.2e-38), "float64": (2e-13, 2.3e-308)},
    draws=True,
)


def _grad_infer(a: Array, x: Array, *, log: bool) -> Layout:
    _check("standard_gamma_grad", a, x)
    return [(a.shape, a.dtype)]


def _grad_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for number, shape in enumerate(_SHAPES):
        a = np.asarray(np.exp(rng.uniform(-3.0, 4.0, shape)), dtype)
        x = np.asarray(a * np.exp(rng.uniform(-2.0, 0.3, shape)), dtype)
        log = number % 2 == 1
        yield Example((a, np.asarray(np.log(x)) if log else x), {"log": log})
    a = np.array([-1.0, 1.0, np.nan, 1.0, 0.5, 0.5], dtype)
    yield Example((a, np.array([1.0, -1.0, 1.0, np.nan, 1e-30, 3.0], dtype)), {"log": False})
    yield Example((a, np.array([1.0, -1.0, 1.0, np.nan, -900.0, 0.3], dtype)), {"log": True})


STANDARD_GAMMA_GRAD = KernelSpec(
    name="standard_gamma_grad",
    family="rejection",
    inputs=("a", "x"),
    outputs=("dx_da",),
    infer=_grad_infer,
    cost=_cost(600),
    examples=_grad_examples,
    formula="-(dP(a, x)/da) / (dP(a, x)/dx), P the regularised lower incomplete gamma function: how the sample x of "
    "the gamma distribution moves with a at a fixed probability. If `log`, x is the logarithm of the sample, and the "
    "result that logarithm's derivative",
    source="Figurnov, Mohamed & Mnih, Implicit reparameterization gradients (NeurIPS 2018), equation 7; the series "
    "and the continued fraction of gammainc, of which the common factor x^a e^-x / Gamma(a) cancels; for a > 10^8 the "
    "first terms of Cornish & Fisher's expansion",
    # The reference adds the two large terms of the series, 1 / P(x's density) = 300 at most in the examples.
    tolerance={"float32": (6.2e-8, 1e-11), "float64": (2e-11, 2e-13)},
)


# -- counts -----------------------------------------------------------------------------------------------------
def _poisson_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for key, shape in zip(keys(rng), _SHAPES, strict=False):
        yield Example((np.asarray(np.exp(rng.uniform(-3.0, 8.0, shape)), dtype), key), {})
    edges = np.array([0.0, 9.99, 10.0, -1.0, np.nan, np.inf, 1e-30, 1e6], dtype)
    yield Example((edges, next(keys(rng))), {})


POISSON = KernelSpec(
    name="poisson",
    family="rejection",
    inputs=("rate", "key"),
    outputs=("k",),
    infer=_infer("poisson"),
    cost=_cost(300),
    examples=_poisson_examples,
    formula="rate < 10: the least k with u <= sum_j<=k e^-rate rate^j / j!, u of 53 bits from words 0 and 1 of attempt "
    "0; else transformed rejection of k = floor((2 a / s + b) u + rate + 0.43), s = 1/2 - |u|, u + 1/2 from words 0 "
    "and 1, the other uniform from words 2 and 3; the hat 0.6 % higher than the source's. NaN unless 0 <= rate < inf",
    source="Hormann, The transformed rejection method for generating Poisson random variables (Insurance: Mathematics "
    "and Economics 12, 1993), algorithm PTRS; the words: see the module's sub-counter rule",
    # Counts: the same, but for the rounding of those above 2^24 to float32.
    tolerance={"float32": (6.2e-8, 0.0), "float64": (0.0, 0.0)},
    draws=True,
)


def _binomial_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for key, shape in zip(keys(rng), _SHAPES, strict=False):
        n = np.asarray(np.floor(np.exp(rng.uniform(0.0, 8.0, shape))), dtype)
        yield Example((n, np.asarray(rng.uniform(0.0, 1.0, shape), dtype), key), {})
    n = np.array([0, 5, 5, 100, 20, 20, -1, 2.5, np.nan, 5, 5, np.inf, 1e6], dtype)
    p = np.array([0.5, 0, 1, 1, 0.5, 0.49, 0.5, 0.5, 0.5, np.nan, 1.1, 0.5, 0.3], dtype)
    yield Example((n, p, next(keys(rng))), {})


BINOMIAL = KernelSpec(
    name="binomial",
    family="rejection",
    inputs=("n", "p", "key"),
    outputs=("k",),
    infer=_infer("binomial"),
    cost=_cost(400),
    examples=_binomial_examples,
    formula="n - k with the probability 1 - p where p > 1/2. n p < 10: inversion, as in `poisson`; else transformed "
    "rejection of k = floor((2 a / s + b) u + n p + 1/2), s = 1/2 - |u|, words as in `poisson`. NaN unless n is a "
    "natural number and p in [0, 1]",
    source="Hormann, The generation of binomial random variates (J. Statist. Comput. Simul. 46, 1993), algorithm BTRS; "
    "the words: see the module's sub-counter rule",
    tolerance={"float32": (6.2e-8, 0.0), "float64": (0.0, 0.0)},
    draws=True,
)
