// Code objects: shared libraries in memory that export the sim_module table.
#pragma once

#include "device.h"
#include "sim_abi.h"
#include "stream.h"

struct Module;

struct Function {
    const sim_kernel* kernel;
    Module* module;
    size_t argument_bytes;  // of the whole block
    size_t static_lds;
};

struct Module {
    Device* device;
    void* library;
    int file;
    const sim_module_table* table;
    size_t tls_module, tls_bytes;
    Function* functions;
};

hipError_t module_load(Device*, const void* image, Module** out);
Module* module_of(void* handle);
void module_unload(Module*);  // the caller has waited for its kernels
hipError_t module_function(Module*, const char* name, Function** out);
Function* function_of(void* handle);

// LDS that the device has for a block of the kernel, beyond what the kernel declares.
size_t function_dynamic_lds_limit(const Function*);
hipError_t function_launch(Function*, sim_dim3 grid, sim_dim3 block, unsigned dynamic_lds, Stream*, void** parameters,
                           void** extra);
int function_blocks_per_cu(const Function*, int block_size, size_t dynamic_lds);
