"""Dropout and straight-through: what the generated tests of the ops leave out."""

import tracemalloc

import numpy as np
import pytest

import gmcore
from gmcore import Generator, ops
from gmcore.errors import ArgumentError
from gmcore.random import shift_key


def test_the_backward_pass_draws_the_same_mask_and_none_is_stored() -> None:
    key, x = Generator(1).draw(), gmcore.tensor(np.ones((500, 400), np.float32), requires_grad=True)
    y = ops.dropout(x, 0.3, key=key).detach().numpy()
    ops.sum(x)  # loads what a first call loads
    tracemalloc.start()
    try:
        total = ops.sum(ops.dropout(x, 0.3, key=key))
        assert tracemalloc.get_traced_memory()[0] < 100_000  # a mask of bytes would be twice that
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(gmcore.grad(total, x).numpy(), y)


def test_rate_and_mean() -> None:
    """Within 4.5 standard errors of p, and of the mean."""
    n, p = 200_000, 0.3
    y = ops.dropout(np.ones(n), p, generator=Generator(5)).numpy()
    assert abs((y == 0).mean() - p) < 4.5 * np.sqrt(p * (1 - p) / n)
    assert abs(y.mean() - 1) < 4.5 * np.sqrt(p / (1 - p) / n)
    assert set(np.unique(y)) == {0.0, 1 / (1 - p)}


def test_a_part_with_a_shifted_key_is_the_part_of_the_whole() -> None:
    key, x = Generator(3).draw(), np.random.default_rng(0).standard_normal((7, 5))
    whole = ops.dropout(x, 0.4, key=key).numpy()
    np.testing.assert_array_equal(ops.dropout(x[3:], 0.4, key=shift_key(key, 15)).numpy(), whole[3:])


def test_training_takes_one_draw_and_evaluation_none() -> None:
    generator, x = Generator(3), gmcore.tensor([1.0, 2.0])
    assert ops.dropout(x, 0.5, training=False, generator=generator) is x and generator.state == (3, 0)
    ops.dropout(x, 0.0, generator=generator)
    assert generator.state == (3, 1)


def test_dropped_infinities_are_zero() -> None:
    y = ops.dropout(np.full(64, np.inf), 0.5, generator=Generator(0)).numpy()
    assert set(np.unique(y)) == {0.0, np.inf}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_straight_through_is_hard_forward_and_soft_backward(dtype: str) -> None:
    soft = gmcore.tensor([0.1, 0.2, 0.7], dtype, requires_grad=True)
    hard = np.array([0.0, 0.0, 1.0], dtype)
    y = ops.straight_through(hard, soft * soft)
    assert y.detach().numpy().tobytes() == hard.tobytes()
    weights = np.array([1.0, 2.0, 3.0], dtype)
    g = gmcore.grad(y, soft, weights, create_graph=True)
    np.testing.assert_array_equal(g.detach().numpy(), 2 * weights * soft.detach().numpy())
    np.testing.assert_array_equal(gmcore.grad(ops.sum(g), soft).numpy(), 2 * weights)


def test_straight_through_gives_hard_no_gradient() -> None:
    hard, soft = (gmcore.tensor([1.0, 2.0], requires_grad=True) for _ in range(2))
    g_hard, g_soft = gmcore.grad(ops.sum(ops.straight_through(hard * 3.0, soft)), (hard, soft), allow_unused=True)
    assert g_hard is None and g_soft.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("wrong", [0, 5, np.random.default_rng(0)])
def test_a_seed_is_no_generator(wrong) -> None:
    """0 would be taken for no generator at all."""
    for draw in (lambda: ops.normal(3, generator=wrong), lambda: gmcore.distributions.Gamma(1.0, 1.0).sample(3, wrong)):
        with pytest.raises(ArgumentError, match=r"expected a gmcore.Generator as generator, got .*test_random"):
            draw()
