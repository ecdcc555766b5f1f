"""Many whole rows, which kernels read and add: the same as few of them, checked again in each repetition of a step."""

from typing import Any

import numpy as np
import pytest

import gmcore
from gmcore import ops
from gmcore.errors import ShapeError

RNG = np.random.default_rng(0)
TABLE = RNG.integers(-9, 10, (5, 4, 256)).astype(np.float32)  # sums of integers are exact
INDEX = RNG.integers(-5, 5, (3, 16))


@pytest.mark.parametrize("dtype", ["int64", "int32"])
@pytest.mark.parametrize("layout", [np.array, np.asfortranarray])
def test_many_rows_are_what_few_are(layout: Any, dtype: str) -> None:
    x, index = gmcore.tensor(layout(TABLE), requires_grad=True), INDEX.astype(dtype)
    y = x[index]
    assert y._edge[0].op.name == "gather_rows"
    few = ops.stack([ops.stack([x[i] for i in row]) for row in index.tolist()])
    np.testing.assert_array_equal(y.detach().numpy(), few.detach().numpy())
    g = RNG.integers(-9, 10, y.shape).astype(np.float32)
    np.testing.assert_array_equal(gmcore.grad(y, x, g).numpy(), gmcore.grad(few, x, g).numpy())


def test_a_table_is_not_packed_for_a_few_of_its_rows() -> None:
    x = gmcore.tensor(np.zeros((8192, 40)).T, requires_grad=True)
    assert x[np.arange(3)]._edge[0].op.name == "getitem"
    assert x[np.arange(40)]._edge[0].op.name == "gather_rows"


@pytest.mark.parametrize("outside", [5, -6])
def test_a_number_out_of_range_is_named(outside: int) -> None:
    index = np.full(16, outside)
    expected = rf": index {outside} is out of bounds for axis 0 with size 5 .*{__file__}:"
    with pytest.raises(ShapeError, match="getitem" + expected):
        gmcore.tensor(TABLE)[index]
    with pytest.raises(ShapeError, match="scatter_add" + expected):
        ops.scatter_add(np.ones((16, 4, 256)), index, TABLE.shape)


def test_a_captured_step_looks_at_each_index() -> None:
    x = gmcore.tensor(TABLE, requires_grad=True)

    def step(index: Any, g: Any) -> Any:
        y = x[index]
        return y, ops.scatter_add(g, index, TABLE.shape)

    captured = gmcore.capture(step)
    for _ in range(5):
        index = RNG.integers(-5, 5, 16)
        g = gmcore.tensor(RNG.integers(-9, 10, (16, 4, 256)).astype(np.float32))
        for found, expected in zip(captured(index, g), step(index, g)):
            np.testing.assert_array_equal(found.detach().numpy(), expected.detach().numpy())
    assert all(i.launches for i in captured.programs[0].instructions if i.name.endswith("_rows"))
    with pytest.raises(ShapeError, match="index 5 is out of bounds for axis 0 with size 5"):
        captured(np.full(16, 5), g)
