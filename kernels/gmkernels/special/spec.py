"""Contracts of the special functions: elementwise, computed in float64 and rounded once to the dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gmkernels.cost import Cost
from gmkernels.registry import Array, Example, KernelError, KernelSpec, Layout

SHAPES: tuple[tuple[int, ...], ...] = ((0,), (), (7,), (3, 5), (1031,))

# The result of a float32 call is that of float64, rounded: 6e-8. Denormal results are flushed to zero.
_FLOAT32 = (6.1e-8, 1.2e-38)


def _infer(op: str) -> Callable[..., Layout]:
    def infer(*inputs: Array, **attrs: Any) -> Layout:
        if any(x.dtype.kind != "f" or x.dtype != inputs[0].dtype or x.shape != inputs[0].shape for x in inputs):
            given = ", ".join(f"{x.dtype}{list(x.shape)}" for x in inputs)
            raise KernelError(f"{op}: expected floating arrays of one dtype and one shape, got {given}")
        if attrs.get("n", 0) < 0:
            raise KernelError(f"{op}: expected an order n >= 0, got {attrs['n']}")
        return [(inputs[0].shape, inputs[0].dtype)]

    return infer


def _cost(slots: float) -> Callable[..., Cost]:
    def cost(*inputs: Array, **attrs: Any) -> Cost:
        x = inputs[0]
        return Cost(bytes=x.itemsize * x.size * (len(inputs) + 1), slots=slots * x.size)

    return cost


Numbers = Callable[["np.random.Generator", tuple[int, ...]], np.ndarray]


def _unary_examples(numbers: Numbers, special: list[float]) -> Callable[..., Iterator[Example]]:
    def examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
        for shape in SHAPES:
            yield Example((np.asarray(numbers(rng, shape), dtype),), {})
        yield Example((np.array(special, dtype),), {})

    return examples


def _unary(
    name: str, numbers: Numbers, special: list[float], formula: str, source: str, rtol: float, slots: float
) -> KernelSpec:
    return KernelSpec(
        name=name,
        family="special",
        inputs=("x",),
        outputs=("y",),
        infer=_infer(name),
        cost=_cost(slots),
        examples=_unary_examples(numbers, special),
        formula=formula,
        source=source,
        tolerance={"float32": _FLOAT32, "float64": (rtol, 2.3e-308)},
    )


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return 3.0 * rng.standard_normal(shape)


def _above_minus_eight(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(-8.0, 30.0, shape)  # below -9, exp(x^2) is infinite in float32


def _between_minus_one_and_one(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.tanh(3.0 * rng.standard_normal(shape)).astype(np.float32)


def _probabilities(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.0, 1.0, shape) ** 3


_ENDS = [0.0, -0.0, np.inf, -np.inf, np.nan]
_NIST = "NIST Handbook of Mathematical Functions"

_CHEBYSHEV = "Shepherd & Laframboise, Math. Comp. 36, 1981"

ERF = _unary(
    "erf", _normal, [*_ENDS, 1e-30, 30.0], "2 / sqrt(pi) int_0^x exp(-t^2) dt",
    f"{_NIST}, 7.2.1; a Chebyshev expansion for |x| < 1, then 1 - erfc", 4e-16, 40,
)  # fmt: skip
ERFC = _unary(
    "erfc", _normal, [*_ENDS, 20.0, 26.0, 30.0], "1 - erf(x)", f"{_NIST}, 7.2.2; exp(-x^2) erfcx(x)",
    # The kernel is within 5.9e-16, the C library, which is the reference, within 4.4e-16.
    1.1e-15, 60,
)  # fmt: skip
ERFCX = _unary(
    "erfcx", _above_minus_eight, [*_ENDS, 5.0, 100.0, 1e20], "exp(x^2) erfc(x)",
    f"{_NIST}, 7.2.3; (1 + 2x) erfcx(x) expanded in (x - 3.5) / (x + 3.5): {_CHEBYSHEV}",
    # The reference's exp(x^2), x <= 5: the square is rounded by 25 u; below 0 by up to 64 u in the examples.
    3e-14, 100,
)  # fmt: skip
ERFINV = _unary(
    "erfinv", _between_minus_one_and_one, [*_ENDS, 1.0, -1.0, 1.5, 0.85, 1e-20], "the y with erf(y) = x",
    "Wichura, Algorithm AS 241, Applied Statistics 37, 1988", 2e-15, 60,
)  # fmt: skip
NDTRI = _unary(
    "ndtri", _probabilities, [*_ENDS, 1.0, 1.5, -0.5, 0.075, 0.925, 1e-30], "the y with Phi(y) = x",
    # Near x = 1/2 the result is small, and the reference as exact as this.
    "Wichura, Algorithm AS 241, Applied Statistics 37, 1988", 2e-15, 60,
)  # fmt: skip
LGAMMA = _unary(
    "lgamma", _normal, [*_ENDS, -1.0, 0.5, 1.0, 2.0, 1e10, 171.7, 1e-30], "log |Gamma(x)|",
    "Abramowitz & Stegun, 6.1.15 (recurrence), 6.1.17 (reflection), 6.1.41 (Stirling's series)",
    # Python's function, the reference, has an absolute error of some u where the logarithm is near 0.
    2e-12, 80,
)  # fmt: skip


def _polygamma_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for shape, n in zip(SHAPES, (0, 1, 0, 2, 3), strict=True):
        x = rng.uniform(0.1, 0.9, shape) + rng.integers(-9, 30, shape)
        yield Example((np.asarray(x, dtype),), {"n": n})
    for n in range(4):
        yield Example((np.array([*_ENDS, -1.0, -2.0, 0.5, 1.0, 1e10, -0.25, 1e-4], dtype),), {"n": n})


POLYGAMMA = KernelSpec(
    name="polygamma",
    family="special",
    inputs=("x",),
    outputs=("y",),
    infer=_infer("polygamma"),
    cost=_cost(150),
    examples=_polygamma_examples,
    formula="the n-th derivative of digamma, which is that of log Gamma: d^(n+1)/dx^(n+1) log Gamma(x)",
    source="Abramowitz & Stegun, 6.3.18 and 6.4.11 (asymptotic series), 6.4.6 (recurrence), 6.4.7 (reflection)",
    # Sums of some ten terms. Between the poles the function passes through 0, where the error of the terms, of
    # size up to 1e3 in the examples, stays. In float32 that error is rounded away, but for such zeros.
    tolerance={"float32": (6.2e-8, 1e-12), "float64": (3e-14, 1e-12)},
)


def _gamma_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for shape in SHAPES:
        a = np.exp(rng.uniform(-3.0, 4.0, shape))
        x = a * np.exp(rng.uniform(-2.0, 1.0, shape))
        yield Example((np.asarray(a, dtype), np.asarray(x, dtype)), {})
    edges = [
        (1.0, 0.0),
        (1.0, np.inf),
        (-1.0, 1.0),
        (1.0, -1.0),
        (np.nan, 1.0),
        (1.0, np.nan),
        (20.0, 21.0),
        (3.0, 40.0),
    ]
    a, x = np.array(edges, dtype).T.copy()
    yield Example((a, x), {})


def _gamma(name: str, output: str, formula: str, source: str) -> KernelSpec:
    return KernelSpec(
        name=name,
        family="special",
        inputs=("a", "x"),
        outputs=(output,),
        infer=_infer(name),
        cost=_cost(600),
        examples=_gamma_examples,
        formula=formula,
        source=source,
        # The factor x^a e^-x / Gamma(a + 1): u times its largest exponent, 500 in the examples. The series of the
        # reference has terms up to 1 that cancel in the derivative where x > a; the kernel's do not.
        tolerance={"float32": (6.2e-8, 1e-12), "float64": (2e-13, 1e-12)},
    )


GAMMAINC = _gamma(
    "gammainc", "p", "1 / Gamma(a) int_0^x t^(a-1) e^-t dt", f"{_NIST}, 8.2.4; series 8.11.4, continued fraction 8.9.2"
)
GAMMAINC_GRAD_A = _gamma(
    "gammainc_grad_a", "dp_da", "d/da of gammainc(a, x)",
    "Moore, Algorithm AS 187, Applied Statistics 31, 1982: series and continued fraction differentiated",
)  # fmt: skip
