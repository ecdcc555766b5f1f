"""The formulas of `spec`, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.gibbs.spec import step_key
from gmkernels.registry import Array
from gmkernels.rng.reference import normal_elements, words

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]


def _bernoulli(mean: Array, key: Array) -> Array:
    """1 with probability `mean`; NaN where that is NaN."""
    w = words(key, mean.size).reshape(mean.shape)
    with np.errstate(invalid="ignore"):
        threshold = np.floor(mean * 2.0**32).astype(np.uint64)
    return np.where(np.isnan(mean), mean, w < threshold)


def _step(states: Array, weight: Array, bias: Array, key: Array, units: str) -> tuple[Array, Array]:
    """Mean and sample of the units that `weight` (out, in) leads to."""
    inputs = states.astype(weight.dtype) @ weight.T + bias
    if units == "gaussian":
        return inputs, inputs + normal_elements(key, inputs.size, inputs.dtype).reshape(inputs.shape)
    mean = _sigmoid(inputs)
    return mean, _bernoulli(mean, key)


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def _store(sample: Array, out: Array) -> None:
    out[...] = sample if out.dtype.kind == "f" else sample == 1


def gibbs_half_step(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    states, weight, bias, key = inputs
    outputs[0][...], sample = _step(states, weight, bias, key, attrs["units"])
    _store(sample, outputs[1])


def _chain(
    visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, key: Array, steps: int, units: str
) -> tuple[Array, Array, Array]:
    for step in range(steps):
        hidden_key = step_key(key, 2 * step, weight.shape[0])
        _, hidden = _step(visible, weight, hidden_bias, hidden_key, "bernoulli")
        visible_key = step_key(key, 2 * step + 1, weight.shape[1])
        visible_mean, visible = _step(hidden, weight.T, visible_bias, visible_key, units)
    return visible, visible_mean, hidden


def gibbs_chain(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    visible, visible_mean, hidden = _chain(*inputs, **attrs)
    _store(visible, outputs[0])
    outputs[1][...] = visible_mean
    _store(hidden, outputs[2])


def _free_energy(
    visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, units: str
) -> tuple[Array, Array]:
    visible = visible.astype(weight.dtype)
    inputs = visible @ weight.T + hidden_bias
    own = ((visible - visible_bias) ** 2).sum(-1) / 2 if units == "gaussian" else -visible @ visible_bias
    with np.errstate(invalid="ignore"):
        return own - np.logaddexp(0, inputs).sum(-1), _sigmoid(inputs)


def free_energy(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    outputs[0][...], outputs[1][...] = _free_energy(*inputs, **attrs)


def contrastive_divergence(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    data, chain, weight, visible_bias, hidden_bias, key = inputs
    d_weight, d_visible_bias, d_hidden_bias, visible, loss = outputs
    sample, _, _ = _chain(chain, weight, visible_bias, hidden_bias, key, **attrs)
    _store(sample, visible)
    phases = []
    for states in (data, visible):
        energy, hidden_mean = _free_energy(states, weight, visible_bias, hidden_bias, attrs["units"])
        states = states.astype(energy.dtype)
        phases.append((hidden_mean.T @ states / len(states), states.mean(0), hidden_mean.mean(0), energy.mean()))
    positive, negative = phases
    d_weight[...] = negative[0] - positive[0]
    d_visible_bias[...] = negative[1] - positive[1]
    d_hidden_bias[...] = negative[2] - positive[2]
    loss[...] = positive[3] - negative[3]


def annealed_importance_sampling(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    visible, weight, visible_bias, hidden_bias, base_bias, betas, key = inputs
    log_weight, visible_out = outputs
    x = visible.astype(weight.dtype)
    log_weight.fill(0)
    for step, (before, beta) in enumerate(zip(betas[:-1].tolist(), betas[1:].tolist())):
        states = x @ weight.T + hidden_bias
        with np.errstate(invalid="ignore"):
            log_weight += (np.logaddexp(0, beta * states) - np.logaddexp(0, before * states)).sum(-1)
        own = x @ (visible_bias - base_bias)
        if attrs["units"] == "gaussian":
            own += (np.sum(base_bias**2) - np.sum(visible_bias**2)) / 2
        log_weight += (beta - before) * own
        hidden_key = step_key(key, 2 * step, weight.shape[0])
        _, hidden = _step(x, beta * weight, beta * hidden_bias, hidden_key, "bernoulli")
        visible_key = step_key(key, 2 * step + 1, weight.shape[1])
        bias = (1 - beta) * base_bias + beta * visible_bias
        _, x = _step(hidden, beta * weight.T, bias, visible_key, attrs["units"])
    _store(x, visible_out)


def boltzmann_sweep(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    states, weight, bias, clamped, key = inputs
    x = states.astype(weight.dtype)
    rows, units = x.shape
    for sweep in range(attrs["sweeps"]):
        w = words(step_key(key, sweep, units), x.size).reshape(x.shape)
        for i in np.flatnonzero(~clamped).tolist():
            mean = _sigmoid(x @ weight[i] + bias[i])
            threshold = np.floor(np.where(np.isnan(mean), 0, mean) * 2.0**32).astype(np.uint64)
            x[:, i] = np.where(np.isnan(mean), mean, w[:, i] < threshold)
    _store(x, outputs[0])
