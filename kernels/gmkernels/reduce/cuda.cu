// Sums along the middle axis of (outer, length, inner), in float64.
//
// Where inner > 1, threads run along the sums, so that loads of a row are side by side, and each goes through a slice of
// the axis. Where inner = 1, a team of threads goes through a row. Either leaves (outer, pieces, inner).

#include "teams.cuh"

template <int V, class From, class To>
DEVICE void sum_of_rows(
    const From* x, To* y, Index rows, Index length, Index lanes, Index pieces, Index piece
) {
    constexpr int AT_ONCE = 4;  // groups
    const Team team = team_of(lanes, rows, pieces);
    double total = 0;
    if (team.row < rows) {
        const From* const row = x + static_cast<long long>(team.row) * length;
        const Index start = team.piece * piece, stop = min(start + piece, length);
        for (Index k = start + team.lane * V; k < stop; k += AT_ONCE * V * team.lanes) {
            double loaded[AT_ONCE][V];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                const Index at = k + i * V * team.lanes;
                load_group<V>(row + at, stop - at, 0.0, loaded[i]);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
#pragma unroll
                for (int j = 0; j < V; j++) total += loaded[i][j];
            }
        }
    }
    total = reduce(team, total, Sum());
    if (team.row == rows || team.lane > 0) return;
    store(y + static_cast<long long>(team.row) * pieces + team.piece, total);
}

template <int V, class From, class To>
DEVICE void sum_of_columns(const From* x, To* y, Index columns, Index length, Index inner, Index piece, Index slice) {
    constexpr int AT_ONCE = V > 1 ? 4 : 8;  // rows
    const long long column = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
    double total[V];
#pragma unroll
    for (int j = 0; j < V; j++) total[j] = 0;
    if (column < columns) {
        const From* const first = x + column / inner * (length - 1) * inner + column;
        const Slice rows = slice_of(length, piece, slice);
        for (Index k = rows.start; k < rows.stop; k += AT_ONCE) {
            double loaded[AT_ONCE][V];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                load_group<V>(first + static_cast<long long>(k + i) * inner, k + i < rows.stop ? V : 0, 0.0, loaded[i]);
            }
#pragma unroll
            for (int j = 0; j < V; j++) {
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++) total[j] += loaded[i][j];
            }
        }
    }
    reduce_columns(total, Sum());
    if (threadIdx.y > 0 || column >= columns) return;
    const long long to = (column / inner * gridDim.y + blockIdx.y) * inner + column % inner;
#pragma unroll
    for (int j = 0; j < V; j++) store(y + to + j, total[j]);
}

// From x or what lies between stages to y or that; _1 where neighbours are read one by one, _wide where 128 bits at once.
#define ENTRY(stage, From, To, suffix, V)                                                                             \
    extern "C" __global__ void sum_rows_##stage##_##suffix(                                                           \
        const From* x, To* y, Index rows, Index length, Index lanes, Index pieces, Index piece                        \
    ) {                                                                                                               \
        sum_of_rows<V>(x, y, rows, length, lanes, pieces, piece);                                                     \
    }                                                                                                                 \
    extern "C" __global__ void sum_columns_##stage##_##suffix(                                                        \
        const From* x, To* y, Index columns, Index length, Index inner, Index piece, Index slice                      \
    ) {                                                                                                               \
        sum_of_columns<V>(x, y, columns, length, inner, piece, slice);                                                \
    }

#define STAGE(stage, From, To)                                                                                        \
    ENTRY(stage, From, To, 1, 1)                                                                                      \
    ENTRY(stage, From, To, wide, 16 / sizeof(From))

STAGE(whole, Store, Store)
STAGE(first, Store, double)
STAGE(inner, double, double)
STAGE(last, double, Store)
