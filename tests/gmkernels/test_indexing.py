"""Sums of rows by number: against a product with one-hot rows, and what is refused."""

import numpy as np
import pytest

from gmkernels import KernelError, scatter_add_rows

BACKENDS = ("reference", "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [1, 255, 600])
def test_is_a_product_with_one_hot_rows(backend, width):
    rng = np.random.default_rng(0)
    x, index = rng.integers(-9, 10, (50, width)).astype(np.float64), rng.integers(0, 7, 50)
    found = scatter_add_rows(x, index, rows=9, backend=backend)
    np.testing.assert_array_equal(found, np.eye(9)[:, index] @ x)  # sums of integers are exact


@pytest.mark.parametrize("backend", BACKENDS)
def test_refusals(backend):
    x = np.ones((3, 2))
    for index in ([0, 1, 2], [-1, 0, 0]):
        with pytest.raises(KernelError, match=rf"expected numbers from 0 to 1, got {min(index)} to {max(index)}"):
            scatter_add_rows(x, np.array(index), rows=2, backend=backend)
    with pytest.raises(KernelError, match=r"index \(n,\), got x float64\[3, 2\], index int64\[2\]"):
        scatter_add_rows(x, np.array([0, 1]), rows=2, backend=backend)
    with pytest.raises(KernelError, match="index int32"):
        scatter_add_rows(x, np.zeros(3, np.int32), rows=2, backend=backend)
