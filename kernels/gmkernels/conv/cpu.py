"""Convolution as matrix products, tile by tile in the cache.

A tile is a rectangle of output positions of one image, or the whole planes of a few small ones. The part of x that it
looks at, its window, is copied once, with zeros for the padding, and sorted by (row, column) modulo the stride. Then
the elements that meet element (i, j) of the kernel lie in the window one after the other, and so does each row of the
matrix (elements of a filter x positions) by which the weight is multiplied: it is one copy. A position at the end of
each row of a tile, for each column that the kernel reaches beyond the first, is there for the copy only; its column
counts for nothing.

The gradients are the same steps backwards: with respect to the weight the matrix is multiplied by the gradient's tile,
and each block has a sum of its own; with respect to x a product gives the matrix, whose rows are added up in the
window, and the window in x. Blocks have their images of x to themselves there, since windows overlap.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels import blas
from gmkernels.blas import NO_TRANS, TRANS
from gmkernels.conv import spec
from gmkernels.conv.spec import Attrs, Plan
from gmkernels.gemm import gemm
from gmkernels.pool import block_kernel, jitable, reduction
from gmkernels.registry import KernelError

Arrays = Sequence[Any]
Options = Mapping[str, Any]


@functools.lru_cache(1024)
def _numbers(p: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Where in the window of a channel the elements that meet each element of a filter begin; and the plan."""
    h, w = np.ogrid[: p.kernel_h, : p.kernel_w]
    h, w = h * p.dilation_h, w * p.dilation_w
    part = h % p.stride_h * p.phases_w + w % p.stride_w
    starts = (part * p.plane_h + h // p.stride_h) * p.plane_w + w // p.stride_w
    return starts.astype(np.int64).ravel(), np.array(p, np.int64)


@jitable
def _plan(s):
    return Plan(
        s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13], s[14], s[15],
        s[16], s[17], s[18], s[19], s[20], s[21], s[22], s[23], s[24], s[25], s[26],
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Between planes, windows, and matrices
# ---------------------------------------------------------------------------------------------------------


@jitable
def _tile(p, tile):
    """Of a tile: its first image and the one after its last, its first row and column, its rows and columns."""
    per_image = p.row_tiles * p.col_tiles
    image = tile // per_image * p.images
    row, col = tile % per_image // p.col_tiles * p.rows, tile % p.col_tiles * p.cols
    return image, min(image + p.images, p.batch), row, col, min(p.rows, p.out_h - row), min(p.cols, p.out_w - col)


@jitable
def _copy(source, target):
    for i in range(target.size):
        target[i] = source[i]


@jitable
def _clear(target):
    for i in range(target.size):
        target[i] = 0


@jitable
def _add(source, target):
    for i in range(target.size):
        target[i] += source[i]


@jitable
def _exchange(p, planes, row, col, window, back):
    """Fill the window of a tile, which is zeros, from one image's channels; or add it to them if `back`."""
    stride, step = p.stride_w, np.uint64(p.stride_w)  # unsigned: Numba counts negative indices from the end
    for a in range(p.phases_h):
        for b in range(p.phases_w):
            w = col * stride + b - p.left  # the column of x where each row of the window begins
            first = min(p.plane_w, max(0, (stride - 1 - w) // stride))  # its elements inside x
            last = max(first, min(p.plane_w, (p.width - 1 - w) // stride + 1))
            for c in range(p.channels):
                at = ((c * p.phases_h + a) * p.phases_w + b) * p.plane_h * p.plane_w
                h = row * p.stride_h + a - p.top
                for _ in range(p.plane_h):
                    if 0 <= h < p.height:
                        x = planes[(c * p.height + h) * p.width + w + first * stride :]
                        line = window[at + first : at + last]
                        if back:
                            for i in range(line.size):
                                x[np.uint64(i) * step] += line[i]
                        else:
                            for i in range(line.size):
                                line[i] = x[np.uint64(i) * step]
                    at += p.plane_w
                    h += p.stride_h


@reduction
def _finite(x):
    total = x.dtype.type(0)
    for i in range(x.size):
        total += x[i] * 0
    return total == 0


@jitable
def _clear_ends(p, matrix, at, columns, rows, cols):
    """Zeros in the columns of one image, which begin at number `at`, that are no positions of a tile of that size."""
    for _ in range(p.channels * p.kernel_h * p.kernel_w):
        line = matrix[at : at + p.image_columns]
        for r in range(rows - 1):
            _clear(line[r * p.plane_w + cols : (r + 1) * p.plane_w])
        _clear(line[(rows - 1) * p.plane_w + cols :])
        at += columns


@jitable
def _to_matrix(p, window, starts, matrix, at, columns):
    """Rows of the matrix, in the columns of one image."""
    part = window.size // p.channels
    for c in range(p.channels):
        for k in range(starts.size):
            start = c * part + starts[k]
            _copy(window[start : start + p.image_columns], matrix[at : at + p.image_columns])
            at += columns


@jitable
def _to_tile(p, g, row, col, rows, cols, tile, at, columns):
    """The tile of one image's filters, zero in the columns that are no positions."""
    for o in range(p.filters):
        start = (o * p.out_h + row) * p.out_w + col
        _clear(tile[at : at + p.image_columns])
        for r in range(rows):
            line = at + r * p.plane_w
            _copy(g[start : start + cols], tile[line : line + cols])
            start += p.out_w
        at += columns


# ---------------------------------------------------------------------------------------------------------
# The product and its gradients
# ---------------------------------------------------------------------------------------------------------


@jitable
def _add_bias(source, bias, target):
    for i in range(target.size):
        target[i] = source[i] + bias


@block_kernel
def _conv2d(lane, function, wide, x, weight, bias, y, windows, matrices, products, starts, numbers, lanes, units):
    p = _plan(numbers)
    taps, columns, item = p.channels * p.kernel_h * p.kernel_w, p.images * p.image_columns, y.itemsize
    size = windows.size // lanes
    window = windows[lane * size : (lane + 1) * size]
    matrix = matrices[lane * taps * columns : (lane + 1) * taps * columns]
    product = products[lane * p.filters * columns : (lane + 1) * p.filters * columns]
    for unit in range(lane * units // lanes, (lane + 1) * units // lanes):
        group = unit % p.groups
        first, last, row, col, rows, cols = _tile(p, unit // p.groups)
        for image in range(first, last):
            start = (image * p.groups + group) * p.channels * p.height * p.width
            _clear(window)
            _exchange(p, x[start:], row, col, window, False)
            _to_matrix(p, window, starts, matrix, (image - first) * p.image_columns, columns)
        w = weight.ctypes.data + item * group * p.filters * taps
        used = (last - first) * p.image_columns
        gemm(
            function, wide, y, NO_TRANS, NO_TRANS, p.filters, used, taps, 1, w, taps,
            matrix.ctypes.data, columns, 0, product.ctypes.data, columns,
        )  # fmt: skip
        for image in range(first, last):
            for o in range(p.filters):
                channel = group * p.filters + o
                shift = bias[channel] if bias.size > 0 else y.dtype.type(0)
                start = ((image * p.groups * p.filters + channel) * p.out_h + row) * p.out_w + col
                at = o * columns + (image - first) * p.image_columns
                for _ in range(rows):
                    _add_bias(product[at : at + cols], shift, y[start : start + cols])
                    start += p.out_w
                    at += p.plane_w


@block_kernel
def _backward_input(lane, function, wide, g, weight, d_x, windows, matrices, tiles, starts, numbers, lanes, units):
    p = _plan(numbers)
    taps, columns, item = p.channels * p.kernel_h * p.kernel_w, p.images * p.image_columns, d_x.itemsize
    size = windows.size // lanes
    window = windows[lane * size : (lane + 1) * size]
    matrix = matrices[lane * taps * columns : (lane + 1) * taps * columns]
    tile = tiles[lane * p.filters * columns : (lane + 1) * p.filters * columns]
    per_image = p.row_tiles * p.col_tiles
    finite = _finite(weight)
    for unit in range(lane * units // lanes, (lane + 1) * units // lanes):
        group = unit % p.groups
        w = weight.ctypes.data + item * group * p.filters * taps
        for part in range(per_image):
            first, last, row, col, rows, cols = _tile(p, unit // p.groups * per_image + part)
            for image in range(first, last):
                start = (image * p.groups + group) * p.filters * p.out_h * p.out_w
                _to_tile(p, g[start:], row, col, rows, cols, tile, (image - first) * p.image_columns, columns)
            used = (last - first) * p.image_columns
            gemm(
                function, wide, d_x, TRANS, NO_TRANS, taps, used, p.filters, 1, w, taps,
                tile.ctypes.data, columns, 0, matrix.ctypes.data, columns,
            )  # fmt: skip
            for image in range(first, last):
                _clear(window)
                at = (image - first) * p.image_columns
                if not finite:  # 0 times the weight is not 0
                    _clear_ends(p, matrix, at, columns, rows, cols)
                for c in range(p.channels):
                    for k in range(starts.size):
                        line, start = matrix[at : at + p.image_columns], c * size // p.channels + starts[k]
                        _add(line, window[start : start + p.image_columns])
                        at += columns
                start = (image * p.groups + group) * p.channels * p.height * p.width
                planes = d_x[start : start + p.channels * p.height * p.width]
                if part == 0:
                    _clear(planes)
                _exchange(p, planes, row, col, window, True)


@block_kernel
def _backward_weight(lane, function, wide, g, x, windows, matrices, tiles, sums, starts, numbers, lanes, units):
    p = _plan(numbers)
    taps, columns, item = p.channels * p.kernel_h * p.kernel_w, p.images * p.image_columns, g.itemsize
    size = windows.size // lanes
    window = windows[lane * size : (lane + 1) * size]
    matrix = matrices[lane * taps * columns : (lane + 1) * taps * columns]
    tile = tiles[lane * p.filters * columns : (lane + 1) * p.filters * columns]
    begin = lane * units // lanes
    for unit in range(begin, (lane + 1) * units // lanes):
        first, last, row, col, rows, cols = _tile(p, unit)
        used = (last - first) * p.image_columns
        for group in range(p.groups):
            for image in range(first, last):
                at, start = (image - first) * p.image_columns, (image * p.groups + group) * p.channels
                _clear(window)
                _exchange(p, x[start * p.height * p.width :], row, col, window, False)
                _to_matrix(p, window, starts, matrix, at, columns)
                if not _finite(window):  # 0 times it would not be 0
                    _clear_ends(p, matrix, at, columns, rows, cols)
                start = (image * p.groups + group) * p.filters * p.out_h * p.out_w
                _to_tile(p, g[start:], row, col, rows, cols, tile, at, columns)
            total = sums.ctypes.data + item * (lane * p.groups + group) * p.filters * taps
            gemm(
                function, wide, g, NO_TRANS, TRANS, p.filters, taps, used, 1, tile.ctypes.data, columns,
                matrix.ctypes.data, columns, 0 if unit == begin else 1, total, taps,
            )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# Launchers
# ---------------------------------------------------------------------------------------------------------


def _library(p: Plan, dtype: np.dtype) -> tuple[int, int]:
    """Address of the product, and whether its integers are wide."""
    library = blas.find()
    assert library is not None
    if not library.wide and max(p.taps, p.columns, p.filters) >= 2**31:
        raise KernelError(f"this {library.name} has 32-bit integers, too few for a filter of {p.taps} elements")
    return library.gemm_address(dtype), int(library.wide)


def conv2d(inputs: Arrays, outputs: Arrays, workspace: Arrays, options: Options) -> None:
    x, weight, *rest = inputs
    (y,) = outputs
    p = spec.forward_plan(x, weight, Attrs(**options))
    bias = rest[0] if rest else np.empty(0, y.dtype)
    if y.size == 0 or p.taps == 0:
        y[...] = bias[:, None, None] if rest else 0
        return
    units = p.tiles * p.groups
    lanes = p.lanes(units)
    with blas.single_threaded():
        _conv2d(lanes, *_library(p, y.dtype), x, weight, bias, y, *workspace, *_numbers(p), lanes, units)


def _split(options: Options) -> tuple[Any, Attrs]:
    return options["size"], Attrs(**{name: value for name, value in options.items() if name != "size"})


def conv2d_backward_input(inputs: Arrays, outputs: Arrays, workspace: Arrays, options: Options) -> None:
    g, weight = inputs
    (d_x,) = outputs
    p = spec.input_plan(g, weight, *_split(options))
    if d_x.size == 0 or g.size == 0:
        d_x.fill(0)
        return
    units = p.image_tiles * p.groups
    lanes = p.lanes(units)
    with blas.single_threaded():
        _backward_input(lanes, *_library(p, g.dtype), g, weight, d_x, *workspace, *_numbers(p), lanes, units)


def conv2d_backward_weight(inputs: Arrays, outputs: Arrays, workspace: Arrays, options: Options) -> None:
    """Each block adds up its tiles; the sums of the blocks are added in order."""
    g, x = inputs
    (d_weight,) = outputs
    p = spec.weight_plan(g, x, *_split(options))
    if d_weight.size == 0 or g.size == 0:
        d_weight.fill(0)
        return
    lanes = p.lanes(p.tiles)
    with blas.single_threaded():
        _backward_weight(lanes, *_library(p, g.dtype), g, x, *workspace, *_numbers(p), lanes, p.tiles)
    with np.errstate(all="ignore"):
        np.add.reduce(workspace[-1], axis=0, out=d_weight.reshape(-1))
