"""Contracts of convolution: the product y = x * w over planes, and its two gradients.

Convolution is linear in x and in w, so each derivative of one of the three specs is another of them:

    conv2d(x, w) = y                     d_x = backward_input(g, w)      d_w = backward_weight(g, x)
    conv2d_backward_input(g, w) = d_x    of g: conv2d(., w)              of w: backward_weight(g, .)
    conv2d_backward_weight(g, x) = d_w   of g: conv2d(x, .)              of x: backward_input(g, .)

A transposed convolution is `conv2d_backward_input` with the roles of x and y exchanged. Convolution over one axis is
that over two with a height of 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from gmkernels.arrays import on_gpu
from gmkernels.cost import Cost
from gmkernels.dense.spec import splits
from gmkernels.registry import FLOATS, HALVES, Array, Example, KernelError, KernelSpec, Layout

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]
"""Zeros (above, below) and (left, right)."""
Shape = tuple[int, ...]


class Attrs(NamedTuple):
    """The attributes that all three specs take, with their defaults."""

    stride: Pair = (1, 1)
    padding: Padding = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1


def output_size(size: Pair, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair) -> Pair:
    """Height and width of the convolution of planes of `size`: floor((n + padding - d (k - 1) - 1) / stride) + 1."""
    height, width = (
        (n + sum(p) - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(size, kernel, stride, padding, dilation)
    )
    return height, width


# ---------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------


def _error(op: str, expected: str, arrays: dict[str, Array], attrs: Attrs) -> KernelError:
    given = ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in arrays.items())
    options = ", ".join(f"{name}={value}" for name, value in attrs._asdict().items())
    return KernelError(f"{op}: expected {expected}; got {given}, {options}")


def _check_attrs(op: str, arrays: dict[str, Array], attrs: Attrs) -> None:
    for what, ok in (
        ("a stride of at least 1", min(attrs.stride) >= 1),
        ("a padding of at least 0", min(map(min, attrs.padding)) >= 0),
        ("a dilation of at least 1", min(attrs.dilation) >= 1),
        ("at least one group", attrs.groups >= 1),
    ):
        if not ok:
            raise _error(op, what, arrays, attrs)
    dtypes = {a.dtype.name for a in arrays.values()}
    if len(dtypes) > 1 or not dtypes <= {*FLOATS, *HALVES}:
        raise _error(op, f"arrays of one dtype, {' or '.join(FLOATS + HALVES)}", arrays, attrs)


def _check_shapes(op: str, x: Shape, weight: Shape, arrays: dict[str, Array], attrs: Attrs) -> Pair:
    """Height and width of the convolution of x by weight, both of four axes."""
    if weight[1] * attrs.groups != x[1] or weight[0] % attrs.groups:
        expected = "x (N, C, H, W) and weight (O, C / groups, kH, kW), with O a multiple of groups"
        raise _error(op, expected, arrays, attrs)
    if min(weight[2:]) < 1:
        raise _error(op, "a kernel of at least one element", arrays, attrs)
    size = output_size((x[2], x[3]), (weight[2], weight[3]), attrs.stride, attrs.padding, attrs.dilation)
    if min(size) < 1:
        raise _error(op, "a (dilated) kernel no larger than the padded input", arrays, attrs)
    return size


def _planes(op: str, arrays: dict[str, Array], attrs: Attrs) -> None:
    if any(a.ndim != 4 for name, a in arrays.items() if name != "bias"):
        raise _error(op, f"{' and '.join(n for n in arrays if n != 'bias')} of four axes", arrays, attrs)


# ---------------------------------------------------------------------------------------------------------
# How the CPU's kernels cut the work
# ---------------------------------------------------------------------------------------------------------

TILE = 1 << 17
"""Elements of the matrix that a block multiplies by the weight: it is made and used within the L2 cache."""
MIN_POSITIONS, MAX_POSITIONS = 96, 1024
"""Rows of that matrix: below, the product packs the weight too often; above, nothing is gained."""
LANES = 16
"""Most blocks of a call."""
SUM_POSITIONS = 512
"""Fewest positions for a block that adds up a gradient of the weight."""
LANE_FLOPS = 1 << 20
"""Work that is worth a block of its own."""
COLUMNS = 32
"""Filters go through direct products so many at once: a multiple of what a kernel's tiles are wide in any dtype."""
SLACK = 8
"""Elements that a copy of rows in vectors may read or write too far."""


class Plan(NamedTuple):
    """The geometry of a call, and its cut into tiles: rectangles of output positions of one image or of several."""

    batch: int
    groups: int
    channels: int  # of x, per group
    filters: int  # of y, per group
    height: int
    width: int
    kernel_h: int
    kernel_w: int
    out_h: int
    out_w: int
    stride_h: int
    stride_w: int
    top: int
    left: int
    dilation_h: int
    dilation_w: int
    images: int  # of a tile
    rows: int  # of a tile
    cols: int
    row_tiles: int
    col_tiles: int
    image_tiles: int
    window_h: int  # size of what a tile of one image looks at
    window_w: int
    window: int  # elements of that
    across: int  # columns of the weight as a matrix: `filters`, and some of zeros where the products are direct
    direct: bool  # whether sums of products are made from the window, and not as a product of matrices by BLAS

    @property
    def taps(self) -> int:
        """Columns of the matrix: elements of a filter."""
        return self.channels * self.kernel_h * self.kernel_w

    @property
    def positions(self) -> int:
        return self.images * self.rows * self.cols

    @property
    def tiles(self) -> int:
        return self.image_tiles * self.row_tiles * self.col_tiles

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.groups * self.filters * self.taps * self.out_h * self.out_w

    def lanes(self, units: int) -> int:
        """Number of blocks for so many units of work."""
        return max(1, min(LANES, units, self.flops // LANE_FLOPS))

    def sums(self) -> int:
        """Number of blocks of the gradient of the weight: each has a sum as large as the weight to write and to add."""
        return min(self.lanes(self.tiles), max(1, self.batch * self.out_h * self.out_w // SUM_POSITIONS))


@functools.lru_cache(1024)
def plan(x: Shape, weight: Shape, out: Pair, attrs: Attrs) -> Plan:
    """The cut of the convolution of x by weight to planes of size `out`, and of its gradients."""
    batch, _, height, width = x
    filters, channels, kernel_h, kernel_w = weight
    (out_h, out_w), (stride_h, stride_w), (dilation_h, dilation_w) = out, attrs.stride, attrs.dilation
    most = min(MAX_POSITIONS, max(MIN_POSITIONS, TILE // max(1, channels * kernel_h * kernel_w)))
    rows, cols, images = out_h, out_w, 1
    if out_h * out_w <= most:
        images = max(1, min(most // (out_h * out_w), -(-batch // LANES)))
    else:
        cols = -(-out_w // -(-out_w // most))
        rows = min(out_h, max(1, most // cols))
        rows = -(-out_h // -(-out_h // rows))
    window_h = (rows - 1) * stride_h + (kernel_h - 1) * dilation_h + 1
    window_w = (cols - 1) * stride_w + (kernel_w - 1) * dilation_w + 1
    filters //= attrs.groups
    across = -(-filters // COLUMNS) * COLUMNS
    direct = 3 * across <= 4 * filters
    return Plan(
        batch, attrs.groups, channels, filters, height, width, kernel_h, kernel_w, out_h, out_w,
        stride_h, stride_w, attrs.padding[0][0], attrs.padding[1][0], dilation_h, dilation_w,
        images, rows, cols, -(-out_h // rows), -(-out_w // cols), -(-batch // images),
        window_h, window_w, channels * window_h * window_w, across if direct else filters, direct,
    )  # fmt: skip


def _workspace(p: Plan, lanes: int, dtype: Any) -> Layout:
    """Which workspaces are taken; and in each the window of a tile on x, the matrix made of it, and the tile of y."""
    sizes = (p.images * p.window + SLACK, p.positions * p.taps + SLACK, (p.positions + SLACK) * p.across)
    integers = np.dtype(np.int64)
    return [((lanes,), integers), *[((lanes, size), dtype) for size in sizes], ((lanes, p.positions + SLACK), integers)]


def _weight_as_matrix(p: Plan, filters: int, dtype: Any) -> tuple[Shape, Any]:
    return (p.groups, p.taps * filters), dtype


# ---------------------------------------------------------------------------------------------------------
# How the GPU's kernels cut the work
# ---------------------------------------------------------------------------------------------------------


def sums_dtype(dtype: Any) -> Any:
    """Of the parts of sums on a GPU."""
    return np.promote_types(np.float32, dtype)


def forward_parts(p: Plan) -> int:
    """Parts into which GPU kernels cut the sums over the taps (c, i, j) of a filter. They are added in order."""
    return splits(p.filters, p.taps, p.batch * p.out_h * p.out_w, p.groups)


def input_parts(p: Plan) -> int:
    """The same for the sums over (o, i, j) of the gradient with respect to x: an element of x meets 1 of `stride`
    elements of the kernel along an axis."""
    taps = p.filters * -(-p.kernel_h // p.stride_h) * -(-p.kernel_w // p.stride_w)
    return splits(p.channels, taps, p.batch * p.height * p.width, p.groups)


def weight_parts(p: Plan) -> int:
    """The same for the sums over the positions (n, p, q) of the gradient with respect to the weight."""
    return splits(p.filters, p.batch * p.out_h * p.out_w, p.taps, p.groups)


def channels_last(p: Plan, dtype: Any) -> bool:
    """Whether kernels of CUDA C make copies of their operands with the channels last: of half types, 16 bytes are 8
    neighbouring channels then."""
    return dtype.itemsize == 2 and p.channels * p.filters > 0 and p.channels % 8 == 0 and p.filters % 8 == 0


def _copies(p: Plan, *arrays: Array) -> Layout:
    return [((a.size,), a.dtype) for a in arrays if channels_last(p, a.dtype)]


def _parts_workspace(parts: int, shape: Shape, dtype: Any) -> Layout:
    return [((parts, *shape), sums_dtype(dtype))] if parts > 1 else []


def _cost(p: Plan, *arrays: Array) -> Cost:
    sizes = p.batch * p.groups * (p.channels * p.height * p.width + p.filters * p.out_h * p.out_w)
    itemsize = arrays[0].itemsize
    # The matrix is written and read in the cache: some 2 slots an element beside the product.
    positions = p.batch * p.groups * p.out_h * p.out_w
    return Cost(itemsize * (sizes + p.groups * p.filters * p.taps), p.flops, 2.0 * positions * p.taps)


# ---------------------------------------------------------------------------------------------------------
# Examples
# ---------------------------------------------------------------------------------------------------------

# x, weight, and the attributes by position: odd sizes, every option, nothing in the batch, nothing to sum, tiles of
# several images, of rows, of columns.
_EXAMPLES: tuple[tuple[Shape, Shape, tuple[Any, ...]], ...] = (
    ((2, 3, 5, 7), (4, 3, 3, 2), ()),
    ((1, 1, 1, 1), (1, 1, 1, 1), ()),
    ((0, 2, 3, 3), (3, 2, 2, 2), ((1, 1), ((1, 1), (0, 0)))),
    ((2, 0, 3, 3), (3, 0, 2, 2), ()),
    ((3, 2, 8, 9), (5, 2, 3, 3), ((2, 2), ((1, 1), (1, 1)))),
    ((2, 6, 7, 5), (9, 2, 2, 3), ((2, 1), ((0, 1), (2, 0)), (1, 2), 3)),
    ((2, 4, 6, 6), (4, 1, 3, 3), ((3, 2), ((1, 1), (1, 1)), (2, 1), 4)),
    ((3, 2, 9, 9), (3, 2, 1, 1), ((4, 3), ((0, 0), (1, 0)))),
    ((2, 3, 1, 127), (2, 3, 1, 5), ((1, 3), ((0, 0), (2, 2)), (1, 2))),
    ((129, 3, 14, 13), (7, 3, 4, 4), ((2, 2), ((1, 1), (1, 1)))),
    ((1, 31, 37, 41), (29, 31, 3, 3), ((1, 1), ((1, 1), (1, 1)))),
    ((1, 2, 1, 2503), (3, 2, 1, 9), ((1, 2), ((0, 0), (4, 4)))),
)


def _examples(rng: np.random.Generator, dtype: Any, which: str) -> Iterator[Example]:
    for number, (x_shape, w_shape, values) in enumerate(_EXAMPLES):
        attrs = Attrs(*values)
        size = output_size(x_shape[2:], w_shape[2:], *attrs[:3])  # type: ignore[arg-type]
        # Scaled so that a sum has variance 1 or less; the tolerance relies on it.
        terms = {
            "conv2d": math.prod(w_shape[1:]),
            "conv2d_backward_input": w_shape[0] // attrs.groups * math.prod(w_shape[2:]),
            "conv2d_backward_weight": x_shape[0] * math.prod(size),
        }[which]
        x = rng.standard_normal(x_shape).astype(dtype)
        weight = (rng.standard_normal(w_shape) / math.sqrt(max(1, terms))).astype(dtype)
        g = rng.standard_normal((x_shape[0], w_shape[0], *size)).astype(dtype)
        options = attrs._asdict()
        if which == "conv2d":
            bias = (rng.standard_normal(w_shape[0]).astype(dtype),) if number % 3 else ()
            yield Example((x, weight, *bias), options)
        elif which == "conv2d_backward_input":
            yield Example((g, weight), {"size": x_shape[2:], **options})
        else:
            yield Example(((g / math.sqrt(max(1, terms))).astype(dtype), x), {"size": w_shape[2:], **options})


# A sum of k products rounds like a random walk: sqrt(k) u sum |a||b| (Higham & Mary, SIAM J. Sci. Comput. 41(5),
# 2019). The examples have k <= 5418 (the gradient of the weight over a batch of 129) and sum |a||b| about
# 0.64 sqrt(k): u 0.64 k = 2e-4 at worst in float32; the sums are added in parts, which keeps below that.
# Halves are multiplied exactly and summed in float32; their one rounding at the end is not counted here.
_TOLERANCE = {"float32": (0.0, 1e-4), "float64": (0.0, 2e-13)}
_SOURCE = "Dumoulin & Visin, A guide to convolution arithmetic for deep learning, 2016"


# ---------------------------------------------------------------------------------------------------------
# conv2d
# ---------------------------------------------------------------------------------------------------------


def forward_plan(x: Array, weight: Array, attrs: Attrs) -> Plan:
    size = output_size(x.shape[2:], weight.shape[2:], attrs.stride, attrs.padding, attrs.dilation)
    return plan(x.shape, weight.shape, size, attrs)


def _conv_infer(x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Layout:
    attrs, arrays = Attrs(**options), {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    _planes("conv2d", arrays, attrs)
    _check_attrs("conv2d", arrays, attrs)
    size = _check_shapes("conv2d", x.shape, weight.shape, arrays, attrs)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise _error("conv2d", "a bias (O,)", arrays, attrs)
    return [((x.shape[0], weight.shape[0], *size), x.dtype)]


def _conv_workspace(x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Layout:
    p = forward_plan(x, weight, Attrs(**options))
    if on_gpu(x):
        y_shape = (x.shape[0], weight.shape[0], p.out_h, p.out_w)
        return [*_parts_workspace(forward_parts(p), y_shape, x.dtype), *_copies(p, x, weight)]
    return [*_workspace(p, p.lanes(p.tiles * p.groups), x.dtype), _weight_as_matrix(p, p.across, x.dtype)]


CONV2D = KernelSpec(
    name="conv2d",
    family="conv",
    inputs=("x", "weight", "bias"),
    outputs=("y",),
    infer=_conv_infer,
    workspace=_conv_workspace,
    cost=lambda x, weight, *bias, **options: _cost(forward_plan(x, weight, Attrs(**options)), x),
    size=lambda x, weight, *bias, **options: forward_plan(x, weight, Attrs(**options)).flops,
    examples=functools.partial(_examples, which="conv2d"),
    formula=(
        "y[n, o, p, q] = bias[o] + sum_{c, i, j} x[n, c, p s + i d - top, q s' + j d' - left] weight[o, c, i, j], "
        "c over the channels of o's group, x zero outside its planes; the bias may be left out"
    ),
    source=_SOURCE,
    tolerance=_TOLERANCE,
)


# ---------------------------------------------------------------------------------------------------------
# The gradients
# ---------------------------------------------------------------------------------------------------------


def input_plan(g: Array, weight: Array, size: Pair, attrs: Attrs) -> Plan:
    x_shape = (g.shape[0], weight.shape[1] * attrs.groups, *size)
    return plan(x_shape, weight.shape, g.shape[2:], attrs)


def _input_infer(g: Array, weight: Array, *, size: Pair, **options: Any) -> Layout:
    op, attrs, arrays = "conv2d_backward_input", Attrs(**options), {"g": g, "weight": weight}
    _planes(op, arrays, attrs)
    _check_attrs(op, arrays, attrs)
    x_shape = (g.shape[0], weight.shape[1] * attrs.groups, *size)
    out = _check_shapes(op, x_shape, weight.shape, arrays, attrs)
    if g.shape[1:] != (weight.shape[0], *out):
        raise _error(op, f"g (N, {weight.shape[0]}, {out[0]}, {out[1]}) for planes of size {size}", arrays, attrs)
    return [(x_shape, g.dtype)]


def _input_workspace(g: Array, weight: Array, *, size: Pair, **options: Any) -> Layout:
    p = input_plan(g, weight, size, Attrs(**options))
    if on_gpu(g):  # the weight laid out as the product reads it, and parts
        x_shape = (g.shape[0], weight.shape[1] * p.groups, *size)
        return [((weight.size,), g.dtype), *_parts_workspace(input_parts(p), x_shape, g.dtype), *_copies(p, g)]
    return [*_workspace(p, p.lanes(p.image_tiles * p.groups), g.dtype), _weight_as_matrix(p, p.filters, g.dtype)]


CONV2D_BACKWARD_INPUT = KernelSpec(
    name="conv2d_backward_input",
    family="conv",
    inputs=("g", "weight"),
    outputs=("d_x",),
    infer=_input_infer,
    workspace=_input_workspace,
    cost=lambda g, weight, *, size, **options: _cost(input_plan(g, weight, size, Attrs(**options)), g),
    size=lambda g, weight, *, size, **options: input_plan(g, weight, size, Attrs(**options)).flops,
    examples=functools.partial(_examples, which="conv2d_backward_input"),
    formula=(
        "d_x[n, c, h, w] = sum of g[n, o, p, q] weight[o, c, i, j] over all o of c's group and all i, j, p, q with "
        "p s + i d - top = h and q s' + j d' - left = w; d_x has planes of `size`"
    ),
    source=_SOURCE,
    tolerance=_TOLERANCE,
)


def weight_plan(g: Array, x: Array, size: Pair, attrs: Attrs) -> Plan:
    weight_shape = (g.shape[1], x.shape[1] // attrs.groups, *size)
    return plan(x.shape, weight_shape, g.shape[2:], attrs)


def _weight_infer(g: Array, x: Array, *, size: Pair, **options: Any) -> Layout:
    op, attrs, arrays = "conv2d_backward_weight", Attrs(**options), {"g": g, "x": x}
    _planes(op, arrays, attrs)
    _check_attrs(op, arrays, attrs)
    weight_shape = (g.shape[1], x.shape[1] // attrs.groups, *size)
    out = _check_shapes(op, x.shape, weight_shape, arrays, attrs)
    if g.shape != (x.shape[0], g.shape[1], *out):
        raise _error(op, f"g ({x.shape[0]}, O, {out[0]}, {out[1]}) for a kernel of size {size}", arrays, attrs)
    return [(weight_shape, g.dtype)]


def _weight_workspace(g: Array, x: Array, *, size: Pair, **options: Any) -> Layout:
    p = weight_plan(g, x, size, Attrs(**options))
    if on_gpu(g):
        return [*_parts_workspace(weight_parts(p), (g.shape[1], p.channels, *size), g.dtype), *_copies(p, g, x)]
    return [*_workspace(p, p.sums(), g.dtype), ((p.sums(), p.groups * (p.taps + SLACK) * p.across), g.dtype)]


CONV2D_BACKWARD_WEIGHT = KernelSpec(
    name="conv2d_backward_weight",
    family="conv",
    inputs=("g", "x"),
    outputs=("d_weight",),
    infer=_weight_infer,
    workspace=_weight_workspace,
    cost=lambda g, x, *, size, **options: _cost(weight_plan(g, x, size, Attrs(**options)), g),
    size=lambda g, x, *, size, **options: weight_plan(g, x, size, Attrs(**options)).flops,
    examples=functools.partial(_examples, which="conv2d_backward_weight"),
    formula=(
        "d_weight[o, c, i, j] = sum_{n, p, q} g[n, o, p, q] x[n, c, p s + i d - top, q s' + j d' - left], with c "
        "counted from the first channel of o's group; the kernel has `size`"
    ),
    source=_SOURCE,
    tolerance=_TOLERANCE,
)
