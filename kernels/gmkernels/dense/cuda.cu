// Dense layers: c = activation(a b + bias) of matrices with any strides, and the gradient of the activation.
//
// `product`: a block makes a tile of c as `product.cuh` has it, its operands copied as A_COPY and B_COPY say, the last
// two A_BYTES and B_BYTES at a time. Where c has too few tiles to fill a device the sum is cut into parts: the blocks
// (., p) sum part p alone, and `add_parts` adds the parts in order. What an element adds, and in which order, depends on
// shapes and dtype: not on the tile, the layout or the device, so results repeat bit for bit.

#include "device.cuh"

enum Activation { IDENTITY, TANH, SIGMOID, RELU, SOFTPLUS };

DEVICE Real activate(Real x, Index activation) {
    switch (activation) {
        case TANH: return tanh(x);
        case SIGMOID: return Real(1) / (Real(1) + exp(-x));
        case RELU: return x <= 0 ? Real(0) : x;  // NaN stays
        case SOFTPLUS: return (x > 0 ? x : Real(0)) + log1p(exp(-fabs(x)));
        default: return x;
    }
}

// =====================================================================================================================
// Products
// =====================================================================================================================

#ifdef BM
#include "dense/product.cuh"

typedef Operand<BM, A_COPY, A_BYTES> OperandA;
typedef Operand<BN, B_COPY, B_BYTES> OperandB;

// Grid: (tiles of c, one product after the other; parts of the sums). If there are parts, their sums go to `partial`
// (parts, products, m, n), otherwise the result to c (products, m, n). Strides count elements: `across` from one row of
// a, or column of b, to the next, `along` the sum, `apart` from one product to the next.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
product(const Store* __restrict__ a, long long a_across, long long a_along, long long a_apart,
        const Store* __restrict__ b, long long b_across, long long b_along, long long b_apart,
        const Store* __restrict__ bias, long long bias_stride, Store* __restrict__ c, Real* __restrict__ partial,
        Index products, Index m, Index n, Index k, Index part_length, Index activation) {
    DYNAMIC_SHARED(Store, steps);
    const Index tiles = (m + BM - 1) / BM * ((n + BN - 1) / BN), product = blockIdx.x / tiles;
    a += product * a_apart, b += product * b_apart, c += product * m * n;
    Index first_m, first_n;
    corner_of(blockIdx.x % tiles, m, n, first_m, first_n);
    const Index first_k = blockIdx.y * part_length;
    const Index length = max(min(k - first_k, part_length), Index(0));
    OperandA a_copy(a, a_across, a_along, first_m, m, first_k, length);
    OperandB b_copy(b, b_across, b_along, first_n, n, first_k, length);
    Sums<OperandA, OperandB> sums;
    add_steps(a_copy, b_copy, sums, steps, length);

    const Index first_column = first_n + threadIdx.x % (BN / PER) * PER;
    const bool whole = n % PER == 0 && is_aligned<PER>(c);
    Real shift[PER];
#pragma unroll
    for (int e = 0; e < PER; e++) {
        const bool has = bias != nullptr && first_column + e < n;
        shift[e] = has ? load<Real>(bias + (first_column + e) * bias_stride) : Real(0);
    }
    for_each_row(sums, [&](int r, int, Real (&x)[PER]) {
        const Index row = first_m + r, column = first_column;
        if (row >= m || column >= n) return;
        if (partial != nullptr) {
            Real* to = partial + ((blockIdx.y * products + product) * m + row) * n + column;
            if (n % PER == 0) store_vector(to, x);
            else store_some(to, x, n - column);
            return;
        }
#pragma unroll
        for (int e = 0; e < PER; e++) x[e] = activate(x[e] + shift[e], activation);
        Store* to = c + row * n + column;
        if (whole) store_vector(to, x);
        else store_some(to, x, n - column);
    });
}

#endif

// y = activation(sum of the parts + bias), of `size` elements in rows of n.
extern "C" __global__ void add_parts(const Real* __restrict__ partial, const Store* __restrict__ bias,
                                     long long bias_stride, Store* __restrict__ y, Index size, Index n, Index parts,
                                     Index activation) {
    const Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= size) return;
    Real sum = 0;
#pragma unroll 4
    for (Index p = 0; p < parts; p++) sum += partial[p * size + i];
    if (bias != nullptr) sum += load<Real>(bias + i % n * bias_stride);
    store(y + i, activate(sum, activation));
}

// =====================================================================================================================
// The gradient of activations
// =====================================================================================================================

DEVICE Real times_slope(Real g, Real y, Index activation) {
    switch (activation) {
        case TANH: return g * (Real(1) - y * y);
        case SIGMOID: return g * (y * (Real(1) - y));
        case RELU: return g * (y <= 0 ? Real(0) : Real(1));  // a NaN of y passes g on
        case SOFTPLUS: return g * -expm1(-y);
        default: return g;
    }
}

// A block makes `block_rows` rows of a strip of columns and sums them: `width` threads are neighbours in a row, each
// has COLUMNS elements of it, and 256 / width rows are under way at once.
template <int COLUMNS>
DEVICE void backward_block(const Store* g, const Store* y, Store* d_pre, double* partial, Index rows, Index features,
                           Index block_rows, Index strips, int width, Index activation) {
    SHARED(Real, totals, 256 * COLUMNS);
    const int thread = threadIdx.x, first_row = thread / width, stride = 256 / width;
    const Index strip = blockIdx.x % strips, block = blockIdx.x / strips;
    const Index column = (strip * width + thread % width) * COLUMNS;
    const Index top = block * block_rows, bottom = min(rows, top + block_rows);
    Real total[COLUMNS];
#pragma unroll
    for (int e = 0; e < COLUMNS; e++) total[e] = 0;
    if (column < features) {
#pragma unroll 4
        for (Index row = top + first_row; row < bottom; row += stride) {
            Real gradient[COLUMNS], value[COLUMNS];
            load_vector(g + row * features + column, gradient);
            if (activation != IDENTITY) {
                load_vector(y + row * features + column, value);
#pragma unroll
                for (int e = 0; e < COLUMNS; e++) gradient[e] = times_slope(gradient[e], value[e], activation);
            }
#pragma unroll
            for (int e = 0; e < COLUMNS; e++) total[e] += gradient[e];
            if constexpr (COLUMNS == 1) store(d_pre + row * features + column, gradient[0]);
            else store_vector(d_pre + row * features + column, gradient);
        }
    }
#pragma unroll
    for (int e = 0; e < COLUMNS; e++) totals[e * 256 + thread] = total[e];
    for (int half = stride / 2; half > 0; half /= 2) {
        __syncthreads();
        if (first_row < half) {
#pragma unroll
            for (int e = 0; e < COLUMNS; e++) totals[e * 256 + thread] += totals[e * 256 + thread + half * width];
        }
    }
    if (first_row == 0 && column < features) {
#pragma unroll
        for (int e = 0; e < COLUMNS; e++) partial[block * features + column + e] = totals[e * 256 + thread];
    }
}

extern "C" __global__ void __launch_bounds__(256)
backward(const Store* __restrict__ g, const Store* __restrict__ y, Store* __restrict__ d_pre,
         double* __restrict__ partial, Index rows, Index features, Index block_rows, Index strips, Index width,
         Index activation) {
    backward_block<1>(g, y, d_pre, partial, rows, features, block_rows, strips, width, activation);
}

// The same for rows of aligned groups of 16 bytes.
extern "C" __global__ void __launch_bounds__(256)
backward_vectors(const Store* __restrict__ g, const Store* __restrict__ y, Store* __restrict__ d_pre,
                 double* __restrict__ partial, Index rows, Index features, Index block_rows, Index strips, Index width,
                 Index activation) {
    backward_block<16 / sizeof(Store)>(g, y, d_pre, partial, rows, features, block_rows, strips, width, activation);
}

// d_bias = sum of the row blocks' sums: 32 columns a block of 256 threads, a warp takes every eighth of them.
extern "C" __global__ void __launch_bounds__(256)
add_blocks(const double* __restrict__ partial, Store* __restrict__ d_bias, Index blocks, Index features) {
    SHARED(double, totals, 256);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const Index column = Index(blockIdx.x) * 32 + lane;
    double total = 0;
    if (column < features) {
#pragma unroll 4
        for (Index b = warp; b < blocks; b += 8) total += partial[b * features + column];
    }
    totals[threadIdx.x] = total;
    __syncthreads();
    if (warp == 0 && column < features) {
        for (int w = 1; w < 8; w++) total += totals[32 * w + lane];
        store(d_bias + column, static_cast<Real>(total));
    }
}
