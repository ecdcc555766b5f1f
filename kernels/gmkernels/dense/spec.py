"""Contracts of dense layers: products, affine maps with an activation, gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gmkernels.arrays import on_gpu
from gmkernels.cost import Cost
from gmkernels.registry import Array, Example, KernelError, KernelSpec, Layout, is_float

ACTIVATIONS = ("identity", "tanh", "sigmoid", "relu", "softplus")
_ACTIVATION_SLOTS = {"identity": 1, "tanh": 16, "sigmoid": 16, "relu": 1, "softplus": 32}
_DERIVATIVE_SLOTS = {"identity": 0, "tanh": 2, "sigmoid": 3, "relu": 2, "softplus": 16}
"""Of the product of a gradient and the derivative, from the activation's value."""


def _describe(**arrays: Array) -> str:
    return ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in arrays.items())


def _require(condition: bool, op: str, expected: str, **arrays: Array) -> None:
    if not condition:
        raise KernelError(f"{op}: expected {expected}, got {_describe(**arrays)}")


def _require_float(op: str, **arrays: Array) -> None:
    dtypes = {a.dtype for a in arrays.values()}
    if len(dtypes) > 1 or not is_float(next(iter(dtypes)).name):
        raise KernelError(f"{op}: expected arrays of one floating dtype, got {_describe(**arrays)}")


def _require_activation(op: str, activation: str) -> None:
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise KernelError(f"{op}: unknown activation {activation!r}; expected one of {known}")


# ---------------------------------------------------------------------------------------------------------
# matmul
# ---------------------------------------------------------------------------------------------------------

GPU_TILES = 264
"""Tiles of 64 by 64 that keep a GPU busy: two for each multiprocessor of an H200, on every device the same, so that
results are."""
_SHORTEST_SPLIT = 128
"""Products that a part of a split sum has, at least."""


def splits(m: int, k: int, n: int, products: int = 1) -> int:
    """Parts into which GPU kernels cut the sums of (m, k) by (k, n) products, so that a small result of long sums,
    such as a weight's gradient, keeps the device busy. The parts are added in order by a second launch."""
    return max(1, min(GPU_TILES // max(1, products * -(-m // 64) * -(-n // 64)), k // _SHORTEST_SPLIT))


def product_workspace(a: Array, m: int, k: int, n: int, products: int = 1) -> Layout:
    """Scratch of (m, k) by (k, n) products in the dtype and on the device of `a`: of parts, where sums are cut."""
    parts = splits(m, k, n, products) if on_gpu(a) else 1
    return [((parts, products, m, n), np.promote_types(np.float32, a.dtype))] if parts > 1 else []


def sizes(a: Array, b: Array) -> tuple[int, int, int, int]:
    """Of a stack of (m, k) by (k, n) products: how many there are, m, k and n."""
    return math.prod(a.shape[:-2]), *a.shape[-2:], b.shape[-1]


def stacks(inputs: Sequence[Any]) -> tuple[Any, Any]:
    """Matrices, or stacks of them with one leading axis; leading axes that do not merge into one are packed."""
    a, b = inputs
    products, m, k, n = sizes(a, b)
    return (a.reshape(products, m, k), b.reshape(products, k, n)) if a.ndim > 3 else (a, b)


def apart(a: Any) -> int:
    """Elements from one matrix of a stack to the next; 0 if there is one."""
    return a.strides[0] // a.itemsize if a.ndim == 3 and a.shape[0] > 1 else 0


def _matmul_infer(a: Array, b: Array) -> Layout:
    fits = a.ndim == b.ndim >= 2 and (*a.shape[:-2], a.shape[-1]) == b.shape[:-1]
    _require(fits, "matmul", "a (..., m, k) and b (..., k, n) with equal leading axes", a=a, b=b)
    _require_float("matmul", a=a, b=b)
    return [((*a.shape[:-1], b.shape[-1]), a.dtype)]


def _matmul_cost(a: Array, b: Array) -> Cost:
    products, m, k, n = sizes(a, b)
    return Cost(bytes=a.itemsize * products * (m * k + k * n + m * n), flops=2.0 * products * m * n * k)


def _matmul_workspace(a: Array, b: Array) -> Layout:
    products, m, k, n = sizes(a, b)
    return product_workspace(a, m, k, n, products)


def _matmul_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    # Scaled so that a product has variance 1 whatever k is; the tolerance relies on it.
    for m, k, n in [
        (3, 5, 7), (1, 1, 1), (0, 3, 4), (3, 4, 0), (4, 0, 3), (1, 127, 129), (129, 1023, 1), (127, 129, 131),
        (100, 784, 500), (523, 97, 211),
    ]:  # fmt: skip
        a = rng.standard_normal((m, k)).astype(dtype)
        b = (rng.standard_normal((k, n)) / math.sqrt(max(k, 1))).astype(dtype)
        yield Example((a, b), {})
        yield Example((np.ascontiguousarray(a.T).T, np.ascontiguousarray(b.T).T), {})
    for stack, m, k, n in [((3,), 5, 7, 4), ((2, 3), 33, 65, 17), ((0,), 3, 4, 5), ((2,), 3, 0, 5), ((2,), 7, 300, 9)]:
        a = rng.standard_normal((*stack, m, k)).astype(dtype)
        b = (rng.standard_normal((*stack, k, n)) / math.sqrt(max(k, 1))).astype(dtype)
        yield Example((a, b), {})
        yield Example((np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2), np.broadcast_to(b[:1], b.shape)), {})


# A sum of k products rounds like a random walk: sqrt(k) u sum |a||b| (Higham & Mary, SIAM J. Sci. Comput.
# 41(5), 2019). The examples have k <= 1023 and sum |a||b| about 0.64 sqrt(k): u 0.64 k, once or twice over.
_PRODUCT_TOLERANCE = {"float32": (0.0, 8e-5), "float64": (0.0, 1.5e-13)}

MATMUL = KernelSpec(
    name="matmul",
    family="dense",
    inputs=("a", "b"),
    outputs=("c",),
    infer=_matmul_infer,
    cost=_matmul_cost,
    examples=_matmul_examples,
    formula="c[..., i, j] = sum_l a[..., i, l] b[..., l, j]",
    source="gemm of Dongarra, Du Croz, Hammarling & Duff, ACM TOMS 16(1), 1990",
    tolerance=_PRODUCT_TOLERANCE,
    workspace=_matmul_workspace,
    size=lambda a, b: 2 * math.prod(sizes(a, b)),
)


# ---------------------------------------------------------------------------------------------------------
# linear
# ---------------------------------------------------------------------------------------------------------


def _linear_infer(x: Array, weight: Array, bias: Array | None = None, *, activation: str = "identity") -> Layout:
    arrays = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    _require_activation("linear", activation)
    fits = x.ndim >= 1 and weight.ndim == 2 and x.shape[-1] == weight.shape[1]
    fits = fits and (bias is None or bias.shape == weight.shape[:1])
    _require(fits, "linear", "x (..., in), weight (out, in) and bias (out,)", **arrays)
    _require_float("linear", **arrays)
    return [((*x.shape[:-1], weight.shape[0]), x.dtype)]


def _linear_flops(x: Array, weight: Array, bias: Array | None = None, *, activation: str = "identity") -> int:
    return 2 * math.prod(x.shape[:-1]) * weight.shape[0] * weight.shape[1]


def _linear_workspace(x: Array, weight: Array, bias: Array | None = None, *, activation: str = "identity") -> Layout:
    n, k = weight.shape
    return product_workspace(x, math.prod(x.shape[:-1]), k, n)


def _linear_cost(x: Array, weight: Array, bias: Array | None = None, *, activation: str = "identity") -> Cost:
    y_size = math.prod(x.shape[:-1]) * weight.shape[0]
    flops = _linear_flops(x, weight)
    return Cost(x.itemsize * (x.size + weight.size + y_size), flops, _ACTIVATION_SLOTS[activation] * y_size)


def _linear_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for (*leading, inputs), outputs, activation in [
        ((5, 3), 7, "tanh"), ((1, 1), 1, "sigmoid"), ((0, 3), 4, "relu"), ((3, 4), 0, "tanh"),
        ((4, 0), 3, "softplus"), ((127,), 129, "identity"), ((3, 43, 127), 131, "sigmoid"),
        ((2, 1, 1023), 31, "relu"), ((129, 211), 127, "softplus"), ((100, 784), 500, "tanh"),
        ((523, 97), 211, "identity"),
    ]:  # fmt: skip
        x = rng.standard_normal((*leading, inputs)).astype(dtype)
        weight = (rng.standard_normal((outputs, inputs)) / math.sqrt(max(inputs, 1))).astype(dtype)
        yield Example((x, weight, rng.standard_normal(outputs).astype(dtype)), {"activation": activation})


LINEAR = KernelSpec(
    name="linear",
    family="dense",
    inputs=("x", "weight", "bias"),
    outputs=("y",),
    infer=_linear_infer,
    cost=_linear_cost,
    examples=_linear_examples,
    formula="y = activation(x weight^T + bias); the bias may be left out",
    source="torch.nn.functional.linear, with the activation applied to each tile of the product",
    tolerance=_PRODUCT_TOLERANCE,  # every activation has slope at most 1
    workspace=_linear_workspace,
    size=_linear_flops,
)


# ---------------------------------------------------------------------------------------------------------
# activation_backward
# ---------------------------------------------------------------------------------------------------------

BLOCK_SIZE = 32768  # elements of a block
STRIP = 1024  # columns of a block, so that its column sums stay in the L1 cache


def backward_blocks(rows: int, features: int) -> tuple[int, int, int]:
    """Rows in a block, number of row blocks, number of column strips of `activation_backward`."""
    rows_per_block = max(1, BLOCK_SIZE // max(1, min(features, STRIP)))
    return rows_per_block, -(-rows // rows_per_block), -(-features // STRIP)


GPU_STRIP = 64
"""Columns of a block of `activation_backward` on a GPU."""


def gpu_row_blocks(rows: int, features: int) -> int:
    """Number of row blocks of `activation_backward` on a GPU: of 64 rows or more, and not above 2048 blocks in all."""
    return max(1, min(-(-rows // 64), 2048 // max(1, -(-features // GPU_STRIP))))


def _backward_infer(g: Array, y: Array, *, activation: str) -> Layout:
    _require_activation("activation_backward", activation)
    _require(g.ndim >= 1 and g.shape == y.shape, "activation_backward", "g and y (..., features)", g=g, y=y)
    _require_float("activation_backward", g=g, y=y)
    return [(g.shape, g.dtype), (g.shape[-1:], g.dtype)]


def _backward_workspace(g: Array, y: Array, *, activation: str) -> Layout:
    rows, features = math.prod(g.shape[:-1]), g.shape[-1]
    blocks = gpu_row_blocks(rows, features) if on_gpu(g) else backward_blocks(rows, features)[1]
    return [((blocks, features), np.dtype("float64"))]


def _backward_cost(g: Array, y: Array, *, activation: str) -> Cost:
    read = 1 if activation == "identity" else 2
    return Cost(g.itemsize * (read + 1) * g.size, 0, (2 + _DERIVATIVE_SLOTS[activation]) * g.size)


def _backward_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for shape, activation in [
        ((5, 3), "tanh"), ((1,), "sigmoid"), ((0, 3), "relu"), ((3, 0), "tanh"), ((1023, 1), "softplus"),
        ((3, 43, 127), "identity"), ((129, 1031), "relu"), ((523, 211), "sigmoid"), ((1000, 784), "tanh"),
        ((4, 2, 129), "softplus"),
    ]:  # fmt: skip
        pre = rng.standard_normal(shape)
        y = {
            "identity": pre,
            "tanh": np.tanh(pre),
            "sigmoid": 1 / (1 + np.exp(-pre)),
            "relu": np.maximum(pre, 0),
            "softplus": np.logaddexp(0, pre),
        }[activation]
        yield Example((rng.standard_normal(shape).astype(dtype), y.astype(dtype)), {"activation": activation})


ACTIVATION_BACKWARD = KernelSpec(
    name="activation_backward",
    family="dense",
    inputs=("g", "y"),
    outputs=("d_pre", "d_bias"),
    infer=_backward_infer,
    workspace=_backward_workspace,
    cost=_backward_cost,
    examples=_backward_examples,
    formula=(
        "d_pre = g f'(pre) with f' from y = f(pre): tanh 1 - y^2, sigmoid y (1 - y), relu y > 0, "
        "softplus 1 - exp(-y), identity 1; d_bias = sum of d_pre over all leading axes"
    ),
    source="Rumelhart, Hinton & Williams, Nature 323, 1986",
    # An element of d_pre rounds 3 times; a sum of n <= 1023 of them adds n such errors, at worst, of elements
    # whose mean magnitude is below 1: 3 u n = 1.8e-4 (they cancel in practice).
    tolerance={"float32": (1e-6, 2e-4), "float64": (1e-14, 4e-13)},
)
