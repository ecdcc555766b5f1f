"""The random stream in Numba, for the fills here and for the kernels of `sampling`.

A tile is up to `TILE` consecutive elements of a key's stream. `word_tile`, `uniform_tile` and `normal_tile`
write it into the caller's scratch, starting with the group that holds its first element, and return the lane
of that element: element i of the tile is ``scratch[lane + i]``. The words of a tile are kept by lane (first
all words 0, then all words 1, ...), so that loops over groups vectorise.

The arithmetic repeats `reference` operation by operation. No fastmath here: the bits are the stream's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numba.np import arrayobj

from gmkernels.elementary import INLINE, fma, inline, polynomial, same_bits, select
from gmkernels.pool import block_kernel, jitable, long_loop, scratch
from gmkernels.rng import constants
from gmkernels.vectors import VECTOR_BYTES, fetch, spread

_intrinsic: Any = intrinsic  # the function it makes takes other arguments than mypy sees

TILE = 1536
"""Elements of a tile: its scratch arrays together stay in a first-level cache of 48 KB, and its beginning takes as long
as 60 normals."""
LANES = VECTOR_BYTES // 8
CHAINS = 4
"""Vectors of groups that are made at once. A round waits for the one before it, some seven cycles; those of four
vectors overlap, while LLVM, left to itself, takes two. Six are an eighth faster by themselves, but not in a kernel."""
STEP = CHAINS * LANES
SCRATCH = TILE + 4 * STEP
"""Elements of a scratch array: a tile that starts in lane 3 touches one group more, and `STEP` groups are made at once,
so that no loop has a remainder."""
BLOCK = 8 * TILE
"""Elements of a block."""

u32, u64 = np.uint32, np.uint64
LOW, SHIFT = u64(0xFFFFFFFF), u64(32)
M0, M1 = (u64(m) for m in constants.MULTIPLIERS)
W0, W1 = (u64(w) for w in constants.WEYL)
GROUPS = u64(2**62 - 1)
ROUNDS = constants.ROUNDS


@inline
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 on words held in the low halves of uint64: what the vector multiplier takes and gives."""
    for _ in range(ROUNDS):
        p0 = M0 * (c0 & LOW)
        p1 = M1 * (c2 & LOW)
        c0, c1, c2, c3 = (p1 >> SHIFT) ^ c1 ^ k0, p1, (p0 >> SHIFT) ^ c3 ^ k1, p0
        k0, k1 = k0 + W0, k1 + W1
    return c0, c1, c2, c3


@_intrinsic
def _philox_step(typing_context, words, at, groups, group, c2, c3, k0, k1):
    """The words of `STEP` groups, by lane: word j of group i at ``words[j groups + at + i]``."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        words_, at, groups, *numbers = args
        wide = ir.VectorType(ir.IntType(64), LANES)

        def constant(number: int) -> Any:
            return ir.Constant(wide, [number] * LANES)

        group, c2, c3, k0, k1 = [spread(builder, number, LANES) for number in numbers]
        half, low = constant(32), constant(2**32 - 1)
        chains = []
        for chain in range(CHAINS):
            c0 = builder.add(group, ir.Constant(wide, list(range(chain * LANES, (chain + 1) * LANES))))
            c0 = builder.and_(c0, constant(int(GROUPS)))
            chains.append((c0, builder.lshr(c0, half), c2, c3))
        for _ in range(ROUNDS):
            for chain, (c0, c1, c2, c3) in enumerate(chains):
                p0 = builder.mul(constant(int(M0)), builder.and_(c0, low))
                p1 = builder.mul(constant(int(M1)), builder.and_(c2, low))
                c0 = builder.xor(builder.xor(builder.lshr(p1, half), c1), k0)
                c2 = builder.xor(builder.xor(builder.lshr(p0, half), c3), k1)
                chains[chain] = c0, p1, c2, p0
            k0, k1 = builder.add(k0, constant(int(W0))), builder.add(k1, constant(int(W1)))
        # The low halves (the processor is little-endian) of two vectors fill one, which is stored whole.
        narrow = ir.VectorType(ir.IntType(32), 2 * LANES)
        low_halves = ir.Constant(narrow, list(range(0, 4 * LANES, 2)))
        start = builder.gep(arrayobj.make_array(words)(context, builder, words_).data, [at])
        for word in range(4):
            for chain in range(0, CHAINS, 2):
                pair = [builder.bitcast(chains[c][word], narrow) for c in (chain, chain + 1)]
                place = builder.gep(start, [ir.IntType(64)(chain * LANES)])
                whole = builder.shuffle_vector(*pair, low_halves)
                builder.store(whole, builder.bitcast(place, narrow.as_pointer()), align=4)
            start = builder.gep(start, [groups])
        return context.get_dummy_value()

    integer = types.int64
    return types.void(words, integer, integer, *[types.uint64] * 5), generate


@jitable
def word_tile(key, start, count, words, soon=()):
    """Words of the groups that hold elements start to start + count of the key's stream, by lane.

    Returns the lane of the first element and the number of groups, rounded up to whole vectors. Meanwhile as many
    elements of the arrays `soon` come into the cache: the caller would wait for them, and this loop needs no memory.
    """
    first = key[2] + u64(start)
    lane = np.int64(first & u64(3))
    groups = ((lane + count + 3) >> 2) + STEP - 1 & -STEP
    group = first >> u64(2)
    k0, k1 = key[0], key[0] >> SHIFT
    c2, c3 = key[1], key[1] >> SHIFT
    for i in range(0, groups, STEP):
        fetch(soon, 4 * i, 4 * STEP)
        _philox_step(words, i, groups, group + u64(i), c2, c3, k0, k1)
    return lane, groups


@jitable
def copy(x, y):
    """x -> y; Numba's own assignment of slices looks for overlaps first and is many times slower."""
    for i in range(y.size):
        y[i] = x[i]


@jitable
def interleave(words, groups, out):
    """Words by lane -> words in stream order."""
    w0, w1 = words[:groups], words[groups : 2 * groups]
    w2, w3 = words[2 * groups : 3 * groups], words[3 * groups : 4 * groups]
    for i in range(groups):
        out[4 * i] = w0[i]
        out[4 * i + 1] = w1[i]
        out[4 * i + 2] = w2[i]
        out[4 * i + 3] = w3[i]


def _functions(c: Any) -> tuple[Callable[..., Any], ...]:
    """Uniform, squared radius, and cosine and sine of a word, in the dtype with the constants `c`."""
    real, integer = c.float, c.int
    one, half = real(1), real(0.5)
    scale, shift, turn, two_ln2 = real(2.0**-32), real(2.0**-33), real(constants.TURN / 4), real(2 * math.log(2))
    half_bits, mantissa_mask, mantissa_bits = integer(c.half), integer((1 << c.mantissa) - 1), integer(c.mantissa)
    half_exponent = np.int32(c.half >> c.mantissa)
    eighth, top_bit = u32(1 << 29), u32(1 << 31)
    log_even, log_odd = (polynomial(c.log[parity::2], real, fused=False) for parity in (0, 1))
    sin_tail, cos_tail = (polynomial(p, real, fused=False) for p in (c.sin, c.cos))
    sign_shift = integer(8 * integer(0).itemsize - 32)

    @inline
    def with_sign(x, word):
        """x, negated where the top bit of the word is set."""
        sign = integer(integer(np.int32(word & top_bit)) << sign_shift)
        return same_bits(integer(same_bits(x) ^ sign))

    @inline
    def uniform(w):
        return real(w) * scale + shift

    @inline
    def squared_radius(w):
        signed = np.int32(w)
        upper = signed < np.int32(0)
        t = fma(real(signed), scale, shift)  # the product is exact, so the sum is rounded as in two steps
        bits = same_bits(t)
        k = select(upper, np.int32(0), np.int32(half_exponent - np.int32(bits >> mantissa_bits)))
        g = select(upper, -t, one - same_bits(integer(integer(bits & mantissa_mask) | half_bits)))
        square = g * g
        return real(k) * two_ln2 + g * (log_even(square) + g * log_odd(square))

    @inline
    def cos_sin(w):
        turned = u32(w + eighth)  # its two top bits are the quadrant
        x = real(np.int32(u32(w << u32(2)))) * turn
        z = x * x
        sin = x + x * z * sin_tail(z)
        cos = fma(-half, z, one) + z * z * cos_tail(z)  # the product with 1/2 is exact
        doubled = u32(turned << u32(1))
        odd = np.int32(doubled) < np.int32(0)
        c, s = select(odd, sin, cos), select(odd, cos, sin)
        return with_sign(c, u32(turned ^ doubled)), with_sign(s, turned)

    return uniform, squared_radius, cos_sin


_DTYPES = {types.float32: _functions(constants.FLOAT32), types.float64: _functions(constants.FLOAT64)}


def _dispatched(number: int) -> Callable[[Any, Any], Any]:
    """One of those functions as f(word, like), in the dtype of `like`; in compiled code only."""

    def function(w: Any, like: Any) -> Any:
        raise NotImplementedError

    @overload(function, jit_options={"error_model": "numpy", **INLINE})
    def compiled(w, like):
        body = _DTYPES[like][number]
        return lambda w, like: body(w)

    return function


uniform_of, squared_radius_of, cos_sin_of = (_dispatched(number) for number in range(3))


@jitable
def uniform_tile(key, start, count, words, out):
    """Uniforms of a tile; returns the lane of its first element in `out`."""
    lane, groups = word_tile(key, start, count, words)
    w0, w1 = words[:groups], words[groups : 2 * groups]
    w2, w3 = words[2 * groups : 3 * groups], words[3 * groups : 4 * groups]
    like = out[0]
    for i in range(groups):
        out[4 * i] = uniform_of(w0[i], like)
        out[4 * i + 1] = uniform_of(w1[i], like)
        out[4 * i + 2] = uniform_of(w2[i], like)
        out[4 * i + 3] = uniform_of(w3[i], like)
    return lane


@jitable
def _squared_radii(w, squares):
    long_loop()
    for i in range(w.size):
        squares[i] = squared_radius_of(w[i], squares[i])


@jitable
def _turn(w, x, y):
    """x = r cos, y = r sin of the angles of w, where x holds r^2: beside the angle's polynomials the root is free."""
    long_loop()
    for i in range(w.size):
        r = np.sqrt(x[i])
        cos, sin = cos_sin_of(w[i], r)
        y[i] = r * sin
        x[i] = r * cos


@jitable
def normal_tile(key, start, count, words, lanes, out, soon=(), later=()):
    """Normals of a tile; returns the lane of its first element in `out`. `lanes` is scratch of its dtype.

    Meanwhile as many elements of the arrays `soon` and `later` come into the cache, those of `later` after the others:
    the processor waits if there are more than some thirty lines on their way.
    """
    lane, n = word_tile(key, start, count, words, soon)
    for i in (0, 2 * n):  # two short loops a pair of lanes: their chains of operations overlap
        fetch(later, i, n)
        _squared_radii(words[i : i + n], lanes[i : i + n])
        fetch(later, i + n, n)
        _turn(words[i + n : i + 2 * n], lanes[i : i + n], lanes[i + n : i + 2 * n])
    interleave(lanes, n, out)
    return lane


# ---------------------------------------------------------------------------------------------------------
# Kernels
# ---------------------------------------------------------------------------------------------------------


@block_kernel
def _random_words(block, key, out):
    words, tile = scratch(SCRATCH, np.uint32), scratch(SCRATCH, np.uint32)
    end = min(block * BLOCK + BLOCK, out.size)
    for start in range(block * BLOCK, end, TILE):
        piece = out[start : min(start + TILE, end)]
        lane, groups = word_tile(key, start, piece.size, words)
        interleave(words, groups, tile)
        copy(tile[lane : lane + piece.size], piece)


@block_kernel
def _uniform(block, key, out):
    words, tile = scratch(SCRATCH, np.uint32), scratch(SCRATCH, out.dtype)
    end = min(block * BLOCK + BLOCK, out.size)
    for start in range(block * BLOCK, end, TILE):
        piece = out[start : min(start + TILE, end)]
        lane = uniform_tile(key, start, piece.size, words, tile)
        copy(tile[lane : lane + piece.size], piece)


@block_kernel
def _normal(block, key, out):
    words = scratch(SCRATCH, np.uint32)
    lanes, tile = scratch(SCRATCH, out.dtype), scratch(SCRATCH, out.dtype)
    end = min(block * BLOCK + BLOCK, out.size)
    for start in range(block * BLOCK, end, TILE):
        piece = out[start : min(start + TILE, end)]
        lane = normal_tile(key, start, piece.size, words, lanes, tile)
        copy(tile[lane : lane + piece.size], piece)


Arrays = Sequence[Any]


def random_words(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    _random_words(-(-outputs[0].size // BLOCK), inputs[0], outputs[0])


def uniform(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    _uniform(-(-outputs[0].size // BLOCK), inputs[0], outputs[0])


def normal(inputs: Arrays, outputs: Arrays, workspace: Arrays, attrs: Mapping[str, Any]) -> None:
    _normal(-(-outputs[0].size // BLOCK), inputs[0], outputs[0])
