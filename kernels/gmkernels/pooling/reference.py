"""Pooling in NumPy: all windows at once, one element (i, j) of them after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.pooling.spec import Pair, Windows, _windows
from gmkernels.registry import Array

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]


def _elements(w: Windows, size: Pair) -> Iterator[tuple[Array, Array, Array]]:
    """For element (i, j) of every window: its row (OH, 1), its column (1, OW), and whether both are in the plane."""
    rows, columns = (np.arange(m) * s - p for m, s, p in zip(w.number(size), w.stride, w.padding))
    for i in range(w.kernel[0]):
        for j in range(w.kernel[1]):
            h, q = (rows + i * w.dilation[0])[:, None], (columns + j * w.dilation[1])[None]
            yield h, q, (h >= 0) & (h < size[0]) & (q >= 0) & (q < size[1])


def max_pool2d(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (x,), (y, indices) = inputs, outputs
    height, width = x.shape[2:]
    y.fill(-np.inf)
    indices.fill(-1)
    for h, q, inside in _elements(_windows(dict(attrs)), (height, width)):
        here = x[..., h.clip(0, height - 1), q.clip(0, width - 1)]
        better = inside & ((here > y) | (np.isnan(here) & ~np.isnan(y)) | (indices < 0))
        np.copyto(y, here, where=better)
        np.copyto(indices, h * width + q, where=better)


def plane_gather(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (x, indices), (y,) = inputs, outputs
    planes = x.reshape(*x.shape[:2], -1) if x.size else np.zeros((*x.shape[:2], 1), x.dtype)
    inside = (indices >= 0) & (indices < x.shape[2] * x.shape[3])
    places = np.where(inside, indices, 0).reshape(*y.shape[:2], y.shape[2] * y.shape[3])
    y[...] = np.where(inside, np.take_along_axis(planes, places, -1).reshape(y.shape), np.nan)


def plane_scatter(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (x, indices), (y,) = inputs, outputs
    y.fill(0)
    n, c, p, q = np.nonzero((indices >= 0) & (indices < y.shape[2] * y.shape[3]))
    places = indices[n, c, p, q]
    np.add.at(y, (n, c, places // y.shape[3], places % y.shape[3]), x[n, c, p, q])


def _divisors(w: Windows, size: Pair, attrs: Attrs) -> Any:
    """What the sum of each window is divided by, (OH, OW)."""
    if attrs["divisor"] is not None:
        return float(attrs["divisor"])
    if not attrs["count_include_pad"]:
        return sum(inside.astype(float) for _, _, inside in _elements(w, size))
    lengths = []
    for m, s, p, k, n in zip(w.number(size), w.stride, w.padding, w.kernel, size):
        start = np.arange(m) * s - p
        lengths.append(np.minimum(start + k, n + p) - start)
    return np.multiply.outer(*lengths).astype(float)


def avg_pool2d(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (x,), (y,) = inputs, outputs
    w, (height, width) = _windows(dict(attrs)), x.shape[2:]
    y.fill(0)
    for h, q, inside in _elements(w, (height, width)):
        y += np.where(inside, x[..., h.clip(0, height - 1), q.clip(0, width - 1)], 0)
    y /= np.asarray(_divisors(w, (height, width), attrs), y.dtype)


def avg_pool2d_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (g,), (d_x,) = inputs, outputs
    size = attrs["size"]
    w = _windows(dict(attrs))
    d_x.fill(0)
    shares = g / np.asarray(_divisors(w, size, attrs), g.dtype)
    for h, q, inside in _elements(w, size):
        p, r = np.nonzero(inside)
        np.add.at(d_x, (..., h[p, 0], q[0, r]), shares[..., p, r])  # type: ignore[arg-type]
