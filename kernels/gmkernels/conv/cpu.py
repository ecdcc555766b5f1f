"""Convolution as matrix products, tile by tile in the cache.

A tile is a rectangle of output positions of one image, or the whole planes of a few small ones. The part of x that it
looks at, its window, is copied once with the channels last, and with zeros for the padding. Then what a filter meets at
a position lies in runs, one for each row of the kernel, of all channels of all its columns. Where the filters fill
vectors, the products are direct: sums of a few positions and filters stay in registers while the runs go by, and
nothing is copied a second time. Else the rows of a matrix (positions x elements of a filter) are made of a few copies
each, and BLAS multiplies it by the weight.

The gradients are the same steps backwards: with respect to the weight the window or the matrix is multiplied by the
gradient's tile, and each block has a sum of its own; with respect to x a product of BLAS gives the matrix, whose runs
are added up in the window, which becomes that part of x. Blocks have their images of x to themselves there, since
windows overlap.
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
from gmkernels.dense import products
from gmkernels.gemm import gemm
from gmkernels.pool import block_kernel, jitable, long_loop, part
from gmkernels.reduce.cpu import add_up
from gmkernels.registry import KernelError
from gmkernels.slots import claim, clear, release
from gmkernels.vectors import ROWS, WIDTH, accumulate, columns_of_a_tile, move, transpose_square

Arrays = Sequence[Any]
Options = Mapping[str, Any]

_DEPTH = 56
"""Positions that a direct gradient of the weight adds up at once: what it reads of them stays in the L1 cache."""


@functools.lru_cache(1024)
def _numbers(p: Plan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where from a position in its window the runs begin that a filter meets, and where its elements; and the plan."""
    h, w = np.ogrid[: p.kernel_h, : 1 if p.dilation_w == 1 else p.kernel_w]
    starts = (h * p.dilation_h * p.window_w + w * p.dilation_w) * p.channels
    h, w, c = np.ogrid[: p.kernel_h, : p.kernel_w, : p.channels]
    places = (h * p.dilation_h * p.window_w + w * p.dilation_w) * p.channels + c
    places = np.pad(places.ravel(), (0, ROWS))
    return starts.astype(np.int64).ravel(), places.astype(np.int64), np.array(p, np.int64)


@jitable
def _plan(s):
    return Plan(
        s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13], s[14], s[15],
        s[16], s[17], s[18], s[19], s[20], s[21], s[22], s[23], s[24], s[25], s[26],
    )  # fmt: skip


@jitable
def _tile(p, tile):
    """Of a tile: its first image and the one after its last, its first row and column, its rows and columns."""
    per_image = p.row_tiles * p.col_tiles
    image = tile // per_image * p.images
    row, col = tile % per_image // p.col_tiles * p.rows, tile % p.col_tiles * p.cols
    return image, min(image + p.images, p.batch), row, col, min(p.rows, p.out_h - row), min(p.cols, p.out_w - col)


# ---------------------------------------------------------------------------------------------------------
# Between planes, windows, and matrices
# ---------------------------------------------------------------------------------------------------------


@jitable
def _transpose(source, start, step, target, to, apart, rows, columns):
    """target[to + j apart + i] = source[start + i step + j] for i < rows, j < columns."""
    long_loop()  # compiled once, and not at each call
    if rows >= WIDTH and columns >= WIDTH:
        for i in range(0, rows, WIDTH):
            first = min(i, rows - WIDTH)  # the last squares begin earlier, and write some elements again
            for j in range(0, columns, WIDTH):
                second = min(j, columns - WIDTH)
                at = start + first * step + second
                transpose_square(WIDTH, source, at, step, target, to + second * apart + first, apart)
    elif rows < columns:
        for i in range(rows):
            for j in range(columns):
                # unsigned: Numba counts negative indices from the end
                target[np.uint64(to + j * apart + i)] = source[np.uint64(start + i * step + j)]
    else:
        for j in range(columns):
            for i in range(rows):
                target[np.uint64(to + j * apart + i)] = source[np.uint64(start + i * step + j)]


@jitable
def _inside(p, row, col):
    """Where the window of a tile begins on x, and which of its rows and columns lie there."""
    top, left = row * p.stride_h - p.top, col * p.stride_w - p.left
    first, last = min(p.window_w, max(0, -left)), max(0, min(p.window_w, p.width - left))
    return top, left, max(0, -top), min(p.window_h, p.height - top), first, max(first, last)


@jitable
def _to_window(p, planes, image, row, col, window, at):
    """The window of a tile on the channels of one image and group, which begin at an element of `planes`."""
    top, left, above, below, first, last = _inside(p, row, col)
    if above > 0 or below < p.window_h or first > 0 or last < p.window_w:
        part(window, at, p.window)[:] = 0
    size = p.height * p.width
    for h in range(above, below):
        x, line = image + (top + h) * p.width + left + first, at + (h * p.window_w + first) * p.channels
        _transpose(planes, x, size, window, line, p.channels, p.channels, last - first)


@jitable
def _from_window(p, window, row, col, planes, image):
    top, left, above, below, first, last = _inside(p, row, col)
    size = p.height * p.width
    for h in range(above, below):
        x, line = image + (top + h) * p.width + left + first, (h * p.window_w + first) * p.channels
        _transpose(window, line, p.channels, planes, x, size, last - first, p.channels)


@jitable
def _to_matrix(p, window, begin, starts, matrix, at, rows, cols):
    """The rows of the matrix for the positions of one image."""
    length = p.channels * p.kernel_h * p.kernel_w // starts.size
    for r in range(rows):
        for q in range(cols):
            origin = begin + (r * p.stride_h * p.window_w + q * p.stride_w) * p.channels
            for k in range(starts.size):
                for i in range(0, length, WIDTH):  # what is copied too far, the next run covers
                    move(window, origin + starts[k] + i, matrix, at + i)
                at += length


@jitable
def _copy(source, target):
    for i in range(target.size):
        target[i] = source[i]


@jitable
def _add(source, target):
    for i in range(target.size):
        target[i] += source[i]


@jitable
def _add_matrix(p, matrix, at, starts, window, rows, cols):
    length = p.channels * p.kernel_h * p.kernel_w // starts.size
    for r in range(rows):
        for q in range(cols):
            origin = (r * p.stride_h * p.window_w + q * p.stride_w) * p.channels
            for k in range(starts.size):
                _add(part(matrix, at, length), part(window, origin + starts[k], length))
                at += length


@jitable
def _lines(p, rows, cols):
    """The positions of one image of a tile as lines of y: how many, and how long."""
    return (1, rows * cols) if cols == p.out_w else (rows, cols)


# ---------------------------------------------------------------------------------------------------------
# The product and its gradients
# ---------------------------------------------------------------------------------------------------------


@jitable
def _accumulate(a, origins, lines, starts, length, step, b, across, c, columns):
    """`accumulate` for so many origins and for all columns of b and c, which are `across` apart."""
    long_loop()
    for column in range(0, across, columns):
        for first in range(0, lines, ROWS):
            accumulate(
                a, origins, first, starts, starts.size, length, step, b, column, across,
                c, first * across + column, across,
            )  # fmt: skip


@block_kernel
def _conv2d(
    lane, function, wide, x, weight, bias, y, taken, windows, matrices, products, places, starts, tap_places, numbers,
    columns, lanes, units,
):  # fmt: skip
    p = _plan(numbers)
    taps, plane = p.channels * p.kernel_h * p.kernel_w, p.out_h * p.out_w
    slot = claim(taken)
    window = part(windows, windows.size // lanes * slot, windows.size // lanes)
    matrix = part(matrices, matrices.size // lanes * slot, matrices.size // lanes)
    product = part(products, products.size // lanes * slot, products.size // lanes)
    origins = part(places, places.size // lanes * slot, places.size // lanes)
    for unit in range(lane * units // lanes, (lane + 1) * units // lanes):
        group = unit % p.groups
        first, last, row, col, rows, cols = _tile(p, unit // p.groups)
        for image in range(first, last):
            at, number = p.window * (image - first), (image - first) * rows * cols
            _to_window(p, x, (image * p.groups + group) * p.channels * p.height * p.width, row, col, window, at)
            if p.direct:
                for r in range(rows):
                    for q in range(cols):
                        origins[number] = at + (r * p.stride_h * p.window_w + q * p.stride_w) * p.channels
                        number += 1
            else:
                _to_matrix(p, window, at, starts, matrix, number * taps, rows, cols)
        used = (last - first) * rows * cols
        for position in range(used):
            line = part(product, position * p.across, p.filters)
            if bias.size > 0:
                _copy(part(bias, group * p.filters, p.filters), line)
            else:
                line[:] = 0
        factors = part(weight, group * p.across * taps, p.across * taps)
        if p.direct:
            origins[used : used + ROWS] = 0
            _accumulate(window, origins, used, starts, taps // starts.size, 1, factors, p.across, product, columns)
        else:
            gemm(
                function, wide, y, NO_TRANS, NO_TRANS, used, p.filters, taps, 1, matrix.ctypes.data, taps,
                factors.ctypes.data, p.across, 1, product.ctypes.data, p.across,
            )  # fmt: skip
        count, length = _lines(p, rows, cols)
        for image in range(first, last):
            for line in range(count):
                at = ((image - first) * rows * cols + line * length) * p.across
                start = (image * p.groups + group) * p.filters * plane + (row + line) * p.out_w + col
                _transpose(product, at, p.across, y, start, plane, length, p.filters)
    release(taken, slot)


@block_kernel
def _backward_input(
    lane,
    function,
    wide,
    g,
    weight,
    d_x,
    taken,
    windows,
    matrices,
    tiles,
    places,
    starts,
    tap_places,
    numbers,
    lanes,
    units,
):
    p = _plan(numbers)
    taps, item, plane = p.channels * p.kernel_h * p.kernel_w, d_x.itemsize, p.height * p.width
    slot = claim(taken)
    window = part(windows, windows.size // lanes * slot, windows.size // lanes)
    matrix = part(matrices, matrices.size // lanes * slot, matrices.size // lanes)
    tile = part(tiles, tiles.size // lanes * slot, tiles.size // lanes)
    per_image = p.row_tiles * p.col_tiles
    for unit in range(lane * units // lanes, (lane + 1) * units // lanes):
        group = unit % p.groups
        for piece in range(per_image):
            first, last, row, col, rows, cols = _tile(p, unit // p.groups * per_image + piece)
            _to_tile(p, g, group, first, last, row, col, rows, cols, tile)
            gemm(
                function, wide, d_x, NO_TRANS, NO_TRANS, (last - first) * rows * cols, taps, p.filters, 1,
                tile.ctypes.data, p.across, weight.ctypes.data + item * group * p.filters * taps, taps,
                0, matrix.ctypes.data, taps,
            )  # fmt: skip
            for image in range(first, last):
                start = (image * p.groups + group) * p.channels * plane
                if piece == 0:
                    d_x[start : start + p.channels * plane] = 0
                    part(window, 0, p.window)[:] = 0
                else:  # what others of its tiles have added there
                    _to_window(p, d_x, start, row, col, window, 0)
                _add_matrix(p, matrix, (image - first) * rows * cols * taps, starts, window, rows, cols)
                _from_window(p, window, row, col, d_x, start)
    release(taken, slot)


@block_kernel
def _backward_weight(
    lane, function, wide, g, x, taken, windows, matrices, tiles, places, sums, starts, tap_places, numbers,
    columns, lanes, units,
):  # fmt: skip
    p = _plan(numbers)
    taps = p.channels * p.kernel_h * p.kernel_w
    slot = claim(taken)
    window = part(windows, windows.size // lanes * slot, windows.size // lanes)
    matrix = part(matrices, matrices.size // lanes * slot, matrices.size // lanes)
    tile = part(tiles, tiles.size // lanes * slot, tiles.size // lanes)
    rows_of_x = part(places, places.size // lanes * slot, places.size // lanes)
    size = sums.size // (lanes * p.groups)
    part(sums, lane * p.groups * size, p.groups * size)[:] = 0
    for unit in range(lane * units // lanes, (lane + 1) * units // lanes):
        first, last, row, col, rows, cols = _tile(p, unit)
        for group in range(p.groups):
            for image in range(first, last):
                at = p.window * (image - first)
                _to_window(p, x, (image * p.groups + group) * p.channels * p.height * p.width, row, col, window, at)
                if p.direct:
                    for r in range(rows):
                        rows_of_x[(image - first) * rows + r] = at + r * p.stride_h * p.window_w * p.channels
                else:
                    _to_matrix(p, window, at, starts, matrix, (image - first) * rows * cols * taps, rows, cols)
            _to_tile(p, g, group, first, last, row, col, rows, cols, tile)
            total = part(sums, (lane * p.groups + group) * size, size)
            if p.direct:
                lines = (last - first) * rows
                for line in range(0, lines, max(1, _DEPTH // cols)):
                    starts_of_lines = part(rows_of_x, line, min(lines - line, max(1, _DEPTH // cols)))
                    gradients = part(tile, line * cols * p.across, tile.size - line * cols * p.across)
                    _accumulate(
                        window, tap_places, taps, starts_of_lines, cols, p.stride_w * p.channels,
                        gradients, p.across, total, columns,
                    )  # fmt: skip
            else:
                gemm(
                    function, wide, g, TRANS, NO_TRANS, taps, p.filters, (last - first) * rows * cols, 1,
                    matrix.ctypes.data, taps, tile.ctypes.data, p.across, 1, total.ctypes.data, p.across,
                )  # fmt: skip
    release(taken, slot)


@jitable
def _to_tile(p, g, group, first, last, row, col, rows, cols, tile):
    """The gradients of a tile, its positions by the filters of a group."""
    plane = p.out_h * p.out_w
    count, length = _lines(p, rows, cols)
    for image in range(first, last):
        for line in range(count):
            start = (image * p.groups + group) * p.filters * plane + (row + line) * p.out_w + col
            at = ((image - first) * rows * cols + line * length) * p.across
            _transpose(g, start, plane, tile, at, p.across, p.filters, length)


# ---------------------------------------------------------------------------------------------------------
# Launchers
# ---------------------------------------------------------------------------------------------------------


def _product(p: Plan, dtype: np.dtype, trans_a: int, m: int, k: int, n: int) -> tuple[int, int]:
    """Address of what multiplies (m, k) by (k, n), and whether its integers are wide."""
    library = blas.find()
    assert library is not None
    if not library.wide and max(p.taps, p.positions, p.filters) >= 2**31:
        raise KernelError(f"this {library.name} has 32-bit integers, too few for a filter of {p.taps} elements")
    return products.choose(library, dtype, trans_a, NO_TRANS, m, k, n)


# A weight is (groups, filters, channels, kH kW). A row of the matrix is ordered kH kW, then channels.


@block_kernel
def _transposed(block, source, target, each, start, start_each, step, to, to_each, apart, rows, columns, zeros):
    """One of `_transpose` for each pair of a group and of one of `each` in it, and so many zeros after each column."""
    first, to = block // each * start + block % each * start_each, block // each * to + block % each * to_each
    _transpose(source, first, step, target, to, apart, rows, columns)
    for j in range(columns):
        for i in range(zeros):
            target[to + j * apart + rows + i] = 0


def conv2d(inputs: Arrays, outputs: Arrays, workspace: Arrays, options: Options) -> None:
    x, weight, *rest = inputs
    (y,) = outputs
    p = spec.forward_plan(x, weight, Attrs(**options))
    bias = rest[0] if rest else np.empty(0, y.dtype)
    if y.size == 0 or p.taps == 0:
        y[...] = bias[:, None, None] if rest else 0
        return
    taken, *tile, matrix = workspace
    clear(taken)
    kernel = p.kernel_h * p.kernel_w
    _transposed(
        p.groups * p.channels, weight, matrix, p.channels, p.filters * p.taps, kernel, p.taps,
        p.taps * p.across, p.across, p.channels * p.across, p.filters, kernel, p.across - p.filters,
    )  # fmt: skip
    units = p.tiles * p.groups
    lanes = p.lanes(units)
    multiply = _product(p, y.dtype, NO_TRANS, p.positions, p.taps, p.filters)
    with blas.single_threaded():
        _conv2d(
            lanes,
            *multiply,
            x,
            matrix,
            bias,
            y,
            taken,
            *tile,
            *_numbers(p),
            columns_of_a_tile(y.itemsize),
            lanes,
            units,
        )


def _split(options: Options) -> tuple[Any, Attrs]:
    return options["size"], Attrs(**{name: value for name, value in options.items() if name != "size"})


def conv2d_backward_input(inputs: Arrays, outputs: Arrays, workspace: Arrays, options: Options) -> None:
    g, weight = inputs
    (d_x,) = outputs
    p = spec.input_plan(g, weight, *_split(options))
    if d_x.size == 0 or g.size == 0:
        d_x.fill(0)
        return
    taken, *tile, matrix = workspace
    clear(taken)
    kernel, size = p.kernel_h * p.kernel_w, p.filters * p.taps
    _transposed(
        p.groups * p.filters, weight, matrix, p.filters, size, p.taps, kernel,
        size, p.taps, p.channels, p.channels, kernel, 0,
    )  # fmt: skip
    units = p.image_tiles * p.groups
    lanes = p.lanes(units)
    multiply = _product(p, g.dtype, NO_TRANS, p.positions, p.filters, p.taps)
    with blas.single_threaded():
        _backward_input(lanes, *multiply, g, matrix, d_x, taken, *tile, *_numbers(p), lanes, units)


def conv2d_backward_weight(inputs: Arrays, outputs: Arrays, workspace: Arrays, options: Options) -> None:
    """Each block adds up its tiles; the sums of the blocks are added in order."""
    g, x = inputs
    (d_weight,) = outputs
    p = spec.weight_plan(g, x, *_split(options))
    if d_weight.size == 0 or g.size == 0:
        d_weight.fill(0)
        return
    lanes = p.sums()
    clear(workspace[0])
    multiply = _product(p, g.dtype, TRANS, p.taps, p.positions, p.filters)
    with blas.single_threaded():
        _backward_weight(
            lanes, *multiply, g, x, *workspace, *_numbers(p), columns_of_a_tile(g.itemsize), lanes, p.tiles
        )
    sums, kernel = workspace[-1], p.kernel_h * p.kernel_w
    total = sums[0]
    add_up(sums, 0, total)  # a block of it has read of all lanes what it writes in the first
    _transposed(
        p.groups * p.channels, total, d_weight, p.channels, total.size // p.groups, p.across, p.channels * p.across,
        p.filters * p.taps, kernel, p.taps, kernel, p.filters, 0,
    )  # fmt: skip
