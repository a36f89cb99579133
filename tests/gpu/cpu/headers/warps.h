// What threads do together: barriers, shuffles and votes, and the checks that all of them come.
//
// Stricter than a GPU in one point: a lane that is named in a mask must not have exited.
#pragma once
#include "grid.h"

namespace cuda_on_cpu {

// ---- the block

MACHINERY inline int block_barrier(bool vote, const Site& site) {
    Thread* thread = current_thread();
    Block* block = thread->block;
    // In turns: a thread that is fast reaches the next barrier before a slow one has left this one.
    uint64_t* key = block->keys + (block->barriers & 1);
    thread->vote = vote;
    release(key);
    wait_at(thread, State::at_barrier, site);
    acquire(key);
    return block->votes;
}

// ---- the warp

using Exchange = void (*)(Warp&, unsigned lanes);

[[noreturn]] MACHINERY inline void disagree(Thread* thread, const Meeting& there, unsigned mask, const Site& site) {
    char what[600];
    snprintf(what, sizeof what,
             "the lanes of a warp disagree on mask or call site: %s at %s:%d with mask 0x%08x, others %s at %s:%d with "
             "mask 0x%08x",
             site.what, site.file, site.line, mask, there.site.what, there.site.file, there.site.line, there.mask);
    trap(thread, what);
}

[[noreturn]] MACHINERY inline void refuse(Thread* thread, const char* why, unsigned mask, const Site& site) {
    char what[400];
    snprintf(what, sizeof what, "%s at %s:%d with mask 0x%08x: %s", site.what, site.file, site.line, mask, why);
    trap(thread, what);
}

MACHINERY inline Meeting& join(Thread* thread, unsigned mask, const Site& site) {
    Warp& warp = *thread->warp;
    if (!(mask >> thread->lane & 1)) refuse(thread, "the calling lane is not in its own mask", mask, site);
    for (int i = 0; i < warp.open; ++i) {
        Meeting& meeting = warp.meetings[i];
        if (!(meeting.mask & mask)) continue;
        if (meeting.mask != mask || !same(meeting.site, site)) disagree(thread, meeting, mask, site);
        return meeting;
    }
    if (mask & warp.exited) refuse(thread, "a lane named in the mask has exited", mask, site);
    Meeting& meeting = warp.meetings[warp.open++];
    meeting = Meeting{mask, 0, site, warp.keys + warp.opened++ % Warp::key_count};
    return meeting;
}

// All lanes in the mask meet; the last one to come does the exchange for all of them.
MACHINERY inline void meet(unsigned mask, bool orders_memory, Exchange exchange, const Site& site) {
    Thread* thread = current_thread();
    Warp& warp = *thread->warp;
    Meeting& meeting = join(thread, mask, site);
    uint64_t* key = meeting.key;
    meeting.arrived |= 1u << thread->lane;
    if (orders_memory) release(key);
    const unsigned lanes = meeting.arrived;
    if (lanes == (mask & warp.exists)) {
        if (exchange) exchange(warp, lanes);
        meeting = warp.meetings[--warp.open];
        for (int lane = 0; lane < 32; ++lane)
            if (lanes >> lane & 1) thread[lane - thread->lane].state = State::ready;
    } else {
        wait_at(thread, State::in_warp, site);
    }
    if (orders_memory) acquire(key);
}

MACHINERY inline void exchange_values(Warp& warp, unsigned lanes) {
    for (int lane = 0; lane < 32; ++lane) {
        if (!(lanes >> lane & 1)) continue;
        const int source = warp.source[lane];
        if (lanes >> source & 1)
            warp.taken[lane] = warp.given[source];
        else
            __builtin_memset(&warp.taken[lane], 0xFF, sizeof(LaneValue));  // undefined on a GPU: poison
    }
}

MACHINERY inline void exchange_votes(Warp& warp, unsigned lanes) {
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane)
        if ((lanes >> lane & 1) && warp.given[lane].bytes[0]) votes |= 1u << lane;
    for (int lane = 0; lane < 32; ++lane) __builtin_memcpy(&warp.taken[lane], &votes, sizeof votes);
}

template <class T>
MACHINERY inline T shuffle(unsigned mask, T value, int source, const Site& site) {
    static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "no such shuffle in CUDA");
    Thread* thread = current_thread();
    Warp& warp = *thread->warp;
    __builtin_memcpy(&warp.given[thread->lane], &value, sizeof(T));
    warp.source[thread->lane] = static_cast<signed char>(source);
    meet(mask, false, exchange_values, site);
    __builtin_memcpy(&value, &warp.taken[thread->lane], sizeof(T));
    return value;
}

MACHINERY inline unsigned ballot(unsigned mask, bool vote, const Site& site) {
    Thread* thread = current_thread();
    Warp& warp = *thread->warp;
    warp.given[thread->lane].bytes[0] = vote;
    meet(mask, false, exchange_votes, site);
    unsigned votes;
    __builtin_memcpy(&votes, &warp.taken[thread->lane], sizeof votes);
    return votes;
}

inline int lane_number() { return current_thread()->lane; }

}  // namespace cuda_on_cpu

inline void __syncthreads(CALL_SITE) { cuda_on_cpu::block_barrier(false, SITE("__syncthreads")); }
inline int __syncthreads_count(int vote, CALL_SITE) {
    return cuda_on_cpu::block_barrier(vote != 0, SITE("__syncthreads_count"));
}
inline int __syncthreads_or(int vote, CALL_SITE) {
    return cuda_on_cpu::block_barrier(vote != 0, SITE("__syncthreads_or")) > 0;
}
inline int __syncthreads_and(int vote, CALL_SITE) {
    return cuda_on_cpu::block_barrier(vote == 0, SITE("__syncthreads_and")) == 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, CALL_SITE) {
    cuda_on_cpu::meet(mask, true, nullptr, SITE("__syncwarp"));
}

// A lane whose source lies outside its segment of `width` lanes gets its own value, as in CUDA.
template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, CALL_SITE) {
    const int lane = cuda_on_cpu::lane_number(), first = lane / width * width;
    return cuda_on_cpu::shuffle(mask, value, first + (source & (width - 1)), SITE("__shfl_sync"));
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int with, int width = 32, CALL_SITE) {
    const int lane = cuda_on_cpu::lane_number(), source = lane ^ with, end = lane / width * width + width;
    return cuda_on_cpu::shuffle(mask, value, source < end ? source : lane, SITE("__shfl_xor_sync"));
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, CALL_SITE) {
    const int lane = cuda_on_cpu::lane_number(), end = lane / width * width + width;
    const int source = lane + static_cast<int>(by);
    return cuda_on_cpu::shuffle(mask, value, source < end ? source : lane, SITE("__shfl_down_sync"));
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, CALL_SITE) {
    const int lane = cuda_on_cpu::lane_number(), source = lane - static_cast<int>(by), first = lane / width * width;
    return cuda_on_cpu::shuffle(mask, value, source >= first ? source : lane, SITE("__shfl_up_sync"));
}

inline unsigned __ballot_sync(unsigned mask, int vote, CALL_SITE) {
    return cuda_on_cpu::ballot(mask, vote != 0, SITE("__ballot_sync"));
}
inline int __any_sync(unsigned mask, int vote, CALL_SITE) {
    return cuda_on_cpu::ballot(mask, vote != 0, SITE("__any_sync")) != 0;
}
inline int __all_sync(unsigned mask, int vote, CALL_SITE) {
    return cuda_on_cpu::ballot(mask, vote == 0, SITE("__all_sync")) == 0;
}

[[noreturn]] inline void __trap(CALL_SITE) {
    char what[300];
    snprintf(what, sizeof what, "__trap at %s:%d", file_, line_);
    cuda_on_cpu::trap(cuda_on_cpu::current_thread(), what);
}
