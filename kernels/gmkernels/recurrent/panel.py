"""Products of a few rows with a matrix that is packed once and used many times.

BLAS packs its second operand anew in every call. For the 16 rows of a step of a recurrent net that takes as long as
the product: a step of 16 x 256 by 256 x 1024 ran at 43 GFLOP/s on a core with OpenBLAS, and runs at 87 here.

The columns of the matrix are cut into panels of `spec.PANEL_BYTES`, each stored row after row. A tile of the result
of a few rows and one panel's columns stays in registers while a loop runs down the panel.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gmkernels.pool import jitable, long_loop
from gmkernels.recurrent.spec import PANEL_BYTES

_intrinsic: Any = intrinsic  # the functions it makes take other arguments than mypy sees
_WIDE = llvmlite.binding.get_host_cpu_features().get("avx512f", False)
_VECTOR_BYTES = 64 if _WIDE else 32
_ROWS = 8 if _WIDE else 2  # of a tile: 16 vectors of sums where there are 32 registers, 8 where there are 16


def pack(matrix: np.ndarray, panels: np.ndarray) -> None:
    """Write `matrix` (inner, columns) into `panels`, inner times the columns rounded up to whole panels."""
    inner, columns = matrix.shape
    width = PANEL_BYTES // matrix.itemsize
    for left, panel in zip(range(0, columns, width), panels.reshape(-1, inner, width)):
        part = matrix[:, left : left + width]
        panel[:, : part.shape[1]] = part
        panel[:, part.shape[1] :] = 0


@_intrinsic(prefer_literal=True)
def _tile(typing_context, like, rows, alive, a, lda, panel, inner, c, ldc):
    """c = a panel: `rows`, a constant, of which the first `alive` exist; a, panel and c are addresses."""
    if not isinstance(rows, types.IntegerLiteral):
        return None
    integer = types.int64

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, alive, a, lda, panel, inner, c, ldc = args
        number, index = context.get_data_type(like.dtype), ir.IntType(64)
        item = context.get_abi_sizeof(number)
        lanes = _VECTOR_BYTES // item
        vector = ir.VectorType(number, lanes)
        undefined = ir.Constant(vector, ir.Undefined)
        first_lane = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fmuladd.v{lanes}f{8 * item}"
        )

        def pointer(base: Any, offset: Any, kind: Any) -> Any:
            return builder.inttoptr(builder.add(base, builder.mul(offset, index(item))), kind.as_pointer())

        # Rows that do not exist repeat the last one, which is then written several times over.
        last = builder.sub(alive, index(1))
        numbers = [builder.select(builder.icmp_signed("<", index(r), alive), index(r), last)
                   for r in range(rows.literal_value)]  # fmt: skip
        left = [pointer(a, builder.mul(lda, r), number) for r in numbers]
        start, parts = builder.inttoptr(panel, number.as_pointer()), range(PANEL_BYTES // _VECTOR_BYTES)
        sums = [[cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * lanes)) for _ in parts] for _ in left]
        for row in sums:
            for total in row:
                builder.store(ir.Constant(vector, [0.0] * lanes), total)
        with cgutils.for_range(builder, inner) as loop:
            right = []
            for part in parts:
                at = builder.add(builder.mul(loop.index, index(lanes * len(parts))), index(lanes * part))
                right.append(builder.load(builder.bitcast(builder.gep(start, [at]), vector.as_pointer())))
                right[-1].align = item
            for row, factors in zip(sums, left):
                x = builder.insert_element(
                    undefined, builder.load(builder.gep(factors, [loop.index])), ir.IntType(32)(0)
                )
                x = builder.shuffle_vector(x, undefined, first_lane)
                for total, y in zip(row, right):
                    builder.store(builder.call(multiply_add, [x, y, builder.load(total)]), total)
        for row, r in zip(sums, numbers):
            for part, total in zip(parts, row):
                at = builder.add(builder.mul(ldc, r), index(lanes * part))
                builder.store(builder.load(total), pointer(c, at, vector)).align = item
        return context.get_dummy_value()

    return types.void(like, rows, *[integer] * 7), generate


@jitable
def product(a, at_a, lda, panels, at_panels, inner, columns, c, at_c, ldc, rows):
    """c = a times a packed matrix, for matrices that begin at elements at_a, at_panels and at_c of arrays.

    All `columns` of the last panel are written: rows of c have room for whole panels.
    """
    long_loop()
    item = c.itemsize
    width = PANEL_BYTES // item
    for left in range(0, columns, width):
        panel = panels.ctypes.data + item * (at_panels + left * inner)
        for r in range(0, rows, _ROWS):
            x, y = a.ctypes.data + item * (at_a + r * lda), c.ctypes.data + item * (at_c + r * ldc + left)
            if rows - r == 1:
                _tile(c, 1, 1, x, lda, panel, inner, y, ldc)
            else:
                _tile(c, _ROWS, min(_ROWS, rows - r), x, lda, panel, inner, y, ldc)
