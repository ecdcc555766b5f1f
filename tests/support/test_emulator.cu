// Kernels for the tests of the emulator: right ones, and ones in which an argument plants a bug.
#include "device.cuh"

#define AT (blockIdx.x * blockDim.x + threadIdx.x)

extern "C" __global__ void add_blocks(const float* x, float* sums) {
    const float sum = block_sum(x[AT]);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

extern "C" __global__ void reverse(const float* x, float* y, int synchronise) {
    SHARED(float, tile, 64);
    tile[threadIdx.x] = x[AT];
    if (synchronise) __syncthreads();
    y[AT] = tile[blockDim.x - 1 - threadIdx.x];
}

// The second tile overwrites the first while others may still read it, unless synchronised.
extern "C" __global__ void rotate_twice(const float* x, float* y, int synchronise) {
    SHARED(float, tile, 64);
    float value = x[AT];
    for (int i = 0; i < 2; i++) {
        tile[threadIdx.x] = value;
        __syncthreads();
        value = tile[(threadIdx.x + 1) % blockDim.x];
        if (synchronise) __syncthreads();
    }
    y[AT] = value;
}

// Within one warp.
extern "C" __global__ void swap_neighbours(const float* x, float* y, int synchronise) {
    SHARED(float, tile, 32);
    tile[threadIdx.x] = x[threadIdx.x];
    if (synchronise) __syncwarp();
    y[threadIdx.x] = tile[threadIdx.x ^ 1];
}

extern "C" __global__ void neighbouring_block(float* x) {
    if (blockIdx.x == 0) x[0] = 1;
    else if (threadIdx.x == 0) x[1] = x[0];
}

extern "C" __global__ void store_at(float* y, long long i) { y[i] = 1; }
extern "C" __global__ void load_at(const float* x, float* y, long long i) { y[0] = x[i]; }
extern "C" __global__ void store_behind_table(float* const* table, long long i) { table[1][i] = 1; }
extern "C" __global__ void vector_at(const float* x, float* y, long long i) {
    float v[4];
    load_vector(x + i, v);
    store_vector(y, v);
}

extern "C" __global__ void store_shared_at(float* y, int i) {
    SHARED(float, one, 8);
    SHARED(float, other, 8);
    one[i] = 1;
    other[0] = 2;
    y[0] = one[i] + other[0];
}

extern "C" __global__ void read_shared(float* y) {
    SHARED(float, tile, 32);
    DYNAMIC_SHARED(float, dynamic);
    y[threadIdx.x] = tile[threadIdx.x];
    y[threadIdx.x + 32] = dynamic[threadIdx.x];
}

extern "C" __global__ void sync_some(int count, int elsewhere) {
    if (threadIdx.x < count) __syncthreads();
    else if (elsewhere) __syncthreads();
}

extern "C" __global__ void shuffle_some(float* y, unsigned int mask, int count) {
    if (threadIdx.x < count) y[threadIdx.x] = shuffle_down(mask, (float)threadIdx.x, 1);
}

extern "C" __global__ void shuffle_or_sync(float* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = shuffle_xor(FULL_WARP, 1.0f, 1);
    else __syncthreads();
}

extern "C" __global__ void shuffles(const float* x, float* y, const double* a, double* b, int width) {
    const int i = threadIdx.x;
    y[i] = __shfl_sync(FULL_WARP, x[i], 5, width);
    y[i + 32] = __shfl_up_sync(FULL_WARP, x[i], 3, width);
    y[i + 64] = __shfl_down_sync(FULL_WARP, x[i], 3, width);
    y[i + 96] = __shfl_xor_sync(FULL_WARP, x[i], 3, width);
    y[i + 128] = __ballot_sync(FULL_WARP, x[i] > 16);
    b[i] = shuffle_xor(FULL_WARP, a[i], 1);
}

extern "C" __global__ void add_rounds(const float* x, float* sums, unsigned int* arrived, int rounds) {
    for (int round = 0; round < rounds; round++) {
        const float sum = block_sum(round == 0 ? x[AT] : sums[(round - 1) * gridDim.x + threadIdx.x % gridDim.x]);
        if (threadIdx.x == 0) sums[round * gridDim.x + blockIdx.x] = sum;
        grid_sync(arrived);
    }
}

extern "C" __global__ void leave_before_grid(unsigned int* arrived) {
    if (blockIdx.x > 0) grid_sync(arrived);
}

// A tile comes while the one before it is used; `wait` = 0 forgets to wait.
extern "C" __global__ void pipeline(const float* x, float* y, int tiles, int wait) {
    SHARED(float, tile, 2 * 128);
    const int i = threadIdx.x;
    copy_async<16>(tile + 4 * i, x + 4 * i);
    copy_commit();
    for (int t = 0; t < tiles; t++) {
        float* next = tile + (t + 1) % 2 * 128;
        const bool there = t + 1 < tiles;
        copy_async<16>(next + 4 * i, there ? x + 128 * (t + 1) + 4 * i : x, there ? 16 : 0);
        copy_commit();
        if (wait) copy_wait<1>();
        __syncthreads();
        for (int j = 0; j < 4; j++) y[128 * t + i + 32 * j] = tile[t % 2 * 128 + 127 - (i + 32 * j)];
        __syncthreads();
    }
    copy_wait<0>();
}

// C = A B^T for 16 x K, 8 x K in 16 bits, the fragments by ldmatrix or by hand.
template <class Half>
DEVICE void product(const Half* a, const Half* b, float* c, int by_ldmatrix) {
    SHARED(Half, tile, 24 * 16);
    const int lane = threadIdx.x;
    for (int i = lane; i < 16 * 16; i += 32) tile[i] = a[i];
    for (int i = lane; i < 8 * 16; i += 32) tile[256 + i] = b[i];
    __syncwarp();
    uint32 x[4], y[4];
    if (by_ldmatrix) {
        load_matrices(x, tile + (lane % 16) * 16 + lane / 16 * 8);
        load_matrices(y, tile + 256 + lane % 8 * 16 + lane / 8 % 2 * 8);
    } else {
        const int row = lane / 4, k = lane % 4 * 2;
        for (int j = 0; j < 4; j++) x[j] = *reinterpret_cast<uint32*>(tile + (row + j % 2 * 8) * 16 + k + j / 2 * 8);
        for (int j = 0; j < 2; j++) y[j] = *reinterpret_cast<uint32*>(tile + 256 + row * 16 + k + j * 8);
    }
    const uint32 z[2] = {y[0], y[1]};
    float d[4] = {0, 0, 0, 0};
    mma_m16n8k16(static_cast<Half*>(nullptr), d, x, z);
    for (int j = 0; j < 4; j++) c[(lane / 4 + j / 2 * 8) * 8 + lane % 4 * 2 + j % 2] = d[j];
}
extern "C" __global__ void product_half(const half_t* a, const half_t* b, float* c, int by_ldmatrix) {
    product(a, b, c, by_ldmatrix);
}
extern "C" __global__ void product_bfloat16(const bfloat16_t* a, const bfloat16_t* b, float* c, int by_ldmatrix) {
    product(a, b, c, by_ldmatrix);
}
extern "C" __global__ void product_tf32(const float* a, const float* b, float* c) {
    const int row = threadIdx.x / 4, k = threadIdx.x % 4;
    const uint32 x[4] = {to_tf32(a[row * 8 + k]), to_tf32(a[(row + 8) * 8 + k]), to_tf32(a[row * 8 + k + 4]),
                         to_tf32(a[(row + 8) * 8 + k + 4])};
    const uint32 y[2] = {to_tf32(b[row * 8 + k]), to_tf32(b[row * 8 + k + 4])};
    float d[4] = {0, 0, 0, 0};
    mma_m16n8k8_tf32(d, x, y);
    for (int j = 0; j < 4; j++) c[(row + j / 2 * 8) * 8 + k * 2 + j % 2] = d[j];
}
extern "C" __global__ void product_double(const double* a, const double* b, double* c) {
    const int row = threadIdx.x / 4, k = threadIdx.x % 4;
    const double x[4] = {a[row * 8 + k], a[(row + 8) * 8 + k], a[row * 8 + k + 4], a[(row + 8) * 8 + k + 4]};
    const double y[2] = {b[row * 8 + k], b[row * 8 + k + 4]};
    double d[4] = {0, 0, 0, 0};
    mma_m16n8k8(d, x, y);
    for (int j = 0; j < 4; j++) c[(row + j / 2 * 8) * 8 + k * 2 + j % 2] = d[j];
}
extern "C" __global__ void transpose_matrices(const half_t* x, half_t* y) {
    SHARED(half_t, tile, 4 * 64);
    const int lane = threadIdx.x;
    for (int i = lane; i < 256; i += 32) tile[i] = x[i];
    __syncwarp();
    uint32 pairs[4];
    load_matrices_transposed(pairs, tile + lane * 8);
    for (int j = 0; j < 4; j++) *reinterpret_cast<uint32*>(y + 64 * j + lane / 4 * 8 + lane % 4 * 2) = pairs[j];
}

extern "C" __global__ void convert_half(const float* x, half_t* y, float* z, long long n) {
    if (AT < n) store(y + AT, x[AT]), z[AT] = load<float>(y + AT);
}
extern "C" __global__ void convert_bfloat16(const float* x, bfloat16_t* y, float* z, long long n) {
    if (AT < n) store(y + AT, x[AT]), z[AT] = load<float>(y + AT);
}

extern "C" __global__ void parameters(double a, int b, bool c, const unsigned char* d, float* out) {
    out[0] = a, out[1] = b, out[2] = c, out[3] = d == nullptr;
}

extern "C" __global__ void where_am_i(int* y) {
    const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    y[block * block_threads() + thread_rank()] = 1 + threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z + 1000 * block;
}
