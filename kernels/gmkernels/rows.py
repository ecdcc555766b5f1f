"""What kernels of several families do with a row that lies in the cache."""

from __future__ import annotations

import numpy as np

from gmkernels.elementary import maximum
from gmkernels.pool import jitable, long_loop, reduction


@jitable
def copy_row(source, target):
    long_loop()
    for j in range(target.size):
        target[j] = source[j]


@jitable
def add_row(source, target):
    """target += source."""
    long_loop()
    for j in range(target.size):
        target[j] += source[j]


@jitable
def scale_row(row, factor):
    """row *= factor."""
    for j in range(row.size):
        row[j] *= factor


@jitable
def largest_of(x):
    """The largest element; NaN if there is one, -inf of none."""
    highest = x.dtype.type(-np.inf)
    for j in range(x.size):
        highest = maximum(x[j], highest)
    return highest


@reduction
def sum_of(x):
    """The sum in the dtype of x, in several lanes: for so few terms that its error does not matter."""
    found = x.dtype.type(0)
    for j in range(x.size):
        found += x[j]
    return found
