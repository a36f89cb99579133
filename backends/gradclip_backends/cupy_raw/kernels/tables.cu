// Tables that do not fit beside a kernel's arguments go to device memory as the argument of a kernel:
// no copy from host memory, whose lifetime somebody would have to watch, and nothing that a CUDA graph
// could not record. Launched by gradclip_backends/gpu/tables.py.
//
// Grid: one block of 256 threads. `words` 8-byte words of the chunk are stored at `target`.
#include "arithmetic.cuh"

template <int WORDS>
struct Chunk {
    u64 words[WORDS];
};

template <int WORDS>
INLINE void store(const Chunk<WORDS>& chunk, u64 target, u32 words) {
    for (u32 i = threadIdx.x; i < words; i += blockDim.x) global<u64>(target)[i] = chunk.words[i];
}

extern "C" __global__ void __launch_bounds__(256)
    store_chunk(const __grid_constant__ Chunk<500> chunk, u64 target, u32 words) {
    store(chunk, target, words);
}

// From CUDA 12.1 on, parameters may take 32,764 bytes.
extern "C" __global__ void __launch_bounds__(256)
    store_large_chunk(const __grid_constant__ Chunk<4000> chunk, u64 target, u32 words) {
    store(chunk, target, words);
}
