// sample: the next token of each row of logits: the largest one, or with DRAW one drawn by probability.
//
// logits: [rows, columns] of `scalar`, rows `stride` elements apart, fewer than 2^22 columns; out: [rows] int. A block
// takes a row. The largest is the first of equals. -1 where there is none to choose: a row that holds a NaN, or
// nothing but -inf, or nothing.
//
// With DRAW a token's weight is 2^((logit - largest) * scale). Kept are the top_k largest logits
// (0: all), and of these the fewest largest whose weights make up top_p of theirs; equals are kept or left together.
// One of the kept is drawn with the probability of its weight.
//
// No order of summation is left to chance: a weight is a whole multiple of 2^-40, sums are 64-bit integers, and
// integers add up the same in any order, with any number of threads. The limits are found by radix selection, digit
// after digit of the logit's bits, in a histogram in LDS; no sorting, and no row has to fit anywhere. The random
// number is Philox's 4x32-10 for key `seed` and counter (step, sequence): it does not depend on what else is drawn,
// nor on where in the batch the row lies. steps and sequences: [rows] int, or null; a row's step is step + steps[row],
// its sequence sequences[row], or the row.
//
// Bound by memory, of one compute unit a row, whose L2 holds the row from the second pass on: 2 passes for the largest
// alone and for a draw from all, 3 more for top_k, 4 for top_p.
#include "types.h"
#include "wave.h"

using u32 = unsigned;
using u64 = unsigned long long;

constexpr int WAVES = BLOCK / WAVE_SIZE;
constexpr int BINS = 2048;  // of 11 bits, two of which and one of 10 make a logit
constexpr float ONE = 1099511627776.0f;  // 2^40, a weight of 1
static_assert(BINS % BLOCK == 0, "each thread takes as many bins");

struct Scratch {
    u64 bins[DRAW ? BINS : 1];
    u64 waves[WAVES];
    float values[WAVES];
    int columns[WAVES];
    u64 chosen[2];  // what one thread tells the others
};

// Bits that are ordered as the floats are.
__device__ inline u32 ordered(float x) {
    const u32 bits = __builtin_bit_cast(u32, x + 0.0f);  // which makes -0 a 0
    return bits ^ (static_cast<u32>(static_cast<int>(bits) >> 31) | 0x80000000u);
}

struct Row {
    const scalar* logits;
    i64 columns;
    float largest, scale;

    __device__ u64 weight(float logit) const {
        const float below = fminf(logit - largest, 0.0f);  // infinity - infinity is NaN, which fminf drops
        return static_cast<u64>(exp2_fast(below * scale) * ONE);
    }
};

// Calls visit(logit, column) for this thread's columns, which grow, and up to VECTOR - 1 times past the row's end,
// with -inf: the weight of such a logit is 0, and nothing is below it. A test of each would need more registers for
// masks than there are.
template <typename Visit>
__device__ inline void each_logit(const Row& row, Visit visit) {
    for (i64 column = static_cast<i64>(threadIdx.x) * VECTOR; column < row.columns; column += BLOCK * VECTOR) {
        float logits[VECTOR];
        load_row(logits, row.logits, column, row.columns, -INF);
#pragma unroll
        for (int e = 0; e < VECTOR; ++e)
            visit(logits[e], static_cast<int>(column) + e);
    }
}

// The sum over the lanes up to this one.
__device__ inline u64 wave_scan(u64 x) {
    const int lane = threadIdx.x % WAVE_SIZE;
#pragma unroll 1  // unrolled, its six masks stay in registers for the whole kernel
    for (int distance = 1; distance < WAVE_SIZE; distance *= 2) {
        const u64 below = __shfl_up(x, distance, WAVE_SIZE);
        if (lane >= distance) x += below;
    }
    return x;
}

// The sum over the threads up to this one.
__device__ inline u64 block_scan(u64 x, Scratch& scratch) {
    x = wave_scan(x);
    __syncthreads();  // an earlier scan may still be reading
    if (threadIdx.x % WAVE_SIZE == WAVE_SIZE - 1) scratch.waves[threadIdx.x / WAVE_SIZE] = x;
    __syncthreads();
#pragma unroll 1
    for (int wave = 0; wave < static_cast<int>(threadIdx.x) / WAVE_SIZE; ++wave) x += scratch.waves[wave];
    return x;
}

// The largest logit and its first column, for all threads; column -1 where there is none to choose.
__device__ inline int find_largest(Row& row, Scratch& scratch) {
    float best = -INF;
    int at = 0x7fffffff;
    bool spoilt = false;
    each_logit(row, [&](float logit, int column) {
        spoilt = spoilt || logit != logit;
        if (logit > best) best = logit, at = column;  // columns grow: the first of equals
    });
    if (spoilt) best = INF, at = -1;  // before any column
    const auto take = [&](float other, int other_at) {
        if (other > best || (other == best && other_at < at)) best = other, at = other_at;
    };
#pragma unroll 1
    for (int distance = WAVE_SIZE / 2; distance > 0; distance /= 2)
        take(__shfl_xor(best, distance, WAVE_SIZE), __shfl_xor(at, distance, WAVE_SIZE));
    __syncthreads();
    if (threadIdx.x % WAVE_SIZE == 0) {
        scratch.values[threadIdx.x / WAVE_SIZE] = best;
        scratch.columns[threadIdx.x / WAVE_SIZE] = at;
    }
    __syncthreads();
#pragma unroll 1
    for (int wave = 0; wave < WAVES; ++wave) take(scratch.values[wave], scratch.columns[wave]);
    row.largest = best;
    return at == 0x7fffffff ? -1 : at;
}

// The least key (a logit, ordered) of those to keep: the largest ones, until their number, or weight, is at least `target`, which
// is above 0 and at most that of all keys from `floor` on.
__device__ inline u32 select(const Row& row, u32 floor, u64 target, bool by_weight, Scratch& scratch) {
    u32 prefix = 0;
    int decided = 0;  // bits
#pragma unroll 1
    for (int digits = 0; digits < 3; ++digits) {
        const int bits = digits < 2 ? 11 : 10, shift = 32 - decided - bits;
        __syncthreads();
        for (int bin = threadIdx.x; bin < BINS; bin += BLOCK) scratch.bins[bin] = 0;
        __syncthreads();
        each_logit(row, [&](float logit, int) {
            const u32 key = ordered(logit);
            if (key < floor || (static_cast<u64>(key) >> (32 - decided)) != prefix) return;
            atomicAdd(&scratch.bins[key >> shift & ((1u << bits) - 1)], by_weight ? row.weight(logit) : 1);
        });
        __syncthreads();
        // From the largest bin down, each thread as many neighbours.
        constexpr int SHARE = BINS / BLOCK;
        const int first = BINS - 1 - static_cast<int>(threadIdx.x) * SHARE;
        u64 own = 0;
#pragma unroll
        for (int i = 0; i < SHARE; ++i) own += scratch.bins[first - i];
        u64 above = block_scan(own, scratch) - own;
        if (target - above - 1 < own) {  // one thread
            int bin = first;
            while (above + scratch.bins[bin] < target) above += scratch.bins[bin--];
            scratch.chosen[0] = bin;
            scratch.chosen[1] = target - above;
        }
        __syncthreads();
        prefix = prefix << bits | static_cast<u32>(scratch.chosen[0]);
        target = scratch.chosen[1];
        decided += bits;
    }
    return prefix;
}

// Random bits for a counter: 10 rounds of Philox 4x32.
__device__ inline u64 philox(u64 seed, u64 step, u64 sequence) {
    u32 a = static_cast<u32>(step), b = static_cast<u32>(step >> 32);
    u32 c = static_cast<u32>(sequence), d = static_cast<u32>(sequence >> 32);
    u32 key = static_cast<u32>(seed), other = static_cast<u32>(seed >> 32);
#pragma unroll 1
    for (int round = 0; round < 10; ++round) {
        const u64 left = static_cast<u64>(0xD2511F53u) * a, right = static_cast<u64>(0xCD9E8D57u) * c;
        a = static_cast<u32>(right >> 32) ^ b ^ key;
        b = static_cast<u32>(right);
        c = static_cast<u32>(left >> 32) ^ d ^ other;
        d = static_cast<u32>(left);
        key += 0x9E3779B9u;
        other += 0xBB67AE85u;
    }
    return static_cast<u64>(b) << 32 | a;
}

// The sum of the weights of keys from `floor` on, for all threads.
__device__ inline u64 total_weight(const Row& row, u32 floor, Scratch& scratch) {
    u64 own = 0;
    each_logit(row, [&](float logit, int) { own += ordered(logit) >= floor ? row.weight(logit) : 0; });
    own = block_scan(own, scratch);
    if (threadIdx.x == BLOCK - 1) scratch.chosen[0] = own;
    __syncthreads();
    const u64 total = scratch.chosen[0];
    __syncthreads();
    return total;
}

// Each wave sums a stretch of the row, the one in whose stretch the drawn weight lies walks through it again.
__device__ inline void draw(const Row& row, u32 floor, u64 random, int* out, Scratch& scratch) {
    constexpr int STEP = WAVE_SIZE * VECTOR;
    const int lane = threadIdx.x % WAVE_SIZE, wave = threadIdx.x / WAVE_SIZE;
    const i64 stretch = (row.columns + WAVES * STEP - 1) / (WAVES * STEP) * STEP;
    const i64 begin = wave * stretch, end = begin + stretch < row.columns ? begin + stretch : row.columns;

    u64 weights[VECTOR];
    const auto load_weights = [&](i64 start) {
        const i64 column = start + lane * VECTOR;
        float logits[VECTOR];
        load_row(logits, row.logits, column, row.columns, -INF);
        u64 sum = 0;
#pragma unroll
        for (int e = 0; e < VECTOR; ++e) {
            weights[e] = ordered(logits[e]) >= floor ? row.weight(logits[e]) : 0;
            sum += weights[e];
        }
        return sum;
    };
    u64 own = 0;
    for (i64 start = begin; start < end; start += STEP) own += load_weights(start);
    own = wave_scan(own);
    __syncthreads();
    if (lane == WAVE_SIZE - 1) scratch.waves[wave] = own;
    __syncthreads();
    u64 before = 0, total = 0;
#pragma unroll 1
    for (int other = 0; other < WAVES; ++other) {
        if (other < wave) before += scratch.waves[other];
        total += scratch.waves[other];
    }
    const u64 drawn = __umul64hi(random, total);  // in 0 .. total - 1
    if (drawn - before >= scratch.waves[wave]) return;  // the whole wave
    for (i64 start = begin; start < end; start += STEP) {
        const u64 mine = load_weights(start), upto = wave_scan(mine);
        u64 at = before + upto - mine;
        if (drawn - at < mine) {  // one lane, once
            i64 column = start + lane * VECTOR;
#pragma unroll
            for (int e = 0; e < VECTOR; ++e) {
                at += weights[e];
                if (at <= drawn) ++column;
            }
            *out = static_cast<int>(column);
        }
        before += __shfl(upto, WAVE_SIZE - 1, WAVE_SIZE);
    }
}

extern "C" __global__ __launch_bounds__(BLOCK) void sample(const SampleParams p) {
    __shared__ Scratch scratch;
    for (i64 index = blockIdx.x; index < p.rows; index += gridDim.x) {
        int* out = static_cast<int*>(p.out) + index;
        Row row = {static_cast<const scalar*>(p.logits) + index * p.stride, p.columns, 0.0f, p.scale};
        const int largest = find_largest(row, scratch);
        if (!DRAW || largest < 0) {
            if (threadIdx.x == 0) *out = largest;
            continue;
        }
        if constexpr (DRAW) {
            u32 floor = 0;
#pragma unroll 1
            for (int by_weight = 0; by_weight < 2; ++by_weight) {  // one selection in the code, for its registers
                u64 target = p.top_k;
                if (by_weight) {
                    if (p.top_p == 0) break;
                    const u64 part = __umul64hi(total_weight(row, floor, scratch), static_cast<u64>(p.top_p) << 32);
                    target = part > 0 ? part : 1;
                }
                if (target > 0) floor = select(row, floor, target, by_weight, scratch);
            }
            const u64 step = p.step + (p.steps ? static_cast<const int*>(p.steps)[index] : 0);
            const u64 sequence = p.sequences ? static_cast<const int*>(p.sequences)[index] : index;
            draw(row, floor, philox(p.seed, step, sequence), out, scratch);
        }
    }
}
