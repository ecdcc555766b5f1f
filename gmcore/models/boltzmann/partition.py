"""The partition function of a restricted Boltzmann machine: exact by enumeration, or estimated by annealing.

log p(v) = -F(v) - log Z needs log Z = log sum_v exp(-F(v)). Enumeration goes over the states of the smaller layer, with
the other one summed out in closed form. Annealed importance sampling serves machines of any size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

import gmkernels
from gmcore import ops
from gmcore.device import device_of, put, put_beside
from gmcore.errors import ArgumentError
from gmcore.models.base import Report, check_size
from gmcore.random import Generator, given_or_default
from gmcore.tensor import Array, Tensor
from gmkernels.arrays import namespace

MOST_ENUMERATED = 20
"""Units of a layer that is enumerated: a million states."""
TEMPERATURES = 14_500
_ROWS = 1 << 12
"""States enumerated at once."""
_STRETCH = 250
"""Temperatures of one call and one draw; a whole schedule does not depend on who watches."""
_NORMAL_95 = 1.959963984540054
"""The normal distribution has 95 % of its mass within so many standard deviations."""

Machine = tuple[Array, Array, Array]
"""weight (hidden, visible), visible_bias (visible,) and hidden_bias (hidden,), of NumPy or all on one GPU."""


class Partition(NamedTuple):
    """log Z of a machine, and how well it is known.

    Parameters
    ----------
    log_z : the value, or its estimate.
    interval : of 95 % confidence, from the standard error of the estimate of Z; both ends are `log_z` if it is exact.
        It knows of the runs that were made only: where annealing is too quick to find a mode, no run tells.
    runs, temperatures : of the annealing; None if it is exact.
    effective_runs : (sum w)^2 / sum w^2 of their weights, from 1 to `runs`: close to 1, one run dominates.
    """

    log_z: float
    interval: tuple[float, float]
    runs: int | None = None
    temperatures: int | None = None
    effective_runs: float | None = None


# -- enumeration ---------------------------------------------------------------------------------------------
def exact_partition(machine: Machine, units: str = "bernoulli") -> Partition:
    """log Z over all states of the smaller layer, in float64, computed where the machine lies.

    Parameters
    ----------
    machine : weight, visible_bias, hidden_bias.
    units : "bernoulli" or "gaussian" (of variance 1), the visible ones; Gaussian ones are integrated out.

    Raises
    ------
    ArgumentError : no layer of Bernoulli units has at most `MOST_ENUMERATED` of them.

    Notes
    -----
    Of Gaussian units, the integral over v for a state h is (2 pi)^(visible / 2) exp(b^T h + c^T m + 1/2 |m|^2) with
    m = W^T h: the marginal p(v) is a mixture of 2^hidden normal distributions N(W^T h + c, I) with those weights.
    """
    weight, visible_bias, hidden_bias = (a.astype(np.float64) for a in machine)
    hidden, visible = weight.shape
    over_visible = units == "bernoulli" and visible < hidden
    size = visible if over_visible else hidden
    if not enumerable(weight.shape, units):
        raise ArgumentError(
            f"a machine with {visible} visible ({units}) and {hidden} hidden units has too many states to enumerate; "
            f"one layer of Bernoulli units must have at most {MOST_ENUMERATED}. Estimate log Z by annealing"
        )
    log_z, arrays = -math.inf, namespace(weight)
    for start in range(0, 1 << size, _ROWS):
        numbers = arrays.arange(start, min(start + _ROWS, 1 << size))
        states = (numbers[:, None] >> arrays.arange(size) & 1).astype(np.float64)
        if units == "gaussian":
            means = states @ weight
            terms = states @ hidden_bias + means @ visible_bias + (means**2).sum(1) / 2
        elif over_visible:
            terms = -gmkernels.free_energy(states, weight, visible_bias, hidden_bias)[0]
        else:
            terms = -gmkernels.free_energy(states, weight.T, hidden_bias, visible_bias)[0]
        log_z = float(np.logaddexp(log_z, np.logaddexp.reduce(put(terms, "cpu"))))
    if units == "gaussian":
        log_z += visible / 2 * math.log(2 * math.pi)
    return Partition(log_z, (log_z, log_z))


def enumerable(shape: tuple[int, ...], units: str = "bernoulli") -> bool:
    """Whether `exact_partition` takes a machine with a weight of this shape."""
    hidden, visible = shape
    return hidden <= MOST_ENUMERATED or (units == "bernoulli" and visible <= MOST_ENUMERATED)


# -- annealing -----------------------------------------------------------------------------------------------
def annealing_schedule(temperatures: int = TEMPERATURES) -> np.ndarray:
    """Inverse temperatures from 0 to 1 in the proportions of Salakhutdinov & Murray.

    Of 14,500, 500 lie between 0 and 0.5, 4,000 between 0.5 and 0.9, and 10,000 between 0.9 and 1, evenly each.

    Parameters
    ----------
    temperatures : how many; at least 2.

    Returns
    -------
    (temperatures,) float64, increasing.

    Raises
    ------
    ArgumentError : fewer than 2.
    """
    if check_size("temperatures", temperatures) < 2:
        raise ArgumentError(f"temperatures must be at least 2, got {temperatures}")
    first = max(1, round(temperatures * 500 / 14_500))
    second = round((temperatures - first) * 4_000 / 14_000)
    last = temperatures - first - second
    return np.concatenate(
        [
            np.linspace(0.0, 0.5, first, endpoint=False),
            np.linspace(0.5, 0.9, second, endpoint=False),
            np.linspace(0.9, 1.0, last + 1)[1:],
        ]
    )


def anneal(
    machine: Machine,
    units: str = "bernoulli",
    *,
    base_bias: Array | None = None,
    betas: np.ndarray | None = None,
    runs: int = 100,
    generator: Generator | None = None,
    report: Report | None = None,
) -> tuple[Partition, np.ndarray]:
    """log Z by annealed importance sampling, from a machine of independent visible units to this one.

    Parameters
    ----------
    machine : weight, visible_bias, hidden_bias, all in float32 or all in float64, which the runs are computed in,
        where they lie.
    units : "bernoulli" or "gaussian" (of variance 1), the visible ones.
    base_bias : (visible,), visible biases of the base-rate machine, best those of the training data's marginals: the
        logits of their means, or their means for Gaussian units. Zeros by default.
    betas : inverse temperatures from 0 to 1, increasing; `annealing_schedule` by default.
    runs : number of independent runs.
    generator : gives a draw for the start and one for every 250 temperatures; by default the context's.
    report : called with how many temperatures are done, and how many there are.

    Returns
    -------
    The estimate, and the log weights of the runs, (runs,): the mean of Z_0 exp(log weight) is an estimate of Z without
    bias, so that log Z is too low rather than too high.

    Raises
    ------
    ArgumentError : betas that do not increase from 0 to 1, or fewer than 1 run.

    Notes
    -----
    Neal, Annealed importance sampling, Statistics and Computing 11, 2001; Salakhutdinov & Murray, On the quantitative
    analysis of deep belief networks, ICML 2008, section 4.1, with hidden biases of 0 in the base-rate machine. Their
    figures come of 100 runs of 14,500 temperatures.
    """
    weight, visible_bias, _ = machine
    generator = given_or_default(generator)
    betas = np.asarray(annealing_schedule() if betas is None else betas, np.float64)
    if betas.ndim != 1 or len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or not (np.diff(betas) > 0).all():
        raise ArgumentError("betas must increase from 0 to 1")
    base = np.zeros_like(visible_bias) if base_bias is None else base_bias.astype(weight.dtype)
    check_size("runs", runs)
    hidden, visible = weight.shape
    log_z = hidden * math.log(2.0)
    if units == "gaussian":
        noise = ops.normal((runs, visible), dtype=weight.dtype.name, device=device_of(weight), generator=generator)
        states = noise + Tensor(base)
        log_z += visible / 2 * math.log(2 * math.pi)
    else:
        states = ops.bernoulli_sample_logits(Tensor(base), samples=runs, generator=generator)
        log_z += float(np.logaddexp(0.0, base.astype(np.float64)).sum())
    x, rises, betas = states._data, namespace(weight).zeros(runs), put_beside(betas, weight)
    for start in range(0, len(betas) - 1, _STRETCH):
        stretch = betas[start : start + _STRETCH + 1]
        rise, x = gmkernels.annealed_importance_sampling(
            x, *machine, base, stretch, key=generator.draw()._data, units=units
        )
        rises += rise
        if report is not None:
            report(start + len(stretch) - 1, len(betas) - 1)
    log_weights = put(rises, "cpu")
    return _estimate(log_z, log_weights, len(betas)), log_weights


def _estimate(log_z: float, log_weights: np.ndarray, temperatures: int) -> Partition:
    """The mean weight, and its interval by the central limit theorem, as logarithms."""
    runs, most = len(log_weights), float(log_weights.max())
    w = np.exp(log_weights - most)
    mean = float(w.mean())
    margin = _NORMAL_95 * float(w.std(ddof=1)) / math.sqrt(runs) if runs > 1 else math.inf
    shift = log_z + most
    low = shift + math.log(mean - margin) if mean > margin else -math.inf
    interval = (low, shift + math.log(mean + margin))
    return Partition(shift + math.log(mean), interval, runs, temperatures, float(w.sum() ** 2 / (w**2).sum()))


__all__ = [
    "MOST_ENUMERATED", "TEMPERATURES", "Machine", "Partition", "anneal", "annealing_schedule", "enumerable",
    "exact_partition",
]  # fmt: skip
