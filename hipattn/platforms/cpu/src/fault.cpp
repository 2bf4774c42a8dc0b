#include "fault.h"

#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "memory.h"

__thread Guard* active_guard __attribute__((tls_model("initial-exec")));

static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
static struct sigaction previous[65];
static bool chaining[65];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

// A fault that is not ours goes to the handler that was there before. One that comes back (a handler that dumps,
// then restores and raises) meets the default action.
static void chain(int number, siginfo_t* info, void* context) {
    struct sigaction& before = previous[number];
    bool again = __atomic_exchange_n(&chaining[number], true, __ATOMIC_ACQ_REL);
    bool plain = !(before.sa_flags & SA_SIGINFO);
    if (again || (plain && (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN))) {
        struct sigaction standard = {};
        standard.sa_handler = SIG_DFL;
        sigaction(number, &standard, nullptr);
        if (info->si_code <= 0) raise(number);  // sent by someone: returning would not repeat it
        return;
    }
    if (plain)
        before.sa_handler(number);
    else
        before.sa_sigaction(number, info, context);
    __atomic_store_n(&chaining[number], false, __ATOMIC_RELEASE);
}

static void handle(int number, siginfo_t* info, void* context) {
    Guard* guard = active_guard;
    if (!guard || info->si_code <= 0) return chain(number, info, context);
    guard->trap.signal = number;
    guard->trap.code = info->si_code;
    guard->trap.address = static_cast<const char*>(info->si_addr);
#if defined(__x86_64__)
    guard->trap.write = static_cast<ucontext_t*>(context)->uc_mcontext.gregs[19 /* REG_ERR */] & 2;
#endif
    active_guard = nullptr;
    _longjmp(guard->landing, 1);  // SA_NODEFER: no signal mask to restore
}

void fault_install_handlers() {
    Lock lock(mutex);
    for (int number : signals) {
        struct sigaction now, ours = {};
        sigaction(number, nullptr, &now);
        if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == handle) continue;
        previous[number] = now;
        ours.sa_sigaction = handle;
        ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(number, &ours, nullptr);
    }
}

enum : size_t { handler_stack_bytes = 64 << 10 };

void* fault_prepare_thread() {
    stack_t stack = {};
    stack.ss_size = handler_stack_bytes;
    stack.ss_sp = mmap(nullptr, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigaltstack(&stack, nullptr);
    return stack.ss_sp;
}

void fault_release_thread(void* handler_stack) {
    stack_t none = {};
    none.ss_flags = SS_DISABLE;
    sigaltstack(&none, nullptr);
    munmap(handler_stack, handler_stack_bytes);
}

void guard_leave(const char* message) {
    Guard* guard = active_guard;
    if (!guard) abort();
    guard->trap.message = message;
    active_guard = nullptr;
    _longjmp(guard->landing, 1);
}

void describe_trap(const Trap& trap, char* text, size_t size) {
    switch (trap.signal) {
        case SIGILL:
        case SIGTRAP:
            snprintf(text, size, "an index outside its __shared__ or local array, or __builtin_trap");
            return;
        case SIGFPE: snprintf(text, size, "an integer division by zero"); return;
    }
    if (trap.signal == SIGSEGV && trap.code == SI_KERNEL) {
        snprintf(text, size, "a misaligned vector access, or an address that is no address");
        return;
    }
    char where[256];
    memory_describe(trap.address, where, sizeof where);
#if defined(__x86_64__)
    const char* verb = trap.write ? "writes" : "reads";
#else
    const char* verb = "accesses";
#endif
    snprintf(text, size, "%s address %p: %s", verb, static_cast<const void*>(trap.address), where);
}
