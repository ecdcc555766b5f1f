// The product of two matrices by a block of threads, tile by tile: what the kernels of several families are made of.
//
// A block makes a tile of BM x BN elements. It goes along the sum in steps of BK, and while it multiplies one step the
// next STAGES - 1 are on their way into shared memory (cp.async): `add_steps`. A warp makes WM x WN elements of the
// tile, in registers: `Sums`. At the end each row of the tile comes by through shared memory: `for_each_row`. What an
// element adds, and in which order, depends on its dtype and the parts of the sum: not on the tile or the layout.
//
// Elements are multiplied
//   float     by fma in registers, 4 x 4 to 8 x 8 elements a thread
//   double    on tensor cores, by mma m16n8k8, which is fma in float64
//   16 bits   on tensor cores, by mma m16n8k16 with sums in float32
//
// An operand is a class that copies its steps into shared memory: a (rows) with BM elements across the sum, b (columns)
// with BN. It has
//   SIZE, ROW                 elements of a step, and from one of its rows to the next; it begins at 16 bytes
//   NEXT_ALONG, NEXT_ACROSS   from an element to the next along the sum, and across it: one is ROW and the other 1.
//                             That is NEXT_ACROSS for float, whose threads load neighbours across the sum
//   copy(step)                begins to copy the next step; elements that do not exist are zeros
//   prepare()                 what must be done after one copy and a barrier before the next
//
// `Operand` reads a matrix with any strides. A step is copied as COPY says, the last two TOGETHER (16, 8 or 4) bytes at
// a time, to multiples of which the neighbours are aligned:
//   ELEMENTS  each element by itself, from any address and with any strides; lanes are neighbours across the sum
//   RUNS      each element by itself, where neighbours along the sum are neighbours in memory; lanes go along the sum
//   ACROSS    neighbours across the sum (a column of a, a row of b)
//   ALONG     neighbours along the sum (a row of a, a column of b). Not of float
//
// Shared memory has 32 banks of 4 bytes, and serves 16 bytes a lane to 8 lanes at a time. Rows of a step are padded by
// PAD elements, so that lanes do not meet in a bank:
//   - neighbours in a row of 128 bytes and more do not: copies of 16 bytes (rows of 32 halves or bfloat16 meet in
//     pairs), loads of float, all that passes through the epilogue;
//   - RUNS: 8 neighbours of 4 rows lie at 4 k + row of 32 banks; of double 4 of 4 rows at 4 k + row of 16 double banks;
//   - fragments of double: 4 of 4 rows, at 4 row + column of 16 double banks, in either layout;
//   - fragments of 16 bits: 8 rows, an odd number of 16 bytes apart.
//
// The launcher defines BM, BN, BK, WM, WN and STAGES.

#pragma once

#include "device.cuh"

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

    // The tile begins at `first_across` of `size_across`; `length` elements along the sum from `first_along` on are
    // this block's.
    __device__ __forceinline__ Operand(const Store* x, long long across_stride, long long along_stride,
                                       Index first_across, Index size_across, Index first_along, Index length) {
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

    __device__ __forceinline__ void prepare() {}
};

constexpr int STAGED_ROW = BN + 8;  // of the epilogue; 8 so that the pairs of sums of 4 rows do not conflict

// The sums of a warp's elements, in registers: `multiply` adds those of a step, `scale` multiplies all, `stage` writes number `band` of its 16
// rows at a time to shared memory, where the bands of the warps of a column of warps follow each other.
template <class A, class B, class T = Store, int BYTES = sizeof(T)>
struct Sums;

// Each thread has blocks of 4 x 4 elements, 16 rows or 32 columns apart.
template <class A, class B, class T>
struct Sums<A, B, T, 4> {
    static_assert(A::NEXT_ACROSS == 1 && B::NEXT_ACROSS == 1, "threads load neighbours across the sum");
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
            for (int i = 0; i < TM / 4; i++) load_vector(a + k * A::ROW + row + i * 16, x[i]);
#pragma unroll
            for (int j = 0; j < TN / 4; j++) load_vector(b + k * B::ROW + column + j * 32, y[j]);
#pragma unroll
            for (int i = 0; i < TM; i++) {
#pragma unroll
                for (int j = 0; j < TN; j++) sum[i][j] = fma(x[i / 4][i % 4], y[j / 4][j % 4], sum[i][j]);
            }
        }
    }

    __device__ __forceinline__ void scale(T factor) {
#pragma unroll
        for (int i = 0; i < TM; i++) {
#pragma unroll
            for (int j = 0; j < TN; j++) sum[i][j] *= factor;
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

    __device__ __forceinline__ void scale(Real factor) {
#pragma unroll
        for (int i = 0; i < TM; i++) {
#pragma unroll
            for (int j = 0; j < TN; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) sum[i][j][e] *= factor;
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

template <class A, class B, class T>
struct Sums<A, B, T, 8> : Tiles<T> {
    using Tiles<T>::TM, Tiles<T>::TN, Tiles<T>::sum, Tiles<T>::row, Tiles<T>::column, Tiles<T>::group, Tiles<T>::member;

    __device__ __forceinline__ void multiply(const T* a, const T* b) {
        const T* a_mine = a + (row + group) * A::NEXT_ACROSS + member * A::NEXT_ALONG;
        const T* b_mine = b + (column + group) * B::NEXT_ACROSS + member * B::NEXT_ALONG;
#pragma unroll
        for (int k = 0; k < BK; k += 8) {
            T x[TM][4], y[TN][2];
#pragma unroll
            for (int i = 0; i < TM; i++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    x[i][e] = a_mine[(16 * i + e % 2 * 8) * A::NEXT_ACROSS + (k + e / 2 * 4) * A::NEXT_ALONG];
                }
            }
#pragma unroll
            for (int j = 0; j < TN; j++) {
#pragma unroll
                for (int e = 0; e < 2; e++) y[j][e] = b_mine[8 * j * B::NEXT_ACROSS + (k + e * 4) * B::NEXT_ALONG];
            }
#pragma unroll
            for (int i = 0; i < TM; i++) {
#pragma unroll
                for (int j = 0; j < TN; j++) mma_m16n8k8(sum[i][j], x[i], y[j]);
            }
        }
    }
};

template <class A, class B, class T>
struct Sums<A, B, T, 2> : Tiles<T> {
    using Tiles<T>::TM, Tiles<T>::TN, Tiles<T>::sum, Tiles<T>::row, Tiles<T>::column;

    __device__ __forceinline__ void multiply(const T* a, const T* b) {
        // ldmatrix takes 8 rows from the addresses of 8 lanes, 4 times. Of a: rows 0-7 and 8-15, then both for the next
        // 8 along the sum. Of b: 8 along the sum and the next 8, then both for the next 8 columns.
        const int lane = threadIdx.x % 32, low = lane % 8 + lane / 8 % 2 * 8, high = lane / 16 * 8;
        const int within = lane % 8 + lane / 16 * 8, along = lane / 8 % 2 * 8;
        const T* a_mine = A::NEXT_ALONG == 1 ? a + (row + low) * A::ROW + high
                                          : a + within * A::ROW + row + along;
        const T* b_mine = B::NEXT_ALONG == 1 ? b + (column + within) * B::ROW + along
                                          : b + low * B::ROW + column + high;
#pragma unroll
        for (int k = 0; k < BK; k += 16) {
            uint32 x[TM][4], y[TN / 2][4];
#pragma unroll
            for (int i = 0; i < TM; i++) {
                if constexpr (A::NEXT_ALONG == 1) load_matrices(x[i], a_mine + 16 * i * A::ROW + k);
                else load_matrices_transposed(x[i], a_mine + k * A::ROW + 16 * i);
            }
#pragma unroll
            for (int j = 0; j < TN / 2; j++) {
                if constexpr (B::NEXT_ALONG == 1) load_matrices(y[j], b_mine + 16 * j * B::ROW + k);
                else load_matrices_transposed(y[j], b_mine + k * B::ROW + 16 * j);
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

// The first row and column of a tile of c (m, n). Blocks that run together take tiles of 8 rows of tiles, column by
// column: what they read is shared by many.
DEVICE void corner_of(Index tile, Index m, Index n, Index& first_m, Index& first_n) {
    const Index tiles_m = (m + BM - 1) / BM, tiles_n = (n + BN - 1) / BN;
    const Index group_top = tile / (8 * tiles_n) * 8, in_group = tile % (8 * tiles_n);
    const Index group_rows = min(tiles_m - group_top, Index(8));
    first_m = (group_top + in_group % group_rows) * BM, first_n = in_group / group_rows * BN;
}

// Add the products of `length` elements along the sum. `steps` is the dynamic shared memory.
template <class A, class B>
__device__ __forceinline__ void add_steps(A& a, B& b, Sums<A, B>& sums, Store* steps, Index length) {
    constexpr int STAGE = A::SIZE + B::SIZE;
    const Index count = (length + BK - 1) / BK;
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < count) {
            a.copy(steps + s * STAGE);
            b.copy(steps + s * STAGE + A::SIZE);
        }
        copy_commit();
    }
    int reading = 0, writing = STAGES - 1;
    for (Index step = 0; step < count; step++) {
        copy_wait<STAGES - 2>();  // this thread's copies of this step are there
        __syncthreads();          // and those of all; all have read the step before, which is overwritten now
        if (step + STAGES - 1 < count) {
            a.copy(steps + writing * STAGE);
            b.copy(steps + writing * STAGE + A::SIZE);
            a.prepare();
            b.prepare();
        }
        copy_commit();
        sums.multiply(steps + reading * STAGE, steps + reading * STAGE + A::SIZE);
        writing = writing + 1 == STAGES ? 0 : writing + 1;
        reading = reading + 1 == STAGES ? 0 : reading + 1;
    }
}

// Give all elements of the tile to `take(row, column, x)`, x being PER neighbours of a row, of which the first is at
// that place of the tile. `column` is the same at each call of a thread. They go through shared memory, so that whole
// rows can be stored 16 bytes at a time and the code of `take`, which may be long, stands once.
template <class A, class B, class Take>
__device__ __forceinline__ void for_each_row(const Sums<A, B>& sums, Take take) {
    DYNAMIC_SHARED(Real, staged);
    constexpr int CHUNKS = BN / PER;
    const int column = threadIdx.x % CHUNKS * PER;
#pragma unroll 1
    for (int band = 0; band < WM / 16; band++) {
        __syncthreads();  // what was in shared memory has been read
        sums.stage(staged, band);
        __syncthreads();
#pragma unroll 1
        for (int r = threadIdx.x / CHUNKS; r < WARPS_M * 16; r += THREADS / CHUNKS) {
            Real x[PER];
            load_vector(staged + r * STAGED_ROW + column, x);
            take(r / 16 * WM + band * 16 + r % 16, column, x);
        }
    }
}

// Store neighbours of a row that begin at p, of which `left` exist.
template <class T>
DEVICE void store_some(T* p, const Real (&x)[PER], Index left) {
#pragma unroll
    for (int e = 0; e < PER; e++) {
        if (e < left) store(p + e, x[e]);
    }
}
