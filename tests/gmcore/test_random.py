"""Generators, and the ops that draw from them: one draw an op, the same noise in every pass."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gmcore
from gmcore import Generator, Tensor, ops
from gmcore.errors import ArgumentError
from gmcore.random import default_generator, shift_key
from gmkernels import rng as stream

N = 20_000
DRAWS: dict[str, Callable[..., Any]] = {
    "normal": lambda **how: ops.normal((5, 4), **how),
    "uniform": lambda **how: ops.uniform((5, 4), **how),
    "gaussian_sample": lambda **how: ops.gaussian_sample(np.zeros((5, 4)), np.ones((5, 4)), **how)[0],
    "bernoulli_sample": lambda **how: ops.bernoulli_sample(np.full((50, 4), 0.5), **how),
    "bernoulli_sample_logits": lambda **how: ops.bernoulli_sample_logits(np.zeros((50, 4)), **how),
}
each_draw = pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)


def bits(t: Tensor) -> bytes:
    return t.numpy().tobytes()


# -- generators ----------------------------------------------------------------------------------------------------
def test_draws_count_up() -> None:
    g = Generator(2**64 - 1)
    assert g.state == (2**64 - 1, 0) and g.seed == 2**64 - 1
    keys = [g.draw().numpy() for _ in range(3)]
    assert [k.tolist() for k in keys] == [[2**64 - 1, i, 0] for i in range(3)]
    assert keys[0].dtype == np.uint64 and g.state == (2**64 - 1, 3)
    assert repr(g) == f"Generator(seed={2**64 - 1}, draw=3)"


def test_state_continues_a_stream() -> None:
    g = Generator(11)
    ops.normal(3, generator=g)
    state = g.state
    expected = bits(ops.normal(3, generator=g))
    other = Generator(5)
    other.state = state
    assert bits(ops.normal(3, generator=other)) == expected
    assert other.manual_seed(11) is other and other.state == (11, 0)


def test_the_count_of_draws_wraps() -> None:
    g = Generator(1)
    g.state = (1, 2**64 - 1)
    g.draw()
    assert g.state == (1, 0)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "1"])
def test_seeds_are_64_bit_integers(seed: Any) -> None:
    with pytest.raises(ArgumentError, match="a seed is an integer"):
        Generator(seed)
    with pytest.raises(ArgumentError, match="a seed is an integer"):
        gmcore.manual_seed(seed)


def test_seeds_may_be_numpys_integers() -> None:
    assert Generator(np.int64(3)).state == (3, 0)  # type: ignore[arg-type]
    assert Generator(np.uint64(2**63)).seed == 2**63  # type: ignore[arg-type]


def test_without_a_seed_generators_differ() -> None:
    assert Generator().seed != Generator().seed


def test_the_default_generator() -> None:
    g = gmcore.manual_seed(7)
    assert default_generator() is g
    a = bits(ops.normal(4))
    assert g.state == (7, 1)
    gmcore.manual_seed(7)
    assert bits(ops.normal(4)) == a and bits(ops.normal(4)) != a


def test_the_default_generator_is_of_one_thread() -> None:
    g = gmcore.manual_seed(7)
    seen: list[Generator] = []

    def work() -> None:
        seen.append(default_generator())
        seen.append(gmcore.manual_seed(9))
        ops.normal(4)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen[0] is not g and seen[0].seed != 7 and seen[1].state == (9, 1)
    assert default_generator() is g and g.state == (7, 0)


# -- draws -----------------------------------------------------------------------------------------------------------
@each_draw
def test_an_op_takes_one_draw(draw: Callable[..., Any]) -> None:
    g = Generator(3)
    a = draw(generator=g)
    assert g.state == (3, 1)
    assert bits(draw(generator=g)) != bits(a)
    assert bits(draw(generator=Generator(3))) == bits(a)
    assert bits(draw(generator=Generator(4))) != bits(a)
    # a key given takes no draw, from the default generator neither
    key = Generator(3).draw()
    before = default_generator().state
    assert bits(draw(key=key)) == bits(a) and bits(draw(key=key)) == bits(a)
    assert default_generator().state == before
    draw()
    assert default_generator().state == (before[0], before[1] + 1)


@pytest.mark.parametrize("cut", [1, 3, 4, 10, 19])
@pytest.mark.parametrize("fill", [ops.normal, ops.uniform])
def test_parts_of_a_draw_agree_with_the_whole(fill: Callable[..., Tensor], cut: int) -> None:
    key = Generator(3).draw()
    whole = fill(20, key=key).numpy()
    np.testing.assert_array_equal(fill(cut, key=key).numpy(), whole[:cut])
    np.testing.assert_array_equal(fill(20 - cut, key=shift_key(key, cut)).numpy(), whole[cut:])


def test_parts_of_gaussian_samples_agree_with_the_whole() -> None:
    """Samples in chunks: sample i of a (3, 2) Gaussian starts at element 6 i."""
    rng = np.random.default_rng(0)
    mu, logvar = rng.standard_normal((2, 3, 2))
    key = Generator(3).draw()
    whole = ops.gaussian_sample(mu, logvar, samples=5, key=key)
    parts = [ops.gaussian_sample(mu, logvar, samples=n, key=shift_key(key, 6 * i)) for i, n in ((0, 2), (2, 3))]
    for i in (0, 2):
        np.testing.assert_array_equal(ops.concatenate([part[i] for part in parts]).numpy(), whole[i].numpy())


def test_fills_are_the_words_of_the_stream() -> None:
    words = stream.random_words((7,), key=(3, 0)).astype(np.float64)
    u = ops.uniform(7, dtype="float64", generator=Generator(3)).numpy()
    np.testing.assert_array_equal(u, (words + 0.5) / 2**32)
    single = ops.uniform(7, generator=Generator(3))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single.numpy(), u, rtol=1.2e-7)


def test_moments() -> None:
    """Means and variances of N independent numbers, within five standard errors."""
    se = 5 / np.sqrt(N)
    z = ops.normal(N, dtype="float64").numpy()
    assert abs(z.mean()) < se and abs(z.var() - 1) < se * np.sqrt(2)
    u = ops.uniform(N, dtype="float64").numpy()
    assert abs(u.mean() - 0.5) < se * np.sqrt(1 / 12) and u.min() > 0 and u.max() <= 1
    for p in (0.1, 0.5, 0.9):
        spread = se * np.sqrt(p * (1 - p))
        assert abs(ops.bernoulli_sample(np.full(N, p)).numpy().mean() - p) < spread
        assert abs(ops.bernoulli_sample_logits(np.full(N, np.log(p / (1 - p)))).numpy().mean() - p) < spread
    z, kl, log_q = ops.gaussian_sample(np.full((1, 1), 2.0), np.full((1, 1), np.log(9.0)), samples=N)
    assert abs(z.numpy().mean() - 2) < 3 * se and abs(z.numpy().std() / 3 - 1) < se
    # the mean of log q is minus the entropy
    assert abs(log_q.numpy().mean() + 0.5 * np.log(2 * np.pi * np.e * 9)) < se


def test_bernoulli_at_the_ends() -> None:
    p = np.array([0.0, 1.0])
    samples = ops.bernoulli_sample(p, samples=1000).numpy()
    assert samples.shape == (1000, 2) and not samples[:, 0].any() and samples[:, 1].all()


def test_the_backward_pass_draws_the_same_noise() -> None:
    """Whatever was drawn in between: dz/dlogvar = (z - mu) / 2 holds sample by sample."""
    x = gmcore.tensor(np.linspace(-1.0, 1.0, 6).reshape(2, 3), requires_grad=True)
    mu = np.zeros((2, 3))
    z, _, _ = ops.gaussian_sample(mu, x, samples=3)
    for _ in range(5):
        ops.normal(3)
    weights = np.random.default_rng(0).standard_normal((3, 2, 3))
    first = gmcore.grad(z, x, weights, create_graph=True)
    np.testing.assert_allclose(first.detach().numpy(), (weights * z.detach().numpy() / 2).sum(0), rtol=1e-13)
    ops.normal(3)
    second = gmcore.grad(ops.sum(first), x)
    np.testing.assert_allclose(second.numpy(), first.detach().numpy() / 2, rtol=1e-13)


@pytest.mark.parametrize("samples", [0, -1])
def test_samples_are_positive(samples: int) -> None:
    for draw in (ops.bernoulli_sample, ops.bernoulli_sample_logits, lambda x, **how: ops.gaussian_sample(x, x, **how)):
        with pytest.raises(ArgumentError, match=f"samples must be a positive integer or None, got {samples}"):
            draw(np.zeros((2, 3)), samples=samples)
