#include "driver.h"

#include <dlfcn.h>
#include <stdio.h>

Driver cuda;

namespace {

constexpr CUresult NO_DEVICE = 100, SYSTEM_DRIVER_MISMATCH = 803;

pthread_once_t once = PTHREAD_ONCE_INIT;
CUresult started;
char problem[512];

void start() {
    const char* path = getenv("HIPATTN_NVIDIA_CUDA");
    if (!path || !*path) path = "libcuda.so.1";
    void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        started = NO_DEVICE;
        snprintf(problem, sizeof problem, "the NVIDIA driver's %s cannot be opened: %s", path, dlerror());
        return;
    }
#define FIND(name, arguments)                                                                              \
    cuda.name = reinterpret_cast<decltype(cuda.name)>(dlsym(library, #name));                              \
    if (!cuda.name) {                                                                                      \
        started = SYSTEM_DRIVER_MISMATCH;                                                                  \
        snprintf(problem, sizeof problem, "the NVIDIA driver is too old: %s has no %s; CUDA 12 or newer is needed", \
                 path, #name);                                                                             \
        return;                                                                                            \
    }
    CUDA_FUNCTIONS(FIND)
#undef FIND
    started = cuda.cuInit(0);
}

}  // namespace

CUresult driver_start() {
    pthread_once(&once, start);
    return started;
}

const char* driver_problem() { return *problem ? problem : nullptr; }
