"""What is read from machine code: spills, widths, paths and loops, of kernels that were written to have them."""

import importlib.util

import pytest

from tests.support import ahead

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the disassemblers come with triton"),
]

CODE = """
extern "C" __global__ void wide(const float4* x, float* y, int n) {
  float sum = 0;
  #pragma unroll 1
  for (int i = threadIdx.x; i < n; i += 32) { float4 a = x[i]; sum += (a.x + a.y) + (a.z + a.w); }
  y[threadIdx.x] = sum;
}
extern "C" __global__ void narrow(const float* x, float* y) { y[threadIdx.x] = x[4 * threadIdx.x]; }
extern "C" __global__ void spilling(const float* x, float* y, int n) {
  float a[64];
  for (int i = 0; i < 64; i++) a[i] = x[i];
  a[n] = 1;
  for (int i = 0; i < n; i++) y[i] = a[n - i];
}
extern "C" __global__ void two_ways(const float4* x, float4* y, const int* aligned, int n) {
  if (threadIdx.x >= n) return;
  float4 a = x[threadIdx.x];
  if (*aligned) y[threadIdx.x] = a;
  else {
    volatile float* v = (float*)y + 4 * threadIdx.x;
    v[0] = sqrtf(a.x); v[1] = sqrtf(a.y); v[2] = sqrtf(a.z); v[3] = sqrtf(a.w);  // too much to be predicated
  }
}
extern "C" __global__ void shared(const float* x, float* y) {
  __shared__ float tile[256];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = sqrtf(tile[255 - threadIdx.x]);
}
"""


@pytest.fixture(scope="module", params=ahead.CAPABILITIES)
def reports(request):
    return ahead.read(ahead.compile_cuda(CODE, ["-std=c++17", "-fmad=false"], request.param), request.param)


def test_all_kernels_are_found(reports):
    assert set(reports) == {"wide", "narrow", "spilling", "two_ways", "shared"}
    assert all(0 < r.registers <= 255 for r in reports.values())


def test_spills(reports):
    assert {name for name, r in reports.items() if r.spills} == {"spilling"}


def test_a_loop_and_its_accesses(reports):
    (loop,) = reports["wide"].loops
    assert loop.loads == {128: 1} and loop.stores == {} and loop.wide_share == 1
    assert 4 + 1 + 2 <= loop.instructions <= 14  # the sums, the load, a compare and a branch; addresses
    assert reports["wide"].hottest is loop and reports["wide"].path.stores == {32: 1}


def test_narrow_accesses(reports):
    path = reports["narrow"].hottest
    assert path.loads == path.stores == {32: 1} and path.wide_share == 0


def test_of_paths_that_move_as_much_the_shortest(reports):
    """Neither the exit before any work, nor the way of four stores."""
    path = reports["two_ways"].path
    assert path.stores == {128: 1} and path.loads == {128: 1, 32: 1}


def test_shared_memory_and_no_subroutine(reports):
    assert reports["shared"].shared == 1024
    assert reports["shared"].path.instructions < 40  # the root of a denormal number would add 20


def test_an_error_shows_the_log_of_the_compiler():
    with pytest.raises(ValueError, match="undefined_function"):
        ahead.compile_cuda("__global__ void f() { undefined_function(); }", [], 90)
