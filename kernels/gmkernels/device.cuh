// What a kernel of gmkernels needs beyond CUDA C itself, without any header of CUDA's: storage types, vector loads and
// stores, shuffles, sums over a warp or a block, products on tensor cores, asynchronous copies, a barrier of the grid.
//
// The file has two halves with one interface: the first is PTX for NVRTC (sm_80 and newer), the second is plain C++,
// with which the same .cu file runs in the emulation of a grid that the tests use. What can be said in both languages
// at once follows them and stands once.
//
// A launcher may define STORE (the type of the arrays), REAL (the type that is computed in) and INDEX (the type of
// offsets); they are then also known as Store, Real and Index.

#pragma once

typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;

constexpr uint32 FULL_WARP = 0xFFFFFFFFu;

// Numbers of 16 bits: storage only.
struct half_t {
    uint16 bits;
};
struct bfloat16_t {
    uint16 bits;
};

#ifdef __CUDACC__
// =====================================================================================================================
// The device
// =====================================================================================================================

#define DEVICE __device__ __forceinline__

// Shared memory of n elements, aligned to 16 bytes; inside a function. DYNAMIC_SHARED has the size given at the launch.
#define SHARED(type, name, n) __shared__ __align__(16) type name[n]
#define DYNAMIC_SHARED(type, name)                                          \
    extern __shared__ __align__(16) unsigned char gmkernels_dynamic_shared[]; \
    type* const name = reinterpret_cast<type*>(gmkernels_dynamic_shared)

DEVICE uint32 float_bits(float x) { return __float_as_uint(x); }
DEVICE float bits_float(uint32 x) { return __uint_as_float(x); }
DEVICE uint64 float_bits(double x) { return static_cast<uint64>(__double_as_longlong(x)); }
DEVICE double bits_float(uint64 x) { return __longlong_as_double(static_cast<long long>(x)); }

// One instruction; the compiler makes two or more of the C expression.
DEVICE uint64 multiply_wide(uint32 x, uint32 y) {
    uint64 product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(x), "r"(y));
    return product;
}

// sqrtf where it needs no special case, 2^-100 <= x < infinity: the instructions that the compiler makes of sqrtf, with
// its exact rounding, without the test for other arguments.
DEVICE float sqrt_normal(float x) {
    float inverse;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
    const float root = x * inverse;
    return fmaf(fmaf(-root, root, x), 0.5f * inverse, root);
}
DEVICE double sqrt_normal(double x) { return sqrt(x); }

// 2^x in one instruction, to 2^-22; 0 where that is below 2^-126.
DEVICE float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

DEVICE float widen(half_t x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

DEVICE uint32 pack(half_t*, float low, float high) {
    uint32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

DEVICE uint32 pack(bfloat16_t*, float low, float high) {
    uint32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

DEVICE void mma_m16n8k16(half_t*, float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE void mma_m16n8k16(bfloat16_t*, float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

DEVICE void mma_m16n8k8(double (&d)[4], const double (&a)[4], const double (&b)[2]) {
#if __CUDA_ARCH__ >= 900
    asm("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+d"(d[0]), "+d"(d[1]), "+d"(d[2]), "+d"(d[3])
        : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
#else
#pragma unroll
    for (int half = 0; half < 2; half++) {  // of the rows
#pragma unroll
        for (int k = 0; k < 2; k++) {
            asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                : "+d"(d[2 * half]), "+d"(d[2 * half + 1])
                : "d"(a[half + 2 * k]), "d"(b[k]));
        }
    }
#endif
}

DEVICE uint32 to_tf32(float x) {
    uint32 y;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
    return y;
}

DEVICE uint32 shared_address(const void* p) { return static_cast<uint32>(__cvta_generic_to_shared(p)); }

DEVICE void load_matrices(uint32 (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(row))
                 : "memory");
}

DEVICE void load_matrices_transposed(uint32 (&x)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(row))
                 : "memory");
}

template <int BYTES>
DEVICE void copy_async(void* shared, const void* global, int valid = BYTES) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                     "r"(valid)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                     "n"(BYTES), "r"(valid)
                     : "memory");
    }
}

DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int PENDING>
DEVICE void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

DEVICE void grid_sync(uint32* arrived) {
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
        const uint32 blocks = gridDim.x * gridDim.y * gridDim.z;
        const bool first = blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0;
        __threadfence();
        // Together the blocks add 2^31: the top bit turns with the last of them, and the others are as before.
        const uint32 before = atomicAdd(arrived, first ? 0x80000000u - (blocks - 1) : 1u);
        uint32 now;
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(arrived) : "memory");
        } while (((before ^ now) & 0x80000000u) == 0);
        __threadfence();
    }
    __syncthreads();
}

DEVICE void expect_aligned(const void*, int) {}

// The same address of global memory, of which the compiler does not know how it was made: it keeps it in registers.
template <class T>
DEVICE T* kept(T* p) {
    asm("" : "+l"(p));
    __builtin_assume(__isGlobal(p));
    return p;
}

#else
// =====================================================================================================================
// The host: CUDA's own names first, then the same interface. The functions of `emulated` are the emulator's.
// =====================================================================================================================

#define __global__ GMKERNELS_KERNEL
#define __device__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define DEVICE inline __attribute__((always_inline))

struct uint3 {
    uint32 x, y, z;
};
typedef uint3 dim3;

// Constant within a thread, so the emulator may change them when it changes threads.
extern "C" const uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {
typedef decltype(sizeof(0)) size_t;
extern "C" {
void emulated_barrier(const char* file, int line);
void emulated_grid_barrier(uint32* arrived, const char* file, int line);
// Waits until the lanes in `mask` have come to the same place; the last calls `together` with what each brought.
void emulated_warp(const char* what, uint32 mask, void* brought, void (*together)(void* const*, uint32),
                   int orders_memory, const char* file, int line);
void* emulated_shared(const void* site, size_t bytes);
void* emulated_dynamic_shared();
void emulated_aligned(const void* p, int bytes);
void emulated_copy(void* shared, const void* global, int bytes, int valid);
void emulated_copy_commit();
void emulated_copy_wait(int pending);
}

template <class T>
struct Lane {
    T given, found;
    int source;
    uint32 lane;
};
}  // namespace emulated

#define SHARED(type, name, n)                \
    static char name##_site;                 \
    typedef type name##_element;             \
    name##_element* const name = static_cast<name##_element*>(emulated::emulated_shared(&name##_site, sizeof(type) * (n)))
#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(emulated::emulated_dynamic_shared())

// The place of the caller, for messages.
#define PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

DEVICE void __syncthreads(PLACE) { emulated::emulated_barrier(file, line); }
DEVICE void __threadfence() {}

DEVICE uint32 lane_id() {
    return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) & 31u;
}

DEVICE void __syncwarp(uint32 mask = FULL_WARP, PLACE) {
    emulated::emulated_warp("__syncwarp", mask, nullptr, [](void* const*, uint32) {}, 1, file, line);
}

namespace emulated {
// x of the lane `source`, which is out of range where a lane keeps its own.
template <class T>
DEVICE T exchange(const char* what, uint32 mask, T x, int source, const char* file, int line) {
    Lane<T> mine = {x, x, source, lane_id()};
    emulated_warp(
        what, mask, &mine,
        [](void* const* lanes, uint32 mask) {
            for (int i = 0; i < 32; i++) {
                if ((mask >> i & 1) == 0) continue;
                Lane<T>* lane = static_cast<Lane<T>*>(lanes[i]);
                if (lane->source < 0 || lane->source > 31) continue;
                // A lane outside the mask has no value; all bits set is not a number in any type.
                if (mask >> lane->source & 1) lane->found = static_cast<Lane<T>*>(lanes[lane->source])->given;
                else __builtin_memset(&lane->found, 0xFF, sizeof(T));
            }
        },
        0, file, line);
    return mine.found;
}
}  // namespace emulated

template <class T>
DEVICE T __shfl_sync(uint32 mask, T x, int source, int width = 32, PLACE) {
    const int lane = lane_id();
    return emulated::exchange("__shfl_sync", mask, x, (lane & -width) + (source & (width - 1)), file, line);
}
template <class T>
DEVICE T __shfl_xor_sync(uint32 mask, T x, int distance, int width = 32, PLACE) {
    const int lane = lane_id(), source = lane ^ distance;
    // A source in a later segment is out of range; one in an earlier segment may be read.
    return emulated::exchange("__shfl_xor_sync", mask, x, source < (lane & -width) + width ? source : 32, file, line);
}
template <class T>
DEVICE T __shfl_down_sync(uint32 mask, T x, uint32 distance, int width = 32, PLACE) {
    const int lane = lane_id(), source = lane + distance;
    return emulated::exchange("__shfl_down_sync", mask, x, source < (lane & -width) + width ? source : 32, file, line);
}
template <class T>
DEVICE T __shfl_up_sync(uint32 mask, T x, uint32 distance, int width = 32, PLACE) {
    const int lane = lane_id(), source = lane - distance;
    return emulated::exchange("__shfl_up_sync", mask, x, source >= (lane & -width) ? source : 32, file, line);
}

DEVICE uint32 __ballot_sync(uint32 mask, int predicate, PLACE) {
    emulated::Lane<uint32> mine = {predicate != 0, 0, 0, 0};
    emulated::emulated_warp(
        "__ballot_sync", mask, &mine,
        [](void* const* lanes, uint32 mask) {
            uint32 votes = 0;
            for (int i = 0; i < 32; i++) {
                if (mask >> i & 1) votes |= static_cast<emulated::Lane<uint32>*>(lanes[i])->given << i;
            }
            for (int i = 0; i < 32; i++) {
                if (mask >> i & 1) static_cast<emulated::Lane<uint32>*>(lanes[i])->found = votes;
            }
        },
        0, file, line);
    return mine.found;
}
DEVICE int __any_sync(uint32 mask, int predicate, PLACE) { return __ballot_sync(mask, predicate, file, line) != 0; }
DEVICE int __all_sync(uint32 mask, int predicate, PLACE) { return __ballot_sync(mask, predicate, file, line) == mask; }

// CUDA declares these for float and double under one name, as C++ does; its names with f are the C library's.
#define EMULATED_UNARY(name)                   \
    extern "C" double name(double) noexcept;   \
    extern "C" float name##f(float) noexcept;  \
    DEVICE float name(float x) { return name##f(x); }
#define EMULATED_BINARY(name)                         \
    extern "C" double name(double, double) noexcept;  \
    extern "C" float name##f(float, float) noexcept;  \
    DEVICE float name(float x, float y) { return name##f(x, y); }
EMULATED_UNARY(exp) EMULATED_UNARY(exp2) EMULATED_UNARY(expm1) EMULATED_UNARY(log) EMULATED_UNARY(log2)
EMULATED_UNARY(log1p) EMULATED_UNARY(sqrt) EMULATED_UNARY(tanh) EMULATED_UNARY(sin) EMULATED_UNARY(cos)
EMULATED_UNARY(erf) EMULATED_UNARY(erfc) EMULATED_UNARY(fabs) EMULATED_UNARY(floor) EMULATED_UNARY(ceil)
EMULATED_UNARY(rint) EMULATED_UNARY(trunc) EMULATED_UNARY(lgamma)
EMULATED_BINARY(fmin) EMULATED_BINARY(fmax) EMULATED_BINARY(pow) EMULATED_BINARY(copysign) EMULATED_BINARY(fmod)
#undef EMULATED_UNARY
#undef EMULATED_BINARY
extern "C" double fma(double, double, double) noexcept;
extern "C" float fmaf(float, float, float) noexcept;
extern "C" double ldexp(double, int) noexcept;
extern "C" float ldexpf(float, int) noexcept;
DEVICE float fma(float x, float y, float z) { return fmaf(x, y, z); }
DEVICE float ldexp(float x, int n) { return ldexpf(x, n); }
DEVICE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
DEVICE double rsqrt(double x) { return 1.0 / sqrt(x); }
DEVICE float rsqrt(float x) { return rsqrtf(x); }
DEVICE float __expf(float x) { return expf(x); }
DEVICE float __logf(float x) { return logf(x); }
DEVICE float __fdividef(float x, float y) { return x / y; }
DEVICE float __frcp_rn(float x) { return 1.0f / x; }
DEVICE float __fsqrt_rn(float x) { return sqrtf(x); }
DEVICE float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
DEVICE bool isnan(float x) { return x != x; }
DEVICE bool isnan(double x) { return x != x; }
DEVICE bool isinf(float x) { return __builtin_isinf(x); }
DEVICE bool isinf(double x) { return __builtin_isinf(x); }
DEVICE bool isfinite(float x) { return __builtin_isfinite(x); }
DEVICE bool isfinite(double x) { return __builtin_isfinite(x); }
DEVICE float abs(float x) { return fabsf(x); }
DEVICE double abs(double x) { return fabs(x); }
DEVICE int abs(int x) { return x < 0 ? -x : x; }
DEVICE float min(float x, float y) { return fminf(x, y); }
DEVICE float max(float x, float y) { return fmaxf(x, y); }
DEVICE double min(double x, double y) { return fmin(x, y); }
DEVICE double max(double x, double y) { return fmax(x, y); }
#define EMULATED_ORDER(type)                                   \
    DEVICE type min(type x, type y) { return x < y ? x : y; }  \
    DEVICE type max(type x, type y) { return x < y ? y : x; }
EMULATED_ORDER(int) EMULATED_ORDER(uint32) EMULATED_ORDER(long) EMULATED_ORDER(unsigned long)
EMULATED_ORDER(long long) EMULATED_ORDER(uint64)
#undef EMULATED_ORDER

DEVICE uint64 multiply_wide(uint32 x, uint32 y) { return static_cast<uint64>(x) * y; }
DEVICE float sqrt_normal(float x) { return sqrtf(x); }
DEVICE double sqrt_normal(double x) { return sqrt(x); }
DEVICE float exp2_approximate(float x) { return exp2f(x); }
DEVICE uint32 __umulhi(uint32 x, uint32 y) { return static_cast<uint32>(static_cast<uint64>(x) * y >> 32); }
DEVICE int __popc(uint32 x) { return __builtin_popcount(x); }
DEVICE int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<uint32>(x)); }
DEVICE int __ffs(int x) { return __builtin_ffs(x); }
template <class T>
DEVICE T __ldg(const T* p) { return *p; }

namespace emulated {
template <class To, class From>
DEVICE To same_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "the types differ in size");
    To y;
    __builtin_memcpy(&y, &x, sizeof(y));
    return y;
}
}  // namespace emulated

DEVICE uint32 float_bits(float x) { return emulated::same_bits<uint32>(x); }
DEVICE float bits_float(uint32 x) { return emulated::same_bits<float>(x); }
DEVICE uint64 float_bits(double x) { return emulated::same_bits<uint64>(x); }
DEVICE double bits_float(uint64 x) { return emulated::same_bits<double>(x); }
DEVICE int __float_as_int(float x) { return emulated::same_bits<int>(x); }
DEVICE float __int_as_float(int x) { return emulated::same_bits<float>(x); }
DEVICE uint32 __float_as_uint(float x) { return emulated::same_bits<uint32>(x); }
DEVICE float __uint_as_float(uint32 x) { return emulated::same_bits<float>(x); }
DEVICE long long __double_as_longlong(double x) { return emulated::same_bits<long long>(x); }
DEVICE double __longlong_as_double(long long x) { return emulated::same_bits<double>(x); }

DEVICE float widen(half_t x) {
    const uint32 sign = (x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7FFFu;
    if (magnitude >= 0x7C00u) return bits_float(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
    // Scaled by 2^112 in the exponent's place; exact, also for subnormal numbers.
    return bits_float(sign | float_bits(bits_float(magnitude << 13) * 0x1p112f));
}

namespace emulated {
// Round to nearest, ties to even.
DEVICE uint32 narrow(half_t*, float x) {
    const uint32 sign = float_bits(x) >> 16 & 0x8000u, magnitude = float_bits(x) & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return 0x7FFFu;
    if (magnitude >= 0x477FF000u) return sign | 0x7C00u;  // 65520, from which on infinity is nearest
    if (magnitude < 0x38800000u) {                        // below 2^-14: a multiple of 2^-24
        return sign | static_cast<uint32>(rintf(bits_float(magnitude) * 0x1p24f));
    }
    return sign | (((magnitude + 0xFFFu + (magnitude >> 13 & 1u)) >> 13) - (112u << 10));
}
DEVICE uint32 narrow(bfloat16_t*, float x) {
    const uint32 bits = float_bits(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFFu;
    return (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
}
}  // namespace emulated

template <class Half>
DEVICE uint32 pack(Half* type, float low, float high) {
    return emulated::narrow(type, low) | emulated::narrow(type, high) << 16;
}

DEVICE uint32 to_tf32(float x) { return (float_bits(x) + 0x1000u) & 0xFFFFE000u; }

DEVICE float widen(bfloat16_t x);

namespace emulated {
template <class Real, class Register>
struct Product {
    Real* d;
    const Register *a, *b;
};

// D += A B of a warp, of 16 x K and K x 8 elements in the layout of mma.sync: a register has PER elements of a row of A
// or of a column of B, for k = PER (lane mod 4) and the next ones; registers that follow are 8 rows or half of K on.
template <class Real, class Register, int K, int PER, class Element>
DEVICE void multiply(void* const* lanes, Element element) {
    Real a[16][K], b[K][8];
    for (int lane = 0; lane < 32; lane++) {
        const auto* p = static_cast<const Product<Real, Register>*>(lanes[lane]);
        for (int i = 0; i < PER; i++) {
            const int row = lane / 4, k = lane % 4 * PER + i;
            for (int j = 0; j < 4; j++) a[row + j % 2 * 8][k + j / 2 * (K / 2)] = element(p->a[j], i);
            for (int j = 0; j < 2; j++) b[k + j * (K / 2)][row] = element(p->b[j], i);
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        Real* d = static_cast<const Product<Real, Register>*>(lanes[lane])->d;
        for (int j = 0; j < 4; j++) {
            const int row = lane / 4 + j / 2 * 8, column = lane % 4 * 2 + j % 2;
            Real sum = d[j];
            for (int k = 0; k < K; k++) sum = fma(a[row][k], b[k][column], sum);
            d[j] = sum;
        }
    }
}
}  // namespace emulated

template <class Half>
DEVICE void mma_m16n8k16(Half*, float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2], PLACE) {
    emulated::Product<float, uint32> mine = {d, a, b};
    emulated::emulated_warp(
        "mma.sync.m16n8k16", FULL_WARP, &mine,
        [](void* const* lanes, uint32) {
            emulated::multiply<float, uint32, 16, 2>(lanes, [](uint32 pair, int i) {
                return widen(Half{static_cast<uint16>(pair >> 16 * i)});
            });
        },
        0, file, line);
}

DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2], PLACE) {
    emulated::Product<float, uint32> mine = {d, a, b};
    emulated::emulated_warp(
        "mma.sync.m16n8k8", FULL_WARP, &mine,
        [](void* const* lanes, uint32) {
            emulated::multiply<float, uint32, 8, 1>(lanes, [](uint32 x, int) { return bits_float(x & 0xFFFFE000u); });
        },
        0, file, line);
}

DEVICE void mma_m16n8k8(double (&d)[4], const double (&a)[4], const double (&b)[2], PLACE) {
    emulated::Product<double, double> mine = {d, a, b};
    emulated::emulated_warp(
        "mma.sync.m16n8k8", FULL_WARP, &mine,
        [](void* const* lanes, uint32) {
            emulated::multiply<double, double, 8, 1>(lanes, [](double x, int) { return x; });
        },
        0, file, line);
}

namespace emulated {
struct Matrices {
    uint32* x;
    const uint16* row;
};

// Matrix j has the rows that lanes 8 j to 8 j + 7 point to; a lane gets two neighbours of row lane / 4 of each.
template <bool TRANSPOSED>
DEVICE void distribute(void* const* lanes, uint32) {
    for (int lane = 0; lane < 32; lane++) {
        for (int j = 0; j < 4; j++) {
            uint32 pair = 0;
            for (int i = 0; i < 2; i++) {
                const int r = lane / 4, c = lane % 4 * 2 + i;
                const uint16* row = static_cast<const Matrices*>(lanes[8 * j + (TRANSPOSED ? c : r)])->row;
                pair |= static_cast<uint32>(row[TRANSPOSED ? r : c]) << 16 * i;
            }
            static_cast<const Matrices*>(lanes[lane])->x[j] = pair;
        }
    }
}
}  // namespace emulated

DEVICE void load_matrices(uint32 (&x)[4], const void* row, PLACE) {
    emulated::emulated_aligned(row, 16);
    emulated::Matrices mine = {x, static_cast<const uint16*>(row)};
    emulated::emulated_warp("ldmatrix", FULL_WARP, &mine, emulated::distribute<false>, 0, file, line);
}
DEVICE void load_matrices_transposed(uint32 (&x)[4], const void* row, PLACE) {
    emulated::emulated_aligned(row, 16);
    emulated::Matrices mine = {x, static_cast<const uint16*>(row)};
    emulated::emulated_warp("ldmatrix", FULL_WARP, &mine, emulated::distribute<true>, 0, file, line);
}

template <int BYTES>
DEVICE void copy_async(void* shared, const void* global, int valid = BYTES) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
    emulated::emulated_copy(shared, global, BYTES, valid);
}
DEVICE void copy_commit() { emulated::emulated_copy_commit(); }
template <int PENDING>
DEVICE void copy_wait() { emulated::emulated_copy_wait(PENDING); }

DEVICE void grid_sync(uint32* arrived, PLACE) { emulated::emulated_grid_barrier(arrived, file, line); }

DEVICE void expect_aligned(const void* p, int bytes) { emulated::emulated_aligned(p, bytes); }

template <class T>
DEVICE T* kept(T* p) {
    return p;
}

#undef PLACE
#endif

// =====================================================================================================================
// Both
// =====================================================================================================================

#ifdef STORE
typedef STORE Store;
#endif
#ifdef REAL
typedef REAL Real;
#endif
#ifdef INDEX
typedef INDEX Index;
// As wide as Index: for offsets that may go past the end of an array, where Index would overflow.
template <int BYTES>
struct Unsigned {
    typedef uint32 type;
};
template <>
struct Unsigned<8> {
    typedef uint64 type;
};
typedef Unsigned<sizeof(Index)>::type Offset;
#endif

DEVICE float widen(bfloat16_t x) { return bits_float(static_cast<uint32>(x.bits) << 16); }
DEVICE float widen(float x) { return x; }
DEVICE double widen(double x) { return x; }

// ------------------------------------------------------------------------------------------------- loads and stores
// An element of an array, in the type that is computed in; storing rounds to nearest, ties to even.

template <class Real, class Store>
DEVICE Real load(const Store* p) { return static_cast<Real>(widen(*p)); }

DEVICE void store(float* p, float x) { *p = x; }
DEVICE void store(double* p, double x) { *p = x; }
DEVICE void store(half_t* p, float x) { p->bits = static_cast<uint16>(pack(p, x, 0.0f)); }
DEVICE void store(bfloat16_t* p, float x) { p->bits = static_cast<uint16>(pack(p, x, 0.0f)); }

// Whether p may be accessed 16 bytes at a time, or by N elements if those are fewer.
template <int N, class T>
DEVICE bool is_aligned(const T* p) {
    constexpr uint64 BYTES = N * sizeof(T) < 16 ? N * sizeof(T) : 16;
    return (reinterpret_cast<uint64>(p) & (BYTES - 1)) == 0;
}

template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
    T element[N];
};

// N consecutive elements in accesses of 16 bytes, or fewer where there are not as many. p must be aligned to the size
// of an access.
template <class Store, class Real, int N>
DEVICE void load_vector(const Store* p, Real (&x)[N]) {
    constexpr int BYTES = N * sizeof(Store) < 16 ? N * sizeof(Store) : 16, PER = BYTES / sizeof(Store);
    static_assert(N % PER == 0, "not a whole number of accesses");
    expect_aligned(p, BYTES);
#pragma unroll
    for (int i = 0; i < N; i += PER) {
        const Pack<Store, PER> pack = *reinterpret_cast<const Pack<Store, PER>*>(p + i);
#pragma unroll
        for (int j = 0; j < PER; j++) x[i + j] = static_cast<Real>(widen(pack.element[j]));
    }
}

template <class Store, class Real, int N>
DEVICE void store_vector(Store* p, const Real (&x)[N]) {
    constexpr int BYTES = N * sizeof(Store) < 16 ? N * sizeof(Store) : 16, PER = BYTES / sizeof(Store);
    static_assert(N % PER == 0, "not a whole number of accesses");
    expect_aligned(p, BYTES);
    if constexpr (sizeof(Store) == sizeof(Real)) {
#pragma unroll
        for (int i = 0; i < N; i += PER) {
            Pack<Real, PER> pack;
#pragma unroll
            for (int j = 0; j < PER; j++) pack.element[j] = x[i + j];
            *reinterpret_cast<Pack<Real, PER>*>(p + i) = pack;
        }
    } else {
        static_assert(PER % 2 == 0, "halves are stored in pairs");
#pragma unroll
        for (int i = 0; i < N; i += PER) {
            Pack<uint32, PER / 2> words;
#pragma unroll
            for (int j = 0; j < PER; j += 2) words.element[j / 2] = pack(p, x[i + j], x[i + j + 1]);
            *reinterpret_cast<Pack<uint32, PER / 2>*>(p + i) = words;
        }
    }
}


// ------------------------------------------------------------------------------------------------- threads and warps

// Number of a thread in its block, as warps are made of them.
DEVICE int thread_rank() { return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); }
DEVICE int block_threads() { return blockDim.x * blockDim.y * blockDim.z; }

template <class T>
DEVICE T shuffle(uint32 mask, T x, int source) { return __shfl_sync(mask, x, source); }
template <class T>
DEVICE T shuffle_xor(uint32 mask, T x, int distance) { return __shfl_xor_sync(mask, x, distance); }
template <class T>
DEVICE T shuffle_down(uint32 mask, T x, int distance) { return __shfl_down_sync(mask, x, distance); }
template <class T>
DEVICE T shuffle_up(uint32 mask, T x, int distance) { return __shfl_up_sync(mask, x, distance); }

// NaN where x or y is, unlike fmax.
template <class T>
DEVICE T larger(T x, T y) { return x > y || x != x ? x : y; }

// Sum or largest of WIDTH neighbouring lanes, a power of two, in each of them. Every lane of the warp must call. The
// order of additions is that of a butterfly: the same for all lanes, and in every run.
template <int WIDTH = 32, class T>
DEVICE T warp_sum(T x) {
#pragma unroll
    for (int d = WIDTH / 2; d > 0; d /= 2) x += shuffle_xor(FULL_WARP, x, d);
    return x;
}

template <int WIDTH = 32, class T>
DEVICE T warp_max(T x) {
#pragma unroll
    for (int d = WIDTH / 2; d > 0; d /= 2) x = larger(x, shuffle_xor(FULL_WARP, x, d));
    return x;
}

// The same over all threads of a block, in each of them: every thread must call, and threads come in whole warps.
template <class T>
DEVICE T block_sum(T x) {
    SHARED(T, partial, 32);
    const int rank = thread_rank(), lane = rank % 32, warps = block_threads() / 32;
    x = warp_sum(x);
    __syncthreads();  // what an earlier call left has been read
    if (lane == 0) partial[rank / 32] = x;
    __syncthreads();
    return warp_sum(lane < warps ? partial[lane] : T(0));
}

template <class T>
DEVICE T block_max(T x) {
    SHARED(T, partial, 32);
    const int rank = thread_rank(), lane = rank % 32, warps = block_threads() / 32;
    x = warp_max(x);
    __syncthreads();  // what an earlier call left has been read
    if (lane == 0) partial[rank / 32] = x;
    __syncthreads();
    return warp_max(partial[lane < warps ? lane : 0]);
}
