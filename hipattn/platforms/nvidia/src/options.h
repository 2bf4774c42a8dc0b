// hiprtc's options, as NVRTC's.
#pragma once

#include "../../abi/text.h"

struct Options {
    List<Text> nvrtc;
    Text arch;                    // "sm_90"
    unsigned max_threads = 1024;  // of a kernel without __launch_bounds__
};

// What only AMD's code generator or clang's diagnostics know: no effect on what a kernel computes.
static bool has_no_effect(const char* o) {
    static const char* const prefixes[] = {
        "-mcumode", "-mno-cumode", "-munsafe-fp-atomics", "-mno-unsafe-fp-atomics", "-mtgsplit", "-mno-tgsplit",
        "-mcode-object-version=", "-fgpu-inline-threshold", "-amdgpu-", "-W", "-pedantic", "-O"};
    for (const char* prefix : prefixes)
        if (starts_with(o, prefix)) return true;
    static const char* const names[] = {"-fno-gpu-rdc", "-nogpulib", "-nogpuinc", "-v", "-fno-fast-math", "-g"};
    for (const char* name : names)
        if (!strcmp(o, name)) return true;
    return false;
}

// Fills `options`; on failure `log` says why.
static bool parse_options(int count, const char* const* given, Options& options, Text& log) {
    bool has_standard = false;
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
            options.arch = Text(value);
        } else if (!strcmp(o, "--offload-arch") || !strcmp(o, "--gpu-architecture") || !strcmp(o, "-arch")) {
            if (!(value = next())) return false;
            options.arch = Text(value);
        } else if ((value = option_value(o, "-std")) || (value = option_value(o, "--std"))) {
            options.nvrtc.add(Text("--std=").add(starts_with(value, "gnu") ? Text("c").add(value + 3) : Text(value)));
            has_standard = true;
        } else if (starts_with(o, "-D") || starts_with(o, "-U") || starts_with(o, "-I")) {
            value = o[2] ? o + 2 : next();
            if (!value) return false;
            options.nvrtc.add(Text().add(o, 2).add(value));
        } else if ((value = option_value(o, "--define-macro"))) {
            options.nvrtc.add(Text("-D").add(value));
        } else if ((value = option_value(o, "--include-path"))) {
            options.nvrtc.add(Text("-I").add(value));
        } else if (!strcmp(o, "-include")) {
            if (!(value = next())) return false;
            options.nvrtc.add(Text("--pre-include=").add(value));
        } else if (!strcmp(o, "-ffast-math") || !strcmp(o, "-Ofast")) {
            options.nvrtc.add("--use_fast_math");
        } else if ((value = option_value(o, "-ffp-contract"))) {
            options.nvrtc.add(strcmp(value, "off") ? "--fmad=true" : "--fmad=false");
        } else if ((value = option_value(o, "--gpu-max-threads-per-block"))) {
            options.max_threads = static_cast<unsigned>(strtoul(value, nullptr, 10));
        } else if (!strcmp(o, "-w")) {
            options.nvrtc.add("--disable-warnings");
        } else if (!strcmp(o, "-mllvm")) {
            if (!next()) return false;
        } else if (!has_no_effect(o)) {
            log.format("error: unknown argument: '%s'\n", o);
            return false;
        }
    }
    if (options.arch.size && !starts_with(options.arch.c_str(), "sm_")) {
        log.format("error: unsupported GPU architecture for the nvidia platform: %s\n", options.arch.c_str());
        return false;
    }
    if (!has_standard) options.nvrtc.add("--std=c++17");
    return true;
}
