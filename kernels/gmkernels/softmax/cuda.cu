// The cross-entropy of classes under softmax, and its gradient.
//
// A row of logits that the registers of a team of threads hold is read once. A longer one is cut into pieces: a first
// launch leaves the sums of exponentials of the pieces in a workspace, a second one reads the logits again. A target that
// is no class gives a loss and gradients of NaN: to report it, the host would have to wait for the device.

#include "teams.cuh"

constexpr int HELD = 16;  // most elements of a row that a thread holds

DEVICE bool is_class(long long target, Index classes) { return 0 <= target && target < classes; }

// The exponentials are relative to `shift`, the largest logit, and add up to `total`.
DEVICE void store_loss(
    const Store* row, const long long* target, Store* loss, Index at, Index classes, Real shift, Real total
) {
    const long long chosen = target[at];
    const Real logit = is_class(chosen, classes) ? load<Real>(row + chosen) : not_a_number();
    store(loss + at, log(total) + (shift - logit));
}

template <int V>
DEVICE void cross_entropy_of_rows(
    const Store* logits, const long long* target, Store* loss, Store* probabilities, Index rows, Index classes,
    Index lanes
) {
    const Team team = team_of(lanes, rows, 1);
    const long long offset = static_cast<long long>(team.row) * classes;
    Real x[HELD / V][V], top = -infinity(), total = 0;
#pragma unroll
    for (int i = 0; i < HELD / V; i++) {
        const Index at = (i * team.lanes + team.lane) * V;
        load_group<V>(logits + offset + at, team.row < rows ? classes - at : 0, -infinity(), x[i]);
    }
#pragma unroll
    for (int i = 0; i < HELD / V; i++) {
#pragma unroll
        for (int j = 0; j < V; j++) top = fmax(top, x[i][j]);
    }
    top = reduce(team, top, Largest());
    const Real shift = top == -infinity() ? Real(0) : top;  // a row without any probability stays so
#pragma unroll
    for (int i = 0; i < HELD / V; i++) {
#pragma unroll
        for (int j = 0; j < V; j++) total += x[i][j] = exp(x[i][j] - shift);
    }
    total = reduce(team, total, Sum());
    total = total == 0 ? Real(1) : total;
    if (team.row == rows) return;
    const Real factor = 1 / total;
#pragma unroll
    for (int i = 0; i < HELD / V; i++) {
        const Index at = (i * team.lanes + team.lane) * V;
#pragma unroll
        for (int j = 0; j < V; j++) x[i][j] *= factor;
        store_group<V>(probabilities + offset + at, classes - at, x[i]);
    }
    if (team.lane == 0) store_loss(logits + offset, target, loss, team.row, classes, shift, total);
}

// --------------------------------------------------------------------------------------------------------------------
// Long rows
// --------------------------------------------------------------------------------------------------------------------

// tops and totals are (rows, pieces).
template <int V>
DEVICE void sums_of_pieces(
    const Store* logits, Real* tops, double* totals, Index rows, Index classes, Index pieces, Index piece
) {
    constexpr int AT_ONCE = V > 1 ? 2 : 4;  // groups
    const Team team = team_of(BLOCK, rows, pieces);
    const Store* const row = logits + static_cast<long long>(team.row) * classes;
    Exponentials sum = no_exponentials();
    const Index start = team.piece * piece, stop = min(start + piece, classes);
    for (Index k = start + team.lane * V; k < stop; k += AT_ONCE * V * BLOCK) {
        Real x[AT_ONCE * V];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const Index at = k + i * V * BLOCK;
            load_group<V>(row + at, stop - at, -infinity(), x + i * V);
        }
        add_exponentials(sum, x);
    }
    sum = reduce(team, sum, add_sums);
    if (team.lane > 0) return;
    tops[blockIdx.x] = sum.top;
    totals[blockIdx.x] = sum.total;
}

template <int V>
DEVICE void cross_entropy_of_pieces(
    const Store* logits, const long long* target, const Real* tops, const double* totals, Store* loss,
    Store* probabilities, Index rows, Index classes, Index pieces, Index piece
) {
    const Team team = team_of(BLOCK, rows, pieces);
    const long long offset = static_cast<long long>(team.row) * classes;
    Exponentials sum = no_exponentials();
    for (Index i = team.lane; i < pieces; i += BLOCK) {
        const long long at = static_cast<long long>(team.row) * pieces + i;
        sum = add_sums(sum, {tops[at], totals[at]});
    }
    sum = reduce(team, sum, add_sums);
    const Real shift = sum.top == -infinity() ? Real(0) : sum.top;
    // What `Exponentials` counts of infinities is not wanted here.
    const Real total = sum.top == -infinity() ? Real(1) : sum.top == infinity() ? not_a_number() : Real(sum.total);
    const Real factor = 1 / total;
    map_piece<V>(team, logits + offset, probabilities + offset, classes, piece, [=](Real x, Index) {
        return exp(x - shift) * factor;
    });
    if (team.piece == 0 && team.lane == 0) {
        store_loss(logits + offset, target, loss, team.row, classes, shift, total);
    }
}

// --------------------------------------------------------------------------------------------------------------------
// Backward
// --------------------------------------------------------------------------------------------------------------------

template <int V>
DEVICE void backward_of_rows(
    const Store* g, const Store* probabilities, const long long* target, Store* d, Index rows, Index classes,
    Index lanes, Index pieces, Index piece
) {
    const Team team = team_of(lanes, rows, pieces);
    if (team.row == rows) return;
    const long long chosen = target[team.row], offset = static_cast<long long>(team.row) * classes;
    const Real factor = is_class(chosen, classes) ? load<Real>(g + team.row) : not_a_number();
    map_piece<V>(team, probabilities + offset, d + offset, classes, piece, [=](Real x, Index k) {
        return factor * x - (k == chosen ? factor : Real(0));
    });
}

// --------------------------------------------------------------------------------------------------------------------
// Entry points: _1 where neighbours are read one by one, _wide where 128 bits at once
// --------------------------------------------------------------------------------------------------------------------

#define ENTRY(suffix, V)                                                                                              \
    extern "C" __global__ void __launch_bounds__(2 * BLOCK) cross_entropy_##suffix(                                   \
        const Store* logits, const long long* target, Store* loss, Store* probabilities, Index rows, Index classes,   \
        Index lanes                                                                                                   \
    ) {                                                                                                               \
        cross_entropy_of_rows<V>(logits, target, loss, probabilities, rows, classes, lanes);                          \
    }                                                                                                                 \
    extern "C" __global__ void sums_of_pieces_##suffix(                                                               \
        const Store* logits, Real* tops, double* totals, Index rows, Index classes, Index pieces, Index piece         \
    ) {                                                                                                               \
        sums_of_pieces<V>(logits, tops, totals, rows, classes, pieces, piece);                                        \
    }                                                                                                                 \
    extern "C" __global__ void cross_entropy_of_pieces_##suffix(                                                      \
        const Store* logits, const long long* target, const Real* tops, const double* totals, Store* loss,            \
        Store* probabilities, Index rows, Index classes, Index pieces, Index piece                                    \
    ) {                                                                                                               \
        cross_entropy_of_pieces<V>(                                                                                   \
            logits, target, tops, totals, loss, probabilities, rows, classes, pieces, piece                           \
        );                                                                                                            \
    }                                                                                                                 \
    extern "C" __global__ void cross_entropy_backward_##suffix(                                                       \
        const Store* g, const Store* probabilities, const long long* target, Store* d, Index rows, Index classes,     \
        Index lanes, Index pieces, Index piece                                                                        \
    ) {                                                                                                               \
        backward_of_rows<V>(g, probabilities, target, d, rows, classes, lanes, pieces, piece);                        \
    }

ENTRY(1, 1)
ENTRY(wide, WIDTH)
