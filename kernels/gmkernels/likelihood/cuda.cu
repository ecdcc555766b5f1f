// The log-probability of x under independent Bernoulli variables, summed over rows of logits, and its gradient.
//
// A team of threads goes through a row, or through a piece of a long one, whose sum goes to a workspace. Rows of x are
// used again for each of the samples that share them: row r of the logits goes with row r mod x_rows.
//
// A last layer with its likelihood is a product (dense/cuda.cu) and these kernels: `log_prob_backward` without g makes
// the residuals in the place of the logits, and `scale_rows` multiplies rows by their g.

#include "teams.cuh"

// -log p of one element. With a = |l|, log(1 + e^l) is max(l, 0) + log1p(e^-a), and what remains, x l - max(l, 0), is
// -m a, where m is the share of x that the sign of l speaks against. It is 0 for a logit of -infinity and an x of 0.
DEVICE Real cost(Real logit, Real x) {
    const Real size = fabs(logit), missed = logit > 0 ? 1 - x : x;
    return (missed == 0 ? Real(0) : missed * size) + log1p(exp(-size));
}

// x - sigmoid(l), where sigmoid(l) is 1 / (1 + z) for l > 0 and z / (1 + z) elsewhere.
DEVICE Real slope(Real logit, Real x) {
    const Real z = exp(-fabs(logit));
    return (logit > 0 ? x * z - (1 - x) : x - (1 - x) * z) / (1 + z);
}

// sums is (rows, pieces).
template <int V, class Sums>
DEVICE void log_prob_of_rows(
    const Store* logits, const Store* x, Sums* sums,
    Index rows, Index length, Index x_rows, Index lanes, Index pieces, Index piece
) {
    constexpr int AT_ONCE = V > 1 ? 2 : 4;  // groups
    const Team team = team_of(lanes, rows, pieces);
    double total = 0;
    if (team.row < rows) {
        const Store* const row = logits + static_cast<long long>(team.row) * length;
        const Store* const x_row = x + static_cast<long long>(team.row % x_rows) * length;
        const Index start = team.piece * piece, stop = min(start + piece, length);
        for (Index k = start + team.lane * V; k < stop; k += AT_ONCE * V * team.lanes) {
            Real logit[AT_ONCE * V], label[AT_ONCE * V], terms = 0;
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                const Index at = k + i * V * team.lanes;
                load_group<V>(row + at, stop - at, -infinity(), logit + i * V);
                load_group<V>(x_row + at, stop - at, Real(0), label + i * V);
            }
#pragma unroll
            for (int i = 0; i < AT_ONCE * V; i++) terms += cost(logit[i], label[i]);
            total += terms;
        }
    }
    total = reduce(team, total, Sum());
    if (team.row == rows || team.lane > 0) return;
    store(sums + static_cast<long long>(team.row) * pieces + team.piece, -total);
}

extern "C" __global__ void add_pieces(const double* sums, Store* log_prob, Index rows, Index pieces, Index lanes) {
    const Team team = team_of(lanes, rows, 1);
    double total = 0;
    if (team.row < rows) {
        const double* const row = sums + static_cast<long long>(team.row) * pieces;
        for (Index i = team.lane; i < pieces; i += team.lanes) total += row[i];
    }
    total = reduce(team, total, Sum());
    if (team.row < rows && team.lane == 0) store(log_prob + team.row, total);
}

template <int V>
DEVICE void backward_of_rows(
    const Store* g, const Store* logits, const Store* x, Store* d,
    Index rows, Index length, Index x_rows, Index lanes, Index pieces, Index piece
) {
    constexpr int AT_ONCE = V > 1 ? 2 : 4;
    const Team team = team_of(lanes, rows, pieces);
    if (team.row == rows) return;
    const Real factor = g == nullptr ? Real(1) : load<Real>(g + team.row);
    const long long offset = static_cast<long long>(team.row) * length;
    const Store* const x_row = x + static_cast<long long>(team.row % x_rows) * length;
    const Index start = team.piece * piece, stop = min(start + piece, length);
    for (Index k = start + team.lane * V; k < stop; k += AT_ONCE * V * team.lanes) {
        Real logit[AT_ONCE][V], label[AT_ONCE][V];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const Index at = k + i * V * team.lanes;
            load_group<V>(logits + offset + at, stop - at, Real(0), logit[i]);
            load_group<V>(x_row + at, stop - at, Real(0), label[i]);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const Index at = k + i * V * team.lanes;
#pragma unroll
            for (int j = 0; j < V; j++) logit[i][j] = factor * slope(logit[i][j], label[i][j]);
            store_group<V>(d + offset + at, stop - at, logit[i]);
        }
    }
}

// out = g x, a number of g for each row; out may be x.
extern "C" __global__ void scale_rows(const Store* g, const Store* x, Store* out, Index size, Index length) {
    const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < size) store(out + i, load<Real>(g + i / length) * load<Real>(x + i));
}

// _1 where neighbours are read one by one, _wide where 128 bits at once; _pieces where the sums go to the workspace.
#define ENTRY(suffix, V)                                                                                              \
    extern "C" __global__ void log_prob_##suffix(                                                                     \
        const Store* logits, const Store* x, Store* log_prob, Index rows, Index length, Index x_rows, Index lanes,    \
        Index pieces, Index piece                                                                                     \
    ) {                                                                                                               \
        log_prob_of_rows<V>(logits, x, log_prob, rows, length, x_rows, lanes, pieces, piece);                         \
    }                                                                                                                 \
    extern "C" __global__ void log_prob_pieces_##suffix(                                                              \
        const Store* logits, const Store* x, double* sums, Index rows, Index length, Index x_rows, Index lanes,       \
        Index pieces, Index piece                                                                                     \
    ) {                                                                                                               \
        log_prob_of_rows<V>(logits, x, sums, rows, length, x_rows, lanes, pieces, piece);                             \
    }                                                                                                                 \
    extern "C" __global__ void log_prob_backward_##suffix(                                                            \
        const Store* g, const Store* logits, const Store* x, Store* d, Index rows, Index length, Index x_rows,        \
        Index lanes, Index pieces, Index piece                                                                        \
    ) {                                                                                                               \
        backward_of_rows<V>(g, logits, x, d, rows, length, x_rows, lanes, pieces, piece);                             \
    }

ENTRY(1, 1)
ENTRY(wide, WIDTH)
