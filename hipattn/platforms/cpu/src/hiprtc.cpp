// libhiprtc of the cpu platform: HIP's runtime compiler over a host C++ compiler. A program goes through the
// preprocessor, is rewritten (hiprtc/source.h), and is compiled against the device prelude into a shared library,
// which is the code object.
#include <dlfcn.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "../../abi/hiprtc_abi.h"
#include "hiprtc/elf.h"
#include "hiprtc/options.h"
#include "hiprtc/precompiled.h"
#include "hiprtc/process.h"
#include "hiprtc/source.h"
#include "sim_abi.h"

extern "C" int sim_should_fail(const char* name);

struct Program {
    Text source, name, log, code;
    List<Text> header_names, header_texts;
    List<Text> expressions, lowered;
};

namespace {

const char* const PREPROCESS_FLAGS[] = {"-E", "-x", "c++", "-UNDEBUG", "-nostdinc", "-nostdinc++", "-imacros"};
// Floats are computed as the kernel says, with fused multiply-add as HIP's default. An index outside an array of
// known size traps.
const char* const COMPILE_FLAGS[] = {
    "-fPIC", "-nostdinc", "-nostdinc++", "-fno-exceptions", "-fno-rtti", "-fdeclspec",
    // Cross-lane operations keep their place in the control flow; a frame larger than the guard page touches it.
    "-fconvergent-functions", "-fstack-clash-protection",
    "-fno-math-errno", "-ffp-contract=fast-honor-pragmas", "-fno-sanitize=all", "-fsanitize=array-bounds",
    "-fsanitize-trap=array-bounds", "-Wno-ignored-attributes", "-Wno-unknown-attributes", "-Wno-psabi"};
const char* const LINK_FLAGS[] = {"-shared", "-nostdlib++", "-Wl,-Bsymbolic", "-lm"};

#if defined(__x86_64__)
bool cpu_is_v3() {
    unsigned a, b, c, d, low, high;
    const unsigned basic = bit_FMA | bit_MOVBE | bit_OSXSAVE | bit_AVX | bit_F16C, leaf7 = bit_BMI | bit_AVX2 | bit_BMI2;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & basic) != basic) return false;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));  // the system saves the wide registers
    if ((low & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & leaf7) != leaf7) return false;
    return __get_cpuid(0x80000001, &a, &b, &c, &d) && (c & bit_LZCNT);
}
#endif

// What the host's CPU is good for. It says so itself: zig's runtime lacks what __builtin_cpu_supports reads.
void add_target(const char* compiler, List<Text>& command) {
#if defined(__x86_64__)
    if (cpu_is_v3()) command.add(strstr(compiler, "zig") ? "-march=x86_64_v3" : "-march=x86-64-v3");
    else command.add(strstr(compiler, "zig") ? "-march=x86_64" : "-march=x86-64");
#else
    (void)compiler, (void)command;
#endif
}

void add_all(List<Text>& to, const List<Text>& from) {
    for (const Text& t : from) to.add(t);
}

// The log as AMD's compiler words it, and with nothing of the temporary folder.
void tidy_log(Text& log, const Folder& folder, const char* arch) {
    log.erase((folder / "include/").c_str());
    log.erase((folder / "").c_str());
    log.replace("unknown clang option: \"", "unknown argument: '");
    log.replace("\"\n", "'\n");
    log.replace(" generated.\n", Text(" generated when compiling for ").add(arch).add(".\n").c_str());
    // "call to 'f' declared with 'error' attribute: 'f' needs target feature x": the message is enough.
    const char reason[] = "declared with 'error' attribute: ";
    for (char* at; log.size && (at = strstr(log.data, reason));) {
        char* call = at;
        while (call > log.data && !starts_with(call, "call to '")) --call;
        log.remove(call - log.data, at + strlen(reason) - call);
    }
}

// file:line:col of a place in preprocessed text, as its line markers say.
Text position(const Text& text, const char* at) {
    const char* line = text.c_str();
    Text file("?");
    long number = 1;
    for (const char* s = line; s < at; ++s) {
        if (*s != '\n') continue;
        if (starts_with(line, "# ")) {
            char* name;
            number = strtol(line + 2, &name, 10);
            if (*name) file = Text().add(name + 2, strcspn(name + 2, "\""));
        } else {
            ++number;
        }
        line = s + 1;
    }
    return file.format(":%ld:%d", number, (int)(at - line) + 1);
}

// Takes the lowered names from the loaded library, and checks each kernel's static LDS.
bool inspect(Program& p, const Options& options, const Rewriter& rewriter, const Text& preprocessed, const char* library) {
    // Compiled kernels import the runtime's sim_* functions; hip-python loads the runtime privately.
    Dl_info runtime;
    if (dladdr(reinterpret_cast<void*>(&sim_should_fail), &runtime) && runtime.dli_fname)
        dlopen(runtime.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
    void* handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        p.log.format("error: %s\n", dlerror());
        return false;
    }
    auto* module = static_cast<sim_module_table*>(dlsym(handle, "sim_module"));
    auto* names = static_cast<const void* const*>(dlsym(handle, "sim_names"));
    for (size_t i = 0; i < p.expressions.count; ++i) {
        Dl_info info;
        p.lowered.add(dladdr(names[i], &info) && info.dli_sname ? info.dli_sname : "");
    }

    size_t total = 0;
    thread_local_symbols(p.code, [&](const char*, size_t size) { total += size; });
    bool fits = true;
    for (unsigned k = 0; total > options.arch->lds_limit && k < module->kernel_count; ++k) {
        size_t used = 0;
        Text own = local_prefix(module->kernels[k].name);
        thread_local_symbols(p.code, [&](const char* name, size_t size) {
            bool others = false;
            for (unsigned o = 0; o < module->kernel_count && !others; ++o)
                others = o != k && starts_with(name, local_prefix(module->kernels[o].name).c_str());
            if (!others || starts_with(name, own.c_str())) used += size;
        });
        if (used <= options.arch->lds_limit) continue;
        const char* where = k < rewriter.kernels.count ? rewriter.kernels[k].at : preprocessed.c_str();
        p.log.add(position(preprocessed, where)).format(": error: local memory (%zu) exceeds limit (%u) in '%s'\n", used,
                                                         options.arch->lds_limit, module->kernels[k].name);
        fits = false;
    }
    if (!fits) p.log.format("1 error generated when compiling for %s.\n", options.arch->name);
    dlclose(handle);
    return fits;
}

bool compile(Program& p, int count, const char* const* given) {
    Options options;
    for (size_t i = 0; i < p.expressions.count; ++i)
        for (size_t j = 0; j < i; ++j)
            if (p.expressions[i] == p.expressions[j]) {
                p.log.format("error: redefinition of the name expression '%s'\n", p.expressions[i].c_str());
                return false;
            }
    if (!parse_options(count, given, options, p.log)) return false;
    const char* compiler = getenv("HIPATTN_CPU_CXX_COMMAND");
    const char* device = getenv("HIPATTN_CPU_DEVICE_INCLUDE");
    if (!compiler || !*compiler || !device || !*device) {
        p.log.add("error: HIPATTN_CPU_CXX_COMMAND and HIPATTN_CPU_DEVICE_INCLUDE must name the compiler and the device headers\n");
        return false;
    }
    const char* temporary = getenv("TMPDIR");
    Folder folder(Text(temporary && *temporary ? temporary : "/tmp").add("/hiprtc-").c_str());
    if (!folder.path.size) {
        p.log.format("error: cannot make a temporary folder: %s\n", strerror(errno));
        return false;
    }
    Text source = Text("# 1 \"").add(p.name).add("\"\n").add(p.source).add("\n");
    bool written = write_file((folder / "source.hip").c_str(), source.c_str(), source.size);
    for (size_t i = 0; i < p.header_names.count; ++i) {
        Text path = (folder / "include/").add(p.header_names[i]);
        written = write_file(path.c_str(), p.header_texts[i].c_str(), p.header_texts[i].size) && written;
    }

    Text prelude = Text(device).add("/prelude.h");
    List<Text> first;
    split_command(compiler, first);
    if (!first.count) first.add("c++");
    List<Text> second;
    add_all(second, first);
    for (const char* o : PREPROCESS_FLAGS) first.add(o);
    first.add(prelude);
    first.add(Text("-I").add(folder / "include"));
    first.add(Text("-D__").add(options.arch->name).add("__=1"));
    add_all(first, options.preprocess);
    add_all(first, options.compile);
    first.add(folder / "source.hip");
    bool done = written && !run_command(first, folder, "source.i", "log", p.log);
    Text preprocessed;
    done = done && read_file((folder / "source.i").c_str(), preprocessed);
    if (done) {
        preprocessed.erase((folder / "include/").c_str());
        Rewriter rewriter(preprocessed);
        Text host = rewriter.run();
        host.add(module_table(rewriter, p.expressions, options.max_threads));
        done = write_file((folder / "kernel.cpp").c_str(), host.c_str(), host.size);

        for (const char* o : COMPILE_FLAGS) second.add(o);
        size_t fixed = second.count;
        add_target(compiler, second);
        second.add(Text("-D__").add(options.arch->name).add("__=1"));
        add_all(second, options.compile);
        // With options of the caller's there would be a header for each set of them.
        Text header = options.usual ? precompiled(second, second.count - fixed, prelude) : Text();
        Text log = p.log;
        auto run = [&](const char* include, const Text& what) {
            List<Text> whole;
            add_all(whole, second);
            for (const char* o : LINK_FLAGS) whole.add(o);
            whole.add(include);
            whole.add(what);
            whole.add(folder / "kernel.cpp");
            whole.add("-o");
            whole.add(folder / "kernel.so");
            p.log = log;
            return !run_command(whole, folder, "out", "log", p.log);
        };
        bool with_header = done && header.size && run("-include-pch", header);
        if (!with_header) done = done && run("-include", prelude);
        if (done && !with_header && header.size) unlink(header.c_str());  // it was damaged
        done = done &&
               read_file((folder / "kernel.so").c_str(), p.code) &&
               inspect(p, options, rewriter, preprocessed, (folder / "kernel.so").c_str());
    }
    tidy_log(p.log, folder, options.arch->name);
    return done;
}

}  // namespace

#define ENTER(call) \
    if (sim_should_fail(#call)) return HIPRTC_ERROR_INTERNAL_ERROR

EXPORT const char* hiprtcGetErrorString(hiprtcResult result) { return hiprtc_result_name(result); }

EXPORT hiprtcResult hiprtcVersion(int* major, int* minor) {
    ENTER(hiprtcVersion);
    if (!major || !minor) return HIPRTC_ERROR_INVALID_INPUT;
    *major = 9;
    *minor = 0;
    return HIPRTC_SUCCESS;
}

EXPORT hiprtcResult hiprtcCreateProgram(Program** made, const char* source, const char* name, int headers,
                                        const char* const* texts, const char* const* names) {
    ENTER(hiprtcCreateProgram);
    if (!made || !source || !*source || headers < 0 || (headers && (!texts || !names))) return HIPRTC_ERROR_INVALID_INPUT;
    auto* p = make<Program>();
    p->source.add(source);
    p->name.add(name && *name ? name : "CompileSource");
    for (int i = 0; i < headers; ++i) {
        p->header_texts.add(texts[i]);
        p->header_names.add(names[i]);
    }
    *made = p;
    return HIPRTC_SUCCESS;
}

EXPORT hiprtcResult hiprtcDestroyProgram(Program** program) {
    ENTER(hiprtcDestroyProgram);
    if (!program || !*program) return HIPRTC_ERROR_INVALID_INPUT;
    (*program)->~Program();
    free(*program);
    *program = nullptr;
    return HIPRTC_SUCCESS;
}

EXPORT hiprtcResult hiprtcAddNameExpression(Program* p, const char* expression) {
    ENTER(hiprtcAddNameExpression);
    if (!p) return HIPRTC_ERROR_INVALID_PROGRAM;
    if (!expression || !*expression) return HIPRTC_ERROR_INVALID_INPUT;
    p->expressions.add(expression);  // after the compilation, too: it then has no lowered name
    return HIPRTC_SUCCESS;
}

EXPORT hiprtcResult hiprtcCompileProgram(Program* p, int count, const char* const* options) {
    ENTER(hiprtcCompileProgram);
    if (!p) return HIPRTC_ERROR_INVALID_PROGRAM;
    if (count < 0 || (count && !options)) return HIPRTC_ERROR_INVALID_INPUT;
    if (p->code.size) {  // AMD's links what the first compilation made to what the second does
        p->log.add("error: duplicate symbol: the program is compiled already\n");
        return HIPRTC_ERROR_COMPILATION;
    }
    p->lowered.clear();
    if (compile(*p, count, options)) return HIPRTC_SUCCESS;
    p->code = Text();
    return HIPRTC_ERROR_COMPILATION;
}

EXPORT hiprtcResult hiprtcGetLoweredName(Program* p, const char* expression, const char** lowered) {
    ENTER(hiprtcGetLoweredName);
    if (!p) return HIPRTC_ERROR_INVALID_PROGRAM;
    if (!expression || !lowered) return HIPRTC_ERROR_INVALID_INPUT;
    for (size_t i = 0; i < p->lowered.count; ++i)
        if (p->expressions[i] == expression && p->lowered[i].size) {
            *lowered = p->lowered[i].c_str();
            return HIPRTC_SUCCESS;
        }
    return HIPRTC_ERROR_NAME_EXPRESSION_NOT_VALID;
}

// There is no final zero, in the size or in the log, as in AMD's.
EXPORT hiprtcResult hiprtcGetProgramLogSize(Program* p, size_t* size) {
    ENTER(hiprtcGetProgramLogSize);
    if (!p) return HIPRTC_ERROR_INVALID_PROGRAM;
    if (!size) return HIPRTC_ERROR_INVALID_INPUT;
    *size = p->log.size;
    return HIPRTC_SUCCESS;
}

EXPORT hiprtcResult hiprtcGetProgramLog(Program* p, char* log) {
    ENTER(hiprtcGetProgramLog);
    if (!p) return HIPRTC_ERROR_INVALID_PROGRAM;
    if (!log) return HIPRTC_ERROR_INVALID_INPUT;
    if (p->log.size) memcpy(log, p->log.data, p->log.size);
    return HIPRTC_SUCCESS;
}

// A program that did not compile has a code of 0 bytes.
EXPORT hiprtcResult hiprtcGetCodeSize(Program* p, size_t* size) {
    ENTER(hiprtcGetCodeSize);
    if (!p) return HIPRTC_ERROR_INVALID_PROGRAM;
    if (!size) return HIPRTC_ERROR_INVALID_INPUT;
    *size = p->code.size;
    return HIPRTC_SUCCESS;
}

EXPORT hiprtcResult hiprtcGetCode(Program* p, char* code) {
    ENTER(hiprtcGetCode);
    if (!p) return HIPRTC_ERROR_INVALID_PROGRAM;
    if (!code) return HIPRTC_ERROR_INVALID_INPUT;
    if (p->code.size) memcpy(code, p->code.data, p->code.size);
    return HIPRTC_SUCCESS;
}

// Only a program compiled with -fgpu-rdc has bitcode, and none is here.
EXPORT hiprtcResult hiprtcGetBitcodeSize(Program*, size_t*) {
    ENTER(hiprtcGetBitcodeSize);
    return HIPRTC_ERROR_INVALID_PROGRAM;
}
EXPORT hiprtcResult hiprtcGetBitcode(Program*, char*) {
    ENTER(hiprtcGetBitcode);
    return HIPRTC_ERROR_INVALID_PROGRAM;
}
