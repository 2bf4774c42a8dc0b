// What a compiled kernel's symbol table says about LDS: its static LDS is thread-local storage.
#pragma once

#include <elf.h>

#include "../../../abi/text.h"


// Calls see(name, size) for every thread-local variable.
template <class F>
static void thread_local_symbols(const Text& image, F see) {
    if (image.size < sizeof(Elf64_Ehdr)) return;
    auto* file = reinterpret_cast<const Elf64_Ehdr*>(image.data);
    auto* sections = reinterpret_cast<const Elf64_Shdr*>(image.data + file->e_shoff);
    for (unsigned i = 0; i < file->e_shnum; ++i) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        auto* symbols = reinterpret_cast<const Elf64_Sym*>(image.data + sections[i].sh_offset);
        const char* names = image.data + sections[sections[i].sh_link].sh_offset;
        for (size_t s = 0; s < sections[i].sh_size / sizeof(Elf64_Sym); ++s)
            if (ELF64_ST_TYPE(symbols[s].st_info) == STT_TLS && symbols[s].st_shndx != SHN_UNDEF)
                see(names + symbols[s].st_name, (size_t)symbols[s].st_size);
    }
}

// The mangled prefix of a variable inside the function: "_ZZ4kernE" of kern, "_ZZ4kernPfE" of _Z4kernPf.
static Text local_prefix(const char* function) {
    Text prefix("_ZZ");
    if (starts_with(function, "_Z")) prefix.add(function + 2);
    else prefix.format("%zu%s", strlen(function), function);
    return prefix.add("E");
}
