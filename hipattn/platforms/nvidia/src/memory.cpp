// Memory: allocation, pools, what a pointer is, copies and fills.
#include "device.h"

namespace {

CUdeviceptr address(const void* pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }

// An allocation of 0 bytes is null, as in HIP; CUDA refuses it.
template <class Allocate>
hipError_t allocate(void** out, size_t size, Allocate allocate) {
    ENTER();
    REQUIRE(out, hipErrorInvalidValue);
    *out = nullptr;
    return size ? leave_cuda(allocate(reinterpret_cast<CUdeviceptr*>(out))) : hipSuccess;
}

hipError_t free_host(void* pointer) {
    ENTER();
    if (!pointer) return hipSuccess;
    RETURN(cuMemFreeHost(pointer));
}

// One address space: the driver sees which side a pointer is on, as hipMemcpyDefault asks; a kind adds nothing.
bool known(hipMemcpyKind kind) { return kind >= hipMemcpyHostToHost && kind <= hipMemcpyDefault; }

hipError_t copy(void* to, const void* from, size_t size) {
    ENTER();
    if (!size) return hipSuccess;
    REQUIRE(to && from, hipErrorInvalidValue);
    RETURN(cuMemcpy(address(to), address(from), size));
}

hipError_t copy_async(void* to, const void* from, size_t size, CUstream stream) {
    ENTER();
    if (!size) return hipSuccess;
    REQUIRE(to && from, hipErrorInvalidValue);
    RETURN(cuMemcpyAsync(address(to), address(from), size, stream));
}

CUDA_MEMCPY2D rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height) {
    CUDA_MEMCPY2D copy = {};
    copy.srcMemoryType = copy.dstMemoryType = CU_MEMORYTYPE_UNIFIED;
    copy.srcDevice = address(from), copy.srcPitch = from_pitch;
    copy.dstDevice = address(to), copy.dstPitch = to_pitch;
    copy.WidthInBytes = width, copy.Height = height;
    return copy;
}

}  // namespace

EXPORT hipError_t hipMalloc(void** out, size_t size) {
    return allocate(out, size, [=](CUdeviceptr* p) { return cuda.cuMemAlloc_v2(p, size); });
}

EXPORT hipError_t hipMallocAsync(void** out, size_t size, CUstream stream) {
    return allocate(out, size, [=](CUdeviceptr* p) { return cuda.cuMemAllocAsync(p, size, stream); });
}

EXPORT hipError_t hipMallocFromPoolAsync(void** out, size_t size, CUmemPool pool, CUstream stream) {
    return allocate(out, size, [=](CUdeviceptr* p) { return cuda.cuMemAllocFromPoolAsync(p, size, pool, stream); });
}

// hipHostMallocPortable, …Mapped and …WriteCombined are CUDA's bits; the others choose a coherence that CUDA has one of.
EXPORT hipError_t hipHostMalloc(void** out, size_t size, unsigned flags) {
    return allocate(out, size, [=](CUdeviceptr* p) {
        return cuda.cuMemHostAlloc(reinterpret_cast<void**>(p), size, flags & 7);
    });
}

EXPORT hipError_t hipHostAlloc(void** out, size_t size, unsigned flags) { return hipHostMalloc(out, size, flags); }

EXPORT hipError_t hipFree(void* pointer) {
    ENTER();
    if (!pointer) return hipSuccess;
    RETURN(cuMemFree_v2(address(pointer)));
}

EXPORT hipError_t hipFreeAsync(void* pointer, CUstream stream) {
    ENTER();
    REQUIRE(pointer, hipErrorInvalidValue);
    RETURN(cuMemFreeAsync(address(pointer), stream));
}

EXPORT hipError_t hipHostFree(void* pointer) { return free_host(pointer); }
EXPORT hipError_t hipFreeHost(void* pointer) { return free_host(pointer); }

EXPORT hipError_t hipMemGetInfo(size_t* free_bytes, size_t* total) {
    ENTER();
    size_t unused;
    RETURN(cuMemGetInfo_v2(free_bytes ? free_bytes : &unused, total ? total : &unused));
}

EXPORT hipError_t hipPointerGetAttributes(hipPointerAttribute_t* out, const void* pointer) {
    ENTER();
    REQUIRE(out && pointer, hipErrorInvalidValue);
    *out = {hipMemoryTypeUnregistered, -2 /* hipInvalidDeviceId */, nullptr, nullptr, 0, 0};
    unsigned type = 0, managed = 0;
    CUresult result = cuda.cuPointerGetAttribute(&type, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address(pointer));
    if (result == CUDA_ERROR_INVALID_VALUE) return hipSuccess;  // the driver does not know it: plain host memory
    if (result) return leave_cuda(result);
    cuda.cuPointerGetAttribute(&managed, CU_POINTER_ATTRIBUTE_IS_MANAGED, address(pointer));
    out->isManaged = managed & 1;
    out->type = out->isManaged ? hipMemoryTypeManaged : type == CU_MEMORYTYPE_HOST ? hipMemoryTypeHost : hipMemoryTypeDevice;
    CALL(cuPointerGetAttribute(&out->device, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address(pointer)));
    cuda.cuPointerGetAttribute(&out->devicePointer, CU_POINTER_ATTRIBUTE_DEVICE_POINTER, address(pointer));
    cuda.cuPointerGetAttribute(&out->hostPointer, CU_POINTER_ATTRIBUTE_HOST_POINTER, address(pointer));
    return hipSuccess;
}

EXPORT hipError_t hipMemGetAddressRange(void** base, size_t* size, void* pointer) {
    ENTER();
    REQUIRE(base && size, hipErrorInvalidValue);
    RETURN(cuMemGetAddressRange_v2(reinterpret_cast<CUdeviceptr*>(base), size, address(pointer)));
}

EXPORT hipError_t hipMemPtrGetInfo(void* pointer, size_t* size) {
    ENTER();
    REQUIRE(pointer && size, hipErrorInvalidValue);
    CUdeviceptr base;
    RETURN(cuMemGetAddressRange_v2(&base, size, address(pointer)));
}

EXPORT hipError_t hipHostGetDevicePointer(void** device_pointer, void* host_pointer, unsigned flags) {
    ENTER();
    REQUIRE(device_pointer && host_pointer && !flags, hipErrorInvalidValue);
    RETURN(cuMemHostGetDevicePointer_v2(reinterpret_cast<CUdeviceptr*>(device_pointer), host_pointer, 0));
}

// ---- pools: the attributes have CUDA's numbers ----

EXPORT hipError_t hipMemPoolTrimTo(CUmemPool pool, size_t keep) {
    ENTER();
    RETURN(cuMemPoolTrimTo(pool, keep));
}

EXPORT hipError_t hipMemPoolSetAttribute(CUmemPool pool, hipMemPoolAttr attribute, void* value) {
    ENTER();
    REQUIRE(pool && value, hipErrorInvalidValue);
    RETURN(cuMemPoolSetAttribute(pool, attribute, value));
}

EXPORT hipError_t hipMemPoolGetAttribute(CUmemPool pool, hipMemPoolAttr attribute, void* value) {
    ENTER();
    REQUIRE(pool && value, hipErrorInvalidValue);
    RETURN(cuMemPoolGetAttribute(pool, attribute, value));
}

// ---- copies and fills ----

EXPORT hipError_t hipMemcpy(void* to, const void* from, size_t size, hipMemcpyKind kind) {
    REQUIRE(known(kind), hipErrorInvalidMemcpyDirection);
    return copy(to, from, size);
}

EXPORT hipError_t hipMemcpyAsync(void* to, const void* from, size_t size, hipMemcpyKind kind, CUstream stream) {
    REQUIRE(known(kind), hipErrorInvalidMemcpyDirection);
    return copy_async(to, from, size, stream);
}

EXPORT hipError_t hipMemcpyWithStream(void* to, const void* from, size_t size, hipMemcpyKind kind, CUstream stream) {
    REQUIRE(known(kind), hipErrorInvalidMemcpyDirection);
    if (hipError_t status = copy_async(to, from, size, stream)) return status;
    RETURN(cuStreamSynchronize(stream));
}

#define DIRECTED_COPY(name)                                                                    \
    EXPORT hipError_t name(void* to, void* from, size_t size) { return copy(to, from, size); } \
    EXPORT hipError_t name##Async(void* to, void* from, size_t size, CUstream stream) {        \
        return copy_async(to, from, size, stream);                                             \
    }
DIRECTED_COPY(hipMemcpyHtoD)
DIRECTED_COPY(hipMemcpyDtoH)
DIRECTED_COPY(hipMemcpyDtoD)

EXPORT hipError_t hipMemcpyPeer(void* to, int to_device, const void* from, int from_device, size_t size) {
    ENTER();
    REQUIRE(device_exists(to_device) && device_exists(from_device), hipErrorInvalidDevice);
    CUcontext target, source;
    if (CUresult result = device_context(to_device, &target)) return leave_cuda(result);
    if (CUresult result = device_context(from_device, &source)) return leave_cuda(result);
    RETURN(cuMemcpyPeer(address(to), target, address(from), source, size));
}

EXPORT hipError_t hipMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device, size_t size,
                                     CUstream stream) {
    ENTER();
    REQUIRE(device_exists(to_device) && device_exists(from_device), hipErrorInvalidDevice);
    CUcontext target, source;
    if (CUresult result = device_context(to_device, &target)) return leave_cuda(result);
    if (CUresult result = device_context(from_device, &source)) return leave_cuda(result);
    RETURN(cuMemcpyPeerAsync(address(to), target, address(from), source, size, stream));
}

EXPORT hipError_t hipMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                              size_t height, hipMemcpyKind kind) {
    ENTER();
    REQUIRE(known(kind), hipErrorInvalidMemcpyDirection);
    if (!width || !height) return hipSuccess;
    CUDA_MEMCPY2D copy = rows(to, to_pitch, from, from_pitch, width, height);
    RETURN(cuMemcpy2DUnaligned_v2(&copy));
}

EXPORT hipError_t hipMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                                   size_t height, hipMemcpyKind kind, CUstream stream) {
    ENTER();
    REQUIRE(known(kind), hipErrorInvalidMemcpyDirection);
    if (!width || !height) return hipSuccess;
    CUDA_MEMCPY2D copy = rows(to, to_pitch, from, from_pitch, width, height);
    RETURN(cuMemcpy2DAsync_v2(&copy, stream));
}

#define FILL(name, type, cuda_type, bits)                                                         \
    EXPORT hipError_t name(void* to, type value, size_t count) {                                  \
        ENTER();                                                                                  \
        if (!count) return hipSuccess;                                                            \
        RETURN(cuMemsetD##bits##_v2(address(to), static_cast<cuda_type>(value), count));          \
    }                                                                                             \
    EXPORT hipError_t name##Async(void* to, type value, size_t count, CUstream stream) {          \
        ENTER();                                                                                  \
        if (!count) return hipSuccess;                                                            \
        RETURN(cuMemsetD##bits##Async(address(to), static_cast<cuda_type>(value), count, stream)); \
    }
FILL(hipMemset, int, unsigned char, 8)
FILL(hipMemsetD8, unsigned char, unsigned char, 8)
FILL(hipMemsetD16, unsigned short, unsigned short, 16)
FILL(hipMemsetD32, int, unsigned, 32)
