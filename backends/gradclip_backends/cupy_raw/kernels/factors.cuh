// From an ideal factor to the one that is applied: gradclip_core/precision/factors.py, to the bit.
// docs/numerics.md ("The shave") derives the constants.
#pragma once
#include "norms.cuh"

#define SHAVE_FLOAT32 (0x1p-24 + 0x1p-38)
#define SHAVE_FLOAT64 (0x1p-52 + 0x1p-80)
#define SHAVE_GENERAL 0x1p-38
#define SMALLEST_FLOAT32 0x1p-149
#define SMALLEST_FLOAT64 0x1p-1074

// count^(1/p): what `count` roundings to the smallest number can add to a p-norm, in units of it.
template <bool GENERAL>
INLINE double root_of_count(double count, double order) {
    if (GENERAL) return pow(count, 1.0 / order);
    return order == 2.0 ? __dsqrt_rn(count) : order == 1.0 ? count : 1.0;
}

// limit / norm rounded to a quantum once, a few ulps and that quantum taken off.
INLINE double below(double limit, const Norm& norm) {
    const i64 up = norm.exponent < 0 ? -norm.exponent : 0, down = norm.exponent > 0 ? -norm.exponent : 0;
    const double quotient = mul(scale_by_power(limit, up) / norm.root, 1.0 - 0x1p-50);
    return towards_zero(scale_by_power(quotient, down));
}

// Where float32 and 16-bit memory takes part. Not yet rounded.
template <bool GENERAL>
INLINE double aim_float32(double max_norm, const Norm& norm, double size, double order) {
    const double limit = mul(max_norm, 1.0 - SHAVE_FLOAT32) - mul(SMALLEST_FLOAT32, root_of_count<GENERAL>(size, order));
    const double aim = scale_by_power(limit, -norm.exponent) / norm.root;
    return maximum(aim < 0x1p-900 ? below(limit, norm) : aim, 0.0);
}

// For float64 memory alone: the quotient in twice the precision, shaved, rounded down.
template <bool GENERAL>
INLINE double aim_float64(double max_norm, const Norm& norm, double size, double order) {
    const double target = max_norm - mul(SMALLEST_FLOAT64, root_of_count<GENERAL>(size, order));
    const double limit = scale_by_power(target, -norm.exponent);
    const double quotient = limit / norm.root;
    const double product = mul(quotient, norm.root);
    const double lost = lost_in_product(quotient, norm.root, product);
    const double rest = (((limit - product) - lost) - mul(quotient, norm.rest)) / norm.root;
    const double less = rest - mul(quotient, GENERAL ? SHAVE_GENERAL : SHAVE_FLOAT64);
    double factor = quotient + less;
    const double error = lost_in_sum(quotient, less, factor);
    if (error < 0.0) factor = towards_zero(factor);
    // Where the errors themselves would underflow, or a product's halves overflow, a few ulps are given away instead.
    if (minimum(limit, quotient) < 0x1p-900 || is_nan(factor)) factor = below(target, norm);
    return maximum(factor, 0.0);
}

// The largest number of 24 bits that is not larger.
INLINE double round_down_float32(double factor) {
    int exponent;
    const double fraction = split_exponent(factor, &exponent);
    return scale_by_power(mul(floor(mul(fraction, 0x1p24)), 0x1p-24), exponent);
}

// `factor` as two float32 multipliers, the second a power of two, 1 in all ordinary cases.
INLINE void split(double factor, float* coarse, float* fine) {
    int exponent;
    split_exponent(factor, &exponent);
    const bool ordinary =
        factor == 0.0 || !is_finite(factor) || (factor >= 0x1p-126 && factor < 0x1p127);
    exponent = ordinary ? 0 : exponent < -149 ? -149 : exponent > 127 ? 127 : exponent;
    *coarse = double_to_float(minimum(scale_by_power(factor, -exponent), Storage<2>::largest()));  // 0·inf is NaN
    *fine = double_to_float(power_of_two(exponent));
}
