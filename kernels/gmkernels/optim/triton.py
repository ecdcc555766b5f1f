"""SGD, Adam and the norm of all gradients in Triton: one launch for each array.

Triton takes no table of addresses that is not in device memory, so many small arrays are many launches; the CUDA C
kernels take a table among their arguments and are the better choice for those. The numbers of a step are read from
device memory: a captured step finds new ones there. What follows from them is computed in float64, as on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl

from gmkernels import launch
from gmkernels.elementary_triton import widened
from gmkernels.optim import spec
from gmkernels.registry import KernelSpec

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

_CANDIDATES = ({"block": 1024, "warps": 4}, {"block": 512, "warps": 4}, {"block": 2048, "warps": 8})
_SGD = launch.Choices("sgd.triton", _CANDIDATES, (1 << 20,))
_ADAM = launch.Choices("adam.triton", _CANDIDATES, (1 << 20,))


@triton.jit
def _gradient(grad, p, i, mask, weight_decay, maximize):
    g = widened(tl.load(grad + i, mask)) * (1 - 2 * maximize).to(p.dtype)
    decay = weight_decay.to(p.dtype)
    return tl.where(decay == 0, g, g + decay * p)


# ---------------------------------------------------------------------------------------------------------
# SGD
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _sgd_at(grad, param, buffer, hyper, i, mask):
    p = widened(tl.load(param + i, mask))
    lr, momentum, dampening = tl.load(hyper), tl.load(hyper + 1), tl.load(hyper + 2)
    g = _gradient(grad, p, i, mask, tl.load(hyper + 4), tl.load(hyper + 5))
    if momentum != 0:  # otherwise the buffer is not touched
        keep = momentum.to(p.dtype)
        b = widened(tl.load(buffer + i, mask))
        begins = tl.load(hyper + 6) == 1  # the buffer may hold anything
        b = tl.where(begins, g, keep * b + (1 - dampening).to(p.dtype) * g)
        tl.store(buffer + i, b.to(buffer.dtype.element_ty), mask)
        g = tl.where(tl.load(hyper + 3) != 0, g + keep * b, b)
    tl.store(param + i, (p - lr.to(p.dtype) * g).to(param.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["n"])
def _sgd(grad, param, buffer, hyper, n, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(n.dtype) * BLOCK
    i = start + tl.arange(0, BLOCK)
    if start + BLOCK <= n:
        _sgd_at(grad, param, buffer, hyper, i, None)
    else:
        _sgd_at(grad, param, buffer, hyper, i, i < n)


# ---------------------------------------------------------------------------------------------------------
# Adam
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _power(base, exponent):
    """base^exponent in float64 for base in [0, 1); Triton has no power."""
    return tl.exp(exponent * tl.log(base))


@triton.jit
def _adam_at(grad, param, exp_avg, exp_avg_sq, max_exp_avg_sq, hyper, i, mask):
    p = widened(tl.load(param + i, mask))
    lr, beta1, beta2, step = tl.load(hyper), tl.load(hyper + 1), tl.load(hyper + 2), tl.load(hyper + 8)
    step_size = (lr / (1 - _power(beta1, step))).to(p.dtype)
    correction = (1 / tl.sqrt(1 - _power(beta2, step))).to(p.dtype)
    decay, decoupled = tl.load(hyper + 4), tl.load(hyper + 5) != 0
    g = _gradient(grad, p, i, mask, tl.where(decoupled, 0.0, decay), tl.load(hyper + 7))
    m, v = widened(tl.load(exp_avg + i, mask)), widened(tl.load(exp_avg_sq + i, mask))
    m = beta1.to(p.dtype) * m + (1 - beta1).to(p.dtype) * g
    v = beta2.to(p.dtype) * v + (1 - beta2).to(p.dtype) * g * g
    tl.store(exp_avg + i, m.to(exp_avg.dtype.element_ty), mask)
    tl.store(exp_avg_sq + i, v.to(exp_avg_sq.dtype.element_ty), mask)
    if tl.load(hyper + 6) != 0:  # amsgrad; otherwise the third state is not touched
        w = widened(tl.load(max_exp_avg_sq + i, mask))
        v = tl.where(w > v, w, v)  # NaN of v goes on
        tl.store(max_exp_avg_sq + i, v.to(max_exp_avg_sq.dtype.element_ty), mask)
    p = p * tl.where(decoupled, 1 - lr * decay, 1.0).to(p.dtype)
    root = tl.sqrt_rn(v) if v.dtype == tl.float32 else tl.sqrt(v)
    p -= step_size * m / (root * correction + tl.load(hyper + 3).to(p.dtype))
    tl.store(param + i, p.to(param.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["n"])
def _adam(grad, param, exp_avg, exp_avg_sq, max_exp_avg_sq, hyper, n, BLOCK: tl.constexpr):
    start = tl.program_id(0).to(n.dtype) * BLOCK
    i = start + tl.arange(0, BLOCK)
    if start + BLOCK <= n:
        _adam_at(grad, param, exp_avg, exp_avg_sq, max_exp_avg_sq, hyper, i, None)
    else:
        _adam_at(grad, param, exp_avg, exp_avg_sq, max_exp_avg_sq, hyper, i, i < n)


def _update(kernel: Any, choices: launch.Choices, updated: KernelSpec, inputs: Arrays, outputs: Arrays) -> None:
    given, hyper = inputs
    spec.check_updated(updated, given, outputs)
    for g, *changed in zip(given, *outputs, strict=True):
        choice = choices.at(g.size)
        grid = (triton.cdiv(g.size, choice["block"]),)
        launch.triton(kernel, grid, (g, *changed, hyper, g.size), {"BLOCK": choice["block"]}, warps=choice["warps"])


def sgd(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _update(_sgd, _SGD, spec.SGD, inputs, outputs)


def adam(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _update(_adam, _ADAM, spec.ADAM, inputs, outputs)


# ---------------------------------------------------------------------------------------------------------
# The norm of all gradients
# ---------------------------------------------------------------------------------------------------------

_BLOCK = 1024


@triton.jit
def _term(g, order, ORDER: tl.constexpr):
    """|g|^order, of which infinity stands for itself."""
    size = tl.abs(g.to(tl.float64))
    if ORDER == 2:
        return size * size
    elif ORDER == 0:
        return tl.exp(tl.full((), order, tl.float64) * tl.log(size))
    else:
        return size


@triton.jit
def _joined(total, terms, ORDER: tl.constexpr):
    """The sum, or the largest; NaN comes in and stays."""
    if ORDER == float("inf"):
        return tl.where((terms <= total) | (total != total), total, terms)
    else:
        return total + terms


@triton.jit
def _reduced(total, ORDER: tl.constexpr):
    if ORDER == float("inf"):
        unknown = tl.max((total != total).to(tl.int32), axis=0) != 0
        return tl.where(unknown, float("nan"), tl.max(total, axis=0))
    else:
        return tl.sum(total, axis=0)


@triton.jit
def _chunk(g, start, n, order, FULL: tl.constexpr, ORDER: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, CHUNK, BLOCK):
        i = start + first + tl.arange(0, BLOCK)
        if FULL:
            total = _joined(total, _term(tl.load(g + i), order, ORDER), ORDER)
        else:
            total = _joined(total, tl.where(i < n, _term(tl.load(g + i, i < n, 0.0), order, ORDER), 0.0), ORDER)
    return _reduced(total, ORDER)


@triton.jit(do_not_specialize=["n", "offset"])
def _powers(g, partial, n, offset, order: tl.float64, ORDER: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """partial[offset + c] = the sum over the chunk c of |g|^order, or the largest."""
    chunk = tl.program_id(0)
    start = chunk.to(n.dtype) * CHUNK
    if start + CHUNK <= n:
        tl.store(partial + offset + chunk, _chunk(g, start, n, order, True, ORDER, CHUNK, BLOCK))
    else:
        tl.store(partial + offset + chunk, _chunk(g, start, n, order, False, ORDER, CHUNK, BLOCK))


@triton.jit(do_not_specialize=["count"])
def _norm(partial, norm, count, order: tl.float64, ORDER: tl.constexpr, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        total = _joined(total, tl.load(partial + i, i < count, 0.0), ORDER)
    found = _reduced(total, ORDER)
    if ORDER == 2:
        found = tl.sqrt(found)
    elif ORDER == 0:
        found = tl.exp(tl.log(found) / tl.full((), order, tl.float64))
    tl.store(norm, found)


def total_norm(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """A program adds the powers of a chunk; one more adds the sums of the chunks, in order."""
    (partial,) = workspace
    order = float(attrs["norm_type"])
    constants = {"ORDER": order if order in (1.0, 2.0, math.inf) else 0, "BLOCK": _BLOCK}
    offset = 0
    for g in inputs[0]:
        count = triton.cdiv(g.size, spec.CHUNK)
        launch.triton(_powers, (count,), (g, partial, g.size, offset, order), constants | {"CHUNK": spec.CHUNK})
        offset += count
    launch.triton(_norm, (1,), (partial, outputs[0], offset, order), constants)
