"""Contracts of sampling: the Gaussian of an encoder, with its KL and log density; Bernoulli; dropout."""

from __future__ import annotations

from collections.abc import Iterator
from math import floor, prod
from typing import Any

import numpy as np

from gmkernels.cost import Cost
from gmkernels.registry import FLOATS, HALVES, Example, KernelError, KernelSpec, Layout
from gmkernels.rng.spec import NORMAL_SLOTS, WORD_SLOTS, check_key, keys

CHUNK = 16384
"""Longest part of a row that is summed in one piece; the sums of the pieces are added in order."""


def chunks(row: int) -> int:
    """Number of pieces in which a row of this length is summed."""
    return max(1, -(-row // CHUNK))


def _describe(**arrays: Any) -> str:
    return ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in arrays.items())


def _check(op: str, key: Any, samples: int | None, **arrays: Any) -> None:
    dtypes = {a.dtype.name for a in arrays.values()}
    if len(dtypes) > 1 or not dtypes.issubset(FLOATS + HALVES):
        raise KernelError(f"{op}: expected {', '.join(FLOATS + HALVES)}, the same for all; got {_describe(**arrays)}")
    check_key(op, key)
    if samples is not None and (type(samples) is not int or samples < 1):
        raise KernelError(f"{op}: samples must be None or a positive int, got {samples!r}")


def sample_shape(shape: tuple[int, ...], samples: int | None) -> tuple[int, ...]:
    """Shape of the samples: a leading axis, unless `samples` is None."""
    return shape if samples is None else (samples, *shape)


# ---------------------------------------------------------------------------------------------------------
# gaussian_sample
# ---------------------------------------------------------------------------------------------------------


def _check_parameters(op: str, mu: Any, logvar: Any) -> None:
    if mu.shape != logvar.shape or mu.ndim < 1:
        raise KernelError(f"{op}: expected mu and logvar of one shape (..., D); got {_describe(mu=mu, logvar=logvar)}")


def _gaussian_infer(mu: Any, logvar: Any, key: Any, *, samples: int | None) -> Layout:
    _check_parameters("gaussian_sample", mu, logvar)
    _check("gaussian_sample", key, samples, mu=mu, logvar=logvar)
    z = sample_shape(mu.shape, samples)
    return [(z, mu.dtype), (mu.shape[:-1], mu.dtype), (z[:-1], mu.dtype)]


def _gaussian_workspace(mu: Any, logvar: Any, key: Any, *, samples: int | None) -> Layout:
    """Sums of the pieces of each row of z: of kl (first sample only) and of log q."""
    pieces = chunks(mu.shape[-1])
    n = prod(sample_shape(mu.shape, samples)[:-1]) * pieces if pieces > 1 else 0
    return [((n,), np.dtype(np.float64)), ((n,), np.dtype(np.float64))]


def _gaussian_size(mu: Any, logvar: Any, key: Any, *, samples: int | None) -> int:
    return mu.size * (1 if samples is None else samples)


def _gaussian_cost(mu: Any, logvar: Any, key: Any, *, samples: int | None) -> Cost:
    z = _gaussian_size(mu, logvar, key, samples=samples)
    return Cost(bytes=mu.itemsize * (2 * mu.size + z), slots=(NORMAL_SLOTS + 20) * z)


_SHAPES = (
    ((0, 5), None), ((3, 0), 2), ((1,), None), ((3,), 5), ((127, 1), None), ((5, 129), 3), ((2, 3, 43), 2),
    ((1023, 7), None), ((1, 2 * CHUNK + 1), None),
)  # fmt: skip


def _arguments(rng: np.random.Generator, dtype: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """mu and logvar of standard deviations of at most e: the absolute tolerance relies on it."""
    return rng.standard_normal(shape).astype(dtype), rng.standard_normal(shape).clip(-2, 2).astype(dtype)


def _gaussian_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for key, (shape, samples) in zip(keys(rng), _SHAPES, strict=True):
        yield Example((*_arguments(rng, dtype, shape), key), {"samples": samples})


GAUSSIAN_SAMPLE = KernelSpec(
    name="gaussian_sample",
    family="sampling",
    inputs=("mu", "logvar", "key"),
    outputs=("z", "kl", "log_q"),
    infer=_gaussian_infer,
    workspace=_gaussian_workspace,
    cost=_gaussian_cost,
    size=_gaussian_size,
    examples=_gaussian_examples,
    formula="z = mu + exp(logvar / 2) eps; "
    "kl = KL(N(mu, exp logvar) || N(0, 1)) = 1/2 sum(exp logvar + mu^2 - 1 - logvar); "
    "log_q = log N(z; mu, exp logvar) = -1/2 sum(log 2 pi + logvar + eps^2); sums over the last axis",
    source="Kingma & Welling, Auto-encoding variational Bayes (ICLR 2014), section 2.4 and appendix B",
    # Relative: eps 5.4e-7, twice that in its square, and 2.9e-6 for 48 roundings in a lane of a row sum.
    # Absolute, where terms cancel: 8e-7 (eps, exp and the product) of |sigma eps| <= e 6.77 in z.
    tolerance={"float32": (5e-6, 2e-5), "float64": (1e-14, 4e-14)},
    draws=True,
)

# ---------------------------------------------------------------------------------------------------------
# gaussian_sample_backward
# ---------------------------------------------------------------------------------------------------------


def _backward_infer(
    g_z: Any, g_kl: Any, g_log_q: Any, mu: Any, logvar: Any, key: Any, *, samples: int | None
) -> Layout:
    op = "gaussian_sample_backward"
    _check_parameters(op, mu, logvar)
    z = sample_shape(mu.shape, samples)
    if g_z.shape != z or g_kl.shape != mu.shape[:-1] or g_log_q.shape != z[:-1]:
        raise KernelError(
            f"{op}: expected g_z {list(z)}, g_kl {list(mu.shape[:-1])}, g_log_q {list(z[:-1])} for mu "
            f"{list(mu.shape)} and samples {samples}; got {_describe(g_z=g_z, g_kl=g_kl, g_log_q=g_log_q)}"
        )
    _check(op, key, samples, g_z=g_z, g_kl=g_kl, g_log_q=g_log_q, mu=mu, logvar=logvar)
    return [(mu.shape, mu.dtype), (mu.shape, mu.dtype)]


def _backward_size(g_z: Any, *others: Any, samples: int | None) -> int:
    return g_z.size


def _backward_cost(g_z: Any, g_kl: Any, g_log_q: Any, mu: Any, logvar: Any, key: Any, *, samples: int | None) -> Cost:
    return Cost(bytes=mu.itemsize * (4 * mu.size + g_z.size), slots=(NORMAL_SLOTS + 20) * g_z.size)


def _backward_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for key, (shape, samples) in zip(keys(rng), _SHAPES, strict=True):
        z = sample_shape(shape, samples)
        g_z, g_kl, g_log_q = (np.asarray(rng.standard_normal(s), dtype) for s in (z, shape[:-1], z[:-1]))
        inputs = (g_z, g_kl, g_log_q, *_arguments(rng, dtype, shape), key)
        yield Example(inputs, {"samples": samples})


GAUSSIAN_SAMPLE_BACKWARD = KernelSpec(
    name="gaussian_sample_backward",
    family="sampling",
    inputs=("g_z", "g_kl", "g_log_q", "mu", "logvar", "key"),
    outputs=("d_mu", "d_logvar"),
    infer=_backward_infer,
    cost=_backward_cost,
    size=_backward_size,
    examples=_backward_examples,
    formula="d_mu = sum_s g_z + g_kl mu; "
    "d_logvar = 1/2 (sum_s (g_z exp(logvar / 2) eps - g_log_q) + g_kl (exp logvar - 1)), "
    "eps fixed and drawn again; log_q does not depend on mu then",
    source="Kingma & Welling, Auto-encoding variational Bayes (ICLR 2014), section 2.4 and appendix B",
    # As in the forward pass; sums over samples are of float64.
    tolerance={"float32": (5e-6, 5e-5), "float64": (1e-14, 1e-13)},
)

# ---------------------------------------------------------------------------------------------------------
# bernoulli_sample, bernoulli_sample_logits
# ---------------------------------------------------------------------------------------------------------


def _bernoulli_infer(op: str) -> Any:
    def infer(p: Any, key: Any, *, samples: int | None) -> Layout:
        _check(op, key, samples, **{"logits" if op.endswith("logits") else "probs": p})
        return [(sample_shape(p.shape, samples), p.dtype)]

    return infer


def _bernoulli_size(p: Any, key: Any, *, samples: int | None) -> int:
    return p.size * (1 if samples is None else samples)


def _bernoulli_cost(slots: float) -> Any:
    def cost(p: Any, key: Any, *, samples: int | None) -> Cost:
        n = _bernoulli_size(p, key, samples=samples)
        return Cost(bytes=p.itemsize * (p.size + n), slots=slots * n)

    return cost


_BERNOULLI_SHAPES = (
    ((0,), None), ((3, 0), 2), ((), None), ((), 5), ((127,), None), ((5, 129), 3), ((2, 3, 43), 2),
    ((1023, 7), None), ((40961,), None),
)  # fmt: skip


def _probability_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for key, (shape, samples) in zip(keys(rng), _BERNOULLI_SHAPES, strict=True):
        p = np.asarray(rng.uniform(-0.1, 1.1, shape).clip(0, 1).astype(dtype))
        yield Example((p, key), {"samples": samples})
    special = np.array([0, 1, np.nan, -0.1, 1.1, np.inf, 2.0**-32, 2.0**-33], dtype)
    yield Example((special, next(keys(rng))), {"samples": 3})


def _logit_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for key, (shape, samples) in zip(keys(rng), _BERNOULLI_SHAPES, strict=True):
        yield Example((np.asarray(rng.normal(0, 2, shape).astype(dtype)), key), {"samples": samples})
    special = np.array([-np.inf, np.inf, np.nan, 0, -200, 200], dtype)
    yield Example((special, next(keys(rng))), {"samples": 3})


BERNOULLI_SAMPLE = KernelSpec(
    name="bernoulli_sample",
    family="sampling",
    inputs=("probs", "key"),
    outputs=("sample",),
    infer=_bernoulli_infer("bernoulli_sample"),
    cost=_bernoulli_cost(WORD_SLOTS + 6),
    size=_bernoulli_size,
    examples=_probability_examples,
    formula="1 where w < floor(p 2^32), else 0; NaN where p is not in [0, 1]",
    source="inversion; the words w are those of rng.random_words",
    tolerance={"float32": (0.0, 0.0), "float64": (0.0, 0.0)},
    draws=True,
)

BERNOULLI_SAMPLE_LOGITS = KernelSpec(
    name="bernoulli_sample_logits",
    family="sampling",
    inputs=("logits", "key"),
    outputs=("sample",),
    infer=_bernoulli_infer("bernoulli_sample_logits"),
    cost=_bernoulli_cost(WORD_SLOTS + 26),
    size=_bernoulli_size,
    examples=_logit_examples,
    formula="1 where w < floor(sigmoid(logits) 2^32), else 0; NaN where the logit is NaN",
    source="inversion; the words w are those of rng.random_words",
    # Equal unless the word falls between two roundings of sigmoid: in float32 one draw in several million.
    tolerance={"float32": (0.0, 0.0), "float64": (0.0, 0.0)},
    draws=True,
)

# ---------------------------------------------------------------------------------------------------------
# dropout
# ---------------------------------------------------------------------------------------------------------


def kept_below(p: float) -> int:
    """Elements whose word is below this are kept: floor((1 - p) 2^32)."""
    return floor((1 - p) * 2.0**32)


def _dropout_infer(x: Any, key: Any, *, p: float) -> Layout:
    _check("dropout", key, None, x=x)
    if not 0 <= p <= 1:
        raise KernelError(f"dropout: p must be a probability, got {p!r}")
    return [(x.shape, x.dtype)]


def _dropout_cost(x: Any, key: Any, *, p: float) -> Cost:
    return Cost(bytes=2 * x.nbytes, slots=(WORD_SLOTS + 4) * x.size)


def _dropout_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    rates = (0.5, 0.1, 0.9, 0.5, 0.0, 0.25, 1.0, 0.2, 0.5)
    for key, (shape, _), p in zip(keys(rng), _BERNOULLI_SHAPES, rates, strict=True):
        yield Example((np.asarray(rng.standard_normal(shape).astype(dtype)), key), {"p": p})
    yield Example((np.array([np.nan, np.inf, -np.inf] * 5, dtype), next(keys(rng))), {"p": 0.5})


DROPOUT = KernelSpec(
    name="dropout",
    family="sampling",
    inputs=("x", "key"),
    outputs=("y",),
    infer=_dropout_infer,
    cost=_dropout_cost,
    examples=_dropout_examples,
    formula="x / (1 - p) where w < floor((1 - p) 2^32), else 0; its gradient is dropout of g with the same key",
    source="Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov, Dropout (JMLR 15, 2014), section 10",
    # The rounding of the scale and of the product.
    tolerance={"float32": (1.2e-7, 0.0), "float64": (2.3e-16, 0.0)},
    draws=True,
)
