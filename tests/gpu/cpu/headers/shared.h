// Shared memory starts undefined: as 0xFF bytes, which are NaNs, in every block.
//
// It is the module's thread-local memory, all but our own few words. Not under ASan, where it is plain statics.
#pragma once
#include <link.h>

#include "grid.h"

namespace cuda_on_cpu {

struct LocalMemory {
    uintptr_t inside_module;
    void* data;
    size_t size;
};

MACHINERY inline int find_local_memory(dl_phdr_info* module, size_t, void* result) {
    auto* memory = static_cast<LocalMemory*>(result);
    bool ours = false;
    size_t size = 0;
    for (int i = 0; i < module->dlpi_phnum; ++i) {
        const auto& segment = module->dlpi_phdr[i];
        if (segment.p_type == PT_TLS) size = segment.p_memsz;
        if (segment.p_type == PT_LOAD)
            ours |= memory->inside_module - (module->dlpi_addr + segment.p_vaddr) < segment.p_memsz;
    }
    if (!ours) return 0;
    memory->data = module->dlpi_tls_data;
    memory->size = size;
    return 1;
}

MACHINERY inline void poison_shared_memory() {
#if !WITH_ASAN
    if (!os_thread.local_memory) {
        LocalMemory found{reinterpret_cast<uintptr_t>(&find_local_memory), nullptr, 0};
        dl_iterate_phdr(find_local_memory, &found);
        os_thread.local_memory = found.data;
        os_thread.local_size = found.size;
    }
    const OsThread keep = os_thread;
    if (keep.local_memory) memset(keep.local_memory, 0xFF, keep.local_size);
    asm volatile("" ::: "memory");
    os_thread = keep;
#endif
}

}  // namespace cuda_on_cpu
