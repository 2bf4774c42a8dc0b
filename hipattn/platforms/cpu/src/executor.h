// Runs a kernel's blocks on the host's cores and a block's threads as fibers.
#pragma once

#include "device.h"
#include "sim_abi.h"

struct Launch {
    const sim_kernel* kernel;
    const char* arguments;
    sim_dim3 grid, block;
    unsigned dynamic_lds;
    Device* device;
    size_t tls_module, tls_bytes;  // the code object's TLS segment: its static LDS

    // The executor's own.
    uint64_t next_block, blocks;
    int helpers;
    bool stopped;
};

// Returns when every block has run, or one has faulted: then the device is broken.
void execute(Launch*);
