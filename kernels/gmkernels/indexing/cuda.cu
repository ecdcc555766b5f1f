// Rows by number: their look-up, and their sums in the order of the index. A number that is none of a row gives NaN in a
// look-up and is left out of a sum: to report it, the host would have to wait for the device.

#include "teams.cuh"

// The row that a number means, where that is between 0 and `rows`: -1 is the last one.
DEVICE long long row_of(long long number, Index rows) { return number < 0 ? number + rows : number; }

// A thread copies V neighbouring numbers; a row has `groups` of them.
template <int V>
DEVICE void gather(const Store* table, const long long* index, Store* out, Index size, Index rows, Index groups) {
    const long long at = static_cast<long long>(blockIdx.x) * BLOCK + threadIdx.x;
    if (at >= static_cast<long long>(size) * groups) return;
    const Index i = static_cast<Index>(at) / groups, column = static_cast<Index>(at) % groups * V;
    const long long row = row_of(index[i], rows);
    Real x[V];
    load_group<V>(table + row * groups * V + column, row >= 0 && row < rows ? V : 0, not_a_number(), x);
    store_group<V>(out + at * V, V, x);
}

// A block adds a tile of the columns of one row. It lists, in order, which of the next numbers mean that row, and reads
// some of their rows at once; there are as many additions as a thread that goes through all of them one by one makes.
template <int V>
DEVICE void scatter_add(
    const Store* x, const long long* index, Store* out, Index size, Index rows, Index columns, Index tiles
) {
    constexpr int EACH = 4, AT_ONCE = 8, WARPS = BLOCK / 32;
    SHARED(Index, listed, EACH * BLOCK);
    SHARED(int, counts, EACH * WARPS);
    const Index row = static_cast<Index>(blockIdx.x) / tiles;
    const Index column = (static_cast<Index>(blockIdx.x) % tiles * BLOCK + threadIdx.x) * V;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    Real total[V];
#pragma unroll
    for (int j = 0; j < V; j++) total[j] = 0;
    for (Index start = 0; start < size; start += EACH * BLOCK) {
        bool wanted[EACH];
        int place[EACH], matches = 0;
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            const Index i = start + e * BLOCK + threadIdx.x;
            wanted[e] = i < size && row_of(index[i], rows) == row;
            const uint32 votes = __ballot_sync(FULL_WARP, wanted[e]);
            place[e] = __popc(votes & ((1u << lane) - 1));
            if (lane == 0) counts[e * WARPS + warp] = __popc(votes);
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < EACH * WARPS; k++) {
            if (k % WARPS == warp) place[k / WARPS] += matches;
            matches += counts[k];
        }
#pragma unroll
        for (int e = 0; e < EACH; e++) {
            if (wanted[e]) listed[place[e]] = start + e * BLOCK + threadIdx.x;
        }
        __syncthreads();
        for (int k = 0; k < matches; k += AT_ONCE) {
            Real read[AT_ONCE][V];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                const long long from = k + i < matches ? listed[k + i] : 0;
                load_group<V>(x + from * columns + column, k + i < matches ? columns - column : 0, Real(0), read[i]);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
#pragma unroll
                for (int j = 0; j < V; j++) total[j] += read[i][j];
            }
        }
    }
    store_group<V>(out + static_cast<long long>(row) * columns + column, columns - column, total);
}

#define ENTRY(suffix, V)                                                                                              \
    extern "C" __global__ void gather_rows_##suffix(                                                                  \
        const Store* table, const long long* index, Store* out, Index size, Index rows, Index groups                  \
    ) {                                                                                                               \
        gather<V>(table, index, out, size, rows, groups);                                                             \
    }                                                                                                                 \
    extern "C" __global__ void scatter_add_rows_##suffix(                                                             \
        const Store* x, const long long* index, Store* out, Index size, Index rows, Index columns, Index tiles        \
    ) {                                                                                                               \
        scatter_add<V>(x, index, out, size, rows, columns, tiles);                                                    \
    }

ENTRY(1, 1)
ENTRY(wide, WIDTH)
