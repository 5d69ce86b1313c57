// Scratch memory: of many megabytes, and of a thread.
#pragma once
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

// To be freed with free(), or NULL. Each page of new memory is a page fault: 50 MB are 13000 pages
// of 4 KB, or 25 of 2 MB.
static inline void *in_huge_pages(size_t bytes) {
    const size_t page = (size_t)1 << 21;
    void *memory = NULL;
    if (bytes < page) return malloc(bytes);
    if (posix_memalign(&memory, page, bytes)) return NULL;
#if defined(MADV_HUGEPAGE)
    madvise(memory, bytes, MADV_HUGEPAGE);  // which may be ignored
#endif
    return memory;
}

// Memory of each thread for the duration of one function, one for each number in a module. On the
// stack, which OMP_STACKSIZE may limit to 16 KB, these arrays of up to 32 KB would end the process.
#define THREAD_MEMORY(number, bytes) thread_memory<(number), (bytes)>()
template <int number, size_t bytes> static inline char *thread_memory() {
    alignas(64) static thread_local char memory[bytes];
    return memory;
}
