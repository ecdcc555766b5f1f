"""Convolution over two axes and its gradients; over one axis it is that with a height of 1."""

from __future__ import annotations

import functools
from typing import Any

from gmkernels import blas
from gmkernels.conv import reference, spec
from gmkernels.conv.spec import Padding, Pair
from gmkernels.registry import FLOATS, HALVES, Array, KernelSpec, Signature, register, run

__all__ = ["conv2d", "conv2d_backward_input", "conv2d_backward_weight"]


def _needs_blas(signature: Signature) -> str | None:
    return blas.available()


def _cuda_note(op: KernelSpec, *inputs: Any, **attrs: Any) -> str:
    from gmkernels.conv import cuda

    return cuda.note(op, *inputs, **attrs)


for _spec in (spec.CONV2D, spec.CONV2D_BACKWARD_INPUT, spec.CONV2D_BACKWARD_WEIGHT):
    register(_spec, "reference", getattr(reference, _spec.name), overhead=2e-4, efficiency=0.05)
    register(
        _spec, "cpu", f"gmkernels.conv.cpu:{_spec.name}", overhead=1e-5, efficiency=0.5, accepts=_needs_blas,
        replays=True,
    )  # fmt: skip
    register(
        _spec, "cuda", f"gmkernels.conv.cuda:{_spec.name}", dtypes=FLOATS + HALVES, overhead=1.2e-5, efficiency=0.6,
        note=functools.partial(_cuda_note, _spec),
    )  # fmt: skip
    register(
        _spec, "triton", f"gmkernels.conv.triton:{_spec.name}", dtypes=FLOATS + HALVES, overhead=1.5e-5, efficiency=0.4,
    )  # fmt: skip


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
    backend: str | None = None,
) -> Array:
    """The convolution (in signal processing: correlation) of planes of x with the filters of a weight.

    Parameters
    ----------
    x : (N, C, H, W) float32 or float64; float16 and bfloat16 too on a GPU, which are summed in float32
    weight : (O, C / groups, kH, kW) of the same dtype
    bias : (O,), added to the planes of y, or None
    stride : steps of the window down and across, at least 1
    padding : zeros ((above, below), (left, right)) around the planes of x
    dilation : distances between the elements that a filter looks at, at least 1
    groups : the channels of x and of y are cut into so many parts, each of which sees its own only

    Returns
    -------
    y : (N, O, H', W') with H' = floor((H + above + below - dilation (kH - 1) - 1) / stride) + 1, W' likewise

    Raises
    ------
    KernelError : shapes, dtypes or attributes that do not fit, a kernel larger than its padded input.

    References
    ----------
    Dumoulin & Visin, A guide to convolution arithmetic for deep learning, 2016.
    """
    inputs = (x, weight) if bias is None else (x, weight, bias)
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return run(spec.CONV2D, inputs, attrs, backend=backend)[0]


def conv2d_backward_input(
    g: Array,
    weight: Array,
    *,
    size: Pair,
    stride: Pair = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
    backend: str | None = None,
) -> Array:
    """Gradient of `conv2d` with respect to x: the convolution transposed.

    Parameters
    ----------
    g : (N, O, H', W'), the gradient with respect to y
    weight : (O, C / groups, kH, kW)
    size : (H, W) of the planes of x, which several may give planes of the size of g
    stride, padding, dilation, groups : as in `conv2d`

    Returns
    -------
    d_x : (N, C, H, W)

    Raises
    ------
    KernelError : shapes, dtypes or attributes that do not fit.
    """
    attrs = {"size": size, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return run(spec.CONV2D_BACKWARD_INPUT, (g, weight), attrs, backend=backend)[0]


def conv2d_backward_weight(
    g: Array,
    x: Array,
    *,
    size: Pair,
    stride: Pair = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
    backend: str | None = None,
) -> Array:
    """Gradient of `conv2d` with respect to the weight. That of the bias is the sum of g over all axes but the second.

    Parameters
    ----------
    g : (N, O, H', W'), the gradient with respect to y
    x : (N, C, H, W)
    size : (kH, kW) of the kernel
    stride, padding, dilation, groups : as in `conv2d`

    Returns
    -------
    d_weight : (O, C / groups, kH, kW)

    Raises
    ------
    KernelError : shapes, dtypes or attributes that do not fit.
    """
    attrs = {"size": size, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return run(spec.CONV2D_BACKWARD_WEIGHT, (g, x), attrs, backend=backend)[0]
