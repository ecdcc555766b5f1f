"""Calls of BLAS from compiled code (`blas` finds the functions, and imports no compiler)."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gmkernels.blas import LEFT, ROW_MAJOR

_intrinsic: Any = intrinsic  # the function it makes takes other arguments than mypy sees


def _call(context: Any, builder: Any, real: Any, function: Any, is_wide: Any, kinds: str, values: Any) -> Any:
    """Call the BLAS function at an address, with integers of the width it takes.

    `kinds` says what each argument is: e an enumeration, i an integer, r a number of type `real`, p an address.
    """

    def call(bits: int) -> None:
        number, pointer = context.get_value_type(real), ir.IntType(8).as_pointer()
        kind_of = {"e": ir.IntType(32), "i": ir.IntType(bits), "r": number, "p": pointer}
        converted = []
        for value, kind in zip(values, [kind_of[k] for k in kinds], strict=True):
            if kind == pointer:
                value = builder.inttoptr(value, kind)
            elif value.type != kind:
                value = builder.trunc(value, kind)
            converted.append(value)
        signature = ir.FunctionType(ir.VoidType(), [kind_of[k] for k in kinds])
        builder.call(builder.inttoptr(function, signature.as_pointer()), converted)

    with builder.if_else(builder.icmp_signed("!=", is_wide, is_wide.type(0))) as (then, otherwise):
        with then:
            call(64)
        with otherwise:
            call(32)
    return context.get_dummy_value()


# The address is an argument and not part of the code, because compiled code outlives the process in the cache.


@_intrinsic
def gemm(typing_context, address, wide, like, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """C = alpha op(A) op(B) + beta C on row-major matrices: cblas_sgemm or cblas_dgemm, at `address`.

    `wide` says whether BLAS integers have 64 bits; `like` is any array of the product's dtype; a, b, c are
    addresses; trans_a and trans_b are `blas.NO_TRANS` or `blas.TRANS`. With beta = 0 C is not read.
    """
    real = like.dtype
    integer = types.int64
    signature = types.void(integer, integer, like, *[integer] * 5, real, *[integer] * 4, real, integer, integer)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        function, is_wide, _, *rest = args
        row_major = ir.Constant(ir.IntType(32), ROW_MAJOR)
        return _call(context, builder, real, function, is_wide, "eeeiiirpipirpi", [row_major, *rest])

    return signature, generate


@_intrinsic
def trsm(typing_context, address, wide, like, uplo, trans_a, diag, m, n, alpha, a, lda, b, ldb):
    """B = alpha op(A)^-1 B for a triangular A (m, m) and B (m, n), row-major: cblas_strsm or cblas_dtrsm.

    `uplo` is `blas.UPPER` or `blas.LOWER`, `diag` `blas.UNIT` or `blas.NON_UNIT`; the rest as in `gemm`.
    """
    real = like.dtype
    integer = types.int64
    signature = types.void(integer, integer, like, *[integer] * 5, real, *[integer] * 4)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        function, is_wide, _, *rest = args
        row_major, left = (ir.Constant(ir.IntType(32), value) for value in (ROW_MAJOR, LEFT))
        return _call(context, builder, real, function, is_wide, "eeeeeiirpipi", [row_major, left, *rest])

    return signature, generate
