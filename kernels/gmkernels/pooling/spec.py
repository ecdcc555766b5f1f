"""Contracts of pooling: the largest element or the mean of each window of a plane, and the maps back.

A maximum comes with its place, the switch that unpooling needs: its number in the plane, in C order. With places,
maxima are gathered from planes, and their gradients scattered into them; either is the other's transpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gmkernels.cost import Cost
from gmkernels.registry import FLOATS, Array, Example, KernelError, KernelSpec, Layout

Pair = tuple[int, int]


class Windows(NamedTuple):
    """Where the windows on a plane lie: the attributes that these specs share."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    def number(self, size: Pair) -> Pair:
        """How many windows there are down and across a plane of `size`; below 1 if the first does not fit."""
        height, width = (
            self._along(n, k, s, p, d)
            for n, k, s, p, d in zip(size, self.kernel, self.stride, self.padding, self.dilation)
        )
        return height, width

    def _along(self, n: int, k: int, s: int, p: int, d: int) -> int:
        room = n + 2 * p - d * (k - 1) - 1
        count = -(-room // s) + 1 if self.ceil_mode else room // s + 1
        # A window that overhangs at the end begins inside the plane or the padding before it.
        return count - 1 if self.ceil_mode and (count - 1) * s >= n + p else count


def _windows(options: dict[str, Any]) -> Windows:
    return Windows(**{name: value for name, value in options.items() if name in Windows._fields})


def _error(op: str, expected: str, options: dict[str, Any], **arrays: Array) -> KernelError:
    given = ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in arrays.items())
    return KernelError(
        f"{op}: expected {expected}; got {given}" + "".join(f", {name}={value}" for name, value in options.items())
    )


def _check_pairs(op: str, options: dict[str, Any], **arrays: Array) -> None:
    for name in ("kernel", "stride", "padding", "dilation", "size"):
        pair = options.get(name, (0, 0))
        if not isinstance(pair, tuple) or [isinstance(n, (int, np.integer)) for n in pair] != [True, True]:
            raise _error(op, f"{name} as a pair of integers", options, **arrays)


def check(op: str, size: Pair, options: dict[str, Any], **arrays: Array) -> Pair:
    """The number of windows on planes of `size`. Raises `KernelError` where they do not fit."""
    w = _windows(options)
    _check_pairs(op, {**w._asdict(), "size": size}, **arrays)
    if min(w.kernel) < 1 or min(w.stride) < 1 or min(w.dilation) < 1 or min(w.padding) < 0:
        raise _error(op, "kernel, stride and dilation of at least 1 and padding of at least 0", options, **arrays)
    if any(2 * p > k for p, k in zip(w.padding, w.kernel)):
        raise _error(op, "a padding of at most half the kernel", options, **arrays)
    count = w.number(size)
    if min(count) < 1:
        raise _error(op, "a (dilated) kernel no larger than the padded input", options, **arrays)
    if w.dilation == (1, 1):  # then the padding leaves an element to each
        return count
    for n, k, s, p, d, m in zip(size, w.kernel, w.stride, w.padding, w.dilation, count):
        if any(not any(0 <= at * s - p + i * d < n for i in range(k)) for at in range(m)):
            raise _error(op, "an element of the input in each window", options, **arrays)
    return count


def _planes(op: str, **arrays: Array) -> None:
    dtypes = {a.dtype.name for name, a in arrays.items() if name != "indices"}
    if any(a.ndim != 4 for a in arrays.values()) or len(dtypes) > 1 or not dtypes <= set(FLOATS):
        raise _error(op, "arrays (N, C, H, W) of one dtype, float32 or float64", {}, **arrays)
    if "indices" in arrays and arrays["indices"].dtype != np.int64:
        raise _error(op, "indices int64", {}, **arrays)


# Windows that overlap, leave elements out, overhang and look past the edges; a plane for each block, or many.
_EXAMPLES: tuple[tuple[tuple[int, ...], Windows], ...] = (
    ((2, 3, 5, 7), Windows((2, 2), (2, 2))),
    ((1, 1, 1, 1), Windows((1, 1), (1, 1))),
    ((0, 2, 3, 3), Windows((2, 2), (1, 1))),
    ((2, 2, 7, 6), Windows((3, 2), (2, 1), (1, 1))),
    ((1, 3, 7, 8), Windows((2, 3), (3, 2), (1, 1), (1, 1), True)),
    ((3, 1, 1, 127), Windows((1, 3), (1, 2), (0, 1))),
    ((129, 3, 11, 13), Windows((2, 2), (2, 2), (0, 0), (1, 1), True)),
)


# ---------------------------------------------------------------------------------------------------------
# Maxima
# ---------------------------------------------------------------------------------------------------------


def _max_infer(x: Array, **options: Any) -> Layout:
    _planes("max_pool2d", x=x)
    shape = (*x.shape[:2], *check("max_pool2d", x.shape[2:], options, x=x))
    return [(shape, x.dtype), (shape, np.dtype(np.int64))]


def _window_slots(x: Array, options: dict[str, Any]) -> float:
    w = _windows(options)
    return 3.0 * math.prod(x.shape[:2]) * math.prod(w.number(x.shape[2:])) * math.prod(w.kernel)


def _max_cost(x: Array, **options: Any) -> Cost:
    out = math.prod(x.shape[:2]) * math.prod(_windows(options).number(x.shape[2:]))
    return Cost(x.itemsize * (x.size + out) + 8 * out, slots=_window_slots(x, options))


def _max_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for shape, windows in (*_EXAMPLES, ((2, 1, 9, 8), Windows((3, 2), (1, 2), (1, 1), (2, 3)))):
        # A few values only, so that there are ties.
        yield Example((rng.integers(-9, 9, shape).astype(dtype),), windows._asdict())


MAX_POOL2D = KernelSpec(
    name="max_pool2d",
    family="pooling",
    inputs=("x",),
    outputs=("y", "indices"),
    infer=_max_infer,
    cost=_max_cost,
    examples=_max_examples,
    formula=(
        "y[n, c, p, q] = max x[n, c, h, w] over h = p s - padding + i d, w likewise, inside the plane; "
        "indices = h W + w of the first of them, in C order; a NaN counts as the largest"
    ),
    source="Zhou & Chellappa, ICNN 1988; switches: Zeiler, Taylor & Fergus, ICCV 2011",
    tolerance={"float32": (0.0, 0.0), "float64": (0.0, 0.0)},
)


def _gather_infer(x: Array, indices: Array) -> Layout:
    _planes("plane_gather", x=x, indices=indices)
    if x.shape[:2] != indices.shape[:2]:
        raise _error("plane_gather", "x and indices of the same planes", {}, x=x, indices=indices)
    return [(indices.shape, x.dtype)]


def _scatter_infer(x: Array, indices: Array, *, size: Pair) -> Layout:
    _planes("plane_scatter", x=x, indices=indices)
    if x.shape != indices.shape:
        raise _error("plane_scatter", "x and indices of one shape", {"size": size}, x=x, indices=indices)
    _check_pairs("plane_scatter", {"size": size}, x=x, indices=indices)
    return [((*x.shape[:2], *size), x.dtype)]


def _scatter_cost(x: Array, indices: Array, *, size: Pair) -> Cost:
    out = math.prod(x.shape[:2]) * math.prod(size)
    return Cost(x.itemsize * (x.size + out) + 8 * x.size, slots=4.0 * x.size + out)


def _gather_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for shape, windows in _EXAMPLES:
        out = (*shape[:2], *windows.number(shape[2:]))  # type: ignore[arg-type]
        yield Example((rng.standard_normal(shape).astype(dtype), rng.integers(0, math.prod(shape[2:]), out)), {})


def _scatter_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for shape, windows in _EXAMPLES:
        out = (*shape[:2], *windows.number(shape[2:]))  # type: ignore[arg-type]
        indices = rng.integers(0, math.prod(shape[2:]), out)
        yield Example((rng.standard_normal(out).astype(dtype), indices), {"size": shape[2:]})


PLANE_GATHER = KernelSpec(
    name="plane_gather",
    family="pooling",
    inputs=("x", "indices"),
    outputs=("y",),
    infer=_gather_infer,
    cost=lambda x, indices: Cost(x.itemsize * (x.size + indices.size) + 8 * indices.size, slots=4.0 * indices.size),
    examples=_gather_examples,
    formula="y[n, c, k] = x[n, c, indices[n, c, k]], planes in C order; NaN for an index outside the plane",
    source="the derivative of a maximum",
    tolerance={"float32": (0.0, 0.0), "float64": (0.0, 0.0)},
)
PLANE_SCATTER = KernelSpec(
    name="plane_scatter",
    family="pooling",
    inputs=("x", "indices"),
    outputs=("y",),
    infer=_scatter_infer,
    cost=_scatter_cost,
    examples=_scatter_examples,
    formula="y[n, c, j] = sum of x[n, c, k] over the k with indices[n, c, k] = j; others are left out",
    source="the transpose of plane_gather; unpooling: Zeiler, Taylor & Fergus, ICCV 2011",
    # At most some ten terms, each below 5, share a place: 10 u 5.
    tolerance={"float32": (0.0, 3e-6), "float64": (0.0, 6e-15)},
)


# ---------------------------------------------------------------------------------------------------------
# Means
# ---------------------------------------------------------------------------------------------------------


def _mean_check(op: str, size: Pair, options: dict[str, Any], **arrays: Array) -> Pair:
    divisor = options["divisor"]
    if divisor is not None and (divisor == 0 or not isinstance(divisor, (int, np.integer))):
        raise _error(op, "a divisor other than 0, an integer", options, **arrays)
    return check(op, size, options, **arrays)


def _avg_infer(x: Array, **options: Any) -> Layout:
    _planes("avg_pool2d", x=x)
    return [((*x.shape[:2], *_mean_check("avg_pool2d", x.shape[2:], options, x=x)), x.dtype)]


def _avg_cost(x: Array, **options: Any) -> Cost:
    out = math.prod(x.shape[:2]) * math.prod(_windows(options).number(x.shape[2:]))
    return Cost(x.itemsize * (x.size + out), slots=_window_slots(x, options))


def _back_infer(g: Array, *, size: Pair, **options: Any) -> Layout:
    _planes("avg_pool2d_backward", g=g)
    count = _mean_check("avg_pool2d_backward", size, options, g=g)
    if g.shape[2:] != count:
        expected = f"g (N, C, {count[0]}, {count[1]})"
        raise _error("avg_pool2d_backward", expected, {"size": size, **options}, g=g)
    return [((*g.shape[:2], *size), g.dtype)]


def _back_cost(g: Array, *, size: Pair, **options: Any) -> Cost:
    out = math.prod(g.shape[:2]) * math.prod(size)
    return Cost(g.itemsize * (g.size + out), slots=3.0 * g.size * math.prod(_windows(options).kernel) + out)


def _avg_options(number: int, windows: Windows) -> dict[str, Any]:
    options = {name: value for name, value in windows._asdict().items() if name != "dilation"}
    return {**options, "count_include_pad": number % 2 == 0, "divisor": 3 if number == 1 else None}


def _avg_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for number, (shape, windows) in enumerate(_EXAMPLES):
        for offset in range(1 + (windows.padding != (0, 0))):
            yield Example((rng.standard_normal(shape).astype(dtype),), _avg_options(number + offset, windows))


def _back_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for number, (shape, windows) in enumerate(_EXAMPLES):
        g = rng.standard_normal((*shape[:2], *windows.number(shape[2:]))).astype(dtype)  # type: ignore[arg-type]
        for offset in range(1 + (windows.padding != (0, 0))):
            yield Example((g,), {"size": shape[2:], **_avg_options(number + offset, windows)})


AVG_POOL2D = KernelSpec(
    name="avg_pool2d",
    family="pooling",
    inputs=("x",),
    outputs=("y",),
    infer=_avg_infer,
    cost=_avg_cost,
    examples=_avg_examples,
    formula=(
        "y[n, c, p, q] = sum x[n, c, h, w] over h = p s - padding + i, w likewise, inside the plane, / divisor; if "
        "that is None, / the elements of the window, those in the padding included (not beyond it) if count_include_pad"
    ),
    source="LeCun, Bottou, Bengio & Haffner, Proc. IEEE 86(11), 1998, section II.B",
    tolerance={"float32": (0.0, 3e-6), "float64": (0.0, 6e-15)},  # sums of at most six terms below 5
)
AVG_POOL2D_BACKWARD = KernelSpec(
    name="avg_pool2d_backward",
    family="pooling",
    inputs=("g",),
    outputs=("d_x",),
    infer=_back_infer,
    cost=_back_cost,
    examples=_back_examples,
    formula="d_x[n, c, h, w] = sum of g[n, c, p, q] / divisor over the windows (p, q) that hold (h, w)",
    source=AVG_POOL2D.source,
    tolerance={"float32": (0.0, 3e-6), "float64": (0.0, 6e-15)},
)
