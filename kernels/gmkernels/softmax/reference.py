"""The cross-entropy of classes under softmax, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.softmax.spec import check_target

Arrays = Sequence[np.ndarray]


def softmax_cross_entropy(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    logits, target = inputs
    loss, probabilities = outputs
    check_target("softmax_cross_entropy", target, logits.shape[1])
    if not logits.size:
        return
    top = np.max(logits, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shifted = logits - np.where(top == -np.inf, 0, top)  # exponentials do not overflow; a masked row stays so
    np.exp(shifted, out=probabilities)
    total = probabilities.sum(axis=1)
    total[total == 0] = 1
    probabilities /= total[:, None]
    loss[...] = np.log(total) - np.take_along_axis(shifted, target[:, None], 1)[:, 0]


def softmax_cross_entropy_backward(
    inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]
) -> None:
    g, probabilities, target = inputs
    (d_logits,) = outputs
    check_target("softmax_cross_entropy_backward", target, probabilities.shape[1])
    np.multiply(g[:, None], probabilities, out=d_logits)
    at = target[:, None]
    np.put_along_axis(d_logits, at, np.take_along_axis(d_logits, at, 1) - g[:, None], 1)
