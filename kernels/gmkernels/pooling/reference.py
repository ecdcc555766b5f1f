"""Pooling in NumPy: all windows at once, one element (i, j) of them after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.arrays import namespace
from gmkernels.pooling.spec import Pair, Windows, _windows
from gmkernels.registry import Array

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]


def _elements(w: Windows, size: Pair, library: Any) -> Iterator[tuple[Array, Array, Array]]:
    """For element (i, j) of every window: its row (OH, 1), its column (1, OW), and whether both are in the plane.

    A row or column that is not in the plane is the nearest that is.
    """
    rows, columns = (library.arange(m) * s - p for m, s, p in zip(w.number(size), w.stride, w.padding))
    for i in range(w.kernel[0]):
        for j in range(w.kernel[1]):
            h, q = (rows + i * w.dilation[0])[:, None], (columns + j * w.dilation[1])[None]
            inside = (h >= 0) & (h < size[0]) & (q >= 0) & (q < size[1])
            yield h.clip(0, size[0] - 1), q.clip(0, size[1] - 1), inside


def max_pool2d(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (x,), (y, indices) = inputs, outputs
    height, width = x.shape[2:]
    y.fill(-np.inf)
    indices.fill(-1)
    for h, q, inside in _elements(_windows(dict(attrs)), (height, width), namespace(x)):
        here = x[..., h, q]
        better = inside & ((here > y) | (np.isnan(here) & ~np.isnan(y)) | (indices < 0))
        np.copyto(y, here, where=better)
        np.copyto(indices, h * width + q, where=better)


def plane_gather(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (x, indices), (y,) = inputs, outputs
    planes = x.reshape(*x.shape[:2], -1) if x.size else namespace(x).zeros((*x.shape[:2], 1), x.dtype)
    inside = (indices >= 0) & (indices < x.shape[2] * x.shape[3])
    places = np.where(inside, indices, 0).reshape(*y.shape[:2], y.shape[2] * y.shape[3])
    y[...] = np.where(inside, np.take_along_axis(planes, places, -1).reshape(y.shape), np.nan)


def plane_scatter(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (x, indices), (y,) = inputs, outputs
    y.fill(0)
    if not (x.size and y.size):
        return
    library, (planes, size) = namespace(y), (y.shape[0] * y.shape[1], y.shape[2] * y.shape[3])
    inside = (indices >= 0) & (indices < size)
    starts = size * library.arange(planes)[:, None]  # of the planes in y
    places = starts + np.where(inside, indices, 0).reshape(planes, -1)
    library.add.at(y.reshape(-1), places.reshape(-1), np.where(inside, x, 0).reshape(-1))


def _divisors(w: Windows, size: Pair, attrs: Attrs, of: Array) -> Any:
    """What the sum of each window is divided by, (OH, OW), in the library and dtype of an array."""
    library = namespace(of)
    if attrs["divisor"] is not None:
        return of.dtype.type(attrs["divisor"])
    if not attrs["count_include_pad"]:
        return sum(inside.astype(of.dtype) for _, _, inside in _elements(w, size, library))
    lengths = []
    for m, s, p, k, n in zip(w.number(size), w.stride, w.padding, w.kernel, size):
        start = library.arange(m) * s - p
        lengths.append(np.minimum(start + k, n + p) - start)
    return np.multiply.outer(*lengths).astype(of.dtype)


def avg_pool2d(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (x,), (y,) = inputs, outputs
    w, (height, width) = _windows(dict(attrs)), x.shape[2:]
    y.fill(0)
    for h, q, inside in _elements(w, (height, width), namespace(x)):
        y += np.where(inside, x[..., h, q], 0)
    y /= _divisors(w, (height, width), attrs, y)


def avg_pool2d_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (g,), (d_x,) = inputs, outputs
    size = attrs["size"]
    w = _windows(dict(attrs))
    d_x.fill(0)
    if not d_x.size:
        return
    shares = g / _divisors(w, size, attrs, g)
    for h, q, inside in _elements(w, size, library := namespace(g)):
        library.add.at(d_x, (..., h, q), np.where(inside, shares, 0))
