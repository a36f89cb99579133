// The read pass. Launched by gradclip_backends/gpu/passes.py: one launch for all buffers of a call.
//
// Grid: any number of blocks of 256 threads. Each warp takes a block of 4096 elements after the
// other; whoever finishes a segment's last block leaves the segment's sum in the record. The record
// is all zeros before, as is the counter of every node. No shared memory, no barrier.
#include "pass.cuh"

template <int POWER>
INLINE Found sum_any(const Place& place, u32 options, double low, double high) {
    switch (place.dtype) {
        case FLOAT16: return sum_block<POWER, FLOAT16>(place, options, low, high);
        case BFLOAT16: return sum_block<POWER, BFLOAT16>(place, options, low, high);
        case FLOAT32: return sum_block<POWER, FLOAT32>(place, options, low, high);
        default: return sum_block<POWER, FLOAT64>(place, options, low, high);
    }
}

template <int POWER>
INLINE Found sum_in_bounds(const Place& place, const Pass& pass, bool bounded, double inverse) {
    double low = 0.0, high = 0.0;
    if (pass.options & OWN_BOUNDS) {
        low = pass.record.numbers(LOW)[place.segment];
        high = pass.record.numbers(HIGH)[place.segment];
    } else if (bounded) {
        low = pass.limits.low[place.dtype] / inverse;
        high = pass.limits.high[place.dtype] / inverse;
    }
    return sum_any<POWER>(place, pass.options, low, high);
}

// One thread: what is counted is rare, so that plain atomics do.
INLINE void count(const Record& record, u64 segment, const Found& found) {
    if (found.infs) atomicAdd(record.counts(INFS) + segment, static_cast<u64>(found.infs));
    if (found.nans) atomicAdd(record.counts(NANS) + segment, static_cast<u64>(found.nans));
    if (found.outside) atomicAdd(record.counts(OUTSIDE) + segment, static_cast<u64>(found.outside));
    const u32 nonfinite = found.infs + found.nans;
    if (nonfinite) atomicAdd(&record.state()->nonfinite, static_cast<u64>(nonfinite));
}

// One thread. float64 whose squares leave float64's range is measured again on x * 2^-exponent.
INLINE void finish(const Record& record, u64 segment, u32 dtype, double sum, double largest) {
    record.numbers(SUMS)[segment] = sum;
    record.numbers(LARGEST)[segment] = largest;
    record.numbers(UNITS)[segment] = largest;
    if (dtype == FLOAT64 && largest > 0.0 && (largest < power_of_two(-400) || largest > power_of_two(400))) {
        int exponent;
        split_exponent(largest, &exponent);
        record.counts(EXPONENTS)[segment] = static_cast<u64>(static_cast<i64>(exponent));
        atomicExch(&record.state()->rescale, 1u);
    }
}

template <int POWER, class Rows>
INLINE void measure(const Rows& rows, const Pass& pass) {
    if (closed(pass.gate)) return;
    const u32 thread = threadIdx.x & 31;
    const bool bounded = (pass.options & BOUNDS) != 0;
    const double inverse = bounded ? inverse_scale(pass.scale) : 1.0;
    for_each_block(pass.nodes.blocks, [&](u64 block) {
        Found found = sum_in_bounds<POWER>(find_block(rows, pass.buffers, block), pass, bounded, inverse);
        // Found once more, instead of being kept while the block's elements take all registers.
        const Place place = find_block(rows, pass.buffers, opaque(block));
        if (thread == 0) count(pass.record, place.segment, found);
        if (climb(pass.nodes, place, found.sum, found.largest) && thread == 0)
            finish(pass.record, place.segment, place.dtype, found.sum, found.largest);
    });
}

KERNEL measure_squares_inline(const __grid_constant__ RowsByValue rows, const __grid_constant__ Pass pass) {
    measure<2>(rows, pass);
}
KERNEL measure_squares_table(const __grid_constant__ RowsInMemory rows, const __grid_constant__ Pass pass) {
    measure<2>(rows, pass);
}
KERNEL measure_magnitudes_inline(const __grid_constant__ RowsByValue rows, const __grid_constant__ Pass pass) {
    measure<1>(rows, pass);
}
KERNEL measure_magnitudes_table(const __grid_constant__ RowsInMemory rows, const __grid_constant__ Pass pass) {
    measure<1>(rows, pass);
}
