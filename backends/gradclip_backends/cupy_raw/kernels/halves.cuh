// 16-bit blocks where float64 is slow: a lane's 16 terms as integers, as long as that is exact.
//
// One float64 operation an element takes up to twice as long as reading it on processors whose float64
// runs at 1/64. But the 16 values of a lane mostly lie within 2^12 (float16) or 2^15 (bfloat16) of each
// other: then they are integers below 2^23 in units of the least one's last bit, the sum of their squares
// is one below 2^50, and no addition of the definition would round. So any exact way of adding gives its
// bits, and that of integers costs a 32-bit multiply-add an element, and one float64 addition a lane.
// A lane that is spread wider is summed as the definition says.
#pragma once
#include "storage.cuh"

// 2^23 + n holds n in its last 23 bits.
#define INTEGER_BIAS 8388608.0f
#define INTEGER_BITS 0x007fffffu

template <int DTYPE>
struct Lane16 {
    u32 codes[16];  // |x| as float32 bits

    INLINE u32 most() const {
        u32 found = 0;
#pragma unroll
        for (int r = 0; r < 16; ++r) found = codes[r] > found ? codes[r] : found;
        return found;
    }
    // The least that is not zero, minus 1; the largest of all where there is none.
    INLINE u32 least() const {
        u32 found = ~0u;
#pragma unroll
        for (int r = 0; r < 16; ++r) found = codes[r] - 1 < found ? codes[r] - 1 : found;
        return found;
    }
};

// The exponent of the unit in which all 16 are integers.
template <int DTYPE>
INLINE int unit_exponent(u32 least_minus_1) {
    const int exponent = static_cast<int>((least_minus_1 + 1) >> 23) - 127;
    if (DTYPE == 1) return exponent - 7;
    return exponent - 10 > -24 ? exponent - 10 : -24;  // no float16 is finer than 2^-24
}

template <int POWER, int DTYPE>
INLINE double sum_lane(const Lane16<DTYPE>& lane, u32 most, u32 least) {
    if (most == 0) return 0.0;
    const int unit = unit_exponent<DTYPE>(least);
    const int top = static_cast<int>(most >> 23) - 126;  // every value is below 2^top
    // Not subnormal, a scale that is a float32, and below 2^23 units. An infinity is none of it.
    const bool exact = least >= FLOAT32_NORMAL - 1 && unit >= -126 && top - unit <= 23;
    if (!exact) {
        double sum = 0.0;
#pragma unroll
        for (int r = 0; r < 16; ++r) {
            const double x = widen_magnitude(lane.codes[r]);
            sum = POWER == 1 ? sum + x : __fma_rn(x, x, sum);
        }
        return sum;
    }
    const float scale = __uint_as_float(static_cast<u32>(127 - unit) << 23);
    u64 total = 0;
#pragma unroll
    for (int r = 0; r < 16; ++r) {
        const u32 n = __float_as_uint(multiply_add(__uint_as_float(lane.codes[r]), scale, INTEGER_BIAS)) & INTEGER_BITS;
        total += POWER == 1 ? n : static_cast<u64>(n) * n;
    }
    // 2^52 + total holds total in its last 52 bits; times a power of two by adding to the exponent.
    const double whole = __longlong_as_double(static_cast<i64>(total | 0x4330000000000000ull)) - 4503599627370496.0;
    return __longlong_as_double(static_cast<i64>(bits_of(whole) + (static_cast<u64>(POWER * unit) << 52)));
}

template <int DTYPE>
INLINE u32 half_code(u32 word, int upper) {
    if (DTYPE == 1) return upper ? word & 0x7fff0000u : word << 16 & 0x7fff0000u;
    return __float_as_uint(half_to_float(static_cast<unsigned short>(word >> (upper * 16)))) & 0x7fffffffu;
}

// A full, aligned block: 16 loads of 16 bytes, of which each brings a value to each of 8 lanes.
template <int POWER, int DTYPE>
INLINE void sum_halves(const uint4* x, Seen& seen, double (&lanes)[8]) {
    const u32 thread = threadIdx.x & 31;
    uint4 q[16];
#pragma unroll
    for (int r = 0; r < 16; ++r) q[r] = x[r * 32 + thread];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        Lane16<DTYPE> lane;
#pragma unroll
        for (int r = 0; r < 16; ++r) {
            const u32 word = j / 2 == 0 ? q[r].x : j / 2 == 1 ? q[r].y : j / 2 == 2 ? q[r].z : q[r].w;
            lane.codes[r] = half_code<DTYPE>(word, j % 2);
        }
        const u32 most = lane.most(), least = lane.least();
        see(seen, most);
        if (DTYPE == 1 && least < seen.least) seen.least = least;
        lanes[j] = sum_lane<POWER, DTYPE>(lane, most, least);
    }
}
