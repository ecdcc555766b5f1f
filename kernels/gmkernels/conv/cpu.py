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
from gmkernels.pool import block_kernel, jitable
from gmkernels.registry import KernelError

Arrays = Sequence[Any]
Options = Mapping[str, Any]


@functools.lru_cache(1024)
def _numbers(p: Plan) -> np.ndarray:
    return np.array(p, np.int64)


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
def _spaced(source, step, target):
    if step == 1:
        for i in range(target.size):
            target[i] = source[i]
    else:
        for i in range(target.size):
            target[i] = source[i * step]


@jitable
def _add_spaced(source, target, step):
    if step == 1:
        for i in range(source.size):
            target[i] += source[i]
    else:
        for i in range(source.size):
            target[i * step] += source[i]


@jitable
def _copy(source, target):
    for i in range(target.size):
        target[i] = source[i]


@jitable
def _add(source, target):
    for i in range(target.size):
        target[i] += source[i]


@jitable
def _span(p, h, b, col):
    """Of a row of a window: its first column of x, and from where to where its elements lie inside x."""
    w = col * p.stride_w + b - p.left
    if not 0 <= h < p.height:
        return w, 0, 0
    first = min(p.plane_w, max(0, (p.stride_w - 1 - w) // p.stride_w))
    return w, first, max(first, min(p.plane_w, (p.width - 1 - w) // p.stride_w + 1))


@jitable
def _look(p, x, plane, row, col, window):
    """The window of a tile on one image's channels, which begin at number `plane` in x."""
    at = 0
    for c in range(plane, plane + p.channels):
        for a in range(p.phases_h):
            for b in range(p.phases_w):
                for r in range(p.plane_h):
                    h = (row + r) * p.stride_h + a - p.top
                    w, first, last = _span(p, h, b, col)
                    window[at : at + first] = 0
                    source = x[(c * p.height + h) * p.width + w + first * p.stride_w :]
                    _spaced(source, p.stride_w, window[at + first : at + last])
                    window[at + last : at + p.plane_w] = 0
                    at += p.plane_w


@jitable
def _unlook(p, window, d_x, plane, row, col):
    """Add a window to the image it looks at."""
    at = 0
    for c in range(plane, plane + p.channels):
        for a in range(p.phases_h):
            for b in range(p.phases_w):
                for r in range(p.plane_h):
                    h = (row + r) * p.stride_h + a - p.top
                    w, first, last = _span(p, h, b, col)
                    target = d_x[(c * p.height + h) * p.width + w + first * p.stride_w :]
                    _add_spaced(window[at + first : at + last], target, p.stride_w)
                    at += p.plane_w


@jitable
def _start(p, c, i, j):
    """Where in the window the elements that meet element (c, i, j) of the filters begin."""
    h, w = i * p.dilation_h, j * p.dilation_w
    part = (c * p.phases_h + h % p.stride_h) * p.phases_w + w % p.stride_w
    return (part * p.plane_h + h // p.stride_h) * p.plane_w + w // p.stride_w


@jitable
def _clear_ends(p, matrix, rows, cols):
    """Zeros in the columns of one image that are no positions of a tile of that size."""
    for r in range(rows - 1):
        for i in range(r * p.plane_w + cols, (r + 1) * p.plane_w):
            matrix[i] = 0
    for i in range((rows - 1) * p.plane_w + cols, matrix.size):
        matrix[i] = 0


@jitable
def _to_matrix(p, window, matrix, at, columns):
    """Rows of the matrix, in the columns of one image, which begin at number `at`."""
    for c in range(p.channels):
        for i in range(p.kernel_h):
            for j in range(p.kernel_w):
                _copy(window[_start(p, c, i, j) :], matrix[at : at + p.image_columns])
                at += columns


@jitable
def _to_tile(p, g, plane, row, col, rows, cols, tile, at, columns):
    """The tile of one image's filters, which begin at number `plane` in g; zeros elsewhere."""
    for o in range(plane, plane + p.filters):
        tile[at : at + p.image_columns] = 0
        for r in range(rows):
            start = (o * p.out_h + row + r) * p.out_w + col
            _copy(g[start : start + cols], tile[at + r * p.plane_w : at + r * p.plane_w + cols])
        at += columns


# ---------------------------------------------------------------------------------------------------------
# The product and its gradients
# ---------------------------------------------------------------------------------------------------------


@jitable
def _add_bias(source, bias, target):
    for i in range(target.size):
        target[i] = source[i] + bias


@block_kernel
def _conv2d(lane, function, wide, x, weight, bias, y, windows, matrices, products, numbers, lanes, units):
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
            _look(p, x, (image * p.groups + group) * p.channels, row, col, window)
            _to_matrix(p, window, matrix, (image - first) * p.image_columns, columns)
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
                for r in range(rows):
                    _add_bias(product[at : at + cols], shift, y[start : start + cols])
                    start += p.out_w
                    at += p.plane_w


@block_kernel
def _backward_input(lane, function, wide, g, weight, d_x, windows, matrices, tiles, numbers, lanes, units):
    p = _plan(numbers)
    taps, columns, item = p.channels * p.kernel_h * p.kernel_w, p.images * p.image_columns, d_x.itemsize
    size = windows.size // lanes
    window = windows[lane * size : (lane + 1) * size]
    matrix = matrices[lane * taps * columns : (lane + 1) * taps * columns]
    tile = tiles[lane * p.filters * columns : (lane + 1) * p.filters * columns]
    per_image = p.row_tiles * p.col_tiles
    for unit in range(lane * units // lanes, (lane + 1) * units // lanes):
        group = unit % p.groups
        w = weight.ctypes.data + item * group * p.filters * taps
        for part in range(per_image):
            first, last, row, col, rows, cols = _tile(p, unit // p.groups * per_image + part)
            for image in range(first, last):
                at, plane = (image - first) * p.image_columns, (image * p.groups + group) * p.filters
                _to_tile(p, g, plane, row, col, rows, cols, tile, at, columns)
            used = (last - first) * p.image_columns
            gemm(
                function, wide, d_x, TRANS, NO_TRANS, taps, used, p.filters, 1, w, taps,
                tile.ctypes.data, columns, 0, matrix.ctypes.data, columns,
            )  # fmt: skip
            for image in range(first, last):
                window[:] = 0
                at = (image - first) * p.image_columns
                for c in range(p.channels):
                    for i in range(p.kernel_h):
                        for j in range(p.kernel_w):
                            line, start = matrix[at : at + p.image_columns], _start(p, c, i, j)
                            _clear_ends(p, line, rows, cols)  # 0 times an infinite weight
                            _add(line, window[start : start + p.image_columns])
                            at += columns
                plane = (image * p.groups + group) * p.channels
                if part == 0:
                    d_x[plane * p.height * p.width : (plane + p.channels) * p.height * p.width] = 0
                _unlook(p, window, d_x, plane, row, col)


@block_kernel
def _backward_weight(lane, function, wide, g, x, windows, matrices, tiles, sums, numbers, lanes, units):
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
                at, channel = (image - first) * p.image_columns, (image * p.groups + group) * p.channels
                _look(p, x, channel, row, col, window)
                _to_matrix(p, window, matrix, at, columns)
                for k in range(taps):
                    line = matrix[k * columns + at : k * columns + at + p.image_columns]
                    _clear_ends(p, line, rows, cols)  # 0 times an infinite x
                plane = (image * p.groups + group) * p.filters
                _to_tile(p, g, plane, row, col, rows, cols, tile, at, columns)
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
        _conv2d(lanes, *_library(p, y.dtype), x, weight, bias, y, *workspace, _numbers(p), lanes, units)


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
        _backward_input(lanes, *_library(p, g.dtype), g, weight, d_x, *workspace, _numbers(p), lanes, units)


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
        _backward_weight(lanes, *_library(p, g.dtype), g, x, *workspace, _numbers(p), lanes, p.tiles)
    with np.errstate(all="ignore"):
        np.add.reduce(workspace[-1], axis=0, out=d_weight.reshape(-1))
