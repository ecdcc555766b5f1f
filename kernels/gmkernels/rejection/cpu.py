"""Sampling by rejection in Numba: each element by itself, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.pool import block_kernel, jitable
from gmkernels.rejection.spec import (
    ATTEMPT_SHIFT,
    HAT_RAISED,
    INDEX_BITS,
    INVERSION_BELOW,
    MOST_ATTEMPTS,
    NEGLIGIBLE,
    REJECTION_BIT,
)
from gmkernels.rng.cpu import SHIFT, cos_sin_of, philox4x32, squared_radius_of, u32, u64, uniform_of
from gmkernels.special.cpu import _digamma_positive, _factor, _fraction, _series

Arrays = Sequence[np.ndarray]
Attrs = Mapping[str, Any]

_BLOCK = 512
_INDEX, _REJECTION, _ATTEMPT = u64(2**INDEX_BITS - 1), u64(REJECTION_BIT), u64(ATTEMPT_SHIFT)
_LARGE = 1e8
"""Shapes above which the series of the gamma distribution are too long."""


@jitable
def attempt_words(key, element, attempt):
    """The four words of an attempt at an element."""
    index = (key[2] + u64(element)) & _INDEX
    high = (index >> SHIFT) | (u64(attempt) << _ATTEMPT) | _REJECTION
    w0, w1, w2, w3 = philox4x32(index, high, key[1], key[1] >> SHIFT, key[0], key[0] >> SHIFT)
    return u32(w0), u32(w1), u32(w2), u32(w3)


@jitable
def wide_uniform(high, low):
    """A uniform of two words: (27 bits of one, 26 of the other, and a half) 2^-53, in (0, 1)."""
    return (np.float64(high >> u32(5)) * 67108864.0 + np.float64(low >> u32(6)) + 0.5) * 2.0**-53


# -- the gamma distribution -----------------------------------------------------------------------------------
@jitable
def _log_standard_gamma(a, key, element):
    if not 0.0 < a < math.inf:
        return math.nan
    d = (a + 1.0 if a < 1.0 else a) - 1.0 / 3.0
    slope = 1.0 / math.sqrt(9.0 * d)
    for t in range(MOST_ATTEMPTS):
        w0, w1, w2, w3 = attempt_words(key, element, t)
        cos, _ = cos_sin_of(w1, 0.0)
        z = np.sqrt(squared_radius_of(w0, 0.0)) * cos
        root = 1.0 + slope * z
        if root <= 0.0:
            continue
        v = root * root * root
        u = uniform_of(w2, 0.0)
        # The first test, a bound of the second, spares 19 logarithms in 20.
        if u < 1.0 - 0.0331 * z**4 or math.log(u) < 0.5 * z * z + d - d * v + d * math.log(v):
            log_x = math.log(d) + math.log(v)
            return log_x + math.log(uniform_of(w3, 0.0)) / a if a < 1.0 else log_x
    return math.nan


@block_kernel
def _standard_gamma(block, a, key, least, x, log):
    for i in range(block * _BLOCK, min(block * _BLOCK + _BLOCK, x.size)):
        log_x = _log_standard_gamma(np.float64(a[i]), key, i)
        if log or log_x != log_x:
            x[i] = log_x
        else:
            x[i] = max(math.exp(log_x), np.float64(least[0]))


def standard_gamma(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    a, x = inputs[0].reshape(-1), outputs[0].reshape(-1)
    least = np.array([np.finfo(x.dtype).tiny], x.dtype)
    _standard_gamma(-(-x.size // _BLOCK), a, inputs[1], least, x, int(attrs["log"]))


@jitable
def _log_slope(a, x, log_x):
    """d log x / da at a fixed P(a, x)."""
    if a > _LARGE:
        return (0.5 + 0.5 * a / x) / a
    # The series of P(a, x) / (x^a e^-x / Gamma(a + 1)), or the fraction of its complement.
    if x < a + 1.0:
        total, slope = _series(a, x)
        return -(total * (log_x - _digamma_positive(a + 1.0)) + slope) / a
    h, slope = _fraction(a, x)
    return h * (log_x - _digamma_positive(a)) + slope


@block_kernel
def _standard_gamma_grad(block, a, x, dx_da, log):
    for i in range(block * _BLOCK, min(block * _BLOCK + _BLOCK, x.size)):
        shape, sample = np.float64(a[i]), np.float64(x[i])
        if not (shape > 0.0 and (log or sample >= 0.0) and sample == sample):
            dx_da[i] = math.nan
        elif log:
            dx_da[i] = _log_slope(shape, math.exp(sample), sample)
        else:
            dx_da[i] = sample * _log_slope(shape, sample, math.log(sample))


def standard_gamma_grad(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    a, x, dx_da = (v.reshape(-1) for v in (*inputs, *outputs))
    _standard_gamma_grad(-(-x.size // _BLOCK), a, x, dx_da, int(attrs["log"]))


# -- counts -----------------------------------------------------------------------------------------------------
@jitable
def _poisson_number(rate, key, element):
    if not 0.0 <= rate < math.inf:
        return math.nan
    if rate < INVERSION_BELOW:
        w0, w1, _, _ = attempt_words(key, element, 0)
        u = wide_uniform(w0, w1)
        term = math.exp(-rate)
        total, j = term, 0
        while u > total and term > NEGLIGIBLE:
            j += 1
            term *= rate / j
            total += term
        return float(j)
    b = 0.931 + 2.53 * math.sqrt(rate)
    a = -0.059 + 0.02483 * b
    alpha, squeeze = HAT_RAISED * (1.1239 + 1.1328 / (b - 3.4)), (0.9277 - 3.6224 / (b - 2.0)) / HAT_RAISED
    for t in range(MOST_ATTEMPTS):
        w0, w1, w2, w3 = attempt_words(key, element, t)
        u, v = wide_uniform(w0, w1) - 0.5, wide_uniform(w2, w3)
        s = 0.5 - abs(u)
        k = np.floor((2.0 * a / s + b) * u + rate + 0.43)
        if s >= 0.07 and v <= squeeze:
            return k
        if k < 0 or (s < 0.013 and v > s):
            continue
        # rate^k e^-rate / k! is the factor of the incomplete gamma function.
        if v * alpha / (a / (s * s) + b) <= _factor(k, rate):
            return k
    return math.nan


@block_kernel
def _poisson(block, rate, key, k):
    for i in range(block * _BLOCK, min(block * _BLOCK + _BLOCK, k.size)):
        k[i] = _poisson_number(np.float64(rate[i]), key, i)


def poisson(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    k = outputs[0].reshape(-1)
    _poisson(-(-k.size // _BLOCK), inputs[0].reshape(-1), inputs[1], k)


@jitable
def _binomial_factor(k, n, p):
    """The probability of k but for a factor that does not depend on it: Poisson(k; n p) Poisson(n - k; n (1 - p))."""
    return _factor(k, n * p) * _factor(n - k, n * (1.0 - p))


@jitable
def _binomial_number(n, p, key, element):
    """For p <= 1/2."""
    if not (0.0 <= n < math.inf and n == np.floor(n) and p >= 0.0):
        return math.nan
    if n * p < INVERSION_BELOW:
        w0, w1, _, _ = attempt_words(key, element, 0)
        u = wide_uniform(w0, w1)
        term = math.exp(n * math.log1p(-p))
        total, j = term, 0
        while u > total and term > NEGLIGIBLE:
            j += 1
            term *= (n - j + 1.0) / j * (p / (1.0 - p))
            total += term
        return float(j)
    spread = math.sqrt(n * p * (1.0 - p))
    b = 1.15 + 2.53 * spread
    a = -0.0873 + 0.0248 * b + 0.01 * p
    alpha, squeeze = (2.83 + 5.1 / b) * spread, 0.92 - 4.2 / b
    most = _binomial_factor(np.floor((n + 1.0) * p), n, p)
    for t in range(MOST_ATTEMPTS):
        w0, w1, w2, w3 = attempt_words(key, element, t)
        u, v = wide_uniform(w0, w1) - 0.5, wide_uniform(w2, w3)
        s = 0.5 - abs(u)
        k = np.floor((2.0 * a / s + b) * u + n * p + 0.5)
        if s >= 0.07 and v <= squeeze:
            return k
        if 0 <= k <= n and v * alpha / (a / (s * s) + b) <= _binomial_factor(k, n, p) / most:
            return k
    return math.nan


@block_kernel
def _binomial(block, n, p, key, k):
    for i in range(block * _BLOCK, min(block * _BLOCK + _BLOCK, k.size)):
        count, probability = np.float64(n[i]), np.float64(p[i])
        if probability > 0.5:
            k[i] = count - _binomial_number(count, 1.0 - probability, key, i)
        else:
            k[i] = _binomial_number(count, probability, key, i)


def binomial(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    k = outputs[0].reshape(-1)
    _binomial(-(-k.size // _BLOCK), inputs[0].reshape(-1), inputs[1].reshape(-1), inputs[2], k)
