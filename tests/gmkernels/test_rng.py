"""The random stream: known answers, bit identity of the backends, addressing by offset, distributions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from gmkernels import KernelError
from gmkernels.rng import as_key, cpu, key_array, normal, random_words, reference, uniform

N = 1 << 18
OFFSETS = (0, 1, 2, 3, 2**31 - 3, 2**31, 2**34 - 1, 2**34 + 2, 2**62 + 1, 2**64 - 6)
SIZES = (0, 1, 3, 127, 129, 1023, 1024, 1025, 16384 + 7, 40961)

# Random123, kat_vectors: counter, key, answer of philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def bits(a: np.ndarray) -> bytes:
    return a.tobytes()


def hexadecimal(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter, key, answer):
    c, k = hexadecimal(counter), hexadecimal(key)
    assert [int(w) for w in reference.philox4x32(c, k)] == hexadecimal(answer)
    in_source_of_cpu = cpu.philox4x32(*(np.uint64(w) for w in (*c, *k)))
    assert [int(w) % 2**32 for w in in_source_of_cpu] == hexadecimal(answer)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_key_reaches_the_cipher_in_the_documented_places(backend):
    group, draw, seed = 0x0123456789ABCDEF, 0xFEDCBA9876543210, 0xA4093822299F31D0
    words = reference.philox4x32((group % 2**32, group >> 32, draw % 2**32, draw >> 32), (seed % 2**32, seed >> 32))
    got = random_words((3,), key=(seed, draw, 4 * group + 1), backend=backend)
    assert got.tolist() == [int(w) for w in words[1:]]
    assert hexadecimal(KNOWN_ANSWERS[0][2]) == random_words((4,), key=(0, 0), backend=backend).tolist()


@pytest.mark.parametrize("offset", OFFSETS)
def test_backends_agree_bit_for_bit(offset):
    key = key_array(0xFEDCBA9876543210, 2**40 + 7, offset)
    for n in SIZES:
        words = [random_words((n,), key=key, backend=b) for b in ("reference", "cpu")]
        assert bits(words[0]) == bits(words[1])
        for fill in (uniform, normal):
            for dtype in ("float32", "float64"):
                got = [fill((n,), key=key, dtype=dtype, backend=b) for b in ("reference", "cpu")]
                assert bits(got[0]) == bits(got[1]), (fill.__name__, dtype, n)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_many_normals_agree_bit_for_bit(dtype):
    got = [normal((2_000_003,), key=(5, 6, 1), dtype=dtype, backend=b) for b in ("reference", "cpu")]
    assert bits(got[0]) == bits(got[1])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("base", [0, 2**31 - 501, 2**34 - 500, 2**62 - 499, 2**64 - 400])
def test_pieces_with_offsets_equal_the_whole(base, backend):
    """Also across 2^31, 2^34 (where the group number leaves 32 bits) and the wrap of the index at 2^64."""
    whole = normal((1003,), key=(1, 2, base), backend=backend)
    cuts = [0, 1, 2, 5, 130, 403, 1003]
    pieces = [
        normal((j - i,), key=(1, 2, (base + i) % 2**64), backend=backend)
        for i, j in zip(cuts[:-1], cuts[1:], strict=True)
    ]
    assert bits(np.concatenate(pieces)) == bits(whole)


def test_shape_is_only_a_view_of_the_stream():
    assert bits(normal((3, 5, 7), key=(1,))) == bits(normal((105,), key=(1,)))


@pytest.mark.parametrize("fill", [uniform, normal])
def test_float64_is_the_oracle_of_float32(fill):
    """Relative error of at most 9 roundings (derived in spec.NORMAL); in fact 3e-7."""
    single, double = (fill((1 << 21,), key=(3, 4), dtype=d) for d in ("float32", "float64"))
    error = np.abs(single - double)
    assert (error <= 9 * 2**-24 * np.abs(double)).all()
    assert (error <= 3e-7 * np.maximum(1, np.abs(double))).all()


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 9 * 2**-24), ("float64", 8 * 2**-53)])
def test_normals_of_edge_words(dtype, bound):
    """Against the formula in extended precision, at the ends of every branch."""
    ends = [0, 1, 2, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 0xB504F334, 2**32 - 2, 2**32 - 1]
    turns = [q * 2**29 + d for q in range(8) for d in (-1, 0, 1)]
    a, b = (x.ravel() for x in np.meshgrid(ends, [t % 2**32 for t in turns]))
    w = np.stack([a, b, a, b], -1).astype(np.uint32)
    z = reference.normals(w, dtype)
    assert np.isfinite(z).all() and (np.abs(z) <= 6.77).all()
    long = np.longdouble
    u = (a.astype(long) + long(0.5)) / long(2**32)
    below_one = ((2**32 - a).astype(long) - long(0.5)) / long(2**32)
    r = np.sqrt(-2 * np.where(u > 0.5, np.log1p(-below_one), np.log(u)))
    # The angle from the nearest quarter turn, so that the oracle's zeros are exact.
    quarter, rest = (b + 2**29) // 2**30 % 4, (b + 2**29) % 2**30 - 2**29
    x = rest.astype(long) * (2 * np.arctan(long(1)) / long(2**30))
    c, s = np.cos(x), np.sin(x)
    cos = np.choose(quarter, [c, -s, -c, s])
    sin = np.choose(quarter, [s, c, -s, -c])
    for lane, expected in ((0, r * cos), (1, r * sin), (2, r * cos), (3, r * sin)):
        assert (np.abs(z[:, lane] - expected) <= bound * np.abs(expected)).all()


def test_uniforms_are_in_the_half_open_interval():
    w = np.array([0, 1, 2**32 - 1], np.uint32)
    for dtype in (np.float32, np.float64):
        u = reference.uniforms(w, dtype)
        assert u[0] == 2.0**-33 and 0 < u[0] < u[1] and u[2] <= 1


# Distributions: seeds were fixed before looking; a p-value below 1e-4 fails.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_uniform_distribution(seed, dtype):
    u = uniform((N,), key=(seed,), dtype=dtype)
    assert stats.kstest(u, "uniform").pvalue > 1e-4
    assert stats.chisquare(np.bincount((u * 256).astype(int).clip(0, 255), minlength=256)).pvalue > 1e-4


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_normal_distribution(seed, dtype):
    z = normal((N,), key=(seed,), dtype=dtype).astype(np.float64)
    assert stats.kstest(z, "norm").pvalue > 1e-4
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - mean) < 4 * np.sqrt(variance / N)
    for lane in range(4):
        assert stats.kstest(z[lane::4], "norm").pvalue > 1e-4


def test_every_bit_of_the_words_is_fair():
    w = random_words((N,), key=(7,))
    for bit in range(32):
        ones = int(((w >> np.uint32(bit)) & 1).sum())
        assert abs(ones - N / 2) < 4.5 * np.sqrt(N) / 2


def test_draws_seeds_and_neighbours_are_uncorrelated():
    base = normal((N,), key=(11, 3), dtype="float64")
    keys = ((11, 4), (12, 3), (11, 3 + 2**32), (11 + 2**32, 3))
    others = [normal((N,), key=key, dtype="float64") for key in keys]
    others += [np.roll(base, shift) for shift in (1, 2, 3, 4)]
    for other in others:
        assert abs((base * other).mean()) < 4.5 / np.sqrt(N)
        assert abs((base**2 * other**2).mean() - 1) < 4.5 * np.sqrt(8 / N)  # variance of z^2 z'^2 is 3^2 - 1


def test_keys():
    assert key_array(1, 2, 3).dtype == np.uint64 and key_array(1, 2, 3).tolist() == [1, 2, 3]
    assert as_key((2**64 - 1, 5)).tolist() == [2**64 - 1, 5, 0]
    for wrong in ((-1,), (0, 2**64), (0, 0, -1)):
        with pytest.raises(KernelError, match=r"must be in \[0, 2\^64\)"):
            key_array(*wrong)
    with pytest.raises(KernelError, match="normal: expected a key uint64"):
        normal((3,), key=np.zeros(3))
    with pytest.raises(KernelError, match="uniform: shape must be a tuple"):
        uniform((-1,), key=(0,))
    with pytest.raises(KernelError, match="normal: dtype must be"):
        normal((1,), key=(0,), dtype="float16")
