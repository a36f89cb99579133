// The loss scale, where only the device knows it.
#pragma once
#include "storage.cuh"

struct Scale {
    double inverse;  // 1 / loss scale, unless an address is given
    u64 address;     // of the loss scale, one element, or 0
    u32 dtype, unused;
};

INLINE double loss_scale(const Scale& scale) {
    switch (scale.dtype) {
        case 0: return Storage<0>::load(*global<const unsigned short>(scale.address));
        case 1: return Storage<1>::load(*global<const unsigned short>(scale.address));
        case 2: return Storage<2>::load(*global<const float>(scale.address));
        default: return *global<const double>(scale.address);
    }
}

// Its reciprocal has to be a normal float64, or unscaling would lose bits.
INLINE bool is_loss_scale(double scale) { return scale >= power_of_two(-1022) && scale <= power_of_two(1022); }

INLINE double inverse_scale(const Scale& scale) {
    return scale.address == 0 ? scale.inverse : 1.0 / loss_scale(scale);
}
