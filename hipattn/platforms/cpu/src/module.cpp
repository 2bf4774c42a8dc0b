#include "module.h"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "executor.h"
#include "fault.h"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static Array<Module*> modules;

// Kernels import the sim_* functions from this library, which its opener may have kept to itself.
static void publish() {
    Dl_info info;
    if (dladdr(reinterpret_cast<void*>(publish), &info)) dlopen(info.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
}

static bool write_all(int file, const char* from, size_t size) {
    while (size) {
        ssize_t n = write(file, from, size);  // EFAULT instead of a signal where the image ends too early
        if (n <= 0) return false;
        from += n;
        size -= static_cast<size_t>(n);
    }
    return true;
}

// HIP is given no size: the ELF header says where the section headers are, which linkers put last.
static bool copy_image(int file, const void* image, size_t* size) {
    Elf64_Ehdr header;
    if (!write_all(file, static_cast<const char*>(image), sizeof header) ||
        pread(file, &header, sizeof header, 0) != sizeof header)
        return false;
    if (memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_type != ET_DYN ||
        header.e_shentsize != sizeof(Elf64_Shdr) || header.e_phentsize != sizeof(Elf64_Phdr) ||
        header.e_shoff < sizeof header || header.e_shoff > (1u << 30) || header.e_shstrndx >= header.e_shnum)
        return false;
    *size = header.e_shoff + header.e_shnum * sizeof(Elf64_Shdr);
    return write_all(file, static_cast<const char*>(image) + sizeof header, *size - sizeof header);
}

// A truncated image ends in whatever follows it in memory. Its section headers are then no section headers.
static bool plausible(const char* image, size_t size) {
    auto inside = [size](uint64_t offset, uint64_t length) { return offset <= size && length <= size - offset; };
    auto& header = *reinterpret_cast<const Elf64_Ehdr*>(image);
    auto sections = reinterpret_cast<const Elf64_Shdr*>(image + header.e_shoff);
    auto& names = sections[header.e_shstrndx];
    if (sections[0].sh_type != SHT_NULL || names.sh_type != SHT_STRTAB || !inside(names.sh_offset, names.sh_size) ||
        names.sh_size == 0 || image[names.sh_offset] || image[names.sh_offset + names.sh_size - 1])
        return false;
    for (unsigned i = 0; i < header.e_shnum; ++i)
        if (sections[i].sh_name >= names.sh_size ||
            (sections[i].sh_type != SHT_NOBITS && !inside(sections[i].sh_offset, sections[i].sh_size)))
            return false;
    if (!inside(header.e_phoff, header.e_phnum * sizeof(Elf64_Phdr))) return false;
    auto segments = reinterpret_cast<const Elf64_Phdr*>(image + header.e_phoff);
    for (unsigned i = 0; i < header.e_phnum; ++i)
        if (!inside(segments[i].p_offset, segments[i].p_filesz)) return false;
    return true;
}

static hipError_t open_image(Module* m, const void* image) {
    m->file = static_cast<int>(syscall(SYS_memfd_create, "hipattn-code-object", 1u /* close on exec */));
    if (m->file < 0) return hipErrorSharedObjectInitFailed;
    size_t size;
    if (!copy_image(m->file, image, &size)) return hipErrorInvalidImage;
    void* mapped = mmap(nullptr, size, PROT_READ, MAP_SHARED, m->file, 0);
    if (mapped == MAP_FAILED) return hipErrorOutOfMemory;
    bool good = plausible(static_cast<const char*>(mapped), size);
    munmap(mapped, size);
    if (!good) return hipErrorInvalidImage;

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
    m->functions = make<Function>(m->table->kernel_count * sizeof(Function));
    for (unsigned i = 0; i < m->table->kernel_count; ++i) {
        const sim_kernel* k = &m->table->kernels[i];
        m->functions[i] = {k, m, argument_bytes(k)};
    }
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
    size_t lds = f->module->device->arch->lds_bytes, taken = f->module->tls_bytes;
    return taken < lds ? lds - taken : 0;
}

// A plausible figure: what the threads and the LDS of a compute unit allow. Registers are not simulated.
int function_blocks_per_cu(const Function* f, int block_size, size_t dynamic_lds) {
    const Arch* arch = f->module->device->arch;
    size_t lds = f->module->tls_bytes + dynamic_lds;
    if (block_size <= 0 || block_size > static_cast<int>(f->kernel->max_threads) || lds > arch->lds_bytes) return 0;
    size_t blocks = static_cast<size_t>(arch->max_threads_per_cu / round_up(block_size, static_cast<size_t>(arch->wave_size)));
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
    if (!block || (size != f->argument_bytes && size != round_up(f->argument_bytes, largest))) return hipErrorInvalidValue;
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
    if (f->module->tls_bytes > f->module->device->arch->lds_bytes || dynamic_lds > function_dynamic_lds_limit(f))
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
    op->run = [](Operation* self) { execute(&static_cast<LaunchOperation*>(self)->launch); };
    stream_submit(stream, op);
    return hipSuccess;
}
