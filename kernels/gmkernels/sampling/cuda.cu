// Sampling on the random stream: noise is made where it is used, and made again in the backward pass.
//
// Rows are cut into pieces of at most CHUNK elements. A team of threads, a power of two, has a piece: one group of four
// elements of the stream after another, member after member. A block holds several teams, and does `repeats` pieces with
// each. Rows may begin at any lane of the stream: columns of a group then begin before the row or end behind it, and what
// lies outside is neither loaded nor stored. cuda.py chooses team and repeats by the shape.

#include "rng/stream.cuh"

constexpr int THREADS = 256, CHUNK = 16384, WARP = 32;

struct Piece {
    Index row, begin;
    int length;  // 0 where there is no such piece

    DEVICE Piece(Offset number, Index rows, Index width, Index pieces) : row(0), begin(0), length(0) {
        if (number >= static_cast<Offset>(rows) * pieces) return;
        row = number;
        if (pieces == 1) {
            length = width;
            return;
        }
        row = number / pieces;
        begin = (number - static_cast<Offset>(row) * pieces) * CHUNK;
        length = width - begin < CHUNK ? width - begin : CHUNK;
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

// kl_parts and log_q_parts take the sums of pieces where a row has several, for add_pieces.
extern "C" __global__ void __launch_bounds__(THREADS)
    gaussian_sample(const Store* __restrict__ mu, const Store* __restrict__ logvar, const uint64* __restrict__ key,
                    Store* __restrict__ z, Store* __restrict__ kl, Store* __restrict__ log_q,
                    double* __restrict__ kl_parts, double* __restrict__ log_q_parts, Index samples, Index rows,
                    Index width, Index pieces, Index team, Index repeats) {
    const Stream stream(key);
    const bool aligned = is_aligned<4>(mu) && is_aligned<4>(logvar) && is_aligned<4>(z);
    const int teams = THREADS / team, member = threadIdx.x % team;
    for (Index sample = blockIdx.y; sample < samples; sample += gridDim.y) {
#pragma unroll 1
        for (int repeat = 0; repeat < repeats; repeat++) {
            const Offset number = (static_cast<Offset>(blockIdx.x) * repeats + repeat) * teams + threadIdx.x / team;
            const Piece piece(number, rows, width, pieces);
            const Index source = piece.row * width + piece.begin, target = sample * rows * width + source;
            const int lane = stream.lane(target);
            const bool whole = aligned && lane == 0 && ((source | target) & 3) == 0;
            Real kl_sum = 0, log_q_sum = 0;
            for (int column = 4 * member - lane; column < piece.length; column += 4 * team) {
                const Columns at = {column, piece.length, whole && column + 4 <= piece.length};
                Real m[4], v[4], eps[4], x[4];
                at.load_four(mu + source, m);
                at.load_four(logvar + source, v);
                uint32 words[4];
                stream.words(static_cast<uint64>(target) + column, words);
                normals(words, eps);
                Real kl_terms[4], log_q_terms[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const Real sigma = exp(Real(0.5) * v[i]);
                    x[i] = fma(sigma, eps[i], m[i]);
                    log_q_terms[i] = fma(eps[i], eps[i], v[i]);
                    kl_terms[i] = fma(sigma, sigma, fma(m[i], m[i], Real(-1))) - v[i];
                }
                if (!at.whole) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        if (!at.has(i)) log_q_terms[i] = kl_terms[i] = 0;
                    }
                }
                at.store_four(z + target, x);
                log_q_sum += (log_q_terms[0] + log_q_terms[1]) + (log_q_terms[2] + log_q_terms[3]);
                kl_sum += (kl_terms[0] + kl_terms[1]) + (kl_terms[2] + kl_terms[3]);
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

// The normals of four elements of the stream: of one group, or of two neighbours.
DEVICE void four_normals(const Stream& stream, uint64 i, Real (&eps)[4]) {
    uint32 words[4];
    stream.words(i, words);
    normals(words, eps);
    const int lane = stream.lane(i);
    if (lane == 0) return;
    Real next[4];
    stream.words(i + 4 - lane, words);
    normals(words, next);
#pragma unroll
    for (int shift = 0; shift < 3; shift++) {
        if (shift >= lane) break;
        eps[0] = eps[1], eps[1] = eps[2], eps[2] = eps[3];
        eps[3] = next[0], next[0] = next[1], next[1] = next[2];
    }
}

// sum += x; what the addition loses is in `lost`, and is added with the next x (Kahan).
DEVICE void add(Real& sum, Real& lost, Real x) {
    const Real term = x - lost, total = sum + term;
    lost = (total - sum) - term;
    sum = total;
}

// `slices` teams share a piece: each has every slices-th sample, and the first adds what they have.
extern "C" __global__ void __launch_bounds__(THREADS)
    gaussian_sample_backward(const Store* __restrict__ g_z, const Store* __restrict__ g_kl,
                             const Store* __restrict__ g_log_q, const Store* __restrict__ mu,
                             const Store* __restrict__ logvar, const uint64* __restrict__ key,
                             Store* __restrict__ d_mu, Store* __restrict__ d_logvar, Index samples, Index rows,
                             Index width, Index pieces, Index team, Index slices, Index repeats) {
    const Stream stream(key);
    const bool aligned = is_aligned<4>(g_z) && is_aligned<4>(mu) && is_aligned<4>(logvar) && is_aligned<4>(d_mu) &&
                         is_aligned<4>(d_logvar);
    const int teams = THREADS / (team * slices), member = threadIdx.x % team, slice = threadIdx.x / team % slices;
    // Those of the longest piece, with a lane before it: every thread of the block takes as many turns.
    const int longest = width < CHUNK ? width : CHUNK, turns = (longest + 6) / (4 * team) + 1;
#pragma unroll 1
    for (int repeat = 0; repeat < repeats; repeat++) {
        const Offset number =
            (static_cast<Offset>(blockIdx.x) * repeats + repeat) * teams + threadIdx.x / (team * slices);
        const Piece piece(number, rows, width, pieces);
        const Index source = piece.row * width + piece.begin;
        const int lane = stream.lane(source);
        const bool whole_rows = aligned && lane == 0 && (source & 3) == 0;
        const Real k = piece.length > 0 ? load<Real>(g_kl + piece.row) : Real(0);
#pragma unroll 1
        for (int turn = 0; turn < turns; turn++) {
            const int column = 4 * (member + turn * team) - lane;
            const bool whole = whole_rows && column + 4 <= piece.length;
            const Columns at = {column, piece.length, whole};
            Real m[4], v[4], sigma[4], sum_z[4] = {0, 0, 0, 0}, sum_noise[4] = {0, 0, 0, 0};
            if (column < piece.length) {
                at.load_four(mu + source, m);
                at.load_four(logvar + source, v);
#pragma unroll
                for (int i = 0; i < 4; i++) sigma[i] = exp(Real(0.5) * v[i]);
                Real lost_z[4] = {0, 0, 0, 0}, lost_noise[4] = {0, 0, 0, 0};
#pragma unroll 1
                for (Index sample = slice; sample < samples; sample += slices) {
                    const Index target = sample * rows * width + source;
                    const Real q = load<Real>(g_log_q + (sample * rows + piece.row));
                    Real g[4], eps[4];
                    const Columns above = {column, piece.length, whole && (target & 3) == 0};
                    above.load_four(g_z + target, g);
                    four_normals(stream, static_cast<uint64>(target) + column, eps);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const Real noise = fma(g[i], sigma[i] * eps[i], -q);
                        if (samples == 1) {
                            sum_z[i] = g[i], sum_noise[i] = noise;
                        } else {
                            add(sum_z[i], lost_z[i], g[i]);
                            add(sum_noise[i], lost_noise[i], noise);
                        }
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
                    for (int other = threadIdx.x + team; other < threadIdx.x + team * slices; other += team) {
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
            Real x[4], y[4];
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
                        Index samples, Index width, Index pieces, Index team, Index repeats, Make make) {
    const Stream stream(key);
    const bool aligned = is_aligned<4>(x) && is_aligned<4>(out);
    const int teams = THREADS / team, member = threadIdx.x % team;
#pragma unroll 1
    for (int repeat = 0; repeat < repeats; repeat++) {
        const Offset number = (static_cast<Offset>(blockIdx.x) * repeats + repeat) * teams + threadIdx.x / team;
        const Piece piece(number, samples, width, pieces);
        const Index target = piece.row * width + piece.begin;
        const int lane = stream.lane(target);
        const bool whole = aligned && lane == 0 && (target & 3) == 0;
#pragma unroll 1
        for (int column = 4 * member - lane; column < piece.length; column += 4 * team) {
            const Columns at = {column, piece.length, whole && column + 4 <= piece.length};
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

// 1 if w < floor(p 2^32), and NaN if p is no probability. At p = 1 the product has 33 bits.
DEVICE Real fires(Real p, uint32 w) {
    const Real fired = p >= 1 || w < static_cast<uint32>(p * Real(0x1p32)) ? Real(1) : Real(0);
    return p >= 0 && p <= 1 ? fired : Real(bits_float(0x7FC00000u));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    bernoulli_sample(const Store* probs, const uint64* key, Store* sample, Index samples, Index width, Index pieces,
                     Index team, Index repeats) {
    each_sample(probs, key, sample, samples, width, pieces, team, repeats, fires);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    bernoulli_sample_logits(const Store* logits, const uint64* key, Store* sample, Index samples, Index width,
                            Index pieces, Index team, Index repeats) {
    each_sample(logits, key, sample, samples, width, pieces, team, repeats,
                [](Real x, uint32 w) { return fires(Real(1) / (Real(1) + exp(-x)), w); });
}

// An element whose word is below `bound`, at most 2^32, is kept.
extern "C" __global__ void __launch_bounds__(THREADS)
    dropout(const Store* x, const uint64* key, Store* y, uint64 bound, double scale, Index width, Index pieces,
            Index team, Index repeats) {
    each_sample(x, key, y, 1, width, pieces, team, repeats,
                [bound, scale](Real x, uint32 w) { return w < bound ? x * static_cast<Real>(scale) : Real(0); });
}
