// The storage types: how a 16-byte load becomes values, and how values are stored.
#pragma once
#include "arithmetic.cuh"

// float64 is as fast as float32's half on the processors of data centres, and runs at 1/64 of it on the
// others, conversions to it included. There a float32 becomes a float64 by moving its bits instead.
#ifndef DOUBLES_ARE_FAST
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000)
#define DOUBLES_ARE_FAST 1
#else
#define DOUBLES_ARE_FAST 0
#endif
#endif

#define FLOAT32_INFINITY 0x7f800000u
#define FLOAT32_NORMAL 0x00800000u

// What a fast pass keeps of magnitudes: enough to find the largest, and to see what it cannot sum.
struct Seen {
    u64 largest;  // float64: bits; otherwise the bits of a float32
    u32 least;    // least non-zero magnitude minus 1, where subnormals have to be seen
};

template <int DTYPE>
struct Storage;

// |x| as the bits of a float32 -> |x| as a float64. Subnormals come out as 0 where doubles are slow:
// they are seen by `least`, and the block is summed in another way.
INLINE double widen_magnitude(u32 code) {
#if DOUBLES_ARE_FAST
    return float_to_double(__uint_as_float(code));
#else
    const u32 high = code < FLOAT32_NORMAL ? 0u : (code >> 3) + 0x38000000u;
    return __hiloint2double(static_cast<int>(high), static_cast<int>(code << 29));
#endif
}

INLINE void see(Seen& seen, u32 code) {
    const u32 largest = static_cast<u32>(seen.largest);
    seen.largest = code > largest ? code : largest;
}

INLINE void see_least(Seen& seen, u32 code) {
#if !DOUBLES_ARE_FAST
    const u32 below = code - 1;  // 0 becomes the largest of all
    seen.least = below < seen.least ? below : seen.least;
#endif
}

template <>
struct Storage<0> {  // float16: every value is a normal float32, or zero
    typedef unsigned short Item;
    enum { WIDTH = 8 };
    static INLINE void unpack(const uint4& q, double (&x)[8], Seen& seen) {
        const u32 words[4] = {q.x & 0x7fff7fffu, q.y & 0x7fff7fffu, q.z & 0x7fff7fffu, q.w & 0x7fff7fffu};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const u32 code = __float_as_uint(half_to_float(static_cast<Item>(words[i / 2] >> (i % 2 * 16))));
            see(seen, code);
            x[i] = widen_magnitude(code);
        }
    }
    static INLINE double load(Item item) { return float_to_double(half_to_float(item)); }
    static INLINE float widen(Item item) { return half_to_float(item); }
    static INLINE Item narrow(float y) { return float_to_half(y); }
    static INLINE double largest() { return 65504.0; }
};

template <>
struct Storage<1> {  // bfloat16: the upper half of a float32
    typedef unsigned short Item;
    enum { WIDTH = 8 };
    static INLINE void unpack(const uint4& q, double (&x)[8], Seen& seen) {
        const u32 words[4] = {q.x & 0x7fff7fffu, q.y & 0x7fff7fffu, q.z & 0x7fff7fffu, q.w & 0x7fff7fffu};
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const u32 code = i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16;
            see(seen, code);
            see_least(seen, code);
            x[i] = widen_magnitude(code);
        }
    }
    static INLINE float widen(Item item) { return __uint_as_float(static_cast<u32>(item) << 16); }
    static INLINE double load(Item item) { return float_to_double(widen(item)); }
    static INLINE Item narrow(float y) {
        const u32 bits = __float_as_uint(y);
        // To nearest, ties to even. A NaN stays one: rounding its payload could carry into an infinity.
        if ((bits & 0x7fffffffu) > FLOAT32_INFINITY) return static_cast<Item>((bits >> 16 & 0x8000u) | 0x7fc0u);
        return static_cast<Item>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
    static INLINE double largest() { return 255.0 * 1.329227995784915872903807060280344576e36; }  // 255 * 2^120
};

template <>
struct Storage<2> {  // float32
    typedef float Item;
    enum { WIDTH = 4 };
    static INLINE void unpack(const uint4& q, double (&x)[4], Seen& seen) {
        const u32 words[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const u32 code = words[i] & 0x7fffffffu;
            see(seen, code);
            see_least(seen, code);
            x[i] = widen_magnitude(code);
        }
    }
    static INLINE double load(Item item) { return float_to_double(item); }
    static INLINE float widen(Item item) { return item; }
    static INLINE Item narrow(float y) { return y; }
    static INLINE double largest() { return 3.4028234663852885981e38; }
};

template <>
struct Storage<3> {  // float64
    typedef double Item;
    enum { WIDTH = 2 };
    static INLINE void unpack(const uint4& q, double (&x)[2], Seen& seen) {
        x[0] = __hiloint2double(static_cast<int>(q.y & 0x7fffffffu), static_cast<int>(q.x));
        x[1] = __hiloint2double(static_cast<int>(q.w & 0x7fffffffu), static_cast<int>(q.z));
#pragma unroll
        for (int i = 0; i < 2; ++i) seen.largest = bits_of(x[i]) > seen.largest ? bits_of(x[i]) : seen.largest;
    }
    static INLINE double load(Item item) { return item; }
    static INLINE Item widen(Item item) { return item; }
    static INLINE Item narrow(Item y) { return y; }
    static INLINE double largest() { return LARGEST_DOUBLE; }
};

// Whether a fast pass summed what it should, and the largest magnitude if so.
template <int DTYPE>
INLINE bool summed_all(const Seen& seen, double* largest) {
    if (DTYPE == 3) {
        *largest = __longlong_as_double(static_cast<i64>(seen.largest));
        return seen.largest < INFINITY_BITS;
    }
    const u32 code = static_cast<u32>(seen.largest);
    *largest = float_to_double(__uint_as_float(code));
    return code < FLOAT32_INFINITY && seen.least >= FLOAT32_NORMAL - 1;
}
