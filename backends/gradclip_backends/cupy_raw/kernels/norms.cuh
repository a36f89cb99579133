// From per-segment sums to the norm of a scope: gradclip_core/norms.py, by one warp for a scope.
//
// A norm is root * 2^exponent; rest is what root is short of, where carries were measured.
#pragma once
#include "storage.cuh"
#include "tree.cuh"

struct Norm {
    double root, rest;
    i64 exponent;
};

// The segments of a scope, in the container's order.
struct Members {
    u64 address;  // of their numbers, or 0 where they are consecutive
    u64 start, count;
    INLINE u64 operator[](u64 i) const {
        return address ? global<const u32>(address)[start + i] : start + i;
    }
};

// tree_sum of any number of values up to 4096², whose block sums are the second level's values: they
// come in order, so each joins its lane at once, and nothing has to be stored.
template <class T, class Values>
INLINE T tree_of_any(u64 count, const Values& value) {
    if (count <= BLOCK) return tree_of<T>(static_cast<u32>(count), value);
    const u32 thread = threadIdx.x & 31;
    T lanes[8] = {};
#pragma unroll 1
    for (u64 block = 0; block * BLOCK < count; ++block) {
        const u64 left = count - block * BLOCK;
        const T sum = tree_of<T>(left < BLOCK ? static_cast<u32>(left) : BLOCK,
                                 [&](u32 i) { return value(block * BLOCK + i); });
        const u32 lane = static_cast<u32>(block) % LANES;
#pragma unroll
        for (u32 v = 0; v < 8; ++v)
            if (lane == v * 32 + thread) lanes[v] = add(lanes[v], sum);
    }
    return fold<1>(lanes);
}

// numpy.maximum.reduce over the scope, in any order: NaN where any is.
template <class Values>
INLINE double largest_of_any(u64 count, const Values& value) {
    double found = 0.0;
    for (u64 i = threadIdx.x & 31; i < count; i += 32) found = maximum(found, value(i));
#pragma unroll
    for (int mask = 16; mask; mask /= 2) found = maximum(found, exchange(found, mask));
    return found;
}

INLINE i64 exponent_of(const Record& record, u64 segment) {
    return static_cast<i64>(record.counts(EXPONENTS)[segment]);
}

// The largest exponent among the members that weigh anything, 0 where none does.
template <class Exponents>
INLINE i64 top_exponent(u64 count, i64 least, const Exponents& exponent) {
    double top = static_cast<double>(least);
    for (u64 i = threadIdx.x & 31; i < count; i += 32) {
        const double e = static_cast<double>(exponent(i));
        top = e > top ? e : top;
    }
#pragma unroll
    for (int mask = 16; mask; mask /= 2) {
        const double other = exchange(top, mask);
        top = other > top ? other : top;
    }
    return static_cast<i64>(top);
}

#define NO_EXPONENT -100000

// ord 1 and 2.
INLINE Norm combine_sums(const Record& record, const Members& members, double order, bool carried) {
    const double* const sums = record.numbers(SUMS);
    const double* const carries = record.numbers(CARRIES);
    const i64 power = order == 1.0 ? 1 : 2;
    Carried total = {0.0, 0.0};
    i64 top = 0;
    if (members.count == 1) {
        const u64 segment = members[0];
        total = {sums[segment], carries[segment]};
        top = exponent_of(record, segment);
    } else {
        if (record.state()->rescale) {
            top = top_exponent(members.count, NO_EXPONENT, [&](u64 i) {
                return sums[members[i]] > 0.0 ? exponent_of(record, members[i]) : static_cast<i64>(NO_EXPONENT);
            });
            if (top == NO_EXPONENT) top = 0;
        }
        const auto scaled = [&](double x, u64 segment) {
            return record.state()->rescale ? scale_by_power(x, power * (exponent_of(record, segment) - top)) : x;
        };
        if (carried)
            total = tree_of_any<Carried>(members.count, [&](u64 i) {
                const u64 segment = members[i];
                return Carried{scaled(sums[segment], segment), scaled(carries[segment], segment)};
            });
        else
            total.sum = tree_of_any<double>(members.count, [&](u64 i) { return scaled(sums[members[i]], members[i]); });
    }
    if (order == 1.0) return {total.sum, carried ? total.carry : 0.0, top};
    const double root = __dsqrt_rn(total.sum);
    const double square = mul(root, root);
    // One Newton step from root towards the root of sum + carry.
    const double short_of = ((total.sum - square) - lost_in_product(root, root, square)) + total.carry;
    return {root, carried && root > 0.0 ? short_of / mul(2.0, root) : 0.0, top};
}

// What infinities and NaNs make of the norm of a segment's finite values.
INLINE double with_nonfinite(const Record& record, u64 segment, double norm, bool sanitized) {
    if (sanitized) return norm;
    if (record.counts(NANS)[segment]) return not_a_number();
    return record.counts(INFS)[segment] ? infinity() : norm;
}

INLINE Norm combine_largest(const Record& record, const Members& members, bool sanitized) {
    const double root = largest_of_any(members.count, [&](u64 i) {
        return with_nonfinite(record, members[i], record.numbers(LARGEST)[members[i]], sanitized);
    });
    return {root, 0.0, 0};
}

// A general order p: top · (Σ (norm / top)^p)^(1/p), the exponent taken out first.
INLINE Norm combine_powers(const Record& record, const Members& members, double p, bool sanitized) {
    const auto norm_of = [&](u64 i, int* exponent) {
        const u64 segment = members[i];
        const double fraction = split_exponent(record.numbers(UNITS)[segment], exponent);
        const double norm = mul(fraction, pow(record.numbers(SUMS)[segment], 1.0 / p));
        return with_nonfinite(record, segment, norm, sanitized);
    };
    const i64 common = top_exponent(members.count, -1100, [&](u64 i) {
        int exponent;
        const double norm = norm_of(i, &exponent);
        return norm != 0.0 ? static_cast<i64>(exponent) : static_cast<i64>(-1100);
    });
    const auto scaled = [&](u64 i) {
        int exponent;
        const double norm = norm_of(i, &exponent);
        return scale_by_power(norm, exponent - common);
    };
    const double top = largest_of_any(members.count, scaled);
    if (top == 0.0 || !is_finite(top)) return {top, 0.0, 0};
    const double sum = tree_of_any<double>(members.count, [&](u64 i) { return pow(scaled(i) / top, p); });
    return {mul(top, pow(sum, 1.0 / p)), 0.0, common};
}

// GENERAL: of an order other than 1, 2 and infinity.
template <bool GENERAL>
INLINE Norm norm_of_scope(const Record& record, const Members& members, double order, bool carried, bool sanitized) {
    if (GENERAL) return combine_powers(record, members, order, sanitized);
    if (order == infinity()) return combine_largest(record, members, sanitized);
    return combine_sums(record, members, order, carried);
}
