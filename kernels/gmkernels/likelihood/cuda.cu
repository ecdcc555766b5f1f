// The log-probability of x under independent Bernoulli variables, summed over rows of logits, and its gradient.
//
// A team of threads goes through a row, or through a piece of a long one, whose sum goes to a workspace. Rows of x are
// used again for each of the samples that share them: row r of the logits goes with row r mod x_rows.
//
// With BM defined, a linear layer with its likelihood: the logits are made in tiles that stay on chip, and made again
// for the gradients.

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

#ifndef BM

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
    const Real factor = load<Real>(g + team.row);
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

#else

// =====================================================================================================================
// A linear layer whose output is not stored
// =====================================================================================================================
// The launcher defines the tile of `dense/product.cuh`, and how rows of operands are copied. As in the reference,
// l = h weight^T + bias, and row r of h (rows, k) goes with row r mod x_rows of x (x_rows, n).

#include "dense/product.cuh"

typedef Operand<BM, A_COPY, A_BYTES> Own;
typedef Operand<BN, B_COPY, B_BYTES> Other;

#ifndef C_COPY

// sums[row, strip] = log p of the BN elements of a row that a tile has: neighbouring threads have a row of the tile.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
linear_log_prob(const Store* __restrict__ h, const Store* __restrict__ weight, const Store* __restrict__ bias,
                const Store* __restrict__ x, double* __restrict__ sums, Index rows, Index n, Index k, Index x_rows,
                Index strips) {
    constexpr int SHARERS = BN / PER;
    static_assert(SHARERS <= 32, "a row is shared by lanes of one warp");
    DYNAMIC_SHARED(Store, steps);
    Index top, left;
    corner_of(blockIdx.x, rows, n, top, left);
    Own a(h, k, 1, top, rows, 0, k);
    Other b(weight, k, 1, left, n, 0, k);
    Sums<Own, Other> logits;
    add_steps(a, b, logits, steps, k);

    const Index column = left + threadIdx.x % SHARERS * PER;
    Real shift[PER];
    load_group<PER>(bias + column, n - column, Real(0), shift);
    for_each_row(logits, [&](int r, int, Real (&logit)[PER]) {
        const Index row = top + r;
        Real label[PER], terms = 0;
        load_group<PER>(x + row % x_rows * n + column, n - column, Real(0), label);
#pragma unroll
        for (int e = 0; e < PER; e++) terms += column + e < n ? cost(logit[e] + shift[e], label[e]) : Real(0);
        terms = warp_sum<SHARERS>(terms);
        if (row < rows && threadIdx.x % SHARERS == 0) sums[row * strips + left / BN] = -static_cast<double>(terms);
    });
}

#else

// out[i] = sum_j r_ij other[j], BN columns of some rows i, with r_ij = g (x - sigmoid(own[i] other[j] + bias)). `own`
// (m, k) is h and `other` (n, k) the weight if IS_ROWS, and g and the rows of x go with i; otherwise they are the weight
// and h, and sums[i] is sum_j r_ij.
//
// A block goes along j in tiles of BN. The logits of a tile (BM, BN) are a product along k; its residuals then take
// their place, in shared memory: they are what the second product has on the left, and along BN. On the right it has
// the rows j again, BN columns of them: of k above BN, each block of columns makes the residuals anew. Residuals of 16
// bits are in two parts, r = r1 + r2, to which they are multiplied separately: what is left out is 2^-16 r.
//
// Grid: (tiles of out, parts of the sum); if there are parts, `partial` (parts, m, k) and partial sums (parts, m).

typedef Operand<BN, C_COPY, C_BYTES> Columns;

struct Residuals {
    static constexpr bool ALONG_I = sizeof(Store) == 4;  // neighbours are along i, across the sum, or along j
    static constexpr int ROW = (ALONG_I ? BM : BN) + PAD, NEXT_ALONG = ALONG_I ? ROW : 1, NEXT_ACROSS = ALONG_I ? 1 : ROW;
    static constexpr int SIZE = (ALONG_I ? BN : BM) * ROW, PARTS = sizeof(Store) == 2 ? 2 : 1;
};

constexpr int FIRST = STAGES * (Own::SIZE + Other::SIZE) * sizeof(Store), SECOND = STAGES * Columns::SIZE * sizeof(Store);
constexpr int BAND = 16 * WARPS_M * STAGED_ROW * sizeof(Real);
constexpr int STEPS = FIRST > SECOND ? (FIRST > BAND ? FIRST : BAND) : (SECOND > BAND ? SECOND : BAND);  // bytes

template <bool IS_ROWS>
DEVICE void gradient(const Store* own, const Store* other, const Store* bias, const Store* x, const Store* g, Store* out,
                     Real* partial, Store* sums, Real* partial_sums, Index m, Index n, Index k, Index x_rows,
                     Index part_length, Index slices) {
    constexpr int GROUPS = THREADS / BN, OF_SUMS = BN / 32;  // of 4 rows at a time; warps that share a row
    static_assert(THREADS % BN == 0 && BN % 32 == 0 && 16 * WARPS_M % (4 * GROUPS) == 0, "threads do not fit the tile");
    DYNAMIC_SHARED(Store, steps);
    DYNAMIC_SHARED(Real, staged);
    Store* const residuals = steps + STEPS / sizeof(Store);
    SHARED(Real, of_row, BM);       // g or the bias
    SHARED(Index, x_of_row, BM);    // the row of x, if it goes with i
    SHARED(double, found, BM * OF_SUMS);
    const Index top = blockIdx.x / slices * BM, left = blockIdx.x % slices * BN, part = blockIdx.y;
    const Index begin = part * part_length, end = min(n, begin + part_length);
    for (int i = threadIdx.x; i < BM; i += THREADS) {
        const Index row = top + i;
        of_row[i] = row < m ? load<Real>((IS_ROWS ? g : bias) + row) : Real(0);
        x_of_row[i] = row % x_rows;
    }
    for (int i = threadIdx.x; i < BM * OF_SUMS; i += THREADS) found[i] = 0;

    Sums<Residuals, Columns> total;
    const int lane = threadIdx.x % BN;
    for (Index at = begin; at < end; at += BN) {
        __syncthreads();  // what was in shared memory has been read
        Own a(own, k, 1, top, m, 0, k);
        Other b(other, k, 1, at, end, 0, k);
        Sums<Own, Other> logits;
        add_steps(a, b, logits, steps, k);

        const Index j = at + lane;
        const Real of_column = j < end ? load<Real>((IS_ROWS ? bias : g) + j) : Real(0);
        const Store* const labels = IS_ROWS ? x + j : x + j % x_rows * m + top;
#pragma unroll 1
        for (int band = 0; band < WM / 16; band++) {
            __syncthreads();
            logits.stage(staged, band);
            __syncthreads();
#pragma unroll 1
            for (int r = threadIdx.x / BN * 4; r < 16 * WARPS_M; r += 4 * GROUPS) {
                const int row = r / 16 * WM + band * 16 + r % 16;
                Real residual[4];
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int i = row + e;
                    residual[e] = 0;
                    if (top + i < m && j < end) {
                        const Real label = load<Real>(IS_ROWS ? labels + x_of_row[i] * n : labels + i);
                        const Real logit = staged[(r + e) * STAGED_ROW + lane] + (IS_ROWS ? of_column : of_row[i]);
                        residual[e] = (IS_ROWS ? of_row[i] : of_column) * slope(logit, label);
                    }
                }
                if constexpr (Residuals::ALONG_I) {
                    store_vector(residuals + lane * Residuals::ROW + row, residual);
                } else {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        Store* const to = residuals + (row + e) * Residuals::ROW + lane;
                        Store high;
                        store(&high, residual[e]);
                        *to = high;
                        if constexpr (Residuals::PARTS == 2) store(to + Residuals::SIZE, residual[e] - widen(high));
                    }
                }
                if constexpr (!IS_ROWS) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        const Real sum = warp_sum(residual[e]);
                        if (threadIdx.x % 32 == 0) found[(row + e) * OF_SUMS + lane / 32] += sum;
                    }
                }
            }
        }
        __syncthreads();  // the residuals are there, and the last band has been read

        const Index length = end - at < BN ? end - at : Index(BN), count = (length + BK - 1) / BK;
        Columns c(other, 1, k, left, k, at, length);
#pragma unroll
        for (int s = 0; s < STAGES - 1; s++) {
            if (s < count) c.copy(steps + s * Columns::SIZE);
            copy_commit();
        }
        for (Index step = 0; step < count; step++) {
            copy_wait<STAGES - 2>();
            __syncthreads();
            if (step + STAGES - 1 < count) c.copy(steps + (step + STAGES - 1) % STAGES * Columns::SIZE);
            copy_commit();
#pragma unroll
            for (int p = 0; p < Residuals::PARTS; p++) {
                const Store* const with = residuals + p * Residuals::SIZE + step * BK * Residuals::NEXT_ALONG;
                total.multiply(with, steps + step % STAGES * Columns::SIZE);
            }
        }
    }

    for_each_row(total, [&](int r, int c, Real (&y)[PER]) {
        const Index row = top + r, column = left + c;
        if (row >= m || column >= k) return;
        if (partial != nullptr) {
            Real* const to = partial + (part * m + row) * k + column;
            if (k % PER == 0) store_vector(to, y);
            else store_some(to, y, k - column);
            return;
        }
        Store* const to = out + row * k + column;
        if (k % PER == 0 && is_aligned<PER>(out)) store_vector(to, y);
        else store_some(to, y, k - column);
    });
    if (IS_ROWS || left > 0) return;
    for (int i = threadIdx.x; i < BM; i += THREADS) {
        if (top + i >= m) break;
        double sum = 0;
        for (int w = 0; w < OF_SUMS; w++) sum += found[i * OF_SUMS + w];
        if (partial_sums != nullptr) partial_sums[part * m + top + i] = static_cast<Real>(sum);
        else store(sums + top + i, static_cast<Real>(sum));
    }
}

#define GRADIENT(name, IS_ROWS)                                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) name(                                               \
        const Store* __restrict__ own, const Store* __restrict__ other, const Store* __restrict__ bias,               \
        const Store* __restrict__ x, const Store* __restrict__ g, Store* __restrict__ out,                            \
        Real* __restrict__ partial, Store* __restrict__ sums, Real* __restrict__ partial_sums, Index m, Index n,      \
        Index k, Index x_rows, Index part_length, Index slices                                                        \
    ) {                                                                                                               \
        gradient<IS_ROWS>(own, other, bias, x, g, out, partial, sums, partial_sums, m, n, k, x_rows, part_length,     \
                          slices);                                                                                    \
    }

GRADIENT(gradient_of_rows, true)
GRADIENT(gradient_of_weight, false)

#endif
#endif
