// libhiprtc of the nvidia platform: HIP's runtime compiler over NVRTC. A program is CUDA C++ with a prelude
// (device/prelude.h) that brings what HIP has beside it; its code object is a cubin.
#include <dlfcn.h>

#include "../../abi/hip_abi.h"
#include "../../abi/hiprtc_abi.h"
#include "options.h"

extern "C" {
hipError_t hipattn_current_device(int* index);
hipError_t hipattn_compute_capability(int* major, int* minor, int index);
}

typedef struct nvrtc_program* nvrtcProgram;

struct Program {
    nvrtcProgram native;
    Text log;  // of options that NVRTC was not asked about
    bool compiled, succeeded;
};

namespace {

// NVRTC's statuses have hiprtc's numbers, up to the internal error.
#define NVRTC_FUNCTIONS(F)                                                                                        \
    F(nvrtcVersion, (int*, int*))                                                                                 \
    F(nvrtcCreateProgram, (nvrtcProgram*, const char*, const char*, int, const char* const*, const char* const*)) \
    F(nvrtcDestroyProgram, (nvrtcProgram*))                                                                       \
    F(nvrtcAddNameExpression, (nvrtcProgram, const char*))                                                        \
    F(nvrtcCompileProgram, (nvrtcProgram, int, const char* const*))                                               \
    F(nvrtcGetLoweredName, (nvrtcProgram, const char*, const char**))                                             \
    F(nvrtcGetProgramLogSize, (nvrtcProgram, size_t*))                                                            \
    F(nvrtcGetProgramLog, (nvrtcProgram, char*))                                                                  \
    F(nvrtcGetCUBINSize, (nvrtcProgram, size_t*))                                                                 \
    F(nvrtcGetCUBIN, (nvrtcProgram, char*))

struct Nvrtc {
#define DECLARE(name, arguments) int(*name) arguments;
    NVRTC_FUNCTIONS(DECLARE)
#undef DECLARE
} nvrtc;

pthread_once_t once = PTHREAD_ONCE_INIT;
bool found;

void open_nvrtc() {
    const char* path = getenv("HIPATTN_NVIDIA_NVRTC");
    void* library = path && *path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!library) {
        fprintf(stderr, "hiprtc: HIPATTN_NVIDIA_NVRTC (%s) is no NVRTC: %s\n", path ? path : "not set", dlerror());
        return;
    }
    found = true;
#define FIND(name, arguments)                                                       \
    nvrtc.name = reinterpret_cast<decltype(nvrtc.name)>(dlsym(library, #name));     \
    found = found && nvrtc.name;
    NVRTC_FUNCTIONS(FIND)
#undef FIND
    if (!found) fprintf(stderr, "hiprtc: %s is too old; CUDA 12 or newer is needed\n", path);
}

hiprtcResult translate(int status) {
    return status <= HIPRTC_ERROR_INTERNAL_ERROR ? static_cast<hiprtcResult>(status) : HIPRTC_ERROR_INTERNAL_ERROR;
}

bool compile(Program& p, int count, const char* const* given, hiprtcResult* result) {
    Options options;
    *result = HIPRTC_ERROR_COMPILATION;
    const char* device = getenv("HIPATTN_NVIDIA_DEVICE_INCLUDE");
    if (!device || !*device) return p.log.add("error: HIPATTN_NVIDIA_DEVICE_INCLUDE must name the device headers\n"), false;
    if (!parse_options(count, given, options, p.log)) return false;
    if (!options.arch.size) {
        int index, major, minor;
        if (hipattn_current_device(&index) || hipattn_compute_capability(&major, &minor, index))
            return p.log.add("error: no GPU to compile for, and no --offload-arch\n"), false;
        options.arch.format("sm_%d%d", major, minor);
    }
    // What is compiled runs here and nowhere else: so with all that this one GPU has, wgmma among it.
    bool hopper = !strcmp(options.arch.c_str(), "sm_90");
    options.nvrtc.add(Text("--gpu-architecture=").add(options.arch).add(hopper ? "a" : ""));
    options.nvrtc.add(Text("-I").add(device));
    options.nvrtc.add("--pre-include=prelude.h");
    // As in HIP, what no one said to be the host's may be used on the device: constants, constexpr functions.
    options.nvrtc.add("--device-as-default-execution-space");
    // As in HIP, a kernel without __launch_bounds__ can be launched with 1024 threads. Those with them are not
    // bound by this.
    unsigned registers = 65536 / (options.max_threads ? options.max_threads : 1);
    if (registers < 255) options.nvrtc.add(Text().format("--maxrregcount=%u", registers));
    List<const char*> texts;
    for (const Text& o : options.nvrtc) texts.add(o.c_str());
    int status = nvrtc.nvrtcCompileProgram(p.native, static_cast<int>(texts.count), texts.items);
    *result = status == HIPRTC_ERROR_INVALID_OPTION ? HIPRTC_ERROR_COMPILATION : translate(status);
    return !status;
}

// The log's size counts its final zero; there is none of an empty log, as in AMD's.
hiprtcResult log_of(Program& p, Text& log) {
    size_t size = 0;
    log.add(p.log);
    if (int status = nvrtc.nvrtcGetProgramLogSize(p.native, &size)) return translate(status);
    if (size < 2) return HIPRTC_SUCCESS;
    auto text = static_cast<char*>(malloc(size));
    int status = text ? nvrtc.nvrtcGetProgramLog(p.native, text) : HIPRTC_ERROR_OUT_OF_MEMORY;
    if (!status) log.add(text);
    free(text);
    return translate(status);
}

}  // namespace

EXPORT const char* hiprtcGetErrorString(hiprtcResult result) { return hiprtc_result_name(result); }

EXPORT hiprtcResult hiprtcVersion(int* major, int* minor) {
    if (!major || !minor) return HIPRTC_ERROR_INVALID_INPUT;
    pthread_once(&once, open_nvrtc);
    return found ? translate(nvrtc.nvrtcVersion(major, minor)) : HIPRTC_ERROR_INTERNAL_ERROR;
}

EXPORT hiprtcResult hiprtcCreateProgram(Program** made, const char* source, const char* name, int headers,
                                        const char* const* texts, const char* const* names) {
    if (!made || !source || headers < 0 || (headers && (!texts || !names))) return HIPRTC_ERROR_INVALID_INPUT;
    pthread_once(&once, open_nvrtc);
    if (!found) return HIPRTC_ERROR_INTERNAL_ERROR;
    nvrtcProgram native;
    if (int status = nvrtc.nvrtcCreateProgram(&native, source, name, headers, texts, names)) return translate(status);
    *made = make<Program>();
    (*made)->native = native;
    return HIPRTC_SUCCESS;
}

EXPORT hiprtcResult hiprtcDestroyProgram(Program** program) {
    if (!program || !*program) return HIPRTC_ERROR_INVALID_INPUT;
    int status = nvrtc.nvrtcDestroyProgram(&(*program)->native);
    (*program)->~Program();
    free(*program);
    *program = nullptr;
    return translate(status);
}

EXPORT hiprtcResult hiprtcAddNameExpression(Program* p, const char* expression) {
    if (!p) return HIPRTC_ERROR_INVALID_PROGRAM;
    if (!expression) return HIPRTC_ERROR_INVALID_INPUT;
    if (p->compiled) return HIPRTC_ERROR_NO_NAME_EXPRESSIONS_AFTER_COMPILATION;
    return translate(nvrtc.nvrtcAddNameExpression(p->native, expression));
}

EXPORT hiprtcResult hiprtcCompileProgram(Program* p, int count, const char* const* options) {
    if (!p) return HIPRTC_ERROR_INVALID_PROGRAM;
    if (count < 0 || (count && !options)) return HIPRTC_ERROR_INVALID_INPUT;
    hiprtcResult result;
    p->compiled = true;
    p->log = Text();
    p->succeeded = compile(*p, count, options, &result);
    return result;
}

EXPORT hiprtcResult hiprtcGetLoweredName(Program* p, const char* expression, const char** lowered) {
    if (!p) return HIPRTC_ERROR_INVALID_PROGRAM;
    if (!expression || !lowered) return HIPRTC_ERROR_INVALID_INPUT;
    if (!p->succeeded) return HIPRTC_ERROR_NO_LOWERED_NAMES_BEFORE_COMPILATION;
    return translate(nvrtc.nvrtcGetLoweredName(p->native, expression, lowered));
}

EXPORT hiprtcResult hiprtcGetProgramLogSize(Program* p, size_t* size) {
    if (!p) return HIPRTC_ERROR_INVALID_PROGRAM;
    if (!size) return HIPRTC_ERROR_INVALID_INPUT;
    Text log;
    hiprtcResult result = log_of(*p, log);
    *size = log.size ? log.size + 1 : 0;
    return result;
}

EXPORT hiprtcResult hiprtcGetProgramLog(Program* p, char* to) {
    if (!p) return HIPRTC_ERROR_INVALID_PROGRAM;
    if (!to) return HIPRTC_ERROR_INVALID_INPUT;
    Text log;
    hiprtcResult result = log_of(*p, log);
    if (log.size) memcpy(to, log.c_str(), log.size + 1);
    return result;
}

EXPORT hiprtcResult hiprtcGetCodeSize(Program* p, size_t* size) {
    if (!p || !p->succeeded) return HIPRTC_ERROR_INVALID_PROGRAM;
    if (!size) return HIPRTC_ERROR_INVALID_INPUT;
    return translate(nvrtc.nvrtcGetCUBINSize(p->native, size));
}

EXPORT hiprtcResult hiprtcGetCode(Program* p, char* code) {
    if (!p || !p->succeeded) return HIPRTC_ERROR_INVALID_PROGRAM;
    if (!code) return HIPRTC_ERROR_INVALID_INPUT;
    return translate(nvrtc.nvrtcGetCUBIN(p->native, code));
}

// Only a program compiled with -fgpu-rdc has bitcode, and none is here.
EXPORT hiprtcResult hiprtcGetBitcodeSize(Program*, size_t*) { return HIPRTC_ERROR_INVALID_PROGRAM; }
EXPORT hiprtcResult hiprtcGetBitcode(Program*, char*) { return HIPRTC_ERROR_INVALID_PROGRAM; }
