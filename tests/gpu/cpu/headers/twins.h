// The C++ twins of the kernels' inline PTX: what kernels/arithmetic.cuh includes where there is no GPU.
//
// A NaN comes out as on a GPU, where float32 and float16 know one alone.
// Comes after cuda.h, which it must not include: build.py looks for kernels where __global__ is no macro yet.
#pragma once

inline float one_nan(float a) { return a == a ? a : __uint_as_float(0x7fffffffu); }

inline float multiply(float a, float b) { return one_nan(a * b); }
inline float multiply_add(float a, float b, float c) { return one_nan(fmaf(a, b, c)); }
inline unsigned long long opaque(unsigned long long x) { return x; }
inline bool less(float a, float b) { return a < b; }
inline double float_to_double(float a) { return a; }
inline float double_to_float(double a) { return one_nan(static_cast<float>(a)); }

inline float half_to_float(unsigned short a) {
    const int fraction = a & 0x3ff, exponent = a >> 10 & 0x1f;
    float magnitude;
    if (exponent == 0x1f)
        magnitude = __uint_as_float(fraction ? 0x7fffffffu : 0x7f800000u);
    else if (exponent == 0)
        magnitude = ldexpf(static_cast<float>(fraction), -24);
    else
        magnitude = ldexpf(static_cast<float>(1024 + fraction), exponent - 25);
    return magnitude == magnitude && a >> 15 ? -magnitude : magnitude;
}

inline unsigned short float_to_half(float a) {
    if (a != a) return 0x7fff;
    const unsigned sign = __float_as_uint(a) >> 31 << 15;
    const double magnitude = fabs(static_cast<double>(a));
    if (magnitude >= 65520) return static_cast<unsigned short>(sign | 0x7c00);  // rounds to 65536
    const int exponent = magnitude < 0x1p-14 ? -14 : ilogb(magnitude);
    // Up to 2048 of them, which carries into the exponent by itself.
    const auto units = static_cast<unsigned>(nearbyint(ldexp(magnitude, 10 - exponent)));
    return static_cast<unsigned short>(sign | ((static_cast<unsigned>(exponent + 14) << 10) + units));
}

template <class T>
inline T* global(unsigned long long address) {
    return static_cast<T*>(__cvta_global_to_generic(address));
}
