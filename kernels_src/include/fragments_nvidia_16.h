// Sums and weights of NVIDIA's products of 16 bits. Two tiles of scores side by side, in 16 bits, are the left operand
// of the next product: the weights never leave their lane.
#pragma once

#include "fragments_nvidia.h"

struct Output : Accumulators<V_COLUMNS> {
    static constexpr int COLUMNS = EACH, RUN = 4;
    __device__ static int column(int c) { return place(c); }

    // Of each two tiles a lane gives its half of one to its neighbour: then it has four columns side by side.
    __device__ void regroup() {
        const bool odd = lane_index() % 2;
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int c = 0; c < EACH; c += 4)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const float first = get(r, c + e), second = get(r, c + 2 + e);
                    const float other = __shfl_xor(odd ? first : second, 1);
                    set(r, c + e, odd ? other : first);
                    set(r, c + 2 + e, odd ? second : other);
                }
    }
    // The column of element c, the first of four, after that.
    __device__ static int regrouped(int c) {
        const int lane = lane_index() % 4;
        return c / 4 * 16 + lane % 2 * 8 + lane / 2 * 4;
    }
};

// The weights of 16 keys, from `step` * 16 on, of 16 rows: a left operand.
__device__ inline void pack_weights(unsigned (&a)[4], const Scores& weights, int m, int step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const float(&tile)[4] = weights.at[m][step * 2 + half];
        a[half * 2] = pack(tile[0], tile[1]);
        a[half * 2 + 1] = pack(tile[2], tile[3]);
    }
}
