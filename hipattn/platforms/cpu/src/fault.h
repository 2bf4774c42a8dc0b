// Hardware faults (SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE) in simulated device work come back as a value instead
// of ending the process. Faults anywhere else go to whoever handled them before.
#pragma once

#include <setjmp.h>

#include "../../abi/base.h"

struct Trap {
    int signal, code;
    const char* address;
    bool write;  // known on x86-64
    const char* message;  // of guard_leave, instead of a signal
};

struct Guard {
    jmp_buf landing;
    Trap trap;
};

// The guard that the calling thread is inside. Initial-exec: the handler may read it in any thread.
extern __thread Guard* active_guard __attribute__((tls_model("initial-exec")));

// Gives the calling thread the stack that handlers run on. Every thread that runs device work calls it once, and
// gives it back if it ends.
void* fault_prepare_thread();
void fault_release_thread(void* handler_stack);

// Takes the signals, also when someone else has taken them since.
void fault_install_handlers();

// Ends the guarded body of the calling thread, as a signal would.
[[noreturn]] void guard_leave(const char* message);

// Runs the body; false when a fault ended it, with the cause in guard.trap. Nothing is unwound.
template <class Body>
__attribute__((noinline)) bool guarded(Guard& guard, Body body) {
    memset(&guard.trap, 0, sizeof guard.trap);
    active_guard = &guard;
    bool whole = _setjmp(guard.landing) == 0;
    if (whole) body();
    active_guard = nullptr;
    return whole;
}

// What a signal means, in words: "reads address 0x…: 4 bytes past the end of …".
void describe_trap(const Trap&, char* text, size_t size);
