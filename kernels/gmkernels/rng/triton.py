"""The random stream in Triton, for the fills here and for the kernels of `sampling`.

A tile is 4 GROUPS consecutive elements of an array. `words` gives its random words and `normals` its normals as four
tensors of GROUPS elements, by lane: element 4 q + j of the tile is element q of tensor j. `in_order` joins them to
one tensor in the order of memory, in which each thread has four neighbours: 128-bit accesses of float32. So each
Philox block is computed once, and a lane that is missing in a tensor of words is not seen by the next step.

Where an array's first element is not the first of its group (an offset that is not a multiple of 4), the elements of
a tile lie in one group more. Then the next group of each is made too, and the lanes are taken from both: twice the
work, but the accesses stay as they are.

The arithmetic repeats `reference` operation by operation; multiply-adds are spelled where the product is exact, and
in the square root, whose argument is never near the ends of the range of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import triton
import triton.language as tl

from gmkernels import launch
from gmkernels.rng import constants

M0, M1 = (tl.constexpr(m) for m in constants.MULTIPLIERS)
W0, W1 = (tl.constexpr(w) for w in constants.WEYL)
ROUNDS = tl.constexpr(constants.ROUNDS)
LAST_GROUP = tl.constexpr(2**62 - 1)

LOG32, SIN32, COS32 = (tl.constexpr(c) for c in (constants.FLOAT32.log, constants.FLOAT32.sin, constants.FLOAT32.cos))
LOG64, SIN64, COS64 = (tl.constexpr(c) for c in (constants.FLOAT64.log, constants.FLOAT64.sin, constants.FLOAT64.cos))
QUARTER = tl.constexpr(constants.TURN / 4)
TWO_LN2 = tl.constexpr(2 * math.log(2))
SCALE, SHIFT = tl.constexpr(2.0**-32), tl.constexpr(2.0**-33)


@triton.jit
def _philox(group, draw_low, draw_high, seed_low, seed_high):
    """Philox4x32-10 for counters (group, draw): words by lane. Products of 64 bits are one instruction."""
    c0, c1 = group.to(tl.uint32), (group >> 32).to(tl.uint32)
    c2, c3, k0, k1 = draw_low, draw_high, seed_low, seed_high
    for _ in tl.static_range(ROUNDS):
        p0, p1 = c0.to(tl.uint64) * M0, c2.to(tl.uint64) * M1
        c0, c2 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = p1.to(tl.uint32), p0.to(tl.uint32)
        k0, k1 = k0 + W0, k1 + W1
    return c0, c1, c2, c3


@triton.jit
def key_of(key, step=1):
    """(seed, draw, offset) in memory -> three numbers. Before a loop: behind a store, they would be loaded again."""
    return tl.load(key), tl.load(key + step), tl.load(key + 2 * step)


@triton.jit
def _group_words(seed, draw, group):
    """The words of groups."""
    return _philox(
        group & LAST_GROUP,
        draw.to(tl.uint32),
        (draw >> 32).to(tl.uint32),
        seed.to(tl.uint32),
        (seed >> 32).to(tl.uint32),
    )


@triton.jit
def _polynomial(x, c: tl.constexpr, first: tl.constexpr, step: tl.constexpr, last: tl.constexpr):
    """c[first] + x (c[first + step] + x (... + x c[last]))."""
    y = tl.full(x.shape, c[last], x.dtype)
    for i in tl.static_range(last - step, first - 1, -step):
        y = c[i] + x * y
    return y


@triton.jit
def _root(x):
    """The correctly rounded square root of float32 numbers that are not near the ends of the range."""
    r = tl.rsqrt(x)
    s = x * r
    return tl.fma(tl.fma(-s, s, x), 0.5 * r, s)


@triton.jit
def _radius(w, REAL: tl.constexpr):
    """sqrt(-2 log u) of the uniforms of words: `reference.minus_two_log_uniforms`."""
    signed = w.to(tl.int32, bitcast=True)
    upper = signed < 0
    t = tl.fma(signed.to(REAL), tl.full(w.shape, SCALE, REAL), tl.full(w.shape, SHIFT, REAL))
    if REAL == tl.float64:
        bits = t.to(tl.int64, bitcast=True)
        k = tl.where(upper, 0, 1022 - (bits >> 52))
        mantissa = (bits & ((1 << 52) - 1)) | 0x3FE0000000000000
    else:
        bits = t.to(tl.int32, bitcast=True)
        k = tl.where(upper, 0, 126 - (bits >> 23))
        mantissa = (bits & ((1 << 23) - 1)) | 0x3F000000
    g = tl.where(upper, -t, 1.0 - mantissa.to(REAL, bitcast=True))
    square = g * g
    if REAL == tl.float64:
        series = _polynomial(square, LOG64, 0, 2, 18) + g * _polynomial(square, LOG64, 1, 2, 19)
    else:
        series = _polynomial(square, LOG32, 0, 2, 8) + g * _polynomial(square, LOG32, 1, 2, 7)
    minus_two_log = k.to(REAL) * TWO_LN2 + g * series
    if REAL == tl.float64:
        root = tl.sqrt(minus_two_log)  # correctly rounded in float64
    else:
        root = _root(minus_two_log)
    return root


@triton.jit
def _with_sign(x, word, REAL: tl.constexpr):
    """x, negated where the top bit of the word is set."""
    if REAL == tl.float64:
        bits = x.to(tl.uint64, bitcast=True) ^ ((word & 0x80000000).to(tl.uint64) << 32)
    else:
        bits = x.to(tl.uint32, bitcast=True) ^ (word & 0x80000000)
    return bits.to(REAL, bitcast=True)


@triton.jit
def _cos_sin(w, REAL: tl.constexpr):
    """Cosine and sine of the angles 2 pi w / 2^32: `reference.cos_sin`."""
    turned = w + (1 << 29)  # its two top bits are the quadrant
    doubled = turned << 1
    x = (w << 2).to(tl.int32, bitcast=True).to(REAL) * tl.full(w.shape, QUARTER, REAL)
    z = x * x
    if REAL == tl.float64:
        sin, cos = _polynomial(z, SIN64, 0, 1, 5), _polynomial(z, COS64, 0, 1, 5)
    else:
        sin, cos = _polynomial(z, SIN32, 0, 1, 2), _polynomial(z, COS32, 0, 1, 2)
    sin = x + x * z * sin
    cos = tl.fma(tl.full(w.shape, -0.5, REAL), z, tl.full(w.shape, 1.0, REAL)) + z * z * cos
    odd = doubled.to(tl.int32, bitcast=True) < 0
    c, s = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    return _with_sign(c, turned ^ doubled, REAL), _with_sign(s, turned, REAL)


@triton.jit
def _group_normals(seed, draw, group, REAL: tl.constexpr):
    """The normals of groups."""
    w0, w1, w2, w3 = _group_words(seed, draw, group)
    r, s = _radius(w0, REAL), _radius(w2, REAL)
    c1, s1 = _cos_sin(w1, REAL)
    c3, s3 = _cos_sin(w3, REAL)
    return r * c1, r * s1, s * c3, s * s3


@triton.jit
def _from(lane, a0, a1, a2, a3, b0, b1, b2):
    """Four lanes from `lane` on, of groups a and, behind them, groups b."""
    one, two = lane == 1, lane == 2
    return (
        tl.where(one, a1, tl.where(two, a2, a3)),
        tl.where(one, a2, tl.where(two, a3, b0)),
        tl.where(one, a3, tl.where(two, b0, b1)),
        tl.where(one, b0, tl.where(two, b1, b2)),
    )


@triton.jit
def _from_any(lane, a0, a1, a2, a3, b0, b1, b2):
    """The same for lanes of which some may be 0."""
    s0, s1, s2, s3 = _from(lane, a0, a1, a2, a3, b0, b1, b2)
    zero = lane == 0
    return tl.where(zero, a0, s0), tl.where(zero, a1, s1), tl.where(zero, a2, s2), tl.where(zero, a3, s3)


@triton.jit
def words(seed, draw, offset, start, quads):
    """Random words of elements of a key's stream, in fours, by lane.

    Parameters
    ----------
    seed, draw, offset : the key, uint64.
    start : a number, int32 or int64: the first element.
    quads : tensor of int32 or int64 numbers q: the elements are start + 4 q to start + 4 q + 3.

    Returns
    -------
    Four tensors like `quads`, of the words of the elements start + 4 q + 0, 1, 2 and 3.
    """
    first = offset + start
    lane = first & 3
    group = (first >> 2) + quads.to(tl.uint64)
    w0, w1, w2, w3 = _group_words(seed, draw, group)
    if lane != 0:
        n0, n1, n2, _ = _group_words(seed, draw, group + 1)
        w0, w1, w2, w3 = _from(lane, w0, w1, w2, w3, n0, n1, n2)
    return w0, w1, w2, w3


@triton.jit
def normals(seed, draw, offset, start, quads, REAL: tl.constexpr):
    """Standard normals of elements of a key's stream, in fours, by lane: as `words`, with REAL float32 or float64."""
    first = offset + start
    lane = first & 3
    group = (first >> 2) + quads.to(tl.uint64)
    z0, z1, z2, z3 = _group_normals(seed, draw, group, REAL)
    if lane != 0:
        n0, n1, n2, _ = _group_normals(seed, draw, group + 1, REAL)
        z0, z1, z2, z3 = _from(lane, z0, z1, z2, z3, n0, n1, n2)
    return z0, z1, z2, z3


@triton.jit
def words_of_rows(seed, draw, offset, start, quads):
    """As `words`, with a first element for each row: `start` is a tensor (rows, 1), and `quads` one (1, columns)."""
    first = offset + start
    group = (first >> 2) + quads.to(tl.uint64)
    w0, w1, w2, w3 = _group_words(seed, draw, group)
    n0, n1, n2, _ = _group_words(seed, draw, group + 1)
    return _from_any(first & 3, w0, w1, w2, w3, n0, n1, n2)


@triton.jit
def normals_of_rows(seed, draw, offset, start, quads, REAL: tl.constexpr):
    """As `normals`, with a first element for each row: see `words_of_rows`."""
    first = offset + start
    group = (first >> 2) + quads.to(tl.uint64)
    z0, z1, z2, z3 = _group_normals(seed, draw, group, REAL)
    n0, n1, n2, _ = _group_normals(seed, draw, group + 1, REAL)
    return _from_any(first & 3, z0, z1, z2, z3, n0, n1, n2)


@triton.jit
def in_order(a, b, c, d):
    """Tensors by lane -> one tensor in the order of elements."""
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def uniforms_of(w, REAL: tl.constexpr):
    """The uniforms of words: `reference.uniforms`. The product is exact."""
    return tl.fma(w.to(REAL), tl.full(w.shape, SCALE, REAL), tl.full(w.shape, SHIFT, REAL))


# ---------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------


@triton.jit
def _fill(key, out, n, KIND: tl.constexpr, GROUPS: tl.constexpr, WIDE: tl.constexpr):
    start = tl.program_id(0)
    if WIDE:
        start = start.to(tl.int64)
    start *= 4 * GROUPS
    seed, draw, offset = key_of(key)
    if KIND == "normal":
        a, b, c, d = normals(seed, draw, offset, start, tl.arange(0, GROUPS), out.dtype.element_ty)
    else:
        a, b, c, d = words(seed, draw, offset, start, tl.arange(0, GROUPS))
        if KIND == "uniform":
            a, b = uniforms_of(a, out.dtype.element_ty), uniforms_of(b, out.dtype.element_ty)
            c, d = uniforms_of(c, out.dtype.element_ty), uniforms_of(d, out.dtype.element_ty)
    filled = in_order(a, b, c, d)
    at = start + tl.arange(0, 4 * GROUPS)
    if start + 4 * GROUPS <= n:
        tl.store(out + at, filled)
    else:
        tl.store(out + at, filled, mask=at < n)


Arrays = Sequence[Any]
Attrs = Mapping[str, Any]

CHOICES = launch.Choices(
    "rng.triton", ({"groups": 256, "warps": 4}, {"groups": 128, "warps": 4}, {"groups": 512, "warps": 4})
)


def _filled(kind: str, key: Any, out: Any) -> None:
    if out.size:
        choice = CHOICES.at(out.size)
        groups = choice["groups"]
        grid = (-(-out.size // (4 * groups)),)
        launch.triton(_fill, grid, (key, out, out.size), {"KIND": kind, "GROUPS": groups}, warps=choice["warps"])


def random_words(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _filled("words", inputs[0], outputs[0])


def uniform(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _filled("uniform", inputs[0], outputs[0])


def normal(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Attrs) -> None:
    _filled("normal", inputs[0], outputs[0])
