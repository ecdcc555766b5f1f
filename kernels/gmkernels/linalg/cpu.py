"""Triangular systems by the BLAS that NumPy has loaded, in blocks of one pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gmkernels import blas
from gmkernels.gemm import trsm
from gmkernels.pool import block_kernel
from gmkernels.registry import KernelError

STRIP = 32
"""Columns of the narrowest strip of a right-hand side that is worth a block of its own."""
BLOCK_FLOPS = 1 << 20


@block_kernel
def _solve_triangular(block, function, wide, a, x, b, uplo, diag, n, k, strips, per_block):
    """A block is one strip of columns of one system, or several whole small systems."""
    strip, item = block % strips, x.itemsize
    left, right = strip * k // strips, (strip + 1) * k // strips
    first = block // strips * per_block
    for system in range(first, min(first + per_block, x.size // (n * k))):
        for row in range(system * n, system * n + n):
            for i in range(row * k + left, row * k + right):
                x[i] = b[i]
        triangle, target = a.ctypes.data + item * system * n * n, x.ctypes.data + item * (system * n * k + left)
        trsm(function, wide, x, uplo, blas.NO_TRANS, diag, n, right - left, 1, triangle, n, target, k)


def solve_triangular(
    inputs: Sequence[Any], outputs: Sequence[Any], workspace: Sequence[Any], attrs: Mapping[str, Any]
) -> None:
    a, b = inputs
    (x,) = outputs
    if x.size == 0:
        return
    library = blas.find()
    assert library is not None
    n, k = x.shape[-2:]
    if not library.wide and max(n, k) >= 2**31:
        raise KernelError(f"this {library.name} has 32-bit integers, too few for a system of shape {x.shape[-2:]}")
    systems, flops = x.size // (n * k), n * n * k
    strips = max(1, min(k // STRIP, flops // BLOCK_FLOPS))
    per_block = max(1, BLOCK_FLOPS // flops)
    blocks = strips * -(-systems // per_block)
    uplo = blas.UPPER if attrs["upper"] else blas.LOWER
    diag = blas.UNIT if attrs["unitriangular"] else blas.NON_UNIT
    with blas.single_threaded():
        _solve_triangular(
            blocks, library.trsm_address(x.dtype), int(library.wide), a, x, b, uplo, diag, n, k, strips, per_block
        )
