// flash_decode: out = softmax(score(scale * q @ k^T)) @ v for few queries of each of many sequences, over caches of
// keys and values of which each sequence fills its own length.
//
// Bound by memory: each key and value is to be read once. So the queries of all heads that read the same keys are rows
// of one block (GROUP heads), in the smallest tile that the matrix instruction has. And as these are fewer blocks than
// a chip can run, the keys of a sequence are split among `splits` of them (flash decoding: Dao, Haziza, Massa, Sizov
// 2023). Each writes what its part gives, and the logarithm of its total; the last of them makes one result of all. A
// sequence's parts depend on its length and on `splits` only.
//
// The walk over the keys, the scores and the softmax are those of flash_fwd, over the same layers. Where rows of k and
// v are, in one piece or in pages, KeyRows knows: key_rows.h or key_rows_paged.h, included in front of the layer.
#include "decode_place.h"

using Params = FlashDecodeParams;

#include "decode_merge.h"
#include "flash_attend.h"

// Of a row of the block, among [batch, heads, seq_q].
__device__ inline i64 row_number(const FlashDecodeParams& p, const Place& place, int row) {
    return (static_cast<i64>(place.b) * p.heads + place.h + place.head(row)) * place.seq_q + place.query(row);
}
__device__ inline scalar* out_row(const FlashDecodeParams& p, const Place& place, int row) {
    const i64 b = place.b, i = place.query(row), h = place.h + place.head(row);
    return static_cast<scalar*>(p.out) + b * p.out_batch + i * p.out_row + h * p.out_head;
}

__device__ inline void write(const FlashDecodeParams& p, const Place& place, Output& out, const State& state) {
    out.regroup();
#pragma unroll
    for (int r = 0; r < Scores::ROWS; ++r) {
        const int row = place.first_row + wave_index() * WAVE_ROWS + Scores::row(r);
        const float total = row_sum(state.total[r]);
        const float inverse = total == 0.0f ? 0.0f : place.v_scale() / (total * WEIGHT_SCALE);
        if (row >= place.rows() || (ROW_WAVES < WAVES && wave_index() >= ROW_WAVES)) continue;
        const float log2_sum = log2_total(total, state.shift[r]);
        const i64 number = row_number(p, place, row);
        if constexpr (SPLIT) {
            const i64 part = number * p.splits + place.split;
            if (leads_row()) static_cast<float*>(p.part_lse)[part] = log2_sum;
            write_row<true>(out, r, inverse, static_cast<float*>(p.parts) + part * VALUE_DIM);
        } else {
            write_row<(VECTOR >= Output::RUN)>(out, r, inverse, out_row(p, place, row));
            if constexpr (LSE)
                if (leads_row()) static_cast<float*>(p.lse)[number] = log2_sum * LN_2;
        }
    }
}

// Makes one result of all parts of the block's rows, where theirs are there.
__device__ inline void merge_parts(const FlashDecodeParams& p, const Place& place, int& flag) {
    if (!comes_last(static_cast<unsigned*>(p.tickets) + blockIdx.x, p.splits, flag)) return;
    const int end = min(place.first_row + BLOCK_M, place.rows());
    constexpr int SHARE = (GROUP + WAVES - 1) / WAVES, ROWS = SHARE < 4 ? SHARE : 4, PARTS = 16 / ROWS;  // at once
    for (int first = place.first_row + wave_index() * ROWS; first < end; first += WAVES * ROWS) {
        MergedRow rows[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const int row = min(first + r, end - 1);
            const i64 part = row_number(p, place, row) * p.splits;
            rows[r].parts = static_cast<const float*>(p.parts) + part * VALUE_DIM;
            rows[r].lse = static_cast<const float*>(p.part_lse) + part;
            rows[r].out = out_row(p, place, row);
        }
        if (PARTS > 4 && p.splits <= 4) merge<4>(rows, end - first, p.splits);
        else merge<PARTS>(rows, end - first, p.splits);
        if constexpr (LSE)
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
                if (lane_index() == 0 && first + r < end)
                    static_cast<float*>(p.lse)[row_number(p, place, first + r)] = rows[r].log2_sum * LN_2;
    }
}

extern "C" __global__ __launch_bounds__(WAVES * WAVE_SIZE, MIN_WAVES) void flash_decode(const FlashDecodeParams p) {
    extern __shared__ __attribute__((aligned(1024))) char lds[];
    const Place place = find_place(p);
    Range range(p, place);
    if constexpr (SPLIT) {
        const unsigned splits = p.splits;
        range.narrow(place.split, {splits, p.splits_reciprocal, p.splits_shift});
    }
    Output out;
    State state;
    const int count = min(place.rows() - place.first_row, BLOCK_M);
    attend<(WAVES > 1)>(p, place, range, place.q, count, lds, out, state);
    const FlashDecodeParams& again = read_again(p);
    write(again, place, out, state);
    if constexpr (SPLIT) merge_parts(again, place, *reinterpret_cast<int*>(lds + FLAG_AT));
}
