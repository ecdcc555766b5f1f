"""Elementwise activations in Triton: a program is a block of elements, with 128-bit accesses in all but the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl

from gmkernels import launch
from gmkernels.elementary_triton import widened

Arrays = Sequence[Any]

_CHOICES = launch.Choices(
    "leaky_relu.triton",
    ({"block": 1024, "warps": 4}, {"block": 512, "warps": 4}, {"block": 2048, "warps": 8}, {"block": 4096, "warps": 8}),
    (1 << 20,),
)


@triton.jit
def _scale(g, x, out, slope, i, mask):
    value = widened(tl.load(x + i, mask))
    gradient = widened(tl.load(g + i, mask))
    below = tl.full((), slope, value.dtype)
    tl.store(out + i, tl.where(value > 0, gradient, gradient * below), mask)


@triton.jit(do_not_specialize=["n"])
def _leaky_relu(g, x, out, slope: tl.float64, n, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(n.dtype) * BLOCK
    i = start + tl.arange(0, BLOCK)
    if start + BLOCK <= n:
        _scale(g, x, out, slope, i, None)
    else:
        _scale(g, x, out, slope, i, i < n)


def leaky_relu(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    (x,) = inputs
    leaky_relu_backward((x, x), outputs, workspace, attrs)


def leaky_relu_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    g, x = inputs
    choice = _CHOICES.at(x.size)
    launch.triton(
        _leaky_relu,
        (triton.cdiv(x.size, choice["block"]),),
        (g, x, outputs[0], float(attrs["negative_slope"]), x.size),
        {"BLOCK": choice["block"]},
        warps=choice["warps"],
    )
