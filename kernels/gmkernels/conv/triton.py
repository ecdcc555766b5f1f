"""Convolution in Triton: implicit products, whose operands are gathered from the planes; nothing is copied first.

`_convolve` makes y, and the gradient with respect to x too, which is a convolution of g. A program makes a tile of
positions by filters. Its sum goes over blocks of channels and, for each, over the elements of the kernel: which element
of x a product takes is the sum of an offset of the position and one of the channel, and whether it lies in the planes
is two comparisons for a position. Few channels would leave the tensor cores empty: then a block holds several channels
with all of their elements (FLAT), with two comparisons for each product's operand. Few filters would, too: then a block
is one channel, whose products are multiply-adds.

Where x has gone into y with a stride s, the positions of d_x fall into s classes along each axis, those of one
remainder by s. All of a class meet the same elements of the kernel, every (s / gcd(s, dilation))th of them, and their
partners in g are neighbours: for each class d_x is a convolution of stride 1 with these elements alone. Programs go
over the classes too, so no product with a zero between the elements of g is made.

`_correlate` makes the gradient with respect to the weight: a tile of elements of filters by filters, the sum of which
goes over the positions.

Warps go along planes, where neighbours are. Triton lays them along the axis of a tile whose offsets it knows to be
contiguous; here it knows of none, and its versions choose differently. So offsets along that axis say that two are
contiguous (`tl.max_contiguous`), which is true but for ends of lines and strides. Only the layout follows from that: no
access is widened, because the offsets are not known to be multiples of more than one.

Sums of which there are too few to keep a device busy are cut into parts, by shapes alone (a workspace has room for
each); a second launch adds them in order, so that results repeat bit for bit.

float32 is multiplied as "tf32x3", half types as they are, float64 by the float64 tensor cores: `gmkernels.dense.triton`
says what that rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl

from gmkernels import launch
from gmkernels.conv.spec import Attrs
from gmkernels.dense.triton import precision
from gmkernels.elementary_triton import number_of, widened
from gmkernels.reduce.triton import add_up

Arrays = Sequence[Any]
Options = Mapping[str, Any]


@triton.jit
def _inside(i, n):
    """0 <= i < n, in one comparison."""
    if i.dtype == tl.int64:
        return i.to(tl.uint64) < n.to(tl.uint64)
    else:
        return i.to(tl.uint32) < n.to(tl.uint32)


@triton.jit
def _digits(i, rows, columns):
    """The number i = (a rows + b) columns + c as a, b, c."""
    columns = tl.maximum(columns, 1)
    size = tl.maximum(rows, 1) * columns
    rest = i % size
    return i // size, rest // columns, rest % columns


@triton.jit
def _advanced(a, b, c, a_step, b_step, c_step, rows, columns):
    """The digits of the sum of two numbers, by theirs: without divisions."""
    c += c_step
    over = c >= columns
    c = tl.where(over, c - columns, c)
    b += b_step + over.to(b.dtype)
    over = b >= rows
    b = tl.where(over, b - rows, b)
    a += a_step + over.to(a.dtype)
    return a, b, c


# ---------------------------------------------------------------------------------------------------------
# The product, and its gradient with respect to x
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _met(residue, size, kernel, stride, padding, dilation, common, inverse):
    """What positions residue + stride u < size of an axis of d_x meet, with common = gcd(stride, dilation).

    How many they are; the first element of the kernel that they meet, and how many, every (stride / common)th; and
    which position of g the one at u = 0 meets through the first of them: that at u meets the one u further on, and
    with each next element one dilation / common before it.
    """
    at = residue + padding
    step = stride // common
    first = at // common * inverse % step
    count = tl.where((at % common == 0) & (first < kernel), (kernel - first + step - 1) // step, 0)
    return tl.cdiv(size - residue, stride), first, count, (at - first * dilation) // stride


@triton.jit(
    do_not_specialize=[
        "batch", "groups", "channels", "filters", "height", "width", "out_h", "out_w", "kernel_h", "kernel_w",
        "stride_h", "stride_w", "top", "left", "dilation_h", "dilation_w", "common_h", "common_w",
        "inverse_h", "inverse_w", "classes_h", "classes_w",
    ]
)  # fmt: skip
def _convolve(
    x, weight, bias, y, batch, groups, channels, filters, height, width, out_h, out_w, kernel_h, kernel_w,
    stride_h, stride_w, top, left, dilation_h, dilation_w, common_h, common_w, inverse_h, inverse_w,
    classes_h, classes_w, TRANSPOSED: tl.constexpr, FLAT: tl.constexpr, WHOLE: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of y, the planes of `filters` per group, from x, the planes of `channels` per group, or a part of its sum.

    TRANSPOSED: x is g and y is d_x, of which the tile has positions of one class; there are classes_h by classes_w.
    """
    program, tiles = number_of(0, WIDE), tl.cdiv(filters, BLOCK_F)
    f = program % tiles * BLOCK_F + tl.arange(0, BLOCK_F)
    program //= tiles
    group = program % groups
    program //= groups
    size, plane = kernel_h * kernel_w, height * width
    if TRANSPOSED:
        residue_w, residue_h = program % classes_w, program // classes_w % classes_h
        program //= classes_w * classes_h
        rows, first_h, taps_h, start_h = _met(
            residue_h, out_h, kernel_h, stride_h, top, dilation_h, common_h, inverse_h
        )
        columns, first_w, taps_w, start_w = _met(
            residue_w, out_w, kernel_w, stride_w, left, dilation_w, common_w, inverse_w
        )
        down, across, further_h, further_w = 1, 1, -dilation_h // common_h, -dilation_w // common_w
        weight_c, weight_f = filters * size, size
        weight_h, weight_w = stride_h // common_h * kernel_w, stride_w // common_w
        weight += group * channels * filters * size + first_h * kernel_w + first_w
    else:
        rows, taps_h, start_h, down, further_h = out_h, kernel_h, -top, stride_h, dilation_h
        columns, taps_w, start_w, across, further_w = out_w, kernel_w, -left, stride_w, dilation_w
        weight_c, weight_f, weight_h, weight_w = size, channels * size, kernel_w, 1
        weight += group * filters * channels * size

    position = program * BLOCK_P + tl.arange(0, BLOCK_P)
    exists = position < batch * rows * columns
    n, p, q = _digits(tl.where(exists, position, 0), rows, columns)  # what is not stored is read like the first
    row, column = p * down + start_h, q * across + start_w
    at_filter = f * weight_f
    at_position = tl.max_contiguous((n * groups + group) * channels * plane + row * width + column, 2)

    part, k = number_of(1, WIDE), tl.arange(0, BLOCK_K)
    blocks = tl.cdiv(channels * taps_h * taps_w, BLOCK_K) if FLAT else tl.cdiv(channels, BLOCK_K) * taps_h * taps_w
    of_a_part = tl.cdiv(blocks, tl.num_programs(1))
    first, last = part * of_a_part, tl.minimum((part + 1) * of_a_part, blocks)
    if FLAT:
        c, i, j = _digits(first * BLOCK_K + k, taps_h, taps_w)
        c_step, i_step, j_step = _digits(BLOCK_K + 0 * taps_w, taps_h, taps_w)
    else:
        c, i, j = _digits(first, taps_h, taps_w)
        c = c * BLOCK_K + k
    total = widened(tl.zeros((BLOCK_P, BLOCK_F), y.dtype.element_ty))
    for _ in range(first, last):
        shift_h, shift_w, tap = i * further_h, j * further_w, i * weight_h + j * weight_w
        at_x, at_weight = c * plane + shift_h * width + shift_w, tl.max_contiguous(c * weight_c + tap, 2)
        if FLAT:
            shift_h, shift_w = shift_h[None, :], shift_w[None, :]
        mask = _inside(row[:, None] + shift_h, height) & _inside(column[:, None] + shift_w, width)
        if WHOLE:
            mask = tl.broadcast_to(mask, (BLOCK_P, BLOCK_K))
            weight_mask = tl.broadcast_to((f < filters)[None, :], (BLOCK_K, BLOCK_F))
        else:
            mask = mask & (c < channels)[None, :]
            weight_mask = (c < channels)[:, None] & (f < filters)[None, :]
        a = tl.load(x + (at_position[:, None] + at_x[None, :]), mask, 0.0)
        b = tl.load(weight + (at_weight[:, None] + at_filter[None, :]), weight_mask, 0.0)
        if BLOCK_K == 1:
            total = tl.fma(widened(a), widened(b), total)
        else:
            total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)
        if FLAT:
            c, i, j = _advanced(c, i, j, c_step, i_step, j_step, taps_h, taps_w)
        else:
            over, i, j = _advanced(0 * i, i, j, 0, 0, 1, taps_h, taps_w)
            c += over * BLOCK_K
    if bias is not None:
        total += widened(tl.load(bias + group * filters + f, f < tl.where(part == 0, filters, 0), 0.0))[None, :]

    if TRANSPOSED:
        p, q = residue_h + p * stride_h, residue_w + q * stride_w
    at = (((part * batch + n) * groups + group) * filters * out_h + p) * out_w + q
    at = tl.max_contiguous(at, 2)[:, None] + (f * out_h * out_w)[None, :]
    tl.store(y + at, total.to(y.dtype.element_ty), exists[:, None] & (f < filters)[None, :])


def _tile(positions: int, filters: int, k: int, warps: int, stages: int) -> dict[str, int]:
    return {"positions": positions, "filters": filters, "k": k, "warps": warps, "stages": stages}


_MANY = 1 << 20
"""Elements of a result from which on large tiles are enough for a device."""
CHOICES = {
    (itemsize, many): launch.Choices(f"convolution.{'many' if many else 'few'}.{name}.triton", candidates, classes)
    for itemsize, name, few_candidates, many_candidates in (
        (
            2, "half",
            (_tile(64, 32, 32, 4, 3), _tile(64, 32, 64, 4, 3), _tile(64, 64, 32, 4, 3)),
            (_tile(128, 128, 64, 8, 3), _tile(128, 128, 32, 8, 3), _tile(128, 64, 64, 4, 3)),
        ),
        (
            4, "float32",
            (_tile(64, 32, 32, 4, 3), _tile(64, 64, 32, 4, 3), _tile(64, 32, 16, 4, 4)),
            (_tile(128, 128, 32, 8, 3), _tile(128, 64, 32, 8, 3), _tile(64, 64, 32, 4, 3)),
        ),
        (
            8, "float64",
            (_tile(64, 32, 16, 4, 3), _tile(32, 32, 16, 4, 3), _tile(64, 64, 16, 8, 3)),
            (_tile(64, 32, 16, 4, 3), _tile(64, 64, 16, 8, 3), _tile(128, 64, 16, 8, 3)),
        ),
    )
    for many, candidates, classes in ((False, few_candidates, (1 << 16,)), (True, many_candidates, (1 << 23,)))
}  # fmt: skip
"""By bytes of an element, and whether the result has many. As in `gmkernels.dense.triton`, the largest tile of float32
spills on Ampere if the filters fill it: there configurations.json has the second candidate."""
_NARROWEST = 16
"""What tensor cores take along each axis."""
_THIN = _tile(512, 4, 1, 4, 1)
"""For so few filters, such as those of a group of one channel, tensor cores would mostly multiply zeros."""


def _block(length: int, most: int) -> int:
    """The width of tiles along an axis of such a length."""
    return min(most, max(_NARROWEST, triton.next_power_of_2(length)))


def _inverse(dilation: int, stride: int) -> int:
    """Of dilation / gcd modulo stride / gcd, with gcd that of the two."""
    common = math.gcd(dilation, stride)
    return pow(dilation // common, -1, stride // common)


def _partial(workspace: Arrays) -> tuple[Any, int]:
    """The workspace of parts of sums, and how many; None and 1 without. Others are flat: copies, which CUDA C makes."""
    found = next((a for a in workspace if a.ndim > 1), None)
    return found, 1 if found is None else found.shape[0]


def _launch(x: Any, weight: Any, bias: Any, y: Any, workspace: Arrays, attrs: Attrs, transposed: bool) -> None:
    if y.size == 0:
        return
    partial, parts = _partial(workspace)
    (batch, _, out_h, out_w), (_, _, kernel_h, kernel_w) = y.shape, weight.shape
    channels, filters = x.shape[1] // attrs.groups, y.shape[1] // attrs.groups
    # A remainder that is larger than the planes has no positions.
    classes = tuple(min(s, n) for s, n in zip(attrs.stride, (out_h, out_w))) if transposed else (1, 1)
    positions = batch * math.prod(-(-n // s) for n, s in zip((out_h, out_w), attrs.stride if transposed else (1, 1)))
    thin = filters <= _THIN["filters"]
    choice = _THIN if thin else CHOICES[x.itemsize, y.size >= _MANY].at(y.size)
    flat = channels < _NARROWEST and not thin
    block_f = triton.next_power_of_2(filters) if thin else _block(filters, choice["filters"])
    block_k = 1 if thin else _block(channels * kernel_h * kernel_w if flat else channels, choice["k"])
    programs = triton.cdiv(positions, choice["positions"]) * math.prod(classes) * attrs.groups
    launch.triton(
        _convolve,
        (programs * triton.cdiv(filters, block_f), parts),
        (
            x, weight, bias, y if partial is None else partial, batch, attrs.groups, channels, filters,
            *x.shape[2:], out_h, out_w, kernel_h, kernel_w, *attrs.stride, attrs.padding[0][0], attrs.padding[1][0],
            *attrs.dilation, *map(math.gcd, attrs.stride, attrs.dilation), *map(_inverse, attrs.dilation, attrs.stride),
            *classes,
        ),
        {
            "TRANSPOSED": transposed, "FLAT": flat, "WHOLE": channels % block_k == 0 and not flat,
            "BLOCK_P": choice["positions"], "BLOCK_F": block_f, "BLOCK_K": block_k,
            "PRECISION": precision(x.itemsize),
        },
        warps=choice["warps"],
        stages=choice["stages"],
    )  # fmt: skip
    if partial is not None:
        add_up(partial, 1, parts, y.size, y)


def _attrs(options: Options) -> Attrs:
    return Attrs(**{name: value for name, value in options.items() if name != "size"})


def conv2d(inputs: Arrays, outputs: Arrays, workspace: Arrays, options: Options) -> None:
    x, weight, *bias = inputs
    _launch(x, weight, bias[0] if bias else None, outputs[0], workspace, _attrs(options), False)


def conv2d_backward_input(inputs: Arrays, outputs: Arrays, workspace: Arrays, options: Options) -> None:
    g, weight = inputs
    _launch(g, weight, None, outputs[0], workspace, _attrs(options), True)


# ---------------------------------------------------------------------------------------------------------
# The gradient with respect to the weight
# ---------------------------------------------------------------------------------------------------------


@triton.jit(
    do_not_specialize=[
        "batch", "groups", "channels", "filters", "height", "width", "out_h", "out_w", "kernel_h", "kernel_w",
        "stride_h", "stride_w", "top", "left", "dilation_h", "dilation_w", "blocks",
    ]
)  # fmt: skip
def _correlate(
    g, x, d_weight, batch, groups, channels, filters, height, width, out_h, out_w, kernel_h, kernel_w,
    stride_h, stride_w, top, left, dilation_h, dilation_w, blocks,
    FLAT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of d_weight, elements of filters by filters, summed over all positions or a part of so many blocks.

    FLAT: the elements are those of a filter in its order; otherwise BLOCK_T channels of one element of the kernel, so
    that whether a position meets it in the planes is the same for all of them.
    """
    program, tiles = number_of(0, WIDE), tl.cdiv(filters, BLOCK_F)
    f = program % tiles * BLOCK_F + tl.arange(0, BLOCK_F)
    program //= tiles
    plane, size, elements = height * width, out_h * out_w, kernel_h * kernel_w
    if FLAT:
        tiles = tl.cdiv(channels * elements, BLOCK_T)
        element = program % tiles * BLOCK_T + tl.arange(0, BLOCK_T)
        c, i, j = _digits(element, kernel_h, kernel_w)
    else:
        blocks_of_channels = channels // BLOCK_T
        tiles = blocks_of_channels * elements
        c = program % blocks_of_channels * BLOCK_T + tl.arange(0, BLOCK_T)
        element = program % tiles // blocks_of_channels
        i, j = element // kernel_w, element % kernel_w
    group = program // tiles
    row, column = i * dilation_h - top, j * dilation_w - left
    channel = group * channels + tl.where(c < channels, c, 0)  # what is not stored is read like the first
    at_element = channel * plane + row * width + column
    at_filter = (group * filters + tl.where(f < filters, f, 0)) * size

    part = number_of(1, WIDE)
    first, last = part * blocks * BLOCK_K, tl.minimum((part + 1) * blocks * BLOCK_K, batch * size)
    n, p, q = _digits(first + tl.arange(0, BLOCK_K), out_h, out_w)
    n_step, p_step, q_step = _digits(BLOCK_K + 0 * out_w, out_h, out_w)
    total = widened(tl.zeros((BLOCK_T, BLOCK_F), x.dtype.element_ty))
    for _ in range(first, last, BLOCK_K):
        exists = (n < batch)[:, None]
        shift_h, shift_w = p * stride_h, q * stride_w
        if FLAT:
            within = _inside(shift_h[:, None] + row[None, :], height)
            within = exists & within & _inside(shift_w[:, None] + column[None, :], width)
        else:
            within = exists & (_inside(shift_h + row, height) & _inside(shift_w + column, width))[:, None]
        at_x = tl.max_contiguous(n * groups * channels * plane + shift_h * width + shift_w, 2)
        a = tl.load(x + (at_x[:, None] + at_element[None, :]), within, 0.0)
        at_g = tl.max_contiguous(n * groups * filters * size + p * out_w + q, 2)
        b = tl.load(g + (at_g[:, None] + at_filter[None, :]), exists, 0.0)
        total = tl.dot(tl.trans(a), b, total, input_precision=PRECISION, out_dtype=total.dtype)
        n, p, q = _advanced(n, p, q, n_step, p_step, q_step, out_h, out_w)
    at = tl.max_contiguous(c * elements + i * kernel_w + j, 2)[:, None]
    at += (((part * groups + group) * filters + f) * channels * elements)[None, :]
    mask = (c < channels)[:, None] & (f < filters)[None, :]
    tl.store(d_weight + at, total.to(d_weight.dtype.element_ty), mask)


def _weight_tile(elements: int, filters: int, k: int, warps: int, stages: int) -> dict[str, int]:
    return {"elements": elements, "filters": filters, "k": k, "warps": warps, "stages": stages}


WEIGHT_CHOICES = {
    itemsize: launch.Choices(f"correlation.{name}.triton", candidates)
    for itemsize, name, candidates in (
        (
            2, "half",
            (_weight_tile(64, 64, 32, 4, 3), _weight_tile(128, 64, 32, 8, 3), _weight_tile(64, 32, 64, 4, 3)),
        ),
        (
            4, "float32",
            (_weight_tile(64, 64, 32, 4, 3), _weight_tile(128, 64, 32, 8, 3), _weight_tile(128, 128, 32, 8, 3)),
        ),
        (
            8, "float64",
            (_weight_tile(64, 32, 32, 4, 3), _weight_tile(64, 64, 16, 8, 3), _weight_tile(32, 32, 16, 4, 3)),
        ),
    )
}  # fmt: skip
"""By bytes of an element."""


def conv2d_backward_weight(inputs: Arrays, outputs: Arrays, workspace: Arrays, options: Options) -> None:
    g, x = inputs
    (d_weight,) = outputs
    if d_weight.size == 0:
        return
    attrs = _attrs(options)
    (batch, channels, height, width), (_, filters, out_h, out_w) = x.shape, g.shape
    channels, filters = channels // attrs.groups, filters // attrs.groups
    choice, (partial, parts) = WEIGHT_CHOICES[x.itemsize].at(g.size), _partial(workspace)
    length = math.prod(d_weight.shape[1:])
    block_t, block_f = _block(length, choice["elements"]), _block(filters, choice["filters"])
    launch.triton(
        _correlate,
        (attrs.groups * triton.cdiv(length, block_t) * triton.cdiv(filters, block_f), parts),
        (
            g, x, d_weight if partial is None else partial, batch, attrs.groups, channels, filters, height, width,
            out_h, out_w, *d_weight.shape[2:], *attrs.stride, attrs.padding[0][0], attrs.padding[1][0],
            *attrs.dilation, triton.cdiv(triton.cdiv(batch * out_h * out_w, parts), choice["k"]),
        ),
        {
            "FLAT": channels % block_t != 0, "BLOCK_T": block_t, "BLOCK_F": block_f, "BLOCK_K": choice["k"],
            "PRECISION": precision(x.itemsize),
        },
        warps=choice["warps"],
        stages=choice["stages"],
    )  # fmt: skip
    if partial is not None:
        add_up(partial, 1, parts, d_weight.size, d_weight)
