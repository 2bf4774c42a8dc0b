// The layer over mma.sync m16n8k16: NVIDIA GPUs of compute capability 8.0 on.
//
// q, k and v lie in shared memory as rows, each followed by 16 bytes of nothing: so the eight rows that an ldmatrix
// reads at once lie in different banks. With one stage of keys, q stays in registers where there are enough.
#pragma once

#include "tile_async.h"
#include "fragments_nvidia_16.h"

template <int ROWS, int WIDTH>
struct PaddedRows {
    static constexpr int COLUMNS = WIDTH, ROW = WIDTH + 8, ELEMENTS = ROWS * ROW, PERIOD = 1;
    __device__ static int offset(int row, int column) { return row * ROW + column; }
    __device__ static void publish() {}
};

#if defined(CACHE_E4M3) && defined(RING)
#error "what is converted has one stage"
#elif defined(CACHE_E4M3)
template <int DIM, class Layout>
using Tile = ConvertedTile<DIM, Layout>;
#elif defined(RING)
// As many as LDS_BYTES leaves room for beside q.
constexpr int FREE = LDS_BYTES / sizeof(scalar) - PaddedRows<BLOCK_M, QK_COLUMNS>::ELEMENTS;
constexpr int STAGES = FREE / (PaddedRows<BLOCK_N, QK_COLUMNS>::ELEMENTS + PaddedRows<BLOCK_N, V_COLUMNS>::ELEMENTS);
template <int DIM, class Layout>
using Tile = RingTile<DIM, Layout, STAGES>;
#else
template <int DIM, class Layout>
using Tile = AsyncTile<DIM, Layout>;
#endif
using KTile = Tile<HEAD_DIM, PaddedRows<BLOCK_N, QK_COLUMNS>>;
using VTile = Tile<VALUE_DIM, PaddedRows<BLOCK_N, V_COLUMNS>>;

struct Queries {
    using Layout = PaddedRows<BLOCK_M, QK_COLUMNS>;
    static constexpr int BYTES = Layout::ELEMENTS * sizeof(scalar);
    static constexpr int TILES = WAVE_ROWS / 16, STEPS = QK_COLUMNS / 16;
#ifdef RING
    static constexpr bool WITH_KEYS = true;  // they arrive with the first, and stay where they are
#else
    static constexpr bool WITH_KEYS = false;
#endif
    static constexpr bool HELD = !WITH_KEYS && TILES * STEPS <= 8;
    unsigned held[HELD ? TILES : 1][HELD ? STEPS : 1][4];
    unsigned address;

    template <class Rows>
    __device__ void load(const Rows& rows, int count, bool negate, char* memory) {
        scalar* lds = reinterpret_cast<scalar*>(memory);
        const int first = wave_index() * WAVE_ROWS;
        Copy<HEAD_DIM, Layout, WAVE_ROWS, WAVE_SIZE, Rows>(rows, count, lane_index())(lds, first, first);
        if (!WITH_KEYS || negate) {
            wait_for_copies();
            __syncwarp();
        }
        if (negate) {
            auto words = reinterpret_cast<unsigned*>(lds + Layout::offset(first, 0));
            for (int i = lane_index(); i < WAVE_ROWS * Layout::ROW / 2; i += WAVE_SIZE) words[i] ^= 0x80008000u;
            __syncwarp();
        }
        address = shared_address(lds + Layout::offset(first + lane_index() % 16, lane_index() / 16 * 8));
        if constexpr (HELD)
#pragma unroll
            for (int m = 0; m < TILES; ++m)
#pragma unroll
                for (int s = 0; s < STEPS; ++s) load_matrices(held[m][s], at(m, s));
    }
    __device__ void get(unsigned (&a)[4], int m, int s) const {
        if constexpr (HELD) {
#pragma unroll
            for (int e = 0; e < 4; ++e) a[e] = held[m][s][e];
        } else {
            load_matrices(a, at(m, s));
        }
    }

private:
    __device__ unsigned at(int m, int s) const {
        return address + (Layout::offset(m * 16, s * 16)) * static_cast<int>(sizeof(scalar));
    }
};

__device__ inline void multiply_qk(Scores& scores, const Queries& q, const KTile& k) {
    using Layout = PaddedRows<BLOCK_N, QK_COLUMNS>;
    const int lane = lane_index();
    const unsigned address = shared_address(k.present() + Layout::offset(lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8));
    scores.clear();
#pragma unroll
    for (int s = 0; s < Queries::STEPS; ++s) {
        unsigned a[Queries::TILES][4];
#pragma unroll
        for (int m = 0; m < Queries::TILES; ++m) q.get(a[m], m, s);
#pragma unroll
        for (int t = 0; t < BLOCK_N / 16; ++t) {
            unsigned keys[4];
            load_matrices(keys, address + Layout::offset(t * 16, s * 16) * static_cast<int>(sizeof(scalar)));
#pragma unroll
            for (int m = 0; m < Queries::TILES; ++m) {
                multiply(scores.at[m][t * 2], a[m], keys[0], keys[1]);
                multiply(scores.at[m][t * 2 + 1], a[m], keys[2], keys[3]);
            }
        }
    }
}

__device__ inline void multiply_pv(Output& out, const Scores& weights, const VTile& v) {
    using Layout = PaddedRows<BLOCK_N, V_COLUMNS>;
    const int lane = lane_index();
    const unsigned address = shared_address(v.present() + Layout::offset(lane % 16, lane / 16 * 8));
#pragma unroll
    for (int s = 0; s < BLOCK_N / 16; ++s) {
        unsigned p[Queries::TILES][4];
#pragma unroll
        for (int m = 0; m < Queries::TILES; ++m) pack_weights(p[m], weights, m, s);
#pragma unroll
        for (int t = 0; t < V_COLUMNS / 16; ++t) {
            unsigned values[4];
            load_matrices_transposed(values,
                                     address + Layout::offset(s * 16, t * 16) * static_cast<int>(sizeof(scalar)));
#pragma unroll
            for (int m = 0; m < Queries::TILES; ++m) {
                multiply(out.at[m][t * 2], p[m], values[0], values[1]);
                multiply(out.at[m][t * 2 + 1], p[m], values[2], values[3]);
            }
        }
    }
}
