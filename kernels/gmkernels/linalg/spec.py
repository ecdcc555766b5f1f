"""Contract of triangular systems."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gmkernels.cost import Cost
from gmkernels.registry import FLOATS, Array, Example, KernelError, KernelSpec, Layout


def _infer(a: Array, b: Array, *, upper: bool, unitriangular: bool) -> Layout:
    fits = a.ndim == b.ndim >= 2 and a.shape[-1] == a.shape[-2] == b.shape[-2] and a.shape[:-2] == b.shape[:-2]
    if not fits or a.dtype != b.dtype or a.dtype.name not in FLOATS:
        raise KernelError(
            f"solve_triangular: expected a (..., n, n) and b (..., n, k) of one floating dtype, got "
            f"a {a.dtype}{list(a.shape)}, b {b.dtype}{list(b.shape)}"
        )
    return [(b.shape, b.dtype)]


def _flops(a: Array, b: Array, **attrs: bool) -> int:
    return b.size * a.shape[-1]


def _cost(a: Array, b: Array, **attrs: bool) -> Cost:
    return Cost(bytes=a.itemsize * (a.size / 2 + 2 * b.size), flops=float(_flops(a, b)))


def _examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    # Off the diagonal at most 1/n, on it 1 to 2: |A^-1| is below e, and the tolerance relies on it.
    for number, (*batch, n, k) in enumerate(
        [(3, 5), (1, 1), (0, 3), (3, 0), (0, 4, 2), (129, 7), (127, 131), (67, 1023), (301, 3, 1), (2, 3, 17, 4)]
    ):
        a = rng.uniform(-1.0, 1.0, (*batch, n, n)) / max(n, 1)
        a[..., np.arange(n), np.arange(n)] = rng.uniform(1.0, 2.0, (*batch, n)) * rng.choice([-1.0, 1.0], n)
        attrs = {"upper": number % 2 == 1, "unitriangular": number % 3 == 2}
        yield Example((a.astype(dtype), rng.standard_normal((*batch, n, k)).astype(dtype)), attrs)


SOLVE_TRIANGULAR = KernelSpec(
    name="solve_triangular",
    family="linalg",
    inputs=("a", "b"),
    outputs=("x",),
    infer=_infer,
    cost=_cost,
    size=_flops,
    examples=_examples,
    formula="x with T x = b; T the lower (upper) triangle of a, with ones on its diagonal if unitriangular",
    source="trsm of Dongarra, Du Croz, Hammarling & Duff, ACM TOMS 16(1), 1990",
    # |error| <= n u |T^-1| |T| |x| (Higham, Accuracy and Stability of Numerical Algorithms, theorem 8.5), with
    # |T^-1| <= e, |T| <= 3, |x| <= e 4.5, and sqrt(n) <= 12 for n, since roundings add like a random walk.
    tolerance={
        dtype: (0.0, 12 * unit * math.e * 3 * 4.5 * math.e)
        for dtype, unit in (("float32", 2.0**-24), ("float64", 2.0**-53))
    },
)
