// Norms of a general order: the second read pass, over (|x| / largest)^p, and the decision. Apart from
// the others, because `pow` takes longer to compile than all of them. Launched by
// gradclip_backends/gpu/passes.py.
//
// Grids as for measure and for decide.
#include "again.cuh"
#include "decide.cuh"

// Sums of (|x| / unit)^power.
template <class Rows>
INLINE void powers(const Rows& rows, const Pass& pass, double power) {
    if (closed(pass.gate)) return;
    for_each_block(pass.nodes.blocks, [&](u64 block) {
        const Place place = find_block(rows, pass.buffers, block);
        const double largest = pass.record.numbers(UNITS)[place.segment];
        const double unit = largest == 0.0 ? 1.0 : largest;
        const auto term = [&](double x) { return pow(magnitude(x) / unit, power); };
        switch (place.dtype) {
            case FLOAT16: return replace_sum<FLOAT16>(pass, place, term);
            case BFLOAT16: return replace_sum<BFLOAT16>(pass, place, term);
            case FLOAT32: return replace_sum<FLOAT32>(pass, place, term);
            default: return replace_sum<FLOAT64>(pass, place, term);
        }
    });
}

KERNEL powers_inline(const __grid_constant__ RowsByValue rows, const __grid_constant__ Pass pass, double power) {
    powers(rows, pass, power);
}
KERNEL powers_table(const __grid_constant__ RowsInMemory rows, const __grid_constant__ Pass pass, double power) {
    powers(rows, pass, power);
}
DECISION decide_general_inline(const __grid_constant__ RowsByValue rows, const __grid_constant__ Rule rule) {
    decide_norms<true>(rows, rule);
}
DECISION decide_general_table(const __grid_constant__ RowsInMemory rows, const __grid_constant__ Rule rule) {
    decide_norms<true>(rows, rule);
}
