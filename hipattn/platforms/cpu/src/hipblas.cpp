// libhipblas of the cpu platform: column-major GEMMs of f32, f16 and bf16 with f32 compute, on the BLAS that
// HIPATTN_CPU_BLAS names. A product is an operation of the handle's stream.
#include <dlfcn.h>
#include <stdio.h>
#include <unistd.h>

#include "../../abi/base.h"
#include "../../abi/hip_abi.h"

typedef void* hipStream;
extern "C" {
bool sim_capture_keep(hipStream, void* data, void (*launched)(void*), void (*done)(void*), void (*release)(void*));
hipError_t sim_launch_host_func(hipStream, void (*)(void*), void*);
hipError_t sim_stream_add_callback(hipStream, void (*)(hipStream, hipError_t, void*), void*, unsigned);
hipError_t sim_address_range(void** base, size_t* size, void* pointer);
int sim_current_device();
int sim_should_fail(const char* name);
void sim_report_fault(hipStream, int code, const char* message);
}

enum hipblasStatus : int {
    HIPBLAS_STATUS_SUCCESS = 0,
    HIPBLAS_STATUS_NOT_INITIALIZED = 1,
    HIPBLAS_STATUS_ALLOC_FAILED = 2,
    HIPBLAS_STATUS_INVALID_VALUE = 3,
    HIPBLAS_STATUS_EXECUTION_FAILED = 5,
    HIPBLAS_STATUS_INTERNAL_ERROR = 6,
    HIPBLAS_STATUS_NOT_SUPPORTED = 7,
    HIPBLAS_STATUS_HANDLE_IS_NULLPTR = 9,
    HIPBLAS_STATUS_INVALID_ENUM = 10,
};
enum Transpose : int { NONE = 111, TRANSPOSED = 112, CONJUGATED = 113 };  // as in CBLAS
enum Type : int { F32 = 0, F16 = 2, BF16 = 14 };                          // hipDataType
enum Compute : int { COMPUTE_32F = 2, COMPUTE_32F_PEDANTIC = 3, COMPUTE_32F_FAST_TF32 = 6 };

namespace {

// The device memory that products of a handle use in turn. What is kept of it is who has it: the products that are
// queued or run, oldest first. It outlives its handle until the last of them is done.
struct Workspace {
    Array<struct Product*> pending;
    int captured;  // products that graphs hold
    bool closed;
};
pthread_mutex_t workspaces = PTHREAD_MUTEX_INITIALIZER;

}  // namespace

struct Handle {
    hipStream stream;
    int device;  // has to be the current one of a thread that calls, as for rocBLAS
    Workspace* workspace;
};

namespace {

constexpr int COLUMN_MAJOR = 102;
typedef void Sgemm(int order, int ta, int tb, int m, int n, int k, float alpha, const float* a, int lda, const float* b,
                   int ldb, float beta, float* c, int ldc);

// At the process's end the BLAS stops its threads, and waits forever if a product uses them then: none begins any
// more, and the one under way is waited for.
pthread_rwlock_t under_way = PTHREAD_RWLOCK_INITIALIZER;  // read by each product
bool stopped;
pid_t owner;

void stop_products() {
    if (getpid() != owner) return;  // a child process has none of the threads
    __atomic_store_n(&stopped, true, __ATOMIC_RELEASE);
    pthread_rwlock_wrlock(&under_way);
}

Sgemm* load_blas() {
    static Sgemm* loaded;
    if (loaded) return loaded;
    const char* path = getenv("HIPATTN_CPU_BLAS");
    void* library = path && *path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    void* found = library ? dlsym(library, "scipy_cblas_sgemm") : nullptr;
    if (library && !found) found = dlsym(library, "cblas_sgemm");
    if (found) owner = getpid(), atexit(stop_products);
    if (!found) fprintf(stderr, "hipblas: HIPATTN_CPU_BLAS (%s) is no BLAS: %s\n", path ? path : "not set", dlerror());
    return loaded = reinterpret_cast<Sgemm*>(found);
}

size_t size_of(Type type) { return type == F32 ? 4 : 2; }

float widen(_Float16 x) { return x; }
float widen(uint16_t bits) {  // bf16
    uint32_t u = uint32_t(bits) << 16;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}
void narrow(float x, _Float16& to) { to = static_cast<_Float16>(x); }
void narrow(float x, uint16_t& to) {  // to nearest even; a NaN stays one
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    to = static_cast<uint16_t>(x != x ? u >> 16 | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}

template <class T>
void widen_matrix(const void* from, long stride, int rows, int columns, float* to) {
    for (int j = 0; j < columns; ++j)
        for (int i = 0; i < rows; ++i) to[size_t(j) * rows + i] = widen(static_cast<const T*>(from)[j * stride + i]);
}
template <class T>
void narrow_matrix(const float* from, int rows, int columns, void* to, long stride) {
    for (int j = 0; j < columns; ++j)
        for (int i = 0; i < rows; ++i) narrow(from[size_t(j) * rows + i], static_cast<T*>(to)[j * stride + i]);
}

// A batch of column-major matrices in device memory.
struct Operand {
    char name;
    char* data;
    Type type;
    int rows, columns, leading;
    long long stride;  // elements between two of the batch

    char* matrix(int i) const { return data + i * stride * static_cast<long long>(size_of(type)); }
    // What the batch touches: [first, last) relative to data, in bytes.
    void extent(int batch, long long* first, long long* last) const {
        long long one = (columns - 1LL) * leading + rows, reach = (batch - 1LL) * stride;
        *first = (reach < 0 ? reach : 0) * static_cast<long long>(size_of(type));
        *last = ((reach > 0 ? reach : 0) + one) * static_cast<long long>(size_of(type));
    }
};

struct Product {
    Workspace* workspace;
    hipStream stream;
    Sgemm* sgemm;
    Transpose ta, tb;
    int m, n, k, batch;
    Operand a, b, c;
    float alpha, beta;

    bool reads_ab() const { return k && alpha != 0; }
};

// A GPU would fault on an operand that leaves its allocation.
bool inside(hipStream stream, const Product& p, const Operand& x) {
    long long first, last;
    x.extent(p.batch, &first, &last);
    void* base;
    size_t size;
    char text[256];
    bool found = sim_address_range(&base, &size, x.data) == hipSuccess;
    auto allocated = static_cast<char*>(base);
    if (found && x.data + first >= allocated && x.data + last <= allocated + size) return true;
    if (!found)
        snprintf(text, sizeof text, "hipBLAS: operand %c at %p is not in device memory", x.name, static_cast<void*>(x.data));
    else if (x.data + last > allocated + size)
        snprintf(text, sizeof text, "hipBLAS: operand %c at %p ends %lld bytes past the end of its allocation of %zu bytes at %p",
                 x.name, static_cast<void*>(x.data), static_cast<long long>(x.data + last - allocated - size), size, base);
    else
        snprintf(text, sizeof text, "hipBLAS: operand %c at %p begins %lld bytes before its allocation of %zu bytes at %p",
                 x.name, static_cast<void*>(x.data), static_cast<long long>(allocated - x.data - first), size, base);
    sim_report_fault(stream, hipErrorIllegalAddress, text);
    return false;
}

// A matrix as float32: itself, or a copy that is made anew when it is another one than last time.
struct Wide {
    float* copy = nullptr;
    const char* of = nullptr;

    ~Wide() { free(copy); }
    bool reserve(const Operand& x) {
        if (x.type != F32) copy = static_cast<float*>(malloc(size_t(x.rows) * x.columns * sizeof(float)));
        return x.type == F32 || copy;
    }
    float* get(const Operand& x, int i, bool read) {
        char* matrix = x.matrix(i);
        if (x.type == F32) return reinterpret_cast<float*>(matrix);
        if (read && of != matrix) {
            if (x.type == F16) widen_matrix<_Float16>(matrix, x.leading, x.rows, x.columns, copy);
            else widen_matrix<uint16_t>(matrix, x.leading, x.rows, x.columns, copy);
        }
        of = matrix;
        return copy;
    }
    int leading(const Operand& x) const { return x.type == F32 ? x.leading : x.rows; }
};

// An older product in another stream that is not done, though this one begins: nothing orders the two streams.
// Whether they overlap this time is chance.
bool owns_workspace(const Product& p) {
    Lock lock(workspaces);
    for (const Product* other : p.workspace->pending) {
        if (other == &p) break;
        if (other->stream != p.stream) return false;
    }
    return true;
}

void free_if_unused(Workspace* w) {
    if (!w->closed || w->pending.count || w->captured) return;
    free(w->pending.items);
    free(w);
}

void enqueue(Product* p) {
    Lock lock(workspaces);
    p->workspace->pending.push(p);
}

void retire(Product* p) {
    Lock lock(workspaces);
    p->workspace->pending.remove_item(p);
    free_if_unused(p->workspace);
    free(p);
}

void hold(Workspace* w) {
    Lock lock(workspaces);
    ++w->captured;
}

// A product of a graph is pending from each launch of the graph until that is done.
void dequeue(Product* p) {
    Lock lock(workspaces);
    p->workspace->pending.remove_item(p);
}

void free_captured(Product* p) {
    Lock lock(workspaces);
    --p->workspace->captured;
    free_if_unused(p->workspace);
    free(p);
}

void run(hipStream stream, Product& p) {
    if (!owns_workspace(p))
        return sim_report_fault(stream, hipErrorLaunchFailure,
                                "a hipBLAS handle's workspace is used by two streams at once: order the streams or "
                                "use a handle each");
    if (!inside(stream, p, p.c)) return;
    if (p.reads_ab() && !(inside(stream, p, p.a) && inside(stream, p, p.b))) return;
    Wide a, b, c;
    bool room = c.reserve(p.c) && (!p.reads_ab() || (a.reserve(p.a) && b.reserve(p.b)));
    if (!room) return sim_report_fault(stream, hipErrorOutOfMemory, "hipblas: no host memory for float32 copies");
    for (int i = 0; i < p.batch; ++i) {
        c.of = nullptr;  // what the previous product wrote is in memory, not in the copy
        float* out = c.get(p.c, i, p.beta != 0);
        float *left = out, *right = out;
        if (p.reads_ab()) left = a.get(p.a, i, true), right = b.get(p.b, i, true);
        int k = p.reads_ab() ? p.k : 0;
        if (k) {
            if (__atomic_load_n(&stopped, __ATOMIC_ACQUIRE)) return;
            pthread_rwlock_rdlock(&under_way);
            p.sgemm(COLUMN_MAJOR, p.ta, p.tb, p.m, p.n, k, p.alpha, left, a.leading(p.a), right, b.leading(p.b), p.beta, out,
                    c.leading(p.c));
            pthread_rwlock_unlock(&under_way);
        } else {
            for (int j = 0; j < p.n; ++j)
                for (int r = 0; r < p.m; ++r) {
                    float& x = out[size_t(j) * c.leading(p.c) + r];
                    x = p.beta != 0 ? p.beta * x : 0;  // with beta 0, C may hold anything
                }
        }
        if (p.c.type == F16) narrow_matrix<_Float16>(out, p.m, p.n, p.c.matrix(i), p.c.leading);
        if (p.c.type == BF16) narrow_matrix<uint16_t>(out, p.m, p.n, p.c.matrix(i), p.c.leading);
    }
}

bool known(Type type) { return type == F32 || type == F16 || type == BF16; }
bool known(Transpose t) { return t == NONE || t == TRANSPOSED || t == CONJUGATED; }

}  // namespace

EXPORT hipblasStatus hipblasCreate(Handle** handle) {
    if (sim_should_fail("hipblasCreate")) return HIPBLAS_STATUS_ALLOC_FAILED;
    if (!handle) return HIPBLAS_STATUS_HANDLE_IS_NULLPTR;
    if (!load_blas() || sim_current_device() < 0) return HIPBLAS_STATUS_NOT_INITIALIZED;
    *handle = make<Handle>();
    (*handle)->device = sim_current_device();
    (*handle)->workspace = make<Workspace>();
    return HIPBLAS_STATUS_SUCCESS;
}

EXPORT hipblasStatus hipblasDestroy(Handle* handle) {
    if (sim_should_fail("hipblasDestroy")) return HIPBLAS_STATUS_INTERNAL_ERROR;
    if (!handle) return HIPBLAS_STATUS_NOT_INITIALIZED;
    Lock lock(workspaces);
    handle->workspace->closed = true;
    free_if_unused(handle->workspace);
    free(handle);
    return HIPBLAS_STATUS_SUCCESS;
}

EXPORT hipblasStatus hipblasSetStream(Handle* handle, hipStream stream) {
    if (sim_should_fail("hipblasSetStream")) return HIPBLAS_STATUS_INTERNAL_ERROR;
    if (!handle) return HIPBLAS_STATUS_NOT_INITIALIZED;
    if (sim_current_device() != handle->device) return HIPBLAS_STATUS_INVALID_VALUE;
    handle->stream = stream;
    return HIPBLAS_STATUS_SUCCESS;
}

// Checks the arguments in rocBLAS's order and enqueues the product.
EXPORT hipblasStatus hipblasGemmStridedBatchedEx(Handle* handle, Transpose ta, Transpose tb, int m, int n, int k,
                                                 const void* alpha, const void* a, Type a_type, int lda, long long stride_a,
                                                 const void* b, Type b_type, int ldb, long long stride_b, const void* beta,
                                                 void* c, Type c_type, int ldc, long long stride_c, int batch, Compute compute,
                                                 int) {
    if (sim_should_fail("hipblasGemmStridedBatchedEx")) return HIPBLAS_STATUS_EXECUTION_FAILED;
    if (!handle) return HIPBLAS_STATUS_NOT_INITIALIZED;
    if (sim_current_device() != handle->device) return HIPBLAS_STATUS_INVALID_VALUE;
    if (!known(ta) || !known(tb)) return HIPBLAS_STATUS_INVALID_ENUM;
    bool types = known(a_type) && a_type == b_type && (c_type == a_type || c_type == F32);
    if (!types || compute < COMPUTE_32F || compute > COMPUTE_32F_FAST_TF32) return HIPBLAS_STATUS_NOT_SUPPORTED;
    int a_rows = ta == NONE ? m : k, b_rows = tb == NONE ? k : n;
    if (m < 0 || n < 0 || k < 0 || batch < 0) return HIPBLAS_STATUS_INVALID_VALUE;
    auto too_small = [](int leading, int rows) { return leading < (rows > 1 ? rows : 1); };
    if (too_small(lda, a_rows) || too_small(ldb, b_rows) || too_small(ldc, m)) return HIPBLAS_STATUS_INVALID_VALUE;
    if (!m || !n || !batch) return HIPBLAS_STATUS_SUCCESS;
    if (!beta || !c || (k && !alpha)) return HIPBLAS_STATUS_INVALID_VALUE;

    Product p = {};
    p.workspace = handle->workspace;
    p.stream = handle->stream;
    p.sgemm = load_blas();
    p.ta = ta, p.tb = tb;
    p.m = m, p.n = n, p.k = k, p.batch = batch;
    auto data = [](const void* pointer) { return static_cast<char*>(const_cast<void*>(pointer)); };
    p.a = {'A', data(a), a_type, a_rows, ta == NONE ? k : m, lda, stride_a};
    p.b = {'B', data(b), b_type, b_rows, tb == NONE ? n : k, ldb, stride_b};
    p.c = {'C', data(c), c_type, m, n, ldc, stride_c};
    auto scalar = [](const void* s) { return static_cast<const float*>(s); };
    p.alpha = k ? *scalar(alpha) : 0, p.beta = *scalar(beta);
    if (p.reads_ab() && (!a || !b)) return HIPBLAS_STATUS_INVALID_VALUE;

    auto queued = make<Product>();
    *queued = p;
    bool capturing = sim_capture_keep(
        handle->stream, queued, [](void* product) { enqueue(static_cast<Product*>(product)); },
        [](void* product) { dequeue(static_cast<Product*>(product)); },
        [](void* product) { free_captured(static_cast<Product*>(product)); });
    if (capturing) {
        hold(p.workspace);
        auto again = [](void* product) {
            Product& p = *static_cast<Product*>(product);
            run(p.stream, p);
        };
        bool captured = sim_launch_host_func(handle->stream, again, queued) == hipSuccess;
        return captured ? HIPBLAS_STATUS_SUCCESS : HIPBLAS_STATUS_INTERNAL_ERROR;
    }
    enqueue(queued);
    auto callback = [](hipStream stream, hipError_t status, void* product) {
        if (status == hipSuccess) run(stream, *static_cast<Product*>(product));
        retire(static_cast<Product*>(product));
    };
    if (sim_stream_add_callback(handle->stream, callback, queued, 0) == hipSuccess) return HIPBLAS_STATUS_SUCCESS;
    retire(queued);
    return HIPBLAS_STATUS_INTERNAL_ERROR;
}
