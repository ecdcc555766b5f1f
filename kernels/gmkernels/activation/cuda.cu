// The leaky rectifier and its gradient: element by element.

#include "teams.cuh"

constexpr int AT_ONCE = 4;  // groups of a thread

// y = g where x > 0, else slope g. A block takes BLOCK * AT_ONCE neighbouring groups.
DEVICE void scale(const Store* g, const Store* x, Store* y, Index size, Real slope) {
    const long long first = (static_cast<long long>(blockIdx.x) * BLOCK * AT_ONCE + threadIdx.x) * WIDTH;
    Real of_g[AT_ONCE][WIDTH], of_x[AT_ONCE][WIDTH];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
        const long long at = first + i * BLOCK * WIDTH, left = size - at;
        const Index count = static_cast<Index>(left < WIDTH ? left : WIDTH);
        load_group<WIDTH>(x + at, count, Real(0), of_x[i]);
        load_group<WIDTH>(g + at, count, Real(0), of_g[i]);
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
        const long long at = first + i * BLOCK * WIDTH, left = size - at;
#pragma unroll
        for (int j = 0; j < WIDTH; j++) of_g[i][j] *= of_x[i][j] > 0 ? Real(1) : slope;
        store_group<WIDTH>(y + at, static_cast<Index>(left < WIDTH ? left : WIDTH), of_g[i]);
    }
}

extern "C" __global__ void leaky_relu(const Store* x, Store* y, Index size, double negative_slope) {
    scale(x, x, y, size, static_cast<Real>(negative_slope));
}

extern "C" __global__ void leaky_relu_backward(
    const Store* g, const Store* x, Store* d_x, Index size, double negative_slope
) {
    scale(g, x, d_x, size, static_cast<Real>(negative_slope));
}
