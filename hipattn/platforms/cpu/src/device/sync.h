// Barriers, fences, scheduling hints, clocks, and the ways a kernel ends early.
#pragma once

SIM_FN void __syncthreads() { sim_barrier(); }
SIM_FN void __builtin_amdgcn_s_barrier() { sim_barrier(); }

// The lanes of a wave run in step on a GPU; here they are brought together.
SIM_FN void __builtin_amdgcn_wave_barrier() { sim_exchange(nullptr, 0, nullptr); }
SIM_FN void __syncwarp() { sim_exchange(nullptr, 0, nullptr); }
SIM_FN void __syncwarp(unsigned long long) { sim_exchange(nullptr, 0, nullptr); }

SIM_FN void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
SIM_FN void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
SIM_FN void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
SIM_FN void __builtin_amdgcn_fence(unsigned, const char*) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
SIM_FN void __builtin_amdgcn_fence(unsigned, const char*, const char*) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// Hints to AMD's scheduler: they change when, never what.
SIM_FN void __builtin_amdgcn_s_waitcnt(int) {}
SIM_FN void __builtin_amdgcn_sched_barrier(int) {}
SIM_FN void __builtin_amdgcn_sched_group_barrier(int, int, int) {}
SIM_FN void __builtin_amdgcn_iglp_opt(int) {}
SIM_FN void __builtin_amdgcn_s_setprio(short) {}
SIM_FN void __builtin_amdgcn_s_sleep(int) {}
SIM_FN void __builtin_amdgcn_s_nop(int) {}

SIM_FN void sim_abort() { sim_trap("abort() called"); }
#define abort sim_abort
#undef __builtin_trap
#define __builtin_trap() sim_trap("trap")

SIM_FN void __assert_fail(const char* assertion, const char*, unsigned, const char*) { sim_trap(assertion); }

extern "C" int printf(const char*, ...);
extern "C" void* memcpy(void*, const void*, size_t);
extern "C" void* memset(void*, int, size_t);

SIM_FN unsigned long long __builtin_amdgcn_s_memtime() { return __builtin_readcyclecounter(); }
SIM_FN unsigned long long __builtin_amdgcn_s_memrealtime() { return __builtin_readcyclecounter(); }
SIM_FN long long clock64() { return __builtin_readcyclecounter(); }
SIM_FN long long __clock64() { return __builtin_readcyclecounter(); }
SIM_FN long long clock() { return __builtin_readcyclecounter(); }
SIM_FN long long __clock() { return __builtin_readcyclecounter(); }
SIM_FN long long wall_clock64() { return __builtin_readcyclecounter(); }
