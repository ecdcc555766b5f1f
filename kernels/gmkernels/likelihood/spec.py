"""Contracts of log-likelihoods p(x | logits) summed over the last axis, and of their gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gmkernels.arrays import on_gpu
from gmkernels.cost import Cost
from gmkernels.dense.spec import GPU_TILES
from gmkernels.dense.tiles import PANEL_BYTES, tiles
from gmkernels.registry import Array, Example, KernelError, KernelSpec, Layout, is_float

CHUNK = 16384
"""Longest part of a row that one block sums."""
GPU_CHUNK = 4096
"""The same on a GPU."""


def chunks(length: int, chunk: int = CHUNK) -> int:
    """Number of parts in which a row of that length is summed."""
    return -(-length // chunk)


def _check(op: str, logits: Array, x: Array) -> None:
    fits = 1 <= x.ndim <= logits.ndim and x.shape == logits.shape[logits.ndim - x.ndim :]
    if not fits or not is_float(logits.dtype.name) or x.dtype != logits.dtype:
        raise KernelError(
            f"{op}: expected floating logits (..., n) and x of the same dtype and of the shape of logits "
            f"or of its trailing axes, got logits {logits.dtype}{list(logits.shape)} and x "
            f"{x.dtype}{list(x.shape)}"
        )


def _log_prob_infer(logits: Array, x: Array) -> Layout:
    _check("bernoulli_log_prob", logits, x)
    return [(logits.shape[:-1], logits.dtype)]


def _sums_of_pieces(rows: tuple[int, ...], length: int, chunk: int) -> Layout:
    parts = chunks(length, chunk)
    return [((*rows, parts), np.float64)] if parts > 1 else []


def _log_prob_workspace(logits: Array, x: Array) -> Layout:
    return _sums_of_pieces(logits.shape[:-1], logits.shape[-1], GPU_CHUNK if on_gpu(logits) else CHUNK)


def _log_prob_cost(logits: Array, x: Array) -> Cost:
    return Cost(bytes=logits.itemsize * (logits.size + x.size), slots=34 * logits.size)


SHAPES: list[tuple[tuple[int, ...], int]] = [
    ((3, 5), 2), ((1,), 1), ((7,), 1), ((0, 3), 2), ((3, 0), 2), ((127, 129), 2), ((5, 4, 3), 2),
    ((5, 4, 3), 1), ((2, 3, 1023), 2), ((50, 20, 211), 2), ((20011, 1), 2), ((3, 5003, 1), 2),
    ((2, 20011), 2), ((2, 40009), 1), ((100, 784), 2),
]  # fmt: skip
"""Shape of the logits, and number of axes of x."""


def _arguments(rng: np.random.Generator, dtype: Any) -> Iterator[tuple[Any, Any]]:
    for i, (shape, x_ndim) in enumerate(SHAPES):
        logits = rng.standard_normal(shape) * (1.0, 5.0, 40.0)[i % 3]
        x = rng.random(shape[len(shape) - x_ndim :])
        yield logits.astype(dtype), (np.round(x) if i % 2 else x).astype(dtype)
    inf, nan = np.inf, np.nan
    special = [[inf, -inf], [inf, inf], [-inf, -inf], [nan, 0.0], [0.0, nan], [80.0, -80.0], [1e30, -1e30]]
    yield np.array(special, dtype), np.array([1.0, 0.0], dtype)


def _log_prob_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for logits, x in _arguments(rng, dtype):
        yield Example((logits, x), {})


BERNOULLI_LOG_PROB = KernelSpec(
    name="bernoulli_log_prob",
    family="likelihood",
    inputs=("logits", "x"),
    outputs=("log_prob",),
    infer=_log_prob_infer,
    cost=_log_prob_cost,
    examples=_log_prob_examples,
    formula="log_prob = sum_i x_i l_i - log(1 + exp(l_i))",
    source="Kingma & Welling, Auto-Encoding Variational Bayes, ICLR 2014, appendix C.1, eq. 11",
    # Terms of one sign, so relative to the sum. A term is good to about 6 u; a tile of up to 1024 terms is
    # summed in eight lanes or more: 128 u at worst. u = 6e-8 (1.1e-16).
    tolerance={"float32": (8e-6, 1e-37), "float64": (1.5e-14, 1e-307)},  # denormals are flushed
    workspace=_log_prob_workspace,
)


def _backward_infer(g: Array, logits: Array, x: Array) -> Layout:
    _check("bernoulli_log_prob_backward", logits, x)
    if g.shape != logits.shape[:-1] or g.dtype != logits.dtype:
        raise KernelError(
            f"bernoulli_log_prob_backward: expected g {logits.dtype}{list(logits.shape[:-1])} for logits "
            f"{logits.dtype}{list(logits.shape)}, got {g.dtype}{list(g.shape)}"
        )
    return [(logits.shape, logits.dtype)]


def _backward_cost(g: Array, logits: Array, x: Array) -> Cost:
    return Cost(bytes=logits.itemsize * (2 * logits.size + x.size + g.size), slots=26 * logits.size)


def _backward_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for logits, x in _arguments(rng, dtype):
        yield Example((rng.standard_normal(logits.shape[:-1]).astype(dtype), logits, x), {})


BERNOULLI_LOG_PROB_BACKWARD = KernelSpec(
    name="bernoulli_log_prob_backward",
    family="likelihood",
    inputs=("g", "logits", "x"),
    outputs=("d_logits",),
    infer=_backward_infer,
    cost=_backward_cost,
    examples=_backward_examples,
    formula="d_logits_i = g (x_i - sigmoid(l_i))",
    source="the derivative of bernoulli_log_prob",
    # About 8 u relative where x is 0 or 1; between them x - sigmoid(l) may cancel: 4 u absolute,
    # times |g| < 5 in the examples.
    tolerance={"float32": (5e-7, 1.2e-6), "float64": (1e-15, 2.5e-15)},
)


# ---------------------------------------------------------------------------------------------------------
# linear_bernoulli_log_prob: the logits are never stored, and the backward pass makes them again
# ---------------------------------------------------------------------------------------------------------

RESIDUAL_BYTES = 1 << 25
"""Most bytes of the residuals of a layer, or of a part of its rows, that are held on the CPU: gmcore stores them below
that (`LINEAR_BERNOULLI_RESIDUAL`), which is cheaper there than to make them again."""
GPU_COLUMNS = 64
"""Logits of a row that a block adds up on a GPU."""
_SHARE, _LEAST_BYTES = 6, 1 << 21
"""On a GPU parts of each of the two gradients take a sixth of the memory that the logits would at most, or 2 MB."""


def _refuse(op: str, expected: str, **arrays: Array) -> KernelError:
    given = ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in arrays.items())
    return KernelError(f"{op}: expected {expected}, got {given}")


def _check_layer(op: str, h: Array, weight: Array, bias: Array, x: Array, **g: Array) -> tuple[int, ...]:
    """The shape of the logits."""
    layer = h.ndim >= 1 and weight.ndim == 2 and h.shape[-1] == weight.shape[1] and bias.shape == weight.shape[:1]
    logits = (*h.shape[:-1], *bias.shape)
    data = 1 <= x.ndim <= len(logits) and x.shape == logits[len(logits) - x.ndim :]
    arrays = g | {"h": h, "weight": weight, "bias": bias, "x": x}
    fits = layer and data and all(a.shape == logits[:-1] for a in g.values())
    if not fits or not is_float(h.dtype.name) or len({a.dtype for a in arrays.values()}) > 1:
        expected = (
            "floating h (..., in), weight (out, in), bias (out,) and x (..., out) or of the trailing axes of that, all "
            "of one dtype"
        )
        raise _refuse(op, f"g (...), {expected}" if g else expected, **arrays)
    return logits


def _linear_infer(h: Array, weight: Array, bias: Array, x: Array) -> Layout:
    return [(_check_layer("linear_bernoulli_log_prob", h, weight, bias, x)[:-1], h.dtype)]


def _linear_workspace(h: Array, weight: Array, bias: Array, x: Array) -> Layout:
    """On a GPU the sums of pieces of the rows, elsewhere the weight in panels."""
    n, k = weight.shape
    if on_gpu(h):
        return [((math.prod(h.shape[:-1]), chunks(n, GPU_COLUMNS)), np.float64)]
    width = PANEL_BYTES // h.itemsize
    return [((-(-n // width) * width * k,), h.dtype)]


def _linear_cost(h: Array, weight: Array, bias: Array, x: Array) -> Cost:
    rows, (n, k) = math.prod(h.shape[:-1]), weight.shape
    return Cost(
        bytes=h.itemsize * (h.size + weight.size + n + x.size + rows), flops=2.0 * rows * n * k, slots=36 * rows * n
    )


def _layers(rng: np.random.Generator, dtype: Any) -> Iterator[tuple[Any, ...]]:
    for i, (shape, n, x_ndim) in enumerate([
        ((3, 5), 7, 2), ((4,), 1, 1), ((0, 3), 2, 2), ((3, 2), 0, 1), ((5, 3, 43), 129, 2), ((3, 5, 4), 2, 3),
        ((523, 97), 131, 2), ((67, 97), 523, 2), ((3, 1), 2053, 2),
    ]):  # fmt: skip
        *leading, k = shape
        h, bias = rng.standard_normal(shape), rng.standard_normal(n)
        weight = rng.standard_normal((n, k)) / math.sqrt(k)  # the tolerance relies on logits of variance 2
        x = rng.random((*leading, n)[len(shape) - x_ndim :])
        yield tuple(a.astype(dtype) for a in (h, weight, bias, np.round(x) if i % 2 else x))
    yield np.empty((3, 0), dtype), np.empty((5, 0), dtype), np.arange(5, dtype=dtype), np.ones(5, dtype)


def _linear_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for layer in _layers(rng, dtype):
        yield Example(layer, {})
    inf, nan = np.inf, np.nan
    limits = [(inf, 1), (-inf, 0), (inf, 0), (-inf, 1), (nan, 1), (nan, 0), (80, 1), (-80, 0), (1e30, 0.5)]
    logits, x = np.split(np.array(limits, dtype), 2, axis=1)
    yield Example((logits.copy(), np.ones((1, 1), dtype), np.zeros(1, dtype), x.copy()), {})


# A logit of k <= 97 products is off by 0.64 k u = 4e-6 (see dense.spec), and each term and each residual with it, whose
# slopes are at most 1: relative to terms that are above a half in the mean, 8e-6. A residual also rounds by 4 u.
# u = 6e-8 (1.1e-16).
_LINEAR_TOLERANCE = {"float32": (1e-5, 5e-6), "float64": (2e-14, 1e-14)}

LINEAR_BERNOULLI_LOG_PROB = KernelSpec(
    name="linear_bernoulli_log_prob",
    family="likelihood",
    inputs=("h", "weight", "bias", "x"),
    outputs=("log_prob",),
    infer=_linear_infer,
    cost=_linear_cost,
    examples=_linear_examples,
    formula="l = h weight^T + bias; log_prob = sum_i x_i l_i - log(1 + exp(l_i))",
    source="bernoulli_log_prob of a linear layer, whose output is not stored",
    tolerance=_LINEAR_TOLERANCE,
    workspace=_linear_workspace,
)


def _linear_backward_infer(g: Array, h: Array, weight: Array, bias: Array, x: Array) -> Layout:
    _check_layer("linear_bernoulli_log_prob_backward", h, weight, bias, x, g=g)
    return [(h.shape, h.dtype), (weight.shape, h.dtype), (weight.shape[:1], h.dtype)]


def rows_at_once(rows: int, n: int, itemsize: int) -> int:
    """Of how many rows the CPU holds the residuals at one time."""
    return max(1, min(rows, RESIDUAL_BYTES // max(1, n * itemsize)))


def gpu_parts(own: int, other: int, k: int, itemsize: int) -> int:
    """Parts into which GPU kernels cut the sums over `other` rows of a gradient (own, k), which are added in order: as
    many as keep a device busy with tiles of 32 rows, and as the bound on the workspace allows."""
    wanted = -(-GPU_TILES // 2 // max(1, -(-own // 32)))
    room = max(own * other * itemsize // _SHARE, _LEAST_BYTES) // (max(itemsize, 4) * max(1, own * k))
    return max(1, min(wanted, other // GPU_COLUMNS, room))


def gpu_backward_workspace(h: Array, weight: Array) -> tuple[Layout, Layout]:
    """Parts of the gradient of h, and of those of weight and bias; none where there is one part."""
    rows, (n, k) = math.prod(h.shape[:-1]), weight.shape
    real = np.promote_types(np.float32, h.dtype)
    of_h, of_weight = gpu_parts(rows, n, k, h.itemsize), gpu_parts(n, rows, k, h.itemsize)
    return (
        [((of_h, rows, k), real)] if of_h > 1 else [],
        [((of_weight, n, k), real), ((of_weight, n), real)] if of_weight > 1 else [],
    )


def _linear_backward_workspace(g: Array, h: Array, weight: Array, bias: Array, x: Array) -> Layout:
    """On a GPU the parts of sums; elsewhere what part of the rows takes, and its gradients."""
    rows, (n, k) = g.size, weight.shape
    if on_gpu(h):
        return [layout for part in gpu_backward_workspace(h, weight) for layout in part]
    taken = rows_at_once(rows, n, h.itemsize)
    tiles_of_columns = tiles(taken, k, n)[1]
    return [
        ((taken, n), h.dtype), ((taken,), h.dtype), ((taken, tiles_of_columns), np.float64), ((taken, k), h.dtype),
        (weight.shape, h.dtype), ((n,), h.dtype),
    ]  # fmt: skip


def _linear_backward_cost(g: Array, h: Array, weight: Array, bias: Array, x: Array) -> Cost:
    """On a GPU the logits are made twice, for the gradient of h and for that of the weight: to make them once would
    take the gradient of the weight from all rows in one block, or store them as the CPU does, those of some rows."""
    rows, (n, k), products = g.size, weight.shape, 4 if on_gpu(h) else 3
    return Cost(
        bytes=h.itemsize * (2 * g.size + 4 * h.size + 3 * weight.size + 2 * x.size),
        flops=2.0 * products * rows * n * k,
        slots=56 * rows * n,
    )


def _linear_backward_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for h, weight, bias, x in _layers(rng, dtype):
        g = rng.standard_normal(h.shape[:-1]) / math.sqrt(max(1, math.prod(h.shape[:-1])))
        yield Example((np.asarray(g, dtype), h, weight, bias, x), {})


LINEAR_BERNOULLI_LOG_PROB_BACKWARD = KernelSpec(
    name="linear_bernoulli_log_prob_backward",
    family="likelihood",
    inputs=("g", "h", "weight", "bias", "x"),
    outputs=("d_h", "d_weight", "d_bias"),
    infer=_linear_backward_infer,
    cost=_linear_backward_cost,
    examples=_linear_backward_examples,
    formula=(
        "r = g (x - sigmoid(h weight^T + bias)), with g a number for each row; d_h = r weight; d_weight = r^T h; "
        "d_bias = the column sums of r"
    ),
    source="the derivative of linear_bernoulli_log_prob, with the logits made again",
    # A weight gradient sums `rows` <= 523 products whose squares add up to 1/4; that of h up to 2053, of numbers of
    # g <= 4 / sqrt(rows): sqrt(k) u sum |a||b| < u 0.4 k = 5e-5 (see dense.spec). Residuals are off by 4e-6, a quarter
    # of what logits are and their rounding, with either sign. float16 and bfloat16 are multiplied as two halves.
    tolerance={"float32": (0.0, 1e-4), "float64": (0.0, 2e-13)},
    workspace=_linear_backward_workspace,
)


# ---------------------------------------------------------------------------------------------------------
# linear_bernoulli_residual: the same, with a pass over the logits saved for one residual stored
# ---------------------------------------------------------------------------------------------------------


def _residual_infer(h: Array, weight: Array, bias: Array, x: Array) -> Layout:
    logits = _check_layer("linear_bernoulli_residual", h, weight, bias, x)
    return [(logits[:-1], h.dtype), (logits, h.dtype)]


def linear_tiles(h: Array, weight: Array) -> tuple[int, int]:
    """Numbers of row tiles and of column tiles of the logits."""
    n, k = weight.shape
    return tiles(math.prod(h.shape[:-1]), k, n)


def _residual_workspace(h: Array, weight: Array, bias: Array, x: Array) -> Layout:
    return [((math.prod(h.shape[:-1]), linear_tiles(h, weight)[1]), np.float64)]


def _residual_cost(h: Array, weight: Array, bias: Array, x: Array) -> Cost:
    rows, (n, k) = math.prod(h.shape[:-1]), weight.shape
    return Cost(
        bytes=h.itemsize * (h.size + weight.size + x.size + rows * n), flops=2.0 * rows * n * k, slots=44 * rows * n
    )


LINEAR_BERNOULLI_RESIDUAL = KernelSpec(
    name="linear_bernoulli_residual",
    family="likelihood",
    inputs=("h", "weight", "bias", "x"),
    outputs=("log_prob", "residual"),
    infer=_residual_infer,
    cost=_residual_cost,
    examples=_linear_examples,
    formula="l = h weight^T + bias; log_prob = sum_i x_i l_i - log(1 + exp(l_i)); residual = x - sigmoid(l)",
    source="bernoulli_log_prob of a linear layer; the residual is the gradient with respect to its output",
    tolerance=_LINEAR_TOLERANCE,
    workspace=_residual_workspace,
)


def _residual_backward_infer(g: Array, residual: Array, h: Array, weight: Array) -> Layout:
    layer = h.ndim >= 1 and weight.ndim == 2 and h.shape[-1] == weight.shape[1]
    fits = layer and residual.shape == (*h.shape[:-1], weight.shape[0]) and g.shape == h.shape[:-1]
    arrays = {"g": g, "residual": residual, "h": h, "weight": weight}
    if not fits or not is_float(h.dtype.name) or len({a.dtype for a in arrays.values()}) > 1:
        expected = "floating g (...), residual (..., out), h (..., in) and weight (out, in) of one dtype"
        raise _refuse("linear_bernoulli_residual_backward", expected, **arrays)
    return [(h.shape, h.dtype), (weight.shape, h.dtype), (weight.shape[:1], h.dtype)]


def _residual_backward_cost(g: Array, residual: Array, h: Array, weight: Array) -> Cost:
    return Cost(
        bytes=h.itemsize * (3 * residual.size + 4 * h.size + 2 * weight.size),
        flops=4.0 * residual.size * weight.shape[1],
        slots=2 * (residual.size + 2 * h.size),
    )


def _residual_backward_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for shape, n in (
        ((3, 5), 7), ((4,), 1), ((0, 3), 2), ((3, 2), 0), ((3, 0), 2), ((3, 43, 29), 131), ((67, 97), 1031),
    ):  # fmt: skip
        rows = math.prod(shape[:-1])
        g, h = rng.standard_normal(shape[:-1]), rng.standard_normal(shape)
        residual = rng.uniform(-1.0, 1.0, (*shape[:-1], n)) / math.sqrt(max(rows, n, 1))
        yield Example(tuple(np.asarray(a, dtype) for a in (g, residual, h, rng.standard_normal((n, shape[-1])))), {})


LINEAR_BERNOULLI_RESIDUAL_BACKWARD = KernelSpec(
    name="linear_bernoulli_residual_backward",
    family="likelihood",
    inputs=("g", "residual", "h", "weight"),
    outputs=("d_h", "d_weight", "d_bias"),
    infer=_residual_backward_infer,
    cost=_residual_backward_cost,
    examples=_residual_backward_examples,
    formula=(
        "d_h = g (residual weight); d_weight = residual^T (g h); d_bias = the column sums of g residual, "
        "with g a number for each row"
    ),
    source="the derivative of linear_bernoulli_residual's log_prob, whose logits have the gradient g residual",
    # Sums of at most 1031 products that add up to about 1 in the mean square: as for dense.spec.MATMUL, times |g| < 4.
    tolerance={"float32": (0.0, 3.2e-4), "float64": (0.0, 6e-13)},
    workspace=lambda g, residual, h, weight: [(h.shape, h.dtype)],  # g h
)
