"""Operations that draw from the common random stream.

Each takes one draw of a generator. The key (seed, draw) is an input of the op, so the backward pass regenerates
the same noise instead of storing it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gmcore.device import cupy, gpu_number
from gmcore.engine import by_decomposition
from gmcore.errors import ArgumentError, ShapeError, user_function
from gmcore.op import Example, Op, kernel, user_line
from gmcore.ops.elementwise import cast, dtype_of, exp, real
from gmcore.ops.reduce import sum
from gmcore.ops.shape import as_shape, expand_dims
from gmcore.random import Generator, given_or_default
from gmcore.tensor import Tensor, as_tensor
from gmcore.watch import computed
from gmkernels.rng import spec as rng
from gmkernels.sampling import spec as sampling

_LOG_2PI = float(np.log(2.0 * np.pi))


def _key(generator: Generator | None, key: Tensor | None) -> Tensor:
    """The `key` given, else the next draw of the generator given, else of the context's."""
    return given_or_default(generator).draw() if key is None else key


_EXAMPLE_KEY = Tensor(np.array((7, 3, 0), np.uint64))


def _check_samples(samples: int | None) -> None:
    if samples is not None and samples < 1:
        raise ArgumentError(
            f"{user_function()}: samples must be a positive integer or None, got {samples!r} (called at {user_line()})"
        )


# -- fills ---------------------------------------------------------------------------------------------------
def _fill_examples(rng: np.random.Generator) -> Iterator[Example]:
    yield ((3, 2),), {"key": _EXAMPLE_KEY}
    yield ((0,),), {"key": _EXAMPLE_KEY}


_normal = Op(
    "normal",
    "key",
    forward=kernel(rng.NORMAL),
    vjp=["random words have no derivative"],
    formula="standard normal numbers: Box-Muller on the words of the stream",
    examples=_fill_examples,
)
_uniform = Op(
    "uniform",
    "key",
    forward=kernel(rng.UNIFORM),
    vjp=["random words have no derivative"],
    formula="uniform numbers in (0, 1]: (word + 1/2) / 2^32",
    examples=_fill_examples,
)


def normal(
    shape: int | Sequence[int],
    *,
    dtype: Any = "float32",
    device: str | None = None,
    generator: Generator | None = None,
    key: Tensor | None = None,
) -> Tensor:
    """Standard normal numbers: Box & Muller's on the words of the stream.

    Parameters
    ----------
    shape : of the result; an int for one axis.
    dtype : floating; of a half type, the float32 numbers rounded.
    device : where to draw them, the CPU by default; they are the same everywhere.
    generator, key : as in `gaussian_sample`.

    Returns
    -------
    `shape`, in `dtype`.

    Raises
    ------
    ArgumentError : a dtype that is not floating.  ShapeError : a negative length.
    MissingPackageError, DeviceError : a GPU that is not there, or nothing to use it with.
    """
    return _fill(_normal, shape, dtype, device, _key(generator, key))


def uniform(
    shape: int | Sequence[int],
    *,
    dtype: Any = "float32",
    device: str | None = None,
    generator: Generator | None = None,
    key: Tensor | None = None,
) -> Tensor:
    """Uniform numbers in (0, 1]: (word + 1/2) / 2^32 of the words of the stream.

    Parameters
    ----------
    shape : of the result; an int for one axis.
    dtype : floating; of a half type, the float32 numbers rounded.
    device : where to draw them, the CPU by default; they are the same everywhere.
    generator, key : as in `gaussian_sample`.

    Returns
    -------
    `shape`, in `dtype`.

    Raises
    ------
    ArgumentError : a dtype that is not floating.  ShapeError : a negative length.
    MissingPackageError, DeviceError : a GPU that is not there, or nothing to use it with.
    """
    return _fill(_uniform, shape, dtype, device, _key(generator, key))


def _fill(op: Op, shape: int | Sequence[int], dtype: Any, device: str | None, key: Tensor) -> Tensor:
    dtype = dtype_of(dtype)
    if device is not None and (number := gpu_number(device)) is not None:
        from gmkernels import launch  # what it imports an engine on the CPU does not need

        with cupy().cuda.Device(number):
            key = Tensor(computed(launch.resident, key._data))  # the numbers are drawn where the key is
    half = dtype.itemsize == 2
    return cast(op(key, shape=as_shape(shape), dtype="float32" if half else dtype.name), dtype)


_normal.public, _uniform.public = normal, uniform


# -- Gaussian ------------------------------------------------------------------------------------------------
def _noise(mu: Tensor, key: Tensor, samples: int | None) -> Tensor:
    shape = mu.shape if samples is None else (samples, *mu.shape)
    return _fill(_normal, shape, mu.dtype, mu.device, key)


def _gaussian_sample_backward_plain(
    g_z: Tensor, g_kl: Tensor, g_log_q: Tensor, mu: Tensor, logvar: Tensor, key: Tensor, samples: int | None
) -> tuple[Tensor, Tensor]:
    g_kl, g_log_q = expand_dims(g_kl, -1), expand_dims(g_log_q, -1)
    through_z = g_z * (0.5 * exp(0.5 * logvar) * _noise(mu, key, samples)) - 0.5 * g_log_q
    d_mu, d_logvar = (g_z, through_z) if samples is None else (sum(g_z, axis=0), sum(through_z, axis=0))
    return d_mu + g_kl * mu, d_logvar + g_kl * (0.5 * (exp(logvar) - 1.0))


def _gaussian_sample_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, samples in (((5,), None), ((2, 3), None), ((2, 3), 4), ((3, 1, 2), 1), ((0, 3), 2), ((2, 0), None)):
        yield (real(rng, shape), real(rng, shape)), {"samples": samples, "key": _EXAMPLE_KEY}


def _gaussian_sample_backward_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, samples in (((2, 3), None), ((2, 3), 4)):
        z = shape if samples is None else (samples, *shape)
        arrays = (real(rng, z), real(rng, shape[:-1]), real(rng, z[:-1]), real(rng, shape), real(rng, shape))
        yield (*arrays, _EXAMPLE_KEY), {"samples": samples}


_gaussian_sample_backward = Op(
    "gaussian_sample_backward",
    "g_z g_kl g_log_q mu logvar key",
    "d_mu d_logvar",
    forward=kernel(sampling.GAUSSIAN_SAMPLE_BACKWARD),
    vjp=by_decomposition("g_z g_kl g_log_q mu logvar key", _gaussian_sample_backward_plain, "samples"),
    formula="the derivative of gaussian_sample with its noise fixed",
    examples=_gaussian_sample_backward_examples,
)
_gaussian_sample = Op(
    "gaussian_sample",
    "mu logvar key",
    "z kl log_q",
    forward=kernel(sampling.GAUSSIAN_SAMPLE),
    vjp=lambda g_z, g_kl, g_log_q, mu, logvar, key, samples: [
        *_gaussian_sample_backward(g_z, g_kl, g_log_q, mu, logvar, key, samples=samples),
        None,
    ],
    formula="z = mu + exp(logvar/2) eps; kl = 1/2 sum(e^logvar + mu^2 - 1 - logvar); "
    "log_q = -1/2 sum(log 2 pi + logvar + eps^2)",
    source="Kingma & Welling 2014, section 2.4 and appendix B",
    examples=_gaussian_sample_examples,
)


def gaussian_sample(
    mu: Any, logvar: Any, *, samples: int | None = None, generator: Generator | None = None, key: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Reparameterised sample of N(mu, exp(logvar)) with its KL divergence to N(0, I) and its log-density.

    Parameters
    ----------
    mu, logvar : (..., D), of one shape and dtype.
    samples : number of samples, on a new leading axis; None for one sample without the axis.
    generator : gives one draw; by default the context's.
    key : a draw taken before (`Generator.draw`, `shift_key`), to draw the same noise again or part of it.

    Returns
    -------
    z : (..., D) or (samples, ..., D);  kl : (...), summed over D;  log_q : z.shape[:-1], log q(z), summed over D.

    Raises
    ------
    ShapeError : shapes that differ or have no axis.  DtypeError : not floating, or of two dtypes.
    ArgumentError : samples below 1.

    Notes
    -----
    The noise is not stored: the backward pass draws it again. log_q is a function of (mu, logvar) with the noise
    fixed, so its gradient includes the path through z: it does not depend on mu at all.
    """
    _check_samples(samples)
    return _gaussian_sample(mu, logvar, _key(generator, key), samples=samples)


_gaussian_sample.public = gaussian_sample


# -- Bernoulli -----------------------------------------------------------------------------------------------
_NO_PATH = (
    "a sample in {0, 1} jumps where it changes. Call .detach() on the parameter to treat the sample as data, and use "
    "the score function (log_prob of the sample) or a relaxed distribution for a gradient"
)


def _bernoulli_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, samples in (((), None), ((5,), None), ((2, 3), 4), ((0,), None)):
        yield (rng.uniform(0.1, 0.9, shape),), {"samples": samples, "key": _EXAMPLE_KEY}


_bernoulli_sample = Op(
    "bernoulli_sample",
    "probs key",
    forward=kernel(sampling.BERNOULLI_SAMPLE),
    vjp=[_NO_PATH, _NO_PATH],
    formula="1 where word < floor(probs 2^32), else 0",
    examples=_bernoulli_examples,
)
_bernoulli_sample_logits = Op(
    "bernoulli_sample_logits",
    "logits key",
    forward=kernel(sampling.BERNOULLI_SAMPLE_LOGITS),
    vjp=[_NO_PATH, _NO_PATH],
    formula="1 where word < floor(sigmoid(logits) 2^32), else 0",
    examples=_bernoulli_examples,
)


def bernoulli_sample(
    probs: Any, *, samples: int | None = None, generator: Generator | None = None, key: Tensor | None = None
) -> Tensor:
    """Samples in {0, 1} with probability `probs`; NaN where `probs` is no probability.

    Parameters
    ----------
    probs : any shape, in [0, 1].
    samples : number of samples on a new leading axis; None for one sample without the axis.
    generator, key : as in `gaussian_sample`.

    Returns
    -------
    (...) or (samples, ...), in the dtype of `probs`. It has no derivative: asking for one raises `GraphError`.

    Raises
    ------
    ArgumentError : samples below 1.  DtypeError : `probs` not floating.
    """
    _check_samples(samples)
    return _bernoulli_sample(probs, _key(generator, key), samples=samples)


def bernoulli_sample_logits(
    logits: Any, *, samples: int | None = None, generator: Generator | None = None, key: Tensor | None = None
) -> Tensor:
    """Samples in {0, 1} with probability sigmoid(logits); NaN where the logit is NaN.

    Parameters
    ----------
    logits : any shape.
    samples : number of samples on a new leading axis; None for one sample without the axis.
    generator, key : as in `gaussian_sample`.

    Returns
    -------
    (...) or (samples, ...), in the dtype of `logits`. It has no derivative: asking for one raises `GraphError`.

    Raises
    ------
    ArgumentError : samples below 1.  DtypeError : `logits` not floating.
    """
    _check_samples(samples)
    return _bernoulli_sample_logits(logits, _key(generator, key), samples=samples)


_bernoulli_sample.public, _bernoulli_sample_logits.public = bernoulli_sample, bernoulli_sample_logits


# -- dropout -------------------------------------------------------------------------------------------------
def _dropout_examples(rng: np.random.Generator) -> Iterator[Example]:
    for shape, p in (((), 0.5), ((5,), 0.2), ((2, 3), 0.5), ((7,), 0.0), ((3,), 1.0), ((0, 2), 0.5)):
        yield (real(rng, shape), p), {"key": _EXAMPLE_KEY}


_dropout: Op = Op(
    "dropout",
    "x key",
    forward=kernel(sampling.DROPOUT),
    vjp=[lambda g, key, p: _dropout(g, key, p=p), "random words have no derivative"],
    formula="x / (1 - p) where word < floor((1 - p) 2^32), else 0",
    source="Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov 2014, section 10",
    examples=_dropout_examples,
)


def dropout(
    x: Any,
    p: float = 0.5,
    training: bool = True,
    *,
    generator: Generator | None = None,
    key: Tensor | None = None,
) -> Tensor:
    """Each element dropped (set to 0) with probability `p`, the others divided by 1 - p; `x` unless `training`.

    Parameters
    ----------
    x : any shape, floating.
    p : in [0, 1]. At 1 the result is 0.
    training : whether to drop anything, and to take a draw.
    generator, key : as in `gaussian_sample`.

    Returns
    -------
    x.shape, in the dtype of `x`: x / (1 - p), or 0.

    Raises
    ------
    ArgumentError : p outside [0, 1].  DtypeError : `x` not floating.

    Notes
    -----
    The mask is not stored: the backward pass, which is the same operation on the gradient, draws it again.
    """
    if not 0 <= p <= 1:
        raise ArgumentError(f"dropout: p must be in [0, 1], got {p!r} (called at {user_line()})")
    return _dropout(x, _key(generator, key), p=float(p)) if training else as_tensor(x)


_dropout.public = dropout


# -- straight-through ------------------------------------------------------------------------------------------
def straight_through(hard: Any, soft: Any) -> Tensor:
    """The value of `hard` with the gradient of `soft`: hard + (soft - detached soft).

    Parameters
    ----------
    hard, soft : of one shape; `hard` is a rounding, a sample or a one-hot of `soft`, and gets no gradient.

    Returns
    -------
    `hard`, exactly where `soft` is finite. Any gradient of it is passed to `soft` as it is.

    Raises
    ------
    ShapeError : shapes that differ.

    Notes
    -----
    The estimator of Bengio, Leonard & Courville, Estimating or propagating gradients through stochastic neurons
    (2013), section 3.1: biased by design, so finite differences do not confirm it.
    """
    hard, soft = as_tensor(hard), as_tensor(soft)
    if hard.shape != soft.shape:
        raise ShapeError(
            f"straight_through: expected one shape, got hard {hard.shape} and soft {soft.shape} "
            f"(called at {user_line()})"
        )
    return hard.detach() + (soft - soft.detach())
