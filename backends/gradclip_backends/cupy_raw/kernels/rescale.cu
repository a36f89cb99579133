// float64 beyond the range of its squares is measured again, scaled. Launched by
// gradclip_backends/gpu/passes.py where float64 takes part, and ends at once where nothing is beyond.
//
// Grid as for measure.
#include "again.cuh"

// Sums of (x * 2^-exponent)², or of magnitudes, of the float64 segments that have an exponent.
template <class Rows>
INLINE void rescale(const Rows& rows, const Pass& pass, double power) {
    if (closed(pass.gate)) return;
    for_each_block(pass.nodes.blocks, [&](u64 block) {
        const Place place = find_block(rows, pass.buffers, block);
        if (place.dtype != FLOAT64) return;
        const i64 exponent = static_cast<i64>(pass.record.counts(EXPONENTS)[place.segment]);
        if (exponent == 0) return;
        replace_sum<FLOAT64>(pass, place, [&](double x) {
            const double v = scale_by_power(x, -exponent);
            return power == 2.0 ? mul(v, v) : magnitude(v);
        });
    });
}

KERNEL rescale_inline(const __grid_constant__ RowsByValue rows, const __grid_constant__ Pass pass, double power) {
    rescale(rows, pass, power);
}
KERNEL rescale_table(const __grid_constant__ RowsInMemory rows, const __grid_constant__ Pass pass, double power) {
    rescale(rows, pass, power);
}
