// Runs a grid, in the order asked for, and gives each kernel an entry that Python can call.
#pragma once
#include <algorithm>
#include <tuple>
#include <utility>

#include "block.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace cuda_on_cpu {

// One switch for float and double on a CPU; on a GPU -ftz=true concerns float alone.
struct SubnormalsFlushed {
#if defined(__x86_64__)
    const unsigned before = _mm_getcsr();
    explicit SubnormalsFlushed(bool flush) {
        constexpr unsigned to_zero = 0x8000, are_zero = 0x0040;
        if (flush) _mm_setcsr(before | to_zero | are_zero);
    }
    ~SubnormalsFlushed() { _mm_setcsr(before); }
#else
    explicit SubnormalsFlushed(bool flush) {
        if (flush) abort();
    }
#endif
};

MACHINERY inline void* run_blocks(void* argument) {
    auto* grid = static_cast<Grid*>(argument);
    const SubnormalsFlushed flushed(grid->launch.flush_subnormals);
    for (;;) {
        const unsigned turn = __atomic_fetch_add(&grid->next_block, 1, __ATOMIC_RELAXED);
        if (turn >= grid->block_count || has_failed(grid)) return nullptr;
        run_block(grid, grid->block_order[turn]);
        // To TSan two blocks have the same shared memory unless each has an OS thread.
        if (WITH_TSAN) return nullptr;
    }
}

MACHINERY inline void* run_blocks_elsewhere(void* argument) {
    run_blocks(argument);
    give_memory_back();
    return nullptr;
}

MACHINERY inline void run_on_os_threads(Grid* grid) {
    if (WITH_TSAN) {
        for (unsigned i = 0; i < grid->block_count; ++i) {
            pthread_t thread;
            if (pthread_create(&thread, nullptr, run_blocks_elsewhere, grid)) abort();
            pthread_join(thread, nullptr);
        }
        return;
    }
    // Under ASan shared memory is plain statics: one block at a time.
    const unsigned count = WITH_ASAN ? 1 : std::min(grid->launch.os_threads, grid->block_count);
    if (count <= 1) {
        run_blocks(grid);
        return;
    }
    auto* threads = static_cast<pthread_t*>(calloc(count, sizeof(pthread_t)));
    for (unsigned i = 0; i < count; ++i)
        if (pthread_create(&threads[i], nullptr, run_blocks_elsewhere, grid)) abort();
    for (unsigned i = 0; i < count; ++i) pthread_join(threads[i], nullptr);
    free(threads);
}

MACHINERY inline void order_blocks(Grid& grid) {
    const unsigned order = grid.launch.order, count = grid.block_count;
    uint32_t random = (grid.launch.seed * 747796405u) | 1u;
    grid.block_order = static_cast<unsigned*>(malloc(count * sizeof(unsigned)));
    for (unsigned i = 0; i < count; ++i) grid.block_order[i] = order == reverse ? count - 1 - i : i;
    if (order == shuffled || order == jitter)
        for (unsigned i = count - 1; i > 0; --i)
            std::swap(grid.block_order[i], grid.block_order[next_random(random) % (i + 1)]);
}

MACHINERY inline bool is_valid(const Launch& launch, unsigned max_threads, char* message, size_t room) {
    const unsigned *b = launch.block, *g = launch.grid;
    const uint64_t threads = uint64_t{b[0]} * b[1] * b[2], blocks = uint64_t{g[0]} * g[1] * g[2];
    const bool valid = threads && threads <= max_threads && b[2] <= 64 && blocks && g[0] < (1u << 31) &&
                       g[1] <= 65535 && g[2] <= 65535 && blocks <= UINT32_MAX;
    if (!valid)
        snprintf(message, room, "invalid configuration: grid (%u,%u,%u), block (%u,%u,%u); at most %u threads a block",
                 g[0], g[1], g[2], b[0], b[1], b[2], max_threads);
    return valid;
}

MACHINERY inline int run_grid(const Launch& launch, void (*body)(void*), void* arguments, char* message, size_t room) {
    Grid grid = {};
    grid.launch = launch;
    grid.block_count = launch.grid[0] * launch.grid[1] * launch.grid[2];
    grid.threads_per_block = launch.block[0] * launch.block[1] * launch.block[2];
    grid.body = body;
    grid.arguments = arguments;
    const size_t keys = grid.block_count * keys_per_block(grid.threads_per_block);
    grid.keys = static_cast<uint64_t*>(calloc(keys, sizeof(uint64_t)));
    order_blocks(grid);
    release(&grid.begin_key);
    run_on_os_threads(&grid);
    acquire(&grid.end_key);
    grid.retired.drop_all();
    free(grid.block_order);
    free(grid.keys);
    if (grid.failed) snprintf(message, room, "%s", grid.message);
    return grid.failed;
}

// ---- a kernel's entry: the arguments come as bytes, one block of memory for each

template <auto kernel>
struct Entry;

template <class... Parameters, void (*kernel)(Parameters...)>
struct Entry<kernel> {
    using Arguments = std::tuple<Parameters...>;
    static constexpr size_t parameter_space = (sizeof(Parameters) + ... + 0);
    static_assert(parameter_space <= 32764, "a kernel's parameters are more than 32764 bytes");
    static_assert((std::is_trivially_copyable_v<Parameters> && ...), "a kernel's parameters are copied as bytes");

    template <size_t... i>
    static void copy([[maybe_unused]] Arguments& into, [[maybe_unused]] void** from, std::index_sequence<i...>) {
        (memcpy(static_cast<void*>(&std::get<i>(into)), from[i], sizeof(Parameters)), ...);
    }

    static int run(const Launch& launch, void** from, char* message, size_t room) {
        Arguments arguments;
        copy(arguments, from, std::index_sequence_for<Parameters...>());
        auto body = [](void* a) { std::apply(kernel, *static_cast<Arguments*>(a)); };
        return run_grid(launch, body, &arguments, message, room);
    }

    static void describe(char* sizes, size_t room) {
        size_t used = 0;
        sizes[0] = 0;
        ((used += static_cast<size_t>(snprintf(sizes + used, room - used, " %zu", sizeof(Parameters)))), ...);
    }
};

struct Kernel {
    const char* name;
    unsigned max_threads;
    int (*run)(const Launch&, void**, char*, size_t);
    void (*describe)(char*, size_t);
};

#define KERNEL_ENTRY(name, max_threads) \
    cuda_on_cpu::Kernel { #name, max_threads, cuda_on_cpu::Entry<&name>::run, cuda_on_cpu::Entry<&name>::describe }

// What Python sees of a module: `table` ends with an entry without a name.
#define EXPORT_KERNELS(table)                                                                                   \
    extern "C" __attribute__((visibility("default"))) const char* cuda_on_cpu_kernel(                           \
        int number, char* sizes, size_t room) {                                                                 \
        const cuda_on_cpu::Kernel& kernel = table[number];                                                      \
        if (kernel.name) kernel.describe(sizes, room);                                                          \
        return kernel.name;                                                                                     \
    }                                                                                                           \
    extern "C" __attribute__((visibility("default"))) int cuda_on_cpu_launch(                                   \
        int number, const cuda_on_cpu::Launch* launch, void** arguments, char* message, size_t room) {          \
        const cuda_on_cpu::Kernel& kernel = table[number];                                                      \
        if (!cuda_on_cpu::is_valid(*launch, kernel.max_threads, message, room)) return 1;                       \
        return kernel.run(*launch, arguments, message, room);                                                   \
    }

}  // namespace cuda_on_cpu

#if defined(CUDA_ON_CPU_COVERAGE)
extern "C" void __gcov_dump();
extern "C" void __gcov_reset();
extern "C" __attribute__((visibility("default"))) void cuda_on_cpu_write_counts() {
    __gcov_dump();
    __gcov_reset();
}
#endif
