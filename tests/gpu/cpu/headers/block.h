// Runs one block: its threads take turns until all are done, or until none can go on.
#pragma once
#include "grid.h"
#include "shared.h"

namespace cuda_on_cpu {

// Two for barriers, then each warp's, then each thread's.
MACHINERY inline size_t keys_per_block(unsigned threads) {
    return Block::barrier_keys + (threads + 31) / 32 * Warp::key_count + threads;
}

MACHINERY inline void give_memory_back() {
    OsThread& own = os_thread;
    if (!own.room) return;
    munmap(own.stacks, own.room * stack_size);
    munmap(own.threads, own.room * sizeof(Thread));
    munmap(own.warps, own.room / 32 * sizeof(Warp));
    munmap(own.turns, own.room * sizeof(int));
    own.room = 0;
}

MACHINERY inline void take_memory(size_t threads) {
    OsThread& own = os_thread;
    const size_t room = (threads + 31) / 32 * 32;
    if (own.room < room) {
        give_memory_back();
        own.room = room;
        own.stacks = map_pages<char>(room * stack_size);
        own.threads = map_pages<Thread>(room);
        own.warps = map_pages<Warp>(room / 32);
        own.turns = map_pages<int>(room);
    }
#if WITH_ASAN
    if (own.abandoned) __asan_unpoison_memory_region(own.stacks, own.room * stack_size);
#endif
    own.abandoned = false;
}

// A lane that exits while others wait for it will never come.
MACHINERY inline void leave_warp(Thread* thread) {
    Warp& warp = *thread->warp;
    const unsigned lane = 1u << thread->lane;
    warp.exited |= lane;
    for (int i = 0; i < warp.open; ++i) {
        const Meeting& meeting = warp.meetings[i];
        if (!(meeting.mask & lane)) continue;
        char what[400];
        snprintf(what, sizeof what, "%s at %s:%d with mask 0x%08x: a lane named in the mask has exited",
                 meeting.site.what, meeting.site.file, meeting.site.line, meeting.mask);
        trap(thread, what);
    }
}

MACHINERY inline void thread_main() {
    entered_stack(nullptr);
    Thread* thread = current_thread();
    Grid* grid = thread->block->grid;
    acquire(&grid->begin_key);
    grid->body(grid->arguments);
    release(&grid->end_key);
    leave_warp(thread);
    thread->state = State::done;
    to_scheduler(thread);
    abort();
}

MACHINERY inline void start_thread(Block& block, unsigned block_number, int number) {
    const Launch& launch = block.grid->launch;
    const unsigned *size = launch.block, *grid = launch.grid, n = static_cast<unsigned>(number), b = block_number;
    Thread& thread = block.threads[number];
    thread.thread_index = uint3{n % size[0], n / size[0] % size[1], n / size[0] / size[1]};
    thread.block_index = uint3{b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]};
    thread.block_size = dim3{size[0], size[1], size[2]};
    thread.grid_size = dim3{grid[0], grid[1], grid[2]};
    thread.block = &block;
    thread.warp = &block.warps[number / 32];
    thread.lane = number % 32;
    thread.state = State::ready;
    thread.warp->exists |= 1u << thread.lane;
    thread.race_fiber = new_race_fiber();
    thread.fence_fiber = nullptr;
    thread.fence_fiber_used = false;
    thread.unfenced_atomic_count = 0;
    thread.atomic_key = block.keys + Block::barrier_keys + block.warp_count * Warp::key_count + number;
    thread.stack = os_thread.stacks + static_cast<size_t>(number) * stack_size;
    // Staggered: stacks a power of two apart would fight for the same cache sets.
    const size_t offset = 64 * (static_cast<size_t>(number) * 7 % 60);
    prepare_context(thread.context, thread.stack, stack_size - offset, thread_main);
}

MACHINERY inline void take_turn(Block& block, Thread& thread) {
    void* left = nullptr;
    os_thread.running = &thread;
    enter_race_fiber(thread.race_fiber);
    leave_stack(&left, thread.stack, stack_size);
    switch_context(block.scheduler, thread.context);
    entered_stack(left);
}

MACHINERY inline void shuffle_turns(Block& block, int* turns) {
    for (int i = block.thread_count - 1; i > 0; --i) {
        const int j = static_cast<int>(next_random(block.random) % static_cast<unsigned>(i + 1)), turn = turns[i];
        turns[i] = turns[j];
        turns[j] = turn;
    }
}

MACHINERY inline bool fail_divergent(const Thread& thread, const Thread& other) {
    char what[600];
    snprintf(what, sizeof what, "divergence: a thread waits at %s at %s:%d, another at %s at %s:%d", thread.site.what,
             thread.site.file, thread.site.line, other.site.what, other.site.file, other.site.line);
    fail(&thread, what);
    return false;
}

// No thread can go on: all of them have to wait at the same barrier. False if they do not.
MACHINERY inline bool pass_barrier(Block& block) {
    const Thread *at_barrier = nullptr, *elsewhere = nullptr, *in_warp = nullptr;
    int waiting = 0, votes = 0;
    for (int i = 0; i < block.thread_count; ++i) {
        const Thread& thread = block.threads[i];
        if (thread.state == State::in_warp) in_warp = &thread;
        if (thread.state != State::at_barrier) continue;
        if (!at_barrier) at_barrier = &thread;
        if (!same(thread.site, at_barrier->site)) elsewhere = &thread;
        ++waiting;
        votes += thread.vote;
    }
    // A lane that others wait for in vain has not exited, see leave_warp: it is at a barrier.
    if (in_warp) return fail_divergent(*in_warp, *at_barrier);
    if (elsewhere) return fail_divergent(*elsewhere, *at_barrier);
    if (waiting != block.thread_count) {
        char what[300];
        snprintf(what, sizeof what, "%s at %s:%d reached by %d of the block's %d threads, the others have exited",
                 at_barrier->site.what, at_barrier->site.file, at_barrier->site.line, waiting, block.thread_count);
        fail(at_barrier, what);
        return false;
    }
    block.votes = votes;
    ++block.barriers;
    for (int i = 0; i < block.thread_count; ++i) block.threads[i].state = State::ready;
    return true;
}

MACHINERY inline void take_turns(Block& block) {
    const unsigned order = block.grid->launch.order;
    int* turns = os_thread.turns;
    for (int i = 0; i < block.thread_count; ++i) turns[i] = order == reverse ? block.thread_count - 1 - i : i;
    for (int left = block.thread_count; left > 0 && !has_failed(block.grid);) {
        if (order == shuffled || order == jitter) shuffle_turns(block, turns);
        bool ran = false;
        for (int i = 0; i < block.thread_count; ++i) {
            Thread& thread = block.threads[turns[i]];
            if (thread.state != State::ready) continue;
            ran = true;
            take_turn(block, thread);
            if (thread.state == State::done) --left;
            if (thread.state == State::trapped) break;
        }
        if (!ran && left && !pass_barrier(block)) return;
    }
}

// Threads of a failed launch end before the host goes on, as far as TSan is concerned.
MACHINERY inline void retire_race_fibers([[maybe_unused]] Block& block) {
#if WITH_TSAN
    Grid* grid = block.grid;
    for (int i = 0; i < block.thread_count; ++i) {
        Thread& thread = block.threads[i];
        if (thread.state != State::done) {
            enter_race_fiber(thread.race_fiber);
            release(&grid->end_key);
            enter_race_fiber(block.scheduler_race_fiber);
        }
        grid->retired.add(thread.race_fiber);
        if (thread.fence_fiber) grid->retired.add(thread.fence_fiber);
    }
#endif
}

MACHINERY inline void run_block(Grid* grid, unsigned number) {
    const unsigned threads = grid->threads_per_block;
    take_memory(threads);
    poison_shared_memory();
    Block block = {};
    block.grid = grid;
    block.threads = os_thread.threads;
    block.warps = os_thread.warps;
    block.thread_count = static_cast<int>(threads);
    block.warp_count = static_cast<int>((threads + 31) / 32);
    block.keys = grid->keys + number * keys_per_block(threads);
    block.scheduler_race_fiber = current_race_fiber();
    block.random = (grid->launch.seed * 2654435761u + number * 40503u) | 1u;
    for (int i = 0; i < block.warp_count; ++i) {
        Warp& warp = block.warps[i];
        warp.exists = warp.exited = warp.opened = 0;
        warp.open = 0;
        warp.keys = block.keys + Block::barrier_keys + i * Warp::key_count;
    }
    for (int i = 0; i < block.thread_count; ++i) start_thread(block, number, i);
    take_turns(block);
    os_thread.abandoned = has_failed(grid);
    retire_race_fibers(block);
}

}  // namespace cuda_on_cpu
