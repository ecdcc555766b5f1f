"""Dense layers in CUDA C: the tile of a product, how its operands are copied, and the launches of ``cuda.cu``."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gmkernels import launch
from gmkernels.arrays import Array, address
from gmkernels.dense import spec

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

_CODES = {name: code for code, name in enumerate(spec.ACTIVATIONS)}
ELEMENTS, RUNS, ACROSS, ALONG = range(4)


class Copy(NamedTuple):
    """How the steps of an operand come into shared memory, as ``cuda.cu`` has it, and how many bytes at a time."""

    way: int
    together: int


# ---------------------------------------------------------------------------------------------------------
# Products
# ---------------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """A tile of m by n elements in steps of k: `warp_m` by `warp_n` of it a warp's, so many steps in shared memory, so
    many blocks on a multiprocessor (which bounds their registers)."""

    m: int
    n: int
    k: int
    warp_m: int
    warp_n: int
    stages: int
    blocks: int

    @property
    def threads(self) -> int:
        return 32 * (self.m // self.warp_m) * (self.n // self.warp_n)

    @functools.cache  # noqa: B019 (there are nine tiles)
    def defines(self, *copies: Copy) -> tuple[str, ...]:
        """What ``product.cuh`` wants defined, and the ways to copy a and b if they are given."""
        names = ("BM", "BN", "BK", "WM", "WN", "STAGES", "BLOCKS", "A_COPY", "A_BYTES", "B_COPY", "B_BYTES")
        values = (*self, *itertools.chain(*copies))
        return tuple(f"{name}={value}" for name, value in zip(names, values, strict=False))

    def shared(self, a: Copy, b: Copy, itemsize: int) -> int:
        """Bytes of shared memory: the steps, and after the last of them a band of 16 rows of sums of each warp."""
        pad = 8 if itemsize == 2 else 4
        step = sum(
            size * (self.k + pad) if copy.way == ALONG else self.k * (size + pad)
            for size, copy in ((self.m, a), (self.n, b))
        )
        band = 16 * (self.m // self.warp_m) * (self.n + 8) * max(itemsize, 4)
        return max(self.stages * step * itemsize, band)


# No more than 99 KiB of shared memory, which is what the smaller devices have.
_SINGLE = {
    128: Tile(128, 128, 16, 32, 64, 2, 2),
    64: Tile(64, 64, 16, 32, 32, 3, 4),
    32: Tile(32, 32, 16, 16, 32, 4, 8),
}
_DOUBLE = {
    128: Tile(128, 128, 16, 64, 32, 2, 1),
    64: Tile(64, 64, 16, 32, 32, 3, 3),
    32: Tile(32, 32, 16, 16, 16, 4, 4),
}
_HALF = {
    128: Tile(128, 128, 64, 64, 32, 2, 2),
    64: Tile(64, 64, 64, 32, 32, 3, 4),
    32: Tile(32, 32, 64, 16, 16, 3, 4),
}
TILES = {"float32": _SINGLE, "float64": _DOUBLE, "float16": _HALF, "bfloat16": _HALF}

_FEW, _MANY = spec.GPU_TILES // 2, 4 * spec.GPU_TILES
_CHOICES = launch.Choices(
    "matmul.cuda", ({"tile": 0}, {"tile": 32}, {"tile": 64}, {"tile": 128}), (_FEW // 2, _FEW, _MANY // 2, _MANY)
)
"""The size of tiles by the number of tiles of 64 by 64 that there would be; 0: as in `tile_of`."""


def tile_of(tiles: Mapping[int, Tile], m: int, n: int, parts: int) -> Tile:
    """Large tiles load less and small ones are more: the largest of which each multiprocessor of an H200 gets one, or
    two where they are as large as can be."""
    of_64 = -(-m // 64) * -(-n // 64) * parts
    size = _CHOICES.at(of_64)["tile"]
    return tiles[size or (128 if of_64 >= _MANY else 64 if of_64 >= _FEW else 32)]


def copy_of(x: Array, across: int, along: int, apart: int = 0) -> Copy:
    """How an operand is copied, by its strides in elements across the sum, along it, and from product to product."""
    for way, near, far in ((ACROSS, across, along), (ALONG, along, across)):
        aligned = math.gcd(16, address(x), far * x.itemsize, apart * x.itemsize)
        if near == 1 and aligned >= 4 and aligned > x.itemsize and not (way == ALONG and x.dtype == np.float32):
            return Copy(way, aligned)
    return Copy(RUNS if along == 1 else ELEMENTS, x.itemsize)


def _product(a: Array, b: Array, bias: Array | None, c: Array, workspace: Arrays, activation: str) -> None:
    """c = activation(a b + bias) of a (m, k) and b (k, n), or of stacks of them, bias (n,) and c, C-contiguous."""
    (products, m, k, n), dtype = spec.sizes(a, b), c.dtype.name
    code, itemsize = _CODES[activation], c.itemsize
    a_across, a_along, b_along, b_across = (stride // itemsize for stride in (*a.strides[-2:], *b.strides[-2:]))
    a_apart, b_apart = spec.apart(a), spec.apart(b)
    bias_stride = 0 if bias is None else bias.strides[0] // itemsize
    parts = spec.splits(m, k, n, products)
    partial = workspace[0] if parts > 1 else None
    part_length = -(-k // (16 * parts)) * 16  # so that a part begins where 16 bytes do
    tile = tile_of(TILES[dtype], m, n, parts * products)
    copies = copy_of(a, a_across, a_along, a_apart), copy_of(b, b_across, b_along, b_apart)
    launch.cuda(
        "dense",
        "product",
        dtype,
        (products * -(-m // tile.m) * -(-n // tile.n), parts),
        (tile.threads,),
        (
            launch.Strided(a), np.int64(a_across), np.int64(a_along), np.int64(a_apart),
            launch.Strided(b), np.int64(b_across), np.int64(b_along), np.int64(b_apart),
            None if bias is None else launch.Strided(bias), np.int64(bias_stride),
            c, partial, products, m, n, k, part_length, code,
        ),
        shared=tile.shared(*copies, itemsize),
        defines=tile.defines(*copies),
    )  # fmt: skip
    if partial is not None:
        strided_bias = None if bias is None else launch.Strided(bias)
        launch.cuda(
            "dense", "add_parts", dtype, (-(-c.size // 128),), (128,),
            (partial, strided_bias, np.int64(bias_stride), c, c.size, n, parts, code),
        )  # fmt: skip


def matmul(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _product(*spec.stacks(inputs), None, outputs[0], workspace, "identity")


def linear(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """Leading axes of x that do not merge into one are packed first."""
    x, weight, *bias = inputs
    (y,) = outputs
    n, k = weight.shape
    m = math.prod(x.shape[:-1])
    activation = attrs.get("activation", "identity")
    _product(x.reshape(m, k), weight.T, bias[0] if bias else None, y.reshape(m, n), workspace, activation)


# ---------------------------------------------------------------------------------------------------------
# The gradient of activations
# ---------------------------------------------------------------------------------------------------------

_THREADS = 256  # of a block, as cuda.cu has them


def activation_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """A block makes its part of d_pre and its column sums; those of the row blocks are added in order."""
    g, y = inputs
    d_pre, d_bias = outputs
    (partial,) = workspace
    dtype, features = g.dtype.name, g.shape[-1]
    if features == 0:
        return
    rows, (blocks, _) = math.prod(g.shape[:-1]), partial.shape
    width = min(32, 1 << (features - 1).bit_length())  # the sums' order follows from it, with vectors or without
    vector = 16 // g.itemsize
    aligned = features % vector == 0 and all(address(a) % 16 == 0 for a in (g, y, d_pre))
    columns = vector if aligned and features >= 32 * vector else 1
    strips = -(-features // (width * columns))
    launch.cuda(
        "dense", "backward" if columns == 1 else "backward_vectors", dtype, (strips * blocks,), (_THREADS,),
        (g, y, d_pre, partial, rows, features, -(-rows // blocks), strips, width, _CODES[attrs["activation"]]),
    )  # fmt: skip
    launch.cuda("dense", "add_blocks", dtype, (-(-features // 32),), (_THREADS,), (partial, d_bias, blocks, features))
