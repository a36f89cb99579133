// What rounding takes from the sums of float64: the same tree, over pairs of a sum and its carry.
// Launched by gradclip_backends/gpu/passes.py, for what is clipped alone (docs/decisions/0005).
//
// Grid as for measure. Fills the record's carries; its sums stay as they are.
#include "pass.cuh"

INLINE Carried carried_term(double x, double power, i64 exponent, bool sanitize) {
    if (sanitize && !is_finite(x)) x = is_nan(x) ? 0.0 : x < 0.0 ? -LARGEST_DOUBLE : LARGEST_DOUBLE;
    const double v = exponent ? scale_by_power(x, -exponent) : x;
    if (power != 2.0) return {magnitude(v), 0.0};
    const double square = mul(v, v);
    return {square, lost_in_product(v, v, square)};
}

template <class Rows>
INLINE void carries(const Rows& rows, const Pass& pass, double power) {
    if (closed(pass.gate)) return;
    for_each_block(pass.nodes.blocks, [&](u64 block) {
        const Place there = find_block(rows, pass.buffers, block);
        if (there.dtype != FLOAT64) return;
        const double* const x = global<const double>(there.pointer);
        const i64 exponent = static_cast<i64>(pass.record.counts(EXPONENTS)[there.segment]);
        const bool sanitize = (pass.options & SANITIZE) != 0;
        Carried sum = tree_of<Carried>(there.n, [&](u32 i) { return carried_term(x[i], power, exponent, sanitize); });
        double carry = sum.carry;
        // Found once more, instead of being kept while the sum takes all registers.
        const Place place = find_block(rows, pass.buffers, opaque(block));
        if (climb(pass.nodes, place, sum, carry) && (threadIdx.x & 31) == 0)
            pass.record.numbers(CARRIES)[place.segment] = carry;
    });
}

// Runs where float64 is clipped alone: one thread block a multiprocessor, with all registers, will do.
#define RARE extern "C" __global__ void __launch_bounds__(THREADS, 1)

RARE carries_inline(const __grid_constant__ RowsByValue rows, const __grid_constant__ Pass pass, double power) {
    carries(rows, pass, power);
}
RARE carries_table(const __grid_constant__ RowsInMemory rows, const __grid_constant__ Pass pass, double power) {
    carries(rows, pass, power);
}
