// HIP's entry points for modules and kernels.
#include "api.h"
#include "module.h"

EXPORT hipError_t hipModuleLoadData(Handle* out, const void* image) {
    ENTER_DEVICE(hipModuleLoadData);
    REQUIRE(out && image, hipErrorInvalidValue);
    *out = nullptr;
    Module* m = nullptr;
    hipError_t status = module_load(device, image, &m);
    *out = m;
    return leave(status);
}

EXPORT hipError_t hipModuleUnload(Handle handle) {
    ENTER(hipModuleUnload);
    Module* m = module_of(handle);
    REQUIRE(m, hipErrorInvalidHandle);
    Device* device = m->device;
    device_wait(device);
    module_unload(m);
    return leave(fault_of(device));
}

EXPORT hipError_t hipModuleGetFunction(Handle* out, Handle handle, const char* name) {
    ENTER(hipModuleGetFunction);
    REQUIRE(out && name, hipErrorInvalidValue);
    Module* m = module_of(handle);
    REQUIRE(m, hipErrorInvalidHandle);
    if (hipError_t status = fault_of(m->device)) return leave(status);
    Function* f = nullptr;
    hipError_t status = module_function(m, name, &f);
    *out = f;
    return leave(status);
}

EXPORT hipError_t hipFuncGetAttribute(int* value, hipFunction_attribute attribute, Handle handle) {
    ENTER(hipFuncGetAttribute);
    REQUIRE(value, hipErrorInvalidValue);
    Function* f = function_of(handle);
    REQUIRE(f, hipErrorInvalidHandle);
    switch (attribute) {
        case HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = static_cast<int>(f->kernel->max_threads); break;
        case HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *value = static_cast<int>(f->static_lds); break;
        case HIP_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
            *value = static_cast<int>(function_dynamic_lds_limit(f));
            break;
        case HIP_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
        case HIP_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES:
        case HIP_FUNC_ATTRIBUTE_NUM_REGS:
        case HIP_FUNC_ATTRIBUTE_CACHE_MODE_CA:
        case HIP_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: *value = 0; break;
        case HIP_FUNC_ATTRIBUTE_PTX_VERSION:
        case HIP_FUNC_ATTRIBUTE_BINARY_VERSION: {
            hipDeviceProp_t p;
            device_properties(f->module->device, &p);
            *value = p.major * 10 + p.minor;
            break;
        }
        default: return leave(hipErrorInvalidValue);
    }
    return hipSuccess;
}

EXPORT hipError_t hipFuncSetAttribute(const void* handle, hipFuncAttribute attribute, int value) {
    ENTER(hipFuncSetAttribute);
    Function* f = function_of(const_cast<void*>(handle));
    REQUIRE(f, hipErrorInvalidDeviceFunction);
    bool good = attribute == hipFuncAttributeMaxDynamicSharedMemorySize
                    ? value >= 0 && static_cast<size_t>(value) <= function_dynamic_lds_limit(f)
                    : attribute == hipFuncAttributePreferredSharedMemoryCarveout && value >= -1 && value <= 100;
    return leave(good ? hipSuccess : hipErrorInvalidValue);
}

EXPORT hipError_t hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Handle handle, int block_size,
                                                                      size_t dynamic_lds) {
    ENTER(hipModuleOccupancyMaxActiveBlocksPerMultiprocessor);
    Function* f = function_of(handle);
    REQUIRE(blocks && block_size > 0, hipErrorInvalidValue);
    REQUIRE(f, hipErrorInvalidHandle);
    *blocks = function_blocks_per_cu(f, block_size, dynamic_lds);
    return hipSuccess;
}

EXPORT hipError_t hipModuleLaunchKernel(Handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned dynamic_lds,
                                        Handle handle, void** parameters, void** extra) {
    ENTER_STREAM(hipModuleLaunchKernel, handle);
    Function* f = function_of(function);
    REQUIRE(f, hipErrorInvalidImage);
    return leave(function_launch(f, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, dynamic_lds, stream,
                                 parameters, extra));
}
