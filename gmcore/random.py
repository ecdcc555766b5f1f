"""Generators: a 64-bit seed and a 64-bit count of draws.

Every random operation takes one draw of the Philox stream (`gmkernels.rng`) and keeps (seed, draw) on its tape
node, so the backward pass, a checkpointed recomputation or another device regenerates the same noise.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from gmcore.errors import ArgumentError, GraphError, user_line
from gmcore.tensor import Tensor
from gmcore.watch import computed_tensor, derived, hosted, unrepeatable

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
        if seed is None:
            self._seed, self._draw = int.from_bytes(os.urandom(8), "little"), 0
        else:
            self.manual_seed(seed)

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
        unrepeatable(
            "it seeds a generator, or sets its state, and a repetition draws on: make the generator once, outside, and "
            "seed it between the calls"
        )
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
        log = _log.get()
        return self._take() if log is None else log.take(self)

    def _take(self) -> Tensor:
        return derived(Tensor(hosted(self._next_key)))

    def _next_key(self) -> np.ndarray:
        key = np.array((*self.state, 0), np.uint64)
        self._draw = (self._draw + 1) % _WORD
        return key

    def __repr__(self) -> str:
        return f"Generator(seed={self._seed}, draw={self._draw})"


class DrawLog:
    """The draws of a piece of code, from whatever generators, to be taken once more when it is run again.

    The generators are left alone then: what a checkpoint recomputes draws what it drew, and nobody else notices.
    """

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._outer: DrawLog | None = None
        self._left: Iterator[Tensor] | None = None

    def take(self, generator: Generator) -> Tensor:
        if self._left is None:
            # Nested: the code around may itself be running again.
            key = generator._take() if self._outer is None else self._outer.take(generator)
            self._keys.append(key)
            return key
        try:
            return next(self._left)
        except StopIteration:
            raise GraphError(
                f"run again, the code draws more random numbers than the {len(self._keys)} of the first time; it must "
                "do the same each time"
            ) from None

    @contextmanager
    def record(self) -> Iterator[None]:
        """Keep the draws of the block."""
        self._outer = _log.get()
        token = _log.set(self)
        try:
            yield
        finally:
            _log.reset(token)
            self._outer = None

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Hand out the same draws in the block, in the same order."""
        again = DrawLog()
        again._keys, again._left = self._keys, iter(self._keys)
        token = _log.set(again)
        try:
            yield
        finally:
            _log.reset(token)


_log: ContextVar[DrawLog | None] = ContextVar("gmcore.draw_log", default=None)


def shift_key(key: Tensor, elements: int) -> Tensor:
    """The key of the part of a draw that starts `elements` later.

    A call on a part of an array, with the key shifted to where the part begins in C order, draws the numbers that
    one call on the whole would have drawn there. Chunks and shards therefore agree with the undivided call.
    """
    return computed_tensor(np.add, key._data, np.array((0, 0, elements), np.uint64))


_default: ContextVar[Generator] = ContextVar("gmcore.generator")


def is_default(generator: object) -> bool:
    """Whether it is the generator of this context."""
    return generator is _default.get(None)


def default_generator() -> Generator:
    """The generator of this context, made from entropy at its first use; each thread has its own."""
    try:
        return _default.get()
    except LookupError:
        generator = Generator()
        _default.set(generator)
        return generator


def given_or_default(generator: Generator | None) -> Generator:
    """`generator`, or that of the context for None. Raises `ArgumentError` for anything else, such as a seed."""
    if generator is None:
        return default_generator()
    if not isinstance(generator, Generator):
        raise ArgumentError(f"expected a gmcore.Generator as generator, got {generator!r} (called at {user_line()})")
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
