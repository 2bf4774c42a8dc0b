#include "module.h"

#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "executor.h"
#include "fault.h"
#include "image.h"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static Array<Module*> modules;

// Kernels import the sim_* functions from this library, which its opener may have kept to itself.
static void publish() {
    Dl_info info;
    if (dladdr(reinterpret_cast<void*>(publish), &info)) dlopen(info.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
}

static hipError_t open_image(Module* m, const void* image) {
    m->file = static_cast<int>(syscall(SYS_memfd_create, "hipattn-code-object", 1u /* close on exec */));
    if (m->file < 0) return hipErrorSharedObjectInitFailed;
    if (!image_copy(m->file, image)) return hipErrorInvalidImage;

    // The loader knows a library by its path: the descriptor stays open so that no other gets the same.
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", m->file);
    m->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!m->library) {
        fprintf(stderr, "hipattn: a code object does not load: %s\n", dlerror());
        return hipErrorInvalidImage;
    }
    m->table = static_cast<const sim_module_table*>(dlsym(m->library, "sim_module"));
    if (!m->table || m->table->abi_version != SIM_ABI_VERSION) return hipErrorInvalidImage;
    if (strcmp(m->table->arch, m->device->arch->name)) return hipErrorNoBinaryForGpu;
    return hipSuccess;
}

static void find_tls(Module* m) {
    struct Search {
        ElfW(Addr) address;
        Module* module;
    } search = {0, m};
    link_map* map;
    if (dlinfo(m->library, RTLD_DI_LINKMAP, &map)) return;
    search.address = map->l_addr;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* data) {
            auto s = static_cast<Search*>(data);
            if (info->dlpi_addr != s->address) return 0;
            for (int i = 0; i < info->dlpi_phnum; ++i)
                if (info->dlpi_phdr[i].p_type == PT_TLS) s->module->tls_bytes = info->dlpi_phdr[i].p_memsz;
            s->module->tls_module = info->dlpi_tls_modid;
            return 1;
        },
        &search);
}

static size_t argument_bytes(const sim_kernel* k) {
    size_t end = 0;
    for (unsigned i = 0; i < k->argument_count; ++i)
        end = round_up(end, k->arguments[i].align) + k->arguments[i].size;
    return end;
}

// Whether a mangled name is that of a variable inside a function: _ZZ4kernE5tile of kern, _ZZ4kernPfE5tile of _Z4kernPf.
static bool is_local_to(const char* variable, const char* function) {
    char prefix[1024];
    if (!strncmp(function, "_Z", 2))
        snprintf(prefix, sizeof prefix, "_ZZ%sE", function + 2);
    else
        snprintf(prefix, sizeof prefix, "_ZZ%zu%sE", strlen(function), function);
    return !strncmp(variable, prefix, strlen(prefix));
}

// The kernels of a module share its TLS segment. A kernel's own LDS is what is left without the variables that are
// inside others.
static void find_functions(Module* m) {
    const sim_module_table* table = m->table;
    m->functions = make<Function>(table->kernel_count * sizeof(Function));
    for (unsigned i = 0; i < table->kernel_count; ++i)
        m->functions[i] = {&table->kernels[i], m, argument_bytes(&table->kernels[i]), m->tls_bytes};
    size_t size;
    const char* image = image_map(m->file, &size);
    if (!image) return;
    image_thread_locals(image, [m, table](const char* variable, size_t bytes) {
        for (unsigned owner = 0; owner < table->kernel_count; ++owner) {
            if (!is_local_to(variable, table->kernels[owner].name)) continue;
            for (unsigned i = 0; i < table->kernel_count; ++i)
                if (i != owner) m->functions[i].static_lds -= bytes;
            return;
        }
    });
    munmap(const_cast<char*>(image), size);
}

static void close_module(Module* m) {
    if (m->library) dlclose(m->library);
    if (m->file >= 0) close(m->file);
    free(m->functions);
    free(m);
}

hipError_t module_load(Device* device, const void* image, Module** out) {
    pthread_once(&once, publish);
    fault_install_handlers();
    Module* m = make<Module>();
    m->device = device;
    hipError_t status = open_image(m, image);
    if (status) {
        close_module(m);
        return status;
    }
    find_tls(m);
    find_functions(m);
    Lock lock(mutex);
    modules.push(m);
    *out = m;
    return hipSuccess;
}

Module* module_of(void* handle) {
    Lock lock(mutex);
    for (Module* m : modules)
        if (m == handle) return m;
    return nullptr;
}

void module_unload(Module* m) {
    {
        Lock lock(mutex);
        modules.remove_item(m);
    }
    close_module(m);
}

hipError_t module_function(Module* m, const char* name, Function** out) {
    for (unsigned i = 0; i < m->table->kernel_count; ++i)
        if (!strcmp(m->table->kernels[i].name, name)) return *out = &m->functions[i], hipSuccess;
    return hipErrorNotFound;
}

Function* function_of(void* handle) {
    Lock lock(mutex);
    auto f = static_cast<Function*>(handle);
    for (Module* m : modules)
        if (f >= m->functions && f < m->functions + m->table->kernel_count) return f;
    return nullptr;
}

size_t function_dynamic_lds_limit(const Function* f) {
    size_t lds = f->module->device->arch->lds_bytes, taken = f->static_lds;
    return taken < lds ? lds - taken : 0;
}

// A plausible figure: what the threads and the LDS of a compute unit allow. Registers are not simulated.
int function_blocks_per_cu(const Function* f, int block_size, size_t dynamic_lds) {
    const Arch* arch = f->module->device->arch;
    size_t lds = f->static_lds + dynamic_lds;
    if (block_size <= 0 || block_size > static_cast<int>(f->kernel->max_threads) || lds > arch->lds_bytes) return 0;
    size_t threads = round_up(static_cast<size_t>(block_size), static_cast<size_t>(arch->wave_size));
    size_t blocks = static_cast<size_t>(arch->max_threads_per_cu) / threads;
    if (lds && arch->lds_bytes / lds < blocks) blocks = arch->lds_bytes / lds;
    return static_cast<int>(blocks);
}

struct LaunchOperation : Operation {
    Launch launch;
    alignas(64) char arguments[64];  // longer: what is allocated behind
};

// The argument block as the caller gives it: a pointer to each argument, or the whole block with its size.
static hipError_t copy_arguments(const Function* f, void** parameters, void** extra, char* to) {
    const sim_kernel* k = f->kernel;
    if (parameters && extra) return hipErrorInvalidValue;
    if (k->argument_count == 0) return hipSuccess;
    if (parameters) {
        size_t at = 0;
        for (unsigned i = 0; i < k->argument_count; ++i) {
            if (!parameters[i]) return hipErrorInvalidValue;
            at = round_up(at, k->arguments[i].align);
            memcpy(to + at, parameters[i], k->arguments[i].size);
            at += k->arguments[i].size;
        }
        return hipSuccess;
    }
    if (!extra) return hipErrorInvalidValue;
    const void* block = nullptr;
    size_t size = 0, largest = 1;
    for (void** item = extra; *item != reinterpret_cast<void*>(3);) {  // HIP_LAUNCH_PARAM_END
        if (*item == reinterpret_cast<void*>(1))
            block = item[1];  // …_BUFFER_POINTER
        else if (*item == reinterpret_cast<void*>(2) && item[1])
            size = *static_cast<size_t*>(item[1]);  // …_BUFFER_SIZE
        else
            return hipErrorInvalidValue;
        item += 2;
    }
    for (unsigned i = 0; i < k->argument_count; ++i)
        if (k->arguments[i].align > largest) largest = k->arguments[i].align;
    bool fits = size == f->argument_bytes || size == round_up(f->argument_bytes, largest);
    if (!block || !fits) return hipErrorInvalidValue;
    memcpy(to, block, f->argument_bytes);
    return hipSuccess;
}

static hipError_t check_shape(const Function* f, sim_dim3 grid, sim_dim3 block, unsigned dynamic_lds) {
    if (!grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z) return hipErrorInvalidConfiguration;
    if (grid.x > 0x7fffffff || grid.y > 65536 || grid.z > 65536) return hipErrorInvalidConfiguration;
    if (static_cast<uint64_t>(grid.x) * block.x > 0xffffffff) return hipErrorInvalidConfiguration;
    if (block.x > 1024 || block.y > 1024 || block.z > 1024 || block.x * block.y * block.z > 1024)
        return hipErrorInvalidConfiguration;
    if (block.x * block.y * block.z > f->kernel->max_threads) return hipErrorLaunchFailure;
    if (dynamic_lds > f->module->device->arch->lds_bytes) return hipErrorInvalidValue;
    if (f->static_lds > f->module->device->arch->lds_bytes || dynamic_lds > function_dynamic_lds_limit(f))
        return hipErrorLaunchOutOfResources;
    return hipSuccess;
}

hipError_t function_launch(Function* f, sim_dim3 grid, sim_dim3 block, unsigned dynamic_lds, Stream* stream,
                           void** parameters, void** extra) {
    if (f->module->device != stream->device) return hipErrorInvalidDevice;
    if (hipError_t status = check_shape(f, grid, block, dynamic_lds)) return status;
    auto op = make<LaunchOperation>(f->argument_bytes);
    if (hipError_t status = copy_arguments(f, parameters, extra, op->arguments)) {
        free(op);
        return status;
    }
    op->launch.kernel = f->kernel;
    op->launch.arguments = op->arguments;
    op->launch.grid = grid;
    op->launch.block = block;
    op->launch.dynamic_lds = dynamic_lds;
    op->launch.device = stream->device;
    op->launch.tls_module = f->module->tls_module;
    op->launch.tls_bytes = f->module->tls_bytes;
    op->run = [](Operation* self) {
        Launch launch = static_cast<LaunchOperation*>(self)->launch;  // the executor counts in it
        execute(&launch);
    };
    stream_submit(stream, op);
    return hipSuccess;
}
