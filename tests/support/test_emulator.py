"""The emulated grid: it computes what CUDA defines, and reports each kind of bug that it promises to find."""

import functools
import importlib.util
import platform
import re
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import gmkernels
from tests.support import ahead, cupy_stand_in
from tests.support.emulator import EmulationError, RawModule

SOURCE = Path(__file__).with_suffix(".cu")
INCLUDE = f"-I{Path(gmkernels.__file__).parent}"


def array(values, dtype=None):
    """On the emulated device."""
    return cupy_stand_in.array(np.ascontiguousarray(values, dtype))


@functools.cache
def module(cooperative=False):
    return RawModule(
        path=str(SOURCE), options=("-std=c++17", INCLUDE),
        enable_cooperative_groups=cooperative,
    )  # fmt: skip


def kernel(name):
    return module().get_function(name)


def zeros(*shape, dtype=np.float32):
    return array(np.zeros(shape, dtype))


def int32(x):
    return np.int32(x)


def reports(name, *parts):
    """The kernel, block and thread, and then these words in this order."""
    expected = [f"kernel {name}, block ", *parts]
    return pytest.raises(EmulationError, match="(?s)" + ".*".join(map(re.escape, expected)))


# ---------------------------------------------------------------------------------------------------------------------
# What CUDA defines
# ---------------------------------------------------------------------------------------------------------------------


def test_threads_know_where_they_are():
    y = zeros(6, 2 * 3 * 4, dtype=np.int32)
    kernel("where_am_i")((3, 2), (4, 3, 2), (y,))
    z, r, x = np.meshgrid(range(2), range(3), range(4), indexing="ij")
    expected = 1 + x + 10 * r + 100 * z + 1000 * np.arange(6)[:, None, None, None]
    np.testing.assert_array_equal(y.get(), expected.reshape(6, -1))


def test_sum_over_a_block():
    x = np.random.default_rng(0).integers(-9, 9, (5, 256)).astype(np.float32)
    sums = zeros(5)
    kernel("add_blocks")((5,), (256,), (array(x), sums))
    np.testing.assert_array_equal(sums.get(), x.sum(1))


@pytest.mark.parametrize("width", [32, 8])
def test_shuffles(width):
    x, lanes = np.arange(32, dtype=np.float32), np.arange(32)
    y, b = zeros(5, 32), zeros(32, dtype=np.float64)
    kernel("shuffles")((1,), (32,), (array(x), y, array(x + 0.1, np.float64), b, int32(width)))
    begin = lanes // width * width
    up, down, xor = lanes - 3, lanes + 3, lanes ^ 3
    expected = [begin + 5, np.where(up >= begin, up, lanes), np.where(down < begin + width, down, lanes), xor]
    np.testing.assert_array_equal(y.get()[:4], expected)
    np.testing.assert_array_equal(y.get()[4], np.float32(2**32 - 2**17))
    np.testing.assert_array_equal(b.get(), (x + 0.1).astype(np.float64)[lanes ^ 1])


@pytest.mark.parametrize("dtype, name", [(np.float16, "half"), (ml_dtypes.bfloat16, "bfloat16")])
def test_conversions_are_those_of_ieee(dtype, name):
    every = np.arange(2**16, dtype=np.uint16).view(dtype).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        between = (every[:-1] + every[1:]) / 2  # the ties
        x = np.concatenate([every, between, np.nextafter(between, np.float32(np.inf)), [1e30, -1e-30]])
        x = x.astype(np.float32)
        expected = x.astype(dtype)
    y, z = array(np.zeros_like(expected)), zeros(x.size)
    kernel(f"convert_{name}")((-(-x.size // 256),), (256,), (array(x), y, z, x.size))
    numbers = ~np.isnan(x)
    np.testing.assert_array_equal(y.get().view(np.uint16)[numbers], expected.view(np.uint16)[numbers])
    np.testing.assert_array_equal(z.get(), expected.astype(np.float32))


@pytest.mark.parametrize("by_ldmatrix", [0, 1])
@pytest.mark.parametrize("dtype, name", [(np.float16, "half"), (ml_dtypes.bfloat16, "bfloat16")])
def test_product_of_16_bits(dtype, name, by_ldmatrix):
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-8, 8, (n, 16)).astype(dtype) for n in (16, 8))
    c = zeros(16, 8)
    kernel(f"product_{name}")((1,), (32,), (array(a), array(b), c, int32(by_ldmatrix)))
    np.testing.assert_array_equal(c.get(), a.astype(np.float32) @ b.astype(np.float32).T)


def test_product_of_tf32():
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-8, 8, (n, 8)).astype(np.float32) for n in (16, 8))
    c = zeros(16, 8)
    kernel("product_tf32")((1,), (32,), (array(a), array(b), c))
    np.testing.assert_array_equal(c.get(), a @ b.T)
    kernel("product_tf32")((1,), (32,), (array(a + np.float32(2**-13)), array(b), c))
    assert (np.abs(c.get() - a @ b.T) <= np.abs(b).sum(1) * 2**-12).all(), "an operand has 11 bits"


def test_product_of_doubles():
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-9, 9, (n, 8)) / 3.0 for n in (16, 8))
    c = zeros(16, 8, dtype=np.float64)
    kernel("product_double")((1,), (32,), (array(a), array(b), c))
    np.testing.assert_allclose(c.get(), a @ b.T, rtol=1e-14)


def test_transposed_matrices():
    x = np.arange(256, dtype=np.uint16).view(np.float16)
    y = array(x * 0)
    kernel("transpose_matrices")((1,), (32,), (array(x), y))
    expected = x.view(np.uint16).reshape(4, 8, 8).transpose(0, 2, 1)
    np.testing.assert_array_equal(y.get().view(np.uint16).reshape(4, 8, 8), expected)


def test_blocks_of_a_cooperative_grid_wait_for_each_other():
    x = np.arange(4 * 64, dtype=np.float32) % 5
    sums, arrived = zeros(3, 4), zeros(1, dtype=np.uint32)
    module(True).get_function("add_rounds")((4,), (64,), (array(x), sums, arrived, int32(3)))
    first = x.reshape(4, 64).sum(1)
    np.testing.assert_array_equal(sums.get(), [first, [16 * first.sum()] * 4, [64 * 16 * first.sum()] * 4])


def test_asynchronous_copies():
    x, y = np.arange(5 * 128, dtype=np.float32), zeros(5, 128)
    kernel("pipeline")((1,), (32,), (array(x), y, int32(5), int32(1)))
    np.testing.assert_array_equal(y.get(), x.reshape(5, 128)[:, ::-1])


def test_shared_memory_starts_as_nan():
    y = zeros(64)
    kernel("read_shared")((1,), (32,), (y,), shared_mem=128)
    assert np.isnan(y.get()).all()


def test_correct_kernels_pass():
    x, y = array(np.arange(128, dtype=np.float32)), zeros(128)
    kernel("reverse")((2,), (64,), (x, y, int32(1)))
    np.testing.assert_array_equal(y.get(), x.get().reshape(2, 64)[:, ::-1].reshape(-1))
    kernel("rotate_twice")((2,), (64,), (x, y, int32(1)))
    np.testing.assert_array_equal(y.get(), np.roll(x.get().reshape(2, 64), -2, 1).reshape(-1))
    kernel("swap_neighbours")((1,), (32,), (x, y, int32(1)))
    np.testing.assert_array_equal(y.get()[:32], np.arange(32) ^ 1)
    kernel("shuffle_some")((1,), (32,), (y, np.uint32(0xFFFF), int32(16)))
    np.testing.assert_array_equal(y.get()[:15], np.arange(1, 16))


# ---------------------------------------------------------------------------------------------------------------------
# Planted bugs
# ---------------------------------------------------------------------------------------------------------------------


def test_finds_a_missing_barrier():
    x, y = array(np.arange(128, dtype=np.float32)), zeros(128)
    with reports("reverse", "(0, 0, 0), thread (32, 0, 0)", "shared memory", "thread (31, 0, 0)", "no __syncthreads"):
        kernel("reverse")((2,), (64,), (x, y, int32(0)))
    with reports("rotate_twice", "thread (", "writes shared memory", "read, with no __sync"):
        kernel("rotate_twice")((2,), (64,), (x, y, int32(0)))


def test_finds_a_missing_barrier_of_a_warp():
    x, y = array(np.arange(32, dtype=np.float32)), zeros(32)
    with reports(
        "swap_neighbours", "(0, 0, 0), thread (1, 0, 0)", "shared memory", "thread (0, 0, 0)", "no __syncwarp"
    ):
        kernel("swap_neighbours")((1,), (32,), (x, y, int32(0)))


def test_finds_blocks_that_rely_on_each_other():
    with reports("neighbouring_block", "(1, 0, 0), thread (0, 0, 0)", "element 0 of argument 0", "of block (0, 0, 0)"):
        kernel("neighbouring_block")((2,), (1,), (zeros(2),))


@pytest.mark.parametrize("i", [-1, 8, 9, 1000, 2**40, -(2**33)])
def test_finds_accesses_out_of_bounds(i):
    x, y = zeros(8), zeros(8)
    side = "before" if i < 0 else "behind"
    with reports(
        "store_at", "(0, 0, 0), thread (0, 0, 0): stores 4 bytes out of bounds", side, "argument 0 of 32 bytes"
    ):
        kernel("store_at")((1,), (1,), (y, i))
    with reports("load_at", "loads 4 bytes out of bounds"):
        kernel("load_at")((1,), (1,), (x, y, i))
    table = array([x.data.ptr, y.data.ptr], np.uint64)
    with reports("store_behind_table", "stores 4 bytes out of bounds"):
        kernel("store_behind_table")((1,), (1,), (table, i))
    assert not y.get().any()
    kernel("store_behind_table")((1,), (1,), (table, 7))
    assert y.get().tolist() == [0] * 7 + [1]


def test_finds_accesses_out_of_bounds_of_shared_memory():
    y = zeros(1)
    kernel("store_shared_at")((1,), (1,), (y, int32(7)))
    assert y.get() == 3
    for i in (-1, 8, 11):
        with reports("store_shared_at", "thread (0, 0, 0): stores 4 bytes out of bounds of shared memory"):
            kernel("store_shared_at")((1,), (1,), (y, int32(i)))
    with reports("read_shared", "thread (16, 0, 0): loads 4 bytes out of bounds of shared memory"):
        kernel("read_shared")((1,), (32,), (zeros(64),), shared_mem=64)


def test_finds_vectors_that_are_not_aligned():
    with reports("vector_at", "not a multiple"):
        kernel("vector_at")((1,), (1,), (zeros(8), zeros(4), 2))
    with reports("vector_at", "loads 16 bytes out of bounds: partly behind"):
        kernel("vector_at")((1,), (1,), (zeros(6), zeros(4), 4))


def test_finds_barriers_to_which_not_all_come():
    kernel("sync_some")((1,), (64,), (int32(64), int32(0)))
    with reports("sync_some", "__syncthreads", "__syncthreads", "for ever"):
        kernel("sync_some")((1,), (64,), (int32(32), int32(1)))


@pytest.mark.parametrize(
    "mask, count, what",
    [
        (0xFFFFFFFF, 16, "lane 16 of the mask does not come: thread (16, 0, 0) has exited"),
        (0xFFFF, 32, "thread (16, 0, 0): calls __shfl_down_sync with mask 0x0000ffff, in which its lane 16 is not"),
    ],
)
def test_finds_wrong_masks(mask, count, what):
    with reports("shuffle_some", what):
        kernel("shuffle_some")((1,), (32,), (zeros(32), np.uint32(mask), int32(count)))


def test_finds_lanes_that_wait_elsewhere():
    with reports("shuffle_or_sync", "thread (0, 0, 0) waits at __shfl_xor_sync", "lane 16", "waits at __syncthreads"):
        kernel("shuffle_or_sync")((1,), (32,), (zeros(32),))
    with reports("shuffle_some", "lane 16 of the mask is not in the block"):
        kernel("shuffle_some")((1,), (16,), (zeros(32), np.uint32(0xFFFFFFFF), int32(16)))


def test_finds_copies_that_nobody_waited_for():
    with reports("pipeline", "thread (0, 0, 0): reads shared memory", "asynchronous copy of thread (31, 0, 0)"):
        kernel("pipeline")((1,), (32,), (zeros(256), zeros(256), int32(2), int32(0)))


def test_finds_a_grid_that_cannot_meet():
    with pytest.raises(EmulationError, match="a block that has exited"):
        module(True).get_function("leave_before_grid")((2,), (32,), (zeros(1, dtype=np.uint32),))
    with pytest.raises(EmulationError, match="not cooperative"):
        kernel("leave_before_grid")((2,), (32,), (zeros(1, dtype=np.uint32),))
    with reports("leave_before_grid", "the counter of grid_sync was not zero"):
        module(True).get_function("leave_before_grid")((2,), (32,), (array([3], np.uint32),))


def test_arguments_are_the_parameters():
    out, byte = zeros(4), zeros(1, dtype=np.uint8)
    call = functools.partial(kernel("parameters"), (1,), (1,))
    call((2.5, int32(3), True, None, out))
    assert out.get().tolist() == [2.5, 3, 1, 1]
    call((2.5, int32(3), np.bool_(False), byte, out))
    assert out.get().tolist() == [2.5, 3, 0, 0]
    for wrong, what in [
        ((np.float32(2), int32(3), True, byte, out), "argument 0 is numpy.float32, the kernel declares f8 of 8 bytes"),
        ((2, int32(3), True, byte, out), "argument 0 is a Python int"),
        ((2.5, 3, True, byte, out), "argument 1 is a Python int, the kernel declares i4"),
        ((2.5, int32(3), 1, byte, out), "argument 2"),
        ((2.5, int32(3), True, out, out), "argument 3 is an array of float32, the kernel declares a pointer to u1"),
        ((2.5, int32(3), True, byte, int32(0)), "argument 4"),
        ((2.5, int32(3), True, byte), "takes 5 arguments, got 4"),
    ]:
        with pytest.raises(EmulationError, match=what):
            call(wrong)


def test_launches_have_the_limits_of_a_device():
    add = kernel("add_blocks")
    for grid, block, shared in [((0,), (32,), 0), ((1, 65536), (32,), 0), ((1,), (1025,), 0), ((1,), (32,), 49153)]:
        with pytest.raises(EmulationError, match="kernel add_blocks"):
            add(grid, block, (zeros(32), zeros(1)), shared_mem=shared)
    with pytest.raises(EmulationError, match="no kernel is called"):
        kernel("nothing")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="NVRTC comes with the packages of the GPU")
@pytest.mark.parametrize("capability", ahead.CAPABILITIES)
def test_the_device_half_takes_the_same_source(capability):
    reports = ahead.read(ahead.compile_cuda(SOURCE.read_text(), ["-std=c++17", INCLUDE], capability), capability)
    assert {"product_bfloat16", "pipeline", "add_rounds"} <= set(reports)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="threads change places by system calls elsewhere")
def test_is_fast_enough():
    """Hundreds of thousands of threads a second."""
    x, sums = zeros(400 * 256), zeros(400)
    began = time.process_time()
    kernel("add_blocks")((400,), (256,), (x, sums))
    assert time.process_time() - began < 2
