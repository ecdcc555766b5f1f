"""Gibbs sampling in Boltzmann machines: half-steps, chains, free energy, contrastive divergence, annealing, sweeps.

`spec` states the energies, the conventions of the weights and how the steps of one call share a draw.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gmkernels import blas
from gmkernels.arrays import namespace
from gmkernels.gibbs import reference, spec
from gmkernels.registry import FLOATS, HALVES, Signature, deferred, register, run
from gmkernels.rng import as_key

__all__ = [
    "annealed_importance_sampling", "boltzmann_sweep", "contrastive_divergence", "free_energy", "gibbs_chain",
    "gibbs_half_step",
]  # fmt: skip


def _needs_blas(signature: Signature) -> str | None:
    return blas.available()


for _spec in (
    spec.GIBBS_HALF_STEP,
    spec.GIBBS_CHAIN,
    spec.FREE_ENERGY,
    spec.CONTRASTIVE_DIVERGENCE,
    spec.ANNEALED_IMPORTANCE_SAMPLING,
    spec.BOLTZMANN_SWEEP,
):
    register(_spec, "reference", getattr(reference, _spec.name), overhead=3e-4, efficiency=0.02)
    register(
        _spec, "cpu", f"gmkernels.gibbs.cpu:{_spec.name}",
        strided=_spec is spec.GIBBS_HALF_STEP, overhead=3e-5, accepts=_needs_blas,
    )  # fmt: skip
    for _backend, _efficiency in (("cuda", 0.5), ("triton", 0.6)):
        _module = f"gmkernels.gibbs.{_backend}"
        # A sweep is one launch: its time is that of its instructions.
        _estimate = None if _spec is spec.BOLTZMANN_SWEEP else deferred(f"{_module}:estimate", _spec)
        register(
            _spec, _backend, f"{_module}:{_spec.name}", dtypes=FLOATS + HALVES,
            strided=_spec is spec.GIBBS_HALF_STEP, efficiency=_efficiency, note=deferred(f"{_module}:note", _spec),
            estimate=_estimate,
        )  # fmt: skip


def gibbs_half_step(
    states: Any,
    weight: Any,
    bias: Any,
    *,
    key: Any,
    units: str = "bernoulli",
    dtype: Any = None,
    backend: str | None = None,
) -> tuple[Any, Any]:
    """Mean and sample of one layer of units, given the states of the other.

    Parameters
    ----------
    states : (n, in) of the layer that is given; in the dtype of the weight, or uint8. Any real numbers.
    weight : (out, in) float32 or float64; float16 or bfloat16 too on a GPU. Of a machine with weight (hidden, visible),
        ``weight`` leads to the hidden units and ``weight.T``, which is read in place, to the visible ones.
    bias : (out,) of the units that are sampled.
    key : uint64 array (seed, draw, offset), or a tuple (seed, draw[, offset]).
    units : "bernoulli" or "gaussian", those that are sampled.
    dtype : of the sample: that of the weight or, of Bernoulli units, uint8; by default that of the states if it can be.
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    mean : (n, out), sigmoid(states weight^T + bias), or without the sigmoid for Gaussian units.
    sample : (n, out), `bernoulli_sample` of the mean, or the mean plus `normal`, with the same key. A NaN mean gives
        NaN, and 0 in uint8.

    Notes
    -----
    The gradient of the mean is that of `linear` with the activation "sigmoid" or "identity". On a GPU states of uint8
    go through tensor cores, also with a float32 weight, of which about 16 bits count then: see `spec`.

    Raises
    ------
    KernelError : shapes, dtypes or units that do not fit.
    """
    if dtype is None:
        dtype = weight.dtype if units == "gaussian" else states.dtype
    attrs = {"units": units, "dtype": np.dtype(dtype).name}
    mean, sample = run(spec.GIBBS_HALF_STEP, (states, weight, bias, as_key(key)), attrs, backend=backend)
    return mean, sample


def gibbs_chain(
    visible: Any,
    weight: Any,
    visible_bias: Any,
    hidden_bias: Any,
    *,
    key: Any,
    steps: int = 1,
    units: str = "bernoulli",
    backend: str | None = None,
) -> tuple[Any, Any, Any]:
    """`steps` steps of block Gibbs sampling: hidden ~ p(h | visible), then visible ~ p(v | hidden).

    Parameters
    ----------
    visible : (n, visible), where the chains start; in the dtype of the weight, or uint8.
    weight : (hidden, visible) float32 or float64; float16 or bfloat16 too on a GPU.
    visible_bias, hidden_bias : (visible,) and (hidden,).
    key : uint64 array (seed, draw, offset), or a tuple; the offset counts rows. See `spec` for the words of each step.
    steps : number of full steps, 1 to 2^23.
    units : "bernoulli" or "gaussian", the visible ones.
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    visible : (n, visible), where the chains end; in the dtype given (Gaussian units: of the weight).
    visible_mean : (n, visible), its mean given `hidden`.
    hidden : (n, hidden), the states of the last step, in the dtype of the states given.

    Raises
    ------
    KernelError : shapes, dtypes, steps or units that do not fit.
    """
    inputs = (visible, weight, visible_bias, hidden_bias, as_key(key))
    found = run(spec.GIBBS_CHAIN, inputs, {"steps": steps, "units": units}, backend=backend)
    return found[0], found[1], found[2]


def free_energy(
    visible: Any,
    weight: Any,
    visible_bias: Any,
    hidden_bias: Any,
    *,
    units: str = "bernoulli",
    backend: str | None = None,
) -> tuple[Any, Any]:
    """Free energy -log sum_h exp(-E(v, h)) of visible states, and the means of the hidden units given them.

    Parameters
    ----------
    visible : (n, visible), in the dtype of the weight, or uint8.
    weight : (hidden, visible) float32 or float64; float16 or bfloat16 too on a GPU.
    visible_bias, hidden_bias : (visible,) and (hidden,).
    units : "bernoulli" or "gaussian", the visible ones.
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    energy : (n,), -visible_bias^T v (Gaussian: 1/2 |v - visible_bias|^2) - sum_j softplus(W v + hidden_bias)_j.
    hidden_mean : (n, hidden), sigmoid(W v + hidden_bias).

    Notes
    -----
    The gradient is made of `hidden_mean`: with a gradient g (n,) of the energy and d = -g hidden_mean, it is d^T v by
    the weight, the sum of d by the hidden bias, -g^T v (Gaussian: -g^T (v - visible_bias)) by the visible bias, and
    d W - g visible_bias (Gaussian: d W + g (v - visible_bias)) by v.

    Raises
    ------
    KernelError : shapes, dtypes or units that do not fit.
    """
    inputs = (visible, weight, visible_bias, hidden_bias)
    energy, hidden_mean = run(spec.FREE_ENERGY, inputs, {"units": units}, backend=backend)
    return energy, hidden_mean


def contrastive_divergence(
    data: Any,
    chain: Any,
    weight: Any,
    visible_bias: Any,
    hidden_bias: Any,
    *,
    key: Any,
    steps: int = 1,
    units: str = "bernoulli",
    backend: str | None = None,
) -> tuple[Any, Any, Any, Any, Any]:
    """Statistics of a step of (persistent) contrastive divergence: the gradient that it descends.

    Parameters
    ----------
    data : (n, visible), in the dtype of the weight, or uint8.
    chain : (c, visible), where the negative phase starts, as `data`. The data themselves make CD-k (and share the
        first half-step with the positive phase if they are the same array), the visible states that the step before
        returned PCD-k.
    weight : (hidden, visible) float32 or float64; float16 or bfloat16 too on a GPU.
    visible_bias, hidden_bias : (visible,) and (hidden,).
    key : uint64 array (seed, draw, offset), or a tuple; as in `gibbs_chain`.
    steps : k, the number of full steps.
    units : "bernoulli" or "gaussian", the visible ones.
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    d_weight, d_visible_bias, d_hidden_bias : of the parameters' shapes, the negative phase minus the positive: mean
        of hidden_mean v^T, v and hidden_mean over the end of the chains, minus their mean over the data. The states of
        the chains are samples, but for the hidden units at both ends, where their means are averaged. Papers print the
        opposite sign, the direction of ascent of the log-likelihood.
    visible : (c, visible), the end of the chains.
    loss : (), mean free energy of the data minus that of the end of the chains. With those fixed, the statistics are
        its gradient.

    Raises
    ------
    KernelError : shapes, dtypes, steps or units that do not fit, or no rows.
    """
    inputs = (data, chain, weight, visible_bias, hidden_bias, as_key(key))
    found = run(spec.CONTRASTIVE_DIVERGENCE, inputs, {"steps": steps, "units": units}, backend=backend)
    return found[0], found[1], found[2], found[3], found[4]


def annealed_importance_sampling(
    visible: Any,
    weight: Any,
    visible_bias: Any,
    hidden_bias: Any,
    base_bias: Any,
    betas: Any,
    *,
    key: Any,
    units: str = "bernoulli",
    backend: str | None = None,
) -> tuple[Any, Any]:
    """Log weights of annealing runs from a machine without hidden units' influence (beta 0) to this one (beta 1).

    Parameters
    ----------
    visible : (n, visible), a sample at betas[0]; in the dtype of the weight, or uint8. At 0 the units are independent,
        of mean sigmoid(base_bias), or N(base_bias, I).
    weight : (hidden, visible) float32 or float64; float16 or bfloat16 too on a GPU.
    visible_bias, hidden_bias : (visible,) and (hidden,).
    base_bias : (visible,), the visible bias at beta 0.
    betas : float64 (temperatures,), increasing, in [0, 1] (not checked); used in the dtype of the weight.
    key : uint64 array (seed, draw, offset), or a tuple; as in `gibbs_chain`, a step for each beta after the first.
    units : "bernoulli" or "gaussian", the visible ones.
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    log_weight : (n,) float64. From beta 0 to 1, the mean of exp(log_weight) estimates Z / Z_0 without bias, where
        log Z_0 = hidden log 2 + sum softplus(base_bias), or hidden log 2 + visible / 2 log(2 pi) of Gaussian units. A
        schedule may be cut into calls that share a beta each: their log weights add up.
    visible : (n, visible), where the runs end; after a last step at betas[-1].

    Raises
    ------
    KernelError : shapes, dtypes or units that do not fit.
    """
    inputs = (visible, weight, visible_bias, hidden_bias, base_bias, betas, as_key(key))
    log_weight, end = run(spec.ANNEALED_IMPORTANCE_SAMPLING, inputs, {"units": units}, backend=backend)
    return log_weight, end


def boltzmann_sweep(
    states: Any,
    weight: Any,
    bias: Any,
    clamped: Any = None,
    *,
    key: Any,
    sweeps: int = 1,
    backend: str | None = None,
) -> Any:
    """Gibbs sampling of a general Boltzmann machine: every unit in turn, given all the others.

    Parameters
    ----------
    states : (n, units), one chain a row; in the dtype of the weight, or uint8.
    weight : (units, units) float32 or float64, on a GPU float16 or bfloat16 too; symmetric with a zero diagonal (not
        checked).
    bias : (units,).
    clamped : bool (units,), the units that keep their states; none by default.
    key : uint64 array (seed, draw, offset), or a tuple; the offset counts rows. See `spec` for the words of each sweep.
    sweeps : how often every unit is visited, 1 to 2^23.
    backend : name of the backend; the cheapest if None.

    Returns
    -------
    (n, units), where the chains end, in the dtype of the states.

    Notes
    -----
    E(x) = -1/2 x^T W x - bias^T x, so p(x_i = 1 | the others) = sigmoid(W_i x + bias_i). Ackley, Hinton & Sejnowski,
    A learning algorithm for Boltzmann machines, Cognitive Science 9(1), 1985.

    Raises
    ------
    KernelError : shapes, dtypes or sweeps that do not fit.
    """
    if clamped is None:
        clamped = namespace(bias).zeros(bias.shape, bool)
    return run(spec.BOLTZMANN_SWEEP, (states, weight, bias, clamped, as_key(key)), {"sweeps": sweeps}, backend=backend)[
        0
    ]
