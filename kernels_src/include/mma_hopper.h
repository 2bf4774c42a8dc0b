// The layer over wgmma: NVIDIA GPUs of compute capability 9.0. Four waves of 16 rows each multiply together; q, k and v
// are read from shared memory by the products themselves.
#pragma once

#include "tile_async.h"
#include "fragments_nvidia_16.h"
#include "wgmma.h"

static_assert(WAVE_ROWS == 16 && WAVES % 4 == 0, "four waves multiply 64 rows together");
static_assert((BLOCK_N & (BLOCK_N - 1)) == 0 && BLOCK_N >= 16 && BLOCK_N <= 128);

constexpr int CHUNK = 64;  // columns of a row of 128 bytes

template <int ROWS, int WIDTH>
struct SwizzledRows {
    static constexpr int COLUMNS = WIDTH, ELEMENTS = (WIDTH + CHUNK - 1) / CHUNK * ROWS * CHUNK, PERIOD = 8;
    __device__ static int offset(int row, int column) {
        const int piece = column % CHUNK / 8;
        return (column / CHUNK * ROWS + row) * CHUNK + (piece ^ row % 8) * 8 + column % 8;
    }
    // What was written is to be read by the products.
    __device__ static void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
};

#define ASYNCHRONOUS_PRODUCTS
using KTile = AsyncTile<HEAD_DIM, SwizzledRows<BLOCK_N, QK_COLUMNS>, 2>;
using VTile = AsyncTile<VALUE_DIM, SwizzledRows<BLOCK_N, V_COLUMNS>, 2>;

struct Queries {
    using Layout = SwizzledRows<BLOCK_M, QK_COLUMNS>;
    static constexpr int BYTES = Layout::ELEMENTS * sizeof(scalar);
    unsigned address;  // of the first of the 64 rows

    template <class Rows>
    __device__ void load(const Rows& rows, int count, bool negate, char* memory) {
        scalar* lds = reinterpret_cast<scalar*>(memory);
        const int first = wave_index() * WAVE_ROWS;
        Copy<HEAD_DIM, Layout, WAVE_ROWS, WAVE_SIZE, Rows>(rows, count, lane_index())(lds, first, first);
        if (negate) {
            wait_for_copies();
            __syncwarp();
            for (int i = lane_index(); i < WAVE_ROWS * QK_COLUMNS; i += WAVE_SIZE) {
                scalar& x = lds[Layout::offset(first + i / QK_COLUMNS, i % QK_COLUMNS)];
                x = -x;
            }
        }
        // They arrive with the first keys.
        address = shared_address(lds) + wave_index() / 4 * 4 * WAVE_ROWS * CHUNK * static_cast<int>(sizeof(scalar));
    }
};

// Where the 16 columns from `step` * 16 on begin, in rows that are multiplied along.
template <int ROWS>
__device__ inline unsigned along(unsigned address, int step) {
    const int column = step * 16;
    return address + (column / CHUNK * ROWS * CHUNK + column % CHUNK) * static_cast<int>(sizeof(scalar));
}

// The machine's compiler sees nothing of the products' being asynchronous, and would move what should go on beside
// them behind the wait. A vote on a number stays where it is, and what the number needs before it.
__device__ inline void stay_before(float number) {
    if (__any(number < 0.0f)) __builtin_trap();  // it never is
}

// Until the products before the last PENDING are done: what is read of these accumulators is what they gave.
template <int PENDING = 0, int WIDTH>
__device__ inline void settle(Accumulators<WIDTH>& sums) {
    wait_for_products<PENDING>();
#pragma unroll
    for (int t = 0; t < WIDTH / 8; ++t)
#pragma unroll
        for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(sums.at[0][t][e])::"memory");
}

__device__ inline void begin_qk(Scores& scores, const Queries& q, const KTile& k) {
    const unsigned keys = shared_address(k.present());
    begin_products();
#pragma unroll
    for (int s = 0; s < QK_COLUMNS / 16; ++s)
        Wgmma<BLOCK_N, scalar>::from_shared(scores.at[0], descriptor(along<BLOCK_M>(q.address, s), 0),
                                            descriptor(along<BLOCK_N>(keys, s), 0), s > 0);
    end_products();
}

struct Weights {
    unsigned at[BLOCK_N / 16][4];
    __device__ void pack(const Scores& scores) {
#pragma unroll
        for (int s = 0; s < BLOCK_N / 16; ++s) pack_weights(at[s], scores, 0, s);
    }
};

// out += p v over 16 keys, for the columns from FIRST on.
template <int FIRST>
__device__ inline void multiply_columns(Output& out, const unsigned (&p)[4], unsigned values) {
    if constexpr (FIRST < V_COLUMNS) {
        constexpr int LEFT = V_COLUMNS - FIRST, N = LEFT >= 128 ? 128 : LEFT >= 64 ? 64 : LEFT >= 32 ? 32 : 16;
        constexpr unsigned CHUNK_BYTES = BLOCK_N * CHUNK * sizeof(scalar);
        const unsigned at = values + FIRST / CHUNK * CHUNK_BYTES + FIRST % CHUNK * sizeof(scalar);
        Wgmma<N, scalar>::from_registers(out.at[0] + FIRST / 8, p, descriptor(at, CHUNK_BYTES));
        multiply_columns<FIRST + N>(out, p, values);
    }
}

__device__ inline void begin_pv(Output& out, const Weights& weights, const VTile& v) {
    const unsigned values = shared_address(v.present());
    begin_products();
#pragma unroll
    for (int s = 0; s < BLOCK_N / 16; ++s)
        multiply_columns<0>(out, weights.at[s], values + s * 16 * CHUNK * static_cast<int>(sizeof(scalar)));
    end_products();
}
