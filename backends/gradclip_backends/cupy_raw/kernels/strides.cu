// Arrays that do not fill their memory: into a dense copy, and back. Launched by
// gradclip_backends/gpu/strides.py.
//
// Grid: any number of blocks of 256 threads, each thread an element after the other, in C order of
// the shape. An item is a word of an aligned size; larger ones have an axis of words.
#include "record.cuh"

#define MOST_AXES 32
#define KERNEL_OF_STRIDES extern "C" __global__ void __launch_bounds__(256)

struct Strided {
    u64 strided, dense, count;
    i64 shape[MOST_AXES], strides[MOST_AXES];  // strides in bytes
    u32 axes, itemsize;
};

template <class Item>
INLINE void move(const Strided& array, bool back) {
    for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < array.count;
         i += static_cast<u64>(gridDim.x) * blockDim.x) {
        u64 rest = i;
        i64 offset = 0;
        for (u32 axis = array.axes; axis-- > 0;) {
            const u64 extent = static_cast<u64>(array.shape[axis]);
            offset += static_cast<i64>(rest % extent) * array.strides[axis];
            rest /= extent;
        }
        Item* const there = global<Item>(array.strided + static_cast<u64>(offset));
        Item* const here = global<Item>(array.dense) + i;
        if (back) *there = *here;
        else *here = *there;
    }
}

INLINE void move_items(const Strided& array, bool back) {
    switch (array.itemsize) {
        case 1: return move<u8>(array, back);
        case 2: return move<unsigned short>(array, back);
        case 4: return move<u32>(array, back);
        default: return move<u64>(array, back);
    }
}

KERNEL_OF_STRIDES gather(const __grid_constant__ Strided array) { move_items(array, false); }

// Back, unless every segment of the array, from `first` on, was left as it was. Without a record always.
KERNEL_OF_STRIDES scatter(const __grid_constant__ Strided array, const __grid_constant__ Record record, u64 first,
                          u64 segments) {
    bool acts = record.address == 0;
    for (u64 i = threadIdx.x; record.address && i < segments; i += blockDim.x) acts = acts || record.op()[first + i] != LEAVE;
    if (__syncthreads_or(acts)) move_items(array, true);
}
