#include "memory.h"

#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum : size_t { page = 4096, guard = 64 << 10, alignment = 16, quarantine_limit = 4096, poison_chunk = 16 << 20 };

// A NaN in every floating-point format, and unlike the poison of fresh memory.
static const unsigned char canary[2] = {0xC5, 0xFF};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Array<Allocation*> table;       // by address: live ones and the quarantine
static Array<Allocation*> quarantine;  // a ring, oldest at quarantine_next once it is full
static size_t quarantine_next;
static size_t live_bytes, live_count;

static size_t position(const void* address) {  // the first allocation whose mapping ends after the address
    size_t low = 0, high = table.count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        Allocation* a = table.items[middle];
        if (a->map + a->map_size <= static_cast<const char*>(address))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static Allocation* mapping_at(const void* address) {
    size_t i = position(address);
    return i < table.count && table.items[i]->map <= address ? table.items[i] : nullptr;
}

static bool holds(const Allocation* a, const void* p) {
    return p >= a->data && (p < a->data + a->size || (a->size == 0 && p == a->data));
}

static unsigned char canary_at(const char* p) { return canary[reinterpret_cast<uintptr_t>(p) & 1]; }

static int poison_file() {
    static int file = -1;
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, [] {
        int made = static_cast<int>(syscall(SYS_memfd_create, "hipattn-poison", 1u /* close on exec */));
        char block[page];
        memset(block, 0xFF, sizeof block);
        for (size_t i = 0; made >= 0 && i < poison_chunk; i += sizeof block)
            if (write(made, block, sizeof block) != sizeof block) return;
        file = made;
    });
    return file;
}

// Fills fresh pages with NaN. Large ones are copies-on-write of one chunk, so that untouched memory costs nothing.
static void fill(char* begin, size_t size) {
    while (size >= 4 * poison_chunk && poison_file() >= 0 &&
           mmap(begin, poison_chunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, poison_file(), 0) != MAP_FAILED) {
        begin += poison_chunk;
        size -= poison_chunk;
    }
    memset(begin, 0xFF, size);
}

hipError_t memory_allocate(Device* device, size_t size, void** out) {
    {
        Lock lock(mutex);
        if (size > device->memory_bytes - device->used_bytes) return hipErrorOutOfMemory;
        device->used_bytes += size;
        live_bytes += size;
        ++live_count;
    }
    size_t body = round_up(round_up(size, alignment), page), map_size = body + 2 * guard;
    char* map = static_cast<char*>(
        size > SIZE_MAX / 2 ? MAP_FAILED
                            : mmap(nullptr, map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (map != MAP_FAILED && mprotect(map + guard, body, PROT_READ | PROT_WRITE)) {
        munmap(map, map_size);
        map = static_cast<char*>(MAP_FAILED);
    }
    if (map == MAP_FAILED) {
        Lock lock(mutex);
        device->used_bytes -= size;
        live_bytes -= size;
        --live_count;
        return hipErrorOutOfMemory;
    }
    char *begin = map + guard, *end = begin + body, *data = end - round_up(size, alignment);
    fill(begin, body);
    for (char* p = begin; p < data; ++p) *p = static_cast<char>(canary_at(p));
    for (char* p = data + size; p < end; ++p) *p = static_cast<char>(canary_at(p));

    Allocation* a = make<Allocation>();
    *a = {map, map_size, data, size, device, Allocation::live};
    Lock lock(mutex);
    table.insert(position(map), a);
    *out = data;
    return hipSuccess;
}

bool memory_find(const void* pointer, Allocation* out) {
    Lock lock(mutex);
    Allocation* a = mapping_at(pointer);
    if (!a || a->state == Allocation::freed || !holds(a, pointer)) return false;
    *out = *a;
    return true;
}

hipError_t memory_mark_leaving(void* base) {
    Lock lock(mutex);
    Allocation* a = mapping_at(base);
    if (!a || a->state != Allocation::live || a->data != base) return hipErrorInvalidValue;
    a->state = Allocation::leaving;
    return hipSuccess;
}

static void check_canary(const Allocation* a) {
    char *begin = a->map + guard, *end = a->map + a->map_size - guard;
    char* bad = nullptr;
    for (char* p = a->data; p-- > begin && !bad;)
        if (static_cast<unsigned char>(*p) != canary_at(p)) bad = p;
    for (char* p = a->data + a->size; p < end && !bad; ++p)
        if (static_cast<unsigned char>(*p) != canary_at(p)) bad = p;
    if (!bad) return;
    char what[128];
    if (bad < a->data)
        snprintf(what, sizeof what, "%zu bytes before the start", static_cast<size_t>(a->data - bad));
    else
        snprintf(what, sizeof what, "%zu bytes past the end", static_cast<size_t>(bad - a->data - a->size));
    device_fault(a->device, hipErrorIllegalAddress,
                 "found when it was freed: something wrote %s of the %zu-byte allocation at %p", what, a->size,
                 static_cast<void*>(a->data));
}

hipError_t memory_release(void* base) {
    Lock lock(mutex);
    Allocation* a = mapping_at(base);
    if (!a || a->state == Allocation::freed || a->data != base) return hipErrorInvalidValue;
    check_canary(a);
    // A fresh mapping in the same place gives the memory back and keeps the addresses.
    mmap(a->map, a->map_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    a->state = Allocation::freed;
    a->device->used_bytes -= a->size;
    live_bytes -= a->size;
    --live_count;
    if (quarantine.count < quarantine_limit) {
        quarantine.push(a);
        return hipSuccess;
    }
    Allocation*& oldest = quarantine.items[quarantine_next++ % quarantine_limit];
    munmap(oldest->map, oldest->map_size);
    table.remove(position(oldest->map));
    free(oldest);
    oldest = a;
    return hipSuccess;
}

void memory_describe(const void* address, char* text, size_t size) {
    Lock lock(mutex);
    const char* p = static_cast<const char*>(address);
    if (reinterpret_cast<uintptr_t>(p) < page) {
        snprintf(text, size, "a null pointer");
        return;
    }
    size_t i = position(p);
    Allocation* a = i < table.count && table.items[i]->map <= p ? table.items[i] : nullptr;
    if (!a && i > 0) {  // beyond a guard: the allocation before it, if that is near
        Allocation* before = table.items[i - 1];
        if (p - (before->data + before->size) < (1ll << 30)) a = before;
    }
    if (!a) {
        snprintf(text, size, "not in or near any allocation");
        return;
    }
    const char* freed = a->state == Allocation::freed ? "freed " : "";
    void* at = a->data;
    if (p < a->data)
        snprintf(text, size, "%zu bytes before the start of a %s%zu-byte allocation (%p)", static_cast<size_t>(a->data - p),
                 freed, a->size, at);
    else if (p >= a->data + a->size)
        snprintf(text, size, "%zu bytes past the end of a %s%zu-byte allocation (%p)",
                 static_cast<size_t>(p - a->data - a->size), freed, a->size, at);
    else
        snprintf(text, size, "%s a %zu-byte allocation (%p), at byte %zu", *freed ? "inside freed memory:" : "inside", a->size,
                 at, static_cast<size_t>(p - a->data));
}

bool memory_range_ok(const void* pointer, size_t size, char* why, size_t why_size) {
    if (size == 0) return true;
    const char* p = static_cast<const char*>(pointer);
    const char* bad = nullptr;
    {
        Lock lock(mutex);
        Allocation* a = mapping_at(p);
        if (!a) return true;
        if (a->state == Allocation::freed || p < a->data || p >= a->data + a->size)
            bad = p;
        else if (size > static_cast<size_t>(a->data + a->size - p))
            bad = a->data + a->size;
        else
            return true;
    }
    memory_describe(bad, why, why_size);
    return false;
}

size_t memory_live_bytes() {
    Lock lock(mutex);
    return live_bytes;
}

size_t memory_live_count() {
    Lock lock(mutex);
    return live_count;
}
