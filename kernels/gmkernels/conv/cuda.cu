// Convolution over planes and its gradients, as products of matrices none of which is in memory.
//
//   forward          y (filters x positions) = weight (filters x taps) * x (taps x positions)
//   backward_input   d_x, the same with g for x, for each class of elements of x that meet the same taps: with a stride
//                    of s every s-th element along an axis; what meets no element of the kernel is not multiplied
//   backward_weight  d_weight (filters x taps) = g (filters x positions) * x (positions x taps)
//
// A tap is a triple (c, i, j) of a channel and an element of the kernel, a position a triple (n, a, b) of an image and
// an element of the planes that a sum is made for. Where an element of x lies is a sum of what the tap says and what
// the position says, and so is whether it lies on the planes at all: `Place`. The copy into shared memory adds the two
// up (`Gather`). The places along the sum are made a step ahead, by a few threads for all, in shared memory.
//
// With LAST defined the sources are copies whose channels are last (`put_channels_last`), and taps come in the order
// (i, j, c): of half types, for which cp.async has no copies of one element, it copies 8 channels, which share a place.
//
// With BM defined a block makes a tile of a product (`dense/product.cuh`). Without, for groups of one filter or two, as
// in depthwise convolutions, where most of a tile would be empty, a thread makes one sum, and a block the gradients of
// a few elements of the weight.
//
// Where there are too few tiles to fill a device, sums are cut into parts: the blocks (., p) make part p of each, and
// `add_parts` adds them in order. Cuts follow from shapes alone, so results repeat bit for bit.
//
// A launcher defines which of the three it wants, FORWARD, BACKWARD_INPUT or BACKWARD_WEIGHT, or nothing for the
// kernels before and after a product.

#include "device.cuh"

// One axis of the planes of x and y, and of the kernel that goes over it.
struct Axis {
    long long x, y, kernel, stride, before, dilation;
};

// One axis of sums: position a, of `positions`, meets the elements first + a stride + t step of the source for all
// t < taps, where there are such among its `size`. Its sum is element to + a to_stride of the result.
struct Walk {
    Index size, positions, first, stride, taps, step, to, to_stride;
};

DEVICE Walk forward_walk(const Axis& a) {
    return {Index(a.x), Index(a.y), -Index(a.before), Index(a.stride), Index(a.kernel), Index(a.dilation), 0, 1};
}

// The elements h = r, r + stride, ... of x meet those taps i of which h + before - i dilation is a multiple of the
// stride: from `first_tap` on each `apart`-th, apart = stride / gcd(stride, dilation).
DEVICE Walk backward_walk(const Axis& a, Index r, Index apart, Index& first_tap) {
    const Index stride = a.stride, dilation = a.dilation, kernel = a.kernel, reach = r + Index(a.before);
    first_tap = 0;
    while (first_tap < min(apart, kernel) && (reach - first_tap * dilation) % stride != 0) first_tap++;
    const Index taps = first_tap < min(apart, kernel) ? (kernel - first_tap + apart - 1) / apart : Index(0);
    const Index first = (reach - first_tap * dilation) / stride, positions = (Index(a.x) - r + stride - 1) / stride;
    return {Index(a.y), positions, first, 1, taps, -(apart * dilation / stride), r, stride};
}

// Taps before those that begin with `first_tap`, in the order of their first ones.
DEVICE Index taps_before(Index kernel, Index apart, Index first_tap) {
    return first_tap * (kernel / apart) + min(first_tap, kernel % apart);
}

// What a tap or a position says of an element: how far it is from the first, and where on its plane. The sum of both
// lies on the plane or not; NOWHERE stays outside whatever is added to it.
struct alignas(16) Place {
    Index offset, h, w;
};
constexpr Index NOWHERE = static_cast<Index>(Offset(1) << (8 * sizeof(Index) - 1));

DEVICE bool exists(const Place& p, const Place& q, Index height, Index width) {
    return Offset(p.h) + Offset(q.h) < Offset(height) && Offset(p.w) + Offset(q.w) < Offset(width);
}

#ifdef LAST
constexpr bool CHANNELS_LAST = true;
#else
constexpr bool CHANNELS_LAST = false;
#endif

// The planes of a source: of so many channels a group, in how many groups.
struct Planes {
    Index channels, groups, height, width;

    DEVICE Index size() const { return height * width; }
    DEVICE Index of_group(Index group) const { return group * channels * (CHANNELS_LAST ? 1 : size()); }
    DEVICE Index of_channel(Index channel) const { return channel * (CHANNELS_LAST ? 1 : size()); }
    DEVICE Index of_element(Index h, Index w) const {
        return (h * width + w) * (CHANNELS_LAST ? groups * channels : 1);
    }
    DEVICE Index of_image(Index n) const { return n * groups * channels * size(); }
};

struct Taps {
    Planes planes;
    Index across, area, down_step, right_step;  // `across` of the `area` taps of a channel in a row

    DEVICE Taps(const Planes& planes, const Walk& down, const Walk& right)
        : planes(planes), across(right.taps), area(down.taps * right.taps), down_step(down.step),
          right_step(right.step) {}
    DEVICE Place operator()(Index k) const {
        const Index channel = CHANNELS_LAST ? k % planes.channels : k / area;
        const Index tap = CHANNELS_LAST ? k / planes.channels : k % area;
        const Index h = tap / across * down_step, w = tap % across * right_step;
        return {planes.of_channel(channel) + planes.of_element(h, w), h, w};
    }
};

struct Positions {
    Planes planes;
    Index across, area, down_first, down_stride, right_first, right_stride;

    DEVICE Positions(const Planes& planes, const Walk& down, const Walk& right)
        : planes(planes), across(right.positions), area(down.positions * right.positions), down_first(down.first),
          down_stride(down.stride), right_first(right.first), right_stride(right.stride) {}
    DEVICE Place operator()(Index m) const {
        const Index n = m / area, position = m % area;
        const Index h = down_first + position / across * down_stride;
        const Index w = right_first + position % across * right_stride;
        return {planes.of_image(n) + planes.of_element(h, w), h, w};
    }
};

// Where the sum of a position goes, from the first element of its channel in the first image.
struct Results {
    Index image, width, across, area, to_down, down_stride, to_right, right_stride;

    DEVICE Results(Index image, Index width, const Walk& down, const Walk& right)
        : image(image), width(width), across(right.positions), area(down.positions * right.positions),
          to_down(down.to), down_stride(down.to_stride), to_right(right.to), right_stride(right.to_stride) {}
    DEVICE Index operator()(Index m) const {
        const Index n = m / area, position = m % area;
        return n * image + (to_down + position / across * down_stride) * width + to_right +
               position % across * right_stride;
    }
};

// This block's part of a sum of k products: where it begins, and its length. Parts begin at multiples of 16, where
// copies of 16 bytes do.
struct Part {
    Index first, length;

    DEVICE Part(Index k) {
        const Index most = (k + 16 * Index(gridDim.y) - 1) / (16 * Index(gridDim.y)) * 16;
        first = blockIdx.y * most, length = max(Index(0), min(k - first, most));
    }
};

// =====================================================================================================================
// Sums over taps: y, and d_x
// =====================================================================================================================

// The operands and the result of one group, or of one class of one group. Weights are `weight_across` elements apart
// from a filter to the next, and `weight_along` from a tap to the next. If there are parts, they go to `partial`.
struct Call {
    const Store *source, *weight, *bias;
    Index weight_across, weight_along, filters, batch;
    Planes planes;  // of the source
    Store* result;
    Real* partial;
    Index result_plane, result_width, result_image;
    Walk down, right;
};

#ifdef BM
#include "dense/product.cuh"

// How a thread copies its share of the steps of an operand, B elements across the sum, BK along it, each at the sum of
// a place across and one along. Lanes are neighbours across the sum or along it, as neighbours are in memory; if
// channels are last there, a copy takes 16 bytes of them.
template <int B, bool LANES_ALONG, class Along>
struct Gather {
    static constexpr int WIDTH = CHANNELS_LAST ? PER : 1, BYTES = WIDTH * sizeof(Store);  // of a copy
    static constexpr bool IN_ROWS = LANES_ALONG && CHANNELS_LAST;  // whether the elements of a copy are along the sum
    static constexpr int ROW = IN_ROWS ? BK + PAD : B + PAD, SIZE = IN_ROWS ? B * ROW : BK * ROW;
    static constexpr int NEXT_ALONG = IN_ROWS ? 1 : ROW, NEXT_ACROSS = IN_ROWS ? ROW : 1;
    static constexpr int RUN = !LANES_ALONG ? B / WIDTH : IN_ROWS ? BK / WIDTH : 32 / BYTES;  // lanes side by side
    static constexpr int OUTER = LANES_ALONG && !IN_ROWS ? BK / RUN : 1;
    static constexpr int INNER = B * BK / (OUTER * WIDTH * THREADS), STRIDE = THREADS / RUN;
    static constexpr int APART = IN_ROWS ? WIDTH : 1, STEP = BK / APART;  // from a place along the sum to the next
    static constexpr int PLACES = STAGES * STEP + (LANES_ALONG ? B : 0);  // that it has in shared memory
    static_assert(INNER > 0 && THREADS % RUN == 0 && THREADS >= STEP, "threads do not fit the tile");

    const Store* source;
    Place* ring;  // the places of STAGES steps
    Along along;
    Index next, end, height, width;
    int slot, in_run, number;
    Place mine;  // across the sum, if lanes are neighbours there

    DEVICE Place place_along(Index k) const { return k < end ? along(k) : Place{0, NOWHERE, 0}; }

    template <class Across>
    DEVICE Gather(const Store* source, const Planes& planes, const Along& along, const Part& part, const Across& across,
                  Index first, Index size, Place* shared)
        : source(source), ring(shared), along(along), end(part.first + part.length), height(planes.height),
          width(planes.width), slot(0), in_run(threadIdx.x % RUN), number(threadIdx.x / RUN) {
        auto place_across = [&](Index m) { return m < size ? across(m) : Place{0, 0, NOWHERE}; };
        for (int t = threadIdx.x; t < STAGES * STEP; t += THREADS) ring[t] = place_along(part.first + t * APART);
        next = part.first + STAGES * BK;
        if constexpr (LANES_ALONG) {
            for (int t = threadIdx.x; t < B; t += THREADS) ring[STAGES * STEP + t] = place_across(first + t);
        } else {
            mine = place_across(first + in_run * WIDTH);
            this->source = kept(source + mine.offset);
        }
    }

    DEVICE void copy(Store* step) {
        constexpr int AHEAD = BYTES >= 4 && INNER % 4 == 0 ? 4 : 1;  // places loaded at once
        const Place* const places = LANES_ALONG ? ring + STAGES * STEP : ring + slot * STEP;
        [[maybe_unused]] Store loaded[OUTER * INNER];
        Place run[OUTER];  // what is added to the places
        const Store* from[OUTER];
#pragma unroll
        for (int o = 0; o < OUTER; o++) {
            run[o] = LANES_ALONG ? ring[slot * STEP + in_run + o * RUN] : mine;
            from[o] = LANES_ALONG ? kept(source + run[o].offset) : source;
        }
#pragma unroll
        for (int first = 0; first < INNER; first += AHEAD) {
            Place others[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) others[i] = places[number + (first + i) * STRIDE];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
#pragma unroll
                for (int o = 0; o < OUTER; o++) {
                    const bool is = exists(run[o], others[i], height, width);
                    const Store* const element = from[o] + others[i].offset;
                    if constexpr (BYTES >= 4) {
                        copy_async<BYTES>(step + target(first + i, o), element, is ? BYTES : 0);
                    } else {  // too few bytes for cp.async
                        loaded[(first + i) * OUTER + o] = Store{};
                        if (is) loaded[(first + i) * OUTER + o] = *element;
                    }
                }
            }
        }
        if constexpr (BYTES < 4) {
#pragma unroll
            for (int i = 0; i < INNER; i++) {
#pragma unroll
                for (int o = 0; o < OUTER; o++) step[target(i, o)] = loaded[i * OUTER + o];
            }
        }
        slot = slot + 1 == STAGES ? 0 : slot + 1;
    }

    DEVICE int target(int i, int o) const {
        const int beside = (in_run + o * RUN) * WIDTH, apart = number + i * STRIDE;
        return LANES_ALONG ? beside * NEXT_ALONG + apart * NEXT_ACROSS : apart * NEXT_ALONG + beside * NEXT_ACROSS;
    }

    // The places of the next step, over those of a step that has been copied before the last barrier.
    DEVICE void prepare() {
        if (threadIdx.x < STEP) ring[slot * STEP + threadIdx.x] = place_along(next + threadIdx.x * APART);
        next += BK;
    }
};

DEVICE void sum_over_taps(const Call& call, Index tile) {
    typedef Operand<BM, A_COPY, A_BYTES> Filters;
    typedef Gather<BN, CHANNELS_LAST, Taps> Window;
    DYNAMIC_SHARED(Store, steps);
    SHARED(Place, places, Window::PLACES);
    const Index area = call.down.positions * call.right.positions, columns = call.batch * area;
    if (tile >= (call.filters + BM - 1) / BM * ((columns + BN - 1) / BN)) return;
    Index first_row, first_column;
    corner_of(tile, call.filters, columns, first_row, first_column);
    const Part part(call.planes.channels * call.down.taps * call.right.taps);
    Filters filters(call.weight, call.weight_across, call.weight_along, first_row, call.filters, part.first,
                    part.length);
    Window window(call.source, call.planes, Taps(call.planes, call.down, call.right), part,
                  Positions(call.planes, call.down, call.right), first_column, columns, places);
    __syncthreads();
    Sums<Filters, Window> sums;
    add_steps(filters, window, sums, steps, part.length);

    const Results results(call.result_image, call.result_width, call.down, call.right);
    const Index column = first_column + threadIdx.x % (BN / PER) * PER;
    const bool packed = call.down.to_stride == 1 && call.right.to_stride == 1 && area % PER == 0;
    Index to[PER];
#pragma unroll
    for (int e = 0; e < PER; e++) to[e] = column + e < columns ? results(column + e) : Index(-1);
    const auto put = [&](auto* first, const Real (&x)[PER]) {
        if (packed && is_aligned<PER>(first)) {
            store_vector(first + to[0], x);
            return;
        }
#pragma unroll
        for (int e = 0; e < PER; e++) {
            if (to[e] >= 0) store(first + to[e], x[e]);
        }
    };
    for_each_row(sums, [&](int r, int, Real (&x)[PER]) {
        const Index row = first_row + r;
        if (row >= call.filters || to[0] < 0) return;
        if (call.partial != nullptr) {
            put(call.partial + row * call.result_plane, x);
            return;
        }
        const Real shift = call.bias == nullptr ? Real(0) : load<Real>(call.bias + row);
#pragma unroll
        for (int e = 0; e < PER; e++) x[e] += shift;
        put(call.result + row * call.result_plane, x);
    });
}

#else

constexpr int THREADS = 256, BLOCKS = 3;
constexpr int TOGETHER = 9;  // taps whose gradients a block sums: a kernel of 3 by 3

DEVICE void sum_over_taps(const Call& call, Index tile) {
    SHARED(Place, places, THREADS);
    SHARED(Real, weights, THREADS);
    const Index columns = call.batch * call.down.positions * call.right.positions;
    const Index tiles = (columns + THREADS - 1) / THREADS;
    if (tile >= call.filters * tiles) return;  // of a class of fewer elements of x than the largest, maybe of none
    const Index row = tile / tiles;
    const Index column = tile % tiles * THREADS + threadIdx.x;
    const Taps taps(call.planes, call.down, call.right);
    const Place mine = column < columns ? Positions(call.planes, call.down, call.right)(column) : Place{0, 0, NOWHERE};
    const Store* const source = kept(call.source + mine.offset);
    const Store* const weight = call.weight + row * call.weight_across;
    const Part part(call.planes.channels * call.down.taps * call.right.taps);
    Real sum = 0;
    for (Index first = 0; first < part.length; first += THREADS) {
        __syncthreads();  // what was in shared memory has been read
        const Index k = part.first + first + threadIdx.x;
        if (first + threadIdx.x < part.length) {
            places[threadIdx.x] = taps(k);
            weights[threadIdx.x] = load<Real>(weight + k * call.weight_along);
        }
        __syncthreads();
        const int count = static_cast<int>(min(part.length - first, Index(THREADS)));
#pragma unroll 4
        for (int t = 0; t < count; t++) {
            const Place tap = places[t];
            Real x = 0;
            if (exists(mine, tap, call.down.size, call.right.size)) x = load<Real>(source + tap.offset);
            sum = fma(x, weights[t], sum);
        }
    }
    if (column >= columns) return;
    const Results results(call.result_image, call.result_width, call.down, call.right);
    const Index to = row * call.result_plane + results(column);
    if (call.partial != nullptr) call.partial[to] = sum;
    else store(call.result + to, call.bias == nullptr ? sum : sum + load<Real>(call.bias + row));
}

#endif

#ifdef FORWARD

// Grid: (`tiles` of each group, parts). x (batch, groups channels, .), weight (groups filters, channels, .), `bias`
// (groups filters,) or null, y (batch, groups filters, .) and `partial` (parts, *y).
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
forward(const Store* __restrict__ x, const Store* __restrict__ weight, const Store* __restrict__ bias,
        Store* __restrict__ y, Real* __restrict__ partial, Axis down, Axis right, Index batch, Index groups,
        Index channels, Index filters, Index tiles) {
    const Index group = blockIdx.x / tiles, tile = blockIdx.x % tiles;
    const Index y_plane = Index(down.y) * Index(right.y);
    const Index length = channels * Index(down.kernel) * Index(right.kernel), y_image = groups * filters * y_plane;
    Call call;
    call.planes = {channels, groups, Index(down.x), Index(right.x)};
    call.source = x + call.planes.of_group(group);
    call.weight = weight + group * filters * length, call.weight_across = length, call.weight_along = 1;
    call.bias = bias == nullptr ? nullptr : bias + group * filters;
    call.filters = filters, call.batch = batch;
    call.result = y + group * filters * y_plane;
    call.partial = partial == nullptr ? nullptr : partial + blockIdx.y * (batch * y_image) + group * filters * y_plane;
    call.result_plane = y_plane, call.result_width = right.y, call.result_image = y_image;
    call.down = forward_walk(down), call.right = forward_walk(right);
    sum_over_taps(call, tile);
}

#endif
#ifdef BACKWARD_INPUT

// The same for the gradient with respect to x: (`tiles` of the largest class) of each group of each class, right.stride
// to a row of them. `laid_out` is the weight as `lay_out` makes it; down_apart and right_apart are as in
// `backward_walk`.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
backward_input(const Store* __restrict__ g, const Store* __restrict__ laid_out, Store* __restrict__ d_x,
               Real* __restrict__ partial, Axis down, Axis right, Index batch, Index groups, Index channels,
               Index filters, Index tiles, Index down_apart, Index right_apart) {
    const Index tile = blockIdx.x % tiles, group = blockIdx.x / tiles % groups, residue = blockIdx.x / tiles / groups;
    const Index x_plane = Index(down.x) * Index(right.x);
    const Index size = channels * filters, x_image = groups * channels * x_plane;
    Index i, j;
    Call call;
    call.down = backward_walk(down, residue / Index(right.stride), down_apart, i);
    call.right = backward_walk(right, residue % Index(right.stride), right_apart, j);
    const Index before = taps_before(down.kernel, down_apart, i) * Index(right.kernel) +
                         call.down.taps * taps_before(right.kernel, right_apart, j);
    call.planes = {filters, groups, Index(down.y), Index(right.y)};
    call.source = g + call.planes.of_group(group);
    call.weight = laid_out + (group * Index(down.kernel) * Index(right.kernel) + before) * size;
    call.weight_across = 1, call.weight_along = channels, call.bias = nullptr;
    call.filters = channels, call.batch = batch;
    call.result = d_x + group * channels * x_plane;
    call.partial = partial == nullptr ? nullptr : partial + blockIdx.y * (batch * x_image) + group * channels * x_plane;
    call.result_plane = x_plane, call.result_width = right.x, call.result_image = x_image;
    sum_over_taps(call, tile);
}

#endif
#ifdef BACKWARD_WEIGHT

// =====================================================================================================================
// Sums over positions: d_weight
// =====================================================================================================================

// Grid: (`tiles` of each group, parts). d_weight (groups filters, channels, .), and `partial` (parts, *d_weight).
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
backward_weight(const Store* __restrict__ g, const Store* __restrict__ x, Store* __restrict__ d_weight,
                Real* __restrict__ partial, Axis down_axis, Axis right_axis, Index batch, Index groups, Index channels,
                Index filters, Index tiles) {
    const Walk down = forward_walk(down_axis), right = forward_walk(right_axis);
    const Index group = blockIdx.x / tiles, tile = blockIdx.x % tiles;
    const Index columns = channels * down.taps * right.taps, area = down.positions * right.positions;
    const Planes x_planes = {channels, groups, down.size, right.size};
    const Planes g_planes = {filters, groups, down.positions, right.positions};
    const Store *const x_group = x + x_planes.of_group(group), *const g_group = g + g_planes.of_group(group);
    const Positions positions(x_planes, down, right);
    const Taps taps(x_planes, down, right);
    const Index first_result = group * filters * columns, size = groups * filters * columns;
    const Part part(batch * area);
#ifdef BM
    typedef Gather<BM, !CHANNELS_LAST, Positions> Gradient;
    typedef Gather<BN, !CHANNELS_LAST, Positions> Window;
    DYNAMIC_SHARED(Store, steps);
    SHARED(Place, places, Gradient::PLACES + Window::PLACES);
    Index first_row, first_column;
    corner_of(tile, filters, columns, first_row, first_column);
    // g is a plane of one tap that each position meets.
    const Walk g_down = {down.positions, down.positions, 0, 1, 1, 0, 0, 1};
    const Walk g_right = {right.positions, right.positions, 0, 1, 1, 0, 0, 1};
    Gradient gradient(g_group, g_planes, Positions(g_planes, g_down, g_right), part, Taps(g_planes, g_down, g_right),
                      first_row, filters, places);
    Window window(x_group, x_planes, positions, part, taps, first_column, columns, places + Gradient::PLACES);
    __syncthreads();
    Sums<Gradient, Window> sums;
    add_steps(gradient, window, sums, steps, part.length);
    const bool whole = columns % PER == 0 && is_aligned<PER>(d_weight);
    for_each_row(sums, [&](int r, int c, Real (&x)[PER]) {
        const Index row = first_row + r, column = first_column + c, to = first_result + row * columns + column;
        if (row >= filters || column >= columns) return;
        if (CHANNELS_LAST) {  // PER channels of a tap
            const Index first = to - column + column % channels * taps.area + column / channels;
#pragma unroll
            for (int e = 0; e < PER; e++) {
                if (partial != nullptr) partial[blockIdx.y * size + first + e * taps.area] = x[e];
                else store(d_weight + first + e * taps.area, x[e]);
            }
            return;
        }
        if (partial != nullptr) {
            Real* const first = partial + blockIdx.y * size + to;
            if (columns % PER == 0) store_vector(first, x);
            else store_some(first, x, columns - column);
        } else if (whole) {
            store_vector(d_weight + to, x);
        } else {
            store_some(d_weight + to, x, columns - column);
        }
    });
#else
    const Index strips = (columns + TOGETHER - 1) / TOGETHER;
    const Index row = tile / strips, first_column = tile % strips * TOGETHER;
    SHARED(Place, places, TOGETHER);
    if (threadIdx.x < TOGETHER) {
        const Index column = first_column + threadIdx.x;
        places[threadIdx.x] = column < columns ? taps(column) : Place{0, 0, NOWHERE};
    }
    __syncthreads();
    Real sum[TOGETHER] = {};
    for (Index i = threadIdx.x; i < part.length; i += THREADS) {
        const Index m = part.first + i;
        const Place position = positions(m);
        const Real factor = load<Real>(g_group + (m / area * (groups * filters) + row) * area + m % area);
        const Store* const source = kept(x_group + position.offset);
#pragma unroll
        for (int t = 0; t < TOGETHER; t++) {
            const Place tap = places[t];
            Real value = 0;
            if (exists(position, tap, down.size, right.size)) value = load<Real>(source + tap.offset);
            sum[t] = fma(value, factor, sum[t]);
        }
    }
#pragma unroll
    for (int t = 0; t < TOGETHER; t++) {
        const Real total = block_sum(sum[t]);
        if (threadIdx.x != 0 || first_column + t >= columns) continue;
        const Index to = first_result + row * columns + first_column + t;
        if (partial != nullptr) partial[blockIdx.y * size + to] = total;
        else store(d_weight + to, total);
    }
#endif
}

#endif
#if !defined FORWARD && !defined BACKWARD_INPUT && !defined BACKWARD_WEIGHT

// =====================================================================================================================
// Before a product, and after it
// =====================================================================================================================

// x (batch, channels, size) as (batch, size, channels), in tiles of 32 by 32 by blocks of 32 by 8 threads.
extern "C" __global__ void put_channels_last(const Store* __restrict__ x, Store* __restrict__ y, Index channels,
                                             Index size, Index tiles_c, Index tiles_s) {
    SHARED(Store, tile, 32 * 33);
    const Index n = blockIdx.x / tiles_s / tiles_c * channels * size;
    const Index first_c = blockIdx.x / tiles_s % tiles_c * 32, first_s = blockIdx.x % tiles_s * 32;
#pragma unroll
    for (int r = threadIdx.y; r < 32; r += 8) {
        const Index c = first_c + r, s = first_s + threadIdx.x;
        if (c < channels && s < size) tile[r * 33 + threadIdx.x] = x[n + c * size + s];
    }
    __syncthreads();
#pragma unroll
    for (int r = threadIdx.y; r < 32; r += 8) {
        const Index c = first_c + threadIdx.x, s = first_s + r;
        if (c < channels && s < size) y[n + s * channels + c] = tile[threadIdx.x * 33 + r];
    }
}

// The weight for `backward_input`: for each group and each class of taps a matrix (filters taps, channels), or (taps
// filters, channels) if the channels of g, which are filters, are last. A thread has the taps of a filter and channel.
extern "C" __global__ void lay_out(const Store* __restrict__ weight, Store* __restrict__ laid_out, Index size,
                                   Index channels, Index filters, Index kernel_h, Index kernel_w, Index down_apart,
                                   Index right_apart, Index last) {
    const Index t = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= size) return;
    const Index channel = t % channels, filter = t / channels % filters, group = t / channels / filters;
    const Store* const from = weight + t / channels * channels * kernel_h * kernel_w + channel * kernel_h * kernel_w;
    Store* const to = laid_out + group * filters * channels * kernel_h * kernel_w;
    for (Index i = 0; i < kernel_h; i++) {
        const Index first_i = i % down_apart, down = (kernel_h - first_i + down_apart - 1) / down_apart;
        for (Index j = 0; j < kernel_w; j++) {
            const Index first_j = j % right_apart, right = (kernel_w - first_j + right_apart - 1) / right_apart;
            const Index before = taps_before(kernel_h, down_apart, first_i) * kernel_w +
                                 down * taps_before(kernel_w, right_apart, first_j);
            const Index tap = i / down_apart * right + j / right_apart;
            const Index row = before * filters + (last ? tap * filters + filter : filter * down * right + tap);
            to[row * channels + channel] = from[i * kernel_w + j];
        }
    }
}

// y = sum of the parts + bias, of `size` elements in planes of so many; a bias for each of the channels, or none.
extern "C" __global__ void add_parts(const Real* __restrict__ partial, const Store* __restrict__ bias,
                                     Store* __restrict__ y, Index size, Index plane, Index channels, Index parts) {
    const Index i = Index(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= size) return;
    Real sum = 0;
#pragma unroll 4
    for (Index p = 0; p < parts; p++) sum += partial[p * size + i];
    if (bias != nullptr) sum += load<Real>(bias + i / plane % channels);
    store(y + i, sum);
}

#endif
