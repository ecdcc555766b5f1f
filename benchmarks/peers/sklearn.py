"""The RBM's step in scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import threadpoolctl
from sklearn.neural_network import BernoulliRBM

from benchmarks.workloads import Workload
from gmkernels import pool

array = np.asarray


class _Given:
    """Uniform numbers from a list."""

    def __init__(self, *numbers: np.ndarray) -> None:
        self._left = list(numbers)

    def uniform(self, size: tuple[int, ...]) -> np.ndarray:
        return self._left.pop(0)


def configure(device: str) -> None:
    if device != "cpu":
        raise ValueError("it runs on the CPU alone")
    threadpoolctl.threadpool_limits(pool.get_num_threads(), user_api="blas")


def make(contender: str, name: str, workload: Workload) -> Callable[..., Any]:
    """A step of persistent CD, which scikit-learn has; with noise its chains start from the data, and it is CD-1.

    `partial_fit` would compute in float64; this is the step that `fit` takes on float32 data.
    """
    if workload.config["steps"] != 1:
        raise ValueError("its chains take one step")
    (v,) = workload.data
    weight = workload.weights["weight"]
    rbm = BernoulliRBM(len(weight), learning_rate=workload.config["learning_rate"], batch_size=len(v))
    rbm.components_ = np.asfortranarray(weight)  # as fit makes it
    rbm.intercept_visible_ = workload.weights["visible_bias"].copy()
    rbm.intercept_hidden_ = workload.weights["hidden_bias"].copy()
    rbm.h_samples_ = np.zeros((len(v), len(weight)), np.float32)
    random = np.random.RandomState(0)

    def step(*noise: np.ndarray) -> dict[str, np.ndarray]:
        if noise:
            hidden, visible = noise
            rbm.h_samples_ = (hidden < rbm._mean_hiddens(v)).astype(np.float32)
            rbm._fit(v, _Given(visible, hidden))
        else:
            rbm._fit(v, random)
        return {
            "weight": rbm.components_,
            "visible_bias": rbm.intercept_visible_,
            "hidden_bias": rbm.intercept_hidden_,
        }

    return step


def flushes_denormals() -> bool:
    return not (np.full(1 << 20, 1e-30, np.float32) * np.float32(1e-10)).any()
