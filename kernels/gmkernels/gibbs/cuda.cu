// Gibbs sampling: half-steps of restricted machines, chains of them in one launch, the statistics of contrastive
// divergence, annealing, and sweeps of general machines.
//
// A half-step is a product with an epilogue. Blocks make tiles as `dense/product.cuh` has them: rows are chains and
// columns the units that are sampled. From the sums of a tile come, before anything is stored, the means, the random
// words of its elements and the sample; each is written once. Which block makes a tile makes no difference to it, so the
// number of blocks may follow the device.
//
// Operands are of type Store, weights and means of type Out. They differ where the weight is of float and the states are
// samples or of uint8: 0 to 256 are exact in bfloat16, and the weight is then hi + lo (SPLIT), two products on tensor
// cores with sums in float. hi is the weight rounded to 8 bits and lo the rest, rounded likewise, so |w - hi - lo| <=
// 2^-17 |w|, and the input of a unit is off by at most 2^-17 sum |w s|, besides the rounding of sums that all have. The
// first states of a chain may be other numbers of float: these have two parts too, of the four products the smallest may
// be left out, and the bound is 2^-15 sum |w s|. `make_operands` makes the parts, once a call: a chain uses them at each
// step, and the product then copies them as it does any matrix of bfloat16 (cp.async, ldmatrix), which a conversion on
// the way would not let it do.
//
// What `make_operands` makes has rows of a whole number of 16 bytes: what stands behind a row's elements is never used.
//
// A module has one kernel for a tile, `half_steps` or, with STATISTICS, `statistics`; or without a tile all others.

#include "rng/stream.cuh"

#ifdef OUT
typedef OUT Out;
#define SPLIT 2
#else
typedef Store Out;
#define SPLIT 1
#endif

constexpr int MEAN_PARTS = sizeof(Store) == 2 ? 2 : 1;  // of a mean as an operand: hi and lo, for 16 bits
constexpr int CHUNK = 8;                                // rows of operands are of whole chunks

// The rest of x after it was rounded to the type of the operands.
DEVICE Real rest_of(Real x) {
    Store rounded;
    store(&rounded, x);
    return x - load<Real>(&rounded);
}

DEVICE Real sigmoid(Real x) { return Real(1) / (Real(1) + exp(-x)); }

#ifdef BM
#include "dense/product.cuh"

// =====================================================================================================================
// Half-steps
// =====================================================================================================================

// The units that a half-step samples, and where it finds what. Filled by `cuda.py`.
struct Layer {
    const Store* states;  // of the other layer, (state_parts, rows, inputs); after the first half-step in one part
    long long states_across, states_along, state_part;
    const Store* weight;  // (SPLIT, units, inputs)
    long long weight_across, weight_along, weight_part;
    const Out* bias;
    long long bias_stride;
    const Out* base_bias;            // of visible units in annealing: the bias at beta 0
    Store* sample;                   // as states of the next half-step, rows `pitch` apart
    long long pitch;
    void* kept;                      // the sample at the end, in uint8 if `narrow`, otherwise as Out
    Out* mean;                       // at the end
    Store *means_before, *means_after;  // (MEAN_PARTS, rows, pitch), of the hidden units at both ends of a chain
    double *sums, *sums_after;       // (rows, tiles), by row and tile; see `Written`
    int units, inputs, gaussian, narrow, state_parts;
};

// Of a row: one also where there are no units, which has the sums.
DEVICE Index tiles_of(const Layer& layer) { return (max(layer.units, 1) + BN - 1) / BN; }

// What one half-step writes; null: not that.
struct Written {
    Store* sample;
    void* kept;
    Out* mean;
    Store* means;
    double* sums;  // of softplus, or how much it rises from one beta to the next; of visible units, what they add to the
                   // next log weight, for each unit of beta
};

struct Temperature {
    bool given;
    Real before, beta;
};

// use(e, what `make` makes of its word) for each of the N elements of the draw that begin with i. `make` has the words of
// a group, and gives four elements.
template <int N, class T, class Make, class Use>
DEVICE void for_elements(const Stream& stream, uint64 i, Make make, Use use) {
    uint32 words[4];
    T made[4];
    const int lane = stream.lane(i);
    if (N >= 4 && lane == 0) {
#pragma unroll
        for (int begin = 0; begin < N; begin += 4) {
            stream.words(i + begin, words);
            make(words, made);
#pragma unroll
            for (int e = 0; e < 4; e++) use(begin + e, made[e]);
        }
        return;
    }
#pragma unroll 1
    for (int begin = -lane; begin < N; begin += 4) {
        stream.words(i + begin, words);
        make(words, made);
#pragma unroll
        for (int e = 0; e < N; e++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (begin + j == e) use(e, made[j]);
            }
        }
    }
}

// Give all elements of the tile to `take(row, column, x)` as `for_each_row` does, but of all bands at once: the registers
// of the sums are free then, which a take that is long needs.
template <class A, class B, class Take>
__device__ __forceinline__ void for_all_rows(const Sums<A, B>& sums, Take take) {
    DYNAMIC_SHARED(Real, staged);
    constexpr int CHUNKS = BN / PER, BAND = WARPS_M * 16;
    static_assert(CHUNKS <= 32 && BM % (THREADS / CHUNKS) == 0, "a row of the tile is not of one warp");
    __syncthreads();  // what was in shared memory has been read
#pragma unroll
    for (int band = 0; band < WM / 16; band++) sums.stage(staged + band * BAND * STAGED_ROW, band);
    __syncthreads();
    const int column = threadIdx.x % CHUNKS * PER;
#pragma unroll 1
    for (int r = threadIdx.x / CHUNKS; r < BM; r += THREADS / CHUNKS) {
        Real x[PER];
        load_vector(staged + r * STAGED_ROW + column, x);
        take(r % BAND / 16 * WM + r / BAND * 16 + r % 16, column, x);
    }
}

// Neighbours of a row: all at once if they exist and may be.
template <class T>
DEVICE void store_row(T* p, const Real (&x)[PER], Index left, bool whole) {
    if (whole) store_vector(p, x);
    else store_some(p, x, left);
}

// 1 where x is 1, and 0 elsewhere.
DEVICE void store_bits(unsigned char* p, const Real (&x)[PER], Index left, bool whole) {
    Pack<unsigned char, PER> bits;
#pragma unroll
    for (int e = 0; e < PER; e++) bits.element[e] = x[e] == 1;
    if (whole) {
        *reinterpret_cast<Pack<unsigned char, PER>*>(p) = bits;
        return;
    }
#pragma unroll
    for (int e = 0; e < PER; e++) {
        if (e < left) p[e] = bits.element[e];
    }
}

// Both parts of a weight as one operand: a product of small tiles waits for one short step after another, and then has
// half as many.
template <class B>
struct Both {
    static constexpr int SIZE = 2 * B::SIZE, ROW = B::ROW, NEXT_ALONG = B::NEXT_ALONG, NEXT_ACROSS = B::NEXT_ACROSS;
    B high, low;

    __device__ __forceinline__ void copy(Store* step) {
        high.copy(step);
        low.copy(step + B::SIZE);
    }
    __device__ __forceinline__ void prepare() {}
};

template <class A, class B, class T>
struct Sums<A, Both<B>, T, 2> : Sums<A, B, T, 2> {
    __device__ __forceinline__ void multiply(const T* a, const T* b) {
        Sums<A, B, T, 2>::multiply(a, b + B::SIZE);  // what is small first
        Sums<A, B, T, 2>::multiply(a, b);
    }
};

template <bool, class X, class>
struct Either {
    typedef X type;
};
template <class X, class Y>
struct Either<false, X, Y> {
    typedef Y type;
};

constexpr bool AT_ONCE = SPLIT == 2 && BM == 32;

// The tile of a half-step, from states of so many parts. The words of its elements are those of `stream`.
template <class A, class B>
__device__ __forceinline__ void half_step_tile(const Layer& layer, const Written& out, const Temperature& temperature,
                                               const Stream& stream, Index rows, int state_parts, Index tile) {
    DYNAMIC_SHARED(Store, steps);
    const Index units = layer.units, inputs = layer.inputs;
    Index first_row, first_unit;
    corner_of(tile, rows, max(units, Index(1)), first_row, first_unit);
    Sums<A, typename Either<AT_ONCE, Both<B>, B>::type> sums;
    constexpr int PASSES = AT_ONCE ? 1 : SPLIT;
#pragma unroll 1
    for (int pass = state_parts * PASSES - 1; pass >= 0; pass--) {  // what is small first
        const int of_states = pass / PASSES, of_weight = pass % PASSES;
        if (of_states + of_weight == 2) continue;
        A a(layer.states + of_states * layer.state_part, layer.states_across, layer.states_along, first_row, rows, 0,
            inputs);
        const auto weight = [&](int part) {
            return B(layer.weight + part * layer.weight_part, layer.weight_across, layer.weight_along, first_unit, units,
                     0, inputs);
        };
        if constexpr (AT_ONCE) {
            Both<B> b = {weight(0), weight(1)};
            add_steps(a, b, sums, steps, inputs);
        } else {
            B b = weight(of_weight);
            add_steps(a, b, sums, steps, inputs);
        }
        __syncthreads();  // the steps have been multiplied, and are overwritten now
    }

    constexpr int CHUNKS = BN / PER;
    const Index column = first_unit + threadIdx.x % CHUNKS * PER, left = units - column;
    const Real beta = temperature.beta;
    Real shift[PER];
#pragma unroll
    for (int e = 0; e < PER; e++) {
        shift[e] = e < left ? load<Real>(layer.bias + (column + e) * layer.bias_stride) : Real(0);
        if (layer.base_bias != nullptr && e < left) {
            shift[e] = beta * shift[e] + (1 - beta) * load<Real>(layer.base_bias + column + e);
        }
    }
    const bool whole = units % PER == 0 && is_aligned<PER>(out.mean) &&
                       (layer.narrow ? is_aligned<PER>(static_cast<unsigned char*>(out.kept))
                                     : is_aligned<PER>(static_cast<Out*>(out.kept)));
    for_all_rows(sums, [&](int r, int, Real (&x)[PER]) {
        const Index row = first_row + r;
        double total = 0;
        if (row < rows && left > 0) {
            const long long at = static_cast<long long>(row) * units + column;
            const long long packed = row * layer.pitch + column;
#pragma unroll
            for (int e = 0; e < PER; e++) {
                // Inputs of visible units are at beta; of hidden ones not yet, since their softplus rises to it.
                const Real a = (layer.base_bias != nullptr ? beta * x[e] : x[e]) + shift[e];
                Real term = 0;
                if (layer.gaussian) {
                    x[e] = a;
                } else if (out.sums == nullptr || layer.base_bias != nullptr) {
                    x[e] = sigmoid(a);
                } else if (temperature.given) {  // the difference of each of the two parts of softplus keeps its digits
                    const Real fall = exp(-beta * fabs(a));
                    term = (a < 0 ? Real(0) : (beta - temperature.before) * a) +
                           (log1p(fall) - log1p(exp(-temperature.before * fabs(a))));
                    x[e] = (a < 0 ? fall : Real(1)) / (Real(1) + fall);
                } else {
                    const Real fall = exp(-fabs(a));
                    term = (a > 0 ? a : Real(0)) + log1p(fall);
                    x[e] = (a < 0 ? fall : Real(1)) / (Real(1) + fall);
                }
                if (e < left) total += term;
            }
            if (out.mean != nullptr) store_row(out.mean + at, x, left, whole);
            if (out.means != nullptr) {
                Real rest[PER];
#pragma unroll
                for (int e = 0; e < PER; e++) rest[e] = rest_of(x[e]);
                store_vector(out.means + packed, x);
                if (MEAN_PARTS == 2) store_vector(out.means + rows * layer.pitch + packed, rest);
            }
            if (out.sample != nullptr || out.kept != nullptr) {
                if (layer.gaussian) {
                    for_elements<PER, Real>(
                        stream, at, [](const uint32(&w)[4], Real(&z)[4]) { normals(w, z); },
                        [&](int e, Real z) { x[e] += z; });
                } else {
                    for_elements<PER, uint32>(
                        stream, at,
                        [](const uint32(&w)[4], uint32(&same)[4]) {
#pragma unroll
                            for (int j = 0; j < 4; j++) same[j] = w[j];
                        },
                        [&](int e, uint32 w) { x[e] = fires(x[e], w); });
                }
                if (out.sample != nullptr) store_vector(out.sample + packed, x);
                if (out.kept != nullptr) {
                    if (layer.narrow) store_bits(static_cast<unsigned char*>(out.kept) + at, x, left, whole);
                    else store_row(static_cast<Out*>(out.kept) + at, x, left, whole);
                }
            }
            if (out.sums != nullptr && layer.base_bias != nullptr) {
#pragma unroll
                for (int e = 0; e < PER; e++) {
                    if (e >= left) continue;
                    const Real own = load<Real>(layer.bias + column + e);
                    const Real others = load<Real>(layer.base_bias + column + e);
                    total += x[e] * (own - others);
                    if (layer.gaussian) total += Real(0.5) * (others * others - own * own);
                }
            }
        }
        if (out.sums != nullptr) {
            total = warp_sum<CHUNKS>(total);
            if (threadIdx.x % CHUNKS == 0 && row < rows) {
                out.sums[static_cast<long long>(row) * tiles_of(layer) + first_unit / BN] = total;
            }
        }
    });
}

#ifndef STATISTICS

// Rows of states, and the weight by rows for the hidden units and by columns for the visible ones: neighbours in memory,
// aligned to 16 bytes. Threads that multiply in float load neighbours across the sum from shared memory.
typedef Operand<BM, sizeof(Store) == 4 ? RUNS : ALONG, 16> States;
typedef Operand<BN, sizeof(Store) == 4 ? RUNS : ALONG, 16> Rows;
typedef Operand<BN, ACROSS, 16> Columns;

// The half-steps `first` to `last` - 1 of a call with `steps` full ones: even numbers sample the hidden units, odd ones
// the visible. Number 2 `steps`, the first after the chain, makes the means of the hidden units alone. All blocks run at
// once if there are several half-steps, and wait for each other after each. In annealing, which has `betas`, full step
// t goes from number t to t + 1 of them. Without steps the words of a half-step are those of the key itself.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
half_steps(Layer hidden, Layer visible, const uint64* key, const double* betas, double* log_weight, uint32* arrived,
           Index rows, Index first, Index last, Index steps) {
    const Index tiles_m = (rows + BM - 1) / BM;
    const Index hidden_tiles = tiles_of(hidden), visible_tiles = tiles_of(visible);
    Stream stream = key == nullptr ? Stream() : Stream(key);
    for (Index step = first; step < last; step++) {
        if (step > first) grid_sync(arrived);
        const bool alone = steps == 0, ends = alone || step >= 2 * steps - 2;
        const bool after = steps > 0 && step == 2 * steps;
        const Index t = step / 2;
        Temperature temperature = {betas != nullptr, Real(0), Real(1)};
        if (betas != nullptr) {
            temperature.before = static_cast<Real>(betas[t]);
            temperature.beta = static_cast<Real>(betas[t + 1]);
        }
        const bool to_hidden = step % 2 == 0;
        if (!alone && !after) {
            stream.offset = key[2] * static_cast<uint64>(to_hidden ? hidden.units : visible.units) +
                            (static_cast<uint64>(step) << 40);
        }
        const Index tiles = tiles_m * (to_hidden ? hidden_tiles : visible_tiles);
        for (Index tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            if (to_hidden) {
                const Written written = {
                    after ? nullptr : hidden.sample,
                    ends && !after ? hidden.kept : nullptr,
                    ends && !after ? hidden.mean : nullptr,
                    after ? hidden.means_after : step == 0 ? hidden.means_before : nullptr,
                    after ? hidden.sums_after : step == 0 || betas != nullptr ? hidden.sums : nullptr,
                };
                half_step_tile<States, Rows>(hidden, written, temperature, stream, rows,
                                             step == 0 ? hidden.state_parts : 1, tile);
            } else {
                const long long sums = static_cast<long long>(rows) * visible_tiles;
                const Written written = {
                    visible.sample, ends ? visible.kept : nullptr, ends ? visible.mean : nullptr, nullptr,
                    betas != nullptr ? visible.sums + (t + 1) % 2 * sums : nullptr,
                };
                half_step_tile<States, Columns>(visible, written, temperature, stream, rows, 1, tile);
                Index first_row, first_unit;
                corner_of(tile, rows, Index(max(visible.units, 1)), first_row, first_unit);
                const Index row = first_row + threadIdx.x;
                if (betas != nullptr && first_unit == 0 && threadIdx.x < BM && row < rows) {
                    double rise = 0, own = 0;
                    for (Index i = 0; i < hidden_tiles; i++) {
                        rise += hidden.sums[static_cast<long long>(row) * hidden_tiles + i];
                    }
                    for (Index i = 0; i < visible_tiles; i++) {
                        own += visible.sums[t % 2 * sums + static_cast<long long>(row) * visible_tiles + i];
                    }
                    log_weight[row] += rise + (temperature.beta - temperature.before) * own;
                }
            }
            __syncthreads();  // shared memory is overwritten by the next tile
        }
    }
}

#else
// =====================================================================================================================
// Contrastive divergence
// =====================================================================================================================

// One phase: the means of the hidden units (MEAN_PARTS, rows, their pitch) and the visible states (visible_parts, rows,
// their pitch).
struct Phase {
    const Store* hidden;
    const Store* visible;
    long long hidden_pitch, hidden_part, visible_pitch, visible_part;
    int rows, visible_parts;
};

typedef Operand<BM, ACROSS, 16> HiddenUnits;
typedef Operand<BN, ACROSS, 16> VisibleUnits;

DEVICE void add_phase(const Phase& phase, Sums<HiddenUnits, VisibleUnits>& sums, Store* steps, Index first_hidden,
                      Index first_visible, Index hidden, Index visible) {
#pragma unroll 1
    for (int pass = MEAN_PARTS * phase.visible_parts - 1; pass >= 0; pass--) {
        const int part = pass % MEAN_PARTS, of_visible = pass / MEAN_PARTS;
        if (part + of_visible == 2) continue;
        HiddenUnits h(phase.hidden + part * phase.hidden_part, 1, phase.hidden_pitch, first_hidden, hidden, 0,
                      phase.rows);
        VisibleUnits v(phase.visible + of_visible * phase.visible_part, 1, phase.visible_pitch, first_visible, visible,
                       0, phase.rows);
        add_steps(h, v, sums, steps, phase.rows);
        __syncthreads();  // the steps have been multiplied, and are overwritten now
    }
}

// The mean of `term` over the rows of the chain's end minus that over the data, in the first of the threads of a column,
// of which each has a slice of the rows. All threads of the block call.
template <class Term>
DEVICE double mean_difference(const Phase& data, const Phase& end, bool exists, Term term) {
    SHARED(double, slices, THREADS);
    const int slice = threadIdx.x / 32;
    double before = 0, after = 0;
    if (exists) {
#pragma unroll 4
        for (Index r = slice; r < data.rows; r += THREADS / 32) before += term(data, r);
#pragma unroll 4
        for (Index r = slice; r < end.rows; r += THREADS / 32) after += term(end, r);
    }
    __syncthreads();  // what an earlier call left has been read
    slices[threadIdx.x] = after / end.rows - before / data.rows;
    __syncthreads();
    double total = 0;
    for (int s = 0; s < THREADS / 32; s++) total += slices[s * 32 + threadIdx.x % 32];
    return total;
}

// Blocks below `tiles` make d_weight (hidden, visible), each block after them the statistics of 32 units: first the
// visible ones, with what each adds to the loss in `own`, then the hidden ones.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
statistics(Phase data, Phase end, const Out* visible_bias, Out* d_weight, Out* d_visible, Out* d_hidden, double* own,
           Index hidden, Index visible, Index gaussian, Index tiles) {
    if (static_cast<Index>(blockIdx.x) < tiles) {
        DYNAMIC_SHARED(Store, steps);
        Index first_hidden, first_visible;
        corner_of(blockIdx.x, hidden, visible, first_hidden, first_visible);
        Sums<HiddenUnits, VisibleUnits> sums;
        add_phase(data, sums, steps, first_hidden, first_visible, hidden, visible);
        sums.scale(-static_cast<Real>(end.rows) / static_cast<Real>(data.rows));
        add_phase(end, sums, steps, first_hidden, first_visible, hidden, visible);
        const Real share = Real(1) / static_cast<Real>(end.rows);
        const bool whole = visible % PER == 0 && is_aligned<PER>(d_weight);
        for_each_row(sums, [&](int r, int c, Real (&x)[PER]) {
            const Index row = first_hidden + r, column = first_visible + c;
            if (row >= hidden || column >= visible) return;
#pragma unroll
            for (int e = 0; e < PER; e++) x[e] *= share;
            store_row(d_weight + static_cast<long long>(row) * visible + column, x, visible - column, whole);
        });
        return;
    }
    const Index groups = (visible + 31) / 32, group = blockIdx.x - tiles;
    if (group < groups) {
        const Index unit = group * 32 + threadIdx.x % 32;
        const bool exists = unit < visible;
        const double bias = exists ? load<Real>(visible_bias + unit) : 0.0;
        const auto state = [&](const Phase& phase, Index r) {
            const Store* const x = phase.visible + r * phase.visible_pitch + unit;
            const double high = load<Real>(x);
            return phase.visible_parts == 2 ? high + load<Real>(x + phase.visible_part) : high;
        };
        const double difference = mean_difference(data, end, exists, state);
        double energy = difference * bias;
        if (gaussian) {
            energy = -mean_difference(data, end, exists, [&](const Phase& phase, Index r) {
                const double d = state(phase, r) - bias;
                return 0.5 * d * d;
            });
        }
        if (exists && threadIdx.x < 32) {
            store(d_visible + unit, static_cast<Real>(difference));
            own[unit] = energy;
        }
    } else {
        const Index unit = (group - groups) * 32 + threadIdx.x % 32;
        const bool exists = unit < hidden;
        const double difference = mean_difference(data, end, exists, [&](const Phase& phase, Index r) {
            const Store* const mean = phase.hidden + r * phase.hidden_pitch + unit;
            double x = load<Real>(mean);
            if (MEAN_PARTS == 2) x += load<Real>(mean + phase.hidden_part);
            return x;
        });
        if (exists && threadIdx.x < 32) store(d_hidden + unit, static_cast<Real>(difference));
    }
}

#endif

#else
// =====================================================================================================================
// Operands in memory
// =====================================================================================================================

// Matrices (rows, columns), of uint8 or of Out, and the operands (parts, rows, pitch) that become of them.
struct Matrices {
    const void* source[3];
    Store* target[3];
    long long row_stride[3], column_stride[3], pitch[3];  // in elements
    int rows[3], columns[3], parts[3], bytes[3];          // bytes: whether it is of uint8
};

// Grid: (blocks, matrices). It also sets the counter of `grid_sync`, for the kernel that follows.
extern "C" __global__ void __launch_bounds__(256) make_operands(Matrices matrices, uint32* arrived) {
    if (arrived != nullptr && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) *arrived = 0;
    const int m = blockIdx.y, rows = matrices.rows[m], columns = matrices.columns[m];
    const long long pitch = matrices.pitch[m], row_stride = matrices.row_stride[m];
    const long long column_stride = matrices.column_stride[m], chunks = pitch / CHUNK;
    const unsigned char* const bytes = static_cast<const unsigned char*>(matrices.source[m]);
    const Out* const numbers = static_cast<const Out*>(matrices.source[m]);
    const bool aligned = !matrices.bytes[m] && column_stride == 1 && is_aligned<CHUNK>(numbers) &&
                         row_stride * static_cast<int>(sizeof(Out)) % 16 == 0;
    for (long long i = blockIdx.x * 256LL + threadIdx.x; i < rows * chunks; i += gridDim.x * 256LL) {
        const long long row = i / chunks, column = i % chunks * CHUNK, at = row * row_stride + column * column_stride;
        Real x[CHUNK];
        if (aligned && column + CHUNK <= columns) {
            load_vector(numbers + at, x);
        } else {
#pragma unroll
            for (int e = 0; e < CHUNK; e++) {
                x[e] = 0;
                if (column + e >= columns) continue;
                const long long there = at + e * column_stride;
                x[e] = matrices.bytes[m] ? Real(bytes[there]) : load<Real>(numbers + there);
            }
        }
        Store* to = matrices.target[m] + row * pitch + column;
        for (int part = 0; part < matrices.parts[m]; part++, to += rows * pitch) {
            store_vector(to, x);
#pragma unroll
            for (int e = 0; e < CHUNK; e++) x[e] = rest_of(x[e]);
        }
    }
}

// =====================================================================================================================
// Energies: a warp for each row of states, (rows, units) with rows `pitch` apart
// =====================================================================================================================

DEVICE Index row_of_warp() {
    return static_cast<Index>((blockIdx.x * static_cast<uint64>(blockDim.x) + threadIdx.x) / 32);
}

// The sum of term(state, number of the unit) over a row, in all lanes. States may have a second part, so far from the
// first.
template <class Term>
DEVICE double sum_of_row(const Store* row, long long part, Index units, Term term) {
    double total = 0;
#pragma unroll 4
    for (Index i = threadIdx.x % 32; i < units; i += 32) {
        Real x = load<Real>(row + i);
        if (part != 0) x += load<Real>(row + part + i);
        total += term(x, i);
    }
    return warp_sum(total);
}

// energy = the visible units' own, minus the sums of softplus of the tiles, in order.
extern "C" __global__ void __launch_bounds__(256)
energies(const Store* visible, long long pitch, const Out* bias, const double* sums, Out* energy, Index rows,
         Index units, Index tiles, Index gaussian) {
    const Index row = row_of_warp();
    if (row >= rows) return;
    const double own = sum_of_row(visible + row * pitch, 0, units, [&](Real v, Index i) {
        const Real b = load<Real>(bias + i);
        const double d = v - b;
        return gaussian ? 0.5 * d * d : -static_cast<double>(v) * b;
    });
    if (threadIdx.x % 32 != 0) return;
    double softplus = 0;
    for (Index t = 0; t < tiles; t++) softplus += sums[static_cast<long long>(row) * tiles + t];
    store(energy + row, static_cast<Real>(own - softplus));
}

// log_weight = 0, and what the first states add to it for each unit of beta, as `half_steps` has it for the others.
extern "C" __global__ void __launch_bounds__(256)
begin_annealing(const Store* visible, long long pitch, long long part, const Out* bias, const Out* base_bias, double* sums,
                double* log_weight, Index rows, Index units, Index tiles, Index gaussian) {
    const Index row = row_of_warp();
    if (row >= rows) return;
    const double total = sum_of_row(visible + row * pitch, part, units, [&](Real v, Index i) {
        const Real own = load<Real>(bias + i), others = load<Real>(base_bias + i);
        double term = v * (own - others);
        if (gaussian) term += Real(0.5) * (others * others - own * own);
        return term;
    });
    if (threadIdx.x % 32 == 0) log_weight[row] = 0;
    double* const its_sums = sums + static_cast<long long>(row) * tiles;
    for (Index t = threadIdx.x % 32; t < tiles; t += 32) its_sums[t] = t == 0 ? total : 0.0;
}

// The loss of contrastive divergence, by one block: `own` of the visible units, and sums of softplus over the data and
// the end of the chains.
extern "C" __global__ void __launch_bounds__(256)
add_loss(const double* own, const double* before, const double* after, Out* loss, Index units, Index tiles,
         Index rows, Index rows_after) {
    double total = 0, softplus = 0, softplus_after = 0;
    for (Index i = threadIdx.x; i < units; i += 256) total += own[i];
    const long long size = static_cast<long long>(rows) * tiles, size_after = static_cast<long long>(rows_after) * tiles;
    for (long long i = threadIdx.x; i < size; i += 256) softplus += before[i];
    for (long long i = threadIdx.x; i < size_after; i += 256) softplus_after += after[i];
    total = block_sum(total - softplus / rows + softplus_after / rows_after);
    if (threadIdx.x == 0) store(loss, static_cast<Real>(total));
}

// =====================================================================================================================
// General machines
// =====================================================================================================================

constexpr int SWEEPING = 256;  // threads of a chain
constexpr int AHEAD = 4;       // elements of the next unit's weights that a thread loads while this unit is sampled

// A block takes a chain through all sweeps. Thread t keeps the inputs of the units t, t + 256, ..., and of them the sums
// of the next sweep: what each unit adds, in their order, so that no rounding is carried on. The state of unit i is made
// by the thread that has its input; then all add its row of weights. `sums` (2, units) lies in shared memory, or where
// there is no room in it in `workspace`.
extern "C" __global__ void __launch_bounds__(SWEEPING)
sweep(const Store* start, const unsigned char* start_bits, const Store* __restrict__ weight,
      const Store* __restrict__ bias, const bool* __restrict__ clamped, const uint64* key, Store* end,
      unsigned char* end_bits, Real* workspace, Index units, Index sweeps) {
    DYNAMIC_SHARED(Real, shared);
    SHARED(Real, fresh, 2);    // the state of this unit and of the one before, in turns
    SHARED(Real, changes, 2);  // and what they have changed by
    int turn = 0;
    const long long row = blockIdx.x, first = row * units;
    Real* const field = workspace == nullptr ? shared : workspace + 2 * first;
    Real* const next = field + units;
    Stream stream(key);
    const auto given = [&](Index i) {
        return start_bits != nullptr ? Real(start_bits[first + i]) : load<Real>(start + first + i);
    };
    const auto kept = [&](Index i) {
        return end_bits != nullptr ? Real(end_bits[first + i]) : load<Real>(end + first + i);
    };
    const auto keep = [&](Index i, Real x) {
        if (end_bits != nullptr) end_bits[first + i] = x == 1;
        else store(end + first + i, x);
    };
    const int thread = threadIdx.x;
    for (Index j = thread; j < units; j += SWEEPING) {
        Real sum = 0;
        const Store* w = weight + j;
#pragma unroll 4
        for (Index i = 0; i < units; i++, w += units) sum = fma(given(i), load<Real>(w), sum);
        field[j] = sum;
    }
    for (Index s = 0; s < sweeps; s++) {
        stream.offset = key[2] * static_cast<uint64>(units) + (static_cast<uint64>(s) << 40);
        for (Index j = thread; j < units; j += SWEEPING) next[j] = 0;
        Real row_ahead[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            const Index j = thread + a * SWEEPING;
            row_ahead[a] = j < units ? load<Real>(weight + j) : Real(0);
        }
        uint32 word = 0;
        Real shift = 0, x = 0;
        bool fixed = false;
        for (Index i = 0; i < units; i++, turn ^= 1) {
            if (i % SWEEPING == 0 && i + thread < units) {  // what this thread needs when its next unit is there
                uint32 words[4];
                stream.words(first + i + thread, words);
                const int lane = stream.lane(first + i + thread);
                word = lane == 0 ? words[0] : lane == 1 ? words[1] : lane == 2 ? words[2] : words[3];
                shift = load<Real>(bias + i + thread);
                fixed = clamped[i + thread];
                x = s == 0 ? given(i + thread) : kept(i + thread);  // which this thread has kept itself
            }
            if (i % SWEEPING == thread) {
                const Real state = fixed ? x : fires(sigmoid(field[i] + shift), word);
                keep(i, state);
                fresh[turn] = state;
                changes[turn] = state - x;
            }
            __syncthreads();
            const Real state = fresh[turn], change = changes[turn];
            const Store* const own = weight + static_cast<long long>(i) * units;
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const Index j = thread + a * SWEEPING;
                if (j >= units) continue;
                if (change != 0) field[j] = fma(change, row_ahead[a], field[j]);
                next[j] = fma(state, row_ahead[a], next[j]);
                if (i + 1 < units) row_ahead[a] = load<Real>(own + units + j);
            }
            for (Index j = thread + AHEAD * SWEEPING; j < units; j += SWEEPING) {
                const Real w = load<Real>(own + j);
                if (change != 0) field[j] = fma(change, w, field[j]);
                next[j] = fma(state, w, next[j]);
            }
        }
        for (Index j = thread; j < units; j += SWEEPING) field[j] = next[j];
    }
}

#endif
