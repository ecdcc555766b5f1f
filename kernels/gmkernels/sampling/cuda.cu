// Sampling on the random stream: noise is made where it is used, and made again in the backward pass.
//
// Rows are cut into pieces of at most `chunk` elements. A team of threads, a power of two, has a piece: one group of four
// elements of the stream after another, member after member. A block holds several teams, and does `repeats` pieces with
// each. Rows may begin at any lane of the stream: columns of a group then begin before the row or end behind it, and what
// lies outside is neither loaded nor stored. cuda.py chooses team and repeats by the shape.

#include "rng/stream.cuh"

constexpr int THREADS = 256, WARP = 32;

struct Piece {
    Index row, begin;
    int length;  // 0 where there is no such piece

    DEVICE Piece(Offset number, Index rows, Index width, Index pieces, Index chunk) : row(0), begin(0), length(0) {
        if (number >= static_cast<Offset>(rows) * pieces) return;
        row = number;
        if (pieces == 1) {
            length = width;
            return;
        }
        row = number / pieces;
        begin = (number - static_cast<Offset>(row) * pieces) * chunk;
        length = width - begin < chunk ? width - begin : chunk;
    }
};

// Four columns of a row from `column` on, of which those outside [0, length) are not there.
struct Columns {
    int column, length;
    bool whole;  // all are, and may be accessed together

    DEVICE bool has(int i) const { return whole || (column + i >= 0 && column + i < length); }

    DEVICE void load_four(const Store* row, Real (&x)[4]) const {
        if (whole) {
            load_vector(row + column, x);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) x[i] = has(i) ? load<Real>(row + column + i) : Real(0);
        }
    }

    DEVICE void store_four(Store* row, const Real (&x)[4]) const {
        if (whole) {
            store_vector(row + column, x);
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (has(i)) store(row + column + i, x[i]);
            }
        }
    }
};

// Sums of x and of y over each team, in the team's first thread. Every thread of the block must call.
DEVICE void team_sums(Real& x, Real& y, int team) {
    for (int d = (team < WARP ? team : WARP) / 2; d > 0; d /= 2) {
        x += shuffle_xor(FULL_WARP, x, d);
        y += shuffle_xor(FULL_WARP, y, d);
    }
    if (team <= WARP) return;
    constexpr int WARPS = THREADS / WARP;
    SHARED(Real, partial, 2 * WARPS);
    const int warp = threadIdx.x / WARP;
    __syncthreads();  // what an earlier call left has been read
    if (threadIdx.x % WARP == 0) partial[warp] = x, partial[WARPS + warp] = y;
    __syncthreads();
    x = y = 0;
    for (int w = warp; w < WARPS && w < warp + team / WARP; w++) x += partial[w], y += partial[WARPS + w];
}

// ---------------------------------------------------------------------------------------------------------------------
// gaussian_sample
// ---------------------------------------------------------------------------------------------------------------------

// exp(logvar / 2). Two instructions in place of nine: the product is rounded, so the relative error is
// 2^-22 + 7.3e-8 |logvar / 2|. With 5.4e-7 of eps that is within the 5e-6 of the contract up to |logvar| = 110.
DEVICE float standard_deviation(float logvar) { return exp2_approximate(logvar * 0.72134752f); }
DEVICE double standard_deviation(double logvar) { return exp(0.5 * logvar); }

// The columns of a piece that a member of its team has: z, and the sums of sigma^2 + mu^2 - 1 - logvar and of
// eps^2 + logvar.
template <bool WHOLE>
DEVICE void sample_piece(const Stream& stream, const Store* __restrict__ mu, const Store* __restrict__ logvar,
                         Store* __restrict__ z, uint64 target, int first, int step, int length, Real& kl_sum,
                         Real& log_q_sum) {
#pragma unroll 1
    for (int column = first; column < length; column += step) {
        const Columns at = {column, length, WHOLE};
        Real m[4], v[4], eps[4], x[4];
        at.load_four(mu, m);
        at.load_four(logvar, v);
        uint32 words[4];
        stream.words(target + column, words);
        normals(words, eps);
        Real log_q = (v[0] + v[1]) + (v[2] + v[3]), kl = Real(-4) - log_q;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (!at.has(i)) eps[i] = 0;  // mu and logvar are 0 then, so it adds nothing to either sum
            const Real sigma = standard_deviation(v[i]);
            x[i] = fma(sigma, eps[i], m[i]);
            log_q = fma(eps[i], eps[i], log_q);
            kl = fma(sigma, sigma, fma(m[i], m[i], kl));
        }
        at.store_four(z, x);
        kl_sum += kl;
        log_q_sum += log_q;
    }
}

// kl_parts and log_q_parts take the sums of pieces where a row has several, for add_pieces.
extern "C" __global__ void __launch_bounds__(THREADS)
    gaussian_sample(const Store* __restrict__ mu, const Store* __restrict__ logvar, const uint64* __restrict__ key,
                    Store* __restrict__ z, Store* __restrict__ kl, Store* __restrict__ log_q,
                    double* __restrict__ kl_parts, double* __restrict__ log_q_parts, Index samples, Index rows,
                    Index width, Index pieces, Index chunk, Index team, Index repeats) {
    const Stream stream(key);
    const bool aligned = is_aligned<4>(mu) && is_aligned<4>(logvar) && is_aligned<4>(z);
    const int teams = THREADS / team, member = threadIdx.x % team;
    for (Index sample = blockIdx.y; sample < samples; sample += gridDim.y) {
#pragma unroll 1
        for (int repeat = 0; repeat < repeats; repeat++) {
            const Offset number = (static_cast<Offset>(blockIdx.x) * repeats + repeat) * teams + threadIdx.x / team;
            const Piece piece(number, rows, width, pieces, chunk);
            const Index source = piece.row * width + piece.begin, target = sample * rows * width + source;
            const int lane = stream.lane(target), first = 4 * member - lane, step = 4 * team;
            Real kl_sum = 0, log_q_sum = 0;
            if (aligned && lane == 0 && ((source | target | piece.length) & 3) == 0) {
                sample_piece<true>(stream, mu + source, logvar + source, z + target, target, first, step, piece.length,
                                   kl_sum, log_q_sum);
            } else {
                sample_piece<false>(stream, mu + source, logvar + source, z + target, target, first, step,
                                    piece.length, kl_sum, log_q_sum);
            }
            team_sums(kl_sum, log_q_sum, team);
            if (member != 0 || number >= static_cast<Offset>(rows) * pieces) continue;
            const Real kl_half = Real(0.5) * kl_sum;
            const Real log_density = Real(-0.5) * (log_q_sum + Real(piece.length) * Real(1.8378770664093453));
            const Index sum = sample * rows * pieces + number;
            if (pieces == 1) {
                store(log_q + sum, log_density);
                if (sample == 0) store(kl + number, kl_half);
            } else {
                log_q_parts[sum] = log_density;
                if (sample == 0) kl_parts[number] = kl_half;
            }
        }
    }
}

// The sum of the pieces of a row, in their order within each thread: a block has a row.
extern "C" __global__ void __launch_bounds__(THREADS)
    add_pieces(const double* __restrict__ parts, Store* __restrict__ sums, Index rows, Index pieces) {
    for (Index row = blockIdx.x; row < rows; row += gridDim.x) {
        double sum = 0;
        for (Index i = threadIdx.x; i < pieces; i += THREADS) sum += parts[row * pieces + i];
        sum = block_sum(sum);
        if (threadIdx.x == 0) store(sums + row, static_cast<Real>(sum));
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// gaussian_sample_backward
// ---------------------------------------------------------------------------------------------------------------------

// What one sample gives, in the columns of a piece that a member of its team has; k and q are the gradients by kl and
// log_q.
template <bool WHOLE>
DEVICE void backward_piece(const Stream& stream, const Store* __restrict__ g_z, const Store* __restrict__ mu,
                           const Store* __restrict__ logvar, Store* __restrict__ d_mu, Store* __restrict__ d_logvar,
                           uint64 target, int first, int step, int length, Real k, Real q) {
#pragma unroll 1
    for (int column = first; column < length; column += step) {
        const Columns at = {column, length, WHOLE};
        Real g[4], m[4], v[4], eps[4], x[4], y[4];
        at.load_four(g_z, g);
        at.load_four(mu, m);
        at.load_four(logvar, v);
        uint32 words[4];
        stream.words(target + column, words);
        normals(words, eps);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const Real sigma = standard_deviation(v[i]);
            x[i] = fma(k, m[i], g[i]);
            y[i] = Real(0.5) * fma(k, fma(sigma, sigma, Real(-1)), fma(g[i], sigma * eps[i], -q));
        }
        at.store_four(d_mu, x);
        at.store_four(d_logvar, y);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    gaussian_sample_backward(const Store* __restrict__ g_z, const Store* __restrict__ g_kl,
                             const Store* __restrict__ g_log_q, const Store* __restrict__ mu,
                             const Store* __restrict__ logvar, const uint64* __restrict__ key,
                             Store* __restrict__ d_mu, Store* __restrict__ d_logvar, Index rows, Index width,
                             Index pieces, Index chunk, Index team, Index repeats) {
    const Stream stream(key);
    const bool aligned = is_aligned<4>(g_z) && is_aligned<4>(mu) && is_aligned<4>(logvar) && is_aligned<4>(d_mu) &&
                         is_aligned<4>(d_logvar);
    const int teams = THREADS / team, member = threadIdx.x % team;
#pragma unroll 1
    for (int repeat = 0; repeat < repeats; repeat++) {
        const Offset number = (static_cast<Offset>(blockIdx.x) * repeats + repeat) * teams + threadIdx.x / team;
        const Piece piece(number, rows, width, pieces, chunk);
        if (piece.length == 0) return;
        const Index at = piece.row * width + piece.begin;
        const int lane = stream.lane(at), first = 4 * member - lane, step = 4 * team;
        const Real k = load<Real>(g_kl + piece.row), q = load<Real>(g_log_q + piece.row);
        if (aligned && lane == 0 && ((at | piece.length) & 3) == 0) {
            backward_piece<true>(stream, g_z + at, mu + at, logvar + at, d_mu + at, d_logvar + at, at, first, step,
                                 piece.length, k, q);
        } else {
            backward_piece<false>(stream, g_z + at, mu + at, logvar + at, d_mu + at, d_logvar + at, at, first, step,
                                  piece.length, k, q);
        }
    }
}

// The normals of four elements of the stream: of one group, or of two neighbours.
DEVICE void four_normals(const Stream& stream, uint64 i, Real (&eps)[4]) {
#pragma unroll 1
    for (int begin = -stream.lane(i); begin < 4; begin += 4) {  // where a group lies among the four
        uint32 words[4];
        stream.words(i + begin, words);
        if (begin == 0) {
            normals(words, eps);
            return;
        }
        Real group[4];
        normals(words, group);
#pragma unroll
        for (int j = 0; j < 4; j++) {
#pragma unroll
            for (int lane = 0; lane < 4; lane++) {
                if (begin + lane == j) eps[j] = group[lane];
            }
        }
    }
}

// sum += x; what the addition loses is in `lost`, and is added with the next x (Kahan).
DEVICE void add(Real& sum, Real& lost, Real x) {
    const Real term = x - lost, total = sum + term;
    lost = (total - sum) - term;
    sum = total;
}

// The sums over samples in the columns of a piece. `slices` teams share the piece: each has every slices-th sample, and
// the first adds what they have. Columns are groups of the first sample; in others they may begin at another lane.
extern "C" __global__ void __launch_bounds__(THREADS)
    gaussian_samples_backward(const Store* __restrict__ g_z, const Store* __restrict__ g_kl,
                              const Store* __restrict__ g_log_q, const Store* __restrict__ mu,
                              const Store* __restrict__ logvar, const uint64* __restrict__ key,
                              Store* __restrict__ d_mu, Store* __restrict__ d_logvar, Index samples, Index slices,
                              Index rows, Index width, Index pieces, Index chunk, Index team, Index repeats) {
    const Stream stream(key);
    const bool aligned = is_aligned<4>(g_z) && is_aligned<4>(mu) && is_aligned<4>(logvar) && is_aligned<4>(d_mu) &&
                         is_aligned<4>(d_logvar);
    const int shared = team * slices, teams = THREADS / shared;
    const int member = threadIdx.x % team, slice = threadIdx.x / team % slices;
    // Those of the longest piece, with the elements of a group before it: every thread takes as many.
    const int longest = width < chunk ? width : chunk, turns = (longest + 2) / (4 * team) + 1;
#pragma unroll 1
    for (int repeat = 0; repeat < repeats; repeat++) {
        const Offset number = (static_cast<Offset>(blockIdx.x) * repeats + repeat) * teams + threadIdx.x / shared;
        const Piece piece(number, rows, width, pieces, chunk);
        const Index source = piece.row * width + piece.begin;
        const int lane = stream.lane(source);
        const bool whole_row = aligned && lane == 0 && (source & 3) == 0;
        const Real k = piece.length > 0 ? load<Real>(g_kl + piece.row) : Real(0);
#pragma unroll 1
        for (int turn = 0; turn < turns; turn++) {
            const int column = 4 * (member + turn * team) - lane;
            const bool whole = whole_row && column + 4 <= piece.length;
            const Columns at = {column, piece.length, whole};
            Real sigma[4], sum_z[4] = {0, 0, 0, 0}, sum_noise[4] = {0, 0, 0, 0};
            if (column < piece.length) {
                Real v[4], lost_z[4] = {0, 0, 0, 0}, lost_noise[4] = {0, 0, 0, 0};
                at.load_four(logvar + source, v);
#pragma unroll
                for (int i = 0; i < 4; i++) sigma[i] = standard_deviation(v[i]);
#pragma unroll 1
                for (Index sample = slice; sample < samples; sample += slices) {
                    const Index target = sample * rows * width + source;
                    const Columns above = {column, piece.length, whole && (target & 3) == 0};
                    const Real q = load<Real>(g_log_q + (sample * rows + piece.row));
                    Real g[4], eps[4];
                    above.load_four(g_z + target, g);
                    four_normals(stream, static_cast<uint64>(target) + column, eps);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        add(sum_z[i], lost_z[i], g[i]);
                        add(sum_noise[i], lost_noise[i], fma(g[i], sigma[i] * eps[i], -q));
                    }
                }
            }
            if (slices > 1) {
                SHARED(Real, partial, 8 * THREADS);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    partial[i * THREADS + threadIdx.x] = sum_z[i];
                    partial[(i + 4) * THREADS + threadIdx.x] = sum_noise[i];
                }
                __syncthreads();
                if (slice == 0) {
                    for (int other = threadIdx.x + team; other < threadIdx.x + shared; other += team) {
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            sum_z[i] += partial[i * THREADS + other];
                            sum_noise[i] += partial[(i + 4) * THREADS + other];
                        }
                    }
                }
                __syncthreads();
            }
            if (slice > 0 || column >= piece.length) continue;
            Real m[4], x[4], y[4];
            at.load_four(mu + source, m);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                x[i] = fma(k, m[i], sum_z[i]);
                y[i] = Real(0.5) * fma(k, fma(sigma[i], sigma[i], Real(-1)), sum_noise[i]);
            }
            at.store_four(d_mu + source, x);
            at.store_four(d_logvar + source, y);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// bernoulli_sample, bernoulli_sample_logits, dropout
// ---------------------------------------------------------------------------------------------------------------------
// Element by element: the row is all of the input, and the samples are the rows of the output.

// What `make` makes of four elements of x and the words of the same columns of a sample.
template <class Make>
DEVICE void each_sample(const Store* __restrict__ x, const uint64* __restrict__ key, Store* __restrict__ out,
                        Index samples, Index width, Index pieces, Index chunk, Index team, Index repeats, Make make) {
    const Stream stream(key);
    const bool aligned = is_aligned<4>(x) && is_aligned<4>(out);
    const int teams = THREADS / team, member = threadIdx.x % team;
#pragma unroll 1
    for (int repeat = 0; repeat < repeats; repeat++) {
        const Offset number = (static_cast<Offset>(blockIdx.x) * repeats + repeat) * teams + threadIdx.x / team;
        const Piece piece(number, samples, width, pieces, chunk);
        const Index target = piece.row * width + piece.begin;
        const int lane = stream.lane(target);
        const bool whole_row = aligned && lane == 0 && (target & 3) == 0;
#pragma unroll 1
        for (int column = 4 * member - lane; column < piece.length; column += 4 * team) {
            const Columns at = {column, piece.length, whole_row && column + 4 <= piece.length};
            Real given[4], made[4];
            at.load_four(x + piece.begin, given);
            uint32 words[4];
            stream.words(static_cast<uint64>(target) + column, words);
#pragma unroll
            for (int i = 0; i < 4; i++) made[i] = make(given[i], words[i]);
            at.store_four(out + target, made);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    bernoulli_sample(const Store* probs, const uint64* key, Store* sample, Index samples, Index width, Index pieces,
                     Index chunk, Index team, Index repeats) {
    each_sample(probs, key, sample, samples, width, pieces, chunk, team, repeats, fires<Real>);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    bernoulli_sample_logits(const Store* logits, const uint64* key, Store* sample, Index samples, Index width,
                            Index pieces, Index chunk, Index team, Index repeats) {
    each_sample(logits, key, sample, samples, width, pieces, chunk, team, repeats,
                [](Real x, uint32 w) { return fires(Real(1) / (Real(1) + exp(-x)), w); });
}

// An element whose word is below `bound`, at most 2^32, is kept.
extern "C" __global__ void __launch_bounds__(THREADS)
    dropout(const Store* x, const uint64* key, Store* y, uint64 bound, double scale, Index width, Index pieces,
            Index chunk, Index team, Index repeats) {
    each_sample(x, key, y, 1, width, pieces, chunk, team, repeats,
                [bound, scale](Real x, uint32 w) { return w < bound ? x * static_cast<Real>(scale) : Real(0); });
}
