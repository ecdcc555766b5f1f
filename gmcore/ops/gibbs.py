"""Gibbs sampling in Boltzmann machines: half-steps, chains, free energy, contrastive divergence, general sweeps.

The energies, the conventions of the weights and how the steps of one call share a draw are stated in
`gmkernels.gibbs.spec`. Each random operation takes one draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gmcore.errors import ArgumentError
from gmcore.op import Example, Op, kernel, user_line
from gmcore.ops.elementwise import cast, real
from gmcore.ops.product import _activation_backward, matmul
from gmcore.ops.random import _EXAMPLE_KEY, _key
from gmcore.ops.reduce import mean as average
from gmcore.ops.reduce import sum
from gmcore.ops.shape import expand_dims, transpose
from gmcore.random import Generator
from gmcore.tensor import Tensor, as_tensor
from gmcore.watch import computed
from gmkernels.gibbs import spec

_NO_PATH = (
    "the states of a Gibbs chain jump where they change. Call .detach() on the parameters to treat the states as data: "
    "the likelihood's gradient is estimated by free_energy at data and samples (contrastive_divergence)"
)


def _check_units(op: str, units: str) -> None:
    if units not in spec.UNITS:
        raise ArgumentError(f"{op}: units {units!r}; expected one of {', '.join(spec.UNITS)} (called at {user_line()})")


def _check_steps(op: str, name: str, steps: int) -> None:
    if type(steps) is not int or not 1 <= steps <= spec.MOST_STEPS:
        raise ArgumentError(
            f"{op}: {name} must be an integer from 1 to {spec.MOST_STEPS}, got {steps!r} (called at {user_line()})"
        )


def check_probabilities(op: str, name: str, states: Tensor, units: str = "bernoulli") -> None:
    """Refuse states of Bernoulli units outside [0, 1]. NaN goes through, and comes out as NaN."""
    if units == "bernoulli" and states.size:
        computed(_check_interval, states._data, op=op, name=name)


def _check_interval(x: np.ndarray, op: str, name: str) -> None:
    least, most = np.min(x), np.max(x)
    if least < 0 or most > 1:
        raise ArgumentError(
            f"{op}: {name} of Bernoulli units must be in {{0, 1}}, or probabilities in [0, 1]; got {least:g} to "
            f"{most:g} (called at {user_line()})"
        )


def check_binary(op: str, name: str, states: Tensor) -> None:
    """Refuse states of Bernoulli units outside {0, 1}."""
    computed(_check_states, states._data, op=op, name=name)


def _check_states(x: np.ndarray, op: str, name: str) -> None:
    if (wrong := x[(x != 0) & (x != 1)]).size:
        raise ArgumentError(
            f"{op}: {name} of Bernoulli units must be in {{0, 1}}, got {wrong[0]:g} (called at {user_line()}); "
            "sample them first, with bernoulli_sample for instance"
        )


# -- half-step -----------------------------------------------------------------------------------------------
def _half_step_rule(
    g_mean: Tensor | None,
    g_sample: Tensor | None,
    states: Tensor,
    weight: Tensor,
    mean: Tensor,
    units: str,
    needs: tuple[bool, ...],
) -> list[Tensor | None]:
    if units == "bernoulli":
        assert g_mean is not None  # the sample is of integers, without a gradient
        d_inputs, d_bias = _activation_backward(g_mean, mean, activation="sigmoid")
    else:  # sample = mean + eps
        given = [g for g in (g_mean, g_sample) if g is not None]
        d_inputs = given[0] + given[1] if len(given) == 2 else given[0]
        d_bias = sum(d_inputs, axis=0)
    d_states = matmul(d_inputs, weight) if needs[0] else None
    d_weight = matmul(transpose(d_inputs), cast(states, weight.dtype)) if needs[1] else None
    return [d_states, d_weight, d_bias, None]


def _half_step_examples(rng: np.random.Generator) -> Iterator[Example]:
    for (n, k, m), units in (((4, 3, 2), "bernoulli"), ((2, 3, 5), "gaussian"), ((0, 3, 2), "bernoulli")):
        yield (real(rng, (n, k)), real(rng, (m, k)), real(rng, (m,))), {"units": units, "key": _EXAMPLE_KEY}
    states = rng.integers(0, 2, (3, 4)).astype(np.uint8)
    yield (states, real(rng, (2, 4)), real(rng, (2,))), {"units": "bernoulli", "key": _EXAMPLE_KEY}


_gibbs_half_step = Op(
    "gibbs_half_step",
    "states weight bias key",
    "mean sample",
    forward=kernel(spec.GIBBS_HALF_STEP),
    vjp=_half_step_rule,
    partial=True,
    formula=spec.GIBBS_HALF_STEP.formula,
    source=spec.GIBBS_HALF_STEP.source,
    examples=_half_step_examples,
)


def gibbs_half_step(
    states: Any,
    weight: Any,
    bias: Any,
    *,
    units: str = "bernoulli",
    generator: Generator | None = None,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean and sample of one layer of a restricted Boltzmann machine, given the states of the other.

    Parameters
    ----------
    states : (n, in), of the layer that is given: uint8, or any real numbers in the dtype of `weight` (means in place of
        states are the mean field).
    weight : (out, in). Of a machine with weight (hidden, visible), ``weight`` leads to the hidden units and
        ``transpose(weight)`` to the visible ones; it is read in place.
    bias : (out,), of the units that are sampled.
    units : "bernoulli" or "gaussian" (of variance 1), those that are sampled.
    generator, key : as in `gaussian_sample`.

    Returns
    -------
    mean : (n, out), sigmoid(states weight^T + bias), or without the sigmoid of Gaussian units.
    sample : (n, out). Of Bernoulli units uint8, without a derivative; it can be the states of the next half-step, and
        `straight_through` of it (as floating numbers) and the mean passes a gradient on, biased by design. Of Gaussian
        units mean + eps, reparameterised.

    Raises
    ------
    ShapeError, DtypeError : arrays that do not fit.  ArgumentError : other units.
    """
    _check_units("gibbs_half_step", units)
    states, weight, bias = as_tensor(states), as_tensor(weight), as_tensor(bias)
    dtype = "uint8" if units == "bernoulli" else weight.dtype.name
    return _gibbs_half_step(states, weight, bias, _key(generator, key), units=units, dtype=dtype)


_gibbs_half_step.public = gibbs_half_step


# -- chain ---------------------------------------------------------------------------------------------------
def _chain_examples(rng: np.random.Generator) -> Iterator[Example]:
    for (n, v, h), units in (((4, 3, 2), "bernoulli"), ((2, 3, 5), "gaussian"), ((0, 3, 2), "bernoulli")):
        visible = rng.integers(0, 2, (n, v)).astype(float) if units == "bernoulli" else real(rng, (n, v))
        parameters = real(rng, (h, v)), real(rng, (v,)), real(rng, (h,))
        yield (visible, *parameters), {"steps": 2, "units": units, "key": _EXAMPLE_KEY}


_gibbs_chain = Op(
    "gibbs_chain",
    "visible weight visible_bias hidden_bias key",
    "visible_end visible_mean hidden",
    forward=kernel(spec.GIBBS_CHAIN),
    vjp=[_NO_PATH] * 5,
    formula=spec.GIBBS_CHAIN.formula,
    source=spec.GIBBS_CHAIN.source,
    examples=_chain_examples,
)


def gibbs_chain(
    visible: Any,
    weight: Any,
    visible_bias: Any,
    hidden_bias: Any,
    *,
    steps: int = 1,
    units: str = "bernoulli",
    generator: Generator | None = None,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Block Gibbs sampling of a restricted Boltzmann machine: `steps` times h ~ p(h | v), then v ~ p(v | h).

    Parameters
    ----------
    visible : (n, visible), where the chains start: uint8, or in the dtype of `weight`. Bernoulli units may start from
        probabilities.
    weight : (hidden, visible).
    visible_bias, hidden_bias : (visible,) and (hidden,).
    steps : number of full steps.
    units : "bernoulli" or "gaussian" (of variance 1), the visible ones.
    generator, key : as in `gaussian_sample`; but the offset of a key counts rows.

    Returns
    -------
    visible : (n, visible), where the chains end, in the dtype given.
    visible_mean : (n, visible), E[v | hidden].
    hidden : (n, hidden), the hidden states of the last step. None of the three has a derivative: asking for one raises
        `GraphError`.

    Raises
    ------
    ShapeError, DtypeError : arrays that do not fit.  ArgumentError : other units, steps below 1, or states of Bernoulli
    units outside [0, 1].
    """
    _check_units("gibbs_chain", units)
    _check_steps("gibbs_chain", "steps", steps)
    visible = as_tensor(visible)
    check_probabilities("gibbs_chain", "visible states", visible, units)
    return _gibbs_chain(visible, weight, visible_bias, hidden_bias, _key(generator, key), steps=steps, units=units)


_gibbs_chain.public = gibbs_chain


# -- free energy ---------------------------------------------------------------------------------------------
def _free_energy_rule(
    g_energy: Tensor | None,
    g_hidden_mean: Tensor | None,
    visible: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_mean: Tensor,
    units: str,
    needs: tuple[bool, ...],
) -> list[Tensor | None]:
    # With a = W v + hidden_bias: dF/da = -hidden_mean, and dF/dv = -visible_bias or v - visible_bias besides.
    visible = cast(visible, weight.dtype)
    d_inputs = None if g_energy is None else -expand_dims(g_energy, 1) * hidden_mean
    if g_hidden_mean is not None:
        through_mean, _ = _activation_backward(g_hidden_mean, hidden_mean, activation="sigmoid")
        d_inputs = through_mean if d_inputs is None else d_inputs + through_mean
    assert d_inputs is not None
    d_visible = matmul(d_inputs, weight) if needs[0] else None
    d_visible_bias = None
    if g_energy is not None:
        g = expand_dims(g_energy, 1)
        own = visible - visible_bias if units == "gaussian" else -expand_dims(visible_bias, 0)
        if d_visible is not None:
            d_visible = d_visible + g * own
        if needs[2]:
            d_visible_bias = -sum(g * (own if units == "gaussian" else visible), axis=0)
    elif needs[2]:
        d_visible_bias = 0.0 * visible_bias
    d_weight = matmul(transpose(d_inputs), visible) if needs[1] else None
    return [d_visible, d_weight, d_visible_bias, sum(d_inputs, axis=0) if needs[3] else None]


def _free_energy_examples(rng: np.random.Generator) -> Iterator[Example]:
    for (n, v, h), units in (((4, 3, 2), "bernoulli"), ((2, 3, 5), "gaussian"), ((0, 3, 2), "bernoulli")):
        visible = rng.uniform(0.3, 0.7, (n, v)) if units == "bernoulli" else real(rng, (n, v))
        yield (visible, real(rng, (h, v)), real(rng, (v,)), real(rng, (h,))), {"units": units}
    visible = rng.integers(0, 2, (3, 4)).astype(np.uint8)
    yield (visible, real(rng, (2, 4)), real(rng, (4,)), real(rng, (2,))), {"units": "bernoulli"}


_free_energy = Op(
    "free_energy",
    "visible weight visible_bias hidden_bias",
    "energy hidden_mean",
    forward=kernel(spec.FREE_ENERGY),
    vjp=_free_energy_rule,
    partial=True,
    formula=spec.FREE_ENERGY.formula,
    source=spec.FREE_ENERGY.source,
    examples=_free_energy_examples,
)


def free_energy(
    visible: Any, weight: Any, visible_bias: Any, hidden_bias: Any, *, units: str = "bernoulli"
) -> tuple[Tensor, Tensor]:
    """Free energy F(v) = -log sum_h exp(-E(v, h)) of a restricted Boltzmann machine, so that p(v) = exp(-F(v)) / Z.

    Parameters
    ----------
    visible : (n, visible): uint8, or in the dtype of `weight`. Bernoulli units take probabilities too.
    weight : (hidden, visible).
    visible_bias, hidden_bias : (visible,) and (hidden,).
    units : "bernoulli" or "gaussian" (of variance 1), the visible ones.

    Returns
    -------
    energy : (n,), -visible_bias^T v (Gaussian: 1/2 |v - visible_bias|^2) - sum_j softplus(W v + hidden_bias)_j.
    hidden_mean : (n, hidden), E[h | v] = sigmoid(W v + hidden_bias).

    Raises
    ------
    ShapeError, DtypeError : arrays that do not fit.  ArgumentError : other units, or states of Bernoulli units outside
    [0, 1].
    """
    _check_units("free_energy", units)
    visible = as_tensor(visible)
    check_probabilities("free_energy", "visible states", visible, units)
    return _free_energy(visible, weight, visible_bias, hidden_bias, units=units)


_free_energy.public = free_energy


# -- contrastive divergence ----------------------------------------------------------------------------------
def contrastive_divergence(
    data: Any,
    chain: Any,
    weight: Any,
    visible_bias: Any,
    hidden_bias: Any,
    *,
    steps: int = 1,
    units: str = "bernoulli",
    generator: Generator | None = None,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A loss whose gradient is that of (persistent) contrastive divergence: mean F(data) - mean F(end of the chains).

    Parameters
    ----------
    data : (n, visible): uint8, or in the dtype of `weight`. Bernoulli units take probabilities too, as the mean field.
    chain : (c, visible), where the negative phase starts: the data for CD-k, the states that the step before returned
        for PCD-k.
    weight : (hidden, visible).
    visible_bias, hidden_bias : (visible,) and (hidden,).
    steps : k, the number of Gibbs steps.
    units : "bernoulli" or "gaussian" (of variance 1), the visible ones.
    generator, key : as in `gibbs_chain`.

    Returns
    -------
    loss : (), differentiable to any order with the end of the chains held fixed.
    chain : (c, visible), the end of the chains, off the tape.

    Raises
    ------
    ShapeError, DtypeError : arrays that do not fit.  ArgumentError : other units, steps below 1, no rows, or states of
    Bernoulli units outside [0, 1].

    Notes
    -----
    Hinton, Training products of experts by minimizing contrastive divergence, Neural Computation 14(8), 2002; Tieleman,
    Training restricted Boltzmann machines using approximations to the likelihood gradient, ICML 2008. The gradient
    averages means of hidden units at both ends of the chains and samples elsewhere, as Hinton advises (A practical
    guide to training restricted Boltzmann machines, 2010, section 3). `gmkernels.contrastive_divergence` gives loss
    and gradient in one call, in a product less.
    """
    data, chain, weight, visible_bias, hidden_bias = map(as_tensor, (data, chain, weight, visible_bias, hidden_bias))
    if not data.size or not chain.size:
        raise ArgumentError(
            f"contrastive_divergence: data {data.shape} and chain {chain.shape} need at least one row each (called at "
            f"{user_line()})"
        )
    parameters = (weight, visible_bias, hidden_bias)
    constants = [parameter.detach() for parameter in parameters]
    end, _, _ = gibbs_chain(chain.detach(), *constants, steps=steps, units=units, generator=generator, key=key)
    energy, _ = free_energy(data, *parameters, units=units)
    energy_of_end, _ = free_energy(end, *parameters, units=units)
    return average(energy) - average(energy_of_end), end


# -- general Boltzmann machine -------------------------------------------------------------------------------
def _sweep_examples(rng: np.random.Generator) -> Iterator[Example]:
    for n, units in ((3, 4), (0, 2), (5, 1)):
        upper = np.triu(real(rng, (units, units)), 1)
        states = rng.integers(0, 2, (n, units)).astype(float)
        yield (states, upper + upper.T, real(rng, (units,))), {"sweeps": 2, "key": _EXAMPLE_KEY}
    weight = np.array([[0.0, 1.0], [1.0, 0.0]])
    yield (np.eye(2), weight, real(rng, (2,)), np.array([True, False])), {"sweeps": 1, "key": _EXAMPLE_KEY}


_boltzmann_sweep = Op(
    "boltzmann_sweep",
    "states weight bias clamped key",
    forward=kernel(spec.BOLTZMANN_SWEEP),
    vjp=[_NO_PATH] * 5,
    formula=spec.BOLTZMANN_SWEEP.formula,
    source=spec.BOLTZMANN_SWEEP.source,
    examples=_sweep_examples,
)


def boltzmann_sweep(
    states: Any,
    weight: Any,
    bias: Any,
    clamped: Any = None,
    *,
    sweeps: int = 1,
    generator: Generator | None = None,
    key: Tensor | None = None,
) -> Tensor:
    """Gibbs sampling of a general Boltzmann machine: every unit in turn, given all the others.

    Parameters
    ----------
    states : (n, units), one chain a row: uint8, or in the dtype of `weight`; in {0, 1}.
    weight : (units, units), symmetric with a zero diagonal.
    bias : (units,).
    clamped : bool (units,), the units that keep their states; none by default.
    sweeps : how often every unit is visited.
    generator, key : as in `gaussian_sample`; but the offset of a key counts rows.

    Returns
    -------
    (n, units), where the chains end, in the dtype of the states. Without a derivative: asking for one raises
    `GraphError`.

    Raises
    ------
    ShapeError, DtypeError : arrays that do not fit.  ArgumentError : sweeps below 1, states outside {0, 1}, or a weight
    that is not symmetric or has a diagonal.

    Notes
    -----
    E(x) = -1/2 x^T W x - bias^T x, so p(x_i = 1 | the others) = sigmoid(W_i x + bias_i): Ackley, Hinton & Sejnowski, A
    learning algorithm for Boltzmann machines, Cognitive Science 9(1), 1985. Slides that write E = -x^T W x - c^T x
    mean half these weights.
    """
    states, weight, bias = as_tensor(states), as_tensor(weight), as_tensor(bias)
    _check_steps("boltzmann_sweep", "sweeps", sweeps)
    check_binary("boltzmann_sweep", "states", states)
    w = weight._data
    square = w.ndim == 2 and w.shape[0] == w.shape[1]
    if square and (np.diagonal(w).any() or not np.array_equal(w, w.T, equal_nan=True)):
        raise ArgumentError(
            f"boltzmann_sweep: the weight must be symmetric with a zero diagonal (called at {user_line()})"
        )
    clamped = bias.new_zeros(bias.shape, bool) if clamped is None else as_tensor(clamped)
    return _boltzmann_sweep(states, weight, bias, clamped, _key(generator, key), sweeps=sweeps)


_boltzmann_sweep.public = boltzmann_sweep
