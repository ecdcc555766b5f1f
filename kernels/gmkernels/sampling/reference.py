"""Sampling in NumPy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmkernels.rng.reference import normal_elements, words
from gmkernels.sampling.spec import kept_below

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]


def gaussian_sample(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    mu, logvar, key = inputs
    z, kl, log_q = outputs
    eps = normal_elements(key, z.size, z.dtype).reshape(z.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        z[...] = mu + np.exp(logvar / 2) * eps
        kl[...] = (np.exp(logvar) + mu**2 - 1 - logvar).sum(-1) / 2
        log_q[...] = -(math.log(2 * math.pi) + logvar + eps**2).sum(-1) / 2


def gaussian_sample_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_z, g_kl, g_log_q, mu, logvar, key = inputs
    d_mu, d_logvar = outputs
    eps = normal_elements(key, g_z.size, g_z.dtype).reshape(g_z.shape)
    g_kl, g_log_q = g_kl[..., None], g_log_q[..., None]
    with np.errstate(over="ignore", invalid="ignore"):
        through_z = g_z
        through_noise = g_z * np.exp(logvar / 2) * eps - g_log_q
        if attrs["samples"] is not None:
            through_z, through_noise = through_z.sum(0), through_noise.sum(0)
        d_mu[...] = through_z + g_kl * mu
        d_logvar[...] = (through_noise + g_kl * (np.exp(logvar) - 1)) / 2


def bernoulli_sample(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    probs, key = inputs
    (sample,) = outputs
    inside = (probs >= 0) & (probs <= 1)
    # In 64 bits: at p = 1 the threshold is 2^32, and every word is below it.
    threshold = np.floor(np.where(inside, probs, 0) * 2.0**32).astype(np.uint64)
    w = words(key, sample.size).reshape(sample.shape)
    sample[...] = np.where(inside, w < threshold, np.nan)


def bernoulli_sample_logits(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    logits, key = inputs
    with np.errstate(over="ignore"):
        probs = 1 / (1 + np.exp(-logits))
    bernoulli_sample((probs, key), outputs, workspace, attrs)


def dropout(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    x, key = inputs
    (y,) = outputs
    p = attrs["p"]
    kept = words(key, x.size).reshape(x.shape) < np.uint64(kept_below(p))
    scale = x.dtype.type(0 if p == 1 else 1 / (1 - p))
    y[...] = np.where(kept, x, 0) * scale
