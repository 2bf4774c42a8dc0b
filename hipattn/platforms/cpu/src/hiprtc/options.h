// hiprtc's options: which arch to compile for, and what the host's compiler is told.
#pragma once

#include "../../../abi/text.h"

struct Arch {
    const char *name;
    unsigned lds_limit;  // bytes a workgroup
};
static const Arch ARCHES[] = {{"gfx90a", 65536}, {"gfx942", 65536}, {"gfx950", 163840}, {"gfx1100", 65536}, {"gfx1201", 65536}};

struct Options {
    const Arch* arch = nullptr;
    unsigned max_threads = 1024;  // of a kernel without __launch_bounds__
    List<Text> preprocess;        // macros and include paths: for the first pass only
    List<Text> compile;           // for both
    bool usual = false;           // these are a level and a standard
};

// "gfx942:sramecc+:xnack-" names gfx942; RDNA has no such features.
static const Arch* find_arch(const char* name) {
    size_t n = strcspn(name, ":");
    for (const Arch& arch : ARCHES)
        if (strlen(arch.name) == n && !strncmp(arch.name, name, n)) return name[n] && starts_with(name, "gfx1") ? nullptr : &arch;
    return nullptr;
}

// What only AMD's code generator knows: accepted, and without an effect on what a kernel computes here.
static bool is_amd_only(const char* o) {
    static const char* const names[] = {
        "-mcumode", "-mno-cumode", "-munsafe-fp-atomics", "-mno-unsafe-fp-atomics", "-mtgsplit", "-mno-tgsplit", "-msramecc",
        "-mno-sramecc", "-mxnack", "-mno-xnack", "-fno-gpu-rdc", "-fgpu-flush-denormals-to-zero",
        "-fno-gpu-flush-denormals-to-zero", "-fcuda-flush-denormals-to-zero", "-fgpu-inline-threshold", "-nogpulib", "-nogpuinc",
        "-fhip-new-launch-api", "-fgpu-approx-transcendentals", "-fno-gpu-approx-transcendentals", "-save-temps", "-v"};
    for (const char* name : names)
        if (!strcmp(o, name)) return true;
    return starts_with(o, "-mcode-object-version=") || starts_with(o, "-amdgpu-") || starts_with(o, "-fgpu-inline-threshold=");
}

// Fills `options`; on failure `log` says why, as AMD's compiler does.
static bool parse_options(int count, const char* const* given, Options& options, Text& log) {
    const char* arch = nullptr;
    const char* level = "-O2";
    const char* standard = "-std=gnu++17";
    for (int i = 0; i < count; ++i) {
        const char* o = given[i];
        const char* value;
        auto next = [&]() -> const char* {
            if (i + 1 < count) return given[++i];
            log.format("error: argument to '%s' is missing (expected 1 value)\n", o);
            return nullptr;
        };
        if (!*o) continue;
        if ((value = option_value(o, "--offload-arch")) || (value = option_value(o, "--gpu-architecture"))) {
            if (arch) {  // AMD's logs this and goes on, with the macros of one arch and the code of the other
                log.add("error: cannot specify -o when generating multiple output files\n");
                return false;
            }
            arch = value;
        } else if ((value = option_value(o, "-std")) || (value = option_value(o, "--std"))) {
            // The prelude is C++17, which takes what C++11 and C++14 do.
            bool old = strstr(value, "++11") || strstr(value, "++0x") || strstr(value, "++14") || strstr(value, "++1y");
            options.compile.add(old ? Text("-std=c++17") : Text("-std=").add(value));
            standard = nullptr;
        } else if (starts_with(o, "-D") || starts_with(o, "-U") || starts_with(o, "-I")) {
            options.preprocess.add(o);
            if (!o[2]) {
                if (!(value = next())) return false;
                options.preprocess.add(value);
            }
        } else if ((value = option_value(o, "--define-macro"))) {
            options.preprocess.add(Text("-D").add(value));
        } else if ((value = option_value(o, "--include-path"))) {
            options.preprocess.add(Text("-I").add(value));
        } else if (!strcmp(o, "-include") || !strcmp(o, "-imacros") || !strcmp(o, "-isystem")) {
            options.preprocess.add(o);
            if (!(value = next())) return false;
            options.preprocess.add(value);
        } else if (!strcmp(o, "-O") || (starts_with(o, "-O") && o[2] && strchr("0123456789sz", o[2]) && !o[3])) {
            // Less than -O2 gains nothing here, and ziglang would build its runtime anew for it.
            level = o[2] >= '3' && o[2] <= '9' ? "-O3" : "-O2";
        } else if (!strcmp(o, "-Ofast")) {
            level = "-O3";
            options.compile.add("-ffast-math");
        } else if ((value = option_value(o, "--gpu-max-threads-per-block"))) {
            options.max_threads = (unsigned)strtoul(value, nullptr, 10);
        } else if (!strcmp(o, "-mllvm")) {
            if (!next()) return false;
        } else if (!strcmp(o, "-fgpu-rdc")) {
            log.add("error: -fgpu-rdc is not supported by the simulated GPU\n");
            return false;
        } else if (!strcmp(o, "-mwavefrontsize64") || !strcmp(o, "-mno-wavefrontsize64")) {
            log.format("error: option '%s' is not supported by the simulated GPU: its wave size is the arch's default\n", o);
            return false;
        } else if (is_amd_only(o) || !strcmp(o, "-g") || !strcmp(o, "-ggdb")) {
        } else if (!strcmp(o, "-w") || starts_with(o, "-W") || starts_with(o, "-f") || !strcmp(o, "-pedantic")) {
            options.compile.add(o);  // the host's clang says what it does not know
        } else {
            log.format("error: unknown argument: '%s'\n", o);
            return false;
        }
    }

    Text fallback;
    if (!arch) {
        const char* listed = getenv("HIPATTN_CPU_ARCH");
        if (!listed || !*listed) listed = "gfx942";
        arch = fallback.add(listed, strcspn(listed, ", ")).c_str();
    }
    options.arch = find_arch(arch);
    if (!options.arch) {
        log.format("error: unsupported HIP gpu architecture: %s\n", arch);
        return false;
    }
    options.usual = options.compile.count == !standard;
    options.compile.add(level);
    if (standard) options.compile.add(standard);
    return true;
}
