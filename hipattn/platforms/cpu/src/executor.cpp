#include "executor.h"

#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fault.h"
#include "fiber.h"

extern "C" void* __tls_get_addr(size_t module_and_offset[2]);

namespace {

enum : size_t {
    page = 4096,
    max_threads = 1024,
    max_waves = max_threads / 32,
    stack_bytes = 128 << 10,  // of a simulated thread, its guard page included
    lds_room = 256 << 10,
};
typedef unsigned long long LaneMask;

// What a lane brings to an exchange.
struct Offer {
    const void* data;
    void (*once)(sim_wave*);
    unsigned bytes;
};

struct Wave {
    unsigned first, lanes;                // threads of the block: first .. first + lanes - 1
    LaneMask ready, exchanging, waiting;  // waiting: at a barrier. In none of them: running, or exited.
    sim_wave views[2];                    // a release leaves the view of the one before as it is
    unsigned turn;
};

struct Executor {
    unsigned current;  // thread
    Wave* wave;        // its wave
    void* scheduler;   // context
    Launch* launch;
    uint64_t block;
    sim_dim3 block_idx;
    unsigned thread_count, wave_count;
    char* lds_end;
    char* lds;
    char* stacks;  // max_threads of them
    size_t stacks_made;
    Array<char*> free_stacks;
    char* first_stack;  // of the fiber that is being started
    bool reports_block;  // the fault is not one thread's
    char message[512];
    char* slots;
    unsigned order[max_waves];
    Executor* next_free;
    Guard guard;
    Wave waves[max_waves];
    // By thread, in arrays of their own: a switch touches little memory.
    void* contexts[max_threads + 1];  // where it is suspended; null before it starts. The last: of those that end.
    char* sites[max_threads];     // the call it waits in
    Offer offers[max_threads];
    sim_thread places[max_threads];
};

__thread Executor* executor __attribute__((tls_model("initial-exec")));

pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t arrived = PTHREAD_COND_INITIALIZER, finished = PTHREAD_COND_INITIALIZER;
Array<Launch*> launches;  // with blocks that helpers may take
Executor* free_executors;
unsigned helper_count;
uint64_t seed;
pthread_once_t once = PTHREAD_ONCE_INIT;

LaneMask bit(unsigned lane) { return 1ull << lane; }

// ---- fibers ----

void enter_thread();

char* take_stack(Executor* e) {
    if (e->free_stacks.count) return e->free_stacks.items[--e->free_stacks.count];
    // A page that stays inaccessible, the stack above it.
    char* low = e->stacks + e->stacks_made++ * stack_bytes;
    mprotect(low + page, stack_bytes - page, PROT_READ | PROT_WRITE);
    return low + stack_bytes;
}

// Makes the next ready thread of the wave the current one; false when none is ready.
bool choose(Executor* e) {
    Wave* w = e->wave;
    if (!w->ready) return false;
    e->current = w->first + static_cast<unsigned>(__builtin_ctzll(w->ready));
    w->ready &= w->ready - 1;
    return true;
}

// The context to switch to after `choose`.
void* context_of_current(Executor* e) {
    void* context = e->contexts[e->current];
    if (context) return context;
    char* stack = e->first_stack = take_stack(e);
    // Stacks start at different cache sets, or those of a block would all share one.
    size_t colour = (static_cast<size_t>(stack - e->stacks) / stack_bytes % 31) * 128;
    return fiber_start(stack - colour, enter_thread);
}

// A fiber runs one thread, and then those that have not started: a kernel that never waits needs one stack.
void enter_thread() {
    Executor* e = executor;
    char* stack = e->first_stack;
    do {
        e->places[e->current].block_idx = e->block_idx;
        e->launch->kernel->invoke(e->launch->arguments);
        if (!choose(e)) {
            e->free_stacks.push(stack);
            sim_switch(&e->contexts[max_threads], e->scheduler);
        }
    } while (!e->contexts[e->current]);
    e->free_stacks.push(stack);
    sim_switch(&e->contexts[max_threads], e->contexts[e->current]);
    __builtin_unreachable();
}

// Suspends the current thread. Goes straight to the next of its wave: the scheduler sees a wave only when all of its
// lanes are blocked.
void suspend(Executor* e, void* site) {
    unsigned self = e->current;
    e->sites[self] = static_cast<char*>(site);
    sim_switch(&e->contexts[self], choose(e) ? context_of_current(e) : e->scheduler);
}

// ---- waves ----

// When all lanes of the wave are blocked: lets those that wait in the same exchange go on together, the lowest
// call first, so that lanes in a loop finish it before the code after it. False when none waits.
bool release_exchange(Executor* e, Wave* w) {
    if (!w->exchanging) return false;
    char** sites = e->sites + w->first;
    Offer* offers = e->offers + w->first;
    char* site = nullptr;
    for (LaneMask m = w->exchanging; m; m &= m - 1) {
        unsigned lane = static_cast<unsigned>(__builtin_ctzll(m));
        if (!site || sites[lane] < site) site = sites[lane];
    }
    sim_wave* view = &w->views[w->turn ^= 1];
    view->active = 0;
    Offer* first = nullptr;
    for (LaneMask m = w->exchanging; m; m &= m - 1) {
        unsigned lane = static_cast<unsigned>(__builtin_ctzll(m));
        if (sites[lane] != site) continue;
        Offer& offer = offers[lane];
        if (!first) first = &offer;
        view->active |= bit(lane);
        if (offer.bytes) memcpy(view->slots + lane * view->stride, offer.data, offer.bytes);
    }
    for (unsigned lane = 0; lane < view->size; ++lane)
        if (!(view->active & bit(lane))) memset(view->slots + lane * view->stride, 0xFF, first->bytes);
    if (first->once) first->once(view);
    w->exchanging &= ~view->active;
    w->ready = view->active;
    return true;
}

void run_wave(Executor* e, Wave* w) {
    e->wave = w;
    do
        if (choose(e)) sim_switch(&e->scheduler, context_of_current(e));
    while (release_exchange(e, w));
}

// ---- blocks ----

int print_thread(char* text, size_t size, const Executor* e, unsigned thread) {
    sim_dim3 t = e->places[thread].thread_idx;
    return snprintf(text, size, "(%u, %u, %u)", t.x, t.y, t.z);
}

[[noreturn]] void barrier_divergence(Executor* e, unsigned count, unsigned absent, const char* state) {
    char who[64];
    print_thread(who, sizeof who, e, absent);
    snprintf(e->message, sizeof e->message,
             "barrier divergence: %u of %u threads arrived at __syncthreads; thread %s %s", count, e->thread_count,
             who, state);
    e->reports_block = true;
    guard_leave(e->message);
}

// Every thread has exited (false) or stands at a barrier and may go on; anything else is an error.
bool release_barrier(Executor* e) {
    unsigned count = 0;
    for (unsigned i = 0; i < e->wave_count; ++i)
        count += static_cast<unsigned>(__builtin_popcountll(e->waves[i].waiting));
    if (count == 0) return false;
    for (unsigned i = 0; i < e->wave_count; ++i) {
        Wave& w = e->waves[i];
        for (unsigned lane = 0; lane < w.lanes; ++lane) {
            unsigned thread = w.first + lane;
            if (!(w.waiting & bit(lane))) barrier_divergence(e, count, thread, "has exited");
            if (e->sites[thread] != e->sites[w.first])
                barrier_divergence(e, count, thread, "waits at another __syncthreads than the first of its wave");
        }
        w.ready = w.waiting;
        w.waiting = 0;
    }
    return true;
}

uint64_t mix(uint64_t x) {  // splitmix64
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

void shuffle_waves(Executor* e, uint64_t turn) {
    uint64_t random = mix(seed ^ mix(e->block) ^ turn);
    for (unsigned i = e->wave_count; i > 1; --i, random = mix(random)) {
        unsigned j = static_cast<unsigned>(random % i), held = e->order[i - 1];
        e->order[i - 1] = e->order[j];
        e->order[j] = held;
    }
}

void start_block(Executor* e, uint64_t block) {
    Launch* l = e->launch;
    e->block = block;
    e->block_idx = {static_cast<unsigned>(block % l->grid.x), static_cast<unsigned>(block / l->grid.x % l->grid.y),
                    static_cast<unsigned>(block / l->grid.x / l->grid.y)};
    memset(e->contexts, 0, e->thread_count * sizeof(void*));
    for (unsigned i = 0; i < e->wave_count; ++i) {
        Wave& w = e->waves[i];
        w.ready = w.lanes == 64 ? ~0ull : bit(w.lanes) - 1;
        w.exchanging = w.waiting = 0;
    }
    if (l->dynamic_lds) memset(e->lds, 0xFF, l->dynamic_lds);
    if (l->tls_bytes) {
        size_t where[2] = {l->tls_module, 0};
        memset(__tls_get_addr(where), 0xFF, l->tls_bytes);
    }
}

void run_block(Executor* e, uint64_t block) {
    start_block(e, block);
    uint64_t turn = 0;
    do {
        if (seed) shuffle_waves(e, turn++);
        for (unsigned i = 0; i < e->wave_count; ++i) run_wave(e, &e->waves[e->order[i]]);
    } while (release_barrier(e));
}

// ---- launches ----

void prepare(Executor* e, Launch* l) {
    e->launch = l;
    e->thread_count = l->block.x * l->block.y * l->block.z;
    unsigned wave_size = static_cast<unsigned>(l->device->arch->wave_size);
    e->wave_count = (e->thread_count + wave_size - 1) / wave_size;
    e->lds = e->lds_end - round_up(l->dynamic_lds, 16);
    for (unsigned i = 0; i < e->thread_count; ++i) {
        sim_thread& p = e->places[i];
        p.thread_idx = {i % l->block.x, i / l->block.x % l->block.y, i / l->block.x / l->block.y};
        p.block_dim = l->block;
        p.grid_dim = l->grid;
        p.lane = i % wave_size;
        p.wave = i / wave_size;
    }
    for (unsigned i = 0; i < e->wave_count; ++i) {
        Wave& w = e->waves[i];
        w.first = i * wave_size;
        w.lanes = e->thread_count - w.first < wave_size ? e->thread_count - w.first : wave_size;
        for (int v = 0; v < 2; ++v)
            w.views[v] = {wave_size, SIM_SLOT_BYTES, 0, e->slots + (2 * i + v) * 64 * SIM_SLOT_BYTES};
        e->order[i] = i;
    }
}

void report(Executor* e) {
    Launch* l = e->launch;
    const Trap& trap = e->guard.trap;
    char what[384], who[64] = "", reason[384];
    if (!e->reports_block) {
        int n = snprintf(who, sizeof who, ", thread ");
        print_thread(who + n, sizeof who - n, e, e->current);
    }
    const char* a = trap.address;
    if (trap.message)
        snprintf(reason, sizeof reason, "%s", trap.message);
    else if (a >= e->lds_end && a < e->lds_end + page)
        snprintf(reason, sizeof reason, "%zu bytes past the end of its %u bytes of dynamic LDS",
                 static_cast<size_t>(a - (e->lds + l->dynamic_lds)), l->dynamic_lds);
    else if (a >= e->stacks && a < e->stacks + max_threads * stack_bytes)
        snprintf(reason, sizeof reason, "its stack of %d KB overflows", static_cast<int>((stack_bytes - page) >> 10));
    else
        describe_trap(trap, reason, sizeof reason);
    snprintf(what, sizeof what, "kernel %s, block (%u, %u, %u)%s", l->kernel->name, e->block_idx.x, e->block_idx.y,
             e->block_idx.z, who);
    device_fault(l->device, trap.message ? hipErrorLaunchFailure : hipErrorIllegalAddress, "%s: %s", what, reason);
}

// With a seed, blocks come in another order: a step that has no divisor in common with their number.
uint64_t block_at(const Launch* l, uint64_t i) {
    if (!seed || l->blocks < 2) return i;
    uint64_t step = mix(seed) % l->blocks | 1;
    for (;; step += 2) {
        uint64_t a = step, b = l->blocks;
        while (b) {
            uint64_t rest = a % b;
            a = b;
            b = rest;
        }
        if (a == 1) break;
    }
    return static_cast<uint64_t>((static_cast<unsigned __int128>(i) * step + mix(seed + 1)) % l->blocks);
}

Executor* acquire() {
    {
        Lock lock(mutex);
        if (Executor* e = free_executors) {
            free_executors = e->next_free;
            return e;
        }
    }
    Executor* e = make<Executor>();
    e->slots = make<char>(2 * max_waves * 64 * SIM_SLOT_BYTES);
    char* room = static_cast<char*>(mmap(nullptr, lds_room + page + max_threads * stack_bytes, PROT_NONE,
                                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (room == MAP_FAILED) abort();
    mprotect(room, lds_room, PROT_READ | PROT_WRITE);
    e->lds_end = room + lds_room;
    e->stacks = room + lds_room + page;
    return e;
}

// Takes blocks of the launch until there are none left.
void take_part(Launch* l) {
    Executor* e = acquire();
    prepare(e, l);
    executor = e;
    bool whole = guarded(e->guard, [e, l] {
        while (!__atomic_load_n(&l->stopped, __ATOMIC_RELAXED)) {
            uint64_t i = __atomic_fetch_add(&l->next_block, 1, __ATOMIC_RELAXED);
            if (i >= l->blocks) break;
            run_block(e, block_at(l, i));
        }
    });
    executor = nullptr;
    if (!whole) {
        __atomic_store_n(&l->stopped, true, __ATOMIC_RELAXED);
        report(e);
        e->reports_block = false;
        // The stacks of the block are free again, whatever stands on them.
        e->free_stacks.count = 0;
        for (size_t i = 1; i <= e->stacks_made; ++i) e->free_stacks.push(e->stacks + i * stack_bytes);
    }
    Lock lock(mutex);
    e->next_free = free_executors;
    free_executors = e;
}

Launch* next_launch() {
    for (Launch* l : launches)
        if (!l->stopped && __atomic_load_n(&l->next_block, __ATOMIC_RELAXED) < l->blocks) return l;
    return nullptr;
}

void* help(void*) {
    fault_prepare_thread();
    pthread_mutex_lock(&mutex);
    for (;;) {
        Launch* l = next_launch();
        if (!l) {
            pthread_cond_wait(&arrived, &mutex);
            continue;
        }
        ++l->helpers;
        pthread_mutex_unlock(&mutex);
        take_part(l);
        pthread_mutex_lock(&mutex);
        if (--l->helpers == 0) pthread_cond_broadcast(&finished);
    }
}

void start() {
    const char* chosen = getenv("HIPATTN_CPU_SEED");
    seed = chosen && *chosen ? mix(strtoul(chosen, nullptr, 0)) | 1 : 0;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned long threads = environment_number("HIPATTN_CPU_THREADS", 0);
    if (!threads) threads = cores > 0 ? static_cast<unsigned long>(cores) : 1;
    for (unsigned long i = 1; i < threads; ++i) {  // the stream's own worker is the first
        pthread_t thread;
        if (pthread_create(&thread, nullptr, help, nullptr)) break;
        pthread_detach(thread);
        ++helper_count;
    }
}

}  // namespace

void execute(Launch* l) {
    pthread_once(&once, start);
    l->blocks = static_cast<uint64_t>(l->grid.x) * l->grid.y * l->grid.z;
    bool shared = l->blocks > 1 && helper_count;
    if (shared) {
        Lock lock(mutex);
        launches.push(l);
        if (l->blocks > helper_count)
            pthread_cond_broadcast(&arrived);
        else
            for (uint64_t i = 1; i < l->blocks; ++i) pthread_cond_signal(&arrived);
    }
    take_part(l);
    if (!shared) return;
    Lock lock(mutex);
    launches.remove_item(l);
    while (l->helpers) pthread_cond_wait(&finished, &mutex);
}

// ---- what kernels call ----

EXPORT const sim_thread* sim_self() { return &executor->places[executor->current]; }

EXPORT void* sim_dynamic_lds() { return executor->lds; }

EXPORT void sim_barrier() {
    Executor* e = executor;
    e->wave->waiting |= bit(e->current - e->wave->first);
    suspend(e, __builtin_return_address(0));
}

EXPORT sim_wave* sim_exchange(const void* data, unsigned bytes, void (*once_for_all)(sim_wave*)) {
    Executor* e = executor;
    Wave* w = e->wave;
    if (bytes > SIM_SLOT_BYTES) guard_leave("a cross-lane operation brings more than a slot holds");
    e->offers[e->current] = {data, once_for_all, bytes};
    w->exchanging |= bit(e->current - w->first);
    suspend(e, __builtin_return_address(0));
    return &w->views[w->turn];
}

EXPORT void sim_trap(const char* message) {
    Executor* e = executor;
    snprintf(e->message, sizeof e->message, "%s", message);
    guard_leave(e->message);
}
