#include "device.h"

#include <stdio.h>

namespace {

constexpr int MAX_DEVICES = 64;

pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
CUcontext contexts[MAX_DEVICES];

// CUdevice_attribute
enum Attribute : int {
    MAX_THREADS_PER_BLOCK = 1,
    MAX_BLOCK_DIM_X = 2,
    MAX_GRID_DIM_X = 5,
    TOTAL_CONSTANT_MEMORY = 9,
    WARP_SIZE = 10,
    MAX_PITCH = 11,
    MAX_REGISTERS_PER_BLOCK = 12,
    CLOCK_RATE = 13,
    MULTIPROCESSOR_COUNT = 16,
    INTEGRATED = 18,
    CAN_MAP_HOST_MEMORY = 19,
    COMPUTE_MODE = 20,
    CONCURRENT_KERNELS = 31,
    ECC_ENABLED = 32,
    PCI_BUS_ID = 33,
    PCI_DEVICE_ID = 34,
    MEMORY_CLOCK_RATE = 36,
    MEMORY_BUS_WIDTH = 37,
    L2_CACHE_SIZE = 38,
    MAX_THREADS_PER_MULTIPROCESSOR = 39,
    ASYNC_ENGINE_COUNT = 40,
    UNIFIED_ADDRESSING = 41,
    PCI_DOMAIN_ID = 50,
    COMPUTE_CAPABILITY_MAJOR = 75,
    COMPUTE_CAPABILITY_MINOR = 76,
    STREAM_PRIORITIES_SUPPORTED = 78,
    MAX_SHARED_MEMORY_PER_MULTIPROCESSOR = 81,
    MAX_REGISTERS_PER_MULTIPROCESSOR = 82,
    MANAGED_MEMORY = 83,
    COOPERATIVE_LAUNCH = 95,
    MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
    MAX_BLOCKS_PER_MULTIPROCESSOR = 106,
    RESERVED_SHARED_MEMORY_PER_BLOCK = 111,
    MEMORY_POOLS_SUPPORTED = 115,
};

struct Pair {
    int hip, cuda;
};

// LDS is what a block can have after asking for it, which a launch here does by itself.
const Pair attributes[] = {
    {hipDeviceAttributeEccEnabled, ECC_ENABLED},
    {hipDeviceAttributeAsyncEngineCount, ASYNC_ENGINE_COUNT},
    {hipDeviceAttributeCanMapHostMemory, CAN_MAP_HOST_MEMORY},
    {hipDeviceAttributeClockRate, CLOCK_RATE},
    {hipDeviceAttributeComputeMode, COMPUTE_MODE},
    {hipDeviceAttributeConcurrentKernels, CONCURRENT_KERNELS},
    {hipDeviceAttributeCooperativeLaunch, COOPERATIVE_LAUNCH},
    {hipDeviceAttributeIntegrated, INTEGRATED},
    {hipDeviceAttributeL2CacheSize, L2_CACHE_SIZE},
    {hipDeviceAttributeComputeCapabilityMajor, COMPUTE_CAPABILITY_MAJOR},
    {hipDeviceAttributeManagedMemory, MANAGED_MEMORY},
    {hipDeviceAttributeMaxBlocksPerMultiProcessor, MAX_BLOCKS_PER_MULTIPROCESSOR},
    {hipDeviceAttributeMaxBlockDimX, MAX_BLOCK_DIM_X},
    {hipDeviceAttributeMaxBlockDimY, MAX_BLOCK_DIM_X + 1},
    {hipDeviceAttributeMaxBlockDimZ, MAX_BLOCK_DIM_X + 2},
    {hipDeviceAttributeMaxGridDimX, MAX_GRID_DIM_X},
    {hipDeviceAttributeMaxGridDimY, MAX_GRID_DIM_X + 1},
    {hipDeviceAttributeMaxGridDimZ, MAX_GRID_DIM_X + 2},
    {hipDeviceAttributeMaxThreadsPerBlock, MAX_THREADS_PER_BLOCK},
    {hipDeviceAttributeMaxThreadsPerMultiProcessor, MAX_THREADS_PER_MULTIPROCESSOR},
    {hipDeviceAttributeMaxPitch, MAX_PITCH},
    {hipDeviceAttributeMemoryBusWidth, MEMORY_BUS_WIDTH},
    {hipDeviceAttributeMemoryClockRate, MEMORY_CLOCK_RATE},
    {hipDeviceAttributeComputeCapabilityMinor, COMPUTE_CAPABILITY_MINOR},
    {hipDeviceAttributeMultiprocessorCount, MULTIPROCESSOR_COUNT},
    {hipDeviceAttributePciBusId, PCI_BUS_ID},
    {hipDeviceAttributePciDeviceId, PCI_DEVICE_ID},
    {hipDeviceAttributePciDomainId, PCI_DOMAIN_ID},
    {hipDeviceAttributeMaxRegistersPerBlock, MAX_REGISTERS_PER_BLOCK},
    {hipDeviceAttributeMaxRegistersPerMultiprocessor, MAX_REGISTERS_PER_MULTIPROCESSOR},
    {hipDeviceAttributeMaxSharedMemoryPerBlock, MAX_SHARED_MEMORY_PER_BLOCK_OPTIN},
    {hipDeviceAttributeSharedMemPerBlockOptin, MAX_SHARED_MEMORY_PER_BLOCK_OPTIN},
    {hipDeviceAttributeSharedMemPerMultiprocessor, MAX_SHARED_MEMORY_PER_MULTIPROCESSOR},
    {hipDeviceAttributeMaxSharedMemoryPerMultiprocessor, MAX_SHARED_MEMORY_PER_MULTIPROCESSOR},
    {hipDeviceAttributeStreamPrioritiesSupported, STREAM_PRIORITIES_SUPPORTED},
    {hipDeviceAttributeTotalConstantMemory, TOTAL_CONSTANT_MEMORY},
    {hipDeviceAttributeUnifiedAddressing, UNIFIED_ADDRESSING},
    {hipDeviceAttributeWarpSize, WARP_SIZE},
    {hipDeviceAttributeMemoryPoolsSupported, MEMORY_POOLS_SUPPORTED},
    {hipDeviceAttributeClockInstructionRate, CLOCK_RATE},
};

CUdevice handle(int index) {
    CUdevice device = 0;
    cuda.cuDeviceGet(&device, index);
    return device;
}

}  // namespace

bool device_exists(int index) {
    int count = 0;
    return index >= 0 && index < MAX_DEVICES && !driver_start() && !cuda.cuDeviceGetCount(&count) && index < count;
}

CUresult device_context(int index, CUcontext* context) {
    Lock lock(mutex);
    if (!contexts[index])
        if (CUresult result = cuda.cuDevicePrimaryCtxRetain(&contexts[index], handle(index))) return result;
    *context = contexts[index];
    return CUDA_SUCCESS;
}

int device_of(CUcontext context) {
    Lock lock(mutex);
    for (int i = 0; i < MAX_DEVICES; ++i)
        if (contexts[i] == context) return i;
    return -1;
}

int device_attribute(int index, int attribute) {
    int value = 0;
    return cuda.cuDeviceGetAttribute(&value, attribute, handle(index)) ? 0 : value;
}

// What a call into HIP does before all else.
hipError_t enter() {
    if (CUresult result = driver_start()) return leave_cuda(result);
    CUcontext context = nullptr;
    if (CUresult result = cuda.cuCtxGetCurrent(&context)) return leave_cuda(result);
    if (context) return hipSuccess;
    REQUIRE(device_exists(0), hipErrorNoDevice);
    if (CUresult result = device_context(0, &context)) return leave_cuda(result);
    RETURN(cuCtxSetCurrent(context));
}

EXPORT hipError_t hipInit(unsigned flags) {
    REQUIRE(!flags, hipErrorInvalidValue);
    return leave_cuda(driver_start());
}

static hipError_t version(int* out) {
    REQUIRE(out, hipErrorInvalidValue);
    *out = 70253211;  // HIP 7.2, whose interface this is
    return hipSuccess;
}
EXPORT hipError_t hipDriverGetVersion(int* out) { return version(out); }
EXPORT hipError_t hipRuntimeGetVersion(int* out) { return version(out); }

EXPORT hipError_t hipGetDeviceCount(int* count) {
    REQUIRE(count, hipErrorInvalidValue);
    *count = 0;
    if (CUresult result = driver_start()) return leave_cuda(result);
    RETURN(cuDeviceGetCount(count));
}

EXPORT hipError_t hipSetDevice(int index) {
    REQUIRE(device_exists(index), hipErrorInvalidDevice);
    CUcontext context;
    if (CUresult result = device_context(index, &context)) return leave_cuda(result);
    RETURN(cuCtxSetCurrent(context));
}

EXPORT hipError_t hipGetDevice(int* index) {
    ENTER();
    REQUIRE(index, hipErrorInvalidValue);
    RETURN(cuCtxGetDevice(index));
}
EXPORT_AS(hipattn_current_device, hipGetDevice);

EXPORT hipError_t hipDeviceGet(int* device, int ordinal) {
    REQUIRE(device, hipErrorInvalidValue);
    REQUIRE(device_exists(ordinal), hipErrorInvalidDevice);
    *device = ordinal;
    return hipSuccess;
}

EXPORT hipError_t hipGetDevicePropertiesR0600(hipDeviceProp_t* p, int index) {
    REQUIRE(p, hipErrorInvalidValue);
    REQUIRE(device_exists(index), hipErrorInvalidDevice);
    auto get = [index](int attribute) { return device_attribute(index, attribute); };
    memset(p, 0, sizeof *p);
    CALL(cuDeviceGetName(p->name, sizeof p->name, handle(index)));
    CUuuid uuid = {};
    CALL(cuDeviceGetUuid(&uuid, handle(index)));
    memcpy(p->uuid, uuid.bytes, sizeof p->uuid);
    CALL(cuDeviceTotalMem_v2(&p->totalGlobalMem, handle(index)));
    p->major = get(COMPUTE_CAPABILITY_MAJOR), p->minor = get(COMPUTE_CAPABILITY_MINOR);
    snprintf(p->gcnArchName, sizeof p->gcnArchName, "sm_%d%d", p->major, p->minor);
    p->sharedMemPerBlock = p->sharedMemPerBlockOptin = static_cast<size_t>(get(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN));
    p->sharedMemPerMultiprocessor = p->maxSharedMemoryPerMultiProcessor =
        static_cast<size_t>(get(MAX_SHARED_MEMORY_PER_MULTIPROCESSOR));
    p->reservedSharedMemPerBlock = static_cast<size_t>(get(RESERVED_SHARED_MEMORY_PER_BLOCK));
    p->regsPerBlock = get(MAX_REGISTERS_PER_BLOCK), p->regsPerMultiprocessor = get(MAX_REGISTERS_PER_MULTIPROCESSOR);
    p->warpSize = get(WARP_SIZE);
    p->memPitch = static_cast<size_t>(get(MAX_PITCH));
    p->maxThreadsPerBlock = get(MAX_THREADS_PER_BLOCK);
    p->maxThreadsPerMultiProcessor = get(MAX_THREADS_PER_MULTIPROCESSOR);
    p->maxBlocksPerMultiProcessor = get(MAX_BLOCKS_PER_MULTIPROCESSOR);
    for (int i = 0; i < 3; ++i) p->maxThreadsDim[i] = get(MAX_BLOCK_DIM_X + i), p->maxGridSize[i] = get(MAX_GRID_DIM_X + i);
    p->clockRate = p->clockInstructionRate = get(CLOCK_RATE);
    p->memoryClockRate = get(MEMORY_CLOCK_RATE), p->memoryBusWidth = get(MEMORY_BUS_WIDTH);
    p->totalConstMem = static_cast<size_t>(get(TOTAL_CONSTANT_MEMORY));
    p->multiProcessorCount = get(MULTIPROCESSOR_COUNT);
    p->l2CacheSize = get(L2_CACHE_SIZE);
    p->integrated = get(INTEGRATED), p->canMapHostMemory = get(CAN_MAP_HOST_MEMORY);
    p->computeMode = get(COMPUTE_MODE), p->concurrentKernels = get(CONCURRENT_KERNELS), p->ECCEnabled = get(ECC_ENABLED);
    p->pciBusID = get(PCI_BUS_ID), p->pciDeviceID = get(PCI_DEVICE_ID), p->pciDomainID = get(PCI_DOMAIN_ID);
    p->asyncEngineCount = get(ASYNC_ENGINE_COUNT), p->unifiedAddressing = get(UNIFIED_ADDRESSING);
    p->streamPrioritiesSupported = get(STREAM_PRIORITIES_SUPPORTED), p->managedMemory = get(MANAGED_MEMORY);
    p->cooperativeLaunch = get(COOPERATIVE_LAUNCH), p->memoryPoolsSupported = get(MEMORY_POOLS_SUPPORTED);
    return hipSuccess;
}

EXPORT hipError_t hipDeviceGetAttribute(int* value, hipDeviceAttribute_t attribute, int index) {
    REQUIRE(value, hipErrorInvalidValue);
    REQUIRE(device_exists(index), hipErrorInvalidDevice);
    for (const Pair& pair : attributes)
        if (pair.hip == attribute) RETURN(cuDeviceGetAttribute(value, pair.cuda, handle(index)));
    return leave(hipErrorInvalidValue);
}

EXPORT hipError_t hipDeviceGetName(char* name, int length, int index) {
    REQUIRE(device_exists(index), hipErrorInvalidDevice);
    REQUIRE(name && length > 0, hipErrorInvalidValue);
    RETURN(cuDeviceGetName(name, length, handle(index)));
}

EXPORT hipError_t hipDeviceGetUuid(CUuuid* uuid, int index) {
    REQUIRE(device_exists(index), hipErrorInvalidDevice);
    REQUIRE(uuid, hipErrorInvalidValue);
    RETURN(cuDeviceGetUuid(uuid, handle(index)));
}

EXPORT hipError_t hipDeviceGetPCIBusId(char* id, int length, int index) {
    REQUIRE(device_exists(index), hipErrorInvalidDevice);
    REQUIRE(id && length > 0, hipErrorInvalidValue);
    RETURN(cuDeviceGetPCIBusId(id, length, handle(index)));
}

EXPORT hipError_t hipDeviceTotalMem(size_t* bytes, int index) {
    REQUIRE(device_exists(index), hipErrorInvalidDevice);
    REQUIRE(bytes, hipErrorInvalidValue);
    RETURN(cuDeviceTotalMem_v2(bytes, handle(index)));
}

EXPORT hipError_t hipDeviceComputeCapability(int* major, int* minor, int index) {
    REQUIRE(device_exists(index), hipErrorInvalidDevice);
    REQUIRE(major && minor, hipErrorInvalidValue);
    *major = device_attribute(index, COMPUTE_CAPABILITY_MAJOR);
    *minor = device_attribute(index, COMPUTE_CAPABILITY_MINOR);
    return hipSuccess;
}
EXPORT_AS(hipattn_compute_capability, hipDeviceComputeCapability);

EXPORT hipError_t hipDeviceSynchronize() {
    ENTER();
    RETURN(cuCtxSynchronize());
}

EXPORT hipError_t hipDeviceGetStreamPriorityRange(int* least, int* greatest) {
    ENTER();
    RETURN(cuCtxGetStreamPriorityRange(least, greatest));
}

EXPORT hipError_t hipDeviceCanAccessPeer(int* can, int index, int peer) {
    REQUIRE(can, hipErrorInvalidValue);
    REQUIRE(device_exists(index) && device_exists(peer), hipErrorInvalidDevice);
    RETURN(cuDeviceCanAccessPeer(can, handle(index), handle(peer)));
}

EXPORT hipError_t hipDeviceGetDefaultMemPool(CUmemPool* pool, int index) {
    REQUIRE(pool, hipErrorInvalidValue);
    REQUIRE(device_exists(index), hipErrorInvalidDevice);
    RETURN(cuDeviceGetDefaultMemPool(pool, handle(index)));
}

EXPORT hipError_t hipDeviceGetMemPool(CUmemPool* pool, int index) {
    REQUIRE(pool, hipErrorInvalidValue);
    REQUIRE(device_exists(index), hipErrorInvalidDevice);
    RETURN(cuDeviceGetMemPool(pool, handle(index)));
}
