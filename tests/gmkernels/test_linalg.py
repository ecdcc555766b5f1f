"""Triangular systems: identities, what is not read, singular diagonals, errors; test_specs.py does the rest."""

import numpy as np
import pytest

from gmkernels import KernelError, solve_triangular
from gmkernels.linalg.cpu import BLOCK_FLOPS, STRIP

BACKENDS = ["reference", "cpu"]


def systems(*shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    *batch, n, k = shape
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (*batch, n, n)) / max(n, 1) + 2 * np.eye(n), rng.standard_normal(shape)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (3, 2, 5, 1), (200, 2 * STRIP + 1), (41, 16, 40)])
def test_the_product_gives_the_right_hand_side_back(shape: tuple[int, ...], upper: bool, backend: str) -> None:
    a, b = systems(*shape)
    x = solve_triangular(a, b, upper=upper, backend=backend)
    np.testing.assert_allclose((np.triu(a) if upper else np.tril(a)) @ x, b, rtol=1e-12, atol=1e-12)


def test_the_shapes_above_reach_strips_and_groups() -> None:
    assert 200 * 200 * (2 * STRIP + 1) // BLOCK_FLOPS >= 2 and (2 * STRIP + 1) // STRIP >= 2
    assert 1 < BLOCK_FLOPS // (16 * 16 * 40) < 41 * 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("upper", [False, True])
def test_the_other_triangle_and_a_unit_diagonal_are_not_read(upper: bool, backend: str) -> None:
    a, b = systems(2, 4, 3)
    expected = solve_triangular(a, b, upper=upper, backend=backend)
    i, j = np.tril_indices(4, -1) if upper else np.triu_indices(4, 1)
    a[..., i, j] = np.nan
    np.testing.assert_array_equal(solve_triangular(a, b, upper=upper, backend=backend), expected)
    ones = a.copy()
    ones[..., np.arange(4), np.arange(4)] = 1
    a[..., np.arange(4), np.arange(4)] = np.nan
    expected = solve_triangular(ones, b, upper=upper, backend=backend)
    found = solve_triangular(a, b, upper=upper, unitriangular=True, backend=backend)
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zero_on_the_diagonal_gives_no_finite_number(backend: str) -> None:
    x = solve_triangular(np.diag([1.0, 0.0, 2.0]), np.ones((3, 1)), upper=False, backend=backend)
    assert x[0] == 1 and not np.isfinite(x[1])


@pytest.mark.parametrize(
    "a, b", [((3, 3), (3,)), ((3, 4), (3, 1)), ((3, 3), (4, 1)), ((2, 3, 3), (3, 1)), ((2, 3, 3), (1, 3, 1))]
)
def test_misfits_are_named(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(KernelError, match=r"solve_triangular: expected .* got a float64\[.*b float64\["):
        solve_triangular(np.ones(a), np.ones(b), upper=False)
    with pytest.raises(KernelError, match="float32"):
        solve_triangular(np.ones((3, 3), np.float32), np.ones((3, 1)), upper=False)
