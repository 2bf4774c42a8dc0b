// The CUDA driver API: the declarations that the platform needs, and libcuda's functions, found at run time.
#pragma once

#include "../../abi/base.h"
#include "../../abi/hip_abi.h"

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st* CUcontext;
typedef struct CUstream_st* CUstream;
typedef struct CUevent_st* CUevent;
typedef struct CUmod_st* CUmodule;
typedef struct CUfunc_st* CUfunction;
typedef struct CUmemPool_st* CUmemPool;
typedef struct CUgraph_st* CUgraph;
typedef struct CUgraphExec_st* CUgraphExec;
typedef struct CUgraphNode_st* CUgraphNode;

struct CUuuid {
    char bytes[16];
};

enum : CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUpointer_attribute : int {
    CU_POINTER_ATTRIBUTE_MEMORY_TYPE = 2,
    CU_POINTER_ATTRIBUTE_DEVICE_POINTER = 3,
    CU_POINTER_ATTRIBUTE_HOST_POINTER = 4,
    CU_POINTER_ATTRIBUTE_IS_MANAGED = 8,
    CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9,
};
enum : unsigned { CU_MEMORYTYPE_HOST = 1, CU_MEMORYTYPE_DEVICE = 2, CU_MEMORYTYPE_UNIFIED = 4 };
enum : uintptr_t { CU_LAUNCH_PARAM_END = 0, CU_LAUNCH_PARAM_BUFFER_POINTER = 1, CU_LAUNCH_PARAM_BUFFER_SIZE = 2 };

struct CUDA_MEMCPY2D {
    size_t srcXInBytes, srcY;
    unsigned srcMemoryType;
    const void* srcHost;
    CUdeviceptr srcDevice;
    void* srcArray;
    size_t srcPitch;
    size_t dstXInBytes, dstY;
    unsigned dstMemoryType;
    void* dstHost;
    CUdeviceptr dstDevice;
    void* dstArray;
    size_t dstPitch;
    size_t WidthInBytes, Height;
};

#define CUDA_FUNCTIONS(F)                                                                                \
    F(cuInit, (unsigned))                                                                                \
    F(cuGetErrorString, (CUresult, const char**))                                                        \
    F(cuDeviceGetCount, (int*))                                                                          \
    F(cuDeviceGet, (CUdevice*, int))                                                                     \
    F(cuDeviceGetName, (char*, int, CUdevice))                                                           \
    F(cuDeviceGetUuid, (CUuuid*, CUdevice))                                                              \
    F(cuDeviceGetAttribute, (int*, int, CUdevice))                                                       \
    F(cuDeviceGetPCIBusId, (char*, int, CUdevice))                                                       \
    F(cuDeviceTotalMem_v2, (size_t*, CUdevice))                                                          \
    F(cuDeviceCanAccessPeer, (int*, CUdevice, CUdevice))                                                 \
    F(cuDeviceGetDefaultMemPool, (CUmemPool*, CUdevice))                                                 \
    F(cuDeviceGetMemPool, (CUmemPool*, CUdevice))                                                        \
    F(cuDevicePrimaryCtxRetain, (CUcontext*, CUdevice))                                                  \
    F(cuCtxGetCurrent, (CUcontext*))                                                                     \
    F(cuCtxSetCurrent, (CUcontext))                                                                      \
    F(cuCtxGetDevice, (CUdevice*))                                                                       \
    F(cuCtxSynchronize, ())                                                                              \
    F(cuCtxGetStreamPriorityRange, (int*, int*))                                                         \
    F(cuMemAlloc_v2, (CUdeviceptr*, size_t))                                                             \
    F(cuMemFree_v2, (CUdeviceptr))                                                                       \
    F(cuMemAllocAsync, (CUdeviceptr*, size_t, CUstream))                                                 \
    F(cuMemAllocFromPoolAsync, (CUdeviceptr*, size_t, CUmemPool, CUstream))                              \
    F(cuMemFreeAsync, (CUdeviceptr, CUstream))                                                           \
    F(cuMemHostAlloc, (void**, size_t, unsigned))                                                        \
    F(cuMemFreeHost, (void*))                                                                            \
    F(cuMemHostGetDevicePointer_v2, (CUdeviceptr*, void*, unsigned))                                     \
    F(cuMemGetInfo_v2, (size_t*, size_t*))                                                               \
    F(cuMemGetAddressRange_v2, (CUdeviceptr*, size_t*, CUdeviceptr))                                     \
    F(cuMemPoolTrimTo, (CUmemPool, size_t))                                                              \
    F(cuMemPoolSetAttribute, (CUmemPool, int, void*))                                                    \
    F(cuMemPoolGetAttribute, (CUmemPool, int, void*))                                                    \
    F(cuPointerGetAttribute, (void*, CUpointer_attribute, CUdeviceptr))                                  \
    F(cuMemcpy, (CUdeviceptr, CUdeviceptr, size_t))                                                      \
    F(cuMemcpyAsync, (CUdeviceptr, CUdeviceptr, size_t, CUstream))                                       \
    F(cuMemcpyPeer, (CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, size_t))                            \
    F(cuMemcpyPeerAsync, (CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, size_t, CUstream))             \
    F(cuMemcpy2DUnaligned_v2, (const CUDA_MEMCPY2D*))                                                    \
    F(cuMemcpy2DAsync_v2, (const CUDA_MEMCPY2D*, CUstream))                                              \
    F(cuMemsetD8_v2, (CUdeviceptr, unsigned char, size_t))                                               \
    F(cuMemsetD16_v2, (CUdeviceptr, unsigned short, size_t))                                             \
    F(cuMemsetD32_v2, (CUdeviceptr, unsigned, size_t))                                                   \
    F(cuMemsetD8Async, (CUdeviceptr, unsigned char, size_t, CUstream))                                   \
    F(cuMemsetD16Async, (CUdeviceptr, unsigned short, size_t, CUstream))                                 \
    F(cuMemsetD32Async, (CUdeviceptr, unsigned, size_t, CUstream))                                       \
    F(cuStreamCreateWithPriority, (CUstream*, unsigned, int))                                            \
    F(cuStreamDestroy_v2, (CUstream))                                                                    \
    F(cuStreamSynchronize, (CUstream))                                                                   \
    F(cuStreamQuery, (CUstream))                                                                         \
    F(cuStreamWaitEvent, (CUstream, CUevent, unsigned))                                                  \
    F(cuStreamGetFlags, (CUstream, unsigned*))                                                           \
    F(cuStreamGetPriority, (CUstream, int*))                                                             \
    F(cuStreamGetCtx, (CUstream, CUcontext*))                                                            \
    F(cuStreamAddCallback, (CUstream, void (*)(CUstream, CUresult, void*), void*, unsigned))             \
    F(cuLaunchHostFunc, (CUstream, void (*)(void*), void*))                                              \
    F(cuEventCreate, (CUevent*, unsigned))                                                               \
    F(cuEventDestroy_v2, (CUevent))                                                                      \
    F(cuEventRecord, (CUevent, CUstream))                                                                \
    F(cuEventQuery, (CUevent))                                                                           \
    F(cuEventSynchronize, (CUevent))                                                                     \
    F(cuEventElapsedTime, (float*, CUevent, CUevent))                                                    \
    F(cuModuleLoadData, (CUmodule*, const void*))                                                        \
    F(cuModuleUnload, (CUmodule))                                                                        \
    F(cuModuleGetFunction, (CUfunction*, CUmodule, const char*))                                         \
    F(cuFuncGetAttribute, (int*, int, CUfunction))                                                       \
    F(cuFuncSetAttribute, (CUfunction, int, int))                                                        \
    F(cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, \
                       CUstream, void**, void**))                                                        \
    F(cuOccupancyMaxActiveBlocksPerMultiprocessor, (int*, CUfunction, int, size_t))                      \
    F(cuOccupancyMaxPotentialBlockSize, (int*, int*, CUfunction, size_t (*)(int), size_t, int))          \
    F(cuThreadExchangeStreamCaptureMode, (int*))                                                         \
    F(cuStreamBeginCapture_v2, (CUstream, int))                                                          \
    F(cuStreamEndCapture, (CUstream, CUgraph*))                                                          \
    F(cuStreamIsCapturing, (CUstream, int*))                                                             \
    F(cuGraphCreate, (CUgraph*, unsigned))                                                               \
    F(cuGraphDestroy, (CUgraph))                                                                         \
    F(cuGraphGetNodes, (CUgraph, CUgraphNode*, size_t*))                                                 \
    F(cuGraphInstantiateWithFlags, (CUgraphExec*, CUgraph, unsigned long long))                          \
    F(cuGraphUpload, (CUgraphExec, CUstream))                                                            \
    F(cuGraphLaunch, (CUgraphExec, CUstream))                                                            \
    F(cuGraphExecDestroy, (CUgraphExec))

struct Driver {
#define DECLARE(name, arguments) CUresult(*name) arguments;
    CUDA_FUNCTIONS(DECLARE)
#undef DECLARE
};
extern Driver cuda;

// Opens and initialises libcuda, once. On failure driver_problem() is a sentence.
CUresult driver_start();
const char* driver_problem();
