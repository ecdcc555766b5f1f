"""The importance-weighted bound in NumPy: the definition, and the version to teach from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.registry import Array

Arrays = Sequence[np.ndarray]


def _shifted_exp(log_w: Array, highest: Array) -> Array:
    """exp(log_w - highest), where no exponential overflows and one of a column is 1.

    Where the highest is infinite, the entries equal to it are the ones that count.
    """
    with np.errstate(invalid="ignore"):
        return np.exp(np.where(log_w == highest, 0.0, log_w - highest).astype(log_w.dtype))


def iwae_bound(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    (log_w,) = inputs
    bound, highest, scale = outputs
    axis = attrs["axis"]
    np.max(log_w, axis, out=highest)
    total = _shifted_exp(log_w, np.expand_dims(highest, axis)).sum(axis)
    bound[...] = highest + np.log(total / log_w.shape[axis])
    scale[...] = np.where(highest == -np.inf, 0.0, 1.0 / total)


def iwae_bound_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    g_bound, log_w, highest, scale = inputs
    axis = attrs["axis"]
    factor = np.expand_dims(g_bound * scale, axis)
    np.multiply(factor, _shifted_exp(log_w, np.expand_dims(highest, axis)), out=outputs[0])
