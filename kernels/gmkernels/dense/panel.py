"""Products of rows with a matrix in panels, which are packed once and used for all of the rows.

The columns of the matrix are cut into panels of `PANEL_BYTES`, each stored row after row. A tile of the result, of a
few rows and one panel's columns, stays in registers while a loop runs down the panel. The rows are read where they
lie: of each one number at a time is spread over a vector, so neither their order nor their distance matters, nor that
of the numbers in a row, which are `step` apart.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from gmkernels.dense.tiles import PANEL_BYTES
from gmkernels.pool import jitable, long_loop, scratch
from gmkernels.vectors import VECTOR_BYTES, WIDTH, move, prefetch, spread, transpose_square

_intrinsic: Any = intrinsic  # the function it makes takes other arguments than mypy sees

WIDE = VECTOR_BYTES == 64
"""Whether there are 32 registers of 64 bytes."""
# Rows of a tile. With two vectors each, ten are what the addresses of rows leave registers for, and eight fit where
# rows come in powers of two. Without wide registers a tile has four vectors a row, and there are eight for sums.
_MORE, _FEWER = (10, 8) if WIDE else (2, 2)
_SQUARE = 16 if WIDE else 8
_EDGE = _MORE * PANEL_BYTES // 4


@_intrinsic(prefer_literal=True)
def _tile(typing_context, rows, alive, a, at_a, lda, step, panel, at, inner, add, c, at_c, ldc):
    """c = a panel, or c += a panel: `rows`, a constant, of which the first `alive` exist."""
    if not isinstance(rows, types.IntegerLiteral):
        return None
    integer = types.int64

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, alive, a_, at_a, lda, step, panel_, at, inner, add, c_, at_c, ldc = args
        number, index = context.get_data_type(c.dtype), ir.IntType(64)
        item = context.get_abi_sizeof(number)
        lanes = VECTOR_BYTES // item
        vector = ir.VectorType(number, lanes)
        # Rounded once where the machine can; `llvm.fma` would be a call of the C library where it cannot.
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}f{8 * item}"
        )

        def element(array_type: Any, array: Any, *places: Any) -> Any:
            data = arrayobj.make_array(array_type)(context, builder, array).data
            for place in places:
                data = builder.gep(data, [place])
            return data

        def vectors(pointer: Any) -> list[Any]:
            places = [builder.gep(pointer, [index(lanes * v)]) for v in range(PANEL_BYTES // VECTOR_BYTES)]
            return [builder.bitcast(place, vector.as_pointer()) for place in places]

        # Rows that do not exist repeat the last one, which is then written several times over.
        last = builder.sub(alive, index(1))
        numbers = [builder.select(builder.icmp_signed("<", index(r), alive), index(r), last)
                   for r in range(rows.literal_value)]  # fmt: skip
        left = [element(a, a_, at_a, builder.mul(lda, r)) for r in numbers]
        targets = [vectors(element(c, c_, at_c, builder.mul(ldc, r))) for r in numbers]
        # Variables that LLVM keeps in registers.
        sums = [[cgutils.alloca_once(builder, vector) for _ in target] for target in targets]
        for line in sums:
            for total in line:
                builder.store(ir.Constant(vector, [0.0] * lanes), total)
        with builder.if_then(builder.icmp_signed("!=", add, index(0))):
            for line, target in zip(sums, targets):
                for total, place in zip(line, target):
                    builder.store(builder.load(place, align=item), total)
        # The result's lines are fetched while the loop runs: stores would wait for them, a third of a short product.
        for place in itertools.chain.from_iterable(targets):
            prefetch(builder, place, written=True)
        start = element(panel, panel_, at)
        # Where in the rows: a number that LLVM cannot predict, or it would keep and advance a place for each row.
        hidden = ir.InlineAsm(ir.FunctionType(index, [index]), "", "=r,0")
        position = cgutils.alloca_once_value(builder, index(0))
        with cgutils.for_range(builder, inner) as loop:
            row = builder.gep(start, [builder.mul(loop.index, index(PANEL_BYTES // item))])
            right = [builder.load(place, align=item) for place in vectors(row)]
            along = builder.load(position)
            for line, factors in zip(sums, left):
                x = builder.load(builder.gep(factors, [along]))
                x = spread(builder, x, lanes)
                for total, y in zip(line, right):
                    builder.store(builder.call(multiply_add, [x, y, builder.load(total)]), total)
            builder.store(builder.call(hidden, [builder.add(along, step)]), position)
        for line, target in zip(sums, targets):
            for total, place in zip(line, target):
                builder.store(builder.load(total), place, align=item)
        return context.get_dummy_value()

    return types.void(rows, integer, a, *[integer] * 3, panel, *[integer] * 3, c, integer, integer), generate


@jitable
def _tile_of_more(alive, a, at_a, lda, step, panel, at, inner, add, c, at_c, ldc):
    long_loop()
    _tile(_MORE, alive, a, at_a, lda, step, panel, at, inner, add, c, at_c, ldc)


@jitable
def _tile_of_fewer(alive, a, at_a, lda, step, panel, at, inner, add, c, at_c, ldc):
    long_loop()
    _tile(_FEWER, alive, a, at_a, lda, step, panel, at, inner, add, c, at_c, ldc)


@jitable
def _tile_of_one(alive, a, at_a, lda, step, panel, at, inner, add, c, at_c, ldc):
    long_loop()
    _tile(1, alive, a, at_a, lda, step, panel, at, inner, add, c, at_c, ldc)


@jitable
def transpose(a, at, lda, rows, columns, to, begin, width):
    """to[begin + i width + j] = a[at + j lda + i], for i < rows and j < columns."""
    long_loop()
    whole_rows, whole_columns = rows // _SQUARE * _SQUARE, columns // _SQUARE * _SQUARE
    for j in range(0, whole_columns, _SQUARE):
        for i in range(0, whole_rows, _SQUARE):
            transpose_square(_SQUARE, a, at + j * lda + i, lda, to, begin + i * width + j, width)
    # What is left of columns, then of rows. Unsigned places: Numba counts negative ones from the end.
    for j in range(whole_columns, columns):
        for i in range(whole_rows):
            to[np.uint64(begin + i * width + j)] = a[np.uint64(at + j * lda + i)]
    for i in range(whole_rows, rows):
        for j in range(columns):
            to[np.uint64(begin + i * width + j)] = a[np.uint64(at + j * lda + i)]


@jitable
def pack(b, at, transposed, ldb, inner, columns, panel, to):
    """Write a matrix (inner, columns) of at most one panel's columns, or the transpose of (columns, inner), as a panel.

    Columns of the panel that the matrix does not have stay as they are: what they give is never read.
    """
    long_loop()
    width = PANEL_BYTES // b.itemsize
    if transposed:
        transpose(b, at, ldb, inner, columns, panel, to, width)
    else:
        whole_columns = columns // WIDTH * WIDTH
        for i in range(inner):
            for j in range(0, whole_columns, WIDTH):
                move(b, at + i * ldb + j, panel, to + i * width + j)
        for j in range(whole_columns, columns):
            for i in range(inner):
                panel[np.uint64(to + i * width + j)] = b[np.uint64(at + i * ldb + j)]


@jitable
def product(a, at_a, lda, step, panels, at_panels, inner, columns, add, c, at_c, ldc, rows):
    """c = a times a packed matrix, or c += that; these begin at elements at_a, at_panels and at_c of arrays."""
    width = PANEL_BYTES // c.itemsize
    # Tiles of the height with which the fewest rows are made that do not exist.
    tall = _MORE if -(-rows // _MORE) * _MORE <= -(-rows // _FEWER) * _FEWER else _FEWER
    edge = scratch(_EDGE, c.dtype)
    for left in range(0, columns, width):
        panel, exist = at_panels + left * inner, min(width, columns - left)
        for r in range(0, rows, tall):
            x, y, alive = at_a + r * lda, at_c + r * ldc + left, min(tall, rows - r)
            if exist == width:
                to, at, between, more = c, y, ldc, add
            else:
                to, at, between, more = edge, 0, width, 0
            if alive == 1:
                _tile_of_one(alive, a, x, lda, step, panels, panel, inner, more, to, at, between)
            elif tall == _MORE:
                _tile_of_more(alive, a, x, lda, step, panels, panel, inner, more, to, at, between)
            else:
                _tile_of_fewer(alive, a, x, lda, step, panels, panel, inner, more, to, at, between)
            if exist < width:
                for i in range(alive):
                    for j in range(exist):
                        place = np.uint64(y + i * ldc + j)
                        c[place] = c[place] + edge[i * width + j] if add else edge[i * width + j]
