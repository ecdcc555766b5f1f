"""Gibbs sampling in Triton: a tile of the product, and what its units do while it is in registers.

A half-step is one launch: means are made of a tile of inputs, and samples of the means and of the words of the same
elements, which the program draws itself. States are read as they are kept; `gmkernels.dense.triton` says how exact
their product with the weight is ("Two types": uint8 and float32 meet on the tensor cores of bfloat16, in two parts).
A chain of k steps, and annealing, are sequences of launches that read nothing back: the key of a step is made on the
device, and inverse temperatures are read there, so that a CUDA graph repeats them.

The chain of a small machine is one launch. Rows are chains, and independent: a program goes through all steps of its
rows alone, and sees its own states behind a barrier of its threads. Each program then reads the whole weight for each
half-step (at `CACHE_RATE` of `gmkernels.cost`), in less time than a `LAUNCH` takes up to `SMALL_WEIGHT` bytes; above
them many multiprocessors are cheaper.

Sums of a row over a tile (of softplus, in the type to compute with, as a tree of at most 7 additions) are kept in
float64, and added in the order of the tiles by another launch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton
import triton.language as tl

from gmkernels import cost, launch
from gmkernels.arrays import is_same
from gmkernels.dense.triton import MANY, add_products, operands, place, precision, tile, tile_constants
from gmkernels.elementary_triton import log1p_unit, number_of, sigmoid, softplus, widened
from gmkernels.gibbs import spec
from gmkernels.registry import KernelSpec
from gmkernels.rng.triton import in_order, key_of, normals, normals_of_rows, words, words_of_rows
from gmkernels.sampling.triton import fires

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

STEP = tl.constexpr(1 << spec.STEP_BITS)
"""By how much the words of a step are ahead of those of the one before it."""


# ---------------------------------------------------------------------------------------------------------
# Samples of a tile
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _key_of_step(key, key_step, units, step):
    """`spec.step_key` of a key in memory, as three numbers."""
    seed, draw, offset = key_of(key, key_step)
    return seed, draw, offset * units.to(tl.uint64) + step.to(tl.uint64) * STEP


@triton.jit
def _words(seed, draw, offset, row, left, n, BLOCK_N: tl.constexpr, ALIGNED: tl.constexpr):
    """The words of a tile, which begins at column `left` of n. ALIGNED: 4 divides n."""
    quads = tl.arange(0, BLOCK_N // 4)[None, :]
    row = row.to(n.dtype)[:, None]
    if ALIGNED:
        a, b, c, d = words(seed, draw, offset, left, row * (n // 4) + quads)
    else:
        a, b, c, d = words_of_rows(seed, draw, offset, row * n + left, quads)
    return in_order(a, b, c, d)


@triton.jit
def _normals(seed, draw, offset, row, left, n, BLOCK_N: tl.constexpr, ALIGNED: tl.constexpr, REAL: tl.constexpr):
    """The normals of a tile, likewise."""
    quads = tl.arange(0, BLOCK_N // 4)[None, :]
    row = row.to(n.dtype)[:, None]
    if ALIGNED:
        a, b, c, d = normals(seed, draw, offset, left, row * (n // 4) + quads, REAL)
    else:
        a, b, c, d = normals_of_rows(seed, draw, offset, row * n + left, quads, REAL)
    return in_order(a, b, c, d)


@triton.jit
def _sample(mean, seed, draw, offset, row, left, n, GAUSSIAN: tl.constexpr, ALIGNED: tl.constexpr):
    """A sample of each unit of a tile, from its mean."""
    if GAUSSIAN:
        return mean + _normals(seed, draw, offset, row, left, n, mean.shape[1], ALIGNED, mean.dtype)
    else:
        return fires(mean, _words(seed, draw, offset, row, left, n, mean.shape[1], ALIGNED))


@triton.jit
def _store_states(pointer, states, mask):
    """States of a tile, NaN as 0 where they are kept in uint8."""
    if pointer.dtype.element_ty == tl.uint8:
        tl.store(pointer, (states == 1).to(tl.uint8), mask)
    else:
        tl.store(pointer, states.to(pointer.dtype.element_ty), mask)


@triton.jit
def _mean_of(x, GAUSSIAN: tl.constexpr):
    if GAUSSIAN:
        return x
    else:
        return sigmoid(x)


# ---------------------------------------------------------------------------------------------------------
# Half-steps
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _halved(x):
    """The left and the right half of a tile: what its units do takes fewer registers for one after the other."""
    pairs = tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2))
    return tl.split(tl.permute(pairs, (0, 2, 1)))


@triton.jit
def _finish(
    x, bias, bias_step, mean, sample, seed, draw, offset, row, left, m, n, PARTS: tl.constexpr, WITH_SUMS: tl.constexpr,
    GAUSSIAN: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Means and sample of the units of a tile from its product x, and sums of softplus by row; in so many PARTS."""
    if PARTS > 1:
        x, right = _halved(x)
        of_left = _finish(
            x, bias, bias_step, mean, sample, seed, draw, offset, row, left, m, n, PARTS // 2, WITH_SUMS, GAUSSIAN,
            ALIGNED,
        )  # fmt: skip
        return of_left + _finish(
            right, bias, bias_step, mean, sample, seed, draw, offset, row, left + x.shape[1], m, n, PARTS // 2,
            WITH_SUMS, GAUSSIAN, ALIGNED,
        )  # fmt: skip
    column = left + tl.arange(0, x.shape[1])
    x += widened(tl.load(bias + column * bias_step, column < n, 0.0))[None, :]
    mask = (row[:, None] < m) & (column[None, :] < n)
    at = row.to(m.dtype)[:, None] * n + column[None, :]
    p = _mean_of(x, GAUSSIAN)
    if mean is not None:
        tl.store(mean + at, p.to(mean.dtype.element_ty), mask)
    if sample is not None:
        _store_states(sample + at, _sample(p, seed, draw, offset, row, left, n, GAUSSIAN, ALIGNED), mask)
    if WITH_SUMS:
        return tl.sum(tl.where(mask, softplus(x), 0.0), axis=1).to(tl.float64)
    else:
        return tl.zeros((x.shape[0],), tl.float64)


@triton.jit(
    do_not_specialize=[
        "m", "n", "k", "a_row", "a_column", "b_row", "b_column", "bias_step", "key_step", "units", "step",
    ]
)  # fmt: skip
def _half_step(
    states, weight, bias, key, mean, sample, sums,
    m, n, k, a_row, a_column, b_row, b_column, bias_step, key_step, units, step,
    M_UNIT: tl.constexpr, N_UNIT: tl.constexpr, K_UNIT: tl.constexpr, A_UNIT: tl.constexpr, B_UNIT: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, PRECISION: tl.constexpr, PARTS: tl.constexpr, GAUSSIAN: tl.constexpr, BY_ROW: tl.constexpr,
):  # fmt: skip
    """A tile of the means, of the sample, and sums of softplus, each unless it is None; sizes are in units.

    The tile is finished in so many PARTS, 1, 2 or 4. The sums are (m, tiles of a row) if BY_ROW; otherwise there is one
    for each tile.
    """
    m *= M_UNIT
    n *= N_UNIT
    k *= K_UNIT
    number = tl.program_id(0)
    top, left = place(number, m, n, BLOCK_M, BLOCK_N, GROUP)
    row, column = top + tl.arange(0, BLOCK_M), left + tl.arange(0, BLOCK_N)
    x = add_products(
        widened(tl.zeros((BLOCK_M, BLOCK_N), weight.dtype.element_ty)), states, weight, row, column, m, n, 0, k, k,
        a_row, a_column, b_row, b_column, A_UNIT, B_UNIT, A, B, BLOCK_K, PRECISION,
    )  # fmt: skip
    seed, draw, offset = None, None, None
    if sample is not None:
        seed, draw, offset = _key_of_step(key, key_step, units, step)
    of_rows = _finish(
        x, bias, bias_step, mean, sample, seed, draw, offset, row, left, m, n, PARTS, sums is not None, GAUSSIAN,
        N_UNIT % 4 == 0,
    )  # fmt: skip
    if sums is not None:
        if BY_ROW:
            tl.store(sums + row.to(m.dtype) * tl.cdiv(n, BLOCK_N) + left // BLOCK_N, of_rows, row < m)
        else:
            tl.store(sums + number, tl.sum(of_rows, axis=0))


CHOICES = {
    (kind, many): launch.Choices(f"gibbs.{'many' if many else 'few'}.{kind}.triton", candidates, classes)
    for kind, few_candidates, many_candidates in (
        (
            "half",
            (tile(32, 32, 128, 4, 4), tile(64, 64, 64, 4, 4), tile(16, 32, 128, 4, 4)),
            (tile(128, 128, 64, 8, 3), tile(128, 256, 64, 8, 3), tile(128, 128, 64, 8, 4)),
        ),
        (
            "split",
            (tile(32, 32, 64, 4, 4), tile(64, 32, 64, 4, 3), tile(16, 32, 128, 4, 3)),
            (tile(128, 128, 32, 8, 3), tile(128, 64, 64, 8, 3), tile(64, 128, 32, 4, 3)),
        ),
        (
            "float32",
            (tile(32, 32, 32, 4, 4), tile(64, 64, 32, 4, 3), tile(32, 32, 64, 4, 3)),
            (tile(128, 128, 32, 8, 3), tile(128, 64, 32, 8, 3), tile(64, 128, 32, 8, 3)),
        ),
        (
            "float64",
            (tile(32, 32, 32, 4, 3), tile(64, 32, 16, 4, 3), tile(32, 32, 16, 4, 4)),
            (tile(64, 32, 16, 4, 3), tile(64, 64, 16, 8, 4), tile(32, 64, 16, 4, 3)),
        ),
    )
    for many, candidates, classes in ((False, few_candidates, (1 << 16,)), (True, many_candidates, (1 << 23,)))
}  # fmt: skip
"""Tiles by how operands are multiplied, and whether there are many units in all. configurations.json has the large tile
of half types for the most units on Hopper, where one of 128 x 256 reads a third less, and a smaller one of float32 on
Ampere, where the tensor cores take operands from registers and the large one spills."""


_FEW_REGISTERS = 168
"""Most registers of a thread of the programs of few units, of which a multiprocessor has not more to hold than three of
four warps: the assembler would rather spill and have it hold five."""


def _parts(choice: Mapping[str, int]) -> int:
    """In how many parts a tile is finished: 32 elements of a thread, or all of a smaller tile."""
    return max(1, choice["m"] * choice["n"] // (32 * 32 * choice["warps"]))


def _kind(states: Any, weight: Any) -> str:
    """How operands are multiplied."""
    if weight.itemsize == 4:
        return "float32" if states.dtype == weight.dtype else "split"
    return "half" if weight.itemsize == 2 else "float64"


def _choice(states: Any, weight: Any, units: int) -> Mapping[str, int]:
    """The tile for so many units, of all rows."""
    return CHOICES[_kind(states, weight), units >= MANY].at(units)


def _room(scratch: Any, shape: tuple[int, int], dtype: Any) -> Any:
    """An array in a scratch array of another shape and dtype: the workspace has what both backends of a GPU need."""
    return scratch.reshape(-1).view(dtype)[: math.prod(shape)].reshape(shape)


def _launch_half_step(
    states: Any,
    weight: Any,
    bias: Any,
    key: Any,
    mean: Any,
    sample: Any,
    units: str,
    *,
    sums: Any = None,
    step: int | None = None,
) -> int:
    """Launch a half-step of (m, k) states and an (n, k) weight; the number of tiles, or of tiles of a row of `sums`.

    Parameters
    ----------
    mean, sample : (m, n), or None.
    sums : float64, (m, tiles of a row) or more, or one-dimensional, for one of each tile; or None.
    step : number of the half-step of a call; None: its words are those of the key itself.
    """
    m, n = states.shape[0], weight.shape[0]
    if m * n == 0:
        return 0
    choice = _choice(states, weight, m * n)
    sizes, constants = operands(states, weight.T, 16)
    tiles, column_tiles = triton.cdiv(m, choice["m"]) * triton.cdiv(n, choice["n"]), triton.cdiv(n, choice["n"])
    by_row = sums is not None and sums.ndim == 2
    strided = (
        launch.Strided(states),
        launch.Strided(weight),
        launch.Strided(bias),
        None if key is None else launch.Strided(key),
    )
    steps = [0 if a is None else a.strides[0] // a.itemsize for a in (bias, key)]
    launch.triton(
        _half_step,
        (tiles,),
        (*strided, mean, sample, sums, *sizes, *steps, 1 if step is None else n, step or 0),
        constants
        | tile_constants(choice, weight.itemsize)
        | {"GAUSSIAN": units == "gaussian", "BY_ROW": by_row, "PARTS": _parts(choice)},
        warps=choice["warps"],
        stages=choice["stages"],
        registers=_FEW_REGISTERS if m * n < MANY else None,
    )
    return column_tiles if by_row else tiles


def gibbs_half_step(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    states, weight, bias, key = inputs
    mean, sample = outputs
    _launch_half_step(states, weight, bias, key, mean, sample, attrs["units"])


# ---------------------------------------------------------------------------------------------------------
# Chains
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _layer(
    states, weight, bias, mean, sample, row, rows, n, k, b_row, b_column, seed, draw, offset,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, B: tl.constexpr, GAUSSIAN: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """A half-step of the chains `row`, and a barrier behind it: the next one reads what other threads have written."""
    for left in range(0, n, BLOCK_N):
        column = left + tl.arange(0, BLOCK_N)
        x = add_products(
            widened(tl.zeros((row.shape[0], BLOCK_N), weight.dtype.element_ty)), states, weight, row, column, rows, n,
            0, k, k, k, 1, b_row, b_column, 1, 1, "row", B, BLOCK_K, PRECISION,
        )  # fmt: skip
        p = _mean_of(x + widened(tl.load(bias + column, column < n, 0.0))[None, :], GAUSSIAN)
        mask = (row[:, None] < rows) & (column[None, :] < n)
        at = row.to(n.dtype)[:, None] * n + column[None, :]
        if mean is not None:
            tl.store(mean + at, p.to(mean.dtype.element_ty), mask)
        _store_states(sample + at, _sample(p, seed, draw, offset, row, left, n, GAUSSIAN, ALIGNED), mask)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["rows", "visible_units", "hidden_units", "first", "steps"])
def _chain(
    start, weight, visible_bias, hidden_bias, key, visible, visible_mean, hidden,
    rows, visible_units, hidden_units, first, steps,
    V_UNIT: tl.constexpr, H_UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, GAUSSIAN: tl.constexpr,
):  # fmt: skip
    """Half-steps number `first` (0: hidden units, from `start`; 1: visible units, from `hidden`) to 2 `steps`."""
    v, h = visible_units * V_UNIT, hidden_units * H_UNIT
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    seed, draw, offset = key_of(key)
    for left in range(0, v, BLOCK_N):
        column = left + tl.arange(0, BLOCK_N)
        mask = (row[:, None] < rows) & (column[None, :] < v)
        at = row.to(v.dtype)[:, None] * v + column[None, :]
        tl.store(visible + at, tl.load(start + at, mask).to(visible.dtype.element_ty), mask)
    tl.debug_barrier()
    of_hidden, of_visible = offset * h.to(tl.uint64), offset * v.to(tl.uint64) + STEP
    for number in range(0, steps):
        if (number > 0) | (first == 0):
            _layer(
                visible, weight, hidden_bias, None, hidden, row, rows, h, v, 1, v, seed, draw, of_hidden,
                BLOCK_N, BLOCK_K, PRECISION, "column", False, H_UNIT % 4 == 0,
            )  # fmt: skip
        _layer(
            hidden, weight, visible_bias, visible_mean, visible, row, rows, v, h, v, 1, seed, draw, of_visible,
            BLOCK_N, BLOCK_K, PRECISION, "row", GAUSSIAN, V_UNIT % 4 == 0,
        )  # fmt: skip
        of_hidden += 2 * STEP
        of_visible += 2 * STEP


SMALL_WEIGHT = 1 << 17
"""Bytes of a weight up to which programs go through all steps of their chains (see the top of this file)."""


def _is_whole(weight: Any) -> bool:
    """Whether a chain is one launch."""
    return 0 < weight.nbytes <= SMALL_WEIGHT


CHAINS = launch.Choices(
    "gibbs_chain.triton",
    ({"m": 16, "n": 64, "k": 64, "warps": 4, "stages": 3}, {"m": 32, "n": 64, "k": 32, "warps": 4, "stages": 3},
     {"m": 16, "n": 128, "k": 32, "warps": 8, "stages": 3}),
    (1 << 12,),
)  # fmt: skip
"""By chains."""


def _steps(
    start: Any, weight: Any, visible_bias: Any, hidden_bias: Any, key: Any, first: int, steps: int, units: str,
    visible: Any, visible_mean: Any, hidden: Any,
) -> None:  # fmt: skip
    """Half-steps number `first` to 2 `steps` of a call: from `start` with a `first` of 0, from `hidden` with 1."""
    rows, (hidden_units, visible_units) = len(visible), weight.shape
    if _is_whole(weight):
        choice = CHAINS.at(rows)
        v_unit, h_unit = math.gcd(visible_units, 16), math.gcd(hidden_units, 16)
        launch.triton(
            _chain,
            (triton.cdiv(rows, choice["m"]),),
            (
                start, weight, visible_bias, hidden_bias, key, visible, visible_mean, hidden,
                rows, visible_units // v_unit, hidden_units // h_unit, first, steps,
            ),
            {
                "V_UNIT": v_unit, "H_UNIT": h_unit, "BLOCK_M": choice["m"], "BLOCK_N": choice["n"],
                "BLOCK_K": choice["k"], "PRECISION": precision(weight.itemsize), "GAUSSIAN": units == "gaussian",
            },
            warps=choice["warps"],
            stages=choice["stages"],
            registers=_FEW_REGISTERS if weight.itemsize == 2 else None,
        )  # fmt: skip
        return
    for step in range(first, 2 * steps):
        if step % 2 == 0:
            source = start if step == 0 else visible
            _launch_half_step(source, weight, hidden_bias, key, None, hidden, "bernoulli", step=step)
        else:
            mean = visible_mean if step == 2 * steps - 1 else None
            _launch_half_step(hidden, weight.T, visible_bias, key, mean, visible, units, step=step)


def gibbs_chain(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    start, weight, visible_bias, hidden_bias, key = inputs
    visible, visible_mean, hidden = outputs
    _steps(
        start, weight, visible_bias, hidden_bias, key, 0, attrs["steps"], attrs["units"], visible, visible_mean, hidden
    )


# ---------------------------------------------------------------------------------------------------------
# Free energy
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _add_parts(total, parts, row, rows, count, SIGN: tl.constexpr):
    """total, of rows, + SIGN times the float64 `parts` of each, in their order."""
    for part in range(0, count):
        total += SIGN * tl.load(parts + row * count + part, row < rows, 0.0)
    return total


@triton.jit(do_not_specialize=["rows", "units", "count"])
def _energies(
    visible, bias, sums, energy, rows, units, count,
    UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GAUSSIAN: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The visible units' own terms, minus the `count` sums of softplus of each row; `units` is in multiples of UNIT."""
    units *= UNIT
    row = number_of(0, WIDE) * ROWS + tl.arange(0, ROWS)
    own = tl.zeros((ROWS, COLUMNS), tl.float64)
    for start in range(0, units, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = (row[:, None] < rows) & (column[None, :] < units)
        v = tl.load(visible + row[:, None] * units + column[None, :], mask, 0.0).to(tl.float64)
        c = tl.load(bias + column, column < units, 0.0).to(tl.float64)[None, :]
        own += tl.where(mask, 0.5 * (v - c) * (v - c), 0.0) if GAUSSIAN else -v * c
    total = _add_parts(tl.sum(own, axis=1), sums, row, rows, count, -1)
    tl.store(energy + row, total.to(energy.dtype.element_ty), row < rows)


_ROWS, _COLUMNS = 8, 128
"""Rows and columns of a program that adds up rows."""


def free_energy(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    visible, weight, visible_bias, hidden_bias = inputs
    energy, hidden_mean = outputs
    sums = workspace[2]
    count = _launch_half_step(visible, weight, hidden_bias, None, hidden_mean, None, "bernoulli", sums=sums)
    unit = math.gcd(visible.shape[1], 16)
    launch.triton(
        _energies,
        (triton.cdiv(len(visible), _ROWS),),
        (visible, visible_bias, sums, energy, len(visible), visible.shape[1] // unit, count),
        {"UNIT": unit, "ROWS": _ROWS, "COLUMNS": _COLUMNS, "GAUSSIAN": attrs["units"] == "gaussian"},
    )


# ---------------------------------------------------------------------------------------------------------
# Contrastive divergence
# ---------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["hidden_units", "visible_units", "rows", "chains"])
def _weight_statistics(
    h, h2, v, v2, d_weight, hidden_units, visible_units, rows, chains,
    H_UNIT: tl.constexpr, V_UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of the mean of h2 v2^T over the chains minus that of h v^T over the data."""
    m, n = hidden_units * H_UNIT, visible_units * V_UNIT
    top, left = place(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP)
    row, column = top + tl.arange(0, BLOCK_M), left + tl.arange(0, BLOCK_N)
    zero = tl.zeros((BLOCK_M, BLOCK_N), h.dtype.element_ty)
    total = add_products(
        zero, h2, v2, row, column, m, n, 0, chains, chains, 1, m, n, 1, 1, 1, "column", "row", BLOCK_K, PRECISION
    ) / chains.to(zero.dtype)  # fmt: skip
    total -= add_products(
        zero, h, v, row, column, m, n, 0, rows, rows, 1, m, n, 1, 1, 1, "column", "row", BLOCK_K, PRECISION
    ) / rows.to(zero.dtype)  # fmt: skip
    mask = (row[:, None] < m) & (column[None, :] < n)
    at = row.to(m.dtype)[:, None] * n + column[None, :]
    tl.store(d_weight + at, total.to(d_weight.dtype.element_ty), mask)


@triton.jit
def _column_mean(x, centre, column, columns, rows, ROWS: tl.constexpr):
    """The means over the rows of some columns of x, and of half the squares of their distance from `centre`."""
    total = tl.zeros((ROWS, column.shape[0]), tl.float64)
    squares = total
    for start in range(0, rows, ROWS):
        row = (start + tl.arange(0, ROWS)).to(columns.dtype)
        mask = (row[:, None] < rows) & (column[None, :] < columns)
        value = tl.load(x + row[:, None] * columns + column[None, :], mask, 0.0).to(tl.float64)
        total += value
        if centre is not None:
            squares += tl.where(mask, (value - centre[None, :]) * (value - centre[None, :]), 0.0)
    count = rows.to(tl.float64)
    return tl.sum(total, axis=0) / count, tl.sum(squares, axis=0) / (2 * count)


@triton.jit(do_not_specialize=["hidden_units", "visible_units", "rows", "chains", "strips"])
def _bias_statistics(
    h, h2, v, v2, visible_bias, d_visible, d_hidden, own, hidden_units, visible_units, rows, chains, strips,
    H_UNIT: tl.constexpr, V_UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GAUSSIAN: tl.constexpr,
):  # fmt: skip
    """The first `strips` programs: means of v2 minus those of v, and what these units' own terms add to the loss.

    The others: means of h2 minus those of h.
    """
    strip = tl.program_id(0).to(strips.dtype)
    if strip < strips:
        columns = visible_units * V_UNIT
        column = strip * COLUMNS + tl.arange(0, COLUMNS)
        inside = column < columns
        c = tl.load(visible_bias + column, inside, 0.0).to(tl.float64)
        centre = c if GAUSSIAN else None
        after, squares_after = _column_mean(v2, centre, column, columns, chains, ROWS)
        before, squares_before = _column_mean(v, centre, column, columns, rows, ROWS)
        tl.store(d_visible + column, (after - before).to(d_visible.dtype.element_ty), inside)
        terms = squares_before - squares_after if GAUSSIAN else c * (after - before)
        tl.store(own + strip, tl.sum(terms, axis=0))
    else:
        columns = hidden_units * H_UNIT
        column = (strip - strips) * COLUMNS + tl.arange(0, COLUMNS)
        after, _ = _column_mean(h2, None, column, columns, chains, ROWS)
        before, _ = _column_mean(h, None, column, columns, rows, ROWS)
        tl.store(d_hidden + column, (after - before).to(d_hidden.dtype.element_ty), column < columns)


@triton.jit
def _sum(x, n, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(x + at, at < n, 0.0)
    return tl.sum(total, axis=0)


@triton.jit(do_not_specialize=["strips", "tiles", "chain_tiles", "rows", "chains"])
def _loss(
    own, sums, chain_sums, loss, strips, tiles, chain_tiles, rows, chains, BLOCK: tl.constexpr
):  # fmt: skip
    """The mean free energy of the data minus that of the chains, by one program."""
    total = _sum(own, strips, BLOCK) - _sum(sums, tiles, BLOCK) / rows.to(tl.float64)
    total += _sum(chain_sums, chain_tiles, BLOCK) / chains.to(tl.float64)
    tl.store(loss, total.to(loss.dtype.element_ty))


STATISTICS = {
    kind: launch.Choices(f"contrastive_divergence.{kind}.triton", candidates, (1 << 18,))
    for kind, candidates in (
        ("split", (tile(64, 64, 32, 4, 3), tile(32, 64, 32, 4, 3), tile(128, 64, 32, 8, 3))),
        ("float32", (tile(64, 64, 32, 4, 3), tile(32, 64, 32, 4, 3), tile(128, 64, 32, 8, 3))),
        ("float64", (tile(32, 32, 32, 4, 3), tile(64, 32, 16, 4, 3), tile(64, 64, 16, 8, 3))),
    )
}
"""By how the products are made, and elements of the weight."""
_STRIP, _STRIP_ROWS = 32, 64
"""Columns of a program that adds up rows, and rows that it reads at a time."""
_ADDED = 1024


def contrastive_divergence(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """Where the chain starts at the data, the hidden means of the positive phase are those of its first step."""
    data, chain, weight, visible_bias, hidden_bias, key = inputs
    d_weight, d_visible, d_hidden, visible, loss = outputs
    wide = np.promote_types(np.float32, weight.dtype)
    hidden = _room(workspace[1], (len(chain), len(weight)), chain.dtype)
    h, h2 = (_room(a, (len(of), len(weight)), wide) for a, of in zip(workspace[4:6], (data, chain), strict=True))
    sums, chain_sums, own = (a.reshape(-1) for a in workspace[6:9])
    units, gaussian = attrs["units"], attrs["units"] == "gaussian"
    from_data = is_same(chain, data)
    sample = hidden if from_data else None
    tiles = _launch_half_step(data, weight, hidden_bias, key, h, sample, "bernoulli", sums=sums, step=0)
    _steps(
        chain, weight, visible_bias, hidden_bias, key, int(from_data), attrs["steps"], units, visible, None, hidden
    )  # fmt: skip
    chain_tiles = _launch_half_step(visible, weight, hidden_bias, None, h2, None, "bernoulli", sums=chain_sums)
    rows, chains, (hidden_units, visible_units) = len(data), len(chain), weight.shape
    h_unit, v_unit = math.gcd(hidden_units, 16), math.gcd(visible_units, 16)
    sizes = (hidden_units // h_unit, visible_units // v_unit, rows, chains)
    constants = {"H_UNIT": h_unit, "V_UNIT": v_unit}
    if weight.size:
        kind = "float64" if weight.itemsize == 8 else "float32" if data.dtype == visible.dtype == h.dtype else "split"
        choice = STATISTICS[kind].at(weight.size)
        launch.triton(
            _weight_statistics,
            (triton.cdiv(hidden_units, choice["m"]) * triton.cdiv(visible_units, choice["n"]),),
            (h, h2, data, visible, d_weight, *sizes),
            constants | tile_constants(choice, h.itemsize),
            warps=choice["warps"],
            stages=choice["stages"],
        )
    strips = triton.cdiv(visible_units, _STRIP)
    launch.triton(
        _bias_statistics,
        (strips + triton.cdiv(hidden_units, _STRIP),),
        (h, h2, data, visible, visible_bias, d_visible, d_hidden, own, *sizes, strips),
        constants | {"ROWS": _STRIP_ROWS, "COLUMNS": _STRIP, "GAUSSIAN": gaussian},
    )
    launch.triton(
        _loss, (1,), (own, sums, chain_sums, loss, strips, tiles, chain_tiles, rows, chains), {"BLOCK": _ADDED}
    )


# ---------------------------------------------------------------------------------------------------------
# Annealed importance sampling
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _beta(betas, number, real):
    """An inverse temperature, rounded to the type that is computed with."""
    return tl.load(betas + number).to(real)


@triton.jit
def _rise(x, before, beta):
    """softplus(beta x) - softplus(before x): the difference of each of the two parts keeps its digits."""
    size = tl.abs(x)
    rest = log1p_unit(tl.exp(-beta * size)) - log1p_unit(tl.exp(-before * size))
    return tl.where(x < 0, 0.0, (beta - before) * x) + rest


@triton.jit
def _finish_annealed(
    x, bias, base_bias, before, beta, after, sample, seed, draw, offset, row, left, m, n, PARTS: tl.constexpr,
    GAUSSIAN: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """The sample of a tile from its product x, and by row what it adds to the log weight; in so many PARTS."""
    if PARTS > 1:
        x, right = _halved(x)
        of_left = _finish_annealed(
            x, bias, base_bias, before, beta, after, sample, seed, draw, offset, row, left, m, n, PARTS // 2, GAUSSIAN,
            ALIGNED,
        )  # fmt: skip
        return of_left + _finish_annealed(
            right, bias, base_bias, before, beta, after, sample, seed, draw, offset, row, left + x.shape[1], m, n,
            PARTS // 2, GAUSSIAN, ALIGNED,
        )  # fmt: skip
    column = left + tl.arange(0, x.shape[1])
    b = widened(tl.load(bias + column, column < n, 0.0))[None, :]
    x += b
    inputs = beta * x
    if base_bias is not None:
        base = widened(tl.load(base_bias + column, column < n, 0.0))[None, :]
        inputs += (1 - beta) * base
    states = _sample(_mean_of(inputs, GAUSSIAN), seed, draw, offset, row, left, n, GAUSSIAN, ALIGNED)
    mask = (row[:, None] < m) & (column[None, :] < n)
    _store_states(sample + row.to(m.dtype)[:, None] * n + column[None, :], states, mask)
    if base_bias is None:
        terms = _rise(x, before, beta)
    else:
        terms = (after - beta) * ((b - base) * states)
    return tl.sum(tl.where(mask, terms, 0.0), axis=1).to(tl.float64)


@triton.jit(
    do_not_specialize=["m", "n", "k", "a_row", "a_column", "b_row", "b_column", "temperature", "temperatures"]
)  # fmt: skip
def _annealed_half_step(
    states, weight, bias, base_bias, betas, key, sample, sums,
    m, n, k, a_row, a_column, b_row, b_column, temperature, temperatures,
    M_UNIT: tl.constexpr, N_UNIT: tl.constexpr, K_UNIT: tl.constexpr, A_UNIT: tl.constexpr, B_UNIT: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, PRECISION: tl.constexpr, PARTS: tl.constexpr, GAUSSIAN: tl.constexpr,
):  # fmt: skip
    """A tile of a sample at the temperature after number `temperature`, and what it adds to the log weight of each row.

    Without `base_bias` hidden units: how much their softplus rises from the temperature to the one after it. With it
    visible units: what their own terms will add at the next temperature. The sums, (m, tiles of a row), are started
    with the first temperature.
    """
    m *= M_UNIT
    n *= N_UNIT
    k *= K_UNIT
    real: tl.constexpr = tl.float64 if weight.dtype.element_ty == tl.float64 else tl.float32
    top, left = place(tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP)
    row, column = top + tl.arange(0, BLOCK_M), left + tl.arange(0, BLOCK_N)
    x = add_products(
        tl.zeros((BLOCK_M, BLOCK_N), real), states, weight, row, column, m, n, 0, k, k, a_row, a_column, b_row,
        b_column, A_UNIT, B_UNIT, A, B, BLOCK_K, PRECISION,
    )  # fmt: skip
    before, beta = _beta(betas, temperature, real), _beta(betas, temperature + 1, real)
    after = _beta(betas, tl.minimum(temperature + 2, temperatures - 1), real)
    seed, draw, offset = _key_of_step(key, 1, n, 2 * temperature + (0 if base_bias is None else 1))
    added = _finish_annealed(
        x, bias, base_bias, before, beta, after, sample, seed, draw, offset, row, left, m, n, PARTS, GAUSSIAN,
        N_UNIT % 4 == 0,
    )  # fmt: skip
    part = sums + row.to(m.dtype) * tl.cdiv(n, BLOCK_N) + left // BLOCK_N
    tl.store(part, tl.load(part, row < tl.where(temperature > 0, m, 0), 0.0) + added, row < m)


@triton.jit(do_not_specialize=["rows", "units", "count", "visible_count", "temperatures"])
def _log_weights(
    visible, bias, base_bias, betas, sums, visible_sums, log_weight, rows, units, count, visible_count, temperatures,
    UNIT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr, GAUSSIAN: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """What annealing steps have added to the log weights, and the visible units' own terms of the first of them.

    The squares in the energies of Gaussian units do not depend on their states, but for a part that all temperatures
    have; so they are added at once.
    """
    units *= UNIT
    row = number_of(0, WIDE) * ROWS + tl.arange(0, ROWS)
    zeroth, first = _beta(betas, 0, REAL).to(tl.float64), _beta(betas, 1, REAL).to(tl.float64)
    rise = _beta(betas, temperatures - 1, REAL).to(tl.float64) - zeroth
    own = tl.zeros((ROWS, COLUMNS), tl.float64)
    for start in range(0, units, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = (row[:, None] < rows) & (column[None, :] < units)
        v = tl.load(visible + row[:, None] * units + column[None, :], mask, 0.0).to(tl.float64)
        c = tl.load(bias + column, column < units, 0.0).to(tl.float64)[None, :]
        base = tl.load(base_bias + column, column < units, 0.0).to(tl.float64)[None, :]
        own += (first - zeroth) * (v * (c - base))
        if GAUSSIAN:
            own += 0.5 * rise * (base * base - c * c)
    total = _add_parts(tl.sum(own, axis=1), sums, row, rows, count, 1)
    total = _add_parts(total, visible_sums, row, rows, visible_count, 1)
    tl.store(log_weight + row, total, row < rows)


def _launch_annealed(
    states: Any, weight: Any, bias: Any, base_bias: Any, betas: Any, key: Any, sample: Any, sums: Any, units: str,
    temperature: int,
) -> int:  # fmt: skip
    """Launch a half-step of annealing; the number of tiles of a row."""
    m, n = states.shape[0], weight.shape[0]
    if m * n == 0:
        return 0
    choice = _choice(states, weight, m * n)
    sizes, constants = operands(states, weight.T, 16)
    column_tiles = triton.cdiv(n, choice["n"])
    launch.triton(
        _annealed_half_step,
        (triton.cdiv(m, choice["m"]) * column_tiles,),
        (
            states, launch.Strided(weight), bias, base_bias, betas, key, sample, sums, *sizes,
            temperature, len(betas),
        ),
        constants
        | tile_constants(choice, weight.itemsize)
        | {"GAUSSIAN": units == "gaussian", "PARTS": _parts(choice)},
        warps=choice["warps"],
        stages=choice["stages"],
        registers=_FEW_REGISTERS if m * n < MANY else None,
    )  # fmt: skip
    return column_tiles


def annealed_importance_sampling(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """The product of the hidden half-step serves the weights too: two launches a temperature."""
    visible, weight, visible_bias, hidden_bias, base_bias, betas, key = inputs
    log_weight, visible_out = outputs
    hidden = _room(workspace[1], (len(visible), len(weight)), visible.dtype)
    sums, visible_sums = workspace[3], workspace[4]
    rows, units, steps = len(visible), attrs["units"], len(betas) - 1
    if rows == 0:
        return
    if steps == 0:
        log_weight.fill(0)
        visible_out[...] = visible
        return
    count = visible_count = 0
    for step in range(steps):
        source = visible_out if step else visible
        count = _launch_annealed(
            source, weight, hidden_bias, None, betas, key, hidden, sums, "bernoulli", step
        )  # fmt: skip
        visible_count = _launch_annealed(
            hidden, weight.T, visible_bias, base_bias, betas, key, visible_out, visible_sums, units, step
        )
    unit = math.gcd(visible.shape[1], 16)
    sizes = (rows, visible.shape[1] // unit, count, visible_count, len(betas))
    launch.triton(
        _log_weights,
        (triton.cdiv(rows, _ROWS),),
        (visible, visible_bias, base_bias, betas, sums, visible_sums, log_weight, *sizes),
        {
            "UNIT": unit, "ROWS": _ROWS, "COLUMNS": _COLUMNS, "GAUSSIAN": units == "gaussian",
            "REAL": tl.float64 if weight.itemsize == 8 else tl.float32,
        },
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# General Boltzmann machine
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _column_of(x, is_it):
    """The column of a tile at which `is_it` is true."""
    return tl.sum(tl.where(is_it, x, 0), axis=1)[:, None]


@triton.jit(do_not_specialize=["rows", "units", "sweeps"])
def _sweep(
    states, weight, bias, clamped, key, out, rows, units, sweeps,
    UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All sweeps of some chains, which no other program reads.

    The inputs of a block of units are a product; then, unit by unit, its change is added to those of the block.
    """
    n = units * UNIT
    real: tl.constexpr = tl.float64 if weight.dtype.element_ty == tl.float64 else tl.float32
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    at_row = row.to(n.dtype)[:, None] * n
    seed, draw, offset = key_of(key)
    for left in range(0, n, BLOCK_N):
        column = left + tl.arange(0, BLOCK_N)
        mask = (row[:, None] < rows) & (column[None, :] < n)
        tl.store(out + at_row + column[None, :], tl.load(states + at_row + column[None, :], mask), mask)
    tl.debug_barrier()
    of_sweep = offset * n.to(tl.uint64)
    for _ in range(0, sweeps):
        for left in range(0, n, BLOCK_N):
            column = left + tl.arange(0, BLOCK_N)
            mask = (row[:, None] < rows) & (column[None, :] < n)
            field = add_products(
                tl.zeros((BLOCK_M, BLOCK_N), real), out, weight, row, column, rows, n, 0, n, n, n, 1, 1, n, 1, 1,
                "row", "column", BLOCK_K, PRECISION,
            )  # fmt: skip
            field += widened(tl.load(bias + column, column < n, 0.0))[None, :]
            x = tl.load(out + at_row + column[None, :], mask, 0).to(real)
            w = _words(seed, draw, of_sweep, row, left, n, BLOCK_N, UNIT % 4 == 0)
            for unit in range(left, tl.minimum(left + BLOCK_N, n)):
                if tl.load(clamped + unit) == 0:
                    is_it = column[None, :] == unit
                    new = fires(sigmoid(_column_of(field, is_it)), _column_of(w, is_it))
                    change = new - _column_of(x, is_it)
                    line = widened(tl.load(weight + unit * n + column, column < n, 0.0))[None, :]
                    field += tl.where(change == 0, 0.0, change * line)
                    x = tl.where(is_it, new, x)
            tl.debug_barrier()
            _store_states(out + at_row + column[None, :], x, mask)
            tl.debug_barrier()
        of_sweep += STEP


SWEEPS = launch.Choices(
    "boltzmann_sweep.triton",
    ({"m": 16, "n": 64, "k": 32, "warps": 4, "stages": 3}, {"m": 16, "n": 32, "k": 32, "warps": 2, "stages": 3},
     {"m": 32, "n": 64, "k": 32, "warps": 8, "stages": 3}),
)  # fmt: skip


def boltzmann_sweep(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    """A program takes some of the chains through all sweeps."""
    states, weight = inputs[:2]
    if states.size == 0:
        return
    rows, units = states.shape
    choice, unit = SWEEPS.at(states.size), math.gcd(units, 16)
    launch.triton(
        _sweep,
        (triton.cdiv(rows, choice["m"]),),
        (*inputs, outputs[0], rows, units // unit, attrs["sweeps"]),
        {
            "UNIT": unit, "BLOCK_M": choice["m"], "BLOCK_N": choice["n"], "BLOCK_K": choice["k"],
            "PRECISION": precision(weight.itemsize),
        },
        warps=choice["warps"],
        stages=choice["stages"],
        registers=_FEW_REGISTERS,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------
# What `explain` says, and what a call takes
# ---------------------------------------------------------------------------------------------------------


_MULTIPLIED = {
    "half": "half types on tensor cores", "split": "the weight in two parts of bfloat16, on tensor cores",
    "float32": "three products in tf32, on tensor cores", "float64": "float64",
}  # fmt: skip


def note(op: KernelSpec, *inputs: Any, **attrs: Any) -> str:
    """What a call multiplies and in which tiles, and how a chain is launched and why.

    Parameters
    ----------
    op : the operation.
    inputs, attrs : of the call.
    """
    states, weight = _states(op, inputs), inputs[op.inputs.index("weight")]
    if op is spec.BOLTZMANN_SWEEP:
        return f"a program for {SWEEPS.at(states.size)['m']} chains and all their sweeps"
    multiplied = _MULTIPLIED[_kind(states, weight)]
    of_chain = op is spec.GIBBS_CHAIN or op is spec.CONTRASTIVE_DIVERGENCE
    if of_chain and _is_whole(weight):
        return f"{multiplied}; all steps in one launch: a weight of {weight.nbytes} bytes, {SMALL_WEIGHT} at most"
    counted = spec.half_steps(op, inputs, attrs)
    choices = [_choice(states, weight, len(states) * units) for _, units, *_ in counted]
    tiles = " and ".join(dict.fromkeys(f"{choice['m']} by {choice['n']}" for choice in choices))
    why = f": a weight of {weight.nbytes} bytes, above {SMALL_WEIGHT}" if of_chain else ""
    count = sum(number for number, *_ in counted)
    launches = "one launch" if count == 1 else f"a launch for each of {count} half-steps"
    return f"{multiplied}; {launches}{why}, in tiles of {tiles}"


_EFFICIENCY = 0.6
"""Share of the nominal rates that tiles are taken to reach."""
_OTHERS = {"gibbs_half_step": 0, "free_energy": 1, "gibbs_chain": 0, "contrastive_divergence": 3,
           "annealed_importance_sampling": 1}  # fmt: skip
"""Launches of a call beside its half-steps."""


def _states(op: KernelSpec, inputs: Arrays) -> Any:
    """What half-steps begin with."""
    return inputs[op.inputs.index("chain")] if op is spec.CONTRASTIVE_DIVERGENCE else inputs[0]


def estimate(op: KernelSpec, *inputs: Any, **attrs: Any) -> float:
    """Seconds of a call by the numbers of `gmkernels.cost`, which were measured elsewhere: not of these kernels.

    Parameters
    ----------
    op : the operation.
    inputs, attrs : of the call.
    """
    states, weight = _states(op, inputs), inputs[op.inputs.index("weight")]
    device, rows = cost.nominal_gpu(weight.data.device_id), len(states)
    kind = _kind(states, weight)
    faster = _EFFICIENCY * (2 if kind == "float32" else 1)  # three products in tf32 take half the time of multiply-adds
    seconds = _OTHERS[op.name] * cost.LAUNCH
    diverges = op is spec.CONTRASTIVE_DIVERGENCE
    if (op is spec.GIBBS_CHAIN or diverges) and _is_whole(weight):
        programs = triton.cdiv(rows, CHAINS.at(rows)["m"])
        half_step = cost.STEP + device.rounds(cost.Cost(weight.nbytes), programs)
        seconds += sum(count for count, *_ in spec.half_steps(op, inputs, attrs)) * half_step
        seconds += (1 + 2 * diverges) * cost.LAUNCH  # the means of both phases are half-steps by themselves
    else:
        for count, units, given, of in spec.half_steps(op, inputs, attrs):
            choice = _choice(states, weight, rows * units)
            of_unit = spec.product_cost(weight, kind == "split", 0, 2 * given / faster, spec.SLOTS[of] / _EFFICIENCY)
            tile = choice["m"], choice["n"]
            seconds += count * (cost.LAUNCH + spec.half_step_seconds(device, rows, units, tile, of_unit))
    return seconds + device.floor(spec.statistics_cost(op, inputs, attrs)) / _EFFICIENCY
