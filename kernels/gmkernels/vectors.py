"""What loops over elements do not give: copies and sums of short rows in vectors, transpositions, sums in registers.

Loops over rows of a few elements, whose length the compiler does not know, are not vectorised, nor are transpositions;
and no loop keeps a tile of sums in registers, as a product needs, or says which memory is needed next.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

_intrinsic: Any = intrinsic  # the functions it makes take other arguments than mypy sees

WIDTH = 8
"""Elements of a vector: a row of floats is one register wherever there are 256-bit ones."""
VECTOR_BYTES = 64 if llvmlite.binding.get_host_cpu_features().get("avx512f", False) else 32
LINE_BYTES = 64


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any, width: int) -> Any:
    data = arrayobj.make_array(array_type)(context, builder, array).data
    vector = ir.VectorType(context.get_data_type(array_type.dtype), width)
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def spread(builder: Any, number: Any, width: int) -> Any:
    """A vector with a number in each of its lanes."""
    word = ir.IntType(32)
    nothing = ir.Constant(ir.VectorType(number.type, width), ir.Undefined)
    first = builder.insert_element(nothing, number, word(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(word, width), [0] * width))


@_intrinsic
def move(typing_context: Any, source: Any, start: Any, target: Any, to: Any) -> Any:
    """target[to : to + WIDTH] = source[start : start + WIDTH], for bounds that are known to be inside."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        align = context.get_abi_sizeof(context.get_data_type(source.dtype))
        row = builder.load(_address(context, builder, source, args[0], args[1], WIDTH), align=align)
        builder.store(row, _address(context, builder, target, args[2], args[3], WIDTH), align=align)
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), generate


def _exchanges(size: int, lane: int) -> Iterator[tuple[int, list[int], list[int]]]:
    """The steps of a transposition: how far apart the rows of a pair are, and what two vectors take of both.

    First inside the lanes of 128 bits, of `lane` elements, where a shuffle is cheapest; then whole lanes.
    """
    both = np.arange(2 * size).reshape(2, size)
    apart = 1
    while apart < lane:  # the first halves of the lanes of both, in turn, and the second halves
        parts = both.reshape(2, size // lane, 2, lane // (2 * apart), apart).transpose(2, 1, 3, 0, 4)
        first, second = parts.reshape(2, size).tolist()
        yield apart, first, second
        apart *= 2
    while apart < size:  # the even lanes of the one and then of the other, and the odd lanes
        first, second = both.reshape(2, size // (2 * lane), 2, lane).transpose(2, 0, 1, 3).reshape(2, size).tolist()
        yield apart, first, second
        apart *= 2


def _columns(size: int, lane: int) -> list[int]:
    """Which of the vectors after these steps is column 0, 1, ...: inside a lane they come in order of reversed bits."""
    inside = [0]
    while len(inside) < lane:
        inside = [2 * i for i in inside] + [2 * i + 1 for i in inside]
    return [first + i for first in range(0, size, lane) for i in inside]


@_intrinsic(prefer_literal=True)
def transpose_square(
    typing_context: Any, width: Any, source: Any, start: Any, step: Any, target: Any, to: Any, apart: Any
) -> Any:
    """target[to + j apart + i] = source[start + i step + j] for i, j < width, a constant power of two."""
    if not isinstance(width, types.IntegerLiteral):
        return None
    size = width.literal_value

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        align = context.get_abi_sizeof(context.get_data_type(source.dtype))

        def row(array_type: Any, place: Any, i: int) -> Any:
            array, begin, distance = place
            index = builder.add(begin, builder.mul(distance, ir.Constant(ir.IntType(64), i)))
            return _address(context, builder, array_type, array, index, size)

        rows = [builder.load(row(source, args[1:4], i), align=align) for i in range(size)]
        for distance, low, high in _exchanges(size, 16 // align):
            masks = [ir.Constant(ir.VectorType(ir.IntType(32), size), mask) for mask in (low, high)]
            for i in range(size):
                if not i & distance:
                    pair = rows[i], rows[i + distance]
                    rows[i], rows[i + distance] = [builder.shuffle_vector(*pair, mask) for mask in masks]
        for j, column in enumerate(_columns(size, 16 // align)):
            builder.store(rows[column], row(target, args[4:], j), align=align)
        return context.get_dummy_value()

    integer = types.int64
    return types.void(width, source, integer, integer, target, integer, integer), generate


def prefetch(builder: Any, place: Any, written: bool) -> None:
    """Have the line at a pointer come into the first-level cache, to be written if that is so."""
    word, byte = ir.IntType(32), ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [byte, word, word, word]), "llvm.prefetch.p0"
    )
    builder.call(function, [builder.bitcast(place, byte), word(int(written)), word(3), word(1)])


@_intrinsic
def fetch(typing_context: Any, arrays: Any, at: Any, count: Any) -> Any:
    """Have elements [at, at + count) of every array of a tuple come into the first-level cache; not all need exist."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        for array_type, array in zip(arrays, cgutils.unpack_tuple(builder, args[0], len(arrays))):
            start = builder.gep(arrayobj.make_array(array_type)(context, builder, array).data, [args[1]])
            line = ir.IntType(64)(LINE_BYTES // context.get_abi_sizeof(start.type.pointee))
            with cgutils.for_range_slice(builder, ir.IntType(64)(0), args[2], line) as (i, _):
                prefetch(builder, builder.gep(start, [i]), written=False)
        return context.get_dummy_value()

    return types.void(arrays, types.int64, types.int64), generate


@_intrinsic
def fill_row(typing_context: Any, target: Any, begin: Any, end: Any, value: Any) -> Any:
    """target[begin:end] = value, in whole vectors: up to a vector beyond the end is written too, and must exist."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array, begin, end, value = args
        item = context.get_abi_sizeof(value.type)
        width = VECTOR_BYTES // item
        values = spread(builder, value, width)
        with cgutils.for_range_slice(builder, begin, end, ir.IntType(64)(width)) as (i, _):
            builder.store(values, _address(context, builder, target, array, i, width), align=item)
        return context.get_dummy_value()

    return types.void(target, types.int64, types.int64, target.dtype), generate


_SUMS = 2


@_intrinsic
def sum_of_row(typing_context: Any, terms: Any, begin: Any, count: Any) -> Any:
    """Sum of terms[begin : begin + count], in `_SUMS` vectors of sums; what is left of a row, without a loop."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array, begin, count = args
        number, index, word = context.get_data_type(terms.dtype), ir.IntType(64), ir.IntType(32)
        item = context.get_abi_sizeof(number)
        width, bits = VECTOR_BYTES // item, 8 * item
        vector = ir.VectorType(number, width)
        mask = ir.VectorType(ir.IntType(1), width)
        load = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(vector, [vector.as_pointer(), word, mask, vector]),
            f"llvm.masked.load.v{width}f{bits}.p0",
        )
        add_lanes = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(number, [number, vector]), f"llvm.vector.reduce.fadd.v{width}f{bits}"
        )
        zeros = ir.Constant(vector, [0.0] * width)
        sums = [cgutils.alloca_once_value(builder, zeros) for _ in range(_SUMS)]  # kept in registers

        def place(i: Any) -> Any:
            return _address(context, builder, terms, array, builder.add(begin, i), width)

        whole = builder.and_(count, index(-_SUMS * width))
        with cgutils.for_range_slice(builder, index(0), whole, index(_SUMS * width)) as (i, _):
            for s, total in enumerate(sums):
                more = builder.load(place(builder.add(i, index(s * width))), align=item)
                builder.store(builder.fadd(builder.load(total), more), total)
        numbers = ir.Constant(ir.VectorType(word, width), list(range(width)))
        left = builder.trunc(builder.sub(count, whole), word)
        for s, total in enumerate(sums):
            exists = builder.icmp_signed("<", numbers, spread(builder, builder.sub(left, word(s * width)), width))
            at = place(builder.add(whole, index(s * width)))
            more = builder.call(load, [at, word(item), exists, zeros])
            builder.store(builder.fadd(builder.load(total), more), total)
        values = [builder.load(total) for total in sums]
        while len(values) > 1:
            values = [builder.fadd(a, b) for a, b in zip(values[::2], values[1::2])]
        return builder.call(add_lanes, [ir.Constant(number, -0.0), values[0]], fastmath=["reassoc"])

    return terms.dtype(terms, types.int64, types.int64), generate


ROWS, VECTORS = 7, 2
"""Rows and vectors of a tile of sums. With eight rows their addresses do not fit into the registers: three quarters of
the speed; with more vectors the sums do not where there are 16."""


@_intrinsic
def accumulate(
    typing_context: Any,
    a: Any, origins: Any, first: Any, starts: Any, count: Any, length: Any, step: Any,
    b: Any, at: Any, apart: Any, c: Any, to: Any, between: Any,
) -> Any:  # fmt: skip
    """A tile of a product of a matrix that is not there, whose elements lie in `a`, and of rows of b.

    c[to + r between + v] += sum over s < count and t < length, numbered k in this order, of
    a[origins[first + r] + starts[s] + t step] b[at + k apart + v], for r < ROWS and v < `columns_of_a_tile`.
    """
    integer = types.int64

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = context.get_value_type(a.dtype)
        size = context.get_abi_sizeof(kind)
        width = VECTOR_BYTES // size
        vector = ir.VectorType(kind, width)
        a_, origins_, first_, starts_, count_, length_, step_, b_, at_, apart_, c_, to_, between_ = args
        # Rounded once where the machine can; `llvm.fma` would be a call of the C library where it cannot.
        ternary = ir.FunctionType(vector, [vector] * 3)
        multiply_add = cgutils.get_or_insert_function(builder.module, ternary, f"llvm.fmuladd.v{width}f{8 * size}")

        def number(n: int) -> Any:
            return ir.Constant(ir.IntType(64), n)

        def data(array_type: Any, array: Any) -> Any:
            return arrayobj.make_array(array_type)(context, builder, array).data

        def vectors(pointer: Any) -> list[Any]:
            places = [builder.gep(pointer, [number(v * width)]) for v in range(VECTORS)]
            return [builder.bitcast(place, vector.as_pointer()) for place in places]

        a_data, origin_data, start_data = data(a, a_), data(origins, origins_), data(starts, starts_)
        rows, targets = [], []
        for r in range(ROWS):
            origin = builder.load(builder.gep(origin_data, [builder.add(first_, number(r))]))
            rows.append(builder.gep(a_data, [origin]))
            place = builder.add(to_, builder.mul(between_, number(r)))
            targets.append(vectors(builder.gep(data(c, c_), [place])))
        # Variables that LLVM keeps in registers.
        sums = [[cgutils.alloca_once(builder, vector) for _ in range(VECTORS)] for _ in range(ROWS)]
        for line, target in zip(sums, targets):
            for total, place in zip(line, target):
                builder.store(builder.load(place, align=size), total)
        factor = cgutils.alloca_once_value(builder, builder.gep(data(b, b_), [at_]))
        with cgutils.for_range(builder, count_) as run:
            start = builder.load(builder.gep(start_data, [run.index]))
            with cgutils.for_range(builder, length_) as inner:
                index = builder.add(start, builder.mul(inner.index, step_))
                pointer = builder.load(factor)
                factors = [builder.load(place, align=size) for place in vectors(pointer)]
                for row, line in zip(rows, sums):
                    x = spread(builder, builder.load(builder.gep(row, [index])), width)
                    for total, y in zip(line, factors):
                        builder.store(builder.call(multiply_add, [x, y, builder.load(total)]), total)
                builder.store(builder.gep(pointer, [apart_]), factor)
        for line, target in zip(sums, targets):
            for total, place in zip(line, target):
                builder.store(builder.load(total), place, align=size)
        return context.get_dummy_value()

    return types.void(
        a, origins, integer, starts, integer, integer, integer, b, integer, integer, c, integer, integer
    ), generate


def columns_of_a_tile(itemsize: int) -> int:
    """Elements of the rows that `accumulate` adds up."""
    return VECTORS * VECTOR_BYTES // itemsize
