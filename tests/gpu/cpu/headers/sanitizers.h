// The sanitizers' view of CUDA threads: each is a fiber of its own, to ASan and to TSan.
//
// TSan knows of no barrier, fence or warp: the headers tell it what orders what, through keys (addresses) that
// are released and acquired. Code that keeps the machinery going is not instrumented, or TSan would see the
// machinery's own memory instead of the kernel's.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void* __tsan_get_current_fiber();
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#define WITH_TSAN 1
#define MACHINERY __attribute__((noinline, no_sanitize("thread")))
#else
#define WITH_TSAN 0
#define MACHINERY
#endif

#if defined(__SANITIZE_ADDRESS__)
extern "C" {
void __sanitizer_start_switch_fiber(void**, const void*, size_t);
void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
void __asan_unpoison_memory_region(const volatile void*, size_t);
}
#define WITH_ASAN 1
#else
#define WITH_ASAN 0
#endif

namespace cuda_on_cpu {

// TSan: what went before release(key) in one thread is ordered before what follows acquire(key) in another.
MACHINERY inline void release([[maybe_unused]] const volatile void* key) {
#if WITH_TSAN
    __tsan_release(const_cast<void*>(key));
#endif
}

MACHINERY inline void acquire([[maybe_unused]] const volatile void* key) {
#if WITH_TSAN
    __tsan_acquire(const_cast<void*>(key));
#endif
}

// A TSan fiber starts with the clock of the one that makes it, and keeps no order with it afterwards.
MACHINERY inline void* new_race_fiber() {
#if WITH_TSAN
    return __tsan_create_fiber(0);
#else
    return nullptr;
#endif
}

MACHINERY inline void* current_race_fiber() {
#if WITH_TSAN
    return __tsan_get_current_fiber();
#else
    return nullptr;
#endif
}

MACHINERY inline void enter_race_fiber([[maybe_unused]] void* fiber) {
#if WITH_TSAN
    constexpr unsigned without_ordering = 1;
    __tsan_switch_to_fiber(fiber, without_ordering);
#endif
}

MACHINERY inline void drop_race_fiber([[maybe_unused]] void* fiber) {
#if WITH_TSAN
    __tsan_destroy_fiber(fiber);
#endif
}

// TSan drops a race in silence when the earlier thread is gone: fibers stay until the launch has ended.
// No lock, which would order the threads that take it, and no memory to grow: TSan itself ends at 8128 fibers.
struct RetiredFibers {
    static constexpr unsigned room = WITH_TSAN ? 8192 : 1;
    void* fibers[room];
    unsigned count = 0;

    MACHINERY void add(void* fiber) { fibers[__atomic_fetch_add(&count, 1, __ATOMIC_RELAXED) % room] = fiber; }

    MACHINERY void drop_all() {
        for (unsigned i = 0; i < count; ++i) drop_race_fiber(fibers[i]);
    }
};

// ASan is told before and after each change of stacks. A fiber that will not come back has no `left`.
MACHINERY inline void leave_stack([[maybe_unused]] void** left, [[maybe_unused]] const void* stack,
                                  [[maybe_unused]] size_t size) {
#if WITH_ASAN
    __sanitizer_start_switch_fiber(left, stack, size);
#endif
}

MACHINERY inline void entered_stack([[maybe_unused]] void* left) {
#if WITH_ASAN
    __sanitizer_finish_switch_fiber(left, nullptr, nullptr);
#endif
}

}  // namespace cuda_on_cpu
