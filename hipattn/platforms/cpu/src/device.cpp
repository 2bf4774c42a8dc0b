#include "device.h"

#include <stdarg.h>
#include <stdio.h>

static const Arch architectures[] = {
    {"gfx90a", ":sramecc+:xnack-", "MI250X", 64, 64 << 10, 110, 2048, 8 << 20, 1700000, 1600000, 4096},
    {"gfx942", ":sramecc+:xnack-", "MI300X", 64, 64 << 10, 304, 2048, 4 << 20, 2100000, 1300000, 8192},
    {"gfx950", ":sramecc+:xnack-", "MI355X", 64, 160 << 10, 256, 2048, 4 << 20, 2400000, 2000000, 8192},
    {"gfx1100", "", "RX 7900 XTX", 32, 64 << 10, 96, 2048, 6 << 20, 2500000, 1250000, 384},
    {"gfx1201", "", "RX 9070 XT", 32, 64 << 10, 64, 2048, 8 << 20, 2970000, 1258000, 256},
};

enum { max_devices = 16, max_threads = 1024 };
static Device devices[max_devices];
static int count;
static char problem[512];
static pthread_once_t once = PTHREAD_ONCE_INIT;
static thread_local int current;
static pthread_mutex_t fault_mutex = PTHREAD_MUTEX_INITIALIZER;

static const Arch* find(const char* name, size_t length) {
    for (const Arch& a : architectures)
        if (strlen(a.name) == length && !memcmp(a.name, name, length)) return &a;
    return nullptr;
}

static void refuse(const char* name, size_t length) {
    int n = snprintf(problem, sizeof problem, "HIPATTN_CPU_ARCH: no simulated architecture \"%.*s\"; there are",
                     static_cast<int>(length), name);
    for (const Arch& a : architectures) n += snprintf(problem + n, sizeof problem - n, " %s", a.name);
    fprintf(stderr, "hipattn: %s\n", problem);
    count = 0;
}

static void start() {
    const char* list = getenv("HIPATTN_CPU_ARCH");
    if (!list || !*list) list = "gfx942";
    size_t memory = environment_number("HIPATTN_CPU_MEMORY", 8ul << 30);
    while (*list) {
        size_t length = strcspn(list, ",");
        const Arch* arch = find(list, length);
        if (!arch || count == max_devices) return refuse(list, length);
        Device& d = devices[count];
        d.index = count++;
        d.arch = arch;
        d.memory_bytes = memory;
        list += length + (list[length] == ',');
    }
}

int device_count() {
    pthread_once(&once, start);
    return count;
}

Device* device_at(int index) { return index >= 0 && index < device_count() ? &devices[index] : nullptr; }

Device* device_current() { return device_at(current); }

bool device_select(int index) {
    if (!device_at(index)) return false;
    current = index;
    return true;
}

const char* device_problem() { return device_count() == 0 && *problem ? problem : nullptr; }

void device_fault(Device* device, hipError_t code, const char* format, ...) {
    Lock lock(fault_mutex);
    if (device->fault) return;
    char* message = nullptr;  // never freed: hipGetErrorString has handed it out
    va_list arguments;
    va_start(arguments, format);
    if (vasprintf(&message, format, arguments) < 0) message = nullptr;
    va_end(arguments);
    device->fault_message = message;
    __atomic_store_n(&device->fault, code, __ATOMIC_RELEASE);
}

void device_clear_fault(Device* device) {
    Lock lock(fault_mutex);
    device->fault = hipSuccess;
    device->fault_message = nullptr;
}

void device_properties(const Device* device, hipDeviceProp_t* p) {
    const Arch* arch = device->arch;
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "Simulated %s (CPU)", arch->name);
    snprintf(p->gcnArchName, sizeof p->gcnArchName, "%s%s", arch->name, arch->features);
    snprintf(p->uuid, sizeof p->uuid, "SIM-%s-%d", arch->name, device->index);
    p->totalGlobalMem = device->memory_bytes;
    p->sharedMemPerBlock = p->sharedMemPerBlockOptin = arch->lds_bytes;
    p->sharedMemPerMultiprocessor = p->maxSharedMemoryPerMultiProcessor = arch->lds_bytes;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = arch->wave_size;
    p->memPitch = 0x7fffffff;
    p->maxThreadsPerBlock = max_threads;
    for (int& dim : p->maxThreadsDim) dim = max_threads;
    p->maxGridSize[0] = 0x7fffffff;
    p->maxGridSize[1] = p->maxGridSize[2] = 65536;
    p->clockRate = arch->clock_khz;
    p->memoryClockRate = arch->memory_clock_khz;
    p->memoryBusWidth = arch->memory_bus_bits;
    p->l2CacheSize = arch->l2_bytes;
    p->totalConstMem = 0x7fffffff;
    unsigned version = static_cast<unsigned>(strtoul(arch->name + 3, nullptr, 16));  // gfx90a: 9, 0, a
    p->major = version >> 8 >= 0x10 ? 10 + (version >> 8 & 15) : version >> 8;
    p->minor = version >> 4 & 15;
    p->textureAlignment = p->texturePitchAlignment = 256;
    p->multiProcessorCount = arch->compute_units;
    p->maxThreadsPerMultiProcessor = arch->max_threads_per_cu;
    p->maxBlocksPerMultiProcessor = arch->max_threads_per_cu / arch->wave_size;
    p->canMapHostMemory = p->unifiedAddressing = p->concurrentKernels = p->memoryPoolsSupported = 1;
    p->asyncEngineCount = 8;
    p->pciBusID = device->index + 1;
    p->clockInstructionRate = 100000;
    p->isLargeBar = 1;
    p->arch = 0x1ffff;  // every feature bit but dynamic parallelism
}

bool device_attribute(const Device* device, hipDeviceAttribute_t attribute, int* value) {
    hipDeviceProp_t p;
    device_properties(device, &p);
    switch (attribute) {
        case hipDeviceAttributeEccEnabled: *value = p.ECCEnabled; break;
        case hipDeviceAttributeAsyncEngineCount: *value = p.asyncEngineCount; break;
        case hipDeviceAttributeCanMapHostMemory: *value = p.canMapHostMemory; break;
        case hipDeviceAttributeClockRate: *value = p.clockRate; break;
        case hipDeviceAttributeComputeMode: *value = p.computeMode; break;
        case hipDeviceAttributeConcurrentKernels: *value = p.concurrentKernels; break;
        case hipDeviceAttributeCooperativeLaunch: *value = p.cooperativeLaunch; break;
        case hipDeviceAttributeIntegrated: *value = p.integrated; break;
        case hipDeviceAttributeL2CacheSize: *value = p.l2CacheSize; break;
        case hipDeviceAttributeComputeCapabilityMajor: *value = p.major; break;
        case hipDeviceAttributeComputeCapabilityMinor: *value = p.minor; break;
        case hipDeviceAttributeManagedMemory: *value = p.managedMemory; break;
        case hipDeviceAttributeMaxBlocksPerMultiProcessor: *value = p.maxBlocksPerMultiProcessor; break;
        case hipDeviceAttributeMaxBlockDimX:
        case hipDeviceAttributeMaxBlockDimY:
        case hipDeviceAttributeMaxBlockDimZ:
            *value = p.maxThreadsDim[attribute - hipDeviceAttributeMaxBlockDimX];
            break;
        case hipDeviceAttributeMaxGridDimX:
        case hipDeviceAttributeMaxGridDimY:
        case hipDeviceAttributeMaxGridDimZ:
            *value = p.maxGridSize[attribute - hipDeviceAttributeMaxGridDimX];
            break;
        case hipDeviceAttributeMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
        case hipDeviceAttributeMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
        case hipDeviceAttributeMaxPitch: *value = static_cast<int>(p.memPitch); break;
        case hipDeviceAttributeMemoryBusWidth: *value = p.memoryBusWidth; break;
        case hipDeviceAttributeMemoryClockRate: *value = p.memoryClockRate; break;
        case hipDeviceAttributeMultiprocessorCount: *value = p.multiProcessorCount; break;
        case hipDeviceAttributePciBusId: *value = p.pciBusID; break;
        case hipDeviceAttributePciDeviceId: *value = p.pciDeviceID; break;
        case hipDeviceAttributePciDomainId: *value = p.pciDomainID; break;
        case hipDeviceAttributeMaxRegistersPerBlock: *value = p.regsPerBlock; break;
        case hipDeviceAttributeMaxRegistersPerMultiprocessor: *value = p.regsPerMultiprocessor; break;
        case hipDeviceAttributeMaxSharedMemoryPerBlock:
        case hipDeviceAttributeSharedMemPerBlockOptin:
        case hipDeviceAttributeSharedMemPerMultiprocessor:
        case hipDeviceAttributeMaxSharedMemoryPerMultiprocessor:
            *value = static_cast<int>(p.sharedMemPerBlock);
            break;
        case hipDeviceAttributeStreamPrioritiesSupported: *value = p.streamPrioritiesSupported; break;
        case hipDeviceAttributeTotalConstantMemory: *value = static_cast<int>(p.totalConstMem); break;
        case hipDeviceAttributeUnifiedAddressing: *value = p.unifiedAddressing; break;
        case hipDeviceAttributeWarpSize: *value = p.warpSize; break;
        case hipDeviceAttributeMemoryPoolsSupported: *value = p.memoryPoolsSupported; break;
        case hipDeviceAttributeClockInstructionRate: *value = p.clockInstructionRate; break;
        default: return false;
    }
    return true;
}
