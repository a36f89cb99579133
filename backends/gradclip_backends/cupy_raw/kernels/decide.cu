// The decisions: norms of order 1, 2 and infinity, values, and whether carries are to be measured.
// Launched by gradclip_backends/gpu/passes.py, after the read pass.
//
// Grid: any number of blocks of 256 threads; each warp takes a scope after the other, or, by value,
// each thread a segment.
#include "decide.cuh"

DECISION decide_norms_inline(const __grid_constant__ RowsByValue rows, const __grid_constant__ Rule rule) {
    decide_norms<false>(rows, rule);
}
DECISION decide_norms_table(const __grid_constant__ RowsInMemory rows, const __grid_constant__ Rule rule) {
    decide_norms<false>(rows, rule);
}
DECISION decide_value_inline(const __grid_constant__ RowsByValue rows, const __grid_constant__ Rule rule) {
    decide_value(rows, rule);
}
DECISION decide_value_table(const __grid_constant__ RowsInMemory rows, const __grid_constant__ Rule rule) {
    decide_value(rows, rule);
}
DECISION ask_for_carries_inline(const __grid_constant__ RowsByValue rows, const __grid_constant__ Rule rule) {
    ask_for_carries(rows, rule);
}
DECISION ask_for_carries_table(const __grid_constant__ RowsInMemory rows, const __grid_constant__ Rule rule) {
    ask_for_carries(rows, rule);
}
