"""Diagonals: what the generated tests of the single ops leave out."""

from typing import Any

import numpy as np
import pytest

from gmcore import ops
from gmcore.errors import ArgumentError


def stack(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize("k", [-2, 0, 1])
@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 4)])
def test_diag(shape: tuple[int, ...], k: int, is_its_formula: Any) -> None:
    is_its_formula(lambda x: ops.diag(x, k), lambda x: np.diag(x, k), [stack(*shape)])


@pytest.mark.parametrize("how", [(), (1,), (-1, 0, 2), (0, -1, 1)])
def test_trace(how: tuple[int, ...], is_its_formula: Any, agrees_with_torch: Any) -> None:
    x = stack(3, 2, 4)
    is_its_formula(lambda x: ops.trace(x, *how), lambda x: np.trace(x, *how), [x])
    agrees_with_torch(lambda x: ops.trace(x, *how), lambda x: x.diagonal(*how).sum(-1), [x])


@pytest.mark.parametrize("offset", [-2, 0, 3])
@pytest.mark.parametrize("axes", [(-2, -1), (0, 1), (2, 0)])
def test_diagonal_undoes_diag_embed(offset: int, axes: tuple[int, int]) -> None:
    x = stack(2, 3)
    matrices = ops.diag_embed(x, offset, *axes)
    np.testing.assert_array_equal(ops.diagonal(matrices, offset, *axes).numpy(), x)
    assert np.count_nonzero(matrices.numpy()) == np.count_nonzero(x)


@pytest.mark.parametrize("axes", [(0, 0), (0, 3), (-4, 1)])
def test_axes_of_diag_embed_out_of_range(axes: tuple[int, int]) -> None:
    with pytest.raises(ArgumentError, match=r"diag_embed: axes .* for shape \(2, 3\); expected two .* -3..2"):
        ops.diag_embed(stack(2, 3), 0, *axes)
