// From a kernel to its entry in the sim_module table: argument sizes, and a thunk that unpacks the argument block.
#pragma once

template <class T> SIM_FN T sim_unpack(const char* arguments, unsigned offset) {
    alignas(T) char copy[sizeof(T)];
    __builtin_memcpy(copy, arguments + offset, sizeof(T));
    return *(T*)copy;
}

// HIP's layout of an argument block: each argument at its natural alignment.
template <unsigned count> struct sim_offsets {
    unsigned at[count + 1] = {};
    constexpr sim_offsets(const sim_argument* arguments) {
        unsigned end = 0;
        for (unsigned i = 0; i < count; ++i) {
            at[i] = (end + arguments[i].align - 1) / arguments[i].align * arguments[i].align;
            end = at[i] + arguments[i].size;
        }
    }
};

template <unsigned... i> struct sim_indices {};
template <class, unsigned... i> using sim_index_sequence = sim_indices<i...>;

template <auto what> struct sim_entry {  // not a kernel: a variable's name expression
    static constexpr auto address = what;
    static constexpr sim_kernel describe(unsigned) { return {}; }
};

template <class... A, void (*kernel)(A...)> struct sim_entry<kernel> {
    static constexpr auto address = kernel;
    static constexpr unsigned count = sizeof...(A);
    static constexpr sim_argument arguments[count + 1] = {{sizeof(A), alignof(A)}..., {0, 1}};

    static constexpr sim_offsets<count> offsets{arguments};

    template <unsigned... i> SIM_FN void call(const char* block, sim_indices<i...>) {
        [[clang::noinline]] kernel(sim_unpack<A>(block, offsets.at[i])...);
    }
    static void invoke(const char* block) { call(block, __make_integer_seq<sim_index_sequence, unsigned, count>()); }
    static constexpr sim_kernel describe(unsigned max_threads) {
        return {nullptr, invoke, arguments, count, max_threads};
    }
};

// The dynamic linker knows the lowered names: they are taken from it when the library is loaded.
struct sim_dl_info {
    const char* file;
    void* base;
    const char* name;
    void* address;
};
extern "C" int dladdr(const void*, sim_dl_info*);

SIM_FN unsigned sim_name_kernels(sim_kernel* kernels, const void* const* addresses, unsigned count) {
    unsigned kept = 0;
    for (unsigned i = 0; i < count; ++i) {
        sim_dl_info info;
        if (!kernels[i].invoke || !dladdr(addresses[i], &info)) continue;
        kernels[kept] = kernels[i];
        kernels[kept++].name = info.name;
    }
    return kept;
}

// `extern __shared__ T name[];` becomes `T (&name)[] = sim_dynamic_shared;`.
static constexpr struct sim_dynamic_shared_t {
    template <class T> operator T&() const { return *(T*)sim_dynamic_lds(); }
} sim_dynamic_shared{};
