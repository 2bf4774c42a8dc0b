// Cross-lane operations by HIP's names. All lanes of the wave take part in a shuffle or a vote: CUDA names the lanes
// that do, and HIP's operations say nothing of them.
#pragma once

constexpr unsigned hip_all_lanes = 0xffffffffu;

template <typename T>
__device__ inline T __shfl(T value, int lane, int width = 32) {
    return __shfl_sync(hip_all_lanes, value, lane, width);
}
template <typename T>
__device__ inline T __shfl_up(T value, unsigned distance, int width = 32) {
    return __shfl_up_sync(hip_all_lanes, value, distance, width);
}
template <typename T>
__device__ inline T __shfl_down(T value, unsigned distance, int width = 32) {
    return __shfl_down_sync(hip_all_lanes, value, distance, width);
}
template <typename T>
__device__ inline T __shfl_xor(T value, int mask, int width = 32) {
    return __shfl_xor_sync(hip_all_lanes, value, mask, width);
}

// CUDA has the names of the votes, for GPUs before those that hipattn takes. A ballot has a bit a lane, as wide as
// AMD's widest wave.
__device__ inline unsigned long long hip_ballot(int predicate) { return __ballot_sync(hip_all_lanes, predicate); }
#define __ballot(predicate) hip_ballot(predicate)
#define __any(predicate) __any_sync(hip_all_lanes, predicate)
#define __all(predicate) __all_sync(hip_all_lanes, predicate)

__device__ inline unsigned __lane_id() {
    unsigned lane;
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}
