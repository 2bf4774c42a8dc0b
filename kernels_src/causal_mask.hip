// causal_mask_kernel: scores[i, j] = -inf where query i does not see key j, that is j > i + seq_k - seq_q.
//
// scores: [matrices, seq_q, seq_k] of `scalar`, rows `stride` elements apart throughout; rows = matrices * seq_q.
// The last query stands at the last key, so that the queries of a step see all that a KV cache holds.
//
// Bound by memory: writes each hidden element once. Memory with ECC reads a sector of which only a part is written,
// and a read amid the writes turns the bus around. So the first blocks go over the sectors that rows hide in part, whose
// reads so come together, and the others over those hidden whole. They need no order: no two threads write the same
// element. Each writes little, and there are many, begun in the order of memory.
//
// Touches no element outside of the rows. Within a row it may read the seen elements that share a sector with the
// first hidden one, fewer than PIECE, and write them back bit for bit; nothing else may write them meanwhile.
#include "hints.h"
#include "rows.h"

constexpr int SECTOR = 32;                                        // bytes, at a multiple of as many
constexpr int PIECE = SECTOR / static_cast<int>(sizeof(scalar));  // elements of it

// Bits, because a NaN's may change where it is moved as a number.
template <int BYTES>
struct Word;
template <>
struct Word<2> {
    using type = unsigned short;
};
template <>
struct Word<4> {
    using type = unsigned;
};
using Bits = Word<sizeof(scalar)>::type;

// The elements that a query does not see, up to its row's end.
struct Hidden {
    Bits* first;
    int count;   // fits: no memory holds a matrix of 2^31 rows and columns
    int before;  // elements of the first one's sector in front of it
    int head;    // hidden elements until the next sector begins
    int whole;   // elements of the whole sectors that follow

    __device__ Hidden(const CausalMaskParams& p, i64 row, i64 query) {
        const i64 after = p.seq_q - 1 - query;
        count = static_cast<int>(after < p.seq_k ? after : p.seq_k);
        first = static_cast<Bits*>(p.scores) + row * p.stride + p.seq_k - count;
        before = static_cast<unsigned>(reinterpret_cast<i64>(first)) % SECTOR / static_cast<int>(sizeof(scalar));
        const int rest = (PIECE - before) % PIECE;
        head = rest < count ? rest : count;
        whole = (count - head) / PIECE * PIECE;
    }
};

// Most numbers of rows are small, and a remainder of 64 bits takes longer than writing a row.
__device__ inline i64 query_of(const CausalMaskParams& p, i64 row) {
    if (p.rows >> 32) return row % p.seq_q;
    return static_cast<unsigned>(row) % static_cast<unsigned>(p.seq_q);
}

// The sector in which the row's first hidden element is, and elements behind the last whole sector.
__device__ inline void hide_ends(const CausalMaskParams& p, const Hidden& hidden, Bits hide) {
    using Access = Vec<Bits, VECTOR>;
    if (hidden.head > 0 && hidden.before + hidden.head == PIECE && hidden.before <= p.seq_k - hidden.count) {
        Access* sector = reinterpret_cast<Access*>(hidden.first - hidden.before);  // all of it in the row
        Access x[PIECE / VECTOR];
        // Known to be above 0, the compiler would not write the first element, which does not change.
        const int before = own_value(hidden.before);
#pragma unroll
        for (int v = 0; v < PIECE / VECTOR; ++v) x[v] = sector[v];
#pragma unroll
        for (int v = 0; v < PIECE / VECTOR; ++v) {
#pragma unroll
            for (int e = 0; e < VECTOR; ++e)
                if (v * VECTOR + e >= before) x[v].at[e] = hide;
            store_whole(x[v], sector[v].at);
        }
    } else {
        for (int e = 0; e < hidden.head; ++e) hidden.first[e] = hide;
    }
    for (int e = hidden.head + hidden.whole; e < hidden.count; ++e) hidden.first[e] = hide;
}

extern "C" __global__ __launch_bounds__(BLOCK) void causal_mask_kernel(const CausalMaskParams p) {
    const Bits hide = __builtin_bit_cast(Bits, static_cast<scalar>(-INF));
    if (blockIdx.x < p.end_blocks) {
        const i64 threads = static_cast<i64>(p.end_blocks) * BLOCK;
        for (i64 row = static_cast<i64>(blockIdx.x) * BLOCK + threadIdx.x; row < p.rows; row += threads)
            hide_ends(p, Hidden(p, row, query_of(p, row)), hide);
        return;
    }
    Vec<Bits, VECTOR> all;
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) all.at[e] = hide;
    const Share share = share_rows(p.row_shift, 1, blockIdx.x - p.end_blocks, gridDim.x - p.end_blocks);
    const int column = static_cast<int>(share.column), column_step = static_cast<int>(share.column_step);
    for (i64 row = share.row; row < p.rows; row += share.row_step) {
        const Hidden hidden(p, row, query_of(p, row));
        Bits* sectors = hidden.first + hidden.head;
#pragma unroll 4
        for (int e = column; e < hidden.whole; e += column_step) store_streamed(all, sectors + e);
    }
}
