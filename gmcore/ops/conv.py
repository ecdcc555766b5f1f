"""Convolution over one axis or two, and its transpose: all on the product of planes and filters, `conv2d`.

Convolution is linear in its input and in its weight. So the gradient with respect to either is linear in what it is
made of too, and the three operations are each other's derivatives, of any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gmcore.errors import ArgumentError, DtypeError, ShapeError, shown
from gmcore.op import Example, Op, kernel, user_line
from gmcore.ops.elementwise import as_floating, real
from gmcore.ops.reduce import sum
from gmcore.ops.shape import reshape
from gmcore.ops.windows import Size, as_planes, flat, from_planes, per_axis
from gmcore.tensor import Tensor, as_tensor
from gmkernels.conv import spec
from gmkernels.conv.spec import Padding, Pair

Shape = tuple[int, ...]


# -- the operation and its gradients --------------------------------------------------------------------------
def _product(x: Tensor, weight: Tensor, stride: Pair, padding: Padding, dilation: Pair, groups: int) -> Tensor:
    bias = weight.new_zeros(weight.shape[:1])
    return _conv2d(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def _input_gradient(
    g: Tensor, weight: Tensor, x_shape: Shape, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Tensor:
    options: Any = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _conv2d_backward_input(g, weight, size=x_shape[2:], **options)


def _weight_gradient(
    g: Tensor, x: Tensor, weight_shape: Shape, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Tensor:
    options: Any = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _conv2d_backward_weight(g, x, size=weight_shape[2:], **options)


def _conv_examples(rng: np.random.Generator) -> Iterator[Example]:
    for x, weight, options in (
        ((2, 2, 3, 4), (3, 2, 2, 3), {}),
        ((1, 4, 5, 4), (2, 2, 2, 2), {"stride": 2, "padding": (1, 0), "dilation": (1, 2), "groups": 2}),
        ((2, 1, 3, 3), (2, 1, 2, 3), {"padding": "same"}),
        ((2, 3, 3), (1, 2, 3, 2), {"padding": "valid"}),
        ((0, 1, 2, 2), (1, 1, 2, 2), {}),
    ):
        yield (real(rng, x), real(rng, weight), real(rng, weight[:1])), options


# y, x, weight, and the attributes; the last stride leaves a row and a column of x out
_GRADIENT_EXAMPLES: tuple[tuple[Shape, Shape, Shape, spec.Attrs], ...] = (
    ((2, 3, 2, 2), (2, 2, 3, 4), (3, 2, 2, 3), spec.Attrs()),
    ((1, 2, 2, 2), (1, 4, 4, 4), (2, 2, 2, 2), spec.Attrs((2, 1), ((0, 1), (0, 1)), (1, 3), 2)),
    ((0, 1, 1, 1), (0, 1, 2, 2), (1, 1, 2, 2), spec.Attrs()),
)


def _input_examples(rng: np.random.Generator) -> Iterator[Example]:
    for y, x, weight, attrs in _GRADIENT_EXAMPLES:
        yield (real(rng, y), real(rng, weight)), {"size": x[2:], **attrs._asdict()}


def _weight_examples(rng: np.random.Generator) -> Iterator[Example]:
    for y, x, weight, attrs in _GRADIENT_EXAMPLES:
        yield (real(rng, y), real(rng, x)), {"size": weight[2:], **attrs._asdict()}


_conv2d_backward_input: Op = Op(
    "conv2d_backward_input",
    "g_y weight",
    forward=kernel(spec.CONV2D_BACKWARD_INPUT),
    vjp=[
        lambda g, weight, stride, padding, dilation, groups: _product(g, weight, stride, padding, dilation, groups),
        lambda g, g_y, weight_shape, stride, padding, dilation, groups: _weight_gradient(
            g_y, g, weight_shape, stride, padding, dilation, groups
        ),
    ],
    formula=spec.CONV2D_BACKWARD_INPUT.formula,
    source=spec.CONV2D_BACKWARD_INPUT.source,
    examples=_input_examples,
)
_conv2d_backward_weight: Op = Op(
    "conv2d_backward_weight",
    "g_y x",
    forward=kernel(spec.CONV2D_BACKWARD_WEIGHT),
    vjp=[
        lambda g, x, stride, padding, dilation, groups: _product(x, g, stride, padding, dilation, groups),
        lambda g, g_y, x_shape, stride, padding, dilation, groups: _input_gradient(
            g_y, g, x_shape, stride, padding, dilation, groups
        ),
    ],
    formula=spec.CONV2D_BACKWARD_WEIGHT.formula,
    source=spec.CONV2D_BACKWARD_WEIGHT.source,
    examples=_weight_examples,
)
_conv2d: Op = Op(
    "conv2d",
    "x weight bias",
    forward=kernel(spec.CONV2D),
    vjp=[_input_gradient, _weight_gradient, lambda g: sum(g, axis=(0, 2, 3))],
    formula=spec.CONV2D.formula,
    source=spec.CONV2D.source,
    examples=_conv_examples,
)


# -- arguments ------------------------------------------------------------------------------------------------
def _misfit(name: str, expected: str, input: Tensor, weight: Tensor, **options: Any) -> str:
    given = "".join(f", {option}={value!r}" for option, value in options.items())
    return (
        f"{name}: expected {expected}; got input {shown(input)}, weight {shown(weight)}{given} "
        f"(called at {user_line()})"
    )


class _Call:
    """The arguments of a convolution over one axis or two, checked, for two axes."""

    def __init__(
        self, name: str, axes: int, input: Any, weight: Any, bias: Any, stride: Size, dilation: Size, groups: int
    ) -> None:
        self.name, self.axes, self.groups = name, axes, groups
        self.input, self.given = as_floating(input, name), as_floating(weight, name)
        self.x = as_planes(name, axes, self.input)
        if not isinstance(groups, (int, np.integer)) or groups < 1:
            raise ArgumentError(f"{name}: groups={groups!r}; expected a positive integer (called at {user_line()})")
        self.stride = flat(axes, per_axis(name, "stride", stride, axes), 1)
        self.dilation = flat(axes, per_axis(name, "dilation", dilation, axes), 1)
        transposed, lengths = "transpose" in name, "kH, kW" if axes == 2 else "k"
        form = f"({'C, O' if transposed else 'O, C'} / groups, {lengths})"
        if self.given.ndim != axes + 2 or min(self.given.shape[2:]) < 1:
            raise self.error(f"a weight {form}")
        first, second, *kernel = self.given.shape
        channels, self.filters = (first, second * groups) if transposed else (second * groups, first)
        if self.x.shape[1] != channels or first % groups:
            raise self.error(f"a weight {form} for C = {self.x.shape[1]} channels in equal groups", groups=groups)
        if self.input.dtype != self.given.dtype:
            raise DtypeError(_misfit(name, "arrays of one dtype", self.input, self.given))
        self.kernel = flat(axes, tuple(kernel), 1)
        self.weight = self.given if axes == 2 else reshape(self.given, (first, second, *self.kernel))
        self.bias = self.x.new_zeros((self.filters,)) if bias is None else as_tensor(bias)
        if self.bias.dtype != self.x.dtype:
            raise DtypeError(_misfit(name, f"a bias {self.x.dtype}, not {self.bias.dtype}", self.input, self.given))
        if self.bias.shape != (self.filters,):
            raise self.error(f"a bias {[self.filters]}, not {list(self.bias.shape)}")

    def error(self, expected: str, **options: Any) -> ShapeError:
        return ShapeError(_misfit(self.name, expected, self.input, self.given, **options))

    def padding(self, padding: Size | str) -> Padding:
        """What to add on each side of the two axes."""
        if padding == "valid":
            return ((0, 0), (0, 0))
        if padding == "same":
            if self.stride != (1, 1):
                raise ArgumentError(
                    f"{self.name}: padding='same' needs a stride of 1, got {self.stride} (called at {user_line()})"
                )
            reach = [d * (k - 1) for k, d in zip(self.kernel, self.dilation)]
            above, left = (n // 2 for n in reach)
            return ((above, reach[0] - above), (left, reach[1] - left))
        height, width = flat(self.axes, per_axis(self.name, "padding", padding, self.axes, 0), 0)
        return ((height, height), (width, width))


# -- convolution ----------------------------------------------------------------------------------------------
def _convolve(
    name: str, axes: int, input: Any, weight: Any, bias: Any,
    stride: Size, padding: Size | str, dilation: Size, groups: int,
) -> Tensor:  # fmt: skip
    call = _Call(name, axes, input, weight, bias, stride, dilation, groups)
    padded = call.padding(padding)
    size = spec.output_size(call.x.shape[2:], call.kernel, call.stride, padded, call.dilation)  # type: ignore[arg-type]
    if min(size) < 1:
        raise call.error("a (dilated) kernel no larger than the padded input", padding=padding, dilation=dilation)
    options: Any = {"stride": call.stride, "padding": padded, "dilation": call.dilation, "groups": groups}
    return from_planes(_conv2d(call.x, call.weight, call.bias, **options), axes, call.input.ndim)


def conv1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution along one axis: out[n, o, p] = bias[o] + sum_{c, i} input[n, c, p s + i d - padding] weight[o, c, i].

    Parameters
    ----------
    input : (N, C, L), or (C, L).
    weight : (O, C / groups, k), in the dtype of the input.
    bias : (O,), or None.
    stride, padding, dilation, groups : as in `conv2d`; an integer, or a tuple of one.

    Returns
    -------
    (N, O, L') with L' = floor((L + 2 padding - dilation (k - 1) - 1) / stride) + 1; without N if the input has none.

    Raises
    ------
    ShapeError, ArgumentError, DtypeError : as `conv2d`.
    """
    return _convolve("conv1d", 1, input, weight, bias, stride, padding, dilation, groups)


def conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution (strictly: correlation) of planes with filters, in the layout and with the arguments of PyTorch.

        out[n, o, p, q] = bias[o] + sum_{c, i, j} input[n, c, p s + i d - a, q s + j d - a] weight[o, c, i, j]

    with stride s, dilation d and padding a, and zeros outside the input.

    Parameters
    ----------
    input : (N, C, H, W), or (C, H, W).
    weight : (O, C / groups, kH, kW), in the dtype of the input.
    bias : (O,), or None.
    stride : how far the filter moves; this and the next two are integers, or pairs for (height, width).
    padding : zeros on each side; ``"valid"`` is none, ``"same"`` as many as keep the size, the odd one at the end.
    dilation : distance between the elements that a filter meets.
    groups : input and output channels in so many parts that do not see each other.

    Returns
    -------
    (N, O, H', W') with H' = floor((H + 2 padding - dilation (kH - 1) - 1) / stride) + 1; without N if the input has
    none.

    Raises
    ------
    ShapeError : shapes that do not fit, or a (dilated) kernel larger than the padded input.
    ArgumentError : a stride, dilation or number of groups below 1, a negative padding, ``"same"`` with a stride.
    DtypeError : integers, or two dtypes.

    References
    ----------
    Dumoulin & Visin, A guide to convolution arithmetic for deep learning, 2016.
    """
    return _convolve("conv2d", 2, input, weight, bias, stride, padding, dilation, groups)


_conv2d.public = conv2d


# -- transposed convolution -----------------------------------------------------------------------------------
def _transposed(
    name: str, axes: int, input: Any, weight: Any, bias: Any,
    stride: Size, padding: Size, output_padding: Size, groups: int, dilation: Size,
) -> Tensor:  # fmt: skip
    call = _Call(name, axes, input, weight, bias, stride, dilation, groups)
    padded = call.padding(per_axis(name, "padding", padding, axes, 0))
    more = flat(axes, per_axis(name, "output_padding", output_padding, axes, 0), 0)
    if any(n >= s for n, s in zip(more, call.stride)):
        raise ArgumentError(
            f"{name}: output_padding={output_padding!r}; expected less than the stride, {stride!r} "
            f"(called at {user_line()})"
        )
    size = tuple(
        (n - 1) * s - before - after + d * (k - 1) + e + 1
        for n, s, (before, after), d, k, e in zip(
            call.x.shape[2:], call.stride, padded, call.dilation, call.kernel, more
        )
    )
    if min(size) < 1 or min(call.x.shape[2:]) < 1:
        raise call.error("an output of at least one element", stride=stride, padding=padding, dilation=dilation)
    options: Any = {"stride": call.stride, "padding": padded, "dilation": call.dilation, "groups": groups}
    y = _conv2d_backward_input(call.x, call.weight, size=size, **options)
    y = y if bias is None else y + reshape(call.bias, (call.filters, 1, 1))
    return from_planes(y, axes, call.input.ndim)


def conv_transpose1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """Transposed convolution along one axis, as `conv_transpose2d` of height 1.

    Parameters
    ----------
    input : (N, C, L), or (C, L).
    weight : (C, O / groups, k), in the dtype of the input.
    bias : (O,), or None.
    stride, padding, output_padding, groups, dilation : as in `conv_transpose2d`; an integer, or a tuple of one.

    Returns
    -------
    (N, O, L') with L' = (L - 1) stride - 2 padding + dilation (k - 1) + output_padding + 1; without N if the input
    has none.

    Raises
    ------
    ShapeError, ArgumentError, DtypeError : as `conv_transpose2d`.
    """
    return _transposed("conv_transpose1d", 1, input, weight, bias, stride, padding, output_padding, groups, dilation)


def conv_transpose2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """The transpose of `conv2d` as a linear map, plus a bias: its gradient with respect to the input.

    Each element of the input adds the filters of its channel, times itself, to the output, `stride` apart.

    Parameters
    ----------
    input : (N, C, H, W), or (C, H, W).
    weight : (C, O / groups, kH, kW), in the dtype of the input: that of the `conv2d` from O channels to C.
    bias : (O,), or None.
    stride, dilation, groups : those of that `conv2d`.
    padding : what that `conv2d` adds on each side, so here it is taken away.
    output_padding : added at the end of each axis, less than the stride: it says which of the sizes that that
        `conv2d` maps to H is meant.

    Returns
    -------
    (N, O, H', W') with H' = (H - 1) stride - 2 padding + dilation (kH - 1) + output_padding + 1; without N if the
    input has none.

    Raises
    ------
    ShapeError : shapes that do not fit, or no output.
    ArgumentError : a stride, dilation or number of groups below 1, a negative padding, an output_padding that is not
        less than the stride.
    DtypeError : integers, or two dtypes.

    References
    ----------
    Dumoulin & Visin, A guide to convolution arithmetic for deep learning, 2016, chapter 4.
    """
    return _transposed("conv_transpose2d", 2, input, weight, bias, stride, padding, output_padding, groups, dilation)
