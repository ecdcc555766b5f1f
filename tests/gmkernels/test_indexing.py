"""Rows by number: against products with one-hot rows, and what is refused."""

import numpy as np
import pytest

from gmkernels import KernelError, gather_rows, scatter_add_rows

BACKENDS = ("reference", "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [1, 255, 1100])
def test_are_products_with_one_hot_rows(backend, width):
    rng = np.random.default_rng(0)
    x, table, index = rng.integers(-9, 10, (50, width)), rng.integers(-9, 10, (9, width)), rng.integers(-9, 7, 50)
    chosen = np.eye(9)[index]  # sums of integers are exact
    found = scatter_add_rows(x.astype(np.float64), index, rows=9, backend=backend)
    np.testing.assert_array_equal(found, chosen.T @ x)
    np.testing.assert_array_equal(gather_rows(table.astype(np.float64), index, backend=backend), chosen @ table)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sum_keeps_the_order_of_the_numbers(backend):
    x = np.repeat([[1.0], [1e17], [-1e17], [0.0]], 20, axis=1)  # another order would save the 1
    assert (scatter_add_rows(x, np.array([1, 1, -2, 0]), rows=3, backend=backend) == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_refusals(backend):
    x = np.ones((3, 2))
    for index in ([0, 1, 2], [-3, 0, 0]):
        given = rf"expected numbers from -2 to 1, got {min(index)} to {max(index)}"
        with pytest.raises(KernelError, match=f"scatter_add_rows: {given}"):
            scatter_add_rows(x, np.array(index), rows=2, backend=backend)
        with pytest.raises(KernelError, match=f"gather_rows: {given}"):
            gather_rows(x[:2], np.array(index), backend=backend)
    with pytest.raises(KernelError, match=r"index \(n,\), or more axes.*got x float64\[3, 2\], index int64\[2\]"):
        scatter_add_rows(x, np.array([0, 1]), rows=2, backend=backend)
    with pytest.raises(KernelError, match="index int32"):
        scatter_add_rows(x, np.zeros(3, np.int32), rows=2, backend=backend)
    with pytest.raises(KernelError, match=r"int64 index, got table float64\[3, 2\], index int32\[3\]"):
        gather_rows(x, np.zeros(3, np.int32), backend=backend)
