"""Pooling layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from gmcore import ops
from gmcore.nn.functional import Functional
from gmcore.nn.module import Module
from gmcore.ops.windows import Size, per_axis
from gmcore.tensor import Tensor


class _MaxPool(Module):
    axes: ClassVar[int]

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        name = type(self).__name__
        self.kernel_size = per_axis(name, "kernel_size", kernel_size, self.axes)
        self.stride = self.kernel_size if stride is None else per_axis(name, "stride", stride, self.axes)
        self.padding = per_axis(name, "padding", padding, self.axes, 0)
        self.dilation = per_axis(name, "dilation", dilation, self.axes)
        self.return_indices, self.ceil_mode = return_indices, ceil_mode

    def forward(self, input: Any) -> Any:
        function = ops.max_pool1d if self.axes == 1 else ops.max_pool2d
        windows = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        return function(input, *windows, self.return_indices)

    def extra_repr(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"ceil_mode={self.ceil_mode}"
        )


class MaxPool1d(_MaxPool):
    """The largest element of each window along the last axis: `ops.max_pool1d`. Parameters: see `MaxPool2d`.

    Raises
    ------
    ArgumentError, ShapeError, DtypeError : as `MaxPool2d`.
    """

    axes = 1


class MaxPool2d(_MaxPool):
    """The largest element of each window of a plane: `ops.max_pool2d`.

    Parameters
    ----------
    kernel_size, stride, padding, dilation, return_indices, ceil_mode : as in `ops.max_pool2d`.

    Raises
    ------
    ArgumentError : numbers out of range.
    ShapeError, DtypeError : (called) as `ops.max_pool2d`.
    """

    axes = 2


class _MaxUnpool(Module):
    axes: ClassVar[int]

    def __init__(self, kernel_size: Size, stride: Size | None = None, padding: Size = 0) -> None:
        name = type(self).__name__
        self.kernel_size = per_axis(name, "kernel_size", kernel_size, self.axes)
        self.stride = self.kernel_size if stride is None else per_axis(name, "stride", stride, self.axes)
        self.padding = per_axis(name, "padding", padding, self.axes, 0)

    def forward(self, input: Any, indices: Any, output_size: Sequence[int] | None = None) -> Tensor:
        function = ops.max_unpool1d if self.axes == 1 else ops.max_unpool2d
        return function(input, indices, self.kernel_size, self.stride, self.padding, output_size)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxUnpool1d(_MaxUnpool):
    """Zeros with elements put back where `MaxPool1d` found them: `ops.max_unpool1d`. Parameters: see `MaxUnpool2d`.

    Raises
    ------
    ArgumentError, ShapeError, DtypeError : as `MaxUnpool2d`.
    """

    axes = 1


class MaxUnpool2d(_MaxUnpool):
    """Planes of zeros with elements put back where `MaxPool2d` found them: `ops.max_unpool2d`.

    Called with the elements, their indices, and the size of the planes if it is not the usual one.

    Parameters
    ----------
    kernel_size, stride, padding : as in `MaxPool2d`.

    Raises
    ------
    ArgumentError : numbers out of range.
    ShapeError, ArgumentError, DtypeError : (called) as `ops.max_unpool2d`.
    """

    axes = 2


class AvgPool1d(Functional, function=ops.avg_pool1d):
    """The mean of each window along the last axis: `ops.avg_pool1d`."""


class AvgPool2d(Functional, function=ops.avg_pool2d):
    """The mean of each window of a plane: `ops.avg_pool2d`."""


class AdaptiveAvgPool1d(Functional, function=ops.adaptive_avg_pool1d):
    """The means of as many windows as are asked for along the last axis: `ops.adaptive_avg_pool1d`."""


class AdaptiveAvgPool2d(Functional, function=ops.adaptive_avg_pool2d):
    """The means of as many windows as are asked for on each plane: `ops.adaptive_avg_pool2d`."""
