// causal_mask_kernel: scores[i, j] = -inf where query i does not see key j, that is j > i + seq_k - seq_q.
//
// scores: [matrices, seq_q, seq_k] of `scalar`, rows `stride` elements apart throughout; rows = matrices * seq_q.
// The last query stands at the last key, so that the queries of a step see all that a KV cache holds.
//
// Bound by memory: writes each hidden element once. Memory with ECC reads a sector of which only a part is written,
// and a read amid the writes turns the bus around. So the kernel goes over the rows twice: first over the sectors that
// rows hide in part, whose reads so come together, and then over those hidden whole. Both go on at once, without a
// barrier: no two threads write the same element.
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

extern "C" __global__ __launch_bounds__(BLOCK) void causal_mask_kernel(const CausalMaskParams p) {
    const Bits hide = __builtin_bit_cast(Bits, static_cast<scalar>(-INF));
    using Access = Vec<Bits, VECTOR>;

    // A thread takes a row; neighbours in a block are far apart, so that all blocks begin with some.
    const i64 threads = static_cast<i64>(gridDim.x) * BLOCK;
    for (i64 row = static_cast<i64>(threadIdx.x) * gridDim.x + blockIdx.x; row < p.rows; row += threads) {
        const Hidden hidden(p, row, row % p.seq_q);
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

    Access all;
#pragma unroll
    for (int e = 0; e < VECTOR; ++e) all.at[e] = hide;
    const Share share = share_rows(p.row_shift, 1);
    const int column = static_cast<int>(share.column), column_step = static_cast<int>(share.column_step);
    const i64 query_step = share.row_step % p.seq_q;  // once: a remainder takes longer than writing a row
    i64 query = share.row % p.seq_q;
    for (i64 row = share.row; row < p.rows; row += share.row_step, query += query_step) {
        if (query >= p.seq_q) query -= p.seq_q;
        const Hidden hidden(p, row, query);
        Bits* sectors = hidden.first + hidden.head;
#pragma unroll 4
        for (int e = column; e < hidden.whole; e += column_step) store_streamed(all, sectors + e);
    }
}
