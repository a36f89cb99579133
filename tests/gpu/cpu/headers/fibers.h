// Stacks that take turns: the context switch under one fiber per CUDA thread.
//
// Ten instructions on x86-64; ucontext, which makes a system call at each switch, everywhere else.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

#include "sanitizers.h"

#if !defined(__x86_64__) || defined(CUDA_ON_CPU_UCONTEXT)
#include <ucontext.h>
#endif

namespace cuda_on_cpu {

// Room for a 32 KB parameter, copied twice without optimisation; pages never touched cost nothing.
constexpr size_t stack_size = 256 * 1024;

#if defined(__x86_64__) && !defined(CUDA_ON_CPU_UCONTEXT)

extern "C" void cuda_on_cpu_switch(void** save, void* load);
asm(R"(
.text
.p2align 4
.local cuda_on_cpu_switch
.type cuda_on_cpu_switch,@function
cuda_on_cpu_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size cuda_on_cpu_switch,.-cuda_on_cpu_switch
)");

struct Context {
    void* stack_pointer;
};

MACHINERY inline void switch_context(Context& from, Context& to) {
    cuda_on_cpu_switch(&from.stack_pointer, to.stack_pointer);
}

MACHINERY inline void prepare_context(Context& context, char* stack, size_t size, void (*entry)()) {
    constexpr int saved_registers = 6;
    void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + size) & ~uintptr_t{15});
    *--top = nullptr;  // where `entry`, which never returns, would return to: keeps the stack aligned
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < saved_registers; ++i) *--top = nullptr;
    context.stack_pointer = top;
}

#else

struct Context {
    ucontext_t state;
};

MACHINERY inline void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

MACHINERY inline void prepare_context(Context& context, char* stack, size_t size, void (*entry)()) {
    getcontext(&context.state);
    context.state.uc_stack.ss_sp = stack;
    context.state.uc_stack.ss_size = size;
    context.state.uc_link = nullptr;
    makecontext(&context.state, entry, 0);
}

#endif

template <class T>
MACHINERY inline T* map_pages(size_t count) {
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* pages = mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (pages == MAP_FAILED) abort();
    return static_cast<T*>(pages);
}

}  // namespace cuda_on_cpu
