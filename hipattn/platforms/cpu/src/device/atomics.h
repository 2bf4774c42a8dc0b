// Atomics. Blocks run in parallel on the host's cores, so these are the host's.
#pragma once

template <class T, class F> SIM_FN T sim_atomic_update(T* p, F f) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED), wanted;
    do wanted = f(old);
    while (!__atomic_compare_exchange_n(p, &old, wanted, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
    return old;
}
// Floating point goes through the integer of its size.
template <class I, class T, class F> SIM_FN T sim_atomic_update_bits(T* p, F f) {
    return sim_bits<T>(sim_atomic_update((I*)p, [f](I old) { return sim_bits<I>((T)f(sim_bits<T>(old))); }));
}

#define SIM_ATOMIC_INTEGER(T)                                                                               \
    SIM_FN T atomicAdd(T* p, T v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }                    \
    SIM_FN T atomicSub(T* p, T v) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); }                    \
    SIM_FN T atomicAnd(T* p, T v) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); }                    \
    SIM_FN T atomicOr(T* p, T v) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }                      \
    SIM_FN T atomicXor(T* p, T v) { return __atomic_fetch_xor(p, v, __ATOMIC_SEQ_CST); }                    \
    SIM_FN T atomicMax(T* p, T v) { return __atomic_fetch_max(p, v, __ATOMIC_SEQ_CST); }                    \
    SIM_FN T atomicMin(T* p, T v) { return __atomic_fetch_min(p, v, __ATOMIC_SEQ_CST); }                    \
    SIM_FN T atomicExch(T* p, T v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }                  \
    SIM_FN T atomicCAS(T* p, T expected, T v) {                                                             \
        __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);            \
        return expected;                                                                                    \
    }
SIM_ATOMIC_INTEGER(int)
SIM_ATOMIC_INTEGER(unsigned)
SIM_ATOMIC_INTEGER(unsigned long)
SIM_ATOMIC_INTEGER(long long)
SIM_ATOMIC_INTEGER(unsigned long long)
#undef SIM_ATOMIC_INTEGER

#define SIM_ATOMIC_FLOAT(T, I)                                                                              \
    SIM_FN T atomicAdd(T* p, T v) { return sim_atomic_update_bits<I>(p, [v](T old) { return old + v; }); }  \
    SIM_FN T atomicMax(T* p, T v) { return sim_atomic_update_bits<I>(p, [v](T old) { return max(old, v); }); } \
    SIM_FN T atomicMin(T* p, T v) { return sim_atomic_update_bits<I>(p, [v](T old) { return min(old, v); }); } \
    SIM_FN T atomicExch(T* p, T v) { return sim_atomic_update_bits<I>(p, [v](T) { return v; }); }           \
    SIM_FN T unsafeAtomicAdd(T* p, T v) { return atomicAdd(p, v); }                                         \
    SIM_FN T safeAtomicAdd(T* p, T v) { return atomicAdd(p, v); }
SIM_ATOMIC_FLOAT(float, unsigned)
SIM_ATOMIC_FLOAT(double, unsigned long)
#undef SIM_ATOMIC_FLOAT
SIM_FN __half2 unsafeAtomicAdd(__half2* p, __half2 v) {
    return sim_atomic_update_bits<unsigned>(p, [v](__half2 old) { return old + v; });
}
SIM_FN unsigned atomicInc(unsigned* p, unsigned limit) {
    return sim_atomic_update(p, [limit](unsigned old) { return old >= limit ? 0 : old + 1; });
}
SIM_FN unsigned atomicDec(unsigned* p, unsigned limit) {
    return sim_atomic_update(p, [limit](unsigned old) { return old == 0 || old > limit ? limit : old - 1; });
}

// Every scope is the system here.
#define SIM_ATOMIC_SCOPED(name)                                                                       \
    template <class T, class U> SIM_FN T name##_system(T* p, U v) { return name(p, (T)v); }           \
    template <class T, class U> SIM_FN T name##_block(T* p, U v) { return name(p, (T)v); }
SIM_ATOMIC_SCOPED(atomicAdd)
SIM_ATOMIC_SCOPED(atomicMax)
SIM_ATOMIC_SCOPED(atomicMin)
SIM_ATOMIC_SCOPED(atomicExch)
#undef SIM_ATOMIC_SCOPED

#define __HIP_MEMORY_SCOPE_SINGLETHREAD 1
#define __HIP_MEMORY_SCOPE_WAVEFRONT 2
#define __HIP_MEMORY_SCOPE_WORKGROUP 3
#define __HIP_MEMORY_SCOPE_AGENT 4
#define __HIP_MEMORY_SCOPE_SYSTEM 5
#define __hip_atomic_load(p, order, scope) sim_hip_atomic_load(p)
#define __hip_atomic_store(p, v, order, scope) sim_hip_atomic_store(p, v)
#define __hip_atomic_exchange(p, v, order, scope) atomicExch(p, v)
#define __hip_atomic_fetch_add(p, v, order, scope) atomicAdd(p, v)
#define __hip_atomic_fetch_and(p, v, order, scope) atomicAnd(p, v)
#define __hip_atomic_fetch_or(p, v, order, scope) atomicOr(p, v)
#define __hip_atomic_fetch_xor(p, v, order, scope) atomicXor(p, v)
#define __hip_atomic_fetch_max(p, v, order, scope) atomicMax(p, v)
#define __hip_atomic_fetch_min(p, v, order, scope) atomicMin(p, v)
#define __hip_atomic_compare_exchange_strong(p, expected, v, success, failure, scope) sim_hip_atomic_cas(p, expected, v)
#define __hip_atomic_compare_exchange_weak(p, expected, v, success, failure, scope) sim_hip_atomic_cas(p, expected, v)
template <class T> SIM_FN T sim_hip_atomic_load(const T* p) {
    T v;
    __atomic_load(const_cast<T*>(p), &v, __ATOMIC_SEQ_CST);
    return v;
}
template <class T, class U> SIM_FN void sim_hip_atomic_store(T* p, U u) {
    T v = u;
    __atomic_store(p, &v, __ATOMIC_SEQ_CST);
}
template <class T, class U> SIM_FN bool sim_hip_atomic_cas(T* p, T* expected, U u) {
    T v = u;
    return __atomic_compare_exchange(p, expected, &v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
