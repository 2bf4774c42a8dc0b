// A context switch between two stacks: saves what the ABI lets a callee expect, nothing else.
#pragma once

#include <stdint.h>

// Suspends here, storing the stack pointer in *save, and continues where `load` was suspended.
extern "C" __attribute__((visibility("hidden"))) void sim_switch(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl sim_switch
.hidden sim_switch
.type sim_switch, @function
sim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size sim_switch, .-sim_switch
)");
enum { saved_words = 6 };  // below the return address
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.globl sim_switch
.hidden sim_switch
.type sim_switch, %function
sim_switch:
    sub sp, sp, #160
    stp x19, x20, [sp]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size sim_switch, .-sim_switch
)");
#else
#error "the cpu platform runs on x86-64 and aarch64"
#endif

// A stack whose first switch enters `entry`, which must not return. `top` is 16-byte aligned.
inline void* fiber_start(char* top, void (*entry)()) {
    uint64_t* words = reinterpret_cast<uint64_t*>(top);
#if defined(__x86_64__)
    *--words = 0;  // the return address of `entry`: ends a backtrace and aligns the stack as a call does
    *--words = reinterpret_cast<uint64_t>(entry);
    for (int i = 0; i < saved_words; ++i) *--words = 0;
#else
    for (int i = 0; i < 20; ++i) *--words = 0;
    words[11] = reinterpret_cast<uint64_t>(entry);  // x30
#endif
    return words;
}
