"""Sums over axes in NumPy: the definition, and the version to teach from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.reduce.spec import broadcast_axes

Arrays = Sequence[np.ndarray]


def sum(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    (x,) = inputs
    with np.errstate(invalid="ignore", over="ignore"):
        outputs[0][...] = np.sum(x, attrs["axis"], np.float64, keepdims=attrs["keepdims"])


def sum_to(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    (x,) = inputs
    with np.errstate(invalid="ignore", over="ignore"):
        total = np.sum(x, broadcast_axes(x.shape, attrs["shape"]), np.float64)
        outputs[0][...] = total.reshape(attrs["shape"])
