// The device prelude as a precompiled header, which saves a small kernel two thirds of its compilation. It lies beside
// this library, in a folder whose name is a digest of the prelude among others.
#pragma once

#include <ctype.h>
#include <dlfcn.h>

#include "process.h"

// Returns the path of the header for a compiler's command, which ends with `options`; makes it unless it is there.
// Empty where it cannot be made: the prelude itself does.
static Text precompiled(const List<Text>& command, size_t options, const Text& prelude) {
    Dl_info library;
    if (!dladdr(reinterpret_cast<void*>(&precompiled), &library) || !library.dli_fname) return {};
    const char* file = strrchr(library.dli_fname, '/');
    Text place = Text().add(library.dli_fname, file ? file + 1 - library.dli_fname : 0), name("prelude");
    for (size_t i = command.count - options; i < command.count; ++i) {
        name.add("-");
        for (const char* c = command[i].c_str(); *c; ++c)
            if (isalnum(*c)) name.add(c, 1);
    }
    Text made = Text(place).add(name).add(".pch");
    if (!access(made.c_str(), R_OK)) return made;

    Folder folder(Text(place).add("making-").c_str());
    if (!folder.path.size) return {};
    auto run = [&](const char* const* words, const Text& from, const Text& to) {
        List<Text> whole;
        Text log;
        for (const Text& word : command) whole.add(word);
        for (; *words; ++words) whole.add(*words);
        whole.add(from);
        whole.add("-o");
        whole.add(to);
        return !run_command(whole, folder, "out", "log", log);
    };
    // One text with its macros: nothing in the header is of a package, which the cache may outlive.
    const char* const join[] = {"-E", "-dD", "-x", "c++", nullptr};
    const char* const parse[] = {"-Xclang", "-fno-pch-timestamp", "-fpch-instantiate-templates", "-x", "c++-header", nullptr};
    Text text = folder / "text", header = folder / "header", kept = Text(place).add(name).add(".h");
    bool done = run(join, prelude, text) && !rename(text.c_str(), kept.c_str());
    done = done && run(parse, kept, header) && !rename(header.c_str(), made.c_str());
    return done ? made : Text();
}
