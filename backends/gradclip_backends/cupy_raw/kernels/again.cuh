// A read pass over what `measure` has left in the record. It replaces sums alone; magnitudes and counts
// are known already.
#pragma once
#include "pass.cuh"

template <int DTYPE, class Term>
INLINE void replace_sum(const Pass& pass, const Place& place, const Term& term) {
    Found found = sum_elements<DTYPE>(place.pointer, place.n, pass.options & SANITIZE, 0.0, 0.0, term);
    if (climb(pass.nodes, place, found.sum, found.largest) && (threadIdx.x & 31) == 0)
        pass.record.numbers(SUMS)[place.segment] = found.sum;
}
