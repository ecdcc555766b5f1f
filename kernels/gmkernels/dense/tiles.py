"""How a matrix product is cut into tiles, each made by single-threaded BLAS in a block of its own."""

from __future__ import annotations

import functools
import math

UNIT = 16  # tiles start at multiples of this, which suits the register tiles of every BLAS
MAX_TILES = 64
WHOLE, HALVES = 3e6, 2e8
PANEL_BYTES = 128
"""Of a row of a panel (see `gmkernels.dense.panel`)."""


@functools.lru_cache(1024)
def tiles(m: int, k: int, n: int) -> tuple[int, int]:
    """Numbers of row tiles and of column tiles of an (m, k) by (k, n) product.

    Every tile packs its rows of A and columns of B anew, so few large tiles are best for the work and many for
    the balance. A product of up to `WHOLE` multiplications is one tile, one of up to `HALVES` two, and above that
    there is one for every 100 of the geometric mean of m, k and n, rounded to a power of two. Of the ways to arrange
    them, the one is taken that packs least, an element of A counting twice one of B (measured).
    The work of 1 x 2 tiles of 100 x 784 x 500 was 3 % above that of a single product, that of 1 x 4 tiles 11 %; of
    2 x 1 tiles of 1000 x 200 x 784 7 %, of 4 x 1 tiles 19 %, where 2 x 2 would be 17 %.
    """
    multiplications = m * k * n
    if multiplications <= HALVES:
        count = 1 if multiplications <= WHOLE else 2
    else:
        count = min(MAX_TILES, 1 << round(math.log2(multiplications ** (1 / 3) / 100)))
    row_units, column_units = -(-m // UNIT), -(-n // UNIT)
    best = (1, 1)
    for rows in (1 << i for i in range(count.bit_length())):
        row_tiles, column_tiles = min(rows, row_units), min(count // rows, column_units)
        new, old = row_tiles * column_tiles, best[0] * best[1]
        packed, least = 2 * m * column_tiles + n * row_tiles, 2 * m * best[1] + n * best[0]
        if new > old or (new == old and packed < least):
            best = (row_tiles, column_tiles)
    return best
