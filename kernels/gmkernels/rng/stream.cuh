// The random stream: Philox4x32-10 words, and uniforms and normals made of them, as rng/reference.py defines them.
//
// A group is the four words of one Philox block; its elements e of the stream are those with e / 4 equal. Arithmetic
// repeats the reference operation by operation, so without fused multiply-add the bits are its bits. Where fma is
// spelled, the product is exact.

#pragma once

#include "device.cuh"

struct Stream {
    uint32 seed_low, seed_high, draw_low, draw_high;
    uint64 offset;

    DEVICE Stream() : seed_low(0), seed_high(0), draw_low(0), draw_high(0), offset(0) {}

    // Of a key in the memory of the device: (seed, draw, offset).
    DEVICE explicit Stream(const uint64* key)
        : seed_low(static_cast<uint32>(key[0])),
          seed_high(static_cast<uint32>(key[0] >> 32)),
          draw_low(static_cast<uint32>(key[1])),
          draw_high(static_cast<uint32>(key[1] >> 32)),
          offset(key[2]) {}

    // Lane of element i of the draw in its group.
    DEVICE int lane(uint64 i) const { return static_cast<int>((offset + i) & 3); }

    // The words of the group of element i of the draw.
    DEVICE void words(uint64 i, uint32 (&w)[4]) const {
        const uint64 group = (offset + i) >> 2;
        w[0] = static_cast<uint32>(group);
        w[1] = static_cast<uint32>(group >> 32);
        w[2] = draw_low;
        w[3] = draw_high;
        uint32 k0 = seed_low, k1 = seed_high;
#pragma unroll
        for (int round = 0; round < 10; round++) {
            const uint64 p0 = multiply_wide(0xD2511F53u, w[0]), p1 = multiply_wide(0xCD9E8D57u, w[2]);
            w[0] = static_cast<uint32>(p1 >> 32) ^ w[1] ^ k0;
            w[1] = static_cast<uint32>(p1);
            w[2] = static_cast<uint32>(p0 >> 32) ^ w[3] ^ k1;
            w[3] = static_cast<uint32>(p0);
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
    }
};

// c0 + x (c1 + x (c2 + ...)), the coefficients rounded to the type of x.
template <class Real>
DEVICE Real polynomial(Real, double c0) {
    return static_cast<Real>(c0);
}
template <class Real, class... Doubles>
DEVICE Real polynomial(Real x, double c0, Doubles... others) {
    return static_cast<Real>(c0) + x * polynomial(x, others...);
}

// The numbers of rng/constants.py. log: -2 log(1 - g) / g, 0 <= g <= 1/2, its even and odd powers apart; sin_tail:
// (sin x - x) / x^3 and cos_tail: (cos x - 1 + x^2 / 2) / x^4 of z = x^2, |x| <= pi / 4.
DEVICE float log_quotient(float g) {
    const float square = g * g;
    return polynomial(square, 2.0, 0.6674012288, 0.5392254552, 2.515339277, 2.882215732) +
           g * polynomial(square, 0.9999857051, 0.4856101660, -0.4070777356, -3.391623664);
}
DEVICE float sin_tail(float z) { return polynomial(z, -1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4); }
DEVICE float cos_tail(float z) {
    return polynomial(z, 4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5);
}

DEVICE double log_quotient(double g) {
    const double square = g * g;
    return polynomial(square, 2.0, 0.6666666666331549, 0.3999998093661371, 0.28557281877290713, 0.19717543235214627,
                      -1.1926202539528048, -26.013111202621086, -174.59307677648522, -366.92622610434205,
                      -165.84649025792993) +
           g * polynomial(square, 1.000000000000128, 0.5000000034782972, 0.333339705071934, 0.252204972387629,
                          0.41273676185760877, 6.991930697298986, 77.4765533135472, 296.7779936021925,
                          313.4969273371988, 41.64091222540322);
}
DEVICE double sin_tail(double z) {
    return polynomial(z, -1.66666666666666324348e-01, 8.33333333332248946124e-03, -1.98412698298579493134e-04,
                      2.75573137070700676789e-06, -2.50507602534068634195e-08, 1.58969099521155010221e-10);
}
DEVICE double cos_tail(double z) {
    return polynomial(z, 4.16666666666666019037e-02, -1.38888888888741095749e-03, 2.48015872894767294178e-05,
                      -2.75573143513906633035e-07, 2.08757232129817482790e-09, -1.13596475577881948265e-11);
}

// Bits of a number: how many its fraction has, and the exponent of 1/2.
template <class Real>
struct Format;
template <>
struct Format<float> {
    static constexpr int SIZE = 23, EXPONENT_OF_HALF = 0x7E;
};
template <>
struct Format<double> {
    static constexpr int SIZE = 52, EXPONENT_OF_HALF = 0x3FE;
};

// w 2^-32 + 2^-33, in (0, 1].
template <class Real>
DEVICE Real uniform(uint32 w) {
    return fma(static_cast<Real>(w), static_cast<Real>(0x1p-32), static_cast<Real>(0x1p-33));
}

// 1 if w < floor(p 2^32), and NaN if p is no probability. At p = 1 the product has 33 bits.
template <class Real>
DEVICE Real fires(Real p, uint32 w) {
    const Real fired = p >= 1 || w < static_cast<uint32>(p * Real(0x1p32)) ? Real(1) : Real(0);
    return p >= 0 && p <= 1 ? fired : Real(bits_float(0x7FC00000u));
}

// sqrt(-2 log u) of the uniform of a word; u = 2^-k (1 - g).
template <class Real>
DEVICE Real radius(uint32 w) {
    typedef Format<Real> F;
    const bool upper = static_cast<int>(w) < 0;
    const Real t = fma(static_cast<Real>(static_cast<int>(w)), static_cast<Real>(0x1p-32), static_cast<Real>(0x1p-33));
    const auto bits = float_bits(t);
    const int k = F::EXPONENT_OF_HALF - static_cast<int>(bits >> F::SIZE);  // means nothing in the upper half
    const auto scaled = bits + (static_cast<decltype(bits)>(k) << F::SIZE);
    const Real g = upper ? -t : static_cast<Real>(1) - bits_float(scaled);
    const Real whole = upper ? static_cast<Real>(0) : static_cast<Real>(k) * static_cast<Real>(1.3862943611198906);
    return sqrt_normal(whole + g * log_quotient(g));
}

// x, negated where the top bit of the word is set.
DEVICE float with_sign(float x, uint32 w) { return bits_float(float_bits(x) ^ (w & 0x80000000u)); }
DEVICE double with_sign(double x, uint32 w) {
    return bits_float(float_bits(x) ^ static_cast<uint64>(w & 0x80000000u) << 32);
}

// Cosine and sine of the angle 2 pi w / 2^32: q quarter turns, q the nearest, and a remainder of at most an eighth.
template <class Real>
DEVICE void cos_sin(uint32 w, Real& cosine, Real& sine) {
    const uint32 turned = w + 0x20000000u;  // its two top bits are q; the cosine is negative for q = 1 and 2
    const Real x = static_cast<Real>(static_cast<int>(w << 2)) * static_cast<Real>(6.283185307179586 * 0x1p-34);
    const Real z = x * x;
    const Real sin = x + x * z * sin_tail(z);
    const Real cos = fma(static_cast<Real>(-0.5), z, static_cast<Real>(1)) + z * z * cos_tail(z);
    const bool odd = (turned & 0x40000000u) != 0;
    cosine = with_sign(odd ? sin : cos, w + 0x60000000u);
    sine = with_sign(odd ? cos : sin, turned);
}

// The standard normals of a group.
template <class Real>
DEVICE void normals(const uint32 (&w)[4], Real (&z)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const Real r = radius<Real>(w[i]);
        Real cosine, sine;
        cos_sin(w[i + 1], cosine, sine);
        z[i] = r * cosine;
        z[i + 1] = r * sine;
    }
}
