// tree_sum, by one warp for 4096 elements: 256 lanes in 8 registers of 32 threads.
//
// WIDTH lanes that are neighbours belong to one thread, as many as a 16-byte load brings:
//   lane = v * 32 * WIDTH + thread * WIDTH + j,   register v * WIDTH + j,   v < 8 / WIDTH, j < WIDTH
// The folds of the definition then are: over v within a thread, over threads by five shuffles, over j.
// While several registers are left, two threads share the work of a shuffle: each sends the half that
// the other keeps. So a fold costs 12 additions a thread, not 47, which counts where float64 is slow.
#pragma once
#include "record.cuh"

INLINE double exchange(double x, int mask) { return __shfl_xor_sync(FULL_WARP, x, mask); }

// How a value is added to another: a number, or a number with what rounding took from it.
struct Carried {
    double sum, carry;
};
INLINE double add(double a, double b) { return a + b; }
INLINE Carried add(Carried a, Carried b) {
    const double s = a.sum + b.sum;
    return {s, (a.carry + b.carry) + lost_in_sum(a.sum, b.sum, s)};
}
INLINE Carried exchange(Carried x, int mask) { return {exchange(x.sum, mask), exchange(x.carry, mask)}; }
INLINE double largest_of_warp(double x) {
#pragma unroll
    for (int mask = 16; mask; mask /= 2) {
        const double other = exchange(x, mask);
        x = other > x ? other : x;
    }
    return x;
}

template <int WIDTH, class T>
INLINE T fold(T (&lanes)[8]) {
    const u32 thread = threadIdx.x & 31;
#pragma unroll
    for (int half = 4; half >= WIDTH; half /= 2) {
#pragma unroll
        for (int i = 0; i < half; ++i) lanes[i] = add(lanes[i], lanes[i + half]);
    }
    int mask = 16;
#pragma unroll
    for (int half = WIDTH / 2; half; half /= 2, mask /= 2) {
        const bool upper = (thread & mask) != 0;
#pragma unroll
        for (int i = 0; i < half; ++i) {
            const T given = upper ? lanes[i] : lanes[i + half];
            const T kept = upper ? lanes[i + half] : lanes[i];
            lanes[i] = add(kept, exchange(given, mask));
        }
    }
    T total = lanes[0];
#pragma unroll
    for (; mask; mask /= 2) total = add(total, exchange(total, mask));
    mask = 16;
#pragma unroll
    for (int half = WIDTH / 2; half; half /= 2, mask /= 2) total = add(total, exchange(total, mask));
    return total;
}

// The sum of n <= 4096 values, value(i) being the i-th; every thread gets it.
template <class T, class Values>
INLINE T tree_of(u32 n, const Values& value) {
    const u32 thread = threadIdx.x & 31;
    T lanes[8] = {};
#pragma unroll 1
    for (u32 row = 0; row < n; row += LANES) {
#pragma unroll
        for (u32 v = 0; v < 8; ++v) {
            const u32 i = row + v * 32 + thread;
            if (i < n) lanes[v] = add(lanes[v], value(i));
        }
    }
    return fold<1>(lanes);
}

// A block's number becomes its segment's: whoever stores the last of up to 4096 siblings sums them.
//
// Nodes of every level stand in the slots of the blocks: a parent in its first child's, which nobody
// reads any more. `second` is the largest magnitude, or the carry of the sum.
struct Nodes {
    u64 address;
    u64 blocks;
    u64 capacity;  // the counters are where they are for every number of blocks
    INLINE u32* arrived() const { return global<u32>(address); }
    INLINE double* sums() const { return global<double>(address + 4 * capacity); }
    INLINE double* seconds() const { return sums() + capacity; }
};

// __ldcg: other warps have written these, so no cache of this processor may answer.
INLINE void reduce_siblings(const Nodes& nodes, u64 base, u64 stride, u32 n, double& sum, double& largest) {
    sum = tree_of<double>(n, [&](u32 i) { return __ldcg(nodes.sums() + base + i * stride); });
    double found = 0.0;
    for (u32 i = threadIdx.x & 31; i < n; i += 32) {
        const double x = __ldcg(nodes.seconds() + base + i * stride);
        found = x > found ? x : found;
    }
    largest = largest_of_warp(found);
}

INLINE void reduce_siblings(const Nodes& nodes, u64 base, u64 stride, u32 n, Carried& sum, double& carry) {
    sum = tree_of<Carried>(n, [&](u32 i) {
        return Carried{__ldcg(nodes.sums() + base + i * stride), __ldcg(nodes.seconds() + base + i * stride)};
    });
    carry = sum.carry;
}

INLINE double summed(double node) { return node; }
INLINE double summed(Carried node) { return node.sum; }

// True in the warp that has the segment's own number, in `sum` and `second`.
template <class T>
INLINE bool climb(const Nodes& nodes, const Place& place, T& sum, double& second) {
    const u32 thread = threadIdx.x & 31;
    u64 index = place.index, count = place.count, stride = 1;
    for (u32 level = 0; count > 1; ++level) {
        const u64 parent = index / BLOCK, left = count - parent * BLOCK;
        const u32 siblings = left < BLOCK ? static_cast<u32>(left) : BLOCK;
        const u64 base = place.first + parent * BLOCK * stride;
        u32 last = 0;
        if (siblings > 1) {
            if (thread == 0) {
                nodes.sums()[place.first + index * stride] = summed(sum);
                nodes.seconds()[place.first + index * stride] = second;
                // The counter of a level stands a slot further, or a level would count in its child's.
                u32* const arrived = nodes.arrived() + base + level;
                __threadfence();
                last = atomicAdd(arrived, 1u) == siblings - 1;
                __threadfence();
                if (last) *arrived = 0;  // as the next call expects it
            }
            last = __shfl_sync(FULL_WARP, last, 0);
            if (!last) return false;
            __syncwarp();
            reduce_siblings(nodes, base, stride, siblings, sum, second);
        }
        index = parent;
        count = (count + BLOCK - 1) / BLOCK;
        stride *= BLOCK;
    }
    return true;
}
