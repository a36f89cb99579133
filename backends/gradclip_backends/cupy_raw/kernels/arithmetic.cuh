// The operations whose rounding must not depend on how this is compiled.
//
// CuPy appends -ftz=true to every compilation, which takes float32 subnormals for zeros wherever the
// compiler chooses the instruction. So every float32 operation is an instruction of our own choosing
// here. float64 is never flushed; kernels are compiled with --fmad=false, and products that must not
// be fused with a sum are written with mul() besides.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
typedef unsigned char u8;

#define FULL_WARP 0xffffffffu
#define INLINE __device__ __forceinline__

#ifdef CUDA_ON_CPU
// Where there is no GPU the tests supply the same operations, see tests/gpu/cpu.
#include "twins.h"
#else

INLINE float multiply(float a, float b) {
    float y;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

INLINE float multiply_add(float a, float b, float c) {
    float y;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(y) : "f"(a), "f"(b), "f"(c));
    return y;
}

INLINE bool less(float a, float b) {
    u32 y;
    asm("{ .reg .pred p; setp.lt.f32 p, %1, %2; selp.u32 %0, 1, 0, p; }" : "=r"(y) : "f"(a), "f"(b));
    return y != 0;
}

INLINE double float_to_double(float a) {
    double y;
    asm("cvt.f64.f32 %0, %1;" : "=d"(y) : "f"(a));
    return y;
}

INLINE float double_to_float(double a) {
    float y;
    asm("cvt.rn.f32.f64 %0, %1;" : "=f"(y) : "d"(a));
    return y;
}

INLINE float half_to_float(unsigned short a) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(a));
    return y;
}

INLINE unsigned short float_to_half(float a) {
    unsigned short y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(a));
    return y;
}

// The same number, and the compiler does not know that it is: what is computed from it again is not kept
// in registers meanwhile.
INLINE u64 opaque(u64 x) {
    asm volatile("" : "+l"(x));
    return x;
}

// An address out of a table is a generic pointer to the compiler, which then cannot use the
// instructions for global memory: this tells it.
template <typename T>
INLINE T* global(u64 address) {
    // NVRTC 12.6 to 13.0 never end where they can see that the address comes out of a kernel's parameter.
    asm("" : "+l"(address));
    return reinterpret_cast<T*>(__cvta_global_to_generic(static_cast<size_t>(address)));
}
#endif

#define INFINITY_BITS 0x7ff0000000000000ull
#define LARGEST_DOUBLE 1.7976931348623157e308

INLINE double infinity() { return __longlong_as_double(INFINITY_BITS); }
INLINE double not_a_number() { return __longlong_as_double(0x7ff8000000000000ull); }
INLINE u64 bits_of(double a) { return static_cast<u64>(__double_as_longlong(a)); }
INLINE double magnitude(double a) { return __longlong_as_double(bits_of(a) & 0x7fffffffffffffffull); }
INLINE bool is_nan(double a) { return a != a; }
INLINE bool is_finite(double a) { return magnitude(a) < infinity(); }
INLINE double mul(double a, double b) { return __dmul_rn(a, b); }

// The larger and the smaller of two, NaN if either is: numpy.maximum and numpy.minimum.
INLINE double maximum(double a, double b) { return is_nan(a) ? a : is_nan(b) ? b : a > b ? a : b; }
INLINE double minimum(double a, double b) { return is_nan(a) ? a : is_nan(b) ? b : a < b ? a : b; }

// 2^n for -1022 <= n <= 1023.
INLINE double power_of_two(int n) { return __longlong_as_double(static_cast<u64>(n + 1023) << 52); }

// x * 2^n, rounded once. The two steps down stop where the last one alone can round.
INLINE double scale_by_power(double x, i64 by) {
    int n = by > 5000 ? 5000 : by < -5000 ? -5000 : static_cast<int>(by);
    for (int i = 0; i < 2 && n > 1023; ++i) { x = mul(x, power_of_two(1023)); n -= 1023; }
    for (int i = 0; i < 2 && n < -1022; ++i) { x = mul(x, power_of_two(-969)); n += 969; }
    n = n > 1023 ? 1023 : n < -1022 ? -1022 : n;
    return mul(x, power_of_two(n));
}

// x = fraction * 2^exponent, fraction in [1/2, 1); zeros, infinities and NaNs have exponent 0.
INLINE double split_exponent(double x, int* exponent) {
    u64 bits = bits_of(x);
    int shift = 0;
    if ((bits & INFINITY_BITS) == 0) {  // zero, or subnormal
        bits = bits_of(mul(x, power_of_two(64)));
        shift = -64;
    }
    const int biased = static_cast<int>(bits >> 52) & 0x7ff;
    if (biased == 0 || biased == 0x7ff) {
        *exponent = 0;
        return x;
    }
    *exponent = biased - 1022 + shift;
    return __longlong_as_double((bits & 0x800fffffffffffffull) | 0x3fe0000000000000ull);
}

// The next double towards zero.
INLINE double towards_zero(double x) {
    return x == 0.0 || is_nan(x) ? x : __longlong_as_double(bits_of(x) - 1);
}

// What rounding takes from a sum and from a product, exactly: Knuth's two-sum, Dekker's product.
INLINE double lost_in_sum(double a, double b, double s) {
    const double t = s - a;
    return (a - (s - t)) + (b - t);
}

INLINE double upper_half(double a) {
    const double t = mul(a, 134217729.0);  // 2^27 + 1
    return t - (t - a);
}

INLINE double lost_in_product(double a, double b, double p) {
    const double ah = upper_half(a), al = a - ah, bh = upper_half(b), bl = b - bh;
    return ((mul(ah, bh) - p) + mul(ah, bl) + mul(al, bh)) + mul(al, bl);
}
