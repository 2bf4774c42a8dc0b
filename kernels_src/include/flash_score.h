// What a score becomes before the softmax, and which keys a row sees. Options that a call does not use are constants
// of false, and cost nothing. The formula is that of hipattn/attn/reference.py. Params and Place are the kernel's.
#pragma once

#include "hints.h"

constexpr float LOG2_E = 1.44269504088896340736f;

// Without one of these the scale is part of the exponent's unit, one multiplication for both.
constexpr bool TRANSFORMED = SCALED || SOFTCAP || ALIBI || BIAS || SCORE_MOD;

// tanh to a few ulp: through one exponential, and near 0, where that would lose what is small beside 1, its series.
__device__ inline float tanh_fast(float x) {
    const float e = exp2_fast(fabsf(x) * (-2.0f * LOG2_E)), square = x * x;
    const float series =
        x + x * square * (-1 / 3.0f + square * (2 / 15.0f + square * (-17 / 315.0f + square * (62 / 2835.0f))));
    return fabsf(x) < 0.3f ? series : copysignf((1.0f - e) / (1.0f + e), x);
}

struct Score {
    const Params& p;
    const Place& place;
    int first_row;  // of this wave
    float unit;     // a score times this is an exponent of 2
    float slope[Scores::ROWS];

    // Keys may be hidden anywhere, not only where the range ends.
    static constexpr bool MAY_HIDE = BIAS || MASK || SCORE_MOD;

    __device__ Score(const Params& params, const Place& where) : p(params), place(where) {
        first_row = where.first_row + wave_index() * WAVE_ROWS;
        unit = TRANSFORMED ? LOG2_E : scale() * LOG2_E;
        // Not 0 by rounding: times -inf, of a hidden key, it would be NaN.
        if constexpr (QUANTISED) unit = fmaxf(unit, 0x1p-100f);
        if constexpr (ALIBI) {
            const float* slopes = static_cast<const float*>(p.slopes) + where.b * p.slopes_batch + where.h;
#pragma unroll
            for (int r = 0; r < Scores::ROWS; ++r) slope[r] = slopes[where.head(first_row + Scores::row(r))];
        }
    }

    // The exponent of a row's sink; -inf without one.
    __device__ float sink(int r) const {
        if constexpr (SINKS) {
            const int h = place.h + place.head(first_row + Scores::row(r));
            if (place.has_sink()) return static_cast<const float*>(p.sinks)[h] * LOG2_E;
        }
        return -INF;
    }

    __device__ void transform(Scores& scores, int first_key) const {
        if constexpr (TRANSFORMED) {
#pragma unroll
            for (int r = 0; r < Scores::ROWS; ++r)
#pragma unroll
                for (int n = 0; n < Scores::KEYS; ++n) {
                    const int j = first_key + Scores::key(n);
                    scores.set(r, n, transformed(scores.get(r, n) * scale(), r, j));
                }
        }
    }

    __device__ void hide(Scores& scores, int first_key) const {
#pragma unroll
        for (int r = 0; r < Scores::ROWS; ++r) {
            const int row = first_row + Scores::row(r), i = place.query(row), at = i + place.seq_k - place.seq_q;
            [[maybe_unused]] const int h = place.head(row);
            int last = place.seq_k - 1, first = 0;
            if constexpr (BOUND_RIGHT) last = min(last, at + p.right);
            if constexpr (BOUND_LEFT) first = at - p.left;
            // Counted from the lane's first key, a key is a constant.
            const int from = first_key + Scores::key(0);
            last = own_value(last - from), first = own_value(first - from);
#pragma unroll
            for (int n = 0; n < Scores::KEYS; ++n) {
                const int j = Scores::key(n) - Scores::key(0);
                bool seen = j <= last;
                if constexpr (BOUND_LEFT) seen &= j >= first;
                if constexpr (MASK || MASK_MOD) seen = seen && i < place.seq_q && admitted(h, i, from + j);
                // No branch: AMD's compiler (ROCm 7.2) loses a branch's write to one element of a vector of scores where
                // `seen` itself comes of branches, as of an expression with || and a load.
                scores.set(r, n, seen ? scores.get(r, n) : -INF);
                if (n % 8 == 7) keep_order();
            }
        }
    }

private:
    // Of the product of a query and a key as it is stored.
    __device__ float scale() const { return p.scale * place.k_scale(); }

    __device__ float transformed(float score, int r, int j) const {
        const int row = first_row + Scores::row(r), i = place.query(row), h = place.head(row);
        if constexpr (SOFTCAP) score = p.softcap * tanh_fast(score * p.softcap_inverse);
        if constexpr (ALIBI) score -= slope[r] * static_cast<float>(abs(i + place.seq_k - place.seq_q - j));
        if constexpr (BIAS || SCORE_MOD) {
            if (i >= place.seq_q || j >= place.seq_k) return score;  // nothing to read there
            if constexpr (BIAS)
                score += static_cast<float>(place.bias[h * p.bias_head + i * p.bias_row + j * p.bias_column]);
            if constexpr (SCORE_MOD) score = user_score_mod(score, place.b, place.h + h, i, j, p);
        }
        return score;
    }

    __device__ bool admitted(int h, int i, int j) const {
        if constexpr (MASK)
            if (!place.mask[h * p.mask_head + i * p.mask_row + j * p.mask_column]) return false;
        if constexpr (MASK_MOD) return user_mask_mod(place.b, place.h + h, i, j, p);
        return true;
    }
};
