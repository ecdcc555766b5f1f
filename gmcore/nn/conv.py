"""Convolution layers and their transposes, over one axis and two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np

from gmcore import ops
from gmcore.device import put
from gmcore.errors import ArgumentError, ShapeError
from gmcore.nn import init
from gmcore.nn.arguments import floating, positive_integer
from gmcore.nn.module import Module
from gmcore.nn.parameter import Parameter
from gmcore.op import user_line
from gmcore.ops.windows import Size, per_axis
from gmcore.random import Generator
from gmcore.tensor import Tensor, as_tensor

_PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""PyTorch's names of what `ops.pad` does."""


class _Convolution(Module):
    """What the layers share: their arguments, parameters and first weights."""

    axes: ClassVar[int]
    transposed: ClassVar[bool] = False

    def _make(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size, padding: Size | str,
        dilation: Size, groups: int, bias: bool, padding_mode: str, device: str | None, dtype: Any,
    ) -> None:  # fmt: skip
        name = type(self).__name__
        self.in_channels = positive_integer(name, "in_channels", in_channels)
        self.out_channels = positive_integer(name, "out_channels", out_channels)
        self.groups = positive_integer(name, "groups", groups)
        if in_channels % groups or out_channels % groups:
            raise ArgumentError(
                f"{name}: groups={groups} does not divide in_channels={in_channels} and out_channels={out_channels}"
            )
        self.kernel_size = per_axis(name, "kernel_size", kernel_size, self.axes)
        self.stride = per_axis(name, "stride", stride, self.axes)
        self.dilation = per_axis(name, "dilation", dilation, self.axes)
        self.padding: tuple[int, ...] | str
        if isinstance(padding, str):
            if self.transposed or padding not in ("same", "valid"):
                expected = "integers" if self.transposed else "integers, 'same' or 'valid'"
                raise ArgumentError(f"{name}: padding={padding!r}; expected {expected}")
            if padding == "same" and max(self.stride) > 1:
                raise ArgumentError(f"{name}: padding='same' needs a stride of 1, got {self.stride}")
            self.padding = padding
        else:
            self.padding = per_axis(name, "padding", padding, self.axes, 0)
        modes = ("zeros",) if self.transposed else ("zeros", *_PAD_MODES)
        if padding_mode not in modes:
            raise ArgumentError(f"{name}: padding_mode={padding_mode!r}; expected {' or '.join(map(repr, modes))}")
        self.padding_mode = padding_mode
        first, second = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        self.weight = Parameter(put(np.empty((first, second // groups, *self.kernel_size), floating(dtype)), device))
        self.bias = Parameter(put(np.empty(out_channels, floating(dtype)), device)) if bias else None
        self.reset_parameters()

    def reset_parameters(self, generator: Generator | None = None) -> None:
        """Draw weight and bias from U(-b, b) with b = 1 / sqrt(fan_in), PyTorch's default.

        fan_in is the number of elements of weight[0]. Takes one draw of the generator (the context's by default) for
        each.
        """
        init.kaiming_uniform_(self.weight, a=math.sqrt(5.0), generator=generator)
        if self.bias is not None:
            bound = 1.0 / math.sqrt(math.prod(self.weight.shape[1:]))
            init.uniform_(self.bias, -bound, bound, generator=generator)

    def extra_repr(self) -> str:
        values = [("kernel_size", self.kernel_size, None), ("stride", self.stride, None),
                  ("padding", self.padding, (0,) * self.axes), ("dilation", self.dilation, (1,) * self.axes),
                  ("output_padding", getattr(self, "output_padding", None), None), ("groups", self.groups, 1),
                  ("bias", self.bias is not None, True), ("padding_mode", self.padding_mode, "zeros")]  # fmt: skip
        options = ", ".join(f"{name}={value!r}" for name, value, usual in values if value not in (usual, None))
        return f"{self.in_channels}, {self.out_channels}, {options}"


class _Forward(_Convolution):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        self._make(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
                   device, dtype)  # fmt: skip

    def forward(self, input: Any) -> Tensor:
        function = ops.conv1d if self.axes == 1 else ops.conv2d
        options = (self.stride, self.padding, self.dilation, self.groups)
        if self.padding_mode == "zeros":
            return function(input, self.weight, self.bias, *options)
        x = as_tensor(input)
        if x.ndim < self.axes + 1:
            raise ShapeError(
                f"{type(self).__name__}: expected an input of {self.axes + 1} or {self.axes + 2} axes, got {x.shape} "
                f"(called at {user_line()})"
            )
        if isinstance(self.padding, str):
            reach = [d * (k - 1) if self.padding == "same" else 0 for k, d in zip(self.kernel_size, self.dilation)]
            widths = [(n // 2, n - n // 2) for n in reach]
        else:
            widths = [(n, n) for n in self.padding]
        x = ops.pad(x, [(0, 0)] * (x.ndim - self.axes) + widths, _PAD_MODES[self.padding_mode])
        return function(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Conv1d(_Forward):
    """Convolution along the last axis of (N, C, L), or (C, L): `ops.conv1d`. Parameters: see `Conv2d`.

    Attributes
    ----------
    weight : (out_channels, in_channels / groups, kernel_size);  bias : (out_channels,), or None.

    Raises
    ------
    ArgumentError, ShapeError : as `Conv2d`.
    """

    axes = 1


class Conv2d(_Forward):
    """Convolution of the planes of (N, C, H, W), or (C, H, W), with learned filters: `ops.conv2d`.

    Parameters
    ----------
    in_channels, out_channels : numbers of channels of input and output, multiples of `groups`.
    kernel_size : of the filters; like the next three one integer, or one for each axis.
    stride : how far a filter moves.
    padding : added on each side; or ``"valid"``, none, or ``"same"``, as much as keeps the size.
    dilation : distance between the elements that a filter meets.
    groups : parts of the channels that do not see each other.
    bias : whether to add a number to each output channel.
    padding_mode : what is added: ``"zeros"``; ``"reflect"``, ``"replicate"`` or ``"circular"``, `ops.pad`'s reflect,
        edge and wrap.
    device, dtype : ``"cpu"``; floating, float32 by default.

    Attributes
    ----------
    weight : (out_channels, in_channels / groups, kH, kW);  bias : (out_channels,), or None.

    Raises
    ------
    ArgumentError : numbers out of range, or groups that do not divide the channels.
    ShapeError : (called) another number of channels or axes, a kernel larger than the padded input.
    """

    axes = 2


class _Transposed(_Convolution):
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        name = type(self).__name__
        self.output_padding = per_axis(name, "output_padding", output_padding, self.axes, 0)
        self._make(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
                   device, dtype)  # fmt: skip
        if any(n >= s for n, s in zip(self.output_padding, self.stride)):
            raise ArgumentError(
                f"{name}: output_padding={self.output_padding}; expected less than the stride, {self.stride}"
            )

    def forward(self, input: Any, output_size: Sequence[int] | None = None) -> Tensor:
        """The output; of a given size (..., H, W) if `output_size` is one that the stride allows."""
        function = ops.conv_transpose1d if self.axes == 1 else ops.conv_transpose2d
        more, padding = self.output_padding, cast(tuple[int, ...], self.padding)
        if output_size is not None:
            x, size = as_tensor(input), tuple(output_size)[-self.axes :]
            least = [
                (n - 1) * s - 2 * p + d * (k - 1) + 1
                for n, s, p, d, k in zip(x.shape[-self.axes :], self.stride, padding, self.dilation, self.kernel_size)
            ]
            more = tuple(n - m for n, m in zip(size, least))
            if len(size) != self.axes or any(not 0 <= n < s for n, s in zip(more, self.stride)):
                raise ArgumentError(
                    f"{type(self).__name__}: output_size={output_size!r}; expected from {tuple(least)} to less than "
                    f"the stride {self.stride} more, for an input of shape {x.shape} (called at {user_line()})"
                )
        return function(input, self.weight, self.bias, self.stride, padding, more, self.groups, self.dilation)


class ConvTranspose1d(_Transposed):
    """The transpose of a `Conv1d`, (N, C, L) or (C, L): `ops.conv_transpose1d`. Parameters: see `ConvTranspose2d`.

    Attributes
    ----------
    weight : (in_channels, out_channels / groups, kernel_size);  bias : (out_channels,), or None.

    Raises
    ------
    ArgumentError, ShapeError : as `ConvTranspose2d`.
    """

    axes = 1


class ConvTranspose2d(_Transposed):
    """The transpose of a `Conv2d` as a linear map, with a bias of its own: `ops.conv_transpose2d`.

    Parameters
    ----------
    in_channels, out_channels : numbers of channels of input and output, multiples of `groups`.
    kernel_size, stride, dilation, groups : those of the `Conv2d`.
    padding : what the `Conv2d` adds on each side, so here it is taken away.
    output_padding : added at the end of each axis, less than the stride.
    bias : whether to add a number to each output channel.
    padding_mode : ``"zeros"``.
    device, dtype : ``"cpu"``; floating, float32 by default.

    Attributes
    ----------
    weight : (in_channels, out_channels / groups, kH, kW);  bias : (out_channels,), or None.

    Raises
    ------
    ArgumentError : numbers out of range, groups that do not divide the channels; (called) an `output_size` that the
        stride does not allow.
    ShapeError : (called) another number of channels or axes.
    """

    axes = 2
