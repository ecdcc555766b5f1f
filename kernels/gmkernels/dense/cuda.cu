// Dense layers: c = activation(a b + bias) of matrices with any strides, and the gradient of the activation.
//
// `product`: a block of threads makes a tile of BM x BN elements of c. It goes along the sum in steps of BK, and while
// it multiplies one step the next STAGES - 1 are on their way into shared memory (cp.async). A warp makes WM x WN
// elements of the tile, in registers. Where c has too few tiles to fill a device the sum is cut into parts: the blocks
// (., p) sum part p alone, and `add_parts` adds the parts in order. What an element adds, and in which order, depends
// on shapes and dtype: not on the tile, the layout or the device, so results repeat bit for bit.
//
// Elements are multiplied
//   float     by fma in registers, 4 x 4 to 8 x 8 elements a thread
//   double    on tensor cores, by mma m16n8k8, which is fma in float64
//   16 bits   on tensor cores, by mma m16n8k16 with sums in float32
//
// A step of an operand is copied into shared memory as A_COPY and B_COPY say, the last two A_BYTES and B_BYTES (16, 8 or
// 4) at a time, to multiples of which the neighbours are aligned:
//   ELEMENTS  each element by itself, from any address and with any strides; lanes are neighbours across the sum
//   RUNS      each element by itself, where neighbours along the sum are neighbours in memory; lanes go along the sum
//   ACROSS    neighbours across the sum (a column of a, a row of b)
//   ALONG     neighbours along the sum (a row of a, a column of b). Not of float: its threads load neighbours across the
//             sum from shared memory, 16 bytes at a time
//
// Shared memory has 32 banks of 4 bytes, and serves 16 bytes a lane to 8 lanes at a time. Rows of a step are padded by
// PAD elements, so that lanes do not meet in a bank:
//   - neighbours in a row of 128 bytes and more do not: copies of 16 bytes (rows of 32 halves or bfloat16 meet in
//     pairs), loads of float, all that passes through the epilogue;
//   - RUNS: 8 neighbours of 4 rows lie at 4 k + row of 32 banks; of double 4 of 4 rows at 4 k + row of 16 double banks;
//   - fragments of double: 4 of 4 rows, at 4 row + column of 16 double banks, in either layout;
//   - fragments of 16 bits: 8 rows, an odd number of 16 bytes apart.

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

#define ELEMENTS 0
#define RUNS 1
#define ACROSS 2
#define ALONG 3

constexpr int WARPS_M = BM / WM, WARPS_N = BN / WN, THREADS = 32 * WARPS_M * WARPS_N;
constexpr int PER = 16 / sizeof(Store);  // elements in 16 bytes
constexpr int PAD = sizeof(Store) == 2 ? 8 : 4;

// How this thread copies its share of an operand's steps: B elements across the sum, BK along it.
template <int B, int COPY, int TOGETHER>
struct Operand {
    static constexpr bool LANES_ALONG = COPY == RUNS || COPY == ALONG;
    static constexpr int BYTES = COPY == ELEMENTS || COPY == RUNS ? sizeof(Store) : TOGETHER;  // of a copy
    static constexpr int WIDTH = BYTES / sizeof(Store);                                        // elements of a copy
    static constexpr int ROW = COPY == ALONG ? BK + PAD : B + PAD;  // elements from a row to the next, in shared memory
    static constexpr int SIZE = COPY == ALONG ? B * ROW : BK * ROW;
    // Lanes that are neighbours copy a run of elements, RUNS 32 bytes of it: so much memory gives at once.
    static constexpr int RUN = COPY == RUNS ? 32 / sizeof(Store) : LANES_ALONG ? BK : B;
    static constexpr int OUTER = COPY == RUNS ? BK / RUN : 1;
    static constexpr int INNER = B * BK / (OUTER * WIDTH * THREADS);
    static constexpr int STRIDE = THREADS / (RUN / WIDTH);  // from one of the INNER copies to the next, across the run
    static_assert(INNER > 0 && THREADS % (RUN / WIDTH) == 0, "threads do not fit the tile");
    // In shared memory: from an element to the next along the sum, and across it.
    static constexpr int NEXT_ALONG = COPY == ALONG ? 1 : ROW, NEXT_ACROSS = COPY == ALONG ? ROW : 1;

    const char* source;      // what this thread copies first of the next step
    long long inner_stride;  // bytes from one of the INNER copies to the next
    Index left_along;        // elements along the sum that are left, from there on
    int left_across;         // elements of a copy that exist, or copies of the INNER if lanes go along the sum
    int target;              // where the first copy goes, in elements of shared memory

    // The tile begins at `first_across` of `size_across`; `length` elements along the sum from `first_along` on are this
    // block's.
    __device__ __forceinline__ Operand(const Store* x, long long across_stride, long long along_stride, Index first_across,
                   Index size_across, Index first_along, Index length) {
        const int in_run = threadIdx.x % (RUN / WIDTH) * WIDTH, number = threadIdx.x / (RUN / WIDTH);
        const int across = LANES_ALONG ? number : in_run, along = LANES_ALONG ? in_run : number;
        target = across * NEXT_ACROSS + along * NEXT_ALONG;
        source = reinterpret_cast<const char*>(x + (first_across + across) * across_stride +
                                               (first_along + along) * along_stride);
        inner_stride = STRIDE * (LANES_ALONG ? across_stride : along_stride) * static_cast<int>(sizeof(Store));
        left_along = length - along;
        const int exist = static_cast<int>(max(Index(0), min(size_across - first_across - across, Index(B))));
        left_across = LANES_ALONG ? (exist + STRIDE - 1) / STRIDE : min(exist, WIDTH);
        if (!LANES_ALONG && exist == 0) left_along = 0;
    }

    // Begin to copy the next step; elements that do not exist are zeros.
    __device__ __forceinline__ void copy(Store* step) {
        Store* const to = step + target;
        const char* from = source;
        [[maybe_unused]] Store kept[OUTER * INNER];
#pragma unroll
        for (int i = 0; i < INNER; i++) {
#pragma unroll
            for (int o = 0; o < OUTER; o++) {
                Store* const place = to + (LANES_ALONG ? i * STRIDE * NEXT_ACROSS + o * RUN * NEXT_ALONG
                                                       : i * STRIDE * NEXT_ALONG);
                const Store* const element = reinterpret_cast<const Store*>(from) + o * RUN;
                const Index left = left_along - (LANES_ALONG ? o * RUN : i * STRIDE);
                const bool exists = LANES_ALONG ? i < left_across && left > 0 : left > 0;
                int width = WIDTH;
                if (COPY == ACROSS) width = left_across;
                if (COPY == ALONG) width = static_cast<int>(min(left, Index(WIDTH)));
                if constexpr (BYTES >= 4) {
                    copy_async<BYTES>(place, element, exists ? width * static_cast<int>(sizeof(Store)) : 0);
                } else {  // too few bytes for cp.async
                    kept[i * OUTER + o] = Store{};
                    if (exists) kept[i * OUTER + o] = *element;
                }
            }
            from += inner_stride;
        }
        if constexpr (BYTES < 4) {
#pragma unroll
            for (int i = 0; i < INNER; i++) {
#pragma unroll
                for (int o = 0; o < OUTER; o++) {
                    to[LANES_ALONG ? i * STRIDE * NEXT_ACROSS + o * RUN * NEXT_ALONG : i * STRIDE * NEXT_ALONG] =
                        kept[i * OUTER + o];
                }
            }
        }
        source = LANES_ALONG ? source + BK * sizeof(Store) : from;
        left_along -= BK;
    }
};

typedef Operand<BM, A_COPY, A_BYTES> OperandA;
typedef Operand<BN, B_COPY, B_BYTES> OperandB;

constexpr int STAGE = OperandA::SIZE + OperandB::SIZE;
constexpr int STAGED_ROW = BN + 8;  // of the epilogue; 8 so that the pairs of sums of 4 rows do not conflict

// The sums of a warp's elements, in registers: `multiply` adds those of a step, `stage` writes number `band` of its 16
// rows at a time to shared memory, where the bands of the warps of a column of warps follow each other.
template <class T, int BYTES = sizeof(T)>
struct Sums;

// Each thread has blocks of 4 x 4 elements, 16 rows or 32 columns apart.
template <class T>
struct Sums<T, 4> {
    static constexpr int TM = WM / 4, TN = WN / 8;
    T sum[TM][TN];
    int row, column, staged_row;

    __device__ __forceinline__ Sums() {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        staged_row = warp / WARPS_N * 16 + lane / 8 * 4;
        row = warp / WARPS_N * WM + lane / 8 * 4, column = warp % WARPS_N * WN + lane % 8 * 4;
#pragma unroll
        for (int i = 0; i < TM; i++) {
#pragma unroll
            for (int j = 0; j < TN; j++) sum[i][j] = T(0);
        }
    }

    __device__ __forceinline__ void multiply(const T* a, const T* b) {
#pragma unroll
        for (int k = 0; k < BK; k++) {
            T x[TM / 4][4], y[TN / 4][4];
#pragma unroll
            for (int i = 0; i < TM / 4; i++) load_vector(a + k * OperandA::ROW + row + i * 16, x[i]);
#pragma unroll
            for (int j = 0; j < TN / 4; j++) load_vector(b + k * OperandB::ROW + column + j * 32, y[j]);
#pragma unroll
            for (int i = 0; i < TM; i++) {
#pragma unroll
                for (int j = 0; j < TN; j++) sum[i][j] = fma(x[i / 4][i % 4], y[j / 4][j % 4], sum[i][j]);
            }
        }
    }

    __device__ __forceinline__ void stage(Real* staged, int band) const {
#pragma unroll
        for (int i = 0; i < TM; i++) {
            if (i / 4 != band) continue;
#pragma unroll
            for (int j = 0; j < TN; j += 4) {
                const T x[4] = {sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]};
                store_vector(staged + (staged_row + i % 4) * STAGED_ROW + column + j * 8, x);
            }
        }
    }
};

// Tiles of 16 x 8 elements, as mma has them: a thread has 2 neighbours of row lane / 4, and 2 more 8 rows below.
template <class T>
struct Tiles {
    static constexpr int TM = WM / 16, TN = WN / 8;
    Real sum[TM][TN][4];
    int row, column, warp_m, group, member;

    __device__ __forceinline__ Tiles() {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        group = lane / 4, member = lane % 4, warp_m = warp / WARPS_N;
        row = warp_m * WM, column = warp % WARPS_N * WN;
#pragma unroll
        for (int i = 0; i < TM; i++) {
#pragma unroll
            for (int j = 0; j < TN; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) sum[i][j][e] = Real(0);
            }
        }
    }

    __device__ __forceinline__ void stage(Real* staged, int band) const {
#pragma unroll
        for (int i = 0; i < TM; i++) {
            if (i != band) continue;
            Real* to = staged + (warp_m * 16 + group) * STAGED_ROW + column + 2 * member;
#pragma unroll
            for (int j = 0; j < TN; j++) {
                const Real top[2] = {sum[i][j][0], sum[i][j][1]}, bottom[2] = {sum[i][j][2], sum[i][j][3]};
                store_vector(to + 8 * j, top);
                store_vector(to + 8 * STAGED_ROW + 8 * j, bottom);
            }
        }
    }
};

template <class T>
struct Sums<T, 8> : Tiles<T> {
    using Tiles<T>::TM, Tiles<T>::TN, Tiles<T>::sum, Tiles<T>::row, Tiles<T>::column, Tiles<T>::group, Tiles<T>::member;

    __device__ __forceinline__ void multiply(const T* a, const T* b) {
        constexpr int A_ACROSS = A_COPY == ALONG ? OperandA::ROW : 1, A_ALONG = A_COPY == ALONG ? 1 : OperandA::ROW;
        constexpr int B_ACROSS = B_COPY == ALONG ? OperandB::ROW : 1, B_ALONG = B_COPY == ALONG ? 1 : OperandB::ROW;
        const T* a_mine = a + (row + group) * A_ACROSS + member * A_ALONG;
        const T* b_mine = b + (column + group) * B_ACROSS + member * B_ALONG;
#pragma unroll
        for (int k = 0; k < BK; k += 8) {
            T x[TM][4], y[TN][2];
#pragma unroll
            for (int i = 0; i < TM; i++) {
#pragma unroll
                for (int e = 0; e < 4; e++) x[i][e] = a_mine[(16 * i + e % 2 * 8) * A_ACROSS + (k + e / 2 * 4) * A_ALONG];
            }
#pragma unroll
            for (int j = 0; j < TN; j++) {
#pragma unroll
                for (int e = 0; e < 2; e++) y[j][e] = b_mine[8 * j * B_ACROSS + (k + e * 4) * B_ALONG];
            }
#pragma unroll
            for (int i = 0; i < TM; i++) {
#pragma unroll
                for (int j = 0; j < TN; j++) mma_m16n8k8(sum[i][j], x[i], y[j]);
            }
        }
    }
};

template <class T>
struct Sums<T, 2> : Tiles<T> {
    using Tiles<T>::TM, Tiles<T>::TN, Tiles<T>::sum, Tiles<T>::row, Tiles<T>::column;

    __device__ __forceinline__ void multiply(const T* a, const T* b) {
        // ldmatrix takes 8 rows from the addresses of 8 lanes, 4 times. Of a: rows 0-7 and 8-15, then both for the next 8
        // along the sum. Of b: 8 along the sum and the next 8, then both for the next 8 columns.
        const int lane = threadIdx.x % 32, low = lane % 8 + lane / 8 % 2 * 8, high = lane / 16 * 8;
        const int within = lane % 8 + lane / 16 * 8, along = lane / 8 % 2 * 8;
        const T* a_mine = A_COPY == ALONG ? a + (row + low) * OperandA::ROW + high
                                          : a + within * OperandA::ROW + row + along;
        const T* b_mine = B_COPY == ALONG ? b + (column + within) * OperandB::ROW + along
                                          : b + low * OperandB::ROW + column + high;
#pragma unroll
        for (int k = 0; k < BK; k += 16) {
            uint32 x[TM][4], y[TN / 2][4];
#pragma unroll
            for (int i = 0; i < TM; i++) {
                if constexpr (A_COPY == ALONG) load_matrices(x[i], a_mine + 16 * i * OperandA::ROW + k);
                else load_matrices_transposed(x[i], a_mine + k * OperandA::ROW + 16 * i);
            }
#pragma unroll
            for (int j = 0; j < TN / 2; j++) {
                if constexpr (B_COPY == ALONG) load_matrices(y[j], b_mine + 16 * j * OperandB::ROW + k);
                else load_matrices_transposed(y[j], b_mine + k * OperandB::ROW + 16 * j);
            }
#pragma unroll
            for (int i = 0; i < TM; i++) {
#pragma unroll
                for (int j = 0; j < TN; j++) {
                    const uint32 pair[2] = {y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]};
                    mma_m16n8k16(static_cast<T*>(nullptr), sum[i][j], x[i], pair);
                }
            }
        }
    }
};

// Grid: (tiles of c, parts of the sum). If there are parts, their sums go to `partial` (parts, m, n), otherwise the
// result to c (m, n). Strides count elements: `across` from one row of a, or column of b, to the next, `along` the sum.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
product(const Store* __restrict__ a, long long a_across, long long a_along, const Store* __restrict__ b,
        long long b_across, long long b_along, const Store* __restrict__ bias, long long bias_stride,
        Store* __restrict__ c, Real* __restrict__ partial, Index m, Index n, Index k, Index part_length,
        Index activation) {
    DYNAMIC_SHARED(Store, steps);

    // Blocks that run together take tiles of 8 rows of tiles, column by column: what they read is shared by many.
    const Index tiles_m = (m + BM - 1) / BM, tiles_n = (n + BN - 1) / BN, tile = blockIdx.x;
    const Index group_top = tile / (8 * tiles_n) * 8, in_group = tile % (8 * tiles_n);
    const Index group_rows = min(tiles_m - group_top, Index(8));
    const Index first_m = (group_top + in_group % group_rows) * BM, first_n = in_group / group_rows * BN;

    const Index first_k = blockIdx.y * part_length;
    const Index length = max(min(k - first_k, part_length), Index(0));
    const Index count = (length + BK - 1) / BK;

    OperandA a_copy(a, a_across, a_along, first_m, m, first_k, length);
    OperandB b_copy(b, b_across, b_along, first_n, n, first_k, length);
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < count) {
            a_copy.copy(steps + s * STAGE);
            b_copy.copy(steps + s * STAGE + OperandA::SIZE);
        }
        copy_commit();
    }
    Sums<Store> sums;
    int reading = 0, writing = STAGES - 1;
    for (Index step = 0; step < count; step++) {
        copy_wait<STAGES - 2>();  // this thread's copies of this step are there
        __syncthreads();          // and those of all; all have read the step before, which is overwritten now
        if (step + STAGES - 1 < count) {
            a_copy.copy(steps + writing * STAGE);
            b_copy.copy(steps + writing * STAGE + OperandA::SIZE);
        }
        copy_commit();
        sums.multiply(steps + reading * STAGE, steps + reading * STAGE + OperandA::SIZE);
        writing = writing + 1 == STAGES ? 0 : writing + 1;
        reading = reading + 1 == STAGES ? 0 : reading + 1;
    }

    // Through shared memory, so that whole rows are stored 16 bytes at a time and the code of the activations, which is
    // long, stands once.
    DYNAMIC_SHARED(Real, staged);
    constexpr int CHUNKS = BN / PER;
    const int chunk = threadIdx.x % CHUNKS * PER;
    const Index column = first_n + chunk;
    const bool whole = n % PER == 0 && reinterpret_cast<unsigned long long>(c) % 16 == 0;
    Real shift[PER];
#pragma unroll
    for (int e = 0; e < PER; e++) {
        const bool has = bias != nullptr && column + e < n;
        shift[e] = has ? load<Real>(bias + (column + e) * bias_stride) : Real(0);
    }
#pragma unroll 1
    for (int band = 0; band < WM / 16; band++) {
        __syncthreads();  // what was in shared memory has been read
        sums.stage(staged, band);
        __syncthreads();
#pragma unroll 1
        for (int r = threadIdx.x / CHUNKS; r < WARPS_M * 16; r += THREADS / CHUNKS) {
            const Index row = first_m + r / 16 * WM + band * 16 + r % 16;
            if (row >= m || column >= n) continue;
            Real x[PER];
            load_vector(staged + r * STAGED_ROW + chunk, x);
            if (partial != nullptr) {
                Real* to = partial + (blockIdx.y * m + row) * n + column;
                if (n % PER == 0) {
                    store_vector(to, x);
                    continue;
                }
#pragma unroll
                for (int e = 0; e < PER; e++) {
                    if (column + e < n) to[e] = x[e];
                }
                continue;
            }
#pragma unroll
            for (int e = 0; e < PER; e++) x[e] = activate(x[e] + shift[e], activation);
            Store* to = c + row * n + column;
            if (whole) {
                store_vector(to, x);
                continue;
            }
#pragma unroll
            for (int e = 0; e < PER; e++) {
                if (column + e < n) store(to + e, x[e]);
            }
        }
    }
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
