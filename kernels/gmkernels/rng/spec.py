"""Contracts of the fills: words, uniforms and normals of a key's stream."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import numpy as np

from gmkernels.cost import Cost
from gmkernels.registry import FLOATS, Example, KernelError, KernelSpec, Layout

WORD_SLOTS = 30.0
"""Issue slots of one word of Philox: ten rounds of two wide products and four xors for four words."""
NORMAL_SLOTS = 60.0
"""Issue slots of one normal: its word, and half of a logarithm, square root, sine and cosine."""

SOURCE = "Salmon, Moraes, Dror & Shaw, Parallel random numbers: as easy as 1, 2, 3 (SC 2011); Random123"


def check_key(op: str, key: Any) -> None:
    """Raise `KernelError` unless `key` is a uint64 array (seed, draw, offset)."""
    if key.dtype != np.uint64 or key.shape != (3,):
        raise KernelError(f"{op}: expected a key uint64[3], (seed, draw, offset), got {key.dtype}{list(key.shape)}")


def check_shape(op: str, shape: Any) -> None:
    if type(shape) is not tuple or any(not isinstance(n, int) or n < 0 for n in shape):
        raise KernelError(f"{op}: shape must be a tuple of non-negative ints, got {shape!r}")


def _infer_words(key: Any, *, shape: tuple[int, ...]) -> Layout:
    check_key("random_words", key)
    check_shape("random_words", shape)
    return [(shape, np.dtype(np.uint32))]


def _infer(op: str) -> Any:
    def infer(key: Any, *, shape: tuple[int, ...], dtype: str) -> Layout:
        check_key(op, key)
        check_shape(op, shape)
        if dtype not in FLOATS:
            raise KernelError(f"{op}: dtype must be 'float32' or 'float64', got {dtype!r}")
        return [(shape, np.dtype(dtype))]

    return infer


def _size(key: Any, *, shape: tuple[int, ...], dtype: str = "uint32") -> int:
    return prod(shape)


def _cost(slots: float) -> Any:
    def cost(key: Any, *, shape: tuple[int, ...], dtype: str = "uint32") -> Cost:
        n = prod(shape)
        return Cost(bytes=n * np.dtype(dtype).itemsize, slots=slots * n)

    return cost


SHAPES = ((0,), (), (1,), (3,), (127,), (3, 43), (1023,), (2, 3, 5), (40961,))
OFFSETS = (0, 1, 2, 3, 2**31 - 5, 2**34 + 3, 2**62 + 1, 7, 0)


def keys(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Keys with the offsets that matter: every lane, and both words of the group counter."""
    for offset in OFFSETS:
        yield np.array([rng.integers(2**64, dtype=np.uint64), rng.integers(2**40), offset], np.uint64)


def _word_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for key, shape in zip(keys(rng), SHAPES, strict=True):
        yield Example((key,), {"shape": shape})


def _examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for key, shape in zip(keys(rng), SHAPES, strict=True):
        yield Example((key,), {"shape": shape, "dtype": np.dtype(dtype).name})


RANDOM_WORDS = KernelSpec(
    name="random_words",
    family="rng",
    inputs=("key",),
    outputs=("words",),
    infer=_infer_words,
    cost=_cost(WORD_SLOTS),
    size=_size,
    examples=_word_examples,
    formula="w[i] = Philox4x32-10(counter = (g low, g high, draw low, draw high), "
    "key = (seed low, seed high))[(offset + i) mod 4], g = (offset + i) div 4",
    source=SOURCE,
    tolerance={"float32": (0.0, 0.0), "float64": (0.0, 0.0)},
    draws=True,
)

UNIFORM = KernelSpec(
    name="uniform",
    family="rng",
    inputs=("key",),
    outputs=("u",),
    infer=_infer("uniform"),
    cost=_cost(WORD_SLOTS),
    size=_size,
    examples=_examples,
    formula="u[i] = w[i] 2^-32 + 2^-33, in (0, 1]",
    source=SOURCE,
    # The rounding of the word and of the sum.
    tolerance={"float32": (1.2e-7, 0.0), "float64": (0.0, 0.0)},
    draws=True,
)

NORMAL = KernelSpec(
    name="normal",
    family="rng",
    inputs=("key",),
    outputs=("z",),
    infer=_infer("normal"),
    cost=_cost(NORMAL_SLOTS),
    size=_size,
    examples=_examples,
    formula="z[2j] = r cos t, z[2j + 1] = r sin t, r = sqrt(-2 log u[2j]), t = 2 pi w[2j + 1] / 2^32, "
    "indices counted from a multiple of 4",
    source="Box & Muller, A note on the generation of random normal deviates (Ann. Math. Statist. 29, 1958); " + SOURCE,
    # A relative error, since both polynomials keep it. With e = 2^-24: u carries 2 e, so log u 2 e / |log u|, at most
    # 2.9 e at u = 1/2, and 3.5 e of its own; the root halves the sum and adds e / 2; sine and cosine carry 2 e from
    # the angle and 1.5 e of their own; the product e / 2. Together 7.7 e; 9 e are promised.
    tolerance={"float32": (5.4e-7, 0.0), "float64": (0.0, 0.0)},
    draws=True,
)
