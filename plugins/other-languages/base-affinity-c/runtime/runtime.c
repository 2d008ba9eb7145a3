// The little of a C library that a policy needs, without WASI: a policy may import nothing but its log.
//
// An instance answers one question and is thrown away, so memory is given out and never taken back.

#include "stdlib.h"
#include "string.h"
#include <stdint.h>

#define PAGE 65536u

extern unsigned char __heap_base;

static uintptr_t top;

void *malloc(size_t size) {
    if (top == 0) top = (uintptr_t)&__heap_base;
    // The size stands before the block, for `realloc`; everything is aligned to 8.
    uintptr_t block = ((top + 7) & ~(uintptr_t)7) + 8;
    if (size > UINT32_MAX - block) return NULL;
    uintptr_t end = block + size, has = __builtin_wasm_memory_size(0) * PAGE;
    if (end > has && __builtin_wasm_memory_grow(0, (end - has + PAGE - 1) / PAGE) == SIZE_MAX) return NULL;
    ((size_t *)block)[-1] = size;
    top = end;
    return (void *)block;
}

void *realloc(void *old, size_t size) {
    void *block = malloc(size);
    if (old != NULL && block != NULL) {
        size_t had = ((size_t *)old)[-1];
        memcpy(block, old, had < size ? had : size);
    }
    return block;
}

void free(void *block) {
    (void)block;
}

_Noreturn void abort(void) {
    __builtin_trap();
}

void *memcpy(void *to, const void *from, size_t size) {
    return __builtin_memcpy(to, from, size);
}

void *memset(void *to, int byte, size_t size) {
    return __builtin_memset(to, byte, size);
}

int memcmp(const void *a, const void *b, size_t size) {
    const unsigned char *x = a, *y = b;
    for (size_t i = 0; i < size; i++) {
        if (x[i] != y[i]) return x[i] < y[i] ? -1 : 1;
    }
    return 0;
}

size_t strlen(const char *text) {
    size_t length = 0;
    while (text[length] != '\0') length++;
    return length;
}
