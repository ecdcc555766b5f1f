// What kernels over rows and columns share: groups of elements that are read at once, teams of threads that reduce a
// row, threads that share a column, and sums of exponentials in one pass. `teams.py` says how many threads take part.

#pragma once

#include "device.cuh"

constexpr int WIDTH = 16 / sizeof(Store);  // elements of a load of 128 bits
constexpr int BLOCK = 256;                 // threads of a block

DEVICE Real infinity() { return Real(bits_float(0x7F800000u)); }
DEVICE Real not_a_number() { return Real(bits_float(0x7FC00000u)); }

// --------------------------------------------------------------------------------------------------------------------
// Groups: V neighbouring elements, of which `count` exist
// --------------------------------------------------------------------------------------------------------------------
// A whole group goes in one access of 128 bits where its address allows that. Which thread takes which elements does not
// depend on the address, so neither do the bits of a sum.

template <int V, class T>
DEVICE bool in_one(const T* p, Index count) {
    return V * sizeof(T) == 16 && count >= V && (reinterpret_cast<uint64>(p) & 15) == 0;
}

// Elements that do not exist are `absent`.
template <int V, class T, class R>
DEVICE void load_group(const T* p, Index count, R absent, R* x) {
    if (in_one<V>(p, count)) {
        R loaded[V];
        load_vector(p, loaded);
#pragma unroll
        for (int j = 0; j < V; j++) x[j] = loaded[j];
    } else {
#pragma unroll
        for (int j = 0; j < V; j++) x[j] = j < count ? load<R>(p + j) : absent;
    }
}

template <int V, class T, class R>
DEVICE void store_group(T* p, Index count, const R (&x)[V]) {
    if constexpr (V * sizeof(T) == 16) {
        if (in_one<V>(p, count)) {
            store_vector(p, x);
            return;
        }
    }
#pragma unroll
    for (int j = 0; j < V; j++) {
        if (j < count) store(p + j, x[j]);
    }
}

// --------------------------------------------------------------------------------------------------------------------
// Sums of exponentials
// --------------------------------------------------------------------------------------------------------------------

// total e^top is the sum of e^x over the x that were added; top is the largest of them. A NaN is in the total alone.
struct Exponentials {
    Real top;
    double total;
};

DEVICE Exponentials no_exponentials() { return {-infinity(), 0.0}; }

// x - top; 0 where they are equal, be they infinite.
DEVICE Real difference(Real x, Real top) { return x != top ? x - top : Real(0); }

// The sum so far is scaled once for N terms, not for each (Milakov & Gimelshein, arXiv:1805.02867).
template <int N>
DEVICE void add_exponentials(Exponentials& sum, const Real (&x)[N]) {
    Real top = sum.top, terms = 0;
#pragma unroll
    for (int i = 0; i < N; i++) top = fmax(top, x[i]);
#pragma unroll
    for (int i = 0; i < N; i++) terms += exp(difference(x[i], top));
    sum.total = sum.total * exp(difference(sum.top, top)) + terms;
    sum.top = top;
}

DEVICE Exponentials add_sums(Exponentials a, Exponentials b) {
    const Real top = fmax(a.top, b.top);
    return {top, a.total * exp(difference(a.top, top)) + b.total * exp(difference(b.top, top))};
}

// --------------------------------------------------------------------------------------------------------------------
// Teams: neighbouring threads of a block that share a row, or a piece of one
// --------------------------------------------------------------------------------------------------------------------

// Some lanes of a warp, a power of two, or all threads of the block.
struct Team {
    int lanes, lane;
    Index row, piece;
};

// That of this thread, where each row is cut into so many pieces. Its row may be one of the last block that does not
// exist: `reduce` needs all threads.
DEVICE Team team_of(Index lanes, Index rows, Index pieces) {
    const int threads = static_cast<int>(lanes);
    const long long team = static_cast<long long>(blockIdx.x) * (blockDim.x / threads) + threadIdx.x / threads;
    const long long row = team / pieces;
    return {threads, static_cast<int>(threadIdx.x % threads), row < rows ? static_cast<Index>(row) : rows,
            static_cast<Index>(team - row * pieces)};
}

template <class T>
DEVICE T of_partner(T x, int distance) {
    return shuffle_xor(FULL_WARP, x, distance);
}
DEVICE Exponentials of_partner(Exponentials x, int distance) {
    return {shuffle_xor(FULL_WARP, x.top, distance), shuffle_xor(FULL_WARP, x.total, distance)};
}

// What the lanes of a team have, combined in an order that depends on nothing else, in each of them. All threads of the
// block call it.
template <class T, class Combine>
DEVICE T reduce(const Team& team, T x, Combine combine) {
    for (int d = (team.lanes < 32 ? team.lanes : 32) / 2; d > 0; d /= 2) x = combine(x, of_partner(x, d));
    if (team.lanes > 32) {
        SHARED(T, of_warps, 32);
        __syncthreads();  // what an earlier call left has been read
        if (team.lane % 32 == 0) of_warps[team.lane / 32] = x;
        __syncthreads();
        x = of_warps[0];
        for (int w = 1; w < team.lanes / 32; w++) x = combine(x, of_warps[w]);
    }
    return x;
}

struct Sum {
    template <class T>
    __device__ __forceinline__ T operator()(T x, T y) const { return x + y; }
};

// NaN where one is.
struct Largest {
    template <class T>
    __device__ __forceinline__ T operator()(T x, T y) const { return larger(x, y); }
};

// out[k] = map(x[k], k) for each element k of the team's piece of a row of so many elements: several groups are read
// before the first of them is stored.
template <int V, class Map>
DEVICE void map_piece(const Team& team, const Store* x, Store* out, Index length, Index piece, Map map) {
    constexpr int AT_ONCE = V > 1 ? 2 : 4;
    const Index start = team.piece * piece, stop = min(start + piece, length);
    for (Index k = start + team.lane * V; k < stop; k += AT_ONCE * V * team.lanes) {
        Real y[AT_ONCE][V];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const Index at = k + i * V * team.lanes;
            load_group<V>(x + at, stop - at, Real(0), y[i]);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const Index at = k + i * V * team.lanes;
#pragma unroll
            for (int j = 0; j < V; j++) y[i][j] = map(y[i][j], at + j);
            store_group<V>(out + at, stop - at, y[i]);
        }
    }
}

// --------------------------------------------------------------------------------------------------------------------
// Columns: threads of one threadIdx.x that share V neighbouring columns, each with a slice of their rows
// --------------------------------------------------------------------------------------------------------------------

// The rows of this thread: blockIdx.y is the piece of the rows that its block has, threadIdx.y its slice of that.
struct Slice {
    Index start, stop;
};

DEVICE Slice slice_of(Index rows, Index piece, Index slice) {
    const long long first = static_cast<long long>(blockIdx.y) * piece;
    const long long end = min(first + piece, static_cast<long long>(rows));
    const long long start = min(first + static_cast<long long>(threadIdx.y) * slice, end);
    return {static_cast<Index>(start), static_cast<Index>(min(start + slice, end))};
}

// What the threads of a column have, combined in their order, in the first of them.
template <int V, class T, class Combine>
DEVICE void reduce_columns(T (&x)[V], Combine combine) {
    if (blockDim.y == 1) return;
    SHARED(T, of_threads, BLOCK * V);
    const int thread = thread_rank();
    if (threadIdx.y > 0) {
#pragma unroll
        for (int j = 0; j < V; j++) of_threads[j * BLOCK + thread] = x[j];
    }
    __syncthreads();
    if (threadIdx.y == 0) {
        for (int other = thread + blockDim.x; other < BLOCK; other += blockDim.x) {
#pragma unroll
            for (int j = 0; j < V; j++) x[j] = combine(x[j], of_threads[j * BLOCK + other]);
        }
    }
}
