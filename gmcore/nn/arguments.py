"""What constructors check of their arguments."""

from __future__ import annotations

from typing import Any

import numpy as np

from gmcore.errors import ArgumentError
from gmcore.ops.elementwise import dtype_of


def positive_integer(module: str, name: str, value: Any) -> int:
    """`value` as an int. Raises `ArgumentError` unless it is an integer above 0."""
    if not isinstance(value, (int, np.integer)) or value < 1:
        raise ArgumentError(f"{module}: {name} must be a positive integer, got {value!r}")
    return int(value)


def floating(dtype: Any) -> np.dtype[Any]:
    """The dtype of parameters, float32 for None. Raises `ArgumentError` unless it is floating."""
    return np.dtype(np.float32) if dtype is None else dtype_of(dtype)
