// Code objects as bytes: what can be read from the ELF file itself.
#pragma once

#include <elf.h>

#include "../../abi/base.h"

// Copies an image, whose size its caller does not give, to a file; false when it is not a whole shared library.
bool image_copy(int file, const void* image);

// A copied image, mapped. Null when that fails.
const char* image_map(int file, size_t* size);

// Calls see(name, bytes) for each thread-local symbol.
template <class See>
void image_thread_locals(const char* image, See see) {
    auto& header = *reinterpret_cast<const Elf64_Ehdr*>(image);
    auto sections = reinterpret_cast<const Elf64_Shdr*>(image + header.e_shoff);
    for (unsigned i = 0; i < header.e_shnum; ++i) {
        if (sections[i].sh_type != SHT_SYMTAB || sections[i].sh_link >= header.e_shnum) continue;
        auto symbols = reinterpret_cast<const Elf64_Sym*>(image + sections[i].sh_offset);
        const char* names = image + sections[sections[i].sh_link].sh_offset;
        for (size_t s = 0; s < sections[i].sh_size / sizeof *symbols; ++s)
            if (ELF64_ST_TYPE(symbols[s].st_info) == STT_TLS && symbols[s].st_shndx != SHN_UNDEF)
                see(names + symbols[s].st_name, static_cast<size_t>(symbols[s].st_size));
    }
}
