// The importance-weighted bound and its gradient. log_w is (outer, samples, inner); a column is one of the outer times
// inner numbers that a bound is taken of.
//
// Where inner > 1, threads run along the columns, so that loads of one sample are side by side, and each goes through a
// slice of the samples. Where inner = 1, a team of threads goes through a row. Either way log_w is read once. What is cut
// into pieces, for want of columns, leaves the sums of its pieces in a workspace, and `iwae_join` adds them.

#include "teams.cuh"

DEVICE void finish(Exponentials sum, Index samples, Index column, Store* bound, Store* highest, Store* scale) {
    const Real total = static_cast<Real>(sum.total), top = total == total ? sum.top : not_a_number();
    store(bound + column, top + log(static_cast<Real>(sum.total / samples)));
    store(highest + column, top);
    store(scale + column, top == -infinity() ? Real(0) : Real(1) / total);
}

// --------------------------------------------------------------------------------------------------------------------
// Forward
// --------------------------------------------------------------------------------------------------------------------

template <int V>
DEVICE void bound_of_columns(
    const Store* log_w, Store* bound, Store* highest, Store* scale, Real* tops, double* totals,
    Index samples, Index inner, Index columns, Index piece, Index slice
) {
    constexpr int AT_ONCE = V > 1 ? 4 : 8;  // samples: 64 bytes on their way for each thread, or 32
    const long long column = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
    Exponentials sum[V];
#pragma unroll
    for (int j = 0; j < V; j++) sum[j] = no_exponentials();
    if (column < columns) {
        const Store* const first = log_w + column / inner * (samples - 1) * inner + column;
        const Slice rows = slice_of(samples, piece, slice);
        for (Index k = rows.start; k < rows.stop; k += AT_ONCE) {
            Real x[AT_ONCE][V];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                load_group<V>(first + static_cast<long long>(k + i) * inner, k + i < rows.stop ? V : 0, -infinity(), x[i]);
            }
#pragma unroll
            for (int j = 0; j < V; j++) {
                Real of_column[AT_ONCE];
#pragma unroll
                for (int i = 0; i < AT_ONCE; i++) of_column[i] = x[i][j];
                add_exponentials(sum[j], of_column);
            }
        }
    }
    reduce_columns(sum, add_sums);
    if (threadIdx.y > 0 || column >= columns) return;
#pragma unroll
    for (int j = 0; j < V; j++) {
        const Index at = static_cast<Index>(column) + j;
        if (gridDim.y == 1) {
            finish(sum[j], samples, at, bound, highest, scale);
        } else {
            tops[static_cast<long long>(blockIdx.y) * columns + at] = sum[j].top;
            totals[static_cast<long long>(blockIdx.y) * columns + at] = sum[j].total;
        }
    }
}

template <int V>
DEVICE void bound_of_rows(
    const Store* log_w, Store* bound, Store* highest, Store* scale, Real* tops, double* totals,
    Index samples, Index rows, Index lanes, Index pieces, Index piece
) {
    constexpr int AT_ONCE = V > 1 ? 2 : 4;  // groups
    const Team team = team_of(lanes, rows, pieces);
    Exponentials sum = no_exponentials();
    if (team.row < rows) {
        const Store* const row = log_w + static_cast<long long>(team.row) * samples;
        const Index start = team.piece * piece, stop = min(start + piece, samples);
        for (Index k = start + team.lane * V; k < stop; k += AT_ONCE * V * team.lanes) {
            Real x[AT_ONCE * V];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                const Index at = k + i * V * team.lanes;
                load_group<V>(row + at, stop - at, -infinity(), x + i * V);
            }
            add_exponentials(sum, x);
        }
    }
    sum = reduce(team, sum, add_sums);
    if (team.row == rows || team.lane > 0) return;
    if (pieces == 1) {
        finish(sum, samples, team.row, bound, highest, scale);
    } else {
        tops[static_cast<long long>(team.piece) * rows + team.row] = sum.top;
        totals[static_cast<long long>(team.piece) * rows + team.row] = sum.total;
    }
}

// tops and totals are (pieces, columns).
extern "C" __global__ void iwae_join(
    const Real* tops, const double* totals, Store* bound, Store* highest, Store* scale,
    Index samples, Index columns, Index pieces, Index lanes
) {
    const Team team = team_of(lanes, columns, 1);
    Exponentials sum = no_exponentials();
    if (team.row < columns) {
        for (Index i = team.lane; i < pieces; i += team.lanes) {
            const long long at = static_cast<long long>(i) * columns + team.row;
            sum = add_sums(sum, {tops[at], totals[at]});
        }
    }
    sum = reduce(team, sum, add_sums);
    if (team.row < columns && team.lane == 0) finish(sum, samples, team.row, bound, highest, scale);
}

// --------------------------------------------------------------------------------------------------------------------
// Backward
// --------------------------------------------------------------------------------------------------------------------

template <int V>
DEVICE void backward_of_columns(
    const Store* g, const Store* log_w, const Store* highest, const Store* scale, Store* d,
    Index samples, Index inner, Index columns, Index piece, Index slice
) {
    constexpr int AT_ONCE = V > 1 ? 4 : 8;
    const long long column = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * V;
    if (column >= columns) return;
    Real factor[V], scales[V], top[V];
    load_group<V>(g + column, V, Real(0), factor);
    load_group<V>(scale + column, V, Real(0), scales);
    load_group<V>(highest + column, V, Real(0), top);
#pragma unroll
    for (int j = 0; j < V; j++) factor[j] *= scales[j];
    const long long offset = column / inner * (samples - 1) * inner + column;
    const Slice rows = slice_of(samples, piece, slice);
    for (Index k = rows.start; k < rows.stop; k += AT_ONCE) {
        Real x[AT_ONCE][V];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const long long at = offset + static_cast<long long>(k + i) * inner;
            load_group<V>(log_w + at, k + i < rows.stop ? V : 0, Real(0), x[i]);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
#pragma unroll
            for (int j = 0; j < V; j++) x[i][j] = factor[j] * exp(difference(x[i][j], top[j]));
            store_group<V>(d + offset + static_cast<long long>(k + i) * inner, k + i < rows.stop ? V : 0, x[i]);
        }
    }
}

template <int V>
DEVICE void backward_of_rows(
    const Store* g, const Store* log_w, const Store* highest, const Store* scale, Store* d,
    Index samples, Index rows, Index lanes, Index pieces, Index piece
) {
    const Team team = team_of(lanes, rows, pieces);
    if (team.row == rows) return;
    const Real factor = load<Real>(g + team.row) * load<Real>(scale + team.row), top = load<Real>(highest + team.row);
    const long long offset = static_cast<long long>(team.row) * samples;
    map_piece<V>(team, log_w + offset, d + offset, samples, piece, [=](Real x, Index) {
        return factor * exp(difference(x, top));
    });
}

// --------------------------------------------------------------------------------------------------------------------
// Entry points: _1 where neighbours are read one by one, _wide where 128 bits at once
// --------------------------------------------------------------------------------------------------------------------

#define ENTRY(suffix, V)                                                                                              \
    extern "C" __global__ void iwae_columns_##suffix(                                                                 \
        const Store* log_w, Store* bound, Store* highest, Store* scale, Real* tops, double* totals, Index samples,    \
        Index inner, Index columns, Index piece, Index slice                                                          \
    ) {                                                                                                               \
        bound_of_columns<V>(log_w, bound, highest, scale, tops, totals, samples, inner, columns, piece, slice);       \
    }                                                                                                                 \
    extern "C" __global__ void iwae_rows_##suffix(                                                                    \
        const Store* log_w, Store* bound, Store* highest, Store* scale, Real* tops, double* totals, Index samples,    \
        Index rows, Index lanes, Index pieces, Index piece                                                            \
    ) {                                                                                                               \
        bound_of_rows<V>(log_w, bound, highest, scale, tops, totals, samples, rows, lanes, pieces, piece);            \
    }                                                                                                                 \
    extern "C" __global__ void iwae_backward_columns_##suffix(                                                        \
        const Store* g, const Store* log_w, const Store* highest, const Store* scale, Store* d, Index samples,        \
        Index inner, Index columns, Index piece, Index slice                                                          \
    ) {                                                                                                               \
        backward_of_columns<V>(g, log_w, highest, scale, d, samples, inner, columns, piece, slice);                   \
    }                                                                                                                 \
    extern "C" __global__ void iwae_backward_rows_##suffix(                                                           \
        const Store* g, const Store* log_w, const Store* highest, const Store* scale, Store* d, Index samples,        \
        Index rows, Index lanes, Index pieces, Index piece                                                            \
    ) {                                                                                                               \
        backward_of_rows<V>(g, log_w, highest, scale, d, samples, rows, lanes, pieces, piece);                        \
    }

ENTRY(1, 1)
ENTRY(wide, WIDTH)
