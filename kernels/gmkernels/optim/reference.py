"""The formulas of `spec`, in NumPy."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.optim import spec
from gmkernels.registry import Array, KernelSpec

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]


def _parameters(updated: KernelSpec, inputs: Arrays, outputs: Arrays) -> Iterator[tuple[Array, ...]]:
    """The arrays of one parameter after another: its gradient, itself, its states."""
    spec.check_updated(updated, inputs[0], outputs)
    return zip(inputs[0], *outputs, strict=True)


def _numbers(inputs: Arrays) -> list[float]:
    return [float(h) for h in inputs[1]]


def _gradient(g: Array, p: Array, weight_decay: float, maximize: float) -> Array:
    if maximize:
        g = -g
    return g + weight_decay * p if weight_decay else g


def sgd(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    lr, momentum, dampening, nesterov, weight_decay, maximize, step = _numbers(inputs)
    for g, p, b in _parameters(spec.SGD, inputs, outputs):
        g = _gradient(g, p, weight_decay, maximize)
        if momentum:
            b[...] = g if step == 1 else momentum * b + (1 - dampening) * g
            g = g + momentum * b if nesterov else b
        p -= lr * g


def adam(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    lr, beta1, beta2, eps, weight_decay, decoupled, amsgrad, maximize, step = _numbers(inputs)
    step_size = lr / (1 - beta1**step)
    correction = math.sqrt(1 - beta2**step)
    for g, p, m, v, largest in _parameters(spec.ADAM, inputs, outputs):
        if decoupled:
            p *= 1 - lr * weight_decay
        g = _gradient(g, p, 0 if decoupled else weight_decay, maximize)
        m[...] = beta1 * m + (1 - beta1) * g
        v[...] = beta2 * v + (1 - beta2) * g * g
        if amsgrad:
            np.maximum(largest, v, out=largest)
        p -= step_size * m / (np.sqrt(largest if amsgrad else v) / correction + eps)


def adagrad(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    lr, lr_decay, eps, weight_decay, maximize, step = _numbers(inputs)
    for g, p, s in _parameters(spec.ADAGRAD, inputs, outputs):
        g = _gradient(g, p, weight_decay, maximize)
        s += g * g
        p -= lr / (1 + (step - 1) * lr_decay) * g / (np.sqrt(s) + eps)


def rmsprop(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    lr, alpha, eps, weight_decay, momentum, centered, maximize = _numbers(inputs)
    for g, p, v, m, b in _parameters(spec.RMSPROP, inputs, outputs):
        g = _gradient(g, p, weight_decay, maximize)
        v[...] = alpha * v + (1 - alpha) * g * g
        variance = v
        if centered:
            m[...] = alpha * m + (1 - alpha) * g
            variance = np.maximum(v - m * m, 0)
        d = g / (np.sqrt(variance) + eps)
        if momentum:
            b[...] = momentum * b + d
            d = b
        p -= lr * d


def adadelta(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    lr, rho, eps, weight_decay, maximize = _numbers(inputs)
    for g, p, v, u in _parameters(spec.ADADELTA, inputs, outputs):
        g = _gradient(g, p, weight_decay, maximize)
        v[...] = rho * v + (1 - rho) * g * g
        d = np.sqrt(u + eps) / np.sqrt(v + eps) * g
        u[...] = rho * u + (1 - rho) * d * d
        p -= lr * d


def average(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (decay,) = _numbers(inputs)
    for p, a in _parameters(spec.AVERAGE, inputs, outputs):
        a += (1 - decay) * (p - a)


def total_norm(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    norm_type = attrs["norm_type"]
    magnitudes = [np.abs(g.astype(np.float64)) for g in inputs[0]]
    if norm_type == math.inf:
        outputs[0][...] = functools.reduce(np.maximum, [a.max() for a in magnitudes if a.size], 0.0)
    else:
        outputs[0][...] = sum(np.sum(a**norm_type) for a in magnitudes) ** (1 / norm_type)
