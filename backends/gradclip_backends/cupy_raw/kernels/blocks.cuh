// The sum over one block of up to 4096 elements by one warp: fast, and with every option.
#pragma once
#include "halves.cuh"
#include "storage.cuh"
#include "tree.cuh"

// Options of a read pass, alike for every buffer of the call.
// OWN_BOUNDS: each segment's own, in the record, as they compare with what is stored.
enum { SANITIZE = 1, BOUNDS = 2, OWN_BOUNDS = 4 };

struct Limits {  // by value, for each storage type, of the unscaled gradient
    double low[4], high[4];
};

// x² or |x|. The squares of 16- and 32-bit values are exact, so that fusing changes no bit.
template <int POWER, int DTYPE>
INLINE double accumulate(double total, double x) {
    if (POWER == 1) return total + magnitude(x);
    return DTYPE == FLOAT64 ? total + mul(x, x) : __fma_rn(x, x, total);
}

// A full, aligned block by 16-byte loads, eight of them under way at a time.
template <int POWER, int DTYPE>
INLINE void sum_vectors(const uint4* x, Seen& seen, double (&lanes)[8]) {
    typedef Storage<DTYPE> S;
    constexpr int WIDTH = S::WIDTH, BATCHES = BLOCK / WIDTH / 32 / 8;
    const u32 thread = threadIdx.x & 31;
#pragma unroll 1
    for (int batch = 0; batch < BATCHES; ++batch) {
        uint4 q[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) q[i] = x[(batch * 8 + i) * 32 + thread];
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            double values[WIDTH];
            S::unpack(q[i], values, seen);
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) {
                double& lane = lanes[i % (8 / WIDTH) * WIDTH + j];
                lane = accumulate<POWER, DTYPE>(lane, values[j]);
            }
        }
    }
}

template <int POWER, int DTYPE>
INLINE double sum_full_block(const uint4* x, Seen& seen) {
    double lanes[8] = {};
    if constexpr (Storage<DTYPE>::WIDTH == 8 && !DOUBLES_ARE_FAST) sum_halves<POWER, DTYPE>(x, seen, lanes);
    else sum_vectors<POWER, DTYPE>(x, seen, lanes);
    return fold<Storage<DTYPE>::WIDTH>(lanes);
}

// What one block gives. `largest` is that of the finite values.
struct Found {
    double sum, largest;
    u32 infs, nans, outside;
};

INLINE u32 count_in_warp(u32 mine) {
#pragma unroll
    for (int mask = 16; mask; mask /= 2) mine += __shfl_xor_sync(FULL_WARP, mine, mask);
    return mine;
}

// Any block, an element at a time; neighbours are read by neighbours, whatever the alignment.
// `term` makes of a value what is summed.
template <int DTYPE, class Term>
INLINE Found sum_elements(u64 pointer, u32 n, u32 options, double low, double high, const Term& term) {
    typedef Storage<DTYPE> S;
    const typename S::Item* const x = global<const typename S::Item>(pointer);
    Found found = {0.0, 0.0, 0, 0, 0};
    found.sum = tree_of<double>(n, [&](u32 i) {
        double value = S::load(x[i]);
        found.outside += (options & BOUNDS) && (value < low || value > high);
        found.nans += is_nan(value);
        found.infs += magnitude(value) == infinity();
        if ((options & SANITIZE) && !is_finite(value))
            value = is_nan(value) ? 0.0 : value < 0.0 ? -S::largest() : S::largest();
        const double size = magnitude(value);
        found.largest = is_finite(size) && size > found.largest ? size : found.largest;
        return term(value);
    });
    found.largest = largest_of_warp(found.largest);
    found.infs = count_in_warp(found.infs);
    found.nans = count_in_warp(found.nans);
    found.outside = count_in_warp(found.outside);
    return found;
}

template <int POWER, int DTYPE>
INLINE Found sum_block(const Place& place, u32 options, double low, double high) {
    if (place.n == BLOCK && place.pointer % 16 == 0) {
        Seen seen = {0, ~0u};
        Found found = {sum_full_block<POWER, DTYPE>(global<const uint4>(place.pointer), seen), 0.0, 0, 0, 0};
        bool fine = summed_all<DTYPE>(seen, &found.largest);
        found.largest = largest_of_warp(found.largest);
        // Nothing lies outside of [low, high] where nothing reaches the nearer of the two.
        fine = fine && (!(options & BOUNDS) || (found.largest <= high && -found.largest >= low));
        if (__all_sync(FULL_WARP, fine)) return found;
    }
    return sum_elements<DTYPE>(place.pointer, place.n, options, low, high,
                               [](double x) { return POWER == 1 ? magnitude(x) : mul(x, x); });
}
