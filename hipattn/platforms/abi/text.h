// A growing string and the few operations on strings that hiprtc needs.
#pragma once

#include <stdarg.h>
#include <stdio.h>

#include "base.h"

struct InPlace {};
inline void* operator new(size_t, void* at, InPlace) { return at; }

struct Text {
    char* data = nullptr;
    size_t size = 0, capacity = 0;

    Text() = default;
    Text(const char* s) { add(s); }
    Text(const Text& other) { add(other.data, other.size); }
    Text(Text&& other) : data(other.data), size(other.size), capacity(other.capacity) {
        other.data = nullptr;
        other.size = other.capacity = 0;
    }
    Text& operator=(Text other) {
        char* d = data;
        data = other.data, size = other.size, capacity = other.capacity;
        other.data = d;
        return *this;
    }
    ~Text() { free(data); }

    Text& add(const char* s, size_t n) {
        if (!n) return *this;
        if (size + n + 1 > capacity) {
            capacity = 2 * (size + n + 1);
            data = static_cast<char*>(realloc(data, capacity));
            if (!data) ::abort();
        }
        memcpy(data + size, s, n);
        size += n;
        data[size] = 0;
        return *this;
    }
    Text& add(const char* s) { return add(s, strlen(s)); }
    Text& add(const Text& s) { return add(s.data, s.size); }
    __attribute__((format(printf, 2, 3))) Text& format(const char* form, ...) {
        char* made = nullptr;
        va_list list;
        va_start(list, form);
        int n = vasprintf(&made, form, list);
        va_end(list);
        if (n < 0) ::abort();
        add(made, n);
        free(made);
        return *this;
    }
    const char* c_str() const { return data ? data : ""; }
    bool operator==(const Text& other) const { return size == other.size && !memcmp(c_str(), other.c_str(), size); }
    bool operator==(const char* other) const { return !strcmp(c_str(), other); }
    void remove(size_t at, size_t n) {
        memmove(data + at, data + at + n, size - at - n + 1);
        size -= n;
    }
    void replace(const char* what, const char* with) {  // every occurrence
        Text made;
        const char* at = c_str();
        for (const char* next; (next = strstr(at, what)); at = next + strlen(what)) made.add(at, next - at).add(with);
        *this = made.add(at);
    }
    void erase(const char* what) { replace(what, ""); }
};

// A list of values that have destructors.
template <class T>
struct List {
    T* items = nullptr;
    size_t count = 0, capacity = 0;

    List() = default;
    List(const List&) = delete;
    ~List() {
        clear();
        free(static_cast<void*>(items));
    }
    void clear() {
        while (count) items[--count].~T();
    }
    T& add(T item) {
        if (count == capacity) {
            capacity = capacity ? 2 * capacity : 8;
            T* grown = static_cast<T*>(malloc(capacity * sizeof(T)));
            if (!grown) ::abort();
            for (size_t i = 0; i < count; ++i) {
                new (&grown[i], InPlace()) T(static_cast<T&&>(items[i]));
                items[i].~T();
            }
            free(static_cast<void*>(items));
            items = grown;
        }
        return *new (&items[count++], InPlace()) T(static_cast<T&&>(item));
    }
    T& operator[](size_t i) { return items[i]; }
    const T& operator[](size_t i) const { return items[i]; }
    T* begin() { return items; }
    T* end() { return items + count; }
    const T* begin() const { return items; }
    const T* end() const { return items + count; }
};

inline bool starts_with(const char* s, const char* prefix) { return !strncmp(s, prefix, strlen(prefix)); }

// "--option=value" → value.
inline const char* option_value(const char* option, const char* name) {
    size_t n = strlen(name);
    return !strncmp(option, name, n) && option[n] == '=' ? option + n + 1 : nullptr;
}
