// Modules, their kernels, and the launch.
#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device.h"

static hipError_t load(CUmodule* out, const void* image) {
    ENTER();
    REQUIRE(out && image, hipErrorInvalidValue);
    *out = nullptr;
    constexpr unsigned machine_cuda = 190;  // EM_CUDA
    auto elf = static_cast<const Elf64_Ehdr*>(image);
    REQUIRE(!strncmp(static_cast<const char*>(image), ELFMAG, SELFMAG), hipErrorInvalidImage);
    REQUIRE(elf->e_machine == machine_cuda, hipErrorNoBinaryForGpu);
    RETURN(cuModuleLoadData(out, image));
}

EXPORT hipError_t hipModuleLoadData(CUmodule* out, const void* image) { return load(out, image); }

EXPORT hipError_t hipModuleLoadDataEx(CUmodule* out, const void* image, unsigned, void*, void**) {
    return load(out, image);
}

EXPORT hipError_t hipModuleLoad(CUmodule* out, const char* path) {
    REQUIRE(out && path, hipErrorInvalidValue);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    REQUIRE(file >= 0, hipErrorFileNotFound);
    struct stat info;
    void* image = fstat(file, &info) == 0 && info.st_size >= static_cast<off_t>(sizeof(Elf64_Ehdr))
                      ? mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_PRIVATE, file, 0)
                      : MAP_FAILED;
    close(file);
    REQUIRE(image != MAP_FAILED, hipErrorInvalidImage);
    hipError_t status = load(out, image);
    munmap(image, static_cast<size_t>(info.st_size));
    return status;
}

EXPORT hipError_t hipModuleUnload(CUmodule module) {
    ENTER();
    REQUIRE(module, hipErrorInvalidHandle);
    RETURN(cuModuleUnload(module));
}

// A kernel may have all of the block's shared memory: without asking, CUDA gives 48 KB. Asked here, once, a launch
// costs no more for it.
static CUresult allow_all_shared_memory(CUfunction function) {
    constexpr int optin = 97;  // CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    CUdevice device = 0;
    int used = 0;
    if (CUresult result = cuda.cuCtxGetDevice(&device)) return result;
    if (CUresult result = cuda.cuFuncGetAttribute(&used, HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function)) return result;
    int dynamic = device_attribute(device, optin) - used;
    return cuda.cuFuncSetAttribute(function, HIP_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, dynamic);
}

EXPORT hipError_t hipModuleGetFunction(CUfunction* out, CUmodule module, const char* name) {
    ENTER();
    REQUIRE(out && name, hipErrorInvalidValue);
    REQUIRE(module, hipErrorInvalidHandle);
    *out = nullptr;
    CALL(cuModuleGetFunction(out, module, name));
    return leave_cuda(allow_all_shared_memory(*out));
}

// The numbers of function attributes are CUDA's.
EXPORT hipError_t hipFuncGetAttribute(int* value, hipFunction_attribute attribute, CUfunction function) {
    ENTER();
    REQUIRE(value, hipErrorInvalidValue);
    REQUIRE(function, hipErrorInvalidHandle);
    REQUIRE(attribute >= 0 && attribute <= HIP_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, hipErrorInvalidValue);
    RETURN(cuFuncGetAttribute(value, attribute, function));
}

EXPORT hipError_t hipFuncSetAttribute(const void* function, hipFuncAttribute attribute, int value) {
    ENTER();
    REQUIRE(function, hipErrorInvalidDeviceFunction);
    REQUIRE(attribute == hipFuncAttributeMaxDynamicSharedMemorySize ||
                attribute == hipFuncAttributePreferredSharedMemoryCarveout,
            hipErrorInvalidValue);
    RETURN(cuFuncSetAttribute(static_cast<CUfunction>(const_cast<void*>(function)), attribute, value));
}

EXPORT hipError_t hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, CUfunction function, int block_size,
                                                                      size_t dynamic_lds) {
    ENTER();
    REQUIRE(blocks && block_size > 0, hipErrorInvalidValue);
    REQUIRE(function, hipErrorInvalidHandle);
    RETURN(cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, block_size, dynamic_lds));
}

EXPORT hipError_t hipModuleOccupancyMaxPotentialBlockSize(int* grid, int* block, CUfunction function,
                                                           size_t dynamic_lds, int limit) {
    ENTER();
    REQUIRE(grid && block, hipErrorInvalidValue);
    REQUIRE(function, hipErrorInvalidHandle);
    RETURN(cuOccupancyMaxPotentialBlockSize(grid, block, function, nullptr, dynamic_lds, limit));
}

// HIP's keys of `extra`; CUDA's differ in the last.
enum : uintptr_t { BUFFER_POINTER = 1, BUFFER_SIZE = 2, END = 3 };

EXPORT hipError_t hipModuleLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned dynamic_lds,
                                        CUstream stream, void** parameters, void** extra) {
    ENTER();
    REQUIRE(function, hipErrorInvalidImage);
    REQUIRE(!parameters || !extra, hipErrorInvalidValue);
    void *buffer = nullptr, *size = nullptr;
    auto key = [](uintptr_t value) { return reinterpret_cast<void*>(value); };
    for (void** at = extra; at && *at != key(END); at += 2) {
        REQUIRE(*at == key(BUFFER_POINTER) || *at == key(BUFFER_SIZE), hipErrorInvalidValue);
        (*at == key(BUFFER_POINTER) ? buffer : size) = at[1];
    }
    void* block[] = {key(CU_LAUNCH_PARAM_BUFFER_POINTER), buffer, key(CU_LAUNCH_PARAM_BUFFER_SIZE), size,
                     key(CU_LAUNCH_PARAM_END)};
    RETURN(cuLaunchKernel(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, dynamic_lds, stream, parameters,
                          extra ? block : nullptr));
}
