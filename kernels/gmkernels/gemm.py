"""The call of a BLAS product from compiled code (`blas` finds the product, and imports no compiler)."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gmkernels.blas import ROW_MAJOR

_intrinsic: Any = intrinsic  # the function it makes takes other arguments than mypy sees


@_intrinsic
def gemm(typing_context, address, wide, like, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """C = alpha op(A) op(B) + beta C on row-major matrices: cblas_sgemm or cblas_dgemm, at `address`.

    `wide` says whether BLAS integers have 64 bits; `like` is any array of the product's dtype; a, b, c are
    addresses; trans_a and trans_b are `blas.NO_TRANS` or `blas.TRANS`. With beta = 0 C is not read. The address
    is an argument and not part of the code, because compiled code outlives the process in the cache.
    """
    real = like.dtype
    integer = types.int64
    signature = types.void(integer, integer, like, *[integer] * 5, real, *[integer] * 4, real, integer, integer)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        function, is_wide, _, transposed_a, transposed_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc = args
        pointer, number = ir.IntType(8).as_pointer(), context.get_value_type(real)

        def call(bits: int) -> None:
            enumeration, integer = ir.IntType(32), ir.IntType(bits)
            kinds = [enumeration, enumeration, enumeration, integer, integer, integer, number]
            kinds += [pointer, integer, pointer, integer, number, pointer, integer]
            values = [ir.Constant(enumeration, ROW_MAJOR), transposed_a, transposed_b, m, n, k, alpha]
            values += [a, lda, b, ldb, beta, c, ldc]
            converted = []
            for value, kind in zip(values, kinds, strict=True):
                if kind == pointer:
                    value = builder.inttoptr(value, kind)
                elif value.type != kind:
                    value = builder.trunc(value, kind)
                converted.append(value)
            product = builder.inttoptr(function, ir.FunctionType(ir.VoidType(), kinds).as_pointer())
            builder.call(product, converted)

        with builder.if_else(builder.icmp_signed("!=", is_wide, is_wide.type(0))) as (then, otherwise):
            with then:
                call(64)
            with otherwise:
                call(32)
        return context.get_dummy_value()

    return signature, generate
