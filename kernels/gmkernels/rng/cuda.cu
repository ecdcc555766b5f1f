// Fills of the random stream. A thread makes GROUPS groups of four elements, a block consecutive ones.
//
// The elements of an array begin at any lane of the stream. Positions count from the lane 0 before them, so that each
// block of Philox serves one group; those before the first element and behind the last are not stored.

#include "rng/stream.cuh"

constexpr int THREADS = 256, GROUPS = 4;

// What `make` makes of the words of each group, into n elements.
template <class T, class Make>
DEVICE void fill(const uint64* key, T* out, Index n, Make make) {
    const Stream stream(key);
    const Offset lane = stream.lane(0), end = n + lane;
    const bool whole = lane == 0 && is_aligned<4>(out);
    Offset position = (static_cast<Offset>(blockIdx.x) * (THREADS * GROUPS) + threadIdx.x) * 4;
#pragma unroll 1
    for (int j = 0; j < GROUPS; j++, position += THREADS * 4) {
        if (position >= end) return;
        uint32 words[4];
        stream.words(static_cast<uint64>(position) - lane, words);
        T x[4];
        make(words, x);
        if (whole && end - position >= 4) {
            store_vector(out + position, x);
        } else {
#pragma unroll
            for (Offset i = position; i < position + 4; i++) {
                if (i >= lane && i < end) out[i - lane] = x[i - position];
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) random_words(const uint64* key, uint32* out, Index n) {
    fill(key, out, n, [](const uint32(&words)[4], uint32(&x)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = words[i];
    });
}

extern "C" __global__ void __launch_bounds__(THREADS) uniform_fill(const uint64* key, Real* out, Index n) {
    fill(key, out, n, [](const uint32(&words)[4], Real(&x)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = uniform<Real>(words[i]);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS) normal_fill(const uint64* key, Real* out, Index n) {
    fill(key, out, n, [](const uint32(&words)[4], Real(&x)[4]) { normals(words, x); });
}
