"""Vectors as values of compiled code: what the compiler's own vectors do not give.

A loop over the elements of a row is compiled to vectors if it is long; a short one, of a length that the compiler does
not know, takes longer to begin and to end than it lasts, and its sums leave the registers at every row. Written with
vectors it does neither:

    total = filled(x, 0)
    for i in range(0, size, lanes_of(x)):
        total += load_some(x, i, size - i, 0)
    return sum_of_lanes(total)

Vectors are as wide as the machine's registers. Arithmetic and comparisons take vectors of one kind, or one and a
number; so do `fma` and `select` of `elementary`, and its `exp` takes a vector.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, overload, register_model
from numba.np import arrayobj

from gmkernels.elementary import HAS_FMA, INLINE, TWIN, fma, same_bits, select
from gmkernels.vectors import VECTOR_BYTES, spread

_intrinsic: Any = intrinsic  # the functions it makes take other arguments than mypy sees


class Vector(types.Type):
    """So many numbers of a dtype, or booleans, in a register."""

    def __init__(self, dtype: Any, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, data_models: Any, vector: Vector) -> None:
        element = data_models.lookup(vector.dtype).get_value_type()
        super().__init__(data_models, vector, ir.VectorType(element, vector.lanes))


def _of(array: Any) -> Vector:
    """The vectors of an array's elements."""
    return Vector(array.dtype, VECTOR_BYTES * 8 // array.dtype.bitwidth)


# ---------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------


@_intrinsic
def lanes_of(typing_context: Any, array: Any) -> Any:
    """Elements of a vector of the array's dtype."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.IntType(64)(_of(array).lanes)

    return types.int64(array), generate


def _place(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> tuple[Any, int]:
    """Where a vector begins, and how it is aligned."""
    data = builder.gep(arrayobj.make_array(array_type)(context, builder, array).data, [at])
    vector = context.get_value_type(_of(array_type))
    return builder.bitcast(data, vector.as_pointer()), array_type.dtype.bitwidth // 8


@_intrinsic
def load(typing_context: Any, array: Any, at: Any) -> Any:
    """The vector of the elements from `at` on, which all exist."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place, align = _place(context, builder, array, *args)
        return builder.load(place, align=align)

    return _of(array)(array, types.int64), generate


@_intrinsic
def store(typing_context: Any, array: Any, at: Any, vector: Any) -> Any:
    """Write a vector to the elements from `at` on, which all exist."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place, align = _place(context, builder, array, *args[:2])
        builder.store(args[2], place, align=align)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), generate


def _first(builder: Any, count: Any, lanes: int) -> Any:
    """A mask of the first `count` lanes."""
    word = ir.IntType(32)
    numbers = ir.Constant(ir.VectorType(word, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, spread(builder, builder.trunc(count, word), lanes))


def _masked(builder: Any, name: str, vector: Any, result: Any, *args: Any) -> Any:
    kind = ir.FunctionType(result, [a.type for a in args])
    bits = 32 if isinstance(vector.element, ir.FloatType) else 64
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.{name}.v{vector.count}f{bits}.p0")
    return builder.call(function, args)


@_intrinsic
def load_some(typing_context: Any, array: Any, at: Any, count: Any, other: Any) -> Any:
    """The vector of the elements from `at` on, of which `count` may be read; `other` in the lanes after them."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place, align = _place(context, builder, array, *args[:2])
        lanes = _of(array).lanes
        others = spread(builder, args[3], lanes)
        with builder.if_else(builder.icmp_signed(">=", args[2], args[2].type(lanes)), likely=True) as (whole, end):
            with whole:
                all_of_it = builder.load(place, align=align), builder.block
            with end:
                mask = _first(builder, args[2], lanes)
                some = _masked(builder, "load", others.type, others.type, place, ir.IntType(32)(align), mask, others)
                part_of_it = some, builder.block
        found = builder.phi(others.type)
        for value, block in (all_of_it, part_of_it):
            found.add_incoming(value, block)
        return found

    return _of(array)(array, types.int64, types.int64, array.dtype), generate


@_intrinsic
def store_some(typing_context: Any, array: Any, at: Any, count: Any, vector: Any) -> Any:
    """Write a vector to the elements from `at` on, of which `count` may be written."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place, align = _place(context, builder, array, *args[:2])
        count, value = args[2:]
        with builder.if_else(builder.icmp_signed(">=", count, count.type(vector.lanes)), likely=True) as (whole, end):
            with whole:
                builder.store(value, place, align=align)
            with end:
                mask = _first(builder, count, vector.lanes)
                _masked(builder, "store", value.type, ir.VoidType(), value, place, ir.IntType(32)(align), mask)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64, vector), generate


@_intrinsic
def filled(typing_context: Any, array: Any, number: Any) -> Any:
    """A vector of the array's kind with a number in each lane."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return spread(builder, args[1], _of(array).lanes)

    return _of(array)(array, array.dtype), generate


def _reduce(name: str, doc: str, flag: str, start: float | None = None) -> Any:
    """A function of all lanes of a vector: in float64, from a number to start with, or in the vector's dtype."""

    @_intrinsic
    def reduced(typing_context: Any, vector: Any) -> Any:
        dtype = vector.dtype if start is None else types.float64

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            number, (given,) = context.get_value_type(dtype), args
            if vector.dtype != dtype:
                given = builder.fpext(given, ir.VectorType(number, vector.lanes))
            arguments = [given] if start is None else [ir.Constant(number, start), given]
            kind = ir.FunctionType(number, [a.type for a in arguments])
            full = f"llvm.vector.reduce.{name}.v{vector.lanes}f{dtype.bitwidth}"
            function = cgutils.get_or_insert_function(builder.module, kind, full)
            return builder.call(function, arguments, fastmath=[flag])

        return dtype(vector), generate

    reduced.__doc__ = doc
    return reduced


sum_of_lanes = _reduce("fadd", "The sum of a vector's lanes, in float64.", "reassoc", -0.0)
largest_of_lanes = _reduce("fmax", "The largest of a vector's lanes, none of which is NaN.", "nnan")


# ---------------------------------------------------------------------------------------------------------
# Arithmetic
# ---------------------------------------------------------------------------------------------------------


def _vectors(context: Any, builder: Any, vector: Vector, kinds: Any, args: Any) -> list[Any]:
    """The arguments of an operation as vectors of a kind."""
    found = []
    for kind, value in zip(kinds, args, strict=True):
        if not isinstance(kind, Vector):
            value = spread(builder, context.cast(builder, value, kind, vector.dtype), vector.lanes)
        found.append(value)
    return found


def _one_kind(*args: Any) -> Any:
    """The kind of the vectors among arguments, if they are of one kind and the others numbers; else None."""
    vectors = {a for a in args if isinstance(a, Vector)}
    others = all(isinstance(a, (Vector, types.Number)) for a in args)
    return vectors.pop() if len(vectors) == 1 and others else None


def _operator(operation: Callable[..., Any], emit: Callable[..., Any], compares: bool = False) -> None:
    """Let an operator take two vectors, or one and a number."""

    @infer_global(operation)
    class Typed(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            kind = _one_kind(*args)
            return kind and signature(Vector(types.boolean, kind.lanes) if compares else kind, *args)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = _one_kind(*sig.args)
        return emit(builder, isinstance(kind.dtype, types.Float), *_vectors(context, builder, kind, sig.args, args))

    for pair in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(operation, *pair)(lower)


for _plain, _inplace, _name in (
    (operator.add, operator.iadd, "add"),
    (operator.sub, operator.isub, "sub"),
    (operator.mul, operator.imul, "mul"),
):
    for _operation in (_plain, _inplace):
        _operator(
            _operation, lambda builder, real, x, y, name=_name: getattr(builder, ("f" if real else "") + name)(x, y)
        )
_operator(operator.lshift, lambda builder, real, x, y: builder.shl(x, y))
for _operation, _sign in ((operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">=")):
    _operator(_operation, lambda builder, real, x, y, sign=_sign: builder.fcmp_ordered(sign, x, y), compares=True)


@_intrinsic
def _fma_instruction(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    kind = _one_kind(x, y, z)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vectors = _vectors(context, builder, kind, sig.args, args)
        if not HAS_FMA:
            return builder.fadd(builder.fmul(*vectors[:2]), vectors[2])
        function = ir.FunctionType(vectors[0].type, [a.type for a in vectors])
        name = f"llvm.fma.v{kind.lanes}f{kind.dtype.bitwidth}"
        return builder.call(cgutils.get_or_insert_function(builder.module, function, name), vectors)

    return kind and kind(x, y, z), generate


@overload(fma, jit_options=INLINE)
def _fma(x, y, z):
    if _one_kind(x, y, z):
        return lambda x, y, z: _fma_instruction(x, y, z)


@_intrinsic
def _select_instruction(typing_context: Any, condition: Any, x: Any, y: Any) -> Any:
    kind = _one_kind(x, y)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(args[0], *_vectors(context, builder, kind, sig.args[1:], args[1:]))

    return kind and kind(condition, x, y), generate


@overload(select, jit_options=INLINE)
def _select(condition, x, y):
    if isinstance(condition, Vector) and _one_kind(x, y):
        return lambda condition, x, y: _select_instruction(condition, x, y)


@_intrinsic
def _bitcast(typing_context: Any, x: Any) -> Any:
    twin = Vector(getattr(types, TWIN[x.dtype.name]), x.lanes)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(twin))

    return twin(x), generate


@overload(same_bits, jit_options=INLINE)
def _same_bits(x):
    if isinstance(x, Vector):
        return lambda x: _bitcast(x)
