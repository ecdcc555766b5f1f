"""One random stream for all backends: Philox4x32-10 words, and uniforms and normals made of them.

A key is a uint64 array (seed, draw, offset). Element i of a draw is lane (offset + i) mod 4 of the Philox
block with counter ((offset + i) div 4, draw) and key seed, so it does not depend on how, where or in what
pieces the draw is evaluated: a piece that starts at element k of the whole is drawn with offset k.

Words and uniforms are the same bits on all backends, and normals too where fused multiply-add is off. float64
evaluates the same words in float64: a float32 normal is within 5.4e-7 of it, relatively: 9 roundings, of
which `spec.NORMAL` counts 7.7.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gmkernels.registry import KernelError, register, run
from gmkernels.rng import reference, spec

__all__ = ["as_key", "key_array", "normal", "random_words", "uniform"]

for _spec in (spec.RANDOM_WORDS, spec.UNIFORM, spec.NORMAL):
    register(_spec, "reference", getattr(reference, _spec.name), overhead=3e-4, efficiency=0.02)
    register(_spec, "cpu", f"gmkernels.rng.cpu:{_spec.name}")
    register(_spec, "cuda", f"gmkernels.rng.cuda:{_spec.name}", efficiency=0.9)
    register(_spec, "triton", f"gmkernels.rng.triton:{_spec.name}", efficiency=0.9)


def key_array(seed: int, draw: int = 0, offset: int = 0) -> np.ndarray:
    """The key of a draw: uint64 array (seed, draw, offset).

    Parameters
    ----------
    seed : of the stream.
    draw : number of the draw in the stream.
    offset : number of the first element in the draw, for a part of it.

    Returns
    -------
    uint64 array of 3 elements.

    Raises
    ------
    KernelError : a number that is not in [0, 2^64).
    """
    for name, value in (("seed", seed), ("draw", draw), ("offset", offset)):
        if not 0 <= value < 2**64:
            raise KernelError(f"random key: {name} must be in [0, 2^64), got {value}")
    return np.array([seed, draw, offset], np.uint64)


def as_key(key: Any) -> Any:
    """A key given as an array, or as a tuple (seed, draw) or (seed, draw, offset), as an array."""
    return key_array(*key) if isinstance(key, tuple) else key


def random_words(shape: tuple[int, ...], *, key: Any, backend: str | None = None) -> Any:
    """Random 32-bit words.

    Parameters
    ----------
    shape : of the result.
    key : uint64 array (seed, draw, offset), or a tuple (seed, draw[, offset]).
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    uint32 array of that shape; all words are equally likely.

    Notes
    -----
    Philox4x32-10 of Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).

    Raises
    ------
    KernelError : a key or a shape of another form.
    """
    return run(spec.RANDOM_WORDS, (as_key(key),), {"shape": shape}, backend=backend)[0]


def uniform(shape: tuple[int, ...], *, key: Any, dtype: str = "float32", backend: str | None = None) -> Any:
    """Uniform numbers in (0, 1]: u = w 2^-32 + 2^-33 of the random words w.

    Parameters
    ----------
    shape : of the result.
    key : uint64 array (seed, draw, offset), or a tuple (seed, draw[, offset]).
    dtype : "float32" or "float64"; both take one word an element.
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    Array of `shape` and `dtype`, the same bits on all backends.

    Raises
    ------
    KernelError : a key, a shape or a dtype of another form.
    """
    return run(spec.UNIFORM, (as_key(key),), {"shape": shape, "dtype": dtype}, backend=backend)[0]


def normal(shape: tuple[int, ...], *, key: Any, dtype: str = "float32", backend: str | None = None) -> Any:
    """Standard normal numbers, |z| <= 6.77.

    Parameters
    ----------
    shape : of the result.
    key : uint64 array (seed, draw, offset), or a tuple (seed, draw[, offset]).
    dtype : "float32" or "float64"; both take one word an element.
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    Array of `shape` and `dtype`.

    Raises
    ------
    KernelError : a key, a shape or a dtype of another form.

    Notes
    -----
    Box & Muller, A note on the generation of random normal deviates (1958), on the words of a group of four:
    elements 0 and 1 are r cos t and r sin t, with r = sqrt(-2 log u) from word 0 and t = 2 pi w / 2^32 from
    word 1; elements 2 and 3 likewise from words 2 and 3.
    """
    return run(spec.NORMAL, (as_key(key),), {"shape": shape, "dtype": dtype}, backend=backend)[0]
