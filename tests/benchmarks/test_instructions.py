"""Counted instructions are those that are executed, and counting changes nothing else."""

import ctypes
import gc

import llvmlite.binding as llvm
import numpy as np
import pytest

from benchmarks import instructions
from gmkernels import bench, pool
from gmkernels.blas import NO_TRANS, ROW_MAJOR
from gmkernels.dense import products

pytestmark = pytest.mark.skipif(
    instructions.unavailable() is not None, reason=f"nothing to test: {instructions.unavailable()}"
)

# f(n): 2 instructions, n times 3 in the loop, then 2 for an odd n or 4 for an even one: the carry that `shr` leaves is
# read past a label, so a counter that touched the flags would take the wrong branch.
BY_HAND = """\
\t.text
\t.globl f
f:
\tmovl $0, %eax
\tmovq %rdi, %rdx
.loop:
\taddl $2, %eax   # a comment
\tdecq %rdi
\tjnz .loop
\tshrq $1, %rdx
.aligned:
\tjc .odd
\tnop
\tretq
.odd:
\tretq
\t.section .rodata,"a",@progbits
.table:
\t.quad .loop
"""


def test_counts_the_instructions_of_a_function_written_by_hand():
    with instructions.counting():  # initialises LLVM
        counter = np.zeros(1, np.int64)
        engine = instructions.assemble(instructions.with_counter(BY_HAND, counter.ctypes.data))
        f = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64)(engine.get_function_address("f"))
        for n, last in ((1, 3), (2, 4), (10, 4), (101, 3)):
            counter[0] = 0
            assert f(n) == 2 * n
            assert counter[0] == 2 + 3 * n + last


@pool.block_kernel
def square(block, x, y):
    for i in range(block * 64, min((block + 1) * 64, x.size)):
        y[i] = x[i] * x[i]


def test_a_kernel_gives_the_same_bits_and_counts_grow_with_the_work():
    # Kernels of modules are objects that the garbage collector no longer lists, since the tests freeze them.
    assert not any(thing is square for thing in gc.get_objects())
    x = np.random.default_rng(0).standard_normal(1000)
    plain, counted = np.empty_like(x), np.empty_like(x)
    square(16, x, plain)
    original = square._compiled
    with instructions.counting() as count:
        made_meanwhile = pool.block_kernel(square.__wrapped__)
        made_meanwhile(16, x, plain)
        assert pool.get_num_threads() == 1
        counts = [count(lambda blocks=blocks: square(blocks, x, counted)) for blocks in (4, 8, 12, 12)]
        assert count(lambda: None) == 0
        square(16, x, counted)
    np.testing.assert_array_equal(counted, plain)
    assert counts[0] > 0 and counts[1] == 2 * counts[0] and counts[2] == counts[3] == 3 * counts[0]
    assert square._compiled is original
    assert not made_meanwhile._compiled  # nothing goes on counting into memory that is gone


def test_our_products_are_counted():
    size, number, matrix = ctypes.c_int64, ctypes.c_float, (ctypes.c_void_p, ctypes.c_int64)
    types = [ctypes.c_int] * 3 + [size] * 3 + [number, *matrix, *matrix, number, *matrix]
    a, b, c = np.ones((40, 64), np.float32), np.ones((64, 32), np.float32), np.empty((40, 32), np.float32)
    before = products.address(a.dtype)
    with instructions.counting() as count:
        product = ctypes.CFUNCTYPE(None, *types)(products.address(a.dtype))

        def call(rows):
            at = [x.ctypes.data for x in (a, b, c)]
            product(ROW_MAJOR, NO_TRANS, NO_TRANS, rows, 32, 64, 1.0, at[0], 64, at[1], 32, 0.0, at[2], 32)

        counts = [count(lambda rows=rows: call(rows)) for rows in (10, 20, 40)]
    assert np.all(c == 64) and counts[2] - counts[1] == 2 * (counts[1] - counts[0]) > 0
    assert products.address(a.dtype) == before


def test_the_copy_that_floors_rest_on_is_vector_code():
    x = np.ones(1 << 17, np.float32)
    y = np.zeros_like(x)
    with instructions.counting() as count:
        per_element = count(lambda: bench._copy(-(-x.size // bench._COPY_BLOCK), x, y)) / x.size
    assert per_element < 0.5 and y.all()


def test_the_target_names_processor_compiler_and_library_of_products():
    for part in (llvm.get_host_cpu_name(), "Numba 0.", "products by "):
        assert part in instructions.target()
