// Scratch memory: of many megabytes, and of a thread.
#pragma once
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

// To be freed with free(), or NULL. New memory is page faults before it is anything else: 50 MB in
// pages of 4 KB are 13000, in those of 2 MB are 25.
static inline void *in_huge_pages(size_t bytes) {
    const size_t page = (size_t)1 << 21;
    void *memory = NULL;
    if (bytes < page) return malloc(bytes);
    if (posix_memalign(&memory, page, bytes)) return NULL;
#if defined(MADV_HUGEPAGE)
    madvise(memory, bytes, MADV_HUGEPAGE);  // only advice: without it everything works as well
#endif
    return memory;
}

// Memory of each thread for the time of one function, one for each number in a module. On the stack,
// of which OMP_STACKSIZE may leave a thread 16 KB, these arrays of up to 32 KB would end the process.
#define THREAD_MEMORY(number, bytes) thread_memory<(number), (bytes)>()
template <int number, size_t bytes> static inline char *thread_memory() {
    alignas(64) static thread_local char memory[bytes];
    return memory;
}
