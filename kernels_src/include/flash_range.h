// Which tiles of keys a block visits: those that a row of it sees. Params and Place are the kernel's.
#pragma once

#include "division.h"

struct Range {
    int end;  // past the last tile

    __device__ Range(const Params& p, const Place& place) : tiles(place.tiles), seq_k(place.seq_k) {
        const int first = place.query(place.first_row);
        const int last = min(place.query(place.first_row + BLOCK_M - 1), place.seq_q - 1);
        const int offset = place.seq_k - place.seq_q;  // the position of query i is i + offset
        int keys = place.seq_k, from = 0;
        all_up_to = place.seq_k - 1;
        if constexpr (BOUND_RIGHT) {
            keys = max(0, min(keys, last + offset + p.right + 1));
            all_up_to = min(all_up_to, first + offset + p.right);
        }
        if constexpr (BOUND_LEFT) {
            from = max(0, first + offset - p.left);
            all_from = last + offset - p.left;
        }
        start = from / BLOCK_N;
        end = from < keys ? (keys + BLOCK_N - 1) / BLOCK_N : 0;
    }

    // Leaves part `part` of `parts` of the tiles, which differ by one at most: the first have the more.
    __device__ void narrow(unsigned part, const Divisor& parts) {
        const unsigned count = max(0, end - start), each = parts.divide(count), more = count - each * parts.number;
        start += each * part + min(part, more);
        end = start + each + (part < more);
    }

    __device__ int first() const { return skip(start); }
    __device__ int after(int tile) const { return skip(tile + 1); }

    // Whether a row of the block does not see all of the tile.
    __device__ bool hides(int tile) const {
        bool some = (tile + 1) * BLOCK_N - 1 > all_up_to;
        if constexpr (BOUND_LEFT) some |= tile * BLOCK_N < all_from;
        if constexpr (MASK || (MASK_MOD && !BLOCK_MASK)) some = true;
        if constexpr (BLOCK_MASK) some |= tiles[tile] != 2;
        return some;
    }

private:
    const unsigned char* tiles;
    int seq_k, start;
    int all_up_to, all_from;  // the keys that every row of the block sees

    __device__ int skip(int tile) const {
        if constexpr (BLOCK_MASK)
            while (tile < end && !tiles[tile]) ++tile;
        return tile;
    }
};
