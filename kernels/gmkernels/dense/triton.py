"""Dense layers in Triton: tiles of products on tensor cores, and the activation while a tile is in registers.

A program makes one tile of the product, of all of k or of one part of it (`spec.splits`): a second launch adds the
parts in order, so that results repeat bit for bit. Operands are read where they lie, by rows, by columns, or with any
strides. Programs go over the tiles in groups of rows, so that those which run at one time share what they read.

Precision. Half types are multiplied as they are, and float64 by the float64 tensor cores. float32 is multiplied as
"tf32x3": each operand is split into two numbers of 11 bits, a = a1 + a2 + e with |a2| <= 2^-11 |a| and |e| <= 2^-21 |a|
(the tensor cores cut a2 off), and a b taken as a1 b1 + a1 b2 + a2 b1. What is left out is at most 2^-20 |a b| of a
product (16 u), with random signs, so of a sum about 2^-20 sqrt(sum (a b)^2). Tensor cores cut sums off instead of
rounding them, which adds up; but here they add up BLOCK_K products at a time, and these sums go into the total by
rounded additions of float32: 12 cuts of 2^-23 of a sum over 32 products, then k / 32 roundings. With products of
variance 1 / k, which `spec.MATMUL` has, all of this stays below 3e-6 at k = 1023, where plain float32 sums are off by
4e-5 at worst; the tolerance is 8e-5. The rate is a third of that of tf32, 133 Tflop/s on an H200, twice that of
float32's multiply-adds ("ieee"). Magnitudes above 3.39e38 overflow in the split, parts of those below 1e-35 underflow.

Two types. Integers up to 255 are exact in every type, and are converted to that of the other operand. float32 meets
them, or a half type, on the tensor cores of half types: it is split into w = high + low + e of bfloat16 (or the other's
type), high being w and low the rest, each rounded to nearest: |e| <= 2^-18 |w|, and every product of a part and an
integer, or of two halves, is exact in float32. So a sum is off by 2^-18 sum |x w| at worst, 64 u, beside its roundings;
at two products of bfloat16 for each this takes a third of the time of "tf32x3".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl
from triton import knobs

from gmkernels import launch
from gmkernels.dense import spec
from gmkernels.elementary_triton import expm1, sigmoid, softplus, tanh, widened
from gmkernels.reduce.triton import add_up

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]


@triton.jit
def _activate(y, ACTIVATION: tl.constexpr):
    if ACTIVATION == "tanh":
        return tanh(y)
    elif ACTIVATION == "sigmoid":
        return sigmoid(y)
    elif ACTIVATION == "relu":
        return tl.where(y <= 0, 0.0, y)  # NaN stays
    elif ACTIVATION == "softplus":
        return softplus(y)
    else:
        return y


# ---------------------------------------------------------------------------------------------------------
# Products
# ---------------------------------------------------------------------------------------------------------


SPLIT_TYPE = tl.constexpr(tl.float16 if knobs.runtime.interpret else tl.bfloat16)
"""In which float32 numbers are split: Triton's interpreter multiplies the bits of bfloat16 numbers as integers."""


@triton.jit
def _halves(w, other):
    """The two parts of float32 numbers, in the type in which they meet a tile of another type."""
    half: tl.constexpr = SPLIT_TYPE if other.dtype == tl.uint8 else other.dtype
    high = w.to(half)
    return high, (w - high.to(tl.float32)).to(half)


@triton.jit
def _converted(x, dtype: tl.constexpr):
    """A tile in another type. Triton 3.6 lays operands of float64 out for the narrowest type that they are made of, and
    fails on Hopper; it does not look behind a sum."""
    x = x.to(dtype)
    return tl.sum(tl.expand_dims(x, 2), axis=2) if dtype == tl.float64 else x


@triton.jit
def add_product(total, x, y, PRECISION: tl.constexpr):
    """total + x y, of tiles of two types: see "Two types" at the top of this file."""
    if x.dtype == y.dtype:
        total = tl.dot(x, y, total, input_precision=PRECISION, out_dtype=total.dtype)
    elif x.dtype == tl.float32:
        high, low = _halves(x, y)
        y = y.to(high.dtype)
        total = tl.dot(high, y, tl.dot(low, y, total))
    elif y.dtype == tl.float32:
        high, low = _halves(y, x)
        x = x.to(high.dtype)
        total = tl.dot(x, high, tl.dot(x, low, total))
    elif x.dtype == tl.uint8:
        total = tl.dot(_converted(x, y.dtype), y, total, input_precision=PRECISION, out_dtype=total.dtype)
    else:
        total = tl.dot(x, _converted(y, x.dtype), total, input_precision=PRECISION, out_dtype=total.dtype)
    return total


@triton.jit
def add_products(
    total, a, b, row, column, m, n, first, last, k, a_row, a_column, b_row, b_column,
    A_UNIT: tl.constexpr, B_UNIT: tl.constexpr, A: tl.constexpr, B: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """total + the product of rows of a, an (m, k) matrix, and columns of b (k, n), along first <= inner < last.

    A and B say whether the elements of a "row" or a "column" of that matrix are neighbours; the stride between rows or
    columns then is in multiples of its unit. Only the last block of all k is not whole.
    """
    a_row *= A_UNIT
    a_column *= A_UNIT
    b_row *= B_UNIT
    b_column *= B_UNIT
    if A == "row":
        a_column = 1
    elif A == "column":
        a_row = 1
    if B == "row":
        b_column = 1
    elif B == "column":
        b_row = 1
    inner = tl.arange(0, BLOCK_K)
    a += row[:, None] * a_row + (first + inner)[None, :] * a_column
    b += (first + inner)[:, None] * b_row + column[None, :] * b_column
    for at in range(first, last, BLOCK_K):
        left = k - at
        x = tl.load(a, (row[:, None] < m) & (inner[None, :] < left), 0.0)
        y = tl.load(b, (inner[:, None] < left) & (column[None, :] < n), 0.0)
        total = add_product(total, x, y, PRECISION)
        a += BLOCK_K * a_column
        b += BLOCK_K * b_row
    return total


@triton.jit
def place(tile, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """The first row and the first column of a tile: tiles go in groups of GROUP blocks of rows."""
    columns = tl.cdiv(n, BLOCK_N)
    group = tile // (GROUP * columns)
    height = tl.minimum(GROUP, tl.cdiv(m, BLOCK_M) - group * GROUP)
    within = tile - group * GROUP * columns
    return (group * GROUP + within % height) * BLOCK_M, within // height * BLOCK_N


@triton.jit(
    do_not_specialize=[
        "products", "m", "n", "k", "a_row", "a_column", "b_row", "b_column", "a_apart", "b_apart", "blocks",
    ]
)  # fmt: skip
def product(
    a, b, bias, c, products, m, n, k, a_row, a_column, b_row, b_column, a_apart, b_apart, blocks,
    M_UNIT: tl.constexpr, N_UNIT: tl.constexpr, K_UNIT: tl.constexpr, A_UNIT: tl.constexpr, B_UNIT: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, PRECISION: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """A tile of one product of a stack, c = activation(a b + bias), or a part of that, of so many blocks of k; sizes
    are in units."""
    m *= M_UNIT
    n *= N_UNIT
    k *= K_UNIT
    tiles = tl.cdiv(m, BLOCK_M) * tl.cdiv(n, BLOCK_N)
    which = (tl.program_id(0) // tiles).to(m.dtype)
    a += which * a_apart * A_UNIT
    b += which * b_apart * B_UNIT
    top, left = place(tl.program_id(0) % tiles, m, n, BLOCK_M, BLOCK_N, GROUP)
    row, column = top + tl.arange(0, BLOCK_M), left + tl.arange(0, BLOCK_N)
    split = tl.program_id(1)
    first = split * blocks * BLOCK_K
    total = add_products(
        widened(tl.zeros((BLOCK_M, BLOCK_N), c.dtype.element_ty)), a, b, row, column, m, n, first,
        tl.minimum(k, first + blocks * BLOCK_K), k, a_row, a_column, b_row, b_column, A_UNIT, B_UNIT, A, B, BLOCK_K,
        PRECISION,
    )  # fmt: skip
    if bias is not None:
        total += widened(tl.load(bias + column, column < n, 0.0))[None, :]
    total = _activate(total, ACTIVATION)
    mask = (row[:, None] < m) & (column[None, :] < n)
    c += (split.to(m.dtype) * products + which) * m * n
    tl.store(c + row[:, None].to(m.dtype) * n + column[None, :], total.to(c.dtype.element_ty), mask)


@triton.jit
def _add_parts_at(parts, bias, c, n, columns, count, i, mask, ACTIVATION: tl.constexpr):
    total = tl.load(parts + i, mask)
    for _ in range(1, count):
        parts += n
        total += tl.load(parts + i, mask)
    if bias is not None:
        total += widened(tl.load(bias + i % columns, mask))
    tl.store(c + i, _activate(total, ACTIVATION).to(c.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["n", "columns", "count"])
def _add_parts(parts, bias, c, n, columns, count, UNIT: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """c = activation(the sum of `count` arrays of n elements + bias), in rows of `columns`; n is in units."""
    n *= UNIT
    start = tl.program_id(0).to(n.dtype) * BLOCK
    i = start + tl.arange(0, BLOCK)
    if start + BLOCK <= n:
        _add_parts_at(parts, bias, c, n, columns, count, i, None, ACTIVATION)
    else:
        _add_parts_at(parts, bias, c, n, columns, count, i, i < n, ACTIVATION)


def tile(m: int, n: int, k: int, warps: int, stages: int, group: int = 8) -> dict[str, int]:
    return {"m": m, "n": n, "k": k, "warps": warps, "stages": stages, "group": group}


MANY = 1 << 20
"""Elements of a product from which on large tiles are enough for a device."""
CHOICES = {
    (itemsize, many): launch.Choices(f"product.{'many' if many else 'few'}.{name}.triton", candidates, classes)
    for itemsize, name, few_candidates, many_candidates in (
        (
            2, "half",
            (tile(64, 64, 64, 4, 4), tile(64, 128, 64, 4, 3), tile(64, 32, 64, 4, 4)),
            (tile(128, 128, 64, 8, 3), tile(128, 256, 64, 8, 3), tile(128, 128, 32, 4, 4)),
        ),
        (
            4, "float32",
            (tile(64, 64, 32, 4, 3), tile(64, 32, 32, 4, 4), tile(64, 64, 32, 8, 3)),
            (tile(128, 128, 32, 8, 3), tile(128, 64, 32, 8, 3), tile(64, 128, 32, 8, 3)),
        ),
        (
            8, "float64",
            (tile(64, 64, 16, 8, 3), tile(32, 32, 32, 4, 3), tile(64, 32, 16, 4, 3)),
            (tile(64, 64, 16, 8, 4), tile(128, 64, 16, 8, 3), tile(64, 128, 16, 8, 3)),
        ),
    )
    for many, candidates, classes in ((False, few_candidates, (1 << 16,)), (True, many_candidates, (1 << 23,)))
}  # fmt: skip
"""By bytes of an element, and whether the product has many. On Ampere, whose tensor cores take operands from registers,
the largest tile of float32 spills: there configurations.json has the second candidate."""

_ADDED = 1024
"""Elements of a program that adds parts."""


def precision(itemsize: int) -> str:
    """Triton's name of how operands with elements of so many bytes are multiplied (see the top of this file).

    Parameters
    ----------
    itemsize : 2, 4 or 8.
    """
    return "tf32x3" if itemsize == 4 else "ieee"


def _layout(a: Any) -> tuple[str, int, int]:
    """Which way neighbours lie, and the strides between rows and between columns, in elements."""
    row, column = (step // a.itemsize for step in a.strides[-2:])
    if column == 1 or a.shape[-1] == 1:
        return "row", row, 1
    if row == 1 or a.shape[-2] == 1:
        return "column", 1, column
    return "any", row, column


def operands(a: Any, b: Any, vector: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a kernel is given of two matrices to multiply, with any strides.

    Parameters
    ----------
    a, b : (m, k) and (k, n), or stacks of such matrices.
    vector : most elements that an access of rows of the result takes.

    Returns
    -------
    The numbers m, n, k and the four strides, in units; and the constants that say in which units.
    """
    _, m, k, n = spec.sizes(a, b)
    (a_way, a_row, a_column), (b_way, b_row, b_column) = _layout(a), _layout(b)
    a_vector, b_vector = 16 // a.itemsize, 16 // b.itemsize
    # Only what a vector runs along counts: the other sizes are compiled once for all.
    m_unit = math.gcd(m, a_vector) if a_way == "column" else 1
    k_unit = max(
        math.gcd(k, a_vector) if a_way == "row" else 1,
        math.gcd(k, b_vector) if b_way == "column" else 1,
    )
    n_unit = math.gcd(n, max(vector, b_vector))
    a_unit = 1 if a_way == "any" else math.gcd(a_row if a_way == "row" else a_column, spec.apart(a), a_vector)
    b_unit = 1 if b_way == "any" else math.gcd(b_row if b_way == "row" else b_column, spec.apart(b), b_vector)
    strides = (a_row // a_unit, a_column // a_unit, b_row // b_unit, b_column // b_unit)
    units = {"M_UNIT": m_unit, "N_UNIT": n_unit, "K_UNIT": k_unit, "A_UNIT": a_unit, "B_UNIT": b_unit}
    return (m // m_unit, n // n_unit, k // k_unit, *strides), units | {"A": a_way, "B": b_way}


def tile_constants(choice: Mapping[str, int], itemsize: int) -> dict[str, Any]:
    """The constants of a kernel that makes tiles of a product in a configuration.

    Parameters
    ----------
    choice : of `CHOICES`, or alike.
    itemsize : bytes of an element of the operands: the larger one.
    """
    return {
        "BLOCK_M": choice["m"], "BLOCK_N": choice["n"], "BLOCK_K": choice["k"], "GROUP": choice["group"],
        "PRECISION": precision(itemsize),
    }  # fmt: skip


def _multiply(a: Any, b: Any, bias: Any, c: Any, workspace: Arrays, activation: str) -> None:
    """c = activation(a b + bias) of matrices, or of stacks of them with one leading axis, of any strides."""
    products, m, k, n = spec.sizes(a, b)
    if c.size == 0:
        return
    splits = workspace[0].shape[0] if workspace else 1
    choice = CHOICES[a.itemsize, c.size >= MANY].at(c.size)
    sizes, constants = operands(a, b, 16 // a.itemsize)
    apart = spec.apart(a) // constants["A_UNIT"], spec.apart(b) // constants["B_UNIT"]
    blocks = triton.cdiv(triton.cdiv(k, splits), choice["k"])
    grid = (products * triton.cdiv(m, choice["m"]) * triton.cdiv(n, choice["n"]), splits)
    target = workspace[0] if workspace else c
    launch.triton(
        product,
        grid,
        (launch.Strided(a), launch.Strided(b), None if workspace else bias, target, products, *sizes, *apart, blocks),
        constants | tile_constants(choice, a.itemsize) | {"ACTIVATION": "identity" if workspace else activation},
        warps=choice["warps"],
        stages=choice["stages"],
    )
    if workspace:
        unit = math.gcd(c.size, 4)
        launch.triton(
            _add_parts,
            (triton.cdiv(c.size, _ADDED),),
            (target, bias, c, c.size // unit, n, splits),
            {"UNIT": unit, "ACTIVATION": activation, "BLOCK": _ADDED},
        )


def matmul(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _multiply(*spec.stacks(inputs), None, outputs[0], workspace, "identity")


def linear(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, weight, *rest = inputs
    (y,) = outputs
    rows = math.prod(x.shape[:-1])
    bias = rest[0] if rest else None
    _multiply(
        x.reshape(rows, x.shape[-1]), weight.T, bias, y.reshape(rows, y.shape[-1]), workspace,
        attrs.get("activation", "identity"),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Gradient of the activation
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _times_slope(g, y, ACTIVATION: tl.constexpr):
    """g activation'(pre), where y = activation(pre)."""
    if ACTIVATION == "tanh":
        return g * (1 - y * y)
    elif ACTIVATION == "sigmoid":
        return g * (y * (1 - y))
    elif ACTIVATION == "relu":
        return g * tl.where(y <= 0, 0.0, 1.0).to(y.dtype)  # a NaN output passes the gradient on
    elif ACTIVATION == "softplus":
        return -g * expm1(-y)
    else:
        return g


@triton.jit(do_not_specialize=["rows", "features", "per_block", "strips"])
def _activation_backward(
    g, y, d_pre, sums, rows, features, per_block, strips,
    UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """d_pre, and sums[block] = its column sums over `per_block` rows; `features` is in multiples of UNIT."""
    features *= UNIT
    program = tl.program_id(0)
    block = (program // strips).to(features.dtype)
    column = program % strips * COLUMNS + tl.arange(0, COLUMNS)
    last = tl.minimum(rows, (block + 1) * per_block)
    total = widened(tl.zeros((ROWS, COLUMNS), g.dtype.element_ty))
    for start in range(block * per_block, last, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row[:, None] < last) & (column[None, :] < features)
        at = row[:, None] * features + column[None, :]
        d = widened(tl.load(g + at, mask, 0.0))
        if ACTIVATION != "identity":  # outside it is 0 times the slope where y is 0
            d = _times_slope(d, widened(tl.load(y + at, mask, 0.0)), ACTIVATION)
        tl.store(d_pre + at, d.to(d_pre.dtype.element_ty), mask)
        total += d
    found = tl.sum(total, axis=0).to(sums.dtype.element_ty)
    tl.store(sums + block * features + column, found, column < features)


_BACKWARD_BYTES = 8192
"""Of the sums that a program adds up at one time."""
_FLOAT64_REGISTERS = 168
"""Most of a thread, as softplus wants: left alone, the assembler spills two for sigmoid on Ampere."""


def activation_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """Blocks of rows add up their columns; if there are several, another launch adds up theirs."""
    g, y = inputs
    d_pre, d_bias = outputs
    (partial,) = workspace
    features, rows = g.shape[-1], math.prod(g.shape[:-1])
    if features == 0:
        return
    blocks = spec.gpu_row_blocks(rows, features)
    columns = min(triton.next_power_of_2(features), spec.GPU_STRIP)
    strips = triton.cdiv(features, columns)
    unit = math.gcd(features, 16 // g.itemsize)
    launch.triton(
        _activation_backward,
        (blocks * strips,),
        (g, y, d_pre, partial if blocks > 1 else d_bias, rows, features // unit, triton.cdiv(rows, blocks), strips),
        {
            "UNIT": unit, "ROWS": _BACKWARD_BYTES // (max(4, g.itemsize) * columns), "COLUMNS": columns,
            "ACTIVATION": attrs["activation"],
        },
        registers=_FLOAT64_REGISTERS if g.itemsize == 8 else None,
    )  # fmt: skip
    if blocks > 1:
        add_up(partial, 1, blocks, features, d_bias)
