#include "image.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

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
static bool copy(int file, const void* image) {
    Elf64_Ehdr header;
    if (!write_all(file, static_cast<const char*>(image), sizeof header) ||
        pread(file, &header, sizeof header, 0) != sizeof header)
        return false;
    if (memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_type != ET_DYN ||
        header.e_shentsize != sizeof(Elf64_Shdr) || header.e_phentsize != sizeof(Elf64_Phdr) ||
        header.e_shoff < sizeof header || header.e_shoff > (1u << 30) || header.e_shstrndx >= header.e_shnum)
        return false;
    size_t size = header.e_shoff + header.e_shnum * sizeof(Elf64_Shdr);
    return write_all(file, static_cast<const char*>(image) + sizeof header, size - sizeof header);
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

bool image_copy(int file, const void* image) {
    if (!copy(file, image)) return false;
    size_t size;
    const char* mapped = image_map(file, &size);
    if (!mapped) return false;
    bool good = plausible(mapped, size);
    munmap(const_cast<char*>(mapped), size);
    return good;
}

const char* image_map(int file, size_t* size) {
    struct stat info;
    if (fstat(file, &info)) return nullptr;
    *size = static_cast<size_t>(info.st_size);
    void* mapped = mmap(nullptr, *size, PROT_READ, MAP_SHARED, file, 0);
    return mapped == MAP_FAILED ? nullptr : static_cast<const char*>(mapped);
}
