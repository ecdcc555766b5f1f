// What optimisers do to many arrays at once, in one launch for as many of them as a launch's parameters can name.
//
// A block works on a chunk of one array. Numbers that vary between steps, such as the learning rate, are read from device
// memory, and what follows from them is computed once in each block.

#include "teams.cuh"

// --------------------------------------------------------------------------------------------------------------------
// Many arrays
// --------------------------------------------------------------------------------------------------------------------

constexpr int ROOM = 4072;  // bytes of a table: parameters of a kernel take 4096

// Passed by value; `cuda.py` fills it. Parameter i has ARRAYS arrays of one size, and the blocks first[i] to
// first[i + 1] - 1.
template <int ARRAYS>
struct Table {
    static constexpr int MOST = ROOM / (8 * ARRAYS + 12);
    Store* array[MOST][ARRAYS];
    long long size[MOST];
    int first[MOST + 1];
    int parameters;
};

struct Chunk {
    int parameter;
    long long start;
    Index count;
};

template <int ARRAYS>
DEVICE Chunk chunk_of(const Table<ARRAYS>& table, int elements) {
    const int block = static_cast<int>(blockIdx.x);
    int low = 0, high = table.parameters;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (table.first[middle] <= block) low = middle;
        else high = middle;
    }
    const long long start = static_cast<long long>(block - table.first[low]) * elements;
    return {low, start, static_cast<Index>(min(table.size[low] - start, static_cast<long long>(elements)))};
}

// --------------------------------------------------------------------------------------------------------------------
// Updates
// --------------------------------------------------------------------------------------------------------------------

constexpr int UPDATED = 4096;  // elements of a block

// Bits of `used` say which arrays are touched; array 0 is read, the others are read and written. `step` maps one element
// of each.
template <int ARRAYS, class Step>
DEVICE void update(const Table<ARRAYS>& table, int used, Step step) {
    const Chunk chunk = chunk_of(table, UPDATED);
    for (Index at = threadIdx.x * WIDTH; at < chunk.count; at += BLOCK * WIDTH) {
        Real x[ARRAYS][WIDTH];
#pragma unroll
        for (int a = 0; a < ARRAYS; a++) {
            const Index there = used >> a & 1 ? chunk.count - at : 0;
            load_group<WIDTH>(table.array[chunk.parameter][a] + chunk.start + at, there, Real(0), x[a]);
        }
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
            Real element[ARRAYS];
#pragma unroll
            for (int a = 0; a < ARRAYS; a++) element[a] = x[a][j];
            step(element);
#pragma unroll
            for (int a = 1; a < ARRAYS; a++) x[a][j] = element[a];
        }
#pragma unroll
        for (int a = 1; a < ARRAYS; a++) {
            const Index there = used >> a & 1 ? chunk.count - at : 0;
            store_group<WIDTH>(table.array[chunk.parameter][a] + chunk.start + at, there, x[a]);
        }
    }
}

DEVICE Real gradient(Real g, Real p, Real sign, Real weight_decay) {
    return weight_decay == 0 ? sign * g : sign * g + weight_decay * p;
}

// The arrays are the gradient, the parameter and the momentum buffer.
extern "C" __global__ void sgd(const Table<3> table, const double* hyper) {
    const Real lr = hyper[0], momentum = hyper[1], add = 1 - hyper[2], weight_decay = hyper[4];
    const Real sign = 1 - 2 * hyper[5];
    const bool nesterov = hyper[3] != 0, begins = hyper[6] == 1;
    update(table, momentum == 0 ? 0b011 : 0b111, [=](Real (&x)[3]) {
        Real direction = gradient(x[0], x[1], sign, weight_decay);
        if (momentum != 0) {
            x[2] = begins ? direction : momentum * x[2] + add * direction;  // at first the buffer may hold anything
            direction = nesterov ? direction + momentum * x[2] : x[2];
        }
        x[1] -= lr * direction;
    });
}

// The arrays are the gradient, the parameter, the means of gradients and of their squares, and the largest of those.
extern "C" __global__ void adam(const Table<5> table, const double* hyper) {
    SHARED(double, corrections, 2);
    if (threadIdx.x < 2) corrections[threadIdx.x] = 1 - pow(hyper[1 + threadIdx.x], hyper[8]);
    __syncthreads();
    const Real step_size = hyper[0] / corrections[0], correction = 1 / sqrt(corrections[1]);
    const Real keep1 = hyper[1], add1 = 1 - hyper[1], keep2 = hyper[2], add2 = 1 - hyper[2], eps = hyper[3];
    const bool decoupled = hyper[5] != 0, amsgrad = hyper[6] != 0;
    const Real sign = 1 - 2 * hyper[7], weight_decay = decoupled ? 0 : hyper[4];
    const Real shrink = decoupled ? 1 - hyper[0] * hyper[4] : 1;
    update(table, amsgrad ? 0b11111 : 0b01111, [=](Real (&x)[5]) {
        const Real g = gradient(x[0], x[1], sign, weight_decay);
        x[2] = keep1 * x[2] + add1 * g;
        x[3] = keep2 * x[3] + add2 * g * g;
        x[4] = x[4] > x[3] ? x[4] : x[3];  // NaN of the mean goes on
        x[1] = shrink * x[1] - step_size * x[2] / (sqrt(amsgrad ? x[4] : x[3]) * correction + eps);
    });
}

// The arrays are the gradient, the parameter and the sum of squares.
extern "C" __global__ void adagrad(const Table<3> table, const double* hyper) {
    const Real rate = hyper[0] / (1 + (hyper[5] - 1) * hyper[1]), eps = hyper[2], weight_decay = hyper[3];
    const Real sign = 1 - 2 * hyper[4];
    update(table, 0b111, [=](Real (&x)[3]) {
        const Real g = gradient(x[0], x[1], sign, weight_decay);
        x[2] += g * g;
        x[1] -= rate * g / (sqrt(x[2]) + eps);
    });
}

// The arrays are the gradient, the parameter, the means of squares and of gradients, and the momentum buffer.
extern "C" __global__ void rmsprop(const Table<5> table, const double* hyper) {
    const Real lr = hyper[0], keep = hyper[1], add = 1 - hyper[1], eps = hyper[2], weight_decay = hyper[3];
    const Real momentum = hyper[4], sign = 1 - 2 * hyper[6];
    const bool centered = hyper[5] != 0;
    update(table, 0b00111 | (centered ? 0b01000 : 0) | (momentum == 0 ? 0 : 0b10000), [=](Real (&x)[5]) {
        const Real g = gradient(x[0], x[1], sign, weight_decay);
        x[2] = keep * x[2] + add * g * g;
        Real variance = x[2];
        if (centered) {
            x[3] = keep * x[3] + add * g;
            variance -= x[3] * x[3];
            variance = variance < 0 ? Real(0) : variance;  // NaN stays
        }
        Real direction = g / (sqrt(variance) + eps);
        if (momentum != 0) direction = x[4] = momentum * x[4] + direction;
        x[1] -= lr * direction;
    });
}

// The arrays are the gradient, the parameter and the means of squares of gradients and of steps.
extern "C" __global__ void adadelta(const Table<4> table, const double* hyper) {
    const Real lr = hyper[0], keep = hyper[1], add = 1 - hyper[1], eps = hyper[2], weight_decay = hyper[3];
    const Real sign = 1 - 2 * hyper[4];
    update(table, 0b1111, [=](Real (&x)[4]) {
        const Real g = gradient(x[0], x[1], sign, weight_decay);
        x[2] = keep * x[2] + add * g * g;
        const Real step = sqrt(x[3] + eps) / sqrt(x[2] + eps) * g;
        x[3] = keep * x[3] + add * step * step;
        x[1] -= lr * step;
    });
}

// The arrays are the parameter and its average.
extern "C" __global__ void average(const Table<2> table, const double* hyper) {
    const Real share = 1 - hyper[0];
    update(table, 0b11, [=](Real (&x)[2]) { x[1] += share * (x[0] - x[1]); });
}

// --------------------------------------------------------------------------------------------------------------------
// The norm of all gradients
// --------------------------------------------------------------------------------------------------------------------

constexpr int NORMED = 16384;  // elements of a block

// parts[offset + block] = the magnitudes of a chunk's elements, added by `add` to 0 and put together by `combine`.
template <int V, int AT_ONCE, class Add, class Combine>
DEVICE void norms_of_chunks(const Table<1>& table, double* parts, Index offset, Add add, Combine combine) {
    const Chunk chunk = chunk_of(table, NORMED);
    const Store* const g = table.array[chunk.parameter][0] + chunk.start;
    const Team team = team_of(BLOCK, gridDim.x, 1);
    double found = 0;
    for (Index k = team.lane * V; k < chunk.count; k += AT_ONCE * V * BLOCK) {
        double x[AT_ONCE][V];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const Index at = k + i * V * BLOCK;
            load_group<V>(g + at, chunk.count - at, 0.0, x[i]);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
#pragma unroll
            for (int j = 0; j < V; j++) found = add(found, fabs(x[i][j]));
        }
    }
    found = reduce(team, found, combine);
    if (team.lane == 0) parts[offset + static_cast<Index>(blockIdx.x)] = found;
}

extern "C" __global__ void squares_of_chunks(const Table<1> table, double* parts, Index offset, double) {
    norms_of_chunks<WIDTH, 4>(table, parts, offset, [](double sum, double x) { return fma(x, x, sum); }, Sum());
}

extern "C" __global__ void largest_of_chunks(const Table<1> table, double* parts, Index offset, double) {
    norms_of_chunks<WIDTH, 4>(table, parts, offset, Largest(), Largest());
}

extern "C" __global__ void powers_of_chunks(const Table<1> table, double* parts, Index offset, double norm_type) {
    norms_of_chunks<1, 1>(table, parts, offset, [=](double sum, double x) { return sum + pow(x, norm_type); }, Sum());
}

// One block; norm_type is infinite for the largest.
extern "C" __global__ void norm_of_parts(const double* parts, double* norm, Index count, double norm_type) {
    const Team team = team_of(BLOCK, 1, 1);
    const bool takes_largest = isinf(norm_type);
    double found = 0;
    for (Index i = team.lane; i < count; i += BLOCK) found = takes_largest ? larger(parts[i], found) : found + parts[i];
    if (takes_largest) {
        found = reduce(team, found, Largest());
    } else {
        found = reduce(team, found, Sum());
        found = norm_type == 2 ? sqrt(found) : pow(found, 1 / norm_type);
    }
    if (team.lane == 0) *norm = found;
}
