// What a compiled kernel and the simulated runtime agree on. Both sides include this file and nothing else of
// each other: a kernel is a shared library that imports the sim_* functions and exports the sim_module table.
//
// A thread of a block is a fiber. All fibers of a block run on one operating-system thread, so a `__shared__`
// variable is a thread_local of the kernel's library: one copy per block that runs at the moment.
#pragma once

struct sim_dim3 {
    unsigned x, y, z;
};

// Where a thread is. Constant while the thread lives, so that the compiler may keep what it read.
struct sim_thread {
    sim_dim3 thread_idx, block_idx, block_dim, grid_dim;
    unsigned lane;  // index in the wave, 0 .. wave size - 1
    unsigned wave;  // index of the wave in the block
};

// One cross-lane operation as its lanes see it. Lanes that are not active (exited, or in another branch) have
// poison in their slot, as a register that nothing wrote.
struct sim_wave {
    unsigned size;              // lanes in a wave: 32 or 64
    unsigned stride;            // bytes between two slots
    unsigned long long active;  // bit per lane that takes part
    char* slots;                // slots + lane * stride: what the lane brought, or what `once` wrote for it
};

// Two calls in different branches are two places where lanes wait: the compiler must neither move nor merge them.
#ifdef __clang__
#define SIM_CONVERGENT __attribute__((convergent, nomerge))
#else
#define SIM_CONVERGENT
#endif

extern "C" {
__attribute__((const)) const sim_thread* sim_self();

// __syncthreads: returns when every thread of the block has arrived.
SIM_CONVERGENT void sim_barrier();

// The one cross-lane primitive. Each lane brings `bytes` bytes; when all active lanes of the wave have arrived,
// `once` (if given) runs a single time over the slots, then each lane returns with the wave's view, which stays
// valid until the lane's next exchange. At most SIM_SLOT_BYTES per lane.
#define SIM_SLOT_BYTES 256
SIM_CONVERGENT sim_wave* sim_exchange(const void* data, unsigned bytes, void (*once)(sim_wave*));

// The block's dynamic LDS: as many bytes as the launch asked for.
__attribute__((const)) void* sim_dynamic_lds();

// Ends the kernel: the device reports a launch failure with this message.
__attribute__((noreturn)) void sim_trap(const char* message);
}

struct sim_argument {
    unsigned size, align;
};

struct sim_kernel {
    const char* name;     // lowered name: what hipModuleGetFunction takes
    void (*invoke)(const char* arguments);  // unpacks the argument block and calls the kernel
    const sim_argument* arguments;
    unsigned argument_count;
    unsigned max_threads;  // __launch_bounds__, 1024 without
};

// Exported as `sim_module` by every code object. Its static LDS is the size of the library's TLS segment.
struct sim_module_table {
    unsigned abi_version;  // SIM_ABI_VERSION
    const char* arch;      // "gfx942"
    unsigned kernel_count;
    const sim_kernel* kernels;
};
#define SIM_ABI_VERSION 1
