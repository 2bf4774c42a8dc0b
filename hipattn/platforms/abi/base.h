// The few pieces of a C++ library that the platform needs, without linking one: every structure here is plain
// data, valid when zeroed, so that `make` is calloc and nothing needs a constructor.
#pragma once

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT extern "C" __attribute__((visibility("default")))
// A function by the name that our other libraries call it by: one of ROCm's may be loaded that has HIP's.
#define EXPORT_AS(name, function) \
    extern "C" __attribute__((visibility("default"), alias(#function))) decltype(function) name

template <class T>
T* make(size_t trailing = 0) {
    void* p = nullptr;
    if (posix_memalign(&p, 64, sizeof(T) + trailing)) abort();
    memset(p, 0, sizeof(T) + trailing);
    return static_cast<T*>(p);
}

struct Lock {
    pthread_mutex_t* mutex;
    explicit Lock(pthread_mutex_t& m) : mutex(&m) { pthread_mutex_lock(mutex); }
    ~Lock() { pthread_mutex_unlock(mutex); }
    Lock(const Lock&) = delete;
};

template <class T>
struct Array {
    T* items;
    size_t count, capacity;

    void insert(size_t at, T item) {
        if (count == capacity) {
            capacity = capacity ? 2 * capacity : 8;
            items = static_cast<T*>(realloc(static_cast<void*>(items), capacity * sizeof(T)));
            if (!items) abort();
        }
        memmove(static_cast<void*>(items + at + 1), items + at, (count - at) * sizeof(T));
        items[at] = item;
        ++count;
    }
    void push(T item) { insert(count, item); }
    void remove(size_t at) {
        --count;
        memmove(static_cast<void*>(items + at), items + at + 1, (count - at) * sizeof(T));
    }
    bool remove_item(T item) {
        for (size_t i = 0; i < count; ++i)
            if (items[i] == item) return remove(i), true;
        return false;
    }
    T* begin() { return items; }
    T* end() { return items + count; }
};

inline int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

inline unsigned long environment_number(const char* name, unsigned long otherwise) {
    const char* text = getenv(name);
    return text && *text ? strtoul(text, nullptr, 0) : otherwise;
}

template <class T>
T round_up(T value, size_t to) {
    return static_cast<T>((value + to - 1) / to * to);
}
