"""Sets that parameters and values lie in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Constraint(NamedTuple):
    """A set: its name in error messages, and the test of membership on arrays; NaN is in none.

    Elementwise, or on the last `event_dim` axes together, which the test then takes away.
    """

    name: str
    contains: Callable[[Any], Any]
    event_dim: int = 0


def _positive_definite(x: Any) -> Any:
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(x)
        return (finite & np.isclose(x, np.swapaxes(x, -1, -2), rtol=1e-5, atol=1e-6)).all((-1, -2)) & (
            np.linalg.eigvalsh(np.where(finite, x, 0.0)) > 0
        ).all(-1)


def _lower_cholesky(x: Any) -> Any:
    diagonal = np.diagonal(x, axis1=-2, axis2=-1)
    return np.isfinite(x).all((-1, -2)) & (np.tril(x) == x).all((-1, -2)) & (diagonal > 0).all(-1)


real = Constraint("finite", np.isfinite)
real_vector = Constraint("a finite vector", lambda x: np.isfinite(x).all(-1), 1)
positive = Constraint("positive and finite", lambda x: (x > 0) & (x < np.inf))
nonnegative = Constraint("at least 0 and finite", lambda x: (x >= 0) & (x < np.inf))
unit_interval = Constraint("in [0, 1]", lambda x: (x >= 0) & (x <= 1))
open_unit_interval = Constraint("in (0, 1)", lambda x: (x > 0) & (x < 1))
open_unit_above_zero = Constraint("in (0, 1]", lambda x: (x > 0) & (x <= 1))
open_unit_below_one = Constraint("in [0, 1)", lambda x: (x >= 0) & (x < 1))
signed_unit_interval = Constraint("in [-1, 1]", lambda x: (x >= -1) & (x <= 1))
boolean = Constraint("0 or 1", lambda x: (x == 0) | (x == 1))
natural = Constraint("0, 1, 2, ...", lambda x: (x >= 0) & (x < np.inf) & (x == np.floor(x)))
positive_vector = Constraint("a vector of positive finite numbers", lambda x: ((x > 0) & (x < np.inf)).all(-1), 1)
simplex = Constraint(
    "a vector of probabilities that add up to 1",
    # A sum of rounded numbers is 1 only to some units of the coarsest dtype.
    lambda x: (x >= 0).all(-1) & (np.abs(x.sum(-1) - 1) < 1e-5),
    1,
)
weights = Constraint(
    "a vector of finite numbers at least 0, not all 0",
    lambda x: ((x >= 0) & (x < np.inf)).all(-1) & (x.sum(-1) > 0),
    1,
)
one_hot = Constraint("a vector of one 1 and else 0", lambda x: ((x == 0) | (x == 1)).all(-1) & (x.sum(-1) == 1), 1)
positive_definite = Constraint("a symmetric positive definite matrix", _positive_definite, 2)
lower_cholesky = Constraint("a lower triangular matrix with a positive diagonal", _lower_cholesky, 2)


_FIXED = {id(value) for value in list(globals().values()) if isinstance(value, Constraint)}


def is_fixed(constraint: Constraint) -> bool:
    """Whether it is one of the above, not made anew with numbers of a distribution."""
    return id(constraint) in _FIXED


def interval(low: Any, high: Any) -> Constraint:
    """Between two arrays that broadcast with the value."""
    return Constraint("between the bounds of the support", lambda x: (x >= low) & (x <= high))


def integer_interval(low: Any, high: Any) -> Constraint:
    """Integers between two arrays that broadcast with the value, both included."""
    inside = interval(low, high).contains
    return Constraint("an integer of the support", lambda x: inside(x) & (x == np.floor(x)))


def independent(base: Constraint, dims: int) -> Constraint:
    """All of the last `dims` axes of the batch inside `base`."""
    if not dims:
        return base
    return Constraint(base.name, lambda x: base.contains(x).all(tuple(range(-dims, 0))), base.event_dim + dims)
