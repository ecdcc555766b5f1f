"""Rows by number in CUDA C: several tiles and lists, numbers of no row, the order of additions."""

import numpy as np
import pytest

from gmkernels import registry
from gmkernels.indexing import cuda, spec

cupy = pytest.importorskip("cupy")


def both(op, inputs, attrs):
    (found,) = registry.run(op, tuple(map(cupy.asarray, inputs)), attrs, backend="cuda")
    (expected,) = registry.run(op, inputs, attrs, backend="reference")
    return found.get(), expected


@pytest.mark.parametrize("full", [cuda._FULL, 0], ids=["narrow", "wide"])
@pytest.mark.parametrize(
    "rows, size, columns",
    [(3, 2500, 260), (2, 1025, 1), (2, 40, 1028), (5, 1024, 7), (1, 300, 4), (4, 0, 5)],
    ids=["tiles and lists", "one column", "wide tiles", "odd", "one row", "nothing"],
)
def test_sums_have_the_bits_of_additions_in_order(rows, size, columns, full, monkeypatch):
    monkeypatch.setattr(cuda, "_FULL", full)
    rng = np.random.default_rng(0)
    index = rng.integers(-rows, rows, size)
    x = rng.standard_normal((size, columns)).astype(np.float32)
    found, expected = both(spec.SCATTER_ADD_ROWS, (x, index), {"rows": rows})
    assert found.tobytes() == expected.tobytes()
    table = rng.standard_normal((rows, columns)).astype(np.float32)
    found, expected = both(spec.GATHER_ROWS, (table, index), {})
    assert found.tobytes() == expected.tobytes()


def test_numbers_of_no_row():
    """They lead to no other memory: NaN is read, and nothing added."""
    index = cupy.asarray(np.array([0, 3, -4, 2**40, -1]))
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    (found,) = registry.run(spec.GATHER_ROWS, (cupy.asarray(x[:3]), index), {}, backend="cuda")
    np.testing.assert_array_equal(found.get(), [x[0], [np.nan] * 2, [np.nan] * 2, [np.nan] * 2, x[2]])
    (found,) = registry.run(spec.SCATTER_ADD_ROWS, (cupy.asarray(x), index), {"rows": 3}, backend="cuda")
    np.testing.assert_array_equal(found.get(), [x[0], [0, 0], x[4]])
