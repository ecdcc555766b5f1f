// Recurrent nets over packed sequences: all steps of a direction by one kernel, in one of three ways (SCOPE).
//
//   BLOCK   a block takes 4 or 8 sequences through all steps. The state lies in its shared memory, and steps are
//           __syncthreads apart.
//   GRID    blocks share the numbers of the state, and steps are a barrier of the grid apart: a cooperative launch.
//   LAUNCH  the same blocks, one step (of a GRU with the reset before the product half a step) a launch.
//
// A step is a product of the recurrent weight and of what the step before left (`operand`: forward the states, backward
// the gradients of the gates), and the gates of its rows. A warp makes GROUPS x 8 numbers of the state of NT
// tiles of SEQUENCES (8, or 4 so that more blocks share few), all gates of them; PARTS warps share the sums, a part each, and then the numbers among them. So the gates
// need no other exchange, and what runs along with a sequence (its cell, its state, their gradients) stays in the
// registers of one thread.
//
// Sums. The weight is packed in the order in which lanes read it, 16 bytes each: a step along the sum (K_STEP
// elements) of 8 columns, one of `halves`, is 32 vectors. Lane 4 g + m has PER elements of column g, from element PER m
// on; of the operand it reads the same elements of sequence g (tensor cores) or of all (multiply-adds). Which elements a
// mma multiplies at a time makes no difference, so two halves are the 16 rows of its first matrix, sequences the 8
// columns of its second, and the operand's vector gives both of its registers twice over. It leaves lane m of a group
// with sums of columns 2 m and 2 m + 1: of two sequences, or of one twice where there are 4. Multiply-adds leave 4 lanes
// with sums of all sequences, which they add and share in the same way.
//
// The weight (WEIGHTS) stays in registers, stays in shared memory, or comes from global memory at each step. What an
// element adds, and in which order, depends on PARTS alone, which follows from shapes; so all three ways give the same
// bits.
//
// A row of the operand is padded with zeros to whole K_STEPs. In shared memory rows are an odd number of 64 bytes apart,
// so that the 8 lanes that 128 bytes serve at a time find 2 rows in different banks.
//
// With CELL defined there is the kernel of a direction alone, forward if FORWARD is defined too, and without it those
// before and after the steps: a module has no kernel that its launcher would compile in vain.

#include "device.cuh"

#ifndef CELL

// =====================================================================================================================
// Before and after the steps
// =====================================================================================================================

// The row at which each of the steps begins, and the end: `offsets` (steps + 1), from sizes that are made to fit. Also
// zeroes the grid's counter. One block of 1024 threads.
extern "C" __global__ void __launch_bounds__(1024)
find_offsets(const long long* __restrict__ batch_sizes, long long* __restrict__ offsets, uint32* __restrict__ barrier,
      Index steps, Index batch, Index rows) {
    SHARED(long long, ends, 1024);
    const int thread = threadIdx.x;
    const Index each = (steps + 1023) / 1024, first = min(thread * each, steps), last = min(first + each, steps);
    long long sum = 0;
    for (Index t = first; t < last; t++) {
        sum += min(max(batch_sizes[t], static_cast<long long>(0)), static_cast<long long>(batch));
    }
    ends[thread] = sum;
    for (int distance = 1; distance < 1024; distance *= 2) {
        __syncthreads();
        const long long before = thread >= distance ? ends[thread - distance] : 0;
        __syncthreads();
        ends[thread] += before;
    }
    long long end = ends[thread] - sum;
    for (Index t = first; t < last; t++) {
        end += min(max(batch_sizes[t], static_cast<long long>(0)), static_cast<long long>(batch));
        offsets[t + 1] = min(end, static_cast<long long>(rows));
    }
    if (thread == 0) {
        offsets[0] = 0;
        barrier[0] = 0;
    }
}

// The operand of the first step, `padded` elements a row: the states h0 (batch, size), or none, among zeros.
extern "C" __global__ void __launch_bounds__(256)
fill(const Store* __restrict__ h0, Store* __restrict__ exchange, Index count, Index batch, Index size, Index padded) {
    const Index i = Index(blockIdx.x) * 256 + threadIdx.x;
    if (i >= count) return;
    const Index row = i / padded, k = i % padded;
    exchange[i] = h0 != nullptr && row < batch && k < size ? h0[row * size + k] : Store{};
}

// The weight in the order in which lanes read it: (columns, k_steps, halves, 32, PER). The column of a half is unit
// `unit` of gate `gate`; element k of its sum lies at gate * gate_stride + unit * unit_stride + k * k_stride.
extern "C" __global__ void __launch_bounds__(256)
pack_weight(const Store* __restrict__ weight, Index first, Store* __restrict__ packed, Index first_packed, Index count,
            Index size, Index length, Index k_steps, Index halves, Index gates, Index gate_stride, Index unit_stride,
            Index k_stride) {
    constexpr int PER = 16 / sizeof(Store);
    const Index i = Index(blockIdx.x) * 256 + threadIdx.x;
    if (i >= count) return;
    const Index e = i % PER, lane = i / PER % 32, half = i / (32 * PER) % halves, rest = i / (32 * PER * halves);
    const Index k_step = rest % k_steps, column = rest / k_steps;
    const Index unit = (column * (halves / gates) + half / gates) * 8 + lane / 4;
    const Index k = (k_step * 4 + lane % 4) * PER + e;
    const Index at = first + half % gates * gate_stride + unit * unit_stride + k * k_stride;
    packed[first_packed + i] = unit < size && k < length ? weight[at] : Store{};
}

// The state that each row began with; block t takes the rows of step t.
extern "C" __global__ void __launch_bounds__(256)
gather_before(const Store* __restrict__ h, const Store* __restrict__ h0, const long long* __restrict__ offsets,
              Store* __restrict__ before, Index steps, Index size, Index reverse) {
    const Index t = blockIdx.x, start = static_cast<Index>(offsets[t]), earlier = reverse ? t + 1 : t - 1;
    const Index count = (static_cast<Index>(offsets[t + 1]) - start) * size;
    Index earlier_start = 0, earlier_count = 0;
    if (earlier >= 0 && earlier < steps) {
        earlier_start = static_cast<Index>(offsets[earlier]) * size;
        earlier_count = static_cast<Index>(offsets[earlier + 1]) * size - earlier_start;
    }
    for (Index i = threadIdx.x; i < count; i += 256) {
        before[start * size + i] = i < earlier_count ? h[earlier_start + i] : h0[i];
    }
}

// d_bias_n = sum over the sequences, in order.
extern "C" __global__ void __launch_bounds__(128)
add_sequences(const Real* __restrict__ each, Index first, Store* __restrict__ sum, Index batch, Index size) {
    const Index u = Index(blockIdx.x) * 128 + threadIdx.x;
    if (u >= size) return;
    Real total = 0;
#pragma unroll 4
    for (Index b = 0; b < batch; b++) total += each[first + b * size + u];
    store(sum + u, total);
}

#else

enum Cells { RNN, LSTM, GRU_AFTER, GRU_BEFORE };  // a GRU's reset after the product or before it
enum Scopes { BLOCK, GRID, LAUNCH };
enum Places { IN_REGISTERS, IN_SHARED, IN_GLOBAL };

// =====================================================================================================================
// The product of a step
// =====================================================================================================================

constexpr bool ON_TENSOR_CORES = sizeof(Store) == 2;
constexpr int PER = 16 / sizeof(Store), K_STEP = 4 * PER;
constexpr int PER_LANE = SEQUENCES / 4;  // sequences of a tile whose sums a lane has
constexpr int GATES = CELL == RNN ? 1 : CELL == LSTM ? 4 : 3;

template <bool HALF>
struct Words {
    typedef Store type;
    static constexpr int COUNT = PER;
};
template <>
struct Words<true> {
    typedef uint32 type;
    static constexpr int COUNT = 4;
};
typedef Words<ON_TENSOR_CORES>::type Word;
constexpr int WORDS = Words<ON_TENSOR_CORES>::COUNT;

DEVICE void load_words(const Store* p, Word (&x)[WORDS]) {
    expect_aligned(p, 16);
    const Pack<Word, WORDS> words = *reinterpret_cast<const Pack<Word, WORDS>*>(p);
#pragma unroll
    for (int i = 0; i < WORDS; i++) x[i] = words.element[i];
}

// A thread's place: its warp is `part` of the PARTS of a column of warps, and has GROUPS x 8 numbers from `column` on.
struct Thread {
    int lane, group, member, part, column_in_block;
    Index column, first_row;

    DEVICE Thread(Index columns_per_block) {
        lane = threadIdx.x % 32, group = lane / 4, member = lane % 4;
        const int warp = threadIdx.x / 32;
        part = warp % PARTS, column_in_block = warp / PARTS;
        column = Index(blockIdx.y) * columns_per_block + column_in_block;
        first_row = Index(blockIdx.x) * (SEQUENCES * NT);
    }
};

// The sums of a warp, of HALVES columns of 8 for NT tiles of sequences.
template <int HALVES, bool TENSOR_CORES>
struct Sums {  // by multiply-adds
    Real sum[NT][HALVES][SEQUENCES];

    DEVICE Sums() {
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int h = 0; h < HALVES; h++) {
#pragma unroll
                for (int r = 0; r < SEQUENCES; r++) sum[n][h][r] = Real(0);
            }
        }
    }

    static DEVICE const Store* mine(const Store* operand, Index stride, const Thread& thread) {
        return operand + thread.member * PER;
    }

    DEVICE void add(const Word (&weight)[HALVES][WORDS], const Store* operand, Index stride) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int r = 0; r < SEQUENCES; r++) {
                Word x[WORDS];
                load_words(operand + (SEQUENCES * n + r) * stride, x);
#pragma unroll
                for (int h = 0; h < HALVES; h++) {
#pragma unroll
                    for (int k = 0; k < WORDS; k++) sum[n][h][r] = fma(Real(weight[h][k]), Real(x[k]), sum[n][h][r]);
                }
            }
        }
    }

    // Adds what the 4 members of a group have; a member keeps PER_LANE of the sequences.
    DEVICE void finish(Real (&total)[NT][HALVES][PER_LANE], const Thread& thread) const {
        constexpr int HALF = 2 * PER_LANE;
        const bool high = (thread.member & 2) != 0, odd = (thread.member & 1) != 0;
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int h = 0; h < HALVES; h++) {
                const Real(&x)[SEQUENCES] = sum[n][h];
                Real y[HALF];
#pragma unroll
                for (int r = 0; r < HALF; r++) {
                    y[r] = (high ? x[HALF + r] : x[r]) + shuffle_xor(FULL_WARP, high ? x[r] : x[HALF + r], 2);
                }
#pragma unroll
                for (int r = 0; r < PER_LANE; r++) {
                    total[n][h][r] = (odd ? y[PER_LANE + r] : y[r]) +
                                     shuffle_xor(FULL_WARP, odd ? y[r] : y[PER_LANE + r], 1);
                }
            }
        }
    }
};

template <int HALVES>
struct Sums<HALVES, true> {
    static_assert(HALVES % 2 == 0, "two halves make the rows of a mma");
    float sum[NT][HALVES / 2][4];

    DEVICE Sums() {
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int h = 0; h < HALVES / 2; h++) {
#pragma unroll
                for (int e = 0; e < 4; e++) sum[n][h][e] = 0.0f;
            }
        }
    }

    static DEVICE const Store* mine(const Store* operand, Index stride, const Thread& thread) {
        return operand + thread.group * SEQUENCES / 8 * stride + thread.member * PER;
    }

    DEVICE void add(const Word (&weight)[HALVES][WORDS], const Store* operand, Index stride) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            Word x[WORDS];
            load_words(operand + SEQUENCES * n * stride, x);
#pragma unroll
            for (int h = 0; h < HALVES / 2; h++) {
                const Word(&top)[WORDS] = weight[2 * h], (&bottom)[WORDS] = weight[2 * h + 1];
#pragma unroll
                for (int k = 0; k < 4; k += 2) {
                    const uint32 a[4] = {top[k], bottom[k], top[k + 1], bottom[k + 1]}, b[2] = {x[k], x[k + 1]};
                    mma_m16n8k16(static_cast<Store*>(nullptr), sum[n][h], a, b);
                }
            }
        }
    }

    DEVICE void finish(Real (&total)[NT][HALVES][PER_LANE], const Thread&) const {
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int h = 0; h < HALVES; h++) {
#pragma unroll
                for (int r = 0; r < PER_LANE; r++) total[n][h][r] = sum[n][h / 2][h % 2 * 2 + r];
            }
        }
    }
};

// A warp's share of a packed weight.
template <int HALVES>
struct Weight {
    static constexpr int VECTORS = HALVES * 32 * PER;  // elements of a step along the sum
    Word kept[WEIGHTS == IN_REGISTERS ? KEPT : 1][HALVES][WORDS];
    const Store* mine;
    int first, count;

    // `room` is shared memory for the columns of the block. Every thread must come; a barrier must follow.
    DEVICE Weight(const Store* packed, Store* room, int k_steps, Index columns, int columns_per_block,
                  const Thread& thread) {
        const int each = (k_steps + PARTS - 1) / PARTS;
        first = min(thread.part * each, k_steps), count = min(each, k_steps - first);
        if (thread.column >= columns) count = 0;
        const Index block_column = Index(blockIdx.y) * columns_per_block;
        const Store* all = packed + block_column * k_steps * VECTORS;
        if constexpr (WEIGHTS == IN_SHARED) {
            const int exist = static_cast<int>(min(Index(columns_per_block), columns - block_column));
            for (int i = threadIdx.x * PER; i < exist * k_steps * VECTORS; i += blockDim.x * PER) {
                copy_async<16>(room + i, all + i);
            }
            copy_commit();
            copy_wait<0>();
            all = room;
        }
        mine = all + (static_cast<Index>(thread.column_in_block) * k_steps + first) * VECTORS + thread.lane * PER;
        if constexpr (WEIGHTS == IN_REGISTERS) {
#pragma unroll
            for (int k = 0; k < KEPT; k++) {
                if (k < count) load(k, kept[k]);
            }
        }
    }

    DEVICE void load(int k, Word (&x)[HALVES][WORDS]) const {
#pragma unroll
        for (int h = 0; h < HALVES; h++) load_words(mine + Index(k) * VECTORS + h * 32 * PER, x[h]);
    }

    DEVICE void multiply(const Store* operand, Index stride, Real (&total)[NT][HALVES][PER_LANE],
                         const Thread& thread) const {
        Sums<HALVES, ON_TENSOR_CORES> sums;
        const Store* x = sums.mine(operand, stride, thread) + first * K_STEP;
        if constexpr (WEIGHTS == IN_REGISTERS) {
#pragma unroll
            for (int k = 0; k < KEPT; k++) {
                if (k < count) sums.add(kept[k], x + k * K_STEP, stride);
            }
        } else {
#pragma unroll 2
            for (int k = 0; k < count; k++) {
                Word weight[HALVES][WORDS];
                load(k, weight);
                sums.add(weight, x + k * K_STEP, stride);
            }
        }
        sums.finish(total, thread);
    }
};

// The numbers of the state that a thread has: N of those that a lane has sums of, or what falls to its part.
template <int GROUPS>
struct Numbers {
    static constexpr int OF_GROUP = PER_LANE * NT, ALL = OF_GROUP * GROUPS, N = (ALL + PARTS - 1) / PARTS;

    static DEVICE int place(int e, const Thread& thread) { return e * PARTS + thread.part; }
    static DEVICE Index row(int e, const Thread& thread) {
        const int at = place(e, thread);
        return thread.first_row + at / PER_LANE % NT * SEQUENCES + PER_LANE * thread.member + at % PER_LANE;
    }
    static DEVICE Index unit(int e, const Thread& thread) {
        return (thread.column * GROUPS + place(e, thread) / OF_GROUP) * 8 + thread.group;
    }
    static DEVICE bool exists(int e, Index batch, Index size, const Thread& thread) {
        return place(e, thread) < ALL && row(e, thread) < batch && unit(e, thread) < size;
    }

    // The sums of their G gates, by way of `partial` where warps have parts of them.
    template <int G>
    static DEVICE void sums(const Real (&total)[NT][GROUPS * G][PER_LANE], Real* partial, Real (&sum)[N][G],
                            const Thread& thread) {
        if constexpr (PARTS == 1) {
#pragma unroll
            for (int e = 0; e < N; e++) {
#pragma unroll
                for (int g = 0; g < G; g++) {
                    sum[e][g] = total[e / PER_LANE % NT][e / OF_GROUP * G + g][e % PER_LANE];
                }
            }
        } else {
            constexpr int OF_WARP = GROUPS * G * OF_GROUP * 32;
            Real* const of_column = partial + thread.column_in_block * PARTS * OF_WARP + thread.lane;
#pragma unroll
            for (int h = 0; h < GROUPS * G; h++) {
#pragma unroll
                for (int n = 0; n < NT; n++) {
#pragma unroll
                    for (int r = 0; r < PER_LANE; r++) {
                        of_column[thread.part * OF_WARP + ((h * NT + n) * PER_LANE + r) * 32] = total[n][h][r];
                    }
                }
            }
            __syncthreads();
#pragma unroll
            for (int e = 0; e < N; e++) {
                const int at = place(e, thread), group = at / OF_GROUP, rest = at % OF_GROUP;
                if (at >= ALL) continue;
#pragma unroll
                for (int g = 0; g < G; g++) {
                    const Real* x = of_column + ((group * G + g) * OF_GROUP + rest) * 32;
                    sum[e][g] = x[0];
#pragma unroll
                    for (int p = 1; p < PARTS; p++) sum[e][g] += x[p * OF_WARP];
                }
            }
        }
    }
};

// Elements from a row of an operand to the next in shared memory.
DEVICE Index shared_stride(Index padded) { return padded / K_STEP % 2 == 0 ? padded + K_STEP : padded; }

// An operand's two states, or its two halves of a step: where a thread reads and writes them.
struct Operand {
    Store* base;
    Index stride;

    // In shared memory if the block has all of it: `room` for the block's rows, filled with what `global` has.
    DEVICE Operand(Store* global, Store*& room, Index padded, const Thread& thread) {
        base = global + thread.first_row * padded, stride = padded;
        if constexpr (SCOPE == BLOCK) {
            const Index wide = shared_stride(padded), count = SEQUENCES * NT * padded;
            for (Index i = threadIdx.x * PER; i < count; i += blockDim.x * PER) {
                copy_async<16>(room + i / padded * wide + i % padded, base + i);
            }
            copy_commit();
            copy_wait<0>();
            base = room, stride = wide;
            room += SEQUENCES * NT * wide;
        }
    }

    DEVICE void write(Index row, Index k, Real x, const Thread& thread) const {
        store(base + (row - thread.first_row) * stride + k, x);
    }
};

DEVICE void wait_for_all(uint32* barrier) {
    if constexpr (SCOPE == GRID) grid_sync(barrier);
    if constexpr (SCOPE == BLOCK) __syncthreads();
}

// The rows of a step: where they begin, and how many they are; none of a step that there is not. They are loaded two
// steps before they are needed, since a load behind a barrier of the grid goes to the L2 cache.
struct Rows {
    Index start, count;
    DEVICE Rows(const long long* offsets, Index step, Index steps, bool from_the_end) {
        start = count = 0;
        if (step < 0 || step >= steps) return;
        const Index t = from_the_end ? steps - 1 - step : step;
        start = static_cast<Index>(offsets[t]), count = static_cast<Index>(offsets[t + 1]) - start;
    }
};

// Copies the numbers that were read ahead, where a step is shorter than a load.
template <int N, int G>
DEVICE void take_over(const Real (&ahead)[N][G], Real (&given)[N][G]) {
#pragma unroll
    for (int e = 0; e < N; e++) {
#pragma unroll
        for (int g = 0; g < G; g++) given[e][g] = ahead[e][g];
    }
}

DEVICE Real sigmoid(Real x) { return Real(1) / (Real(1) + exp(-x)); }

#ifdef FORWARD

// =====================================================================================================================
// Forward
// =====================================================================================================================

// Steps `begin` to `end`, of a LAUNCH one or one `half` of one. `states` (2, batch, size) keeps between launches what
// registers keep otherwise: the states, and the cells or a GRU's gates z.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
forward(const Store* __restrict__ x, const Store* __restrict__ h0, const Store* __restrict__ c0,
        const Store* __restrict__ bias_n, const Store* __restrict__ packed, const long long* __restrict__ offsets,
        Store* exchange, Real* __restrict__ states, uint32* barrier, Store* __restrict__ h, Store* __restrict__ h_n,
        Store* __restrict__ c_n, Store* __restrict__ c, Store* __restrict__ gates, Store* __restrict__ reset,
        Index batch, Index size, Index padded_batch, Index padded, Index columns, Index columns_per_block, Index steps,
        Index begin, Index end, Index half, Index reverse, Index relu) {
    // Two groups of 8 numbers where one has no whole number of mma's rows, or too few sums for what a lane reads.
    constexpr int GROUPS = CELL == LSTM || (CELL == GRU_AFTER && !ON_TENSOR_CORES) ? 1 : 2;
    constexpr int G = CELL == GRU_BEFORE ? 2 : GATES;  // of the product, of which the candidate has one of its own
    typedef Numbers<GROUPS> Mine;
    constexpr int N = Mine::N;
    DYNAMIC_SHARED(Store, room);
    const Thread thread(columns_per_block);
    const int k_steps = static_cast<int>(padded / K_STEP);

    typedef Weight<GROUPS * G> Main;
    typedef Weight<GROUPS> Candidate;
    Store* left = room;
    const Main weight(packed, left, k_steps, columns, columns_per_block, thread);
    if (WEIGHTS == IN_SHARED) left += columns_per_block * k_steps * Main::VECTORS;
    const Candidate candidate_weight(
        packed + columns * k_steps * Main::VECTORS, left, CELL == GRU_BEFORE ? k_steps : 0, columns, columns_per_block,
        thread);
    if (WEIGHTS == IN_SHARED && CELL == GRU_BEFORE) left += columns_per_block * k_steps * Candidate::VECTORS;
    const Operand even(exchange, left, padded, thread), odd(exchange + padded_batch * padded, left, padded, thread);
    Real* const partial = reinterpret_cast<Real*>(left);

    Index row[N], unit[N];
    bool exists[N];
    Real state[N], cell[N], bias[N];
#pragma unroll
    for (int e = 0; e < N; e++) {
        row[e] = Mine::row(e, thread), unit[e] = Mine::unit(e, thread);
        exists[e] = Mine::exists(e, batch, size, thread);
        state[e] = cell[e] = bias[e] = 0;
        if (!exists[e]) continue;
        const Index at = row[e] * size + unit[e];
        if (SCOPE == LAUNCH && (begin > 0 || half > 0)) {
            state[e] = states[at], cell[e] = states[batch * size + at];
        } else {
            state[e] = load<Real>(h0 + at);
            if (CELL == LSTM) cell[e] = load<Real>(c0 + at);
        }
        if (CELL == GRU_AFTER || CELL == GRU_BEFORE) bias[e] = load<Real>(bias_n + unit[e]);
    }
    Real given[N][GATES], ahead[N][GATES];
    const auto read = [&](const Rows& of, Real(&to)[N][GATES]) {
#pragma unroll
        for (int e = 0; e < N; e++) {
            if (!exists[e] || row[e] >= of.count) continue;
#pragma unroll
            for (int g = 0; g < GATES; g++) {
                to[e][g] = load<Real>(x + ((of.start + row[e]) * GATES + g) * size + unit[e]);
            }
        }
    };
    Rows rows(offsets, begin, steps, reverse), next(offsets, begin + 1, steps, reverse);
    read(rows, given);
    if (SCOPE == BLOCK || WEIGHTS == IN_SHARED) __syncthreads();

    for (Index step = begin; step < end; step++) {
        const Rows later(offsets, step + 2, SCOPE == LAUNCH ? 0 : steps, reverse);
        if (SCOPE == BLOCK) read(next, ahead);
        bool active[N];
        Real value[N][GATES], other[N];  // the gates, and what a GRU's reset gate makes
#pragma unroll
        for (int e = 0; e < N; e++) {
            active[e] = exists[e] && row[e] < rows.count;
            other[e] = 0;
#pragma unroll
            for (int g = 0; g < GATES; g++) value[e][g] = 0;
        }
        // A GRU with the reset before its product has one buffer of states and one of those reset.
        const Operand from = CELL == GRU_BEFORE || step % 2 == 0 ? even : odd;
        const Operand to = CELL == GRU_BEFORE || step % 2 == 1 ? even : odd;
        if (CELL != GRU_BEFORE || SCOPE != LAUNCH || half == 0) {
            Real total[NT][GROUPS * G][PER_LANE], sum[N][G];
            weight.multiply(from.base, from.stride, total, thread);
            Mine::template sums<G>(total, partial, sum, thread);
#pragma unroll
            for (int e = 0; e < N; e++) {
                if (active[e]) {
                    if constexpr (CELL == RNN) {
                        const Real a = given[e][0] + sum[e][0];
                        state[e] = relu ? (a <= 0 ? Real(0) : a) : tanh(a);  // NaN stays
                    } else if constexpr (CELL == LSTM) {
                        value[e][0] = sigmoid(given[e][0] + sum[e][0]), value[e][1] = sigmoid(given[e][1] + sum[e][1]);
                        value[e][2] = tanh(given[e][2] + sum[e][2]), value[e][3] = sigmoid(given[e][3] + sum[e][3]);
                        cell[e] = value[e][1] * cell[e] + value[e][0] * value[e][2];
                        state[e] = value[e][3] * tanh(cell[e]);
                    } else {
                        value[e][0] = sigmoid(given[e][0] + sum[e][0]), value[e][1] = sigmoid(given[e][1] + sum[e][1]);
                        if constexpr (CELL == GRU_AFTER) {
                            other[e] = sum[e][2] + bias[e];
                            value[e][2] = tanh(given[e][2] + value[e][0] * other[e]);
                            state[e] = (Real(1) - value[e][1]) * value[e][2] + value[e][1] * state[e];
                        } else {
                            other[e] = value[e][0] * state[e];
                            cell[e] = value[e][1];
                        }
                    }
                }
                if (exists[e]) {
                    if constexpr (CELL == GRU_BEFORE) odd.write(row[e], unit[e], other[e], thread);
                    else to.write(row[e], unit[e], state[e], thread);
                }
            }
        }
        if constexpr (CELL == GRU_BEFORE) {
            wait_for_all(barrier);
            if (SCOPE != LAUNCH || half == 1) {
                Real total[NT][GROUPS][PER_LANE], sum[N][1];
                candidate_weight.multiply(odd.base, odd.stride, total, thread);
                Mine::template sums<1>(total, partial, sum, thread);
#pragma unroll
                for (int e = 0; e < N; e++) {
                    if (active[e]) {
                        value[e][2] = tanh(given[e][2] + sum[e][0] + bias[e]);
                        state[e] = (Real(1) - cell[e]) * value[e][2] + cell[e] * state[e];
                    }
                    if (exists[e]) even.write(row[e], unit[e], state[e], thread);
                }
            }
        }
        if (SCOPE == GRID) read(next, given);
        wait_for_all(barrier);
        if (SCOPE == BLOCK) take_over(ahead, given);
        // Results are stored behind the barrier, which need not wait for them then.
#pragma unroll
        for (int e = 0; e < N; e++) {
            if (!active[e]) continue;
            const Index at = (rows.start + row[e]) * size + unit[e];
            const Index gate_at = (rows.start + row[e]) * GATES * size + unit[e];
            const bool first_half = CELL != GRU_BEFORE || SCOPE != LAUNCH || half == 0;
            const bool second_half = CELL != GRU_BEFORE || SCOPE != LAUNCH || half == 1;
            if (second_half) store(h + at, state[e]);
            if (CELL == LSTM) store(c + at, cell[e]);
            if (CELL >= GRU_AFTER && first_half) store(reset + at, other[e]);
            if (CELL != RNN) {
#pragma unroll
                for (int g = 0; g < GATES; g++) {
                    if (CELL == GRU_BEFORE && !(g < 2 ? first_half : second_half)) continue;
                    store(gates + gate_at + g * size, value[e][g]);
                }
            }
        }
        rows = next, next = later;
    }

#pragma unroll
    for (int e = 0; e < N; e++) {
        if (!exists[e]) continue;
        const Index at = row[e] * size + unit[e];
        store(h_n + at, state[e]);
        if (CELL == LSTM) store(c_n + at, cell[e]);
        if (SCOPE == LAUNCH) states[at] = state[e], states[batch * size + at] = cell[e];
    }
}

#else

// =====================================================================================================================
// Backward
// =====================================================================================================================

// Steps `begin` to `end` of the way back, which has one more than the way forth: in it the gradient of the first states
// alone is left to be made. `states` (3, batch, size) has between launches what registers have otherwise: the gradients
// of the states, those of the cells or a GRU's part of them that goes around the product, and, always, the sum of those
// of a GRU's bias.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
backward(const Store* __restrict__ g_h, const Store* __restrict__ g_hn, const Store* __restrict__ g_cn,
         const Store* __restrict__ c0, const Store* __restrict__ h, const Store* __restrict__ c,
         const Store* __restrict__ gates, const Store* __restrict__ reset, const Store* __restrict__ before,
         const Store* __restrict__ packed, const long long* __restrict__ offsets, Store* exchange,
         Real* __restrict__ states, uint32* barrier, Store* __restrict__ d_x, Store* __restrict__ d_h0,
         Store* __restrict__ d_c0, Store* __restrict__ factors, Index batch, Index size, Index padded_batch,
         Index padded, Index padded_candidate, Index columns, Index columns_per_block, Index steps, Index begin,
         Index end, Index half, Index reverse, Index relu) {
    constexpr int GROUPS = 2;
    typedef Numbers<GROUPS> Mine;
    constexpr int N = Mine::N;
    constexpr bool IS_GRU = CELL == GRU_AFTER || CELL == GRU_BEFORE;
    constexpr int GIVEN = CELL == RNN ? 2 : CELL == LSTM ? 7 : 6;
    DYNAMIC_SHARED(Store, room);
    const Thread thread(columns_per_block);

    // Of a GRU with the reset before its product: the weight of the gates r and z here, the candidate's below.
    typedef Weight<GROUPS> Both;
    const int k_steps = static_cast<int>(padded / K_STEP), candidate_steps = static_cast<int>(padded_candidate / K_STEP);
    Store* left = room;
    const Both weight(packed, left, k_steps, columns, columns_per_block, thread);
    if (WEIGHTS == IN_SHARED) left += columns_per_block * k_steps * Both::VECTORS;
    const Both candidate_weight(packed + columns * k_steps * Both::VECTORS, left, candidate_steps, columns,
                                columns_per_block, thread);
    if (WEIGHTS == IN_SHARED) left += columns_per_block * candidate_steps * Both::VECTORS;
    const Operand even(exchange, left, padded, thread);
    const Operand odd(exchange + padded_batch * padded, left, CELL == GRU_BEFORE ? padded_candidate : padded, thread);
    Real* const partial = reinterpret_cast<Real*>(left);

    Index row[N], unit[N];
    bool exists[N];
    Real d_state[N], d_cell[N], d_bias[N];
#pragma unroll
    for (int e = 0; e < N; e++) {
        row[e] = Mine::row(e, thread), unit[e] = Mine::unit(e, thread);
        exists[e] = Mine::exists(e, batch, size, thread);
        d_state[e] = d_cell[e] = d_bias[e] = 0;
        if (!exists[e]) continue;
        const Index at = row[e] * size + unit[e];
        if (SCOPE == LAUNCH && (begin > 0 || half > 0)) {
            d_state[e] = states[at], d_cell[e] = states[batch * size + at];
            if (IS_GRU) d_bias[e] = states[2 * batch * size + at];
        } else {
            d_state[e] = load<Real>(g_hn + at);
            if (CELL == LSTM) d_cell[e] = load<Real>(g_cn + at);
        }
    }
    // The gradient of h first; then of an LSTM the gates, its cell and the one before, of a GRU the gates, `reset` and
    // the state before, of others h.
    Real given[N][GIVEN], ahead[N][GIVEN];
    const auto read = [&](const Rows& of, const Rows& earlier, Real(&to)[N][GIVEN]) {
#pragma unroll
        for (int e = 0; e < N; e++) {
            if (!exists[e] || row[e] >= of.count) continue;
            const Index at = (of.start + row[e]) * size + unit[e];
            to[e][0] = load<Real>(g_h + at);
            if constexpr (CELL == RNN) to[e][1] = load<Real>(h + at);
            if constexpr (CELL != RNN) {
#pragma unroll
                for (int g = 0; g < GATES; g++) {
                    to[e][1 + g] = load<Real>(gates + ((of.start + row[e]) * GATES + g) * size + unit[e]);
                }
            }
            if constexpr (CELL == LSTM) {
                const bool is_first = row[e] >= earlier.count;  // of the steps that the sequence has
                to[e][5] = load<Real>(c + at);
                to[e][6] = load<Real>((is_first ? c0 + row[e] * size : c + (earlier.start + row[e]) * size) + unit[e]);
            }
            if constexpr (IS_GRU) {
                to[e][4] = load<Real>(reset + at);
                to[e][5] = load<Real>(before + at);
            }
        }
    };
    Rows done(offsets, begin - 1, steps, !reverse), rows(offsets, begin, steps, !reverse);
    Rows next(offsets, begin + 1, steps, !reverse), later(offsets, begin + 2, steps, !reverse);
    read(rows, next, given);
    if (SCOPE == BLOCK || WEIGHTS == IN_SHARED) __syncthreads();

    for (Index step = begin; step < end; step++) {
        const Rows latest(offsets, step + 3, SCOPE == LAUNCH ? 0 : steps, !reverse);
        if (SCOPE == BLOCK) read(next, later, ahead);
        const Operand from = CELL == GRU_BEFORE || step % 2 == 0 ? even : odd;
        const Operand to = CELL == GRU_BEFORE || step % 2 == 1 ? even : odd;
        if (step > 0 && (SCOPE != LAUNCH || half == 0)) {
            Real total[NT][GROUPS][PER_LANE], sum[N][1];
            weight.multiply(from.base, from.stride, total, thread);
            Mine::template sums<1>(total, partial, sum, thread);
#pragma unroll
            for (int e = 0; e < N; e++) {
                if (exists[e] && row[e] < done.count) d_state[e] = IS_GRU ? d_cell[e] + sum[e][0] : sum[e][0];
            }
        }
        if (step == steps) break;
        bool active[N];
        Real value[N][GATES], factor[N];  // gradients of the gates' arguments, and of a GRU's product
#pragma unroll
        for (int e = 0; e < N; e++) {
            active[e] = exists[e] && row[e] < rows.count;
            factor[e] = 0;
#pragma unroll
            for (int g = 0; g < GATES; g++) value[e][g] = 0;
            if (!active[e] || (SCOPE == LAUNCH && half == 1)) continue;
            const Real dh = given[e][0] + d_state[e];
            if constexpr (CELL == RNN) {
                const Real y = given[e][1];
                value[e][0] = dh * (relu ? (y <= 0 ? Real(0) : Real(1)) : Real(1) - y * y);
            } else if constexpr (CELL == LSTM) {
                const Real i = given[e][1], f = given[e][2], g = given[e][3], o = given[e][4];
                const Real tanh_c = tanh(given[e][5]);
                const Real dc = d_cell[e] + dh * o * (Real(1) - tanh_c * tanh_c);
                value[e][0] = dc * g * (i * (Real(1) - i));
                value[e][1] = dc * given[e][6] * (f * (Real(1) - f));
                value[e][2] = dc * i * (Real(1) - g * g);
                value[e][3] = dh * tanh_c * (o * (Real(1) - o));
                d_cell[e] = dc * f;
            } else {
                const Real r = given[e][1], z = given[e][2], n = given[e][3];
                value[e][2] = dh * (Real(1) - z) * (Real(1) - n * n);
                d_cell[e] = dh * z;
                if constexpr (CELL == GRU_AFTER) value[e][1] = d_cell[e] * (given[e][5] - n) * (Real(1) - z);
                factor[e] = CELL == GRU_AFTER ? value[e][2] * r : value[e][2];
                if constexpr (CELL == GRU_AFTER) value[e][0] = value[e][2] * given[e][4] * (r * (Real(1) - r));
                d_bias[e] += factor[e];
            }
            if constexpr (CELL == GRU_BEFORE) {
                odd.write(row[e], unit[e], factor[e], thread);  // `even` is being read
            } else {
#pragma unroll
                for (int g = 0; g < GATES; g++) {
                    to.write(row[e], g * size + unit[e], CELL == GRU_AFTER && g == 2 ? factor[e] : value[e][g], thread);
                }
            }
        }
        if constexpr (CELL == GRU_BEFORE) {
            wait_for_all(barrier);
            if (SCOPE != LAUNCH || half == 1) {
                Real total[NT][GROUPS][PER_LANE], sum[N][1];
                candidate_weight.multiply(odd.base, odd.stride, total, thread);
                Mine::template sums<1>(total, partial, sum, thread);
#pragma unroll
                for (int e = 0; e < N; e++) {
                    if (!active[e]) continue;
                    const Real r = given[e][1], z = given[e][2], n = given[e][3];
                    value[e][0] = sum[e][0] * given[e][5] * (r * (Real(1) - r));
                    value[e][1] = d_cell[e] * (given[e][5] - n) * (Real(1) - z);
                    d_cell[e] += sum[e][0] * r;
                    even.write(row[e], unit[e], value[e][0], thread);
                    even.write(row[e], size + unit[e], value[e][1], thread);
                }
            }
        }
        if (SCOPE == GRID) read(next, later, given);
        wait_for_all(barrier);
        if (SCOPE == BLOCK) take_over(ahead, given);
#pragma unroll
        for (int e = 0; e < N; e++) {
            if (!active[e]) continue;
            const bool first_half = CELL != GRU_BEFORE || SCOPE != LAUNCH || half == 0;
            const bool second_half = CELL != GRU_BEFORE || SCOPE != LAUNCH || half == 1;
#pragma unroll
            for (int g = 0; g < GATES; g++) {
                if (CELL == GRU_BEFORE && !(g == 2 ? first_half : second_half)) continue;
                store(d_x + ((rows.start + row[e]) * GATES + g) * size + unit[e], value[e][g]);
            }
            if (IS_GRU && first_half) store(factors + (rows.start + row[e]) * size + unit[e], factor[e]);
        }
        done = rows, rows = next, next = later, later = latest;
    }

#pragma unroll
    for (int e = 0; e < N; e++) {
        if (!exists[e]) continue;
        const Index at = row[e] * size + unit[e];
        store(d_h0 + at, d_state[e]);
        if (CELL == LSTM) store(d_c0 + at, d_cell[e]);
        if (SCOPE == LAUNCH) states[at] = d_state[e], states[batch * size + at] = d_cell[e];
        if (IS_GRU) states[2 * batch * size + at] = d_bias[e];
    }
}

#endif
#endif
