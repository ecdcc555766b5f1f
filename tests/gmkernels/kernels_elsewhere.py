"""Triton kernels as somebody else writes them: they know nothing of gmkernels."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n"])
def axpy(x, y, n, a, b: tl.float64, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, tl.load(x + i, i < n) * a + b, i < n)


@triton.autotune([triton.Config({"BLOCK": 64}), triton.Config({"BLOCK": 128})], key=["n"])
@triton.jit
def tuned(x, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + i, 0.0, i < n)
