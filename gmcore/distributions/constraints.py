"""Sets that parameters and values lie in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Constraint(NamedTuple):
    """A set: its name in error messages, and the test of membership, elementwise on arrays; NaN is in none."""

    name: str
    contains: Callable[[Any], Any]


real = Constraint("finite", np.isfinite)
positive = Constraint("positive and finite", lambda x: (x > 0) & (x < np.inf))
unit_interval = Constraint("in [0, 1]", lambda x: (x >= 0) & (x <= 1))
boolean = Constraint("0 or 1", lambda x: (x == 0) | (x == 1))
