// attention_softmax: out[row] = exp(scores[row] - max) / sum, and optionally lse[row] = log(sum) + max.
//
// scores: [rows, columns] of `in_scalar`, rows `in_stride` elements apart; out: the same shape of `out_scalar`, rows
// `out_stride` apart. The two may be the same memory if type and stride are the same. lse: [rows] float, natural.
// Arithmetic in float32. A row of -inf (no key is seen) gives zeros and LSE -inf; a row that holds a NaN or +inf
// gives NaN throughout, through the sum: the maximum drops NaN.
//
// With CAUSAL rows are [matrices, seq_q], and query i sees the keys up to i + columns - seq_q: as if -inf stood behind
// them, which is not read.
//
// GROUP threads take a row: part of a wave, a wave, or the block, whose waves meet in LDS. Its first GROUP * HELD
// elements are read once and stay in registers. What a LONG row has behind them is read twice: first for its maximum
// and sum together, the sum rescaled as the maximum grows; then, backwards, to be written. No row has to fit in LDS,
// but few enough are begun for the second reading to find much of them in the chip's cache.
//
// Bound by memory: one read (of some, two) and one write, VECTOR elements an access.
#include "types.h"
#include "reduce.h"

static_assert(GROUP <= WAVE_SIZE || GROUP == BLOCK, "a row is taken by part of a wave, a wave, or the block");
static_assert(GROUP >= VECTOR, "each thread takes at most one element of the tail");
static_assert(HELD % VECTOR == 0, "a thread holds whole vectors");
static_assert(!LONG || GROUP == BLOCK, "a block has only rows that exist, and so as long as all others");

constexpr float LOG2_E = 1.44269504088896340736f;

__device__ inline float group_max(float x, float* scratch) {
    if constexpr (GROUP <= WAVE_SIZE) return wave_max<GROUP>(x);
    else return block_max<BLOCK>(x, scratch);
}

__device__ inline float group_sum(float x, float* scratch) {
    if constexpr (GROUP <= WAVE_SIZE) return wave_sum<GROUP>(x);
    else return block_sum<BLOCK>(x, scratch);
}

// What to subtract before exp. -inf - -inf would be NaN; a row whose maximum is -inf has only zeros, whatever is
// subtracted.
__device__ inline float shift_of(float highest) { return highest == -INF ? 0.0f : highest; }

// The difference first: of large scores it is exact, their products with log2(e) are not.
__device__ inline float exp_above(float score, float shift) { return exp2_fast((score - shift) * LOG2_E); }

struct Row {
    const in_scalar* in;
    out_scalar* out;
    i64 columns;
    i64 seen;  // of them; the others are -inf
    int thread;  // in the group
};

struct Sum {
    float shift, total;
    __device__ float inverse() const { return total == 0.0f ? 0.0f : 1.0f / total; }
    __device__ float lse() const { return logf(total) + shift; }
};

constexpr int STEP = GROUP * VECTOR;

// Gives each of the thread's vectors of what is seen of a row to `take`, with its column. AT_ONCE of them come from
// memory together. BACK: from the row's end to its begin; the chip's cache still has what was read last.
template <bool BACK, class Take>
__device__ inline void stream(const Row& row, Take take) {
    constexpr int AT_ONCE = 4;
    const i64 rounds = row.seen / STEP;  // in which each thread has a whole vector
    auto column = [&](i64 round) { return (BACK ? rounds - 1 - round : round) * STEP + row.thread * VECTOR; };
    i64 round = 0;
    for (; round + AT_ONCE <= rounds; round += AT_ONCE) {
        float x[AT_ONCE][VECTOR];
#pragma unroll
        for (int v = 0; v < AT_ONCE; ++v) load_vector(x[v], row.in + column(round + v));
#pragma unroll
        for (int v = 0; v < AT_ONCE; ++v) take(x[v], column(round + v));
    }
    float x[VECTOR];
    for (; round < rounds; ++round) {
        load_vector(x, row.in + column(round));
        take(x, column(round));
    }
    const i64 last = rounds * STEP + row.thread * VECTOR;
    if (last < row.seen) {
        load_row(x, row.in, last, row.seen, -INF);
        take(x, last);
    }
}

// Writes what is not seen of a row: 0, or NaN where the row has one.
__device__ inline void hide(const Row& row, float value) {
    float hidden[VECTOR];
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) hidden[e] = value;
    i64 column = row.seen / STEP * STEP + row.thread * VECTOR;
    if (column < row.seen) column += STEP;  // written with what is seen
    for (; column < row.columns; column += STEP) store_row(hidden, row.out, column, row.columns);
}

// What a row has from its element `begin` on.
__device__ inline Row after(const Row& row, i64 begin) {
    const i64 seen = row.seen > begin ? row.seen - begin : 0;
    return {row.in + begin, row.out + begin, row.columns - begin, seen, row.thread};
}

// What is held is whole vectors, then a tail of fewer than VECTOR elements, one to a thread: a condition a vector,
// where a test of each element would need more registers for masks than there are.
__device__ inline Sum softmax(const Row& row, float* scratch) {
    constexpr int VECTORS = HELD / VECTOR, MOST = GROUP * HELD;
    const int columns = LONG ? MOST : static_cast<int>(row.columns);
    const int seen = LONG && row.seen > MOST ? MOST : static_cast<int>(row.seen);
    const int whole = columns & -VECTOR;
    const int tail = whole + row.thread;
    const Row rest = after(row, columns);

    float x[VECTORS][VECTOR];
    float last = tail < (CAUSAL ? seen : columns) ? static_cast<float>(row.in[tail]) : -INF;
    float highest = last;
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        const int column = (v * GROUP + row.thread) * VECTOR;
        if (column < whole && (!CAUSAL || column < seen)) {
            load_vector(x[v], row.in + column);
            if constexpr (CAUSAL)
#pragma unroll
                for (int e = 1; e < VECTOR; ++e) x[v][e] = column + e < seen ? x[v][e] : -INF;
        } else {
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) x[v][e] = -INF;
        }
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) highest = fmaxf(highest, x[v][e]);
    }

    float total = 0.0f, rest_highest = -INF;
    if constexpr (LONG)
        stream<false>(rest, [&](const float(&x)[VECTOR], i64) {
            const float before = rest_highest;
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) rest_highest = fmaxf(rest_highest, x[e]);
            const float shift = shift_of(rest_highest);
            total *= exp_above(before, shift);
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) total += exp_above(x[e], shift);
        });

    Sum sum;
    sum.shift = shift_of(group_max(fmaxf(highest, rest_highest), scratch));
    if constexpr (LONG) total *= exp_above(rest_highest, sum.shift);
    last = exp_above(last, sum.shift);
    total += last;
#pragma unroll
    for (int v = 0; v < VECTORS; ++v)
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) {
            x[v][e] = exp_above(x[v][e], sum.shift);
            total += x[v][e];
        }
    sum.total = group_sum(total, scratch);

    const float inverse = sum.inverse();
    if constexpr (LONG) {  // first, while it is in the cache
        stream<true>(rest, [&](const float(&x)[VECTOR], i64 column) {
            float y[VECTOR];
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) y[e] = exp_above(x[e], sum.shift) * inverse;
            store_row(y, rest.out, column, rest.columns);
        });
        if constexpr (CAUSAL) hide(rest, exp_above(-INF, sum.shift) * inverse);
    }
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        const int column = (v * GROUP + row.thread) * VECTOR;
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) x[v][e] *= inverse;
        if (column < whole) store_vector(x[v], row.out + column);
    }
    if (tail < columns) row.out[tail] = static_cast<out_scalar>(last * inverse);
    return sum;
}

extern "C" __global__ __launch_bounds__(BLOCK) void attention_softmax(const SoftmaxParams p) {
    __shared__ float scratch[BLOCK / WAVE_SIZE];
    constexpr int ROWS = BLOCK / GROUP;
    for (i64 base = static_cast<i64>(blockIdx.x) * ROWS; base < p.rows; base += static_cast<i64>(gridDim.x) * ROWS) {
        const i64 index = base + threadIdx.x / GROUP;
        const bool exists = index < p.rows;
        i64 seen = p.columns;
        if constexpr (CAUSAL) {
            const i64 sees = index % p.seq_q + p.columns - p.seq_q + 1;
            seen = sees > 0 ? sees : 0;
        }
        const Row row = {
            static_cast<const in_scalar*>(p.scores) + index * p.in_stride,
            static_cast<out_scalar*>(p.out) + index * p.out_stride,
            exists ? p.columns : 0,  // past the last row: nothing to read, but a part in the reductions
            exists ? seen : 0,
            static_cast<int>(threadIdx.x % GROUP),
        };
        const Sum sum = softmax(row, scratch);
        if constexpr (LSE)
            if (exists && row.thread == 0) static_cast<float*>(p.lse)[index] = sum.lse();
    }
}
