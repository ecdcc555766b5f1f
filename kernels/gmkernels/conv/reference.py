"""Convolution in NumPy: one product of channels for each element (i, j) of the kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.conv.spec import Attrs, Pair
from gmkernels.registry import Array

Arrays = Sequence[Any]


def _padded(x: Array, attrs: Attrs) -> Array:
    return np.pad(x, ((0, 0), (0, 0), *attrs.padding))


def _places(kernel: Pair, out: Pair, attrs: Attrs) -> Iterator[tuple[int, int, Any]]:
    """i, j, and where in the padded planes the output positions meet element (i, j) of the kernel."""
    (s, t), (d, e) = attrs.stride, attrs.dilation
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows = slice(i * d, i * d + s * (out[0] - 1) + 1, s)
            columns = slice(j * e, j * e + t * (out[1] - 1) + 1, t)
            yield i, j, (..., rows, columns)


def _grouped(a: Array, axis: int, groups: int) -> Array:
    """`a` with that axis split into (groups, rest)."""
    return a.reshape(*a.shape[:axis], groups, a.shape[axis] // groups, *a.shape[axis + 1 :])


def conv2d(inputs: Arrays, outputs: Arrays, workspace: Arrays, options: Mapping[str, Any]) -> None:
    x, weight, *bias = inputs
    attrs = Attrs(**options)
    y, w = _grouped(outputs[0], 1, attrs.groups), _grouped(weight, 0, attrs.groups)
    padded = _grouped(_padded(x, attrs), 1, attrs.groups)
    y[...] = 0
    for i, j, place in _places(weight.shape[2:], y.shape[3:], attrs):
        y += np.einsum("ngchw,goc->ngohw", padded[place], w[..., i, j], optimize=True)
    if bias:
        outputs[0][...] += bias[0][:, None, None]


def conv2d_backward_input(inputs: Arrays, outputs: Arrays, workspace: Arrays, options: Mapping[str, Any]) -> None:
    g, weight = inputs
    attrs = Attrs(**{name: value for name, value in options.items() if name != "size"})
    grouped, w = _grouped(g, 1, attrs.groups), _grouped(weight, 0, attrs.groups)
    padded = _padded(np.zeros_like(outputs[0]), attrs)
    view = _grouped(padded, 1, attrs.groups)
    for i, j, place in _places(weight.shape[2:], g.shape[2:], attrs):
        view[place] += np.einsum("ngohw,goc->ngchw", grouped, w[..., i, j], optimize=True)
    (top, _), (left, _) = attrs.padding
    height, width = outputs[0].shape[2:]
    outputs[0][...] = padded[..., top : top + height, left : left + width]


def conv2d_backward_weight(inputs: Arrays, outputs: Arrays, workspace: Arrays, options: Mapping[str, Any]) -> None:
    g, x = inputs
    attrs = Attrs(**{name: value for name, value in options.items() if name != "size"})
    grouped, padded = _grouped(g, 1, attrs.groups), _grouped(_padded(x, attrs), 1, attrs.groups)
    d_w = _grouped(outputs[0], 0, attrs.groups)
    for i, j, place in _places(outputs[0].shape[2:], g.shape[2:], attrs):
        d_w[..., i, j] = np.einsum("ngohw,ngchw->goc", grouped, padded[place], optimize=True)
