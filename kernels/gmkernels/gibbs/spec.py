"""Contracts of Gibbs sampling in Boltzmann machines, and the rule by which their steps share a draw.

Restricted machines. `weight` is (hidden, visible), as in a linear layer from the visible to the hidden units:

    bernoulli   E(v, h) = -h^T W v - visible_bias^T v - hidden_bias^T h
    gaussian    E(v, h) = -h^T W v + 1/2 |v - visible_bias|^2 - hidden_bias^T h

so p(h | v) is Bernoulli with mean sigmoid(W v + hidden_bias), and p(v | h) is Bernoulli with mean
sigmoid(W^T h + visible_bias), or N(W^T h + visible_bias, I). Gaussian units of standard deviations s, with
E = 1/2 |(v - visible_bias) / s|^2 - h^T W (v / s^2) - ..., are units of deviation 1 in other coordinates: give v / s,
W / s and visible_bias / s in place of v, W and visible_bias (the columns of W divided by s).

General machines. `weight` is (units, units), symmetric with a zero diagonal, E(x) = -1/2 x^T W x - bias^T x, so
p(x_i = 1 | the others) = sigmoid(W_i x + bias_i). A form without the 1/2 has half these weights.

States are in the dtype of the weight or uint8. Any real number is taken for a state: probabilities in place of states
are the mean field. A sample is made from its mean as `bernoulli_sample` and `normal` make it. Of float16 and bfloat16,
which only GPU kernels have, sums and means are of float32, also those that a sample is made from, and are rounded once
when they are stored; the states 0 and 1, and all of uint8, are exact in them. GPU kernels may multiply states of uint8
and samples by two parts of bfloat16 of a float32 weight: the input of a unit is then off by at most 2^-17 sum |w s|,
and by 2^-15 sum |w s| in the first half-step of a chain that starts at other real numbers. Weights beyond 3.38e38, of
which bfloat16 has none, give NaN there, infinite ones too.

The sub-counter rule
--------------------
A call of several steps takes one draw. The offset of its key counts rows, the chains that came before, and unit i of
row r takes in step s (a half-step of a restricted machine: hidden units first; a sweep of a general one) the element

    ((offset + r) units + i + 2^40 s) mod 2^64

of the draw. So step s by itself is a call with the key of `step_key`, and part of the rows is a call with their offset.
Two steps never share a word where there are fewer than 2^40 states of a kind and 2^24 steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gmkernels.arrays import namespace, on_gpu
from gmkernels.cost import STEP, Cost, Device
from gmkernels.dense.tiles import tiles
from gmkernels.registry import FLOATS, HALVES, Array, Example, KernelError, KernelSpec, Layout
from gmkernels.rng.spec import NORMAL_SLOTS, WORD_SLOTS, check_key, keys

UNITS = ("bernoulli", "gaussian")
STEP_BITS = 40
MOST_STEPS = 2**23
"""Full steps of a call: 2^24 half-steps."""

SLOTS = {"bernoulli": WORD_SLOTS + 26, "gaussian": NORMAL_SLOTS + 2}
"""Instructions for a unit, by what it is."""


def step_key(key: Array, step: int, units: int) -> Array:
    """The key of one step of a call (see the sub-counter rule)."""
    seed, draw, offset = key.tolist()
    return namespace(key).array((seed, draw, (offset * units + (step << STEP_BITS)) % 2**64), np.uint64)


def _describe(**arrays: Array) -> str:
    return ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in arrays.items())


def _check_dtypes(op: str, states: dict[str, Array], parameters: dict[str, Array]) -> None:
    first = next(iter(parameters.values())).dtype
    fits = first.name in FLOATS + HALVES and all(a.dtype == first for a in parameters.values())
    if not (fits and all(a.dtype in (first, np.uint8) for a in states.values())):
        raise KernelError(
            f"{op}: expected {', '.join(parameters)} in float32 or float64 (on a GPU float16 or bfloat16 too), one for "
            f"all, and {', '.join(states)} in that or uint8; got {_describe(**states, **parameters)}"
        )


def _check_units(op: str, units: str) -> None:
    if units not in UNITS:
        raise KernelError(f"{op}: units must be one of {', '.join(UNITS)}, got {units!r}")


def _check_steps(op: str, name: str, steps: int) -> None:
    if type(steps) is not int or not 1 <= steps <= MOST_STEPS:
        raise KernelError(f"{op}: {name} must be an int from 1 to {MOST_STEPS}, got {steps!r}")


def _check_machine(op: str, states: dict[str, Array], weight: Array, visible_bias: Array, hidden_bias: Array) -> None:
    parameters = {"weight": weight, "visible_bias": visible_bias, "hidden_bias": hidden_bias}
    fits = weight.ndim == 2 and hidden_bias.shape == weight.shape[:1] and visible_bias.shape == weight.shape[1:]
    if not (fits and all(a.ndim == 2 and a.shape[1] == weight.shape[1] for a in states.values())):
        raise KernelError(
            f"{op}: expected {', '.join(states)} (n, visible), weight (hidden, visible), visible_bias (visible,) and "
            f"hidden_bias (hidden,); got {_describe(**states, **parameters)}"
        )
    _check_dtypes(op, states, parameters)


def stored(states: Array, weight: Array) -> Layout:
    """Scratch for states in the dtype of the weight, where they are in another."""
    return [(states.shape if states.dtype != weight.dtype else (0,), weight.dtype)]


_KEY = (3,), np.dtype(np.uint64)


# ---------------------------------------------------------------------------------------------------------
# What kernels of a GPU need besides
# ---------------------------------------------------------------------------------------------------------

SMALLEST_TILE = 32
"""Units of the narrowest tile of a product: sums over tiles have room for as many as there can be."""


def operand_dtype(weight: Array, *states: Array) -> np.dtype[Any]:
    """In which GPU kernels multiply. A float32 weight is cut into two parts of bfloat16 where states are of uint8."""
    if weight.dtype == np.float32 and all(a.dtype == np.uint8 for a in states):
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return weight.dtype


def pitch(columns: int) -> int:
    """Elements from one row of an operand to the next: each begins at a multiple of 16 bytes."""
    return -(-columns // 8) * 8


def chain_operand_dtype(weight: Array, units: str) -> np.dtype[Any]:
    """The same for chains, whose states are samples, but for the first: of 0 and 1 unless the units are Gaussian."""
    return operand_dtype(weight) if units == "bernoulli" else weight.dtype


def state_parts(states: Array, dtype: Any) -> int:
    """In how many parts the first states of a chain are operands."""
    return 1 if states.dtype in (np.uint8, dtype) else 2


def gpu_operand(shape: tuple[int, ...], dtype: Any, parts: int = 1) -> tuple[tuple[int, ...], Any]:
    return (parts, shape[0], pitch(shape[1])), dtype


def gpu_weight(weight: Array, dtype: Any) -> tuple[tuple[int, ...], Any]:
    """Scratch for the parts of a weight as an operand, by its rows or by its columns."""
    rows, columns = weight.shape
    parts = 1 if dtype == weight.dtype else 2
    return (parts * max(rows * pitch(columns), columns * pitch(rows)),), dtype


def gpu_sums(rows: int, units: int, *leading: int) -> tuple[tuple[int, ...], Any]:
    """Of each row and tile of units; there is one where there are no units."""
    return (*leading, rows, max(1, -(-units // SMALLEST_TILE))), np.dtype(np.float64)


def gpu_chain(visible: Array, weight: Array, dtype: Any) -> Layout:
    """Visible states, hidden states and the weight, as operands. States also fit there in the dtype of `visible`."""
    parts = state_parts(visible, dtype)
    shapes = visible.shape, (len(visible), len(weight))
    return [*(gpu_operand(shape, dtype, parts) for shape in shapes), gpu_weight(weight, dtype)]


def product_cost(weight: Array, narrow: bool, moved: float, flops: float, slots: float) -> Cost:
    """The cost of products of states with the weight.

    Parameters
    ----------
    weight : of the machine.
    narrow : whether all states are small integers: a float32 weight is then two parts of bfloat16 on a GPU.
    moved, flops, slots : as of a weight in one part.
    """
    split = narrow and weight.dtype == np.float32 and on_gpu(weight)
    return Cost(moved, 2 * flops, slots, 2) if split else Cost(moved, flops, slots, weight.itemsize)


def half_steps(op: KernelSpec, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> list[tuple[int, int, int, str]]:
    """The half-steps of a call: how many, the units that they sample, of how many inputs, and what units these are.

    Where contrastive divergence starts elsewhere than at the data, it has one half-step more, of the data.
    """
    named = dict(zip(op.inputs, inputs, strict=True))
    hidden, visible = named["weight"].shape
    if op is GIBBS_HALF_STEP or op is FREE_ENERGY:
        return [(1, hidden, visible, attrs["units"] if op is GIBBS_HALF_STEP else "bernoulli")]
    if op is ANNEALED_IMPORTANCE_SAMPLING:
        count = 2 * (len(named["betas"]) - 1)
    else:
        count = 2 * attrs["steps"] + (op is CONTRASTIVE_DIVERGENCE)
    return [(-(-count // 2), hidden, visible, "bernoulli"), (count // 2, visible, hidden, attrs["units"])]


def statistics_cost(op: KernelSpec, inputs: Sequence[Array], attrs: Mapping[str, Any]) -> Cost:
    """What contrastive divergence multiplies besides."""
    if op is not CONTRASTIVE_DIVERGENCE:
        return Cost()
    data, chain, weight = inputs[:3]
    return product_cost(weight, attrs["units"] == "bernoulli", 0, 2 * weight.size * (len(data) + len(chain)), 0)


def half_step_seconds(device: Device, rows: int, units: int, tile: tuple[int, int], of_unit: Cost) -> float:
    """Seconds of a half-step on a GPU, beside its launch or barrier, in tiles of so many rows and units.

    Parameters
    ----------
    of_unit : the cost of a unit of a row.
    device, rows, units, tile : what runs it, and what it is made of.
    """
    size = math.prod(tile)
    of_tile = replace(of_unit, flops=size * of_unit.flops, slots=size * of_unit.slots)
    return STEP + device.rounds(of_tile, -(-rows // tile[0]) * -(-units // tile[1]))


GPU_COUNTER = (1,), np.dtype(np.uint32)
"""Of the blocks that have come to a barrier of the grid."""


# Weights, biases and states of the examples are multiples of 1/16, so that their products and sums are exact in any
# order, in float32 too: samples and means do not depend on the order.
def _dyadic(rng: np.random.Generator, dtype: Any, *shape: int) -> np.ndarray:
    return (rng.integers(-4, 5, shape) / 16).astype(dtype)


def _binary(rng: np.random.Generator, dtype: Any, *shape: int) -> np.ndarray:
    return rng.integers(0, 2, shape).astype(dtype)


_SHAPES = ((5, 3, 7), (0, 4, 3), (3, 0, 4), (4, 3, 0), (1, 1, 1), (127, 3, 5), (3, 129, 127))
"""(rows, visible, hidden)"""
_LARGE = (7, 601, 727)
"""Large enough for several tiles."""

_MEAN_TOLERANCE = {"float32": (6e-7, 1e-6), "float64": (1e-15, 2e-15)}
"""Sums are exact in the examples, also with a weight in two parts of bfloat16. A sigmoid is within 3 units in the last
place; a normal number, of at most 6.8, within 5.4e-7 relatively, and what it is added to cancels some of it."""


# ---------------------------------------------------------------------------------------------------------
# gibbs_half_step
# ---------------------------------------------------------------------------------------------------------


def _half_step_infer(states: Array, weight: Array, bias: Array, key: Array, *, units: str, dtype: str) -> Layout:
    op, given = "gibbs_half_step", {"states": states}
    parameters = {"weight": weight, "bias": bias}
    fits = states.ndim == weight.ndim == 2 and states.shape[1] == weight.shape[1] and bias.shape == weight.shape[:1]
    if not fits:
        raise KernelError(
            f"{op}: expected states (n, in), weight (out, in) and bias (out,); got {_describe(**given, **parameters)}"
        )
    _check_dtypes(op, given, parameters)
    _check_units(op, units)
    check_key(op, key)
    if dtype != weight.dtype.name and (dtype != "uint8" or units == "gaussian"):
        raise KernelError(
            f"{op}: samples of {units} units are in {weight.dtype}{'' if units == 'gaussian' else ' or uint8'}, "
            f"got dtype {dtype!r}"
        )
    shape = (states.shape[0], weight.shape[0])
    return [(shape, weight.dtype), (shape, np.dtype(dtype))]


def _half_step_workspace(states: Array, weight: Array, bias: Array, key: Array, *, units: str, dtype: str) -> Layout:
    if on_gpu(weight):
        operand = operand_dtype(weight, states)
        return [gpu_operand(states.shape, operand), gpu_weight(weight, operand)]
    sample = (states.shape[0], weight.shape[0]) if dtype == "uint8" else (0,)
    return [*stored(states, weight), (sample, weight.dtype)]


def _half_step_cost(states: Array, weight: Array, bias: Array, key: Array, *, units: str, dtype: str) -> Cost:
    outputs = states.shape[0] * weight.shape[0]
    moved = states.nbytes + weight.nbytes + outputs * (weight.itemsize + np.dtype(dtype).itemsize)
    flops = 2 * states.size * weight.shape[0]
    return product_cost(weight, states.dtype == np.uint8, moved, flops, SLOTS[units] * outputs)


def _half_step_size(states: Array, weight: Array, bias: Array, key: Array, *, units: str, dtype: str) -> int:
    return 2 * states.size * weight.shape[0]


def _half_step_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    name = np.dtype(dtype).name
    for i, ((n, k, m), key) in enumerate(zip((*_SHAPES, _LARGE), keys(rng))):
        states = _binary(rng, np.uint8 if i % 2 else dtype, n, k)
        arrays = (_dyadic(rng, dtype, m, k), _dyadic(rng, dtype, m), key)
        yield Example((states, *arrays), {"units": "bernoulli", "dtype": "uint8" if i % 3 == 0 else name})
        if i < 5:
            yield Example((_dyadic(rng, dtype, n, k), *arrays), {"units": "gaussian", "dtype": name})


GIBBS_HALF_STEP = KernelSpec(
    name="gibbs_half_step",
    family="gibbs",
    inputs=("states", "weight", "bias", "key"),
    outputs=("mean", "sample"),
    infer=_half_step_infer,
    workspace=_half_step_workspace,
    cost=_half_step_cost,
    size=_half_step_size,
    examples=_half_step_examples,
    formula="a = states weight^T + bias; bernoulli: mean = sigmoid(a), sample = 1 where w < floor(mean 2^32), else 0; "
    "gaussian: mean = a, sample = a + eps. The transposed weight makes the step in the other direction",
    source="Geman & Geman, IEEE PAMI 6(6), 1984; Smolensky, Parallel distributed processing (1986), chapter 6",
    tolerance=_MEAN_TOLERANCE,
    draws=True,
)

# ---------------------------------------------------------------------------------------------------------
# gibbs_chain
# ---------------------------------------------------------------------------------------------------------


def _chain_infer(
    visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, key: Array, *, steps: int, units: str
) -> Layout:
    op = "gibbs_chain"
    _check_machine(op, {"visible": visible}, weight, visible_bias, hidden_bias)
    _check_units(op, units)
    _check_steps(op, "steps", steps)
    check_key(op, key)
    hidden = (visible.shape[0], weight.shape[0])
    return [(visible.shape, _sample_dtype(visible, weight, units)), (visible.shape, weight.dtype),
            (hidden, visible.dtype)]  # fmt: skip


def _sample_dtype(states: Array, weight: Array, units: str) -> Any:
    return states.dtype if units == "bernoulli" else weight.dtype


def _chain_workspace(
    visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, key: Array, *, steps: int, units: str
) -> Layout:
    if on_gpu(weight):
        operand = chain_operand_dtype(weight, units)
        return [*gpu_chain(visible, weight, operand), GPU_COUNTER]
    hidden = (visible.shape[0], weight.shape[0])
    return [*stored(visible, weight), (hidden, weight.dtype), (hidden, weight.dtype), _KEY]


def _chain_flops(
    visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, key: Array, *, steps: int, units: str
) -> int:
    return 4 * visible.size * weight.shape[0] * steps


def _chain_cost(
    visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, key: Array, *, steps: int, units: str
) -> Cost:
    hidden = visible.shape[0] * weight.shape[0]
    moved = 2 * weight.nbytes + 2 * weight.itemsize * (visible.size + hidden)
    slots = SLOTS[units] * visible.size + SLOTS["bernoulli"] * hidden
    flops = 4 * visible.size * weight.shape[0] * steps
    return product_cost(weight, units == "bernoulli", moved * steps, flops, slots * steps)


def _machine(rng: np.random.Generator, dtype: Any, visible: int, hidden: int) -> tuple[np.ndarray, ...]:
    return _dyadic(rng, dtype, hidden, visible), _dyadic(rng, dtype, visible), _dyadic(rng, dtype, hidden)


def _chain_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for i, ((n, v, h), key) in enumerate(zip(_SHAPES, keys(rng))):
        states = _binary(rng, dtype if i % 2 else np.uint8, n, v)
        yield Example((states, *_machine(rng, dtype, v, h), key), {"steps": 1 + i % 3, "units": "bernoulli"})
    for (n, v, h), key in zip(_SHAPES[:4], keys(rng)):
        # One step: the hidden units of a second would see sums of normal numbers, rounded otherwise in float64.
        yield Example((_dyadic(rng, dtype, n, v), *_machine(rng, dtype, v, h), key), {"steps": 1, "units": "gaussian"})


GIBBS_CHAIN = KernelSpec(
    name="gibbs_chain",
    family="gibbs",
    inputs=("visible", "weight", "visible_bias", "hidden_bias", "key"),
    outputs=("visible", "visible_mean", "hidden"),
    infer=_chain_infer,
    workspace=_chain_workspace,
    cost=_chain_cost,
    size=_chain_flops,
    examples=_chain_examples,
    formula="steps times: hidden ~ p(h | visible), then visible ~ p(v | hidden); visible_mean is E[v | hidden]",
    source="Hinton, Training products of experts by minimizing contrastive divergence, Neural Computation 14(8), 2002",
    tolerance=_MEAN_TOLERANCE,
    draws=True,
)

# ---------------------------------------------------------------------------------------------------------
# free_energy
# ---------------------------------------------------------------------------------------------------------


def _free_energy_infer(visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, *, units: str) -> Layout:
    _check_machine("free_energy", {"visible": visible}, weight, visible_bias, hidden_bias)
    _check_units("free_energy", units)
    n = visible.shape[0]
    return [((n,), weight.dtype), ((n, weight.shape[0]), weight.dtype)]


def _free_energy_workspace(
    visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, *, units: str
) -> Layout:
    """The visible states; the sums of softplus over each row's part of each tile of hidden units."""
    if on_gpu(weight):
        operand = operand_dtype(weight, visible)
        sums = gpu_sums(len(visible), len(weight))
        return [gpu_operand(visible.shape, operand), gpu_weight(weight, operand), sums]
    return [*stored(visible, weight), partial_sums(visible.shape[0], weight)]


def partial_sums(rows: int, weight: Array) -> tuple[tuple[int, ...], Any]:
    column_tiles = tiles(rows, weight.shape[1], weight.shape[0])[1]
    return (rows, column_tiles), np.dtype(np.float64)


def _free_energy_flops(visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, *, units: str) -> int:
    return 2 * visible.size * weight.shape[0]


def _free_energy_cost(visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, *, units: str) -> Cost:
    hidden = visible.shape[0] * weight.shape[0]
    moved = visible.nbytes + weight.nbytes + weight.itemsize * hidden
    flops, slots = 2 * visible.size * weight.shape[0], 48 * hidden + 4 * visible.size
    return product_cost(weight, visible.dtype == np.uint8, moved, flops, slots)


def _free_energy_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for i, (n, v, h) in enumerate(_SHAPES):
        states = _binary(rng, dtype if i % 2 else np.uint8, n, v)
        yield Example((states, *_machine(rng, dtype, v, h)), {"units": "bernoulli"})
        yield Example((_dyadic(rng, dtype, n, v), *_machine(rng, dtype, v, h)), {"units": "gaussian"})


# Sums are of float64. A float32 softplus is within 3.4 units in the last place, a sigmoid within 2.4; the terms of an
# energy, below 900 in all in the examples, cancel: 3.4 x 6e-8 x 900.
_ENERGY_TOLERANCE = {"float32": (1e-6, 2e-4), "float64": (1e-14, 4e-13)}

FREE_ENERGY = KernelSpec(
    name="free_energy",
    family="gibbs",
    inputs=("visible", "weight", "visible_bias", "hidden_bias"),
    outputs=("energy", "hidden_mean"),
    infer=_free_energy_infer,
    workspace=_free_energy_workspace,
    cost=_free_energy_cost,
    size=_free_energy_flops,
    examples=_free_energy_examples,
    formula="F(v) = -log sum_h e^-E(v, h) = -visible_bias^T v (gaussian: 1/2 |v - visible_bias|^2) "
    "- sum_j softplus(W v + hidden_bias)_j; hidden_mean = sigmoid(W v + hidden_bias), its derivative",
    source="Freund & Haussler, Unsupervised learning of distributions on binary vectors (UCSC-CRL-94-25, 1994); "
    "Hinton, A practical guide to training restricted Boltzmann machines (2010), section 16.1",
    tolerance=_ENERGY_TOLERANCE,
)

# ---------------------------------------------------------------------------------------------------------
# contrastive_divergence
# ---------------------------------------------------------------------------------------------------------


def _divergence_infer(
    data: Array, chain: Array, weight: Array, visible_bias: Array, hidden_bias: Array, key: Array,
    *, steps: int, units: str,
) -> Layout:  # fmt: skip
    op = "contrastive_divergence"
    _check_machine(op, {"data": data, "chain": chain}, weight, visible_bias, hidden_bias)
    _check_units(op, units)
    _check_steps(op, "steps", steps)
    check_key(op, key)
    if not data.shape[0] or not chain.shape[0]:
        raise KernelError(f"{op}: expected at least one row of each, got {_describe(data=data, chain=chain)}")
    parameters = [(a.shape, weight.dtype) for a in (weight, visible_bias, hidden_bias)]
    return [*parameters, (chain.shape, _sample_dtype(chain, weight, units)), ((), weight.dtype)]


def _divergence_workspace(
    data: Array, chain: Array, weight: Array, visible_bias: Array, hidden_bias: Array, key: Array,
    *, steps: int, units: str,
) -> Layout:  # fmt: skip
    """States of data and chain; means and sample of the hidden units; mean of the visible ones; sums of softplus; for
    each visible and each hidden unit a sum; the key of a step."""
    if on_gpu(weight):
        return _divergence_on_gpu(data, chain, weight, visible_bias, units)
    real = weight.dtype
    hidden = [(a.shape[0], weight.shape[0]) for a in (data, chain, chain)]
    return [
        *stored(data, weight), *stored(chain, weight), *((shape, real) for shape in hidden), (chain.shape, real),
        *(partial_sums(a.shape[0], weight) for a in (data, chain)),
        *((bias.shape, np.dtype(np.float64)) for bias in (visible_bias, hidden_bias)), _KEY,
    ]  # fmt: skip


def _divergence_on_gpu(data: Array, chain: Array, weight: Array, visible_bias: Array, units: str) -> Layout:
    """The chain, the data and the weight as operands; the hidden means of both phases, each in two parts where operands
    have 16 bits; sums of softplus; for each visible unit a sum."""
    operand, hidden = chain_operand_dtype(weight, units), len(weight)
    parts = 2 if operand.itemsize == 2 else 1
    return [
        *gpu_chain(chain, weight, operand), gpu_operand(data.shape, operand, state_parts(data, operand)),
        *(gpu_operand((len(a), hidden), operand, parts) for a in (data, chain)),
        *(gpu_sums(len(a), hidden) for a in (data, chain)), (visible_bias.shape, np.dtype(np.float64)), GPU_COUNTER,
    ]  # fmt: skip


def _divergence_products(data: Array, chain: Array, steps: int) -> int:
    """Rows that go through products with the weight, of its size; where the chain starts at the data, n less."""
    return 2 * data.shape[0] + (2 * steps + 2) * chain.shape[0]


def _divergence_flops(
    data: Array, chain: Array, weight: Array, visible_bias: Array, hidden_bias: Array, key: Array,
    *, steps: int, units: str,
) -> int:  # fmt: skip
    return 2 * weight.size * _divergence_products(data, chain, steps)


def _divergence_cost(
    data: Array, chain: Array, weight: Array, visible_bias: Array, hidden_bias: Array, key: Array,
    *, steps: int, units: str,
) -> Cost:  # fmt: skip
    hidden, visible = weight.shape
    flops = 2 * weight.size * _divergence_products(data, chain, steps)
    slots = SLOTS[units] * visible + SLOTS["bernoulli"] * hidden
    rows = data.shape[0] + steps * chain.shape[0]
    moved = weight.itemsize * (weight.size * (2 * steps + 3) + 2 * rows * (visible + hidden))
    return product_cost(weight, units == "bernoulli", moved, flops, slots * rows)


def _divergence_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    for i, ((n, v, h), key) in enumerate(zip((_LARGE, *_SHAPES[:5]), keys(rng))):
        if n:
            data = _binary(rng, dtype if i % 2 else np.uint8, n, v)
            chain = data if i % 3 else _binary(rng, np.uint8 if i % 2 else dtype, n + 1, v)
            arrays = (data, chain, *_machine(rng, dtype, v, h), key)
            yield Example(arrays, {"steps": 1 + i % 2, "units": "bernoulli"})
    # Not in half types: the end of the chain is rounded to them, and its statistics are far from those in float64.
    for (n, v, h), key in zip((_SHAPES[0], _SHAPES[5]) if np.dtype(dtype).name in FLOATS else (), keys(rng)):
        data = _dyadic(rng, dtype, n, v)
        yield Example((data, data, *_machine(rng, dtype, v, h), key), {"steps": 1, "units": "gaussian"})


CONTRASTIVE_DIVERGENCE = KernelSpec(
    name="contrastive_divergence",
    family="gibbs",
    inputs=("data", "chain", "weight", "visible_bias", "hidden_bias", "key"),
    outputs=("d_weight", "d_visible_bias", "d_hidden_bias", "visible", "loss"),
    infer=_divergence_infer,
    workspace=_divergence_workspace,
    cost=_divergence_cost,
    size=_divergence_flops,
    examples=_divergence_examples,
    formula="visible = gibbs_chain(chain); the negative phase minus the positive: d_weight = mean of E[h | visible] "
    "visible^T - mean of E[h | data] data^T, d_visible_bias = mean of visible - mean of data, d_hidden_bias = mean of "
    "E[h | visible] - mean of E[h | data]: the gradient of loss = mean F(data) - mean F(visible), visible fixed",
    source="Hinton, Neural Computation 14(8), 2002 (chain = data: CD-k); Tieleman, ICML 2008 (the chain of the step "
    "before: PCD). Hinton, A practical guide (2010), section 3: samples drive the chain, probabilities are averaged",
    tolerance=_ENERGY_TOLERANCE,
    draws=True,
)

# ---------------------------------------------------------------------------------------------------------
# annealed_importance_sampling
# ---------------------------------------------------------------------------------------------------------


def _annealing_infer(
    visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, base_bias: Array, betas: Array, key: Array,
    *, units: str,
) -> Layout:  # fmt: skip
    op = "annealed_importance_sampling"
    _check_machine(op, {"visible": visible}, weight, visible_bias, hidden_bias)
    if base_bias.shape != visible_bias.shape or base_bias.dtype != weight.dtype:
        raise KernelError(
            f"{op}: expected base_bias like visible_bias, {weight.dtype}{list(visible_bias.shape)}; got "
            f"{_describe(base_bias=base_bias)}"
        )
    if betas.ndim != 1 or betas.dtype != np.float64 or not 1 <= len(betas) <= MOST_STEPS + 1:
        raise KernelError(
            f"{op}: expected betas float64 (temperatures,), of 1 to {MOST_STEPS + 1}; got {_describe(betas=betas)}"
        )
    _check_units(op, units)
    check_key(op, key)
    return [((visible.shape[0],), np.dtype(np.float64)), (visible.shape, _sample_dtype(visible, weight, units))]


def _annealing_workspace(
    visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, base_bias: Array, betas: Array, key: Array,
    *, units: str,
) -> Layout:  # fmt: skip
    """Visible states; hidden states and means; visible means; sums of softplus; a bias; the visible units' terms."""
    if on_gpu(weight):
        operand = chain_operand_dtype(weight, units)
        sums = gpu_sums(len(visible), len(weight)), gpu_sums(len(visible), weight.shape[1], 2)
        return [*gpu_chain(visible, weight, operand), *sums, GPU_COUNTER]
    hidden, real = (visible.shape[0], weight.shape[0]), weight.dtype
    return [
        *stored(visible, weight), (hidden, real), (hidden, real), (visible.shape, real),
        partial_sums(visible.shape[0], weight), (visible_bias.shape, real), ((visible.shape[0],), real),
    ]  # fmt: skip


def _annealing_flops(
    visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, base_bias: Array, betas: Array, key: Array,
    *, units: str,
) -> int:  # fmt: skip
    return 4 * visible.size * weight.shape[0] * (len(betas) - 1)


def _annealing_cost(
    visible: Array, weight: Array, visible_bias: Array, hidden_bias: Array, base_bias: Array, betas: Array, key: Array,
    *, units: str,
) -> Cost:  # fmt: skip
    steps = len(betas) - 1
    chain = _chain_cost(visible, weight, visible_bias, hidden_bias, key, steps=steps, units=units)
    return replace(chain, slots=chain.slots + 50 * visible.shape[0] * weight.shape[0] * steps)


def _annealing_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    betas = np.array([0, 0.25, 0.5, 1])
    for i, ((n, v, h), key) in enumerate(zip(_SHAPES, keys(rng))):
        states = _binary(rng, dtype if i % 2 else np.uint8, n, v)
        arrays = (*_machine(rng, dtype, v, h), _dyadic(rng, dtype, v))
        yield Example((states, *arrays, betas[: 4 - i % 4], key), {"units": "bernoulli"})
        if i < 4:  # of one step, as in gibbs_chain
            yield Example((_dyadic(rng, dtype, n, v), *arrays, betas[1:3], key), {"units": "gaussian"})
        if i == 0:  # a beta that is 0 in float32
            for units in UNITS:
                yield Example((states, *arrays, np.array([0, 1e-50, 1]), key), {"units": units})


ANNEALED_IMPORTANCE_SAMPLING = KernelSpec(
    name="annealed_importance_sampling",
    family="gibbs",
    inputs=("visible", "weight", "visible_bias", "hidden_bias", "base_bias", "betas", "key"),
    outputs=("log_weight", "visible"),
    infer=_annealing_infer,
    workspace=_annealing_workspace,
    cost=_annealing_cost,
    size=_annealing_flops,
    examples=_annealing_examples,
    formula="for each beta after the first: log_weight += log p*_beta(v) - log p*_before(v), then v takes a Gibbs step "
    "that leaves p_beta invariant: h ~ sigmoid(beta (W v + hidden_bias)), v ~ p(v | h) with the inputs beta (W^T h + "
    "visible_bias) + (1 - beta) base_bias. -log p*_beta(v) = -(beta visible_bias + (1 - beta) base_bias)^T v "
    "(gaussian: beta |v - visible_bias|^2 / 2 + (1 - beta) |v - base_bias|^2 / 2) - sum softplus(beta (W v + "
    "hidden_bias)); 0 <= betas[0] < betas[1] < ...",
    source="Neal, Annealed importance sampling, Statistics and Computing 11, 2001; Salakhutdinov & Murray, On the "
    "quantitative analysis of deep belief networks, ICML 2008, section 4",
    tolerance=_ENERGY_TOLERANCE,
    draws=True,
)

# ---------------------------------------------------------------------------------------------------------
# boltzmann_sweep
# ---------------------------------------------------------------------------------------------------------


SWEEP_SHARED = 96 << 10
"""Bytes of shared memory in which a sweep on a GPU keeps the inputs of its units; if they need more, in a workspace."""


def _sweep_infer(states: Array, weight: Array, bias: Array, clamped: Array, key: Array, *, sweeps: int) -> Layout:
    op, units = "boltzmann_sweep", bias.shape
    given = {"states": states}
    parameters = {"weight": weight, "bias": bias}
    fits = bias.ndim == 1 and weight.shape == units * 2 and states.ndim == 2 and states.shape[1:] == units
    if not (fits and clamped.shape == units and clamped.dtype == bool):
        raise KernelError(
            f"{op}: expected states (n, units), weight (units, units), bias (units,) and clamped bool (units,); got "
            f"{_describe(**given, **parameters, clamped=clamped)}"
        )
    _check_dtypes(op, given, parameters)
    _check_steps(op, "sweeps", sweeps)
    check_key(op, key)
    return [(states.shape, states.dtype)]


def _sweep_workspace(states: Array, weight: Array, bias: Array, clamped: Array, key: Array, *, sweeps: int) -> Layout:
    """The states, W x of each, and a random word for each unit."""
    if on_gpu(weight):
        real, units = np.promote_types(np.float32, weight.dtype), len(weight)
        fits = 2 * units * real.itemsize <= SWEEP_SHARED
        return [((0,) if fits else (len(states), 2, units), real)]
    return [*stored(states, weight), (states.shape, weight.dtype), (states.shape, np.dtype(np.uint32))]


def _sweep_flops(states: Array, weight: Array, bias: Array, clamped: Array, key: Array, *, sweeps: int) -> int:
    return 2 * states.size * weight.shape[0] * sweeps


def _sweep_cost(states: Array, weight: Array, bias: Array, clamped: Array, key: Array, *, sweeps: int) -> Cost:
    flops = _sweep_flops(states, weight, bias, clamped, key, sweeps=sweeps)
    # A unit that flips, every other at most, adds its row of weights to the fields of the units after it.
    flips = states.size * weight.shape[0] / 4
    slots = ((WORD_SLOTS + 40) * states.size + flips) * sweeps
    return Cost((weight.nbytes + 2 * states.nbytes) * sweeps, flops, slots, weight.itemsize)


def _sweep_examples(rng: np.random.Generator, dtype: Any) -> Iterator[Example]:
    sizes = ((5, 3), (1, 1), (0, 4), (3, 0), (47, 31), (2, 129))
    for i, ((n, units), key) in enumerate(zip(sizes, keys(rng))):
        upper = np.triu(_dyadic(rng, dtype, units, units), 1)
        states = _binary(rng, dtype if i % 2 else np.uint8, n, units)
        clamped = rng.random(units) < 0.2
        yield Example((states, upper + upper.T, _dyadic(rng, dtype, units), clamped, key), {"sweeps": 1 + i % 2})


BOLTZMANN_SWEEP = KernelSpec(
    name="boltzmann_sweep",
    family="gibbs",
    inputs=("states", "weight", "bias", "clamped", "key"),
    outputs=("states",),
    infer=_sweep_infer,
    workspace=_sweep_workspace,
    cost=_sweep_cost,
    size=_sweep_flops,
    examples=_sweep_examples,
    formula="sweeps times, for i = 1, 2, ... in turn: x_i ~ Bernoulli(sigmoid(W_i x + bias_i)), unless clamped; the "
    "weight is symmetric with a zero diagonal",
    source="Ackley, Hinton & Sejnowski, A learning algorithm for Boltzmann machines, Cognitive Science 9(1), 1985",
    tolerance={"float32": (0.0, 0.0), "float64": (0.0, 0.0)},
    draws=True,
)
