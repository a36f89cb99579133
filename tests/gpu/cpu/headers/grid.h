// What a launch is made of: threads in warps in blocks in a grid, and how a fault is reported.
#pragma once
#include <pthread.h>

#include <cstdio>
#include <cstring>

#include "fibers.h"

namespace cuda_on_cpu {

enum Order : unsigned { forward, reverse, shuffled, jitter };

struct Launch {  // mirrored in engine.py
    unsigned grid[3], block[3];
    unsigned order, seed, os_threads, flush_subnormals;
};

// Where in the kernel's source an intrinsic is called; `__builtin_LINE()` follows #line.
struct Site {
    const char* what = "";
    const char* file = "";
    int line = 0;
};
#define CALL_SITE const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()
#define SITE(what) (::cuda_on_cpu::Site{what, file_, line_})

MACHINERY inline bool same(const Site& a, const Site& b) {
    return a.line == b.line && !strcmp(a.what, b.what) && !strcmp(a.file, b.file);
}

enum class State : unsigned char { ready, at_barrier, in_warp, done, trapped };

struct Block;
struct Warp;

struct Thread {
    uint3 thread_index, block_index;
    dim3 block_size, grid_size;
    Context context;
    char* stack;
    Block* block;
    Warp* warp;
    int lane;
    State state;
    bool vote;
    Site site;  // where it waits
    // For TSan: see memory.h.
    void *race_fiber, *fence_fiber;
    bool fence_fiber_used;
    const volatile void* unfenced_atomics[8];
    int unfenced_atomic_count;
    uint64_t* atomic_key;
};

// Lanes on their way to one warp-wide operation.
struct Meeting {
    unsigned mask, arrived;
    Site site;
    uint64_t* key;
};

struct LaneValue {
    alignas(16) unsigned char bytes[16];
};

struct Warp {
    static constexpr int key_count = 8;
    unsigned exists, exited;
    Meeting meetings[32];  // with masks that share no lane
    int open;
    unsigned opened;
    LaneValue given[32], taken[32];
    signed char source[32];
    uint64_t* keys;
};

struct Grid {
    Launch launch;
    unsigned block_count, threads_per_block;
    void (*body)(void*);
    void* arguments;
    unsigned* block_order;
    unsigned next_block = 0;
    int failed = 0;
    char message[1000] = "";
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    RetiredFibers retired;
    // TSan: keys that no two blocks share.
    uint64_t* keys;
    uint64_t begin_key = 0, end_key = 0;
};

struct Block {
    static constexpr int barrier_keys = 2;
    Grid* grid;
    Thread* threads;
    Warp* warps;
    int thread_count, warp_count;
    Context scheduler;
    void* scheduler_race_fiber;
    int votes;          // of the last barrier
    unsigned barriers;  // passed so far
    uint64_t* keys;     // see keys_per_block
    uint32_t random;
};

// What an OS thread keeps. External linkage on purpose: `poison_shared_memory` overwrites the module's
// thread-local memory behind the compiler's back.
struct OsThread {
    Thread* running;
    char* stacks;
    Thread* threads;
    Warp* warps;
    int* turns;
    size_t room;
    void* local_memory;
    size_t local_size;
    bool abandoned;  // fibers of a failed launch left their frames on the stacks
};
inline thread_local OsThread os_thread = {};

// The same for the whole life of a fiber, so the compiler may keep it in a register.
#if WITH_TSAN
__attribute__((const, noinline, no_sanitize("thread")))
#else
__attribute__((const, noinline))
#endif
inline Thread* current_thread() { return os_thread.running; }

MACHINERY inline uint32_t next_random(uint32_t& state) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

MACHINERY inline bool has_failed(Grid* grid) { return __atomic_load_n(&grid->failed, __ATOMIC_RELAXED); }

// The first fault is the one that is told.
MACHINERY inline void fail(const Thread* thread, const char* what) {
    Grid* grid = thread->block->grid;
    const uint3 &b = thread->block_index, &t = thread->thread_index;
    pthread_mutex_lock(&grid->mutex);
    if (!grid->failed)
        snprintf(grid->message, sizeof grid->message, "%s [block (%u,%u,%u) thread (%u,%u,%u)]", what, b.x, b.y, b.z,
                 t.x, t.y, t.z);
    __atomic_store_n(&grid->failed, 1, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&grid->mutex);
}

MACHINERY inline void to_scheduler(Thread* thread) {
    void* left = nullptr;
    enter_race_fiber(thread->block->scheduler_race_fiber);
    leave_stack(thread->state == State::done ? nullptr : &left, nullptr, 0);
    switch_context(thread->context, thread->block->scheduler);
    entered_stack(left);
}

[[noreturn]] MACHINERY inline void trap(Thread* thread, const char* what) {
    fail(thread, what);
    thread->state = State::trapped;
    to_scheduler(thread);
    abort();
}

MACHINERY inline void wait_at(Thread* thread, State state, const Site& site) {
    thread->site = site;
    thread->state = state;
    to_scheduler(thread);
}

}  // namespace cuda_on_cpu
