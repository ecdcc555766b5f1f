"""Sampling in Triton.

Rows of at most `LONGEST` elements are summed in one program: a tile is as many whole rows as fit into a block, side by
side as they lie in memory, so that neither noise nor accesses depend on where a row ends. For the sums, the terms of
neighbours that are in one row for certain are added, and what is left is gathered into a matrix of one row each.
Longer rows are cut into pieces, whose sums a second kernel adds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import triton
import triton.language as tl

from gmkernels import launch
from gmkernels.elementary_triton import number_of, widened
from gmkernels.rng.triton import in_order, key_of, normals, words
from gmkernels.sampling.spec import kept_below

Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

HALF_LOG2E = tl.constexpr(0.5 / math.log(2))
LOG_2PI = tl.constexpr(math.log(2 * math.pi))
BELOW_ONE_32, BELOW_ONE_64 = tl.constexpr(1 - 2.0**-24), tl.constexpr(1 - 2.0**-53)


# ---------------------------------------------------------------------------------------------------------
# gaussian_sample
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _load(pointer, k, tile, count, TAIL: tl.constexpr):
    """Elements k < count of an array, as numbers to compute with, and 0 behind them.

    A count that is not `tile`, a multiple of 4, is possible if TAIL: then elements are read one by one. The two loads
    differ in more than the mask (in what the first-level cache drops first), or the compiler would make them one.
    """
    if TAIL and count < tile:
        x = tl.load(pointer + k, mask=k < count, other=0)
    else:
        x = tl.load(pointer + k, mask=k < tile, other=0, eviction_policy="evict_first")
    return widened(x)


@triton.jit
def _store(pointer, k, x, tile, count, TAIL: tl.constexpr):
    """The same for a store."""
    if TAIL and count < tile:
        tl.store(pointer + k, x, mask=k < count)
    else:
        tl.store(pointer + k, x, mask=k < tile, eviction_policy="evict_first")


@triton.jit
def _row_sums(terms, units, UNIT: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr, PACKED: tl.constexpr):
    """Sums of the rows of a tile, each `units` times UNIT neighbouring terms: ROWS numbers."""
    COUNT: tl.constexpr = terms.shape[0] // UNIT
    if UNIT > 1:
        terms = tl.sum(tl.reshape(terms, (COUNT, UNIT)), axis=1)
    if PACKED:
        matrix = tl.reshape(terms, (ROWS, UNITS))
    else:
        column = tl.arange(0, UNITS)[None, :]
        index = tl.minimum(tl.arange(0, ROWS)[:, None] * units + column, COUNT - 1)
        gathered = tl.gather(terms, tl.reshape(index, (ROWS * UNITS,)), axis=0)
        matrix = tl.where(column < units, tl.reshape(gathered, (ROWS, UNITS)), 0.0)
    return tl.sum(matrix, axis=1)


@triton.jit
def _standard_deviation(v):
    """exp(v / 2)."""
    if v.dtype == tl.float64:
        sigma = tl.exp(0.5 * v)
    else:
        sigma = tl.exp2(v * HALF_LOG2E)
    return sigma


@triton.jit
def _noise(seed, draw, offset, start, BLOCK: tl.constexpr, REAL: tl.constexpr):
    """Normals of the elements start to start + BLOCK."""
    a, b, c, d = normals(seed, draw, offset, start, tl.arange(0, BLOCK // 4), REAL)
    return in_order(a, b, c, d)


@triton.jit
def _sample_rows(
    mu, logvar, key, z, kl, log_q, rows, width, samples, tile_rows, tiles, samples_each,
    TILES: tl.constexpr, BLOCK: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
    SINGLE: tl.constexpr, PACKED: tl.constexpr, ALIGNED: tl.constexpr, TAIL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Programs (tiles, parts of the samples): TILES tiles of `tile_rows` rows, `samples_each` samples of them.

    UNIT divides `width`; ALIGNED says that 4 divides the elements of a sample, or that there is but one sample. Unless
    TAIL, there are `tile_rows` rows or more, and the last tile starts early.
    """
    tile = tl.multiple_of(tile_rows * width, 4)
    if PACKED:
        tile = BLOCK
    size = rows * width
    k = tl.arange(0, BLOCK)
    r = tl.arange(0, ROWS)
    seed, draw, offset = key_of(key)
    first = number_of(0, WIDE) * TILES
    first_sample = number_of(1, WIDE) * samples_each
    for number in range(first, tl.minimum(first + TILES, tiles)):
        row = number * tile_rows
        if not TAIL:
            row = tl.minimum(row, rows - tile_rows)
        start = tl.multiple_of(row * width, 4)
        count = tl.minimum(size - start, tile)
        is_row = (r < tile_rows) & (r < rows - row)
        m, v = _load(mu + start, k, tile, count, TAIL), _load(logvar + start, k, tile, count, TAIL)
        sigma = _standard_deviation(v)
        if SINGLE or first_sample == 0:
            one = tl.full((BLOCK,), 1.0, m.dtype)
            terms = tl.fma(sigma, sigma, tl.fma(m, m, -one)) - v
            sums = _row_sums(terms, width // UNIT, UNIT, ROWS, UNITS, PACKED)
            tl.store(kl + row + r, 0.5 * sums, mask=is_row)
        units = width // UNIT
        if SINGLE:
            eps = _noise(seed, draw, offset, start, BLOCK, m.dtype)
            _store(z + start, k, tl.fma(sigma, eps, m), tile, count, TAIL)
            sums = _row_sums(tl.fma(eps, eps, v), units, UNIT, ROWS, UNITS, PACKED)
            tl.store(log_q + row + r, -0.5 * (sums + width.to(m.dtype) * LOG_2PI), mask=is_row)
        else:
            for sample in range(first_sample, tl.minimum(first_sample + samples_each, samples)):
                before = sample * size
                if ALIGNED:
                    before = tl.multiple_of(before, 4)
                eps = _noise(seed, draw, offset, before + start, BLOCK, m.dtype)
                _store(z + before + start, k, tl.fma(sigma, eps, m), tile, count, TAIL)
                sums = _row_sums(tl.fma(eps, eps, v), units, UNIT, ROWS, UNITS, PACKED)
                tl.store(log_q + sample * rows + row + r, -0.5 * (sums + width.to(m.dtype) * LOG_2PI), mask=is_row)


@triton.jit
def _sample_pieces(
    mu, logvar, key, z, kl, log_q, rows, width, pieces, piece,
    BLOCK: tl.constexpr, ALIGNED: tl.constexpr, FINISH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A program for each piece, of `piece` elements, of each row of z. Unless FINISH, kl and log_q take plain sums.

    ALIGNED says that 4 divides the width.
    """
    seed, draw, offset = key_of(key)
    number = number_of(0, WIDE)
    row, begin = number // pieces, number % pieces * piece
    of_first = row < rows
    before, source = row * width, row % rows * width
    if ALIGNED:
        before, source = tl.multiple_of(before, 4), tl.multiple_of(source, 4)
    REAL: tl.constexpr = tl.float64 if mu.dtype.element_ty == tl.float64 else tl.float32
    k = tl.arange(0, BLOCK)
    one = tl.full((BLOCK,), 1.0, REAL)
    kl_terms, log_q_terms = tl.zeros((BLOCK,), REAL), tl.zeros((BLOCK,), REAL)
    for start in range(tl.multiple_of(begin, 4), tl.minimum(begin + piece, width), BLOCK):
        count = tl.minimum(width - start, BLOCK)
        m = _load(mu + source + start, k, BLOCK, count, True)
        v = _load(logvar + source + start, k, BLOCK, count, True)
        sigma = _standard_deviation(v)
        eps = _noise(seed, draw, offset, before + start, BLOCK, REAL)
        _store(z + before + start, k, tl.fma(sigma, eps, m), BLOCK, count, True)
        kl_terms += tl.where(k < count, tl.fma(sigma, sigma, tl.fma(m, m, -one)) - v, 0.0)
        log_q_terms += tl.where(k < count, tl.fma(eps, eps, v), 0.0)
    kl_sum, log_q_sum = tl.sum(kl_terms, axis=0), tl.sum(log_q_terms, axis=0)
    if FINISH:
        kl_sum, log_q_sum = 0.5 * kl_sum, -0.5 * (log_q_sum + width.to(REAL) * LOG_2PI)
    if of_first:
        tl.store(kl + number, kl_sum)
    tl.store(log_q + number, log_q_sum)


@triton.jit
def _add_pieces(kl_parts, log_q_parts, kl, log_q, rows, width, pieces, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """A program for each row of z: its sums from those of its pieces, float64."""
    row = number_of(0, WIDE)
    k = tl.arange(0, BLOCK)
    of_first = row < rows
    kl_sums, log_q_sums = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for start in range(0, pieces, BLOCK):
        at, exist = row * pieces + start + k, start + k < pieces
        kl_sums += tl.load(kl_parts + at, mask=exist & of_first, other=0)
        log_q_sums += tl.load(log_q_parts + at, mask=exist, other=0)
    if of_first:
        tl.store(kl + row, 0.5 * tl.sum(kl_sums, axis=0))
    tl.store(log_q + row, -0.5 * (tl.sum(log_q_sums, axis=0) + width.to(tl.float64) * LOG_2PI))


class Tile(NamedTuple):
    """How rows are cut into tiles of whole rows: elements of a block, and rows of a tile."""

    block: int
    rows: int


@functools.cache
def tile_of(width: int, block: int) -> Tile | None:
    """The smallest tile that fills nine tenths of a block, of up to 4 times `block` elements; else the fullest.

    A tile has a multiple of 4 elements. None if no block can be filled to the half: for long rows.
    """
    step = 4 // math.gcd(width, 4)
    tiles = [Tile(size, size // width // step * step) for size in (block, 2 * block, 4 * block)]
    share = {tile: tile.rows * width / tile.block for tile in tiles}
    best = max(tiles, key=lambda tile: (min(share[tile], 0.9), -tile.block))
    return best if share[best] >= 0.5 else None


SAMPLE = launch.Choices(
    "gaussian_sample.triton",
    ({"block": 1024, "elements": 8, "tiles": 4}, {"block": 1024, "elements": 8, "tiles": 1},
     {"block": 2048, "elements": 16, "tiles": 2}, {"block": 512, "elements": 4, "tiles": 8}),
    classes=(1 << 20, 1 << 24),
)  # fmt: skip
"""Elements of a block and of a thread, and tiles of a program."""
PROGRAMS = 4096
"""Enough to keep any GPU busy: where there are fewer, a program does less."""


def gaussian_sample(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    mu, logvar, key = inputs
    z, kl, log_q = outputs
    width, rows, samples = mu.shape[-1], kl.size, 1 if attrs["samples"] is None else attrs["samples"]
    if not log_q.size:
        return
    if not width:
        kl.fill(0)
        log_q.fill(0)
        return
    choice = SAMPLE.at(z.size)
    block, threads = choice["block"], choice["block"] // choice["elements"]
    pieces = workspace[0].size // log_q.size or 1
    tile = tile_of(width, block) if pieces == 1 else None
    if tile is None:
        piece = -(-width // (pieces * block)) * block
        sums = (kl, log_q) if pieces == 1 else workspace
        constants = {"BLOCK": block, "ALIGNED": width % 4 == 0, "FINISH": pieces == 1}
        arguments = (mu, logvar, key, z, *sums, rows, width, pieces, piece)
        launch.triton(_sample_pieces, (log_q.size * pieces,), arguments, constants, warps=threads // 32)
        if pieces > 1:
            constants = {"BLOCK": min(1024, triton.next_power_of_2(pieces))}
            launch.triton(_add_pieces, (log_q.size,), (*workspace, kl, log_q, rows, width, pieces), constants, warps=1)
        return
    unit = math.gcd(width, 4)
    tiles = -(-rows // tile.rows)
    per_program = min(choice["tiles"], max(1, tiles * samples // PROGRAMS))
    samples_each = min(samples, max(1, tiles * samples // PROGRAMS))
    constants = {
        "TILES": per_program,
        "BLOCK": tile.block,
        "UNIT": unit,
        "ROWS": triton.next_power_of_2(tile.rows),
        "UNITS": triton.next_power_of_2(width // unit),
        "SINGLE": samples == 1,
        "PACKED": tile.rows * width == tile.block and width & (width - 1) == 0,
        "ALIGNED": samples == 1 or mu.size % 4 == 0,
        "TAIL": rows < tile.rows or (rows % tile.rows > 0 and width % 4 > 0),
    }
    arguments = (mu, logvar, key, z, kl, log_q, rows, width, samples, tile.rows, tiles, samples_each)
    grid = (-(-tiles // per_program), -(-samples // samples_each))
    launch.triton(_sample_rows, grid, arguments, constants, warps=tile.block // block * threads // 32)


# ---------------------------------------------------------------------------------------------------------
# gaussian_sample_backward
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _row_of(k, start, width, LONG: tl.constexpr):
    """The row of element start + k, for tensors k of numbers below 2^16: its first row, and what is to be added.

    LONG says that the width is not below these numbers; so only the next row is possible.
    """
    row = start // width
    local = k + (start - row * width)
    if LONG:
        more = (local >= width).to(tl.int32)
    else:
        more = local.to(tl.int32) // width.to(tl.int32)
    return row, more


RUN = tl.constexpr(32)
"""Samples that are added in the type to compute with, before they go to a sum in float64."""


@triton.jit
def _sample_backward(
    g_z, g_kl, g_log_q, mu, logvar, key, d_mu, d_logvar, size, rows, width, samples,
    SLICES: tl.constexpr, BLOCK: tl.constexpr, ALIGNED: tl.constexpr, LONG: tl.constexpr, SINGLE: tl.constexpr,
    TAIL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A program for BLOCK elements of mu; SLICES samples side by side. ALIGNED: 4 divides `size`, or SINGLE.

    More than one slice needs ALIGNED: then an element has the same lane in all samples.
    """
    start = number_of(0, WIDE) * BLOCK
    count = tl.minimum(size - start, BLOCK)
    k = tl.arange(0, BLOCK)[None, :]
    m, v = _load(mu + start, k, BLOCK, count, TAIL), _load(logvar + start, k, BLOCK, count, TAIL)
    sigma = _standard_deviation(v)
    row, more = _row_of(k, start, width, LONG)
    seed, draw, offset = key_of(key)
    exists = k < count
    quads = tl.arange(0, BLOCK // 4)[None, :]
    if SINGLE:
        g = _load(g_z + start, k, BLOCK, count, TAIL)
        a, b, c, d = normals(seed, draw, offset, start, quads, m.dtype)
        q = widened(tl.load(g_log_q + row + more, mask=exists, other=0))
        through_z, through_noise = g, tl.fma(g, sigma * in_order(a, b, c, d), -q)
    else:
        total_z, total_noise = tl.zeros((SLICES, BLOCK), tl.float64), tl.zeros((SLICES, BLOCK), tl.float64)
        s = tl.arange(0, SLICES)[:, None]
        if WIDE:
            s = s.to(tl.int64)
        for run in range(0, samples, RUN * SLICES):
            sum_z, sum_noise = tl.zeros((SLICES, BLOCK), m.dtype), tl.zeros((SLICES, BLOCK), m.dtype)
            for sample in range(run, tl.minimum(run + RUN * SLICES, samples), SLICES):
                before = sample * size
                offsets = s * size
                if ALIGNED:
                    before, offsets = tl.multiple_of(before, 4), tl.multiple_of(offsets, (1, 4))
                some = (s < samples - sample) & exists
                if TAIL and count < BLOCK:
                    g = tl.load(g_z + before + start + offsets + k, mask=some, other=0)
                else:
                    some = (s < samples - sample) & (k < BLOCK)
                    g = tl.load(g_z + before + start + offsets + k, mask=some, other=0, eviction_policy="evict_first")
                g = widened(g)
                a, b, c, d = normals(seed, draw, offset, before + start, s * (size // 4) + quads, m.dtype)
                q = tl.load(g_log_q + (sample + s) * rows + row + more, mask=some, other=0)
                sum_z += g
                sum_noise += tl.fma(g, sigma * in_order(a, b, c, d), -widened(q))
            total_z += sum_z
            total_noise += sum_noise
        through_z = tl.sum(total_z, axis=0, keep_dims=True).to(m.dtype)
        through_noise = tl.sum(total_noise, axis=0, keep_dims=True).to(m.dtype)
    f = widened(tl.load(g_kl + row + more, mask=exists, other=0))
    one = tl.full((1, BLOCK), 1.0, m.dtype)
    _store(d_mu + start, k, tl.fma(f, m, through_z), BLOCK, count, TAIL)
    d_v = 0.5 * tl.fma(f, tl.fma(sigma, sigma, -one), through_noise)
    _store(d_logvar + start, k, d_v, BLOCK, count, TAIL)


BACKWARD = launch.Choices(
    "gaussian_sample_backward.triton",
    ({"block": 1024, "warps": 4}, {"block": 512, "warps": 4}, {"block": 2048, "warps": 8}),
    classes=(1 << 20,),
)


def gaussian_sample_backward(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    g_z, g_kl, g_log_q, mu, logvar, key = inputs
    d_mu, d_logvar = outputs
    if not mu.size:
        return
    choice = BACKWARD.at(g_z.size)
    samples = 1 if attrs["samples"] is None else attrs["samples"]
    aligned = samples == 1 or mu.size % 4 == 0
    slices = 1
    while aligned and slices < 16 and 2 * slices <= samples and slices * mu.size < choice["block"] * PROGRAMS:
        slices *= 2
    block = choice["block"] // (slices if samples == 1 else 2 * slices)  # sums of float64 take many registers
    constants = {
        "SLICES": slices,
        "BLOCK": block,
        "ALIGNED": aligned,
        "LONG": mu.shape[-1] >= block,
        "SINGLE": samples == 1,
        "TAIL": mu.size % block > 0,
    }
    arguments = (g_z, g_kl, g_log_q, mu, logvar, key, d_mu, d_logvar, mu.size, g_kl.size, mu.shape[-1], samples)
    launch.triton(_sample_backward, (-(-mu.size // block),), arguments, constants, warps=choice["warps"])


# ---------------------------------------------------------------------------------------------------------
# bernoulli_sample, bernoulli_sample_logits, dropout
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _words(key, start, BLOCK: tl.constexpr):
    """Words of the elements start to start + BLOCK."""
    seed, draw, offset = key_of(key)
    a, b, c, d = words(seed, draw, offset, start, tl.arange(0, BLOCK // 4))
    return in_order(a, b, c, d)


@triton.jit
def fires(p, w):
    """1 where w < floor(p 2^32), else 0; NaN where p is not in [0, 1]. At p = 1 the threshold has 33 bits."""
    inside = (p >= 0) & (p <= 1)
    below_one = tl.full(p.shape, BELOW_ONE_64 if p.dtype == tl.float64 else BELOW_ONE_32, p.dtype)
    threshold = (tl.where(inside, tl.minimum(p, below_one), 0.0) * 4294967296.0).to(tl.uint32)
    return tl.where(inside, tl.where((w < threshold) | (p == 1), 1.0, 0.0), float("nan"))


@triton.jit
def _bernoulli(
    p, key, sample, size, n,
    BLOCK: tl.constexpr, LOGITS: tl.constexpr, UNIT: tl.constexpr, LONG: tl.constexpr, SINGLE: tl.constexpr,
    TAIL: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A program for BLOCK of the n results; `size` of them, a multiple of UNIT, for each sample."""
    start = number_of(0, WIDE) * BLOCK
    count = tl.minimum(n - start, BLOCK)
    k = tl.arange(0, BLOCK)
    if SINGLE:
        x = _load(p + start, k, BLOCK, count, TAIL)
    else:
        units = tl.arange(0, BLOCK // UNIT)
        done, more = _row_of(units, start // UNIT, size // UNIT, LONG)
        at = (units + (start // UNIT - done * (size // UNIT)) - more * (size // UNIT))[:, None] * UNIT
        at = tl.reshape(at + tl.arange(0, UNIT)[None, :], (BLOCK,))
        x = widened(tl.load(p + at, mask=k < count, other=0))
    if LOGITS:
        x = 1 / (1 + tl.exp(-x))
    _store(sample + start, k, fires(x, _words(key, start, BLOCK)), BLOCK, count, TAIL)


WORDS = launch.Choices(
    "bernoulli_sample.triton",
    ({"block": 1024, "warps": 4}, {"block": 2048, "warps": 8}, {"block": 2048, "warps": 4}),
    classes=(1 << 20,),
)


def _bernoulli_sample(inputs: Arrays, outputs: Arrays, are_logits: bool) -> None:
    (p, key), (sample,) = inputs, outputs
    if not sample.size:
        return
    choice = WORDS.at(sample.size)
    block, unit = choice["block"], math.gcd(p.size, 4)
    constants = {
        "BLOCK": block,
        "LOGITS": are_logits,
        "UNIT": unit,
        "LONG": p.size >= block,
        "SINGLE": sample.size == p.size,
        "TAIL": sample.size % block > 0,
    }
    arguments = (p, key, sample, p.size, sample.size)
    launch.triton(_bernoulli, (-(-sample.size // block),), arguments, constants, warps=choice["warps"])


def bernoulli_sample(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _bernoulli_sample(inputs, outputs, False)


def bernoulli_sample_logits(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _bernoulli_sample(inputs, outputs, True)


@triton.jit
def _dropout(
    x, key, y, n, last, scale: tl.float64, BLOCK: tl.constexpr, TAIL: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """`last` is the largest word that keeps, as a signed number."""
    start = number_of(0, WIDE) * BLOCK
    count = tl.minimum(n - start, BLOCK)
    k = tl.arange(0, BLOCK)
    value = _load(x + start, k, BLOCK, count, TAIL)
    kept = _words(key, start, BLOCK) <= last.to(tl.uint32)
    _store(y + start, k, tl.where(kept, value * scale.to(value.dtype), 0.0), BLOCK, count, TAIL)


def dropout(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    (x, key), (y,) = inputs, outputs
    bound = kept_below(attrs["p"])
    if not y.size:
        return
    if bound == 0:
        y.fill(0)
        return
    choice = WORDS.at(y.size)
    block, last = choice["block"], bound - 1
    arguments = (x, key, y, y.size, last - (last >> 31 << 32), 1 / (1 - attrs["p"]))
    constants = {"BLOCK": block, "TAIL": y.size % block > 0}
    launch.triton(_dropout, (-(-y.size // block),), arguments, constants, warps=choice["warps"])
