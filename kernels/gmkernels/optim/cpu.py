"""Optimiser updates on the CPU: Numba over the chunks of all parameters, on the one pool."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable
from numba.np import arrayobj

from gmkernels.optim import spec
from gmkernels.pool import address, block_kernel, jitable, reduction
from gmkernels.registry import KernelSpec

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

_intrinsic: Any = intrinsic  # the functions it makes take other arguments than mypy sees

# ---------------------------------------------------------------------------------------------------------
# Many arrays in one launch
# ---------------------------------------------------------------------------------------------------------


@_intrinsic
def _array_at(typing_context, pointer, size, like):
    """The one-dimensional array of `size` elements of the dtype of `like` at an address."""
    array_type = types.Array(like.dtype, 1, "C")

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = context.get_data_type(like.dtype)
        itemsize = ir.Constant(ir.IntType(64), context.get_abi_sizeof(kind))
        made = arrayobj.make_array(array_type)(context, builder)
        data = builder.inttoptr(args[0], kind.as_pointer())
        arrayobj.populate_array(made, data, [args[1]], [itemsize], itemsize, None)
        return made._getvalue()

    return array_type(types.int64, types.int64, like), generate


@register_jitable(error_model="numpy", no_cfunc_wrapper=True)  # `jitable` functions return no arrays
def _part(chunk, chunks, pointers, arrays, which, like):
    """Chunk number `chunk`, of the array number `which` of the `arrays` of its parameter."""
    parameter, start, size = chunks[3 * chunk], chunks[3 * chunk + 1], chunks[3 * chunk + 2]
    return _array_at(pointers[arrays * parameter + which] + start * like.itemsize, size, like)


def _table(*arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Where the arrays of each parameter are."""
    return np.array([[address(a) for a in of_one] for of_one in zip(*arrays, strict=True)], np.int64)


def _update(kernel: Any, updated: KernelSpec, inputs: Arrays, outputs: Arrays) -> None:
    """Launch an update over the chunks of all parameters."""
    given, hyper = inputs
    spec.check_updated(updated, given, outputs)
    if given:
        chunks, first = spec.chunks(tuple([g.size for g in given]))
        kernel(len(first) - 1, given[0], hyper, chunks, first, _table(given, *outputs))


@jitable
def _gradient(g, p, sign, weight_decay):
    return sign * g if weight_decay == 0 else sign * g + weight_decay * p


# ---------------------------------------------------------------------------------------------------------
# SGD
# ---------------------------------------------------------------------------------------------------------


@block_kernel
def _sgd(block, like, hyper, chunks, first, pointers):
    real = like.dtype.type
    begins = hyper[6] == 1
    lr, momentum, weight_decay = real(hyper[0]), real(hyper[1]), real(hyper[4])
    keep, add = real(hyper[1]), real(1 - hyper[2])
    nesterov, sign = hyper[3] != 0, real(1 - 2 * hyper[5])
    for chunk in range(first[block], first[block + 1]):
        g, p = _part(chunk, chunks, pointers, 3, 0, like), _part(chunk, chunks, pointers, 3, 1, like)
        b = _part(chunk, chunks, pointers, 3, 2, like)
        if momentum == 0:
            _plain_step(g, p, lr, sign, weight_decay)
        else:
            _momentum_step(g, p, b, lr, momentum, sign, weight_decay, begins, keep, add, nesterov)


@jitable
def _plain_step(g, p, lr, sign, weight_decay):
    g = g[: p.size]
    for i in range(p.size):
        p[i] -= lr * _gradient(g[i], p[i], sign, weight_decay)


@jitable
def _momentum_step(g, p, b, lr, momentum, sign, weight_decay, begins, keep, add, nesterov):
    g, b = g[: p.size], b[: p.size]
    for i in range(p.size):
        gradient = _gradient(g[i], p[i], sign, weight_decay)
        b[i] = gradient if begins else keep * b[i] + add * gradient  # at first the buffer may hold anything
        p[i] -= lr * (gradient + momentum * b[i] if nesterov else b[i])


def sgd(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _update(_sgd, spec.SGD, inputs, outputs)


# ---------------------------------------------------------------------------------------------------------
# Adam
# ---------------------------------------------------------------------------------------------------------


@block_kernel
def _adam(block, like, hyper, chunks, first, pointers):
    lr, beta1, beta2, step = hyper[0], hyper[1], hyper[2], hyper[8]
    real = like.dtype.type
    step_size = real(lr / (1 - beta1**step))
    correction = real(1 / math.sqrt(1 - beta2**step))
    keep1, add1, keep2, add2 = real(beta1), real(1 - beta1), real(beta2), real(1 - beta2)
    decoupled, amsgrad, sign = hyper[5] != 0, hyper[6] != 0, real(1 - 2 * hyper[7])
    eps = real(hyper[3])
    weight_decay, shrink = real(0 if decoupled else hyper[4]), real(1 - lr * hyper[4] if decoupled else 1)
    for chunk in range(first[block], first[block + 1]):
        g, p = _part(chunk, chunks, pointers, 5, 0, like), _part(chunk, chunks, pointers, 5, 1, like)
        m, v = _part(chunk, chunks, pointers, 5, 2, like), _part(chunk, chunks, pointers, 5, 3, like)
        largest = _part(chunk, chunks, pointers, 5, 4, like)
        if amsgrad:
            _adam_moments(g, p, m, v, keep1, add1, keep2, add2, sign, weight_decay)
            _amsgrad_step(p, m, v, largest, step_size, correction, eps, shrink)
        else:
            _adam_step(g, p, m, v, step_size, correction, keep1, add1, keep2, add2, eps, sign, weight_decay, shrink)


@jitable
def _adam_step(g, p, m, v, step_size, correction, keep1, add1, keep2, add2, eps, sign, weight_decay, shrink):
    g, m, v = g[: p.size], m[: p.size], v[: p.size]
    for i in range(p.size):
        gradient = _gradient(g[i], p[i], sign, weight_decay)
        m[i] = keep1 * m[i] + add1 * gradient
        v[i] = keep2 * v[i] + add2 * gradient * gradient
        p[i] = shrink * p[i] - step_size * m[i] / (math.sqrt(v[i]) * correction + eps)


@jitable
def _adam_moments(g, p, m, v, keep1, add1, keep2, add2, sign, weight_decay):
    g, m, v = g[: p.size], m[: p.size], v[: p.size]
    for i in range(p.size):
        gradient = _gradient(g[i], p[i], sign, weight_decay)
        m[i] = keep1 * m[i] + add1 * gradient
        v[i] = keep2 * v[i] + add2 * gradient * gradient


@jitable
def _amsgrad_step(p, m, v, largest, step_size, correction, eps, shrink):
    m, v, largest = m[: p.size], v[: p.size], largest[: p.size]
    for i in range(p.size):
        largest[i] = largest[i] if largest[i] > v[i] else v[i]  # NaN of v goes on
        p[i] = shrink * p[i] - step_size * m[i] / (math.sqrt(largest[i]) * correction + eps)


def adam(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _update(_adam, spec.ADAM, inputs, outputs)


# ---------------------------------------------------------------------------------------------------------
# Adagrad
# ---------------------------------------------------------------------------------------------------------


@block_kernel
def _adagrad(block, like, hyper, chunks, first, pointers):
    real = like.dtype.type
    rate, eps = real(hyper[0] / (1 + (hyper[5] - 1) * hyper[1])), real(hyper[2])
    weight_decay, sign = real(hyper[3]), real(1 - 2 * hyper[4])
    for chunk in range(first[block], first[block + 1]):
        g, p = _part(chunk, chunks, pointers, 3, 0, like), _part(chunk, chunks, pointers, 3, 1, like)
        s = _part(chunk, chunks, pointers, 3, 2, like)
        _adagrad_step(g, p, s, rate, eps, sign, weight_decay)


@jitable
def _adagrad_step(g, p, s, rate, eps, sign, weight_decay):
    g, s = g[: p.size], s[: p.size]
    for i in range(p.size):
        gradient = _gradient(g[i], p[i], sign, weight_decay)
        s[i] += gradient * gradient
        p[i] -= rate * gradient / (math.sqrt(s[i]) + eps)


def adagrad(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _update(_adagrad, spec.ADAGRAD, inputs, outputs)


# ---------------------------------------------------------------------------------------------------------
# RMSprop
# ---------------------------------------------------------------------------------------------------------


@block_kernel
def _rmsprop(block, like, hyper, chunks, first, pointers):
    real = like.dtype.type
    lr, keep, add, eps = real(hyper[0]), real(hyper[1]), real(1 - hyper[1]), real(hyper[2])
    weight_decay, momentum, centered, sign = real(hyper[3]), real(hyper[4]), hyper[5] != 0, real(1 - 2 * hyper[6])
    for chunk in range(first[block], first[block + 1]):
        g, p = _part(chunk, chunks, pointers, 5, 0, like), _part(chunk, chunks, pointers, 5, 1, like)
        v, m = _part(chunk, chunks, pointers, 5, 2, like), _part(chunk, chunks, pointers, 5, 3, like)
        b = _part(chunk, chunks, pointers, 5, 4, like)
        _rmsprop_step(g, p, v, m, b, lr, keep, add, eps, sign, weight_decay, momentum, centered)


@jitable
def _rmsprop_step(g, p, v, m, b, lr, keep, add, eps, sign, weight_decay, momentum, centered):
    g, v, m, b = g[: p.size], v[: p.size], m[: p.size], b[: p.size]
    zero = p.dtype.type(0)
    for i in range(p.size):
        gradient = _gradient(g[i], p[i], sign, weight_decay)
        v[i] = keep * v[i] + add * gradient * gradient
        variance = v[i]
        if centered:
            m[i] = keep * m[i] + add * gradient
            variance -= m[i] * m[i]
            variance = zero if variance < zero else variance  # NaN stays
        d = gradient / (math.sqrt(variance) + eps)
        if momentum != 0:
            b[i] = momentum * b[i] + d
            d = b[i]
        p[i] -= lr * d


def rmsprop(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _update(_rmsprop, spec.RMSPROP, inputs, outputs)


# ---------------------------------------------------------------------------------------------------------
# Adadelta
# ---------------------------------------------------------------------------------------------------------


@block_kernel
def _adadelta(block, like, hyper, chunks, first, pointers):
    real = like.dtype.type
    lr, keep, add, eps = real(hyper[0]), real(hyper[1]), real(1 - hyper[1]), real(hyper[2])
    weight_decay, sign = real(hyper[3]), real(1 - 2 * hyper[4])
    for chunk in range(first[block], first[block + 1]):
        g, p = _part(chunk, chunks, pointers, 4, 0, like), _part(chunk, chunks, pointers, 4, 1, like)
        v, u = _part(chunk, chunks, pointers, 4, 2, like), _part(chunk, chunks, pointers, 4, 3, like)
        _adadelta_step(g, p, v, u, lr, keep, add, eps, sign, weight_decay)


@jitable
def _adadelta_step(g, p, v, u, lr, keep, add, eps, sign, weight_decay):
    g, v, u = g[: p.size], v[: p.size], u[: p.size]
    for i in range(p.size):
        gradient = _gradient(g[i], p[i], sign, weight_decay)
        v[i] = keep * v[i] + add * gradient * gradient
        d = math.sqrt(u[i] + eps) / math.sqrt(v[i] + eps) * gradient
        u[i] = keep * u[i] + add * d * d
        p[i] -= lr * d


def adadelta(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _update(_adadelta, spec.ADADELTA, inputs, outputs)


# ---------------------------------------------------------------------------------------------------------
# Running average
# ---------------------------------------------------------------------------------------------------------


@block_kernel
def _average(block, like, hyper, chunks, first, pointers):
    share = like.dtype.type(1 - hyper[0])
    for chunk in range(first[block], first[block + 1]):
        _move(_part(chunk, chunks, pointers, 2, 0, like), _part(chunk, chunks, pointers, 2, 1, like), share)


@jitable
def _move(p, a, share):
    p = p[: a.size]
    for i in range(a.size):
        a[i] += share * (p[i] - a[i])


def average(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _update(_average, spec.AVERAGE, inputs, outputs)


# ---------------------------------------------------------------------------------------------------------
# The norm of all gradients
# ---------------------------------------------------------------------------------------------------------


@block_kernel
def _total_norm(block, like, norm_type, chunks, first, pointers, partial):
    partial[block] = 0
    for chunk in range(first[block], first[block + 1]):
        g = _part(chunk, chunks, pointers, 1, 0, like)
        if norm_type[0] == math.inf:
            partial[block] = _largest(partial[block], g)
        else:
            partial[block] += _power_sum(g, norm_type[0])


@jitable
def _largest(largest, g):
    for i in range(g.size):
        magnitude = abs(np.float64(g[i]))
        largest = largest if magnitude <= largest or largest != largest else magnitude  # NaN comes in and stays
    return largest


@reduction
def _power_sum(g, norm_type):
    total = 0.0
    if norm_type == 2:
        for i in range(g.size):
            total += np.float64(g[i]) * np.float64(g[i])
    else:
        for i in range(g.size):
            total += abs(np.float64(g[i])) ** norm_type
    return total


def total_norm(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """A block adds the powers of its chunks; the sums of the blocks are added in order."""
    (partial,) = workspace
    norm_type = attrs["norm_type"]
    grads = inputs[0]
    chunks, first = spec.chunks(tuple([g.size for g in grads]))
    if len(partial):
        numbers = np.array([norm_type], np.float64)
        _total_norm(len(partial), grads[0], numbers, chunks, first, _table(grads), partial)
    if norm_type == math.inf:
        outputs[0][...] = np.max(partial, initial=0)
    else:
        outputs[0][...] = np.sum(partial) ** (1 / norm_type)
