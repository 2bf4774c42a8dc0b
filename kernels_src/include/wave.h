// Reductions over the lanes of a wave. WAVE_SIZE, 32 or 64, is rendered in front of the source.
#pragma once

static_assert(WAVE_SIZE == 32 || WAVE_SIZE == 64, "a wave has 32 or 64 lanes");

// Over each WIDTH neighbouring lanes; every lane gets the result, the same bits in each. All of these lanes must
// be active. fmaxf drops NaN: what must keep it is a sum.
template <int WIDTH = WAVE_SIZE>
__device__ inline float wave_max(float x) {
    static_assert(WIDTH <= WAVE_SIZE && (WIDTH & (WIDTH - 1)) == 0, "a group divides the wave in powers of two");
#pragma unroll
    for (int distance = WIDTH / 2; distance > 0; distance /= 2)
        x = fmaxf(x, __shfl_xor(x, distance, WAVE_SIZE));
    return x;
}

template <int WIDTH = WAVE_SIZE>
__device__ inline float wave_sum(float x) {
    static_assert(WIDTH <= WAVE_SIZE && (WIDTH & (WIDTH - 1)) == 0, "a group divides the wave in powers of two");
#pragma unroll
    for (int distance = WIDTH / 2; distance > 0; distance /= 2)
        x += __shfl_xor(x, distance, WAVE_SIZE);
    return x;
}
