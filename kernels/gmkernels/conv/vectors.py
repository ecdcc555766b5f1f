"""Short rows copied and transposed in vectors of eight, where loops over elements would take ten times as long.

Loops over rows of a few elements, whose length the compiler does not know, are not vectorised, nor are transpositions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np import arrayobj

from gmkernels.pool import jitable, long_loop

_intrinsic: Any = intrinsic  # the functions it makes take other arguments than mypy sees

WIDTH = 8
"""Elements of a vector: a row of floats is one register wherever there are 256-bit ones."""


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = arrayobj.make_array(array_type)(context, builder, array).data
    vector = ir.VectorType(context.get_data_type(array_type.dtype), WIDTH)
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@_intrinsic
def move(typing_context: Any, source: Any, start: Any, target: Any, to: Any) -> Any:
    """target[to : to + WIDTH] = source[start : start + WIDTH], for bounds that are known to be inside."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        align = context.get_abi_sizeof(context.get_data_type(source.dtype))
        row = builder.load(_address(context, builder, source, args[0], args[1]), align=align)
        builder.store(row, _address(context, builder, target, args[2], args[3]), align=align)
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), generate


@_intrinsic
def _transpose_square(typing_context: Any, source: Any, start: Any, step: Any, target: Any, to: Any, apart: Any) -> Any:
    """target[to + j apart + i] = source[start + i step + j] for i, j < WIDTH."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        align = context.get_abi_sizeof(context.get_data_type(source.dtype))

        def row(array_type: Any, array: Any, begin: Any, step: Any, i: int) -> Any:
            index = builder.add(begin, builder.mul(step, ir.Constant(ir.IntType(64), i)))
            return _address(context, builder, array_type, array, index)

        rows = [builder.load(row(source, *args[:3], i), align=align) for i in range(WIDTH)]
        # Rows i and i + WIDTH / 2 interleaved: the bits of (i, j) as one number move on by one place. So three times.
        masks = [
            ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [half + k // 2 + k % 2 * WIDTH for k in range(WIDTH)])
            for half in (0, WIDTH // 2)
        ]
        for _ in range(WIDTH.bit_length() - 1):
            pairs = zip(rows[: WIDTH // 2], rows[WIDTH // 2 :])
            rows = [builder.shuffle_vector(a, b, mask) for a, b in pairs for mask in masks]
        for j, column in enumerate(rows):
            builder.store(column, row(target, *args[3:], j), align=align)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(source, integer, integer, target, integer, integer), generate


@jitable
def transpose(source, start, step, target, to, apart, rows, columns):
    """target[to + j apart + i] = source[start + i step + j] for i < rows, j < columns."""
    long_loop()  # compiled once, and not at each call
    if rows >= WIDTH and columns >= WIDTH:
        for i in range(0, rows, WIDTH):
            first = min(i, rows - WIDTH)  # the last squares begin earlier, and write some elements again
            for j in range(0, columns, WIDTH):
                second = min(j, columns - WIDTH)
                _transpose_square(
                    source, start + first * step + second, step, target, to + second * apart + first, apart
                )
    elif rows < columns:
        for i in range(rows):
            for j in range(columns):
                # unsigned: Numba counts negative indices from the end
                target[np.uint64(to + j * apart + i)] = source[np.uint64(start + i * step + j)]
    else:
        for j in range(columns):
            for i in range(rows):
                target[np.uint64(to + j * apart + i)] = source[np.uint64(start + i * step + j)]
