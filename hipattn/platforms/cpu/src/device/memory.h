// Cached and direct loads, and loads whose bounds the chip checks.
#pragma once

template <class T> SIM_FN T __ldg(const T* p) { return *p; }
template <class T> SIM_FN T __ldcg(const T* p) { return *p; }
template <class T> SIM_FN T __ldca(const T* p) { return *p; }
template <class T> SIM_FN T __ldcs(const T* p) { return *p; }

// A buffer of `bytes` without structure: what lies past them is read as zeros, each 32 bits for themselves.
struct __amdgpu_buffer_rsrc_t {
    const char* base;
    unsigned bytes;
};
SIM_FN __amdgpu_buffer_rsrc_t __builtin_amdgcn_make_buffer_rsrc(void* base, short stride, unsigned bytes, int) {
    if (stride) __builtin_trap();  // structured buffers are not simulated
    return {static_cast<const char*>(base), bytes};
}
template <class Word, class Result> SIM_FN Result sim_buffer_load(__amdgpu_buffer_rsrc_t buffer, unsigned offset, unsigned base) {
    Word words[sizeof(Result) / sizeof(Word)] = {};
    for (unsigned long long n = 0; n < sizeof(Result) / sizeof(Word); ++n) {
        const unsigned long long at = offset + base + n * sizeof(Word);
        if (at + sizeof(Word) <= buffer.bytes) __builtin_memcpy(&words[n], buffer.base + at, sizeof(Word));
    }
    Result result;
    __builtin_memcpy(&result, words, sizeof result);
    return result;
}
#define SIM_BUFFER_LOAD(bits, word, result)                                                                          \
    SIM_FN result __builtin_amdgcn_raw_buffer_load_b##bits(__amdgpu_buffer_rsrc_t buffer, int offset, int base, int) { \
        return sim_buffer_load<word, result>(buffer, (unsigned)offset, (unsigned)base);                              \
    }
using sim_words2 = unsigned __attribute__((ext_vector_type(2)));
using sim_words4 = unsigned __attribute__((ext_vector_type(4)));
SIM_BUFFER_LOAD(8, unsigned char, unsigned char)
SIM_BUFFER_LOAD(16, unsigned short, unsigned short)
SIM_BUFFER_LOAD(32, unsigned, unsigned)
SIM_BUFFER_LOAD(64, unsigned, sim_words2)
SIM_BUFFER_LOAD(128, unsigned, sim_words4)
#undef SIM_BUFFER_LOAD
