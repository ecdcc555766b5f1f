"""Convolution in CUDA C: the tile of a product by its shape, and the launches of ``cuda.cu``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gmkernels import launch
from gmkernels.arrays import Array
from gmkernels.conv import spec
from gmkernels.conv.spec import Attrs, Pair, Plan
from gmkernels.dense.cuda import ACROSS, ALONG, ELEMENTS, Copy, Tile, copy_of
from gmkernels.dense.spec import GPU_TILES
from gmkernels.registry import KernelSpec

Arrays = Sequence[Any]
Options = Mapping[str, Any]

_AXIS = np.dtype([(name, np.int64) for name in ("x", "y", "kernel", "stride", "before", "dilation")])
_THREADS = 256  # of a block without a tile, as cuda.cu has them
_TOGETHER = 9  # taps that it makes gradients of


def _axes(p: Plan) -> tuple[Any, Any]:
    """The two axes, as cuda.cu has them."""
    down = (p.height, p.out_h, p.kernel_h, p.stride_h, p.top, p.dilation_h)
    right = (p.width, p.out_w, p.kernel_w, p.stride_w, p.left, p.dilation_w)
    return np.array(down, _AXIS)[()], np.array(right, _AXIS)[()]


# ---------------------------------------------------------------------------------------------------------
# Tiles
# ---------------------------------------------------------------------------------------------------------

# By rows (filters) and columns. A gathered element of x is used once for each row of a tile, so tiles have no more rows
# than there are filters and many columns. No more than 99 KiB of shared memory, which is what the smaller devices have.
_SINGLE = {
    (16, 64): Tile(16, 64, 16, 16, 32, 4, 8),
    (16, 128): Tile(16, 128, 16, 16, 32, 3, 6),
    (32, 64): Tile(32, 64, 16, 16, 32, 4, 6),
    (32, 128): Tile(32, 128, 16, 32, 32, 3, 4),
    (64, 64): Tile(64, 64, 16, 32, 32, 3, 4),
    (64, 128): Tile(64, 128, 16, 32, 64, 3, 3),
}
_DOUBLE = {
    (16, 64): Tile(16, 64, 16, 16, 32, 3, 6),
    (32, 64): Tile(32, 64, 16, 16, 32, 3, 4),
    (64, 64): Tile(64, 64, 16, 32, 32, 3, 3),
}
_HALF = {
    (16, 64): Tile(16, 64, 32, 16, 32, 3, 8),
    (16, 128): Tile(16, 128, 32, 16, 32, 3, 4),
    (32, 64): Tile(32, 64, 32, 16, 32, 3, 4),
    (32, 128): Tile(32, 128, 32, 32, 32, 3, 4),
    (64, 64): Tile(64, 64, 32, 32, 32, 3, 4),
    (64, 128): Tile(64, 128, 32, 32, 32, 3, 2),
}
_TILES = {"float32": _SINGLE, "float64": _DOUBLE, "float16": _HALF, "bfloat16": _HALF}
_LAST = {  # of half types with the channels last
    (16, 64): Tile(16, 64, 32, 16, 32, 4, 7),
    (16, 128): Tile(16, 128, 32, 16, 64, 3, 6),
    (32, 64): Tile(32, 64, 32, 16, 32, 4, 5),
    (32, 128): Tile(32, 128, 32, 32, 32, 4, 4),
    (64, 64): Tile(64, 64, 32, 32, 32, 4, 4),
    (64, 128): Tile(64, 128, 32, 32, 32, 4, 2),
    (128, 128): Tile(128, 128, 32, 64, 32, 4, 2),
}

_CLASSES = (GPU_TILES // 2, GPU_TILES, 2 * GPU_TILES, 4 * GPU_TILES)
_CHOICES = launch.Choices("conv2d.cuda", ({"columns": 0}, {"columns": 64}, {"columns": 128}), _CLASSES)
"""The columns of tiles by the number of tiles of 64 by 64 that there would be; 0: as in `_tile`."""


def _tile(tiles: Mapping[Pair, Tile], rows: int, columns: int, products: int) -> Tile:
    """As many rows as there are, and the more columns the better, as long as each multiprocessor gets some tiles."""
    m = next((m for m in (16, 32, 64) if rows <= m), 64 if rows % 128 in range(1, 65) else 128)
    of_64 = products * -(-rows // 64) * -(-columns // 64)
    n = _CHOICES.at(of_64)["columns"] or (128 if of_64 >= 2 * GPU_TILES else 64)
    if n == 64:
        m = min(m, 64)
    return tiles.get((m, n)) or tiles.get((min(m, 64), n)) or tiles[min(m, 64), 64]


class _Cut(NamedTuple):
    """How a call is cut: the tile of a block or, for few filters, None; its tiles of a group; parts of its sums; and
    whether its operands are copied with their channels last."""

    tile: Tile | None
    tiles: int
    parts: int
    last: bool


def _cut(
    p: Plan, dtype: Any, rows: int, columns: int, products: int, parts: int, *, fewest: int, together: int
) -> _Cut:
    """The cut of products, of so many rows and columns; without tiles below so many rows, and with so many columns for
    a block then."""
    if rows < fewest:
        return _Cut(None, rows * -(-columns // together), parts, False)
    last = spec.channels_last(p, dtype)
    tile = _tile(_LAST if last else _TILES[dtype.name], rows, columns, products * parts)
    return _Cut(tile, -(-rows // tile.m) * -(-columns // tile.n), parts, last)


def _sums(kernel: str, cut: _Cut, copy: Copy, products: int, arguments: tuple[Any, ...], like: Array) -> None:
    """Launch the kernel that makes the sums of so many products, whose first operand is copied as `copy` says."""
    defines: tuple[str, ...] = (f"{kernel.upper()}=1",)
    threads, shared = _THREADS, 0
    if cut.tile is not None:
        tile = cut.tile
        threads = tile.threads
        most = tile.m * tile.k * like.itemsize // threads  # bytes, so that each thread has some to copy
        in_rows = cut.last and kernel != "backward_weight"  # how elements lie in shared memory
        copies = copy._replace(together=min(copy.together, most)), Copy(ALONG if in_rows else ACROSS, like.itemsize)
        defines += (*tile.defines(*copies), *(("LAST=1",) if cut.last else ()))
        shared = tile.shared(*copies, like.itemsize)
    grid = (cut.tiles * products, cut.parts)
    launch.cuda("conv", kernel, like.dtype.name, grid, (threads,), arguments, shared=shared, defines=defines)


def _channels_last(x: Array, copy: Array) -> Array:
    """The copy, made one of x (batch, channels, ., .) with the channels last."""
    batch, channels, size = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    tiles = -(-channels // 32), -(-size // 32)
    grid = (batch * tiles[0] * tiles[1],)
    launch.cuda("conv", "put_channels_last", x.dtype.name, grid, (32, 8), (x, copy, channels, size, *tiles))
    return copy


def _add_parts(partial: Array | None, bias: Array | None, out: Array) -> None:
    if partial is None:
        return
    channels, plane = out.shape[1], out.shape[2] * out.shape[3]
    launch.cuda(
        "conv", "add_parts", out.dtype.name, (-(-out.size // 128),), (128,),
        (partial, bias, out, out.size, plane, channels, partial.shape[0]),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# The operations
# ---------------------------------------------------------------------------------------------------------


def _attrs(options: Options) -> Attrs:
    return Attrs(**{name: value for name, value in options.items() if name != "size"})


def _forward_cut(p: Plan, dtype: Any) -> _Cut:
    columns = p.batch * p.out_h * p.out_w
    return _cut(p, dtype, p.filters, columns, p.groups, spec.forward_parts(p), fewest=3, together=_THREADS)


def conv2d(inputs: Arrays, outputs: Arrays, workspace: Arrays, options: Options) -> None:
    x, weight, *biases = inputs
    (y,) = outputs
    if y.size == 0:
        return
    p = spec.forward_plan(x, weight, _attrs(options))
    bias = biases[0] if biases else None
    cut = _forward_cut(p, x.dtype)
    partial = workspace[0] if cut.parts > 1 else None
    if cut.last:
        x, weight = map(_channels_last, (x, weight), workspace[-2:])
    arguments = (
        x, weight, bias, y, partial, *_axes(p), p.batch, p.groups, p.channels, p.filters, cut.tiles,
    )  # fmt: skip
    _sums("forward", cut, copy_of(weight, p.taps, 1), p.groups, arguments, x)
    _add_parts(partial, bias, y)


def _apart(p: Plan) -> Pair:
    """Along both axes, from a tap to the next that elements of x of one class meet."""
    return p.stride_h // math.gcd(p.stride_h, p.dilation_h), p.stride_w // math.gcd(p.stride_w, p.dilation_w)


def _input_cut(p: Plan, dtype: Any) -> _Cut:
    columns = p.batch * -(-p.height // p.stride_h) * -(-p.width // p.stride_w)  # of the largest class
    products = p.groups * p.stride_h * p.stride_w
    return _cut(p, dtype, p.channels, columns, products, spec.input_parts(p), fewest=3, together=_THREADS)


def conv2d_backward_input(inputs: Arrays, outputs: Arrays, workspace: Arrays, options: Options) -> None:
    """The weight is laid out class by class first: see ``cuda.cu``."""
    g, weight = inputs
    (d_x,) = outputs
    laid_out = workspace[0]
    if d_x.size == 0:
        return
    p = spec.input_plan(g, weight, options["size"], _attrs(options))
    apart, cut = _apart(p), _input_cut(p, g.dtype)
    pairs = p.groups * p.filters * p.channels
    launch.cuda(
        "conv", "lay_out", g.dtype.name, (-(-pairs // 128),), (128,),
        (weight, laid_out, pairs, p.channels, p.filters, p.kernel_h, p.kernel_w, *apart, int(cut.last)),
    )  # fmt: skip
    partial = workspace[1] if cut.parts > 1 else None
    if cut.last:
        g = _channels_last(g, workspace[-1])
    arguments = (
        g, laid_out, d_x, partial, *_axes(p), p.batch, p.groups, p.channels, p.filters, cut.tiles, *apart,
    )  # fmt: skip
    products = p.groups * p.stride_h * p.stride_w
    _sums("backward_input", cut, copy_of(laid_out, 1, p.channels), products, arguments, g)
    _add_parts(partial, None, d_x)


def _weight_cut(p: Plan, dtype: Any) -> _Cut:
    return _cut(p, dtype, p.filters, p.taps, p.groups, spec.weight_parts(p), fewest=2, together=_TOGETHER)


def conv2d_backward_weight(inputs: Arrays, outputs: Arrays, workspace: Arrays, options: Options) -> None:
    g, x = inputs
    (d_weight,) = outputs
    if d_weight.size == 0:
        return
    p = spec.weight_plan(g, x, options["size"], _attrs(options))
    cut = _weight_cut(p, g.dtype)
    partial = workspace[0] if cut.parts > 1 else None
    if cut.last:
        g, x = map(_channels_last, (g, x), workspace[-2:])
    arguments = (
        g, x, d_weight, partial, *_axes(p), p.batch, p.groups, p.channels, p.filters, cut.tiles,
    )  # fmt: skip
    _sums("backward_weight", cut, Copy(ELEMENTS, g.itemsize), p.groups, arguments, g)
    _add_parts(partial, None, d_weight)


def note(op: KernelSpec, a: Array, b: Array, bias: Array | None = None, *, size: Pair = (0, 0), **options: Any) -> str:
    """How a call is cut, for `explain`."""
    attrs = Attrs(**options)
    if op is spec.CONV2D:
        cut = _forward_cut(spec.forward_plan(a, b, attrs), a.dtype)
    elif op is spec.CONV2D_BACKWARD_INPUT:
        cut = _input_cut(spec.input_plan(a, b, size, attrs), a.dtype)
    else:
        cut = _weight_cut(spec.weight_plan(a, b, size, attrs), a.dtype)
    way = "no tiles, as groups have few filters or channels"
    if cut.tile is not None:
        way = f"tiles of {cut.tile.m} by {cut.tile.n}"
    parts = f", sums in {cut.parts} parts" if cut.parts > 1 else ""
    return way + parts + (", from copies with the channels last" if cut.last else "")
