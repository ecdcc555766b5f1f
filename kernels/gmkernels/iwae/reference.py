"""The importance-weighted bound in NumPy: the definition, and the version to teach from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Arrays = Sequence[np.ndarray]


def iwae_bound(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    (log_w,) = inputs
    bound, weights, ess = outputs
    axis = attrs["axis"]
    highest = log_w.max(axis, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        # Shifted by the highest, no exponential overflows and one of them is 1. Where the highest is
        # infinite, the entries equal to it are the ones that count.
        w = np.exp(np.where(log_w == highest, 0.0, log_w - highest))
        total = w.sum(axis, keepdims=True)
        weights[...] = np.where(highest == -np.inf, 0.0, w / total)
        bound[...] = (highest + np.log(total / log_w.shape[axis])).squeeze(axis)
        squares = np.sum(weights * weights, axis)
        ess[...] = np.where(squares == 0, 0.0, 1 / squares)


def iwae_bound_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    g_bound, weights = inputs
    np.multiply(np.expand_dims(g_bound, attrs["axis"]), weights, out=outputs[0])
