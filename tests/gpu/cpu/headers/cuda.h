// CUDA C for g++: put before a kernel's source, it lets the same source run on the CPU.
//
// Not an emulator of a GPU: it gives the source the structure of grids, blocks, warps and threads, and fails
// where a GPU would hang or be undefined. This file is the language: keywords, vector types, built-in variables.
#pragma once
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cstdint>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) alignas(n)
#define __builtin_assume(condition) ((void)0)

#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static  // ASan puts red zones round plain variables, not round thread-local ones
#else
#define __shared__ static thread_local  // an OS thread runs one block at a time
#endif

// Aligned as CUDA aligns them: a misaligned vector access is an error on a GPU, and one to UBSan.
#define VECTOR_TYPES(name, element, align2, align4)                                                            \
    struct alignas(align2) name##2 { element x, y; };                                                          \
    struct name##3 { element x, y, z; };                                                                       \
    struct alignas(align4) name##4 { element x, y, z, w; };                                                    \
    inline name##2 make_##name##2(element x, element y) { return {x, y}; }                                     \
    inline name##3 make_##name##3(element x, element y, element z) { return {x, y, z}; }                       \
    inline name##4 make_##name##4(element x, element y, element z, element w) { return {x, y, z, w}; }

VECTOR_TYPES(char, signed char, 2, 4)
VECTOR_TYPES(uchar, unsigned char, 2, 4)
VECTOR_TYPES(short, short, 4, 8)
VECTOR_TYPES(ushort, unsigned short, 4, 8)
VECTOR_TYPES(int, int, 8, 16)
VECTOR_TYPES(uint, unsigned, 8, 16)
VECTOR_TYPES(longlong, long long, 16, 16)
VECTOR_TYPES(ulonglong, unsigned long long, 16, 16)
VECTOR_TYPES(float, float, 8, 16)
VECTOR_TYPES(double, double, 16, 16)
#undef VECTOR_TYPES

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

#include "launch.h"
#include "memory.h"
#include "numbers.h"
#include "warps.h"

#define threadIdx (::cuda_on_cpu::current_thread()->thread_index)
#define blockIdx (::cuda_on_cpu::current_thread()->block_index)
#define blockDim (::cuda_on_cpu::current_thread()->block_size)
#define gridDim (::cuda_on_cpu::current_thread()->grid_size)
#define warpSize 32
