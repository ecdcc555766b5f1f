"""Minibatches and binarisation, both functions of keys alone.

Which images an epoch's batch b holds depends on (seed, epoch, b); which pixels of an image are 1 depends on
(seed, epoch, image). Neither depends on what was drawn before, so a run resumes at any (epoch, batch), and an
image comes out the same in batches of any size and order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmcore.data.dataset import check_support
from gmcore.errors import ArgumentError, unknown_name

Uniform = Callable[[int, int, int, int], NDArray[np.float32]]

MODES = ("none", "static", "dynamic")


def binarize(
    images: NDArray[np.float32],
    indices: NDArray[np.integer[Any]],
    *,
    seed: int,
    epoch: int,
    mode: str,
    uniform: Uniform,
) -> NDArray[np.float32]:
    """Take the images at `indices`, with each pixel set to 1 with the probability of its grey level.

    Pixel j of image i becomes 1 if u <= p and 0 otherwise, where p is its grey level and u in (0, 1] is
    element ``i * pixels + j`` of the uniform stream: p = 0 is never 1, and p = 1 always.

    Parameters
    ----------
    images : (n, pixels) float array
        A whole split, grey levels in [0, 1].
    indices : (batch,) integer array
        Rows of `images`, each in [0, n).
    seed : int
        Key of the stream. Give data a seed of its own: the stream of a model with this seed is the same one.
    epoch : int
        From 1. Matters only to the dynamic mode.
    mode : {'none', 'static', 'dynamic'}
        ``none``: the images as they are. ``static``: draw 0, the same in all epochs. ``dynamic``: draw
        `epoch`, anew in each.
    uniform : callable
        ``uniform(seed, draw, start, count)`` gives elements start to start + count of the stream of
        (seed, draw): float32 in (0, 1].

    Returns
    -------
    (batch, pixels) array
        Of 0 and 1 in float32, or for ``none`` a copy of the rows.

    Raises
    ------
    ArgumentError
        If `epoch` is not positive in the dynamic mode, or `indices` are not integers in [0, n).
    DataError
        If a grey level is not in [0, 1].
    UnknownNameError
        If `mode` is none of the three.

    Notes
    -----
    Binarising MNIST anew in each epoch is due to R. Salakhutdinov and I. Murray, "On the quantitative
    analysis of deep belief networks", ICML 2008. Bounds on static, dynamic and the published fixed
    binarisation are not comparable with each other.
    """
    if mode not in MODES:
        raise unknown_name("binarisation", mode, MODES)
    indices = np.asarray(indices)
    n, pixels = images.shape
    if indices.ndim != 1 or indices.dtype.kind not in "iu" or np.any((indices < 0) | (indices >= n)):
        raise ArgumentError(f"expected a vector of integers in [0, {n}) as indices, found {indices!r}")
    grey: NDArray[np.float32] = images[indices]
    if mode == "none":
        return grey
    if mode == "dynamic" and epoch < 1:
        raise ArgumentError(f"epochs count from 1 (draw 0 is the static binarisation), found {epoch}")
    check_support(grey, "unit-interval")
    draw = epoch if mode == "dynamic" else 0
    binary = np.empty(grey.shape, np.float32)
    # One call for each run of consecutive images: one in all where the order is that of the file.
    breaks = np.flatnonzero(np.diff(indices.astype(np.int64)) != 1) + 1
    for rows in np.split(np.arange(len(indices)), breaks):
        if rows.size:
            u = uniform(seed, draw, int(indices[rows[0]]) * pixels, rows.size * pixels)
            binary[rows] = u.reshape(rows.size, pixels) <= grey[rows]
    return binary


def batches(n: int, batch_size: int, seed: int, epoch: int, drop_last: bool = False) -> Iterator[NDArray[np.int64]]:
    """The minibatches of an epoch, as indices in an order keyed by (seed, epoch).

    The order sorts n raw 64-bit words of ``numpy.random.Philox(key=(seed, epoch))``, whose stream NumPy
    keeps the same in all versions (it does not that of ``Generator.permutation``). To resume at batch b:
    ``itertools.islice(batches(n, batch_size, seed, epoch), b, None)``.

    Parameters
    ----------
    n : int
        Number of images, positive.
    batch_size : int
        Positive. The last batch is smaller if this does not divide n.
    seed, epoch : int
        In [0, 2**64).
    drop_last : bool
        Leave out a last batch that is smaller.

    Returns
    -------
    iterator of int64 arrays
        Together they hold each index in [0, n) once, short of what is dropped.

    Raises
    ------
    ArgumentError
        If an argument is out of its range; at the call, not at the first batch.
    """
    if n < 1 or batch_size < 1:
        raise ArgumentError(f"n and batch_size must be positive, found {n} and {batch_size}")
    if not (0 <= seed < 2**64 and 0 <= epoch < 2**64):
        raise ArgumentError(f"seed and epoch must be in [0, 2**64), found {seed} and {epoch}")
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
    order = np.argsort(words, kind="stable")
    stop = n - n % batch_size if drop_last else n
    return (order[start : start + batch_size] for start in range(0, stop, batch_size))
