// libhipblas of the nvidia platform, over cuBLAS: GEMMs of f32, f16 and bf16, accumulated in f32. f32 is f32
// throughout (no TF32) unless the caller asks for the faster kind.
#include <dlfcn.h>
#include <stdio.h>

#include "../../abi/base.h"
#include "../../abi/hip_abi.h"
#include "../../abi/hipblas_abi.h"

extern "C" hipError_t hipattn_current_device(int* index);

typedef struct cublasContext* Handle;
typedef struct CUstream_st* Stream;

namespace {

#define CUBLAS_FUNCTIONS(F)                                                                                            \
    F(cublasCreate_v2, (Handle*))                                                                                      \
    F(cublasDestroy_v2, (Handle))                                                                                      \
    F(cublasSetStream_v2, (Handle, Stream))                                                                            \
    F(cublasGetStream_v2, (Handle, Stream*))                                                                           \
    F(cublasSetWorkspace_v2, (Handle, void*, size_t))                                                                  \
    F(cublasSetPointerMode_v2, (Handle, int))                                                                          \
    F(cublasGetPointerMode_v2, (Handle, int*))                                                                         \
    F(cublasSetAtomicsMode, (Handle, int))                                                                             \
    F(cublasGetAtomicsMode, (Handle, int*))                                                                            \
    F(cublasSetMathMode, (Handle, int))                                                                                \
    F(cublasGetMathMode, (Handle, int*))                                                                               \
    F(cublasGemmEx, (Handle, int, int, int, int, int, const void*, const void*, Type, int, const void*, Type, int,     \
                     const void*, void*, Type, int, int, int))                                                         \
    F(cublasGemmStridedBatchedEx,                                                                                      \
      (Handle, int, int, int, int, int, const void*, const void*, Type, int, long long, const void*, Type, int,        \
       long long, const void*, void*, Type, int, long long, int, int, int))

struct Cublas {
#define DECLARE(name, arguments) int(*name) arguments;
    CUBLAS_FUNCTIONS(DECLARE)
#undef DECLARE
} cublas;

pthread_once_t once = PTHREAD_ONCE_INIT;
bool found;

void open_cublas() {
    const char* path = getenv("HIPATTN_NVIDIA_CUBLAS");
    void* library = path && *path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!library) {
        fprintf(stderr, "hipblas: HIPATTN_NVIDIA_CUBLAS (%s) is no cuBLAS: %s\n", path ? path : "not set", dlerror());
        return;
    }
    found = true;
#define FIND(name, arguments)                                                    \
    cublas.name = reinterpret_cast<decltype(cublas.name)>(dlsym(library, #name)); \
    found = found && cublas.name;
    CUBLAS_FUNCTIONS(FIND)
#undef FIND
    if (!found) fprintf(stderr, "hipblas: %s is too old; CUDA 12 or newer is needed\n", path);
}

hipblasStatus translate(int status) {
    switch (status) {
        case 0: return HIPBLAS_STATUS_SUCCESS;
        case 1: return HIPBLAS_STATUS_NOT_INITIALIZED;
        case 3: return HIPBLAS_STATUS_ALLOC_FAILED;
        case 7: return HIPBLAS_STATUS_INVALID_VALUE;
        case 8: return HIPBLAS_STATUS_ARCH_MISMATCH;
        case 11: return HIPBLAS_STATUS_MAPPING_ERROR;
        case 13: return HIPBLAS_STATUS_EXECUTION_FAILED;
        case 14: return HIPBLAS_STATUS_INTERNAL_ERROR;
        case 15: return HIPBLAS_STATUS_NOT_SUPPORTED;
        default: return HIPBLAS_STATUS_UNKNOWN;
    }
}

// cublasMath_t: default, pedantic and TF32, and a bit that keeps partial sums of 16-bit products in f32.
constexpr int DEFAULT_MATH = 0, PEDANTIC_MATH = 2, TF32_MATH = 3, SUMS_IN_F32 = 16;
// hipblasMath_t of the same meaning; XF32 is AMD's TF32.
constexpr int HIP_DEFAULT = 0, HIP_XF32 = 1, HIP_PEDANTIC = 2, HIP_TF32 = 3;

bool known(Type type) { return type == F32 || type == F16 || type == BF16; }
bool known(Transpose t) { return t == NONE || t == TRANSPOSED || t == CONJUGATED; }
int operation(Transpose t) { return t - NONE; }  // cublasOperation_t

// cublasComputeType_t
int compute_type(Compute compute) {
    switch (compute) {
        case COMPUTE_32F: return 68;
        case COMPUTE_32F_PEDANTIC: return 69;
        case COMPUTE_32F_FAST_TF32: return 77;
    }
    return -1;
}

hipblasStatus gemm(Handle handle, Transpose ta, Transpose tb, int m, int n, int k, const void* alpha, const void* a,
                   Type a_type, int lda, long long stride_a, const void* b, Type b_type, int ldb, long long stride_b,
                   const void* beta, void* c, Type c_type, int ldc, long long stride_c, int batch, Compute compute) {
    if (!handle) return HIPBLAS_STATUS_NOT_INITIALIZED;
    if (!known(ta) || !known(tb)) return HIPBLAS_STATUS_INVALID_ENUM;
    bool types = known(a_type) && a_type == b_type && (c_type == a_type || c_type == F32);
    if (!types || compute_type(compute) < 0) return HIPBLAS_STATUS_NOT_SUPPORTED;
    constexpr int default_algorithm = -1;
    if (batch == 1)
        return translate(cublas.cublasGemmEx(handle, operation(ta), operation(tb), m, n, k, alpha, a, a_type, lda, b, b_type,
                                             ldb, beta, c, c_type, ldc, compute_type(compute), default_algorithm));
    return translate(cublas.cublasGemmStridedBatchedEx(handle, operation(ta), operation(tb), m, n, k, alpha, a, a_type, lda,
                                                       stride_a, b, b_type, ldb, stride_b, beta, c, c_type, ldc, stride_c,
                                                       batch, compute_type(compute), default_algorithm));
}

}  // namespace

#define REQUIRE(condition, status) \
    if (!(condition)) return status

EXPORT hipblasStatus hipblasCreate(Handle* handle) {
    REQUIRE(handle, HIPBLAS_STATUS_HANDLE_IS_NULLPTR);
    pthread_once(&once, open_cublas);
    int device;
    REQUIRE(found && !hipattn_current_device(&device), HIPBLAS_STATUS_NOT_INITIALIZED);  // and now the thread has a device
    if (int status = cublas.cublasCreate_v2(handle)) return translate(status);
    return translate(cublas.cublasSetMathMode(*handle, DEFAULT_MATH | SUMS_IN_F32));
}

EXPORT hipblasStatus hipblasDestroy(Handle handle) {
    REQUIRE(handle, HIPBLAS_STATUS_NOT_INITIALIZED);
    return translate(cublas.cublasDestroy_v2(handle));
}

EXPORT hipblasStatus hipblasSetStream(Handle handle, Stream stream) {
    REQUIRE(handle, HIPBLAS_STATUS_NOT_INITIALIZED);
    return translate(cublas.cublasSetStream_v2(handle, stream));
}

EXPORT hipblasStatus hipblasGetStream(Handle handle, Stream* stream) {
    REQUIRE(handle, HIPBLAS_STATUS_NOT_INITIALIZED);
    REQUIRE(stream, HIPBLAS_STATUS_INVALID_VALUE);
    return translate(cublas.cublasGetStream_v2(handle, stream));
}

EXPORT hipblasStatus hipblasSetWorkspace(Handle handle, void* workspace, size_t size) {
    REQUIRE(handle, HIPBLAS_STATUS_NOT_INITIALIZED);
    REQUIRE(workspace || !size, HIPBLAS_STATUS_INVALID_VALUE);
    return translate(cublas.cublasSetWorkspace_v2(handle, workspace, size));
}

EXPORT hipblasStatus hipblasSetPointerMode(Handle handle, int mode) {
    REQUIRE(handle, HIPBLAS_STATUS_NOT_INITIALIZED);
    REQUIRE(mode == HOST || mode == DEVICE, HIPBLAS_STATUS_INVALID_ENUM);
    return translate(cublas.cublasSetPointerMode_v2(handle, mode));
}

EXPORT hipblasStatus hipblasGetPointerMode(Handle handle, int* mode) {
    REQUIRE(handle, HIPBLAS_STATUS_NOT_INITIALIZED);
    REQUIRE(mode, HIPBLAS_STATUS_INVALID_VALUE);
    return translate(cublas.cublasGetPointerMode_v2(handle, mode));
}

EXPORT hipblasStatus hipblasSetAtomicsMode(Handle handle, int mode) {
    REQUIRE(handle, HIPBLAS_STATUS_NOT_INITIALIZED);
    REQUIRE(mode == 0 || mode == 1, HIPBLAS_STATUS_INVALID_ENUM);
    return translate(cublas.cublasSetAtomicsMode(handle, mode));
}

EXPORT hipblasStatus hipblasGetAtomicsMode(Handle handle, int* mode) {
    REQUIRE(handle, HIPBLAS_STATUS_NOT_INITIALIZED);
    REQUIRE(mode, HIPBLAS_STATUS_INVALID_VALUE);
    return translate(cublas.cublasGetAtomicsMode(handle, mode));
}

EXPORT hipblasStatus hipblasSetMathMode(Handle handle, int mode) {
    REQUIRE(handle, HIPBLAS_STATUS_NOT_INITIALIZED);
    switch (mode) {
        case HIP_DEFAULT: mode = DEFAULT_MATH; break;
        case HIP_PEDANTIC: mode = PEDANTIC_MATH; break;
        case HIP_XF32:
        case HIP_TF32: mode = TF32_MATH; break;
        default: return HIPBLAS_STATUS_INVALID_ENUM;
    }
    return translate(cublas.cublasSetMathMode(handle, mode | SUMS_IN_F32));
}

EXPORT hipblasStatus hipblasGetMathMode(Handle handle, int* mode) {
    REQUIRE(handle, HIPBLAS_STATUS_NOT_INITIALIZED);
    REQUIRE(mode, HIPBLAS_STATUS_INVALID_VALUE);
    int status = cublas.cublasGetMathMode(handle, mode);
    *mode &= ~SUMS_IN_F32;
    return translate(status);
}

EXPORT const char* hipblasStatusToString(hipblasStatus status) { return hipblas_status_name(status); }

EXPORT hipblasStatus hipblasSgemm(Handle handle, Transpose ta, Transpose tb, int m, int n, int k, const float* alpha,
                                  const float* a, int lda, const float* b, int ldb, const float* beta, float* c, int ldc) {
    return gemm(handle, ta, tb, m, n, k, alpha, a, F32, lda, 0, b, F32, ldb, 0, beta, c, F32, ldc, 0, 1, COMPUTE_32F);
}

EXPORT hipblasStatus hipblasSgemmStridedBatched(Handle handle, Transpose ta, Transpose tb, int m, int n, int k,
                                                const float* alpha, const float* a, int lda, long long stride_a,
                                                const float* b, int ldb, long long stride_b, const float* beta, float* c,
                                                int ldc, long long stride_c, int batch) {
    return gemm(handle, ta, tb, m, n, k, alpha, a, F32, lda, stride_a, b, F32, ldb, stride_b, beta, c, F32, ldc, stride_c,
                batch, COMPUTE_32F);
}

EXPORT hipblasStatus hipblasGemmEx(Handle handle, Transpose ta, Transpose tb, int m, int n, int k, const void* alpha,
                                   const void* a, Type a_type, int lda, const void* b, Type b_type, int ldb,
                                   const void* beta, void* c, Type c_type, int ldc, Compute compute, int) {
    return gemm(handle, ta, tb, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0, beta, c, c_type, ldc, 0, 1, compute);
}

EXPORT hipblasStatus hipblasGemmStridedBatchedEx(Handle handle, Transpose ta, Transpose tb, int m, int n, int k,
                                                 const void* alpha, const void* a, Type a_type, int lda, long long stride_a,
                                                 const void* b, Type b_type, int ldb, long long stride_b, const void* beta,
                                                 void* c, Type c_type, int ldc, long long stride_c, int batch,
                                                 Compute compute, int) {
    return gemm(handle, ta, tb, m, n, k, alpha, a, a_type, lda, stride_a, b, b_type, ldb, stride_b, beta, c, c_type, ldc,
                stride_c, batch, compute);
}
