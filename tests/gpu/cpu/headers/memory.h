// Fences, atomics, loads and stores.
//
// To TSan atomics order nothing by themselves: "fence, atomic" releases what came before the fence, and "atomic,
// fence" acquires, on the atomic's address. So the lack of a __threadfence() is a race. Precisely: at a fence the
// thread leaves a fiber behind that knows what the thread knew then. Its later atomics are that fiber's.
#pragma once
#include <time.h>

#include "grid.h"

namespace cuda_on_cpu {

// With order "jitter" a thread now and then lets others go first, just before it touches what they share.
MACHINERY inline void maybe_yield(Thread* thread) {
    Grid* grid = thread->block->grid;
    if (grid->launch.order != jitter) return;
    const uint32_t random = next_random(thread->block->random) >> 8;
    if (random & 1) return;
    if (grid->launch.os_threads > 1) {
        const timespec pause{0, static_cast<long>(random % 30000)};
        nanosleep(&pause, nullptr);
    }
    to_scheduler(thread);
}

MACHINERY inline void leave_fence_fiber([[maybe_unused]] Thread* thread) {
#if WITH_TSAN
    if (thread->fence_fiber && thread->fence_fiber_used)
        thread->block->grid->retired.add(thread->fence_fiber);
    else if (thread->fence_fiber)
        drop_race_fiber(thread->fence_fiber);
    thread->fence_fiber = new_race_fiber();
    thread->fence_fiber_used = false;
#endif
}

MACHINERY inline void fence() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#if WITH_TSAN
    Thread* thread = current_thread();
    for (int i = 0; i < thread->unfenced_atomic_count; ++i) acquire(thread->unfenced_atomics[i]);
    thread->unfenced_atomic_count = 0;
    leave_fence_fiber(thread);
#endif
}

// Around an atomic operation.
struct Atomic {
    Thread* thread;
    const volatile void* address;

    MACHINERY explicit Atomic(const volatile void* where) : thread(current_thread()), address(where) {
        maybe_yield(thread);
#if WITH_TSAN
        if (thread->fence_fiber) {
            thread->fence_fiber_used = true;
            enter_race_fiber(thread->fence_fiber);
        }
#endif
    }

    MACHINERY ~Atomic() {
#if WITH_TSAN
        if (thread->fence_fiber) {
            release(address);
            release(thread->atomic_key);
            enter_race_fiber(thread->race_fiber);
            acquire(thread->atomic_key);  // the operation is the thread's own after all
        }
        constexpr int room = sizeof thread->unfenced_atomics / sizeof thread->unfenced_atomics[0];
        if (thread->unfenced_atomic_count < room) thread->unfenced_atomics[thread->unfenced_atomic_count++] = address;
#endif
    }
};

template <class T>
constexpr bool has_atomics = std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);

template <class T>
using Same = std::enable_if_t<has_atomics<T>, T>;  // not deduced: atomicAdd(&counter, 1) converts the 1

template <class T, class Choose>
inline T choose_atomically(T* address, T value, Choose choose) {
    const Atomic operation(address);
    constexpr int relaxed = __ATOMIC_RELAXED;
    T seen = __atomic_load_n(address, relaxed);
    while (!__atomic_compare_exchange_n(address, &seen, choose(seen, value), false, relaxed, relaxed)) {
    }
    return seen;
}

}  // namespace cuda_on_cpu

inline void __threadfence() { cuda_on_cpu::fence(); }
inline void __threadfence_system() { cuda_on_cpu::fence(); }

#define ATOMIC_OPERATION(cuda_name, builtin)                                \
    template <class T>                                                      \
    inline T cuda_name(T* address, cuda_on_cpu::Same<T> value) {            \
        const cuda_on_cpu::Atomic operation(address);                       \
        return builtin(address, value, __ATOMIC_RELAXED);                   \
    }
ATOMIC_OPERATION(atomicAdd, __atomic_fetch_add)
ATOMIC_OPERATION(atomicSub, __atomic_fetch_sub)
ATOMIC_OPERATION(atomicAnd, __atomic_fetch_and)
ATOMIC_OPERATION(atomicOr, __atomic_fetch_or)
ATOMIC_OPERATION(atomicXor, __atomic_fetch_xor)
ATOMIC_OPERATION(atomicExch, __atomic_exchange_n)
#undef ATOMIC_OPERATION

template <class T>
inline T atomicCAS(T* address, cuda_on_cpu::Same<T> expected, cuda_on_cpu::Same<T> value) {
    const cuda_on_cpu::Atomic operation(address);
    __atomic_compare_exchange_n(address, &expected, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
template <class T>
inline T atomicMax(T* address, cuda_on_cpu::Same<T> value) {
    return cuda_on_cpu::choose_atomically(address, value, [](T a, T b) { return a < b ? b : a; });
}
template <class T>
inline T atomicMin(T* address, cuda_on_cpu::Same<T> value) {
    return cuda_on_cpu::choose_atomically(address, value, [](T a, T b) { return b < a ? b : a; });
}

// Caches are no concern of results.
#define PLAIN_LOAD(cuda_name) \
    template <class T>        \
    inline T cuda_name(const T* address) { return *address; }
#define PLAIN_STORE(cuda_name) \
    template <class T>         \
    inline void cuda_name(T* address, std::common_type_t<T> value) { *address = value; }
PLAIN_LOAD(__ldg)
PLAIN_LOAD(__ldca)
PLAIN_LOAD(__ldcg)
PLAIN_LOAD(__ldcs)
PLAIN_LOAD(__ldcv)
PLAIN_STORE(__stcg)
PLAIN_STORE(__stcs)
PLAIN_STORE(__stwb)
PLAIN_STORE(__stwt)
#undef PLAIN_LOAD
#undef PLAIN_STORE

inline void* __cvta_global_to_generic(size_t address) { return reinterpret_cast<void*>(address); }
inline size_t __cvta_generic_to_global(const void* address) { return reinterpret_cast<size_t>(address); }
inline unsigned __isGlobal(const void*) { return 1; }
