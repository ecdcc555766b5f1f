"""Sampling in Numba: tiles of the random stream, used while they are in the first-level cache."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.elementary import exp, fma, select, sigmoid
from gmkernels.pool import block_kernel, jitable, long_loop, scratch
from gmkernels.rng.cpu import BLOCK, SCRATCH, TILE, interleave, normal_tile, word_tile
from gmkernels.sampling.spec import CHUNK, chunks, kept_below
from gmkernels.vectors import fill_row, sum_of_row

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

LOG_2PI = math.log(2 * math.pi)


# ---------------------------------------------------------------------------------------------------------
# gaussian_sample
# ---------------------------------------------------------------------------------------------------------
# A row of z is cut into pieces of at most CHUNK elements. A block is one piece of a long row, or several
# short rows; short rows share tiles.


@jitable
def _sample(mu, logvar, eps, z, kl_terms):
    """z = mu + sigma eps; eps -> logvar + eps^2, the terms of log q."""
    long_loop()
    half, one = z.dtype.type(0.5), z.dtype.type(1)
    for i in range(z.size):
        m, v, e = mu[i], logvar[i], eps[i]
        sigma = exp(half * v)
        z[i] = fma(sigma, e, m)
        eps[i] = fma(e, e, v)
        kl_terms[i] = fma(sigma, sigma, fma(m, m, -one)) - v


@jitable
def _sum_rows(terms, width, factor, constant, sums):
    """factor (sum + constant) of each row of `width` terms."""
    for r in range(sums.size):
        sums[r] = factor * (sum_of_row(terms, r * width, width) + constant)


@block_kernel
def _gaussian_sample(block, mu, logvar, key, z, kl, log_q, width, rows, pieces, per_block):
    """`pieces` pieces of each row of z; `kl` and `log_q` take one sum for each piece."""
    words, kl_terms = scratch(SCRATCH, np.uint32), scratch(TILE, z.dtype)
    lanes, noise = scratch(SCRATCH, z.dtype), scratch(SCRATCH, z.dtype)
    piece, end = block * per_block, min(block * per_block + per_block, log_q.size)
    while piece < end:
        row = piece // pieces  # of z; its parameters are those of row % rows
        begin = piece % pieces * CHUNK
        length = min(width - begin, CHUNK)
        # Whole rows of one sample that fit into a tile; or, of a longer piece, tile after tile.
        together = max(1, min(TILE // max(width, 1), end - piece, rows - row % rows))
        total = together * length
        source, target = row % rows * width + begin, row * width + begin
        kl_total, log_q_total = 0.0, 0.0
        half, constant = z.dtype.type(0.5), length * LOG_2PI
        for start in range(0, max(total, 1), TILE):
            n = min(TILE, total - start)
            m, v = mu[source + start : source + start + n], logvar[source + start : source + start + n]
            sample = z[target + start : target + start + n]
            lane = normal_tile(key, target + start, n, words, lanes, noise, (m, v), (sample,))
            eps = noise[lane : lane + n]
            _sample(m, v, eps, sample, kl_terms)
            if together == 1:
                kl_total += sum_of_row(kl_terms, 0, n)
                log_q_total += sum_of_row(eps, 0, n)
        if together == 1:
            if row < rows:  # the first sample
                kl[piece] = half * kl_total
            log_q[piece] = -half * (log_q_total + constant)
        else:
            if row < rows:
                _sum_rows(kl_terms, length, half, 0.0, kl[piece : piece + together])
            _sum_rows(eps, length, -half, constant, log_q[piece : piece + together])
        piece += together


@block_kernel
def _add_pieces(block, parts, sums, pieces, per_block):
    for row in range(block * per_block, min(block * per_block + per_block, sums.size)):
        total = 0.0
        for i in range(row * pieces, row * pieces + pieces):
            total += parts[i]
        sums[row] = total


def gaussian_sample(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    mu, logvar, key = inputs
    z, kl, log_q = outputs
    if log_q.size:
        width = mu.shape[-1]
        pieces = chunks(width)
        per_block = max(1, CHUNK // max(width, 1))
        kl_parts, log_q_parts = (kl, log_q) if pieces == 1 else workspace
        blocks = -(-log_q_parts.size // per_block)
        _gaussian_sample(blocks, mu, logvar, key, z, kl_parts, log_q_parts, width, kl.size, pieces, per_block)
        if pieces > 1:
            for parts, sums in ((kl_parts, kl), (log_q_parts, log_q)):
                per_block = max(1, CHUNK // pieces)
                _add_pieces(-(-sums.size // per_block), parts, sums, pieces, per_block)


# ---------------------------------------------------------------------------------------------------------
# gaussian_sample_backward
# ---------------------------------------------------------------------------------------------------------


@jitable
def _spread(g_kl, g_log_q, start, width, n, kl, log_q):
    """The values of its row for each of the `n` elements from `start` on."""
    row = start // width
    i, stop = 0, (row + 1) * width - start
    while i < n:
        fill_row(kl, i, min(stop, n), g_kl[row])
        fill_row(log_q, i, min(stop, n), g_log_q[row])
        row, i, stop = row + 1, stop, stop + width


@jitable
def _add(x, total):
    for i in range(x.size):
        total[i] += x[i]


@jitable
def _one_sample(g_z, g_log_q, g_kl, eps, mu, logvar, d_mu, d_logvar):
    long_loop()
    one, half = mu.dtype.type(1), mu.dtype.type(0.5)
    for i in range(g_z.size):
        g, k = g_z[i], g_kl[i]
        sigma = exp(half * logvar[i])
        d_mu[i] = fma(k, mu[i], g)
        d_logvar[i] = half * fma(k, fma(sigma, sigma, -one), fma(g, sigma * eps[i], -g_log_q[i]))


@jitable
def standard_deviations(logvar, sigma):
    long_loop()
    half = logvar.dtype.type(0.5)
    for i in range(logvar.size):
        sigma[i] = exp(half * logvar[i])


@jitable
def _through_noise(g_z, g_log_q, sigma, eps):
    """eps -> g_z sigma eps - g_log_q."""
    long_loop()
    for i in range(g_z.size):
        eps[i] = g_z[i] * (sigma[i] * eps[i]) - g_log_q[i]


@jitable
def _finish(through_z, through_noise, g_kl, mu, sigma, d_mu, d_logvar):
    one, half = mu.dtype.type(1), mu.dtype.type(0.5)
    for i in range(mu.size):
        d_mu[i] = through_z[i] + g_kl[i] * mu[i]
    for i in range(mu.size):
        d_logvar[i] = half * (through_noise[i] + g_kl[i] * (sigma[i] * sigma[i] - one))


@block_kernel
def _gaussian_sample_backward(block, g_z, g_kl, g_log_q, mu, logvar, key, d_mu, d_logvar, width, samples, per_block):
    words, sigma = scratch(SCRATCH, np.uint32), scratch(TILE, mu.dtype)
    lanes, noise = scratch(SCRATCH, mu.dtype), scratch(SCRATCH, mu.dtype)
    g_kl_tile, g_log_q_tile = scratch(SCRATCH, mu.dtype), scratch(SCRATCH, mu.dtype)
    # float64: there may be thousands of samples
    sum_z, sum_noise = scratch(SCRATCH, np.float64), scratch(SCRATCH, np.float64)
    rows = mu.size // width
    end = min(block * per_block + per_block, mu.size)
    for start in range(block * per_block, end, TILE):
        n = min(TILE, end - start)
        k, q = g_kl_tile[:n], g_log_q_tile[:n]
        m, v = mu[start : start + n], logvar[start : start + n]
        d_m, d_v = d_mu[start : start + n], d_logvar[start : start + n]
        if samples > 1:
            standard_deviations(v, sigma)
            fill_row(sum_z, 0, n, 0.0)
            fill_row(sum_noise, 0, n, 0.0)
        for sample in range(samples):
            first = sample * mu.size + start
            g = g_z[first : first + n]
            lane = normal_tile(key, first, n, words, lanes, noise, (g, m, v), (d_m, d_v))
            eps = noise[lane : lane + n]
            _spread(g_kl, g_log_q[sample * rows : (sample + 1) * rows], start, width, n, k, q)
            if samples == 1:
                _one_sample(g, q, k, eps, m, v, d_m, d_v)
            else:
                _through_noise(g, q, sigma, eps)
                _add(g, sum_z)
                _add(eps, sum_noise)
        if samples > 1:
            _finish(sum_z, sum_noise, k, m, sigma, d_m, d_v)


def gaussian_sample_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_z, g_kl, g_log_q, mu, logvar, key = inputs
    d_mu, d_logvar = outputs
    if mu.size:
        samples = 1 if attrs["samples"] is None else attrs["samples"]
        per_block = max(256, BLOCK // samples)
        _gaussian_sample_backward(
            -(-mu.size // per_block),
            g_z, g_kl, g_log_q, mu, logvar, key, d_mu, d_logvar, mu.shape[-1], samples, per_block,
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# bernoulli_sample, bernoulli_sample_logits
# ---------------------------------------------------------------------------------------------------------


@jitable
def _compare(probs, words, sample):
    """word < floor(p 2^32), as word + 1 <= p 2^32 in float64, where both sides are exact."""
    real = sample.dtype.type
    zero, one, nan = real(0), real(1), real(np.nan)
    for i in range(sample.size):
        p = probs[i]
        fires = np.float64(words[i]) + 1.0 <= np.float64(p) * 4294967296.0
        sample[i] = select((p >= zero) & (p <= one), select(fires, one, zero), nan)


@jitable
def _probabilities(logits, probs):
    for i in range(logits.size):
        probs[i] = sigmoid(logits[i])


@block_kernel
def _bernoulli_sample(block, p, key, sample, are_logits):
    words, tile, probs = scratch(SCRATCH, np.uint32), scratch(SCRATCH, np.uint32), scratch(TILE, p.dtype)
    end = min(block * BLOCK + BLOCK, sample.size)
    for start in range(block * BLOCK, end, TILE):
        stop = min(start + TILE, end)
        lane, groups = word_tile(key, start, stop - start, words)
        interleave(words, groups, tile)
        i = start
        while i < stop:  # one sample after another
            source = i % p.size
            n = min(stop - i, p.size - source)
            given = p[source : source + n]
            if are_logits:
                _probabilities(given, probs[:n])
                given = probs[:n]
            _compare(given, tile[lane + i - start : lane + i - start + n], sample[i : i + n])
            i += n


def bernoulli_sample(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _bernoulli_sample(-(-outputs[0].size // BLOCK), inputs[0], inputs[1], outputs[0], 0)


def bernoulli_sample_logits(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _bernoulli_sample(-(-outputs[0].size // BLOCK), inputs[0], inputs[1], outputs[0], 1)


# ---------------------------------------------------------------------------------------------------------
# dropout
# ---------------------------------------------------------------------------------------------------------


@jitable
def _keep(x, words, last, scale, y):
    zero = y.dtype.type(0)
    for i in range(y.size):
        y[i] = select(words[i] <= last, x[i] * scale, zero)


@block_kernel
def _dropout(block, x, key, scale, y, last):
    words, tile = scratch(SCRATCH, np.uint32), scratch(SCRATCH, np.uint32)
    end = min(block * BLOCK + BLOCK, y.size)
    for start in range(block * BLOCK, end, TILE):
        stop = min(start + TILE, end)
        lane, groups = word_tile(key, start, stop - start, words)
        interleave(words, groups, tile)
        _keep(x[start:stop], tile[lane : lane + stop - start], np.uint32(last), scale[0], y[start:stop])


def dropout(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, key = inputs
    (y,) = outputs
    if (bound := kept_below(attrs["p"])) == 0:
        y.fill(0)
    else:  # the largest word that keeps, since at p = 0 the bound itself has 33 bits
        scale = np.array([1 / (1 - attrs["p"])], y.dtype)
        _dropout(-(-y.size // BLOCK), x, key, scale, y, bound - 1)
