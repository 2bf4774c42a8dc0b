// Where a thread is: threadIdx and its like, and the builtins under them.
#pragma once

#define SIM_COORDINATE(name, member)                                        \
    struct sim_##member##_t {                                               \
        unsigned get_x() const { return sim_self()->member.x; }             \
        unsigned get_y() const { return sim_self()->member.y; }             \
        unsigned get_z() const { return sim_self()->member.z; }             \
        __declspec(property(get = get_x)) unsigned x;                       \
        __declspec(property(get = get_y)) unsigned y;                       \
        __declspec(property(get = get_z)) unsigned z;                       \
        operator dim3() const { return dim3(get_x(), get_y(), get_z()); }   \
    };                                                                      \
    static constexpr sim_##member##_t name{};
SIM_COORDINATE(threadIdx, thread_idx)
SIM_COORDINATE(blockIdx, block_idx)
SIM_COORDINATE(blockDim, block_dim)
SIM_COORDINATE(gridDim, grid_dim)
#undef SIM_COORDINATE

// Not a constant expression, as in HIP 7.
static constexpr struct sim_warp_size {
    operator int() const { return SIM_WAVE; }
} warpSize{};

SIM_FN unsigned __lane_id() { return sim_self()->lane; }

SIM_FN unsigned __builtin_amdgcn_workitem_id_x() { return threadIdx.x; }
SIM_FN unsigned __builtin_amdgcn_workitem_id_y() { return threadIdx.y; }
SIM_FN unsigned __builtin_amdgcn_workitem_id_z() { return threadIdx.z; }
SIM_FN unsigned __builtin_amdgcn_workgroup_id_x() { return blockIdx.x; }
SIM_FN unsigned __builtin_amdgcn_workgroup_id_y() { return blockIdx.y; }
SIM_FN unsigned __builtin_amdgcn_workgroup_id_z() { return blockIdx.z; }
SIM_FN unsigned __builtin_amdgcn_workgroup_size_x() { return blockDim.x; }
SIM_FN unsigned __builtin_amdgcn_workgroup_size_y() { return blockDim.y; }
SIM_FN unsigned __builtin_amdgcn_workgroup_size_z() { return blockDim.z; }
SIM_FN unsigned __builtin_amdgcn_grid_size_x() { return gridDim.x * blockDim.x; }
SIM_FN unsigned __builtin_amdgcn_grid_size_y() { return gridDim.y * blockDim.y; }
SIM_FN unsigned __builtin_amdgcn_grid_size_z() { return gridDim.z * blockDim.z; }
SIM_FN unsigned __builtin_amdgcn_wavefrontsize() { return SIM_WAVE; }
SIM_FN unsigned __builtin_amdgcn_mbcnt_lo(unsigned mask, unsigned add) {
    unsigned lane = sim_self()->lane;
    return add + __builtin_popcount(lane < 32 ? mask & ((1u << lane) - 1) : mask);
}
SIM_FN unsigned __builtin_amdgcn_mbcnt_hi(unsigned mask, unsigned add) {
    unsigned lane = sim_self()->lane;
    return add + (lane < 32 ? 0 : __builtin_popcount(mask & ((1u << (lane - 32)) - 1)));
}
