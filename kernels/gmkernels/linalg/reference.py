"""Triangular systems in NumPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def solve_triangular(
    inputs: Sequence[Any], outputs: Sequence[Any], workspace: Sequence[Any], attrs: Mapping[str, Any]
) -> None:
    """Substitution: x_i = (b_i - sum_j t_ij x_j) / t_ii over the rows already solved."""
    a, b = inputs
    (x,) = outputs
    n = a.shape[-1]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for i in reversed(range(n)) if attrs["upper"] else range(n):
            known = slice(i + 1, n) if attrs["upper"] else slice(0, i)
            x[..., i, :] = b[..., i, :] - (a[..., i : i + 1, known] @ x[..., known, :])[..., 0, :]
            if not attrs["unitriangular"]:
                x[..., i, :] /= a[..., i, i, None]
