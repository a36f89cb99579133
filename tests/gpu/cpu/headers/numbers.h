// Arithmetic that CUDA has and C++ lacks: bit casts, roundings by name, bit counts, min and max.
#pragma once
#include <math.h>
#include <string.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

namespace cuda_on_cpu {

template <class To, class From>
inline To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

template <class A, class B>
using Common = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, std::common_type_t<A, B>>;

}  // namespace cuda_on_cpu

using std::isfinite;
using std::isinf;
using std::isnan;
using std::signbit;

// Of a number and a NaN, the number.
template <class A, class B>
inline cuda_on_cpu::Common<A, B> min(A a, B b) {
    const cuda_on_cpu::Common<A, B> x = a, y = b;
    if constexpr (std::is_floating_point_v<decltype(x + y)>) return std::fmin(x, y);
    return y < x ? y : x;
}
template <class A, class B>
inline cuda_on_cpu::Common<A, B> max(A a, B b) {
    const cuda_on_cpu::Common<A, B> x = a, y = b;
    if constexpr (std::is_floating_point_v<decltype(x + y)>) return std::fmax(x, y);
    return x < y ? y : x;
}

inline int __float_as_int(float x) { return cuda_on_cpu::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_on_cpu::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return cuda_on_cpu::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_on_cpu::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_on_cpu::bit_cast<double>(x); }
inline int __double2hiint(double x) { return static_cast<int>(cuda_on_cpu::bit_cast<uint64_t>(x) >> 32); }
inline int __double2loint(double x) { return static_cast<int>(cuda_on_cpu::bit_cast<uint64_t>(x)); }
inline double __hiloint2double(int high, int low) {
    return cuda_on_cpu::bit_cast<double>(uint64_t{static_cast<unsigned>(high)} << 32 | static_cast<unsigned>(low));
}

// Built without contraction, so that each operator rounds once, as these do.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

inline float __double2float_rn(double x) { return static_cast<float>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline double __ll2double_rn(long long x) { return static_cast<double>(x); }
inline double __ull2double_rn(unsigned long long x) { return static_cast<double>(x); }

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
