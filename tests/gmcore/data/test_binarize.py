"""Binarisation and minibatches depend on their keys alone: not on batch order, batch size or what came before."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmcore.data import batches, binarize
from gmcore.errors import ArgumentError, DataError, UnknownNameError

MASK = np.uint64(0xFFFFFFFF)


def philox4x32(counter: list, key: list) -> list:
    """Philox4x32-10 of J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011."""
    counter, key = [np.asarray(c, np.uint64) for c in counter], [np.uint64(k) for k in key]
    for _ in range(10):
        a, b = counter[0] * np.uint64(0xD2511F53), counter[2] * np.uint64(0xCD9E8D57)
        counter = [(b >> 32) ^ counter[1] ^ key[0], b & MASK, (a >> 32) ^ counter[3] ^ key[1], a & MASK]
        key = [(key[0] + np.uint64(0x9E3779B9)) & MASK, (key[1] + np.uint64(0xBB67AE85)) & MASK]
    return counter


def philox_words(seed: int, draw: int, start: int, count: int) -> np.ndarray:
    """Words start to start + count of the package's stream of (seed, draw)."""
    index = np.arange(start, start + count, dtype=np.uint64)
    block, low, high = index // 4, draw & 0xFFFFFFFF, draw >> 32
    counter = [block & MASK, block >> 32, np.full_like(block, low), np.full_like(block, high)]
    return np.choose((index % 4).astype(np.int64), philox4x32(counter, [seed & 0xFFFFFFFF, seed >> 32]))


def uniform(seed: int, draw: int, start: int, count: int) -> np.ndarray:
    return ((philox_words(seed, draw, start, count) >> 8) + 1).astype(np.float32) * np.float32(2**-24)


IMAGES = np.random.default_rng(0).random((40, 7)).astype(np.float32)
EVERY = np.arange(40)


def test_the_oracle_is_philox() -> None:
    """The known answers that come with Random123: the tests below rest on the stream they name."""
    known = {
        "00000000 00000000 00000000 00000000 00000000 00000000": "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        "ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff": "408f276d 41c83b0e a20bc7c6 6d5451fd",
        "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0": "d16cfe09 94fdcceb 5001e420 24126ea1",
    }
    for given_words, answer in known.items():
        words = [int(word, 16) for word in given_words.split()]
        assert " ".join(f"{int(word):08x}" for word in philox4x32(words[:4], words[4:])) == answer


@given(
    indices=st.lists(st.integers(0, 39), max_size=60),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(1, 2**40),
    mode=st.sampled_from(["static", "dynamic"]),
)
def test_pixels_are_a_function_of_the_keys(indices: list[int], seed: int, epoch: int, mode: str) -> None:
    """Any batch, with repeats and in any order, is the formula of the contract for each of its images."""
    binary = binarize(IMAGES, np.array(indices, np.int64), seed=seed, epoch=epoch, mode=mode, uniform=uniform)
    draw = epoch if mode == "dynamic" else 0
    u = uniform(seed, draw, 0, IMAGES.size).reshape(IMAGES.shape)
    assert binary.dtype == np.float32
    np.testing.assert_array_equal(binary, (u <= IMAGES)[np.array(indices, np.int64)])


def test_static_repeats_and_dynamic_does_not() -> None:
    def draw(mode: str, epoch: int, seed: int = 3) -> list[list[float]]:
        return binarize(IMAGES, EVERY, seed=seed, epoch=epoch, mode=mode, uniform=uniform).tolist()

    assert draw("static", 1) == draw("static", 2) != draw("static", 1, seed=4)
    assert draw("dynamic", 1) == draw("dynamic", 1) != draw("dynamic", 2)
    assert draw("dynamic", 1) != draw("static", 1)


def test_probabilities() -> None:
    """Frequencies over 4000 epochs lie within 5 standard deviations of the grey levels; 0 and 1 are exact."""
    grey = np.array([[0.0, 1.0, 0.5, 0.1, 0.9]], np.float32)
    every = np.zeros(1, np.int64)
    draws = [binarize(grey, every, seed=1, epoch=e, mode="dynamic", uniform=uniform) for e in range(1, 4001)]
    frequency = np.mean(draws, axis=0)
    assert frequency[0, 0] == 0 and frequency[0, 1] == 1
    assert np.all(np.abs(frequency - grey) <= 5 * np.sqrt(grey * (1 - grey) / 4000))


@pytest.mark.parametrize("u", [2.0**-24, 1.0])
def test_extreme_uniforms_keep_black_black_and_white_white(u: float) -> None:
    def constant(seed: int, draw: int, start: int, count: int) -> np.ndarray:
        return np.full(count, u, np.float32)

    grey, index = np.array([[0.0, 1.0]], np.float32), np.array([0])
    assert binarize(grey, index, seed=0, epoch=1, mode="dynamic", uniform=constant).tolist() == [[0, 1]]


def test_consecutive_images_take_one_call() -> None:
    calls = []

    def counted(*key: int) -> np.ndarray:
        calls.append(key)
        return uniform(*key)

    binarize(IMAGES, np.array([4, 5, 6, 2, 9, 10]), seed=8, epoch=6, mode="dynamic", uniform=counted)
    assert calls == [(8, 6, 28, 21), (8, 6, 14, 7), (8, 6, 63, 14)]


def test_none_copies_the_rows() -> None:
    grey = binarize(IMAGES, np.array([3, 1]), seed=0, epoch=0, mode="none", uniform=uniform)
    np.testing.assert_array_equal(grey, IMAGES[[3, 1]])
    assert not np.shares_memory(grey, IMAGES)


def test_bad_arguments_are_refused() -> None:
    def call(images=IMAGES, indices=EVERY, epoch=1, mode="dynamic"):
        return binarize(images, indices, seed=0, epoch=epoch, mode=mode, uniform=uniform)

    with pytest.raises(UnknownNameError, match="did you mean 'dynamic'"):
        call(mode="dynamical")
    with pytest.raises(ArgumentError, match="epochs count from 1.*found 0"):
        call(epoch=0)
    for indices in (np.array([40]), np.array([-1]), np.array([True] * 40), np.array([0.0]), np.array([[0]])):
        with pytest.raises(ArgumentError, match=r"integers in \[0, 40\)"):
            call(indices=indices)
    for value in (-0.1, 1.1, np.nan):
        bad = IMAGES.copy()
        bad[7, 2] = value
        with pytest.raises(DataError, match=r"not in \[0, 1\].*\(7, 2\)"):
            call(images=bad)


@given(
    n=st.integers(1, 300),
    batch_size=st.integers(1, 70),
    drop_last=st.booleans(),
    key=st.integers(0, 2**64 - 1),
)
def test_batches_cover_each_index_once(n: int, batch_size: int, drop_last: bool, key: int) -> None:
    epoch = list(batches(n, batch_size, key, 2**64 - 1 - key, drop_last))
    kept = n - n % batch_size if drop_last else n
    assert [len(batch) for batch in epoch[:-1]] == [batch_size] * (len(epoch) - 1)
    together = np.concatenate([*epoch, np.empty(0, np.int64)])
    assert together.dtype == np.int64 and len(together) == kept
    assert len(np.unique(together)) == kept and np.all((together >= 0) & (together < n))


@given(batch=st.integers(0, 12), batch_size=st.integers(1, 40))
def test_an_epoch_resumes_at_any_batch(batch: int, batch_size: int) -> None:
    whole = list(batches(100, batch_size, 5, 3))
    rest = list(itertools.islice(batches(100, batch_size, 5, 3), batch, None))
    assert [b.tolist() for b in rest] == [b.tolist() for b in whole[batch:]]


def test_order_depends_on_seed_and_epoch_and_not_on_batch_size() -> None:
    def order(seed: int, epoch: int, batch_size: int = 10) -> list[int]:
        return np.concatenate(list(batches(100, batch_size, seed, epoch))).tolist()

    assert order(1, 1) == order(1, 1, batch_size=7)
    orders = [order(seed, epoch) for seed in range(5) for epoch in range(5)]
    assert len({tuple(o) for o in orders}) == 25


def test_the_order_is_that_of_this_version() -> None:
    """A run saved by one release resumes in the next, on any NumPy: the order may not change."""
    assert np.concatenate(list(batches(8, 8, 1, 2))).tolist() == [4, 2, 0, 6, 1, 5, 7, 3]


def test_every_position_is_reached_equally() -> None:
    """Over 4000 epochs each of 5 images comes first within 5 standard deviations of a fifth of the time."""
    first = np.bincount([next(batches(5, 1, 0, epoch))[0] for epoch in range(4000)], minlength=5)
    assert np.all(np.abs(first - 800) <= 5 * np.sqrt(4000 * 0.2 * 0.8))


@pytest.mark.parametrize("arguments", [(0, 1, 0, 1), (1, 0, 0, 1), (1, 1, -1, 1), (1, 1, 2**64, 1), (1, 1, 0, -1)])
def test_bad_batches_are_refused_at_the_call(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(ArgumentError, match="found"):
        batches(*arguments)
