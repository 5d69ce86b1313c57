// Scratch memory of many megabytes.
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
