// Kernels as hiprtc's output looks to the runtime, written by hand: what is tested here is the runtime alone.
#include "sim_abi.h"

struct Arguments {
    float* x;
    int n;
};

static unsigned global_index(const sim_thread* t) { return t->block_idx.x * t->block_dim.x + t->thread_idx.x; }

// x[i] *= 2, with no check against n.
static void twice(const Arguments& a) { a.x[global_index(sim_self())] *= 2; }

// One thread adds n numbers to x[0], slowly.
static void slow(const Arguments& a) {
    volatile float* x = a.x;
    if (global_index(sim_self()) == 0)
        for (int i = 0; i < a.n; ++i) *x = *x + 1;
}

// x[block] = the number of threads before and after a barrier that saw what the others wrote.
static thread_local float shared[1024];
static void neighbour(const Arguments& a) {
    const sim_thread* t = sim_self();
    unsigned i = t->thread_idx.x, n = t->block_dim.x;
    shared[i] = static_cast<float>(i);
    sim_barrier();
    float other = shared[(i + 1) % n];
    sim_barrier();
    a.x[global_index(t)] = other;
}

// x[i] = shared[i] before anything wrote it; with dynamic LDS, that.
static void poison(const Arguments& a) {
    const sim_thread* t = sim_self();
    float* from = a.n ? static_cast<float*>(sim_dynamic_lds()) : shared;
    a.x[global_index(t)] = from[t->thread_idx.x];
    from[t->thread_idx.x] = 1;
}

static void dynamic_overrun(const Arguments& a) {
    static_cast<float*>(sim_dynamic_lds())[a.n + sim_self()->thread_idx.x] = 0;
}

static void shared_overrun(const Arguments& a) {
    shared[sim_self()->thread_idx.x + static_cast<unsigned>(a.n)] = 0;
    a.x[0] = shared[0];
}

// Threads below n leave before the barrier.
static void leave_early(const Arguments& a) {
    if (sim_self()->thread_idx.x >= static_cast<unsigned>(a.n)) sim_barrier();
}

// Lanes below n wait at another barrier than the rest.
static void two_barriers(const Arguments& a) {
    if (sim_self()->thread_idx.x < static_cast<unsigned>(a.n)) {
        sim_barrier();
        a.x[0] = 1;
    } else {
        sim_barrier();
        a.x[1] = 1;
    }
}

static void sum(sim_wave* w) {
    float total = 0;
    for (unsigned lane = 0; lane < w->size; ++lane)
        if (w->active >> lane & 1) total += *reinterpret_cast<float*>(w->slots + lane * w->stride);
    for (unsigned lane = 0; lane < w->size; ++lane)
        *reinterpret_cast<float*>(w->slots + lane * w->stride) = total;
}

static float wave_sum(float value) {
    sim_wave* w = sim_exchange(&value, sizeof value, sum);
    return *reinterpret_cast<float*>(w->slots);
}

// x[i] = the sum of ones over the lanes that are in the same branch; then over the whole wave.
static void divergent_sum(const Arguments& a) {
    const sim_thread* t = sim_self();
    float branch;
    if (t->lane < static_cast<unsigned>(a.n))
        branch = wave_sum(1);
    else
        branch = wave_sum(100);
    a.x[2 * global_index(t)] = branch;
    a.x[2 * global_index(t) + 1] = wave_sum(1);
}

// Lane l goes l + 1 times through a loop: x[i] = the active lanes it has seen in total.
static void loop_sum(const Arguments& a) {
    const sim_thread* t = sim_self();
    float seen = 0;
    for (unsigned i = 0; i <= t->lane; ++i) seen += wave_sum(1);
    a.x[global_index(t)] = seen + 1000 * wave_sum(1);
}

// x[i] = the slot of the first lane that is not active, as a lane reads it from a partner that is gone.
static void inactive_slot(const Arguments& a) {
    const sim_thread* t = sim_self();
    if (t->lane >= static_cast<unsigned>(a.n)) return;
    float mine = 1;
    sim_wave* w = sim_exchange(&mine, sizeof mine, nullptr);
    a.x[t->lane] = *reinterpret_cast<float*>(w->slots + static_cast<unsigned>(a.n) * w->stride);
}

// Two kernels whose own LDS fits, and the module's does not.
extern "C" void tile_a(const Arguments& a) {
    static thread_local float tile[10000];
    a.x[0] = tile[a.n] += 1;
}
extern "C" void tile_b(const Arguments& a) {
    static thread_local float tile[10000];
    a.x[0] = tile[a.n] += 1;
}

static void deep_stack(const Arguments& a) {
    volatile char big[200 << 10];
    big[a.n] = 1;
    a.x[0] = big[a.n / 2];
}

static void divide(const Arguments& a) { a.x[0] = static_cast<float>(7 / a.n); }

static void trap(const Arguments&) {
    if (sim_self()->thread_idx.x == 3) sim_trap("the third thread gives up");
}

// Blocks write where they run: the order shows.
static void order(const Arguments& a) {
    float* count = a.x;
    a.x[1 + sim_self()->block_idx.x] = (*count)++;
}

static void nothing(const Arguments&) {}

template <void kernel(const Arguments&)>
static void invoke(const char* block) {
    kernel(*reinterpret_cast<const Arguments*>(block));
}

static const sim_argument arguments[] = {{8, 8}, {4, 4}};
#define KERNEL(name) {#name, invoke<name>, arguments, 2, 1024}
static const sim_kernel kernels[] = {
    KERNEL(twice),           KERNEL(slow),         KERNEL(neighbour),     KERNEL(poison),
    KERNEL(dynamic_overrun), KERNEL(shared_overrun), KERNEL(leave_early), KERNEL(two_barriers),
    KERNEL(divergent_sum),   KERNEL(loop_sum),     KERNEL(inactive_slot), KERNEL(deep_stack),
    KERNEL(tile_a),          KERNEL(tile_b),
    KERNEL(divide),          KERNEL(trap),         KERNEL(order),         {"nothing", invoke<nothing>, nullptr, 0, 256},
};
extern "C" __attribute__((visibility("default"))) const sim_module_table sim_module = {
    SIM_ABI_VERSION, ARCH, sizeof kernels / sizeof *kernels, kernels};
