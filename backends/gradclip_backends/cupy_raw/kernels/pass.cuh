// What every read pass is told, and how it goes through its blocks.
#pragma once
#include "blocks.cuh"
#include "scale.cuh"

// Two thread blocks a processor leave 128 registers a thread, and bring 64 KiB of loads under way.
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 2)

struct Pass {
    Nodes nodes;
    Record record;
    u64 gate;  // the address of a flag that has to be set for anything to be done, or 0
    u32 buffers, options;
    Scale scale;
    Limits limits;
};

INLINE bool closed(u64 gate) { return gate != 0 && *global<const u32>(gate) == 0; }

// Each warp takes a block of 4096 elements after the other.
template <class Work>
INLINE void for_each_block(u64 blocks, const Work& work) {
    for (u64 block = static_cast<u64>(blockIdx.x) * WARPS + threadIdx.x / 32; block < blocks;
         block += static_cast<u64>(gridDim.x) * WARPS)
        work(block);
}
