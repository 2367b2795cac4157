/* Counts what is asked of Python's allocators, by standing before them ("Memory Management" in the manual of its C API).

   Loaded by ctypes into the interpreter to be counted. What CPython keeps for its next tuple, frame or context is asked
   of nobody, and so not counted. */

#include <stddef.h>

typedef struct {
    void *context;
    void *(*allocate)(void *, size_t);
    void *(*allocate_zeroed)(void *, size_t, size_t);
    void *(*reallocate)(void *, void *, size_t);
    void (*release)(void *, void *);
} Allocator; /* PyMemAllocatorEx */

enum { DOMAINS = 3 }; /* raw memory, Python's, and that of its objects */

void PyMem_GetAllocator(int domain, Allocator *allocator);
void PyMem_SetAllocator(int domain, Allocator *allocator);

static Allocator behind[DOMAINS];
static size_t count;

static Allocator *counted(void *context)
{
    __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED); /* raw memory is for threads that hold no lock, too */
    return context;
}

static void *allocate(void *context, size_t size)
{
    Allocator *found = counted(context);
    return found->allocate(found->context, size);
}

static void *allocate_zeroed(void *context, size_t number, size_t size)
{
    Allocator *found = counted(context);
    return found->allocate_zeroed(found->context, number, size);
}

static void *reallocate(void *context, void *block, size_t size)
{
    Allocator *found = counted(context);
    return found->reallocate(found->context, block, size);
}

static void release(void *context, void *block)
{
    Allocator *found = context;
    found->release(found->context, block);
}

__attribute__((constructor)) static void stand_before_all(void)
{
    for (int domain = 0; domain < DOMAINS; domain++) {
        Allocator counting = {&behind[domain], allocate, allocate_zeroed, reallocate, release};
        PyMem_GetAllocator(domain, &behind[domain]);
        PyMem_SetAllocator(domain, &counting);
    }
}

size_t allocations(void)
{
    return count;
}
