"""Sampling by rejection in NumPy: attempt after attempt, for all the elements that are left at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.rejection.spec import (
    ATTEMPT_SHIFT,
    HAT_RAISED,
    INDEX_BITS,
    INVERSION_BELOW,
    MOST_ATTEMPTS,
    NEGLIGIBLE,
    REJECTION_BIT,
)
from gmkernels.rng.reference import HALF, U32, normals, philox4x32, uniforms
from gmkernels.special.reference import _elementwise, _polygamma, _series

Arrays = Sequence[np.ndarray]
Attrs = Mapping[str, Any]

_lgamma = np.vectorize(math.lgamma, otypes=[float])


def attempt_words(key: np.ndarray, elements: np.ndarray, attempt: int) -> np.ndarray:
    """The four words of an attempt at each of some elements: uint32 (elements, 4)."""
    seed, draw, offset = (int(k) for k in key)
    index = (elements.astype(np.uint64) + np.uint64(offset)) & np.uint64(2**INDEX_BITS - 1)
    high = (index >> HALF) | np.uint64(attempt << ATTEMPT_SHIFT | REJECTION_BIT)
    counter = (index & U32, high, np.uint64(draw & 0xFFFFFFFF), np.uint64(draw >> 32))
    return np.stack(philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)), axis=-1)


def wide_uniforms(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Uniforms of two words: (27 bits of one, 26 of the other, and a half) 2^-53, in (0, 1)."""
    return ((high >> np.uint32(5)) * 67108864.0 + (low >> np.uint32(6)) + 0.5) * 2.0**-53


def _until_accepted(
    key: np.ndarray, x: np.ndarray, left: np.ndarray, attempt: Callable[[np.ndarray, np.ndarray], Any]
) -> None:
    """Write an accepted value at each place in `left`: ``attempt(places, words) -> values, accepted``."""
    for t in range(MOST_ATTEMPTS):
        if not left.size:
            break
        values, accepted = attempt(left, attempt_words(key, left, t))
        x[left[accepted]] = values[accepted]
        left = left[~accepted]


# -- the gamma distribution -----------------------------------------------------------------------------------
def standard_gamma(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    a, x = inputs[0].reshape(-1).astype(np.float64), outputs[0].reshape(-1)
    log_x = np.full(x.shape, np.nan)

    def attempt(at: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        d = np.where(a[at] < 1, a[at] + 1, a[at]) - 1 / 3
        z = normals(words, np.float64)[:, 0]
        u, boost = uniforms(words[:, 2:], np.float64).T
        v = (1 + z / np.sqrt(9 * d)) ** 3
        with np.errstate(invalid="ignore", divide="ignore"):
            accepted = (v > 0) & (np.log(u) < z * z / 2 + d - d * v + d * np.log(v))
            return np.log(d) + np.log(v) + np.where(a[at] < 1, np.log(boost) / a[at], 0), accepted

    _until_accepted(inputs[1], log_x, np.flatnonzero((a > 0) & (a < np.inf)), attempt)
    x[...] = log_x if attrs["log"] else np.maximum(np.exp(log_x), np.finfo(x.dtype).tiny)


def _sample_slope(a: float, sample: float, log: bool) -> float:
    if not (a > 0 and (log or sample >= 0) and not math.isnan(sample)):
        return math.nan
    x, log_x = (math.exp(sample), sample) if log else (sample, math.log(sample))
    # P(a, x) is the sum times x^a e^-x / Gamma(a + 1), and x times its density a times that.
    _, total, slope = _series(a, x) if x > 0 else (0.0, 1.0, 0.0)
    log_slope = -(total * (log_x - _polygamma(a + 1, 0)) + slope) / a
    return log_slope if log else log_slope * x


standard_gamma_grad = _elementwise(_sample_slope)


# -- counts -----------------------------------------------------------------------------------------------------
def _invert(key: np.ndarray, k: np.ndarray, left: np.ndarray, first: np.ndarray, ratio: Callable[..., Any]) -> None:
    """The least k whose distribution function reaches a uniform.

    The probability of 0 is `first`, and ``ratio(places, j)`` that of j over that of j - 1.
    """
    words = attempt_words(key, left, 0)
    u = wide_uniforms(words[:, 0], words[:, 1])
    term, total, j = first, first.copy(), 0
    k[left] = 0.0
    while left.size:
        more = (u > total) & (term > NEGLIGIBLE)
        left, u, term, total = left[more], u[more], term[more], total[more]
        j += 1
        term = term * ratio(left, j)
        total = total + term
        k[left] = j


def poisson_hat(mean: Any) -> tuple[Any, Any, Any, Any]:
    """a, b and alpha of the hat alpha / (a / s^2 + b) over the probabilities, and what v squeezes below it."""
    b = 0.931 + 2.53 * np.sqrt(mean)
    alpha, squeeze = 1.1239 + 1.1328 / (b - 3.4), 0.9277 - 3.6224 / (b - 2)
    return -0.059 + 0.02483 * b, b, alpha * HAT_RAISED, squeeze / HAT_RAISED


def poisson(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    rate, k = inputs[0].reshape(-1).astype(np.float64), np.full(inputs[0].size, np.nan)
    small = np.flatnonzero((rate >= 0) & (rate < INVERSION_BELOW))
    _invert(inputs[1], k, small, np.exp(-rate[small]), lambda at, j: rate[at] / j)

    def attempt(at: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = rate[at]
        a, b, alpha, squeeze = poisson_hat(mean)
        u, v = wide_uniforms(words[:, 0], words[:, 1]) - 0.5, wide_uniforms(words[:, 2], words[:, 3])
        s = 0.5 - np.abs(u)
        proposed = np.floor((2 * a / s + b) * u + mean + 0.43)
        n = proposed.clip(0)
        fits = np.log(v * alpha / (a / (s * s) + b)) <= n * np.log(mean) - mean - _lgamma(n + 1)
        return proposed, ((s >= 0.07) & (v <= squeeze)) | ((proposed >= 0) & ~((s < 0.013) & (v > s)) & fits)

    _until_accepted(inputs[1], k, np.flatnonzero((rate >= INVERSION_BELOW) & (rate < np.inf)), attempt)
    outputs[0].reshape(-1)[...] = k


def binomial_hat(n: Any, p: Any) -> tuple[Any, Any, Any, Any]:
    """As `poisson_hat`, over the probabilities divided by that of the mode."""
    spread = np.sqrt(n * p * (1 - p))
    b = 1.15 + 2.53 * spread
    return -0.0873 + 0.0248 * b + 0.01 * p, b, (2.83 + 5.1 / b) * spread, 0.92 - 4.2 / b


def binomial(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    n, given = (x.reshape(-1).astype(np.float64) for x in inputs[:2])
    k = np.full(n.shape, np.nan)
    p = np.minimum(given, 1 - given)
    with np.errstate(invalid="ignore"):
        valid = (n >= 0) & (n < np.inf) & (n == np.floor(n)) & (p >= 0)
        small = np.flatnonzero(valid & (n * p < INVERSION_BELOW))
        large = np.flatnonzero(valid & (n * p >= INVERSION_BELOW))
    none = np.exp(n[small] * np.log1p(-p[small]))
    _invert(inputs[2], k, small, none, lambda at, j: (n[at] - j + 1) / j * (p[at] / (1 - p[at])))

    def attempt(at: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        m, mean = n[at], n[at] * p[at]
        a, b, alpha, squeeze = binomial_hat(m, p[at])
        u, v = wide_uniforms(words[:, 0], words[:, 1]) - 0.5, wide_uniforms(words[:, 2], words[:, 3])
        s = 0.5 - np.abs(u)
        proposed = np.floor((2 * a / s + b) * u + mean + 0.5)
        mode, j = np.floor((m + 1) * p[at]), proposed.clip(0, m)
        log_ratio = (_lgamma(mode + 1) + _lgamma(m - mode + 1) - _lgamma(j + 1) - _lgamma(m - j + 1)
                     + (j - mode) * np.log(p[at] / (1 - p[at])))  # fmt: skip
        fits = np.log(v * alpha / (a / (s * s) + b)) <= log_ratio
        return proposed, ((s >= 0.07) & (v <= squeeze)) | ((proposed >= 0) & (proposed <= m) & fits)

    _until_accepted(inputs[2], k, large, attempt)
    outputs[0].reshape(-1)[...] = np.where(given > 0.5, n - k, k)
