"""Generators: a 64-bit seed and a 64-bit count of draws.

Every random operation takes one draw of the Philox stream (`gmkernels.rng`) and keeps (seed, draw) on its tape
node, so the backward pass, a checkpointed recomputation or another device regenerates the same noise.
"""

from __future__ import annotations

import operator
import os
from contextvars import ContextVar

import numpy as np

from gmcore.errors import ArgumentError
from gmcore.tensor import Tensor

_WORD = 1 << 64


class Generator:
    """A random stream: (seed, number of draws taken). Equal states give equal numbers on every device.

    Parameters
    ----------
    seed : integer in 0..2**64 - 1; from the operating system's entropy if None.

    Raises
    ------
    ArgumentError : another seed.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.manual_seed(int.from_bytes(os.urandom(8), "little") if seed is None else seed)

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream of a seed at its first draw.

        Parameters
        ----------
        seed : integer in 0..2**64 - 1.

        Returns
        -------
        The generator itself.

        Raises
        ------
        ArgumentError : another seed.
        """
        try:
            seed = operator.index(seed)
        except TypeError:
            raise ArgumentError(f"a seed is an integer, got {seed!r}") from None
        if not 0 <= seed < _WORD:
            raise ArgumentError(f"a seed is an integer in 0..2**64 - 1, got {seed}")
        self._seed, self._draw = seed, 0
        return self

    @property
    def seed(self) -> int:
        return self._seed

    @property
    def state(self) -> tuple[int, int]:
        """(seed, draws taken); assign it back to continue the stream from there."""
        return self._seed, self._draw

    @state.setter
    def state(self, state: tuple[int, int]) -> None:
        seed, draw = state
        self.manual_seed(seed)
        self._draw = operator.index(draw) % _WORD

    def draw(self) -> Tensor:
        """Take one draw: the key of a random operation, uint64 (seed, draw, index offset 0)."""
        key = np.array((self._seed, self._draw, 0), np.uint64)
        self._draw = (self._draw + 1) % _WORD
        return Tensor(key)

    def __repr__(self) -> str:
        return f"Generator(seed={self._seed}, draw={self._draw})"


def shift_key(key: Tensor, elements: int) -> Tensor:
    """The key of the part of a draw that starts `elements` later.

    A call on a part of an array, with the key shifted to where the part begins in C order, draws the numbers that
    one call on the whole would have drawn there. Chunks and shards therefore agree with the undivided call.
    """
    return Tensor(key._data + np.array((0, 0, elements), np.uint64))


_default: ContextVar[Generator] = ContextVar("gmcore.generator")


def default_generator() -> Generator:
    """The generator of this context, made from entropy at its first use; each thread has its own."""
    try:
        return _default.get()
    except LookupError:
        generator = Generator()
        _default.set(generator)
        return generator


def manual_seed(seed: int) -> Generator:
    """Start the generator of this context anew.

    Parameters
    ----------
    seed : integer in 0..2**64 - 1.

    Returns
    -------
    The generator, a new `Generator`.

    Raises
    ------
    ArgumentError : another seed.
    """
    generator = Generator(seed)
    _default.set(generator)
    return generator
