/* See bf16_pack.h. Words: two bf16 of neighbouring depth in 32 bits; a transposition of words is what turns rows into
 * columns. */
#include "kernels/cpu/bf16_pack.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define PACK_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

bool bf16_can_pack(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16");
}

static inline __mmask16 mask_of(int64_t n) {
    return n >= 16 ? (__mmask16)0xffff : n <= 0 ? (__mmask16)0 : (__mmask16)((1u << n) - 1);
}

/* 32 bf16: the 16 of low, then the 16 of high. */
PACK_TARGET static inline __m512i narrow(__m512 low, __m512 high) {
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/* 16 words, each low's element beside high's. */
PACK_TARGET static inline __m512i pair(__m512 low, __m512 high) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, narrow(low, high));
}

/* Transposes 16 rows of 16 words. */
PACK_TARGET static inline void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

PACK_TARGET static inline __m512 load(const float *from, __mmask16 mask) {
    return _mm512_maskz_loadu_ps(mask, from);
}

/* 32 elements along a row, of which `n` exist. */
PACK_TARGET static inline __m512i load_row(const float *from, int64_t n, __m512 scale) {
    __m512 low = _mm512_mul_ps(load(from, mask_of(n)), scale);
    __m512 high = n > 16 ? _mm512_mul_ps(load(from + 16, mask_of(n - 16)), scale) : _mm512_setzero_ps();
    return narrow(low, high);
}

/* 16 words of rows 0 and 1, of which `rows` exist, in columns chosen by the mask. */
PACK_TARGET static inline __m512i load_pair(const float *from, int64_t stride, int64_t rows, __mmask16 columns,
                                            __m512 scale) {
    __m512 low = rows > 0 ? load(from, columns) : _mm512_setzero_ps();
    __m512 high = rows > 1 ? load(from + stride, columns) : _mm512_setzero_ps();
    return pair(_mm512_mul_ps(low, scale), _mm512_mul_ps(high, scale));
}

PACK_TARGET static void pack_a_transposed(const float *a, int64_t stride, __m512 scale, int64_t rows, int64_t depth,
                                          int64_t padded, uint16_t *to) {
    for (int64_t k = 0; k < padded; k += 32) {
        for (int64_t m = 0; m < rows; m += 16) {
            __m512i words[16];
            __mmask16 mask = mask_of(rows - m);
            for (int64_t p = 0; p < 16; p++) {
                int64_t left = depth - k - 2 * p;
                words[p] = left > 0 ? load_pair(a + (k + 2 * p) * stride + m, stride, left, mask, scale)
                                    : _mm512_setzero_si512();
            }
            transpose(words);
            for (int64_t i = 0; i < 16; i++) _mm512_storeu_si512(to + (m + i) * padded + k, words[i]);
        }
    }
}

PACK_TARGET void bf16_pack_a(const float *a, int64_t stride, bool transposed, float scale, int64_t rows, int64_t depth,
                             int64_t padded, uint16_t *to) {
    __m512 scales = _mm512_set1_ps(scale);
    if (transposed) {
        pack_a_transposed(a, stride, scales, rows, depth, padded, to);
        return;
    }
    for (int64_t m = 0; m < rows; m++) {
        for (int64_t k = 0; k < padded; k += 32) {
            _mm512_storeu_si512(to + m * padded + k, load_row(a + m * stride + k, depth - k, scales));
        }
    }
}

PACK_TARGET void bf16_pack_b(const float *b, int64_t stride, bool transposed, int64_t depth, int64_t columns,
                             int64_t padded, uint16_t *to) {
    const __m512 one = _mm512_set1_ps(1);
    for (int64_t k = 0; k < padded; k += 32) {
        for (int64_t n = 0; n < BF16_COLUMNS; n += 16) {
            uint16_t *at = to + k * BF16_COLUMNS + 2 * n;
            __m512i words[16];
            if (transposed) {
                for (int64_t i = 0; i < 16; i++) {
                    words[i] =
                        n + i < columns ? load_row(b + (n + i) * stride + k, depth - k, one) : _mm512_setzero_si512();
                }
                transpose(words);
            } else {
                for (int64_t p = 0; p < 16; p++) {
                    int64_t left = depth - k - 2 * p;
                    words[p] = left > 0 && n < columns
                                   ? load_pair(b + (k + 2 * p) * stride + n, stride, left, mask_of(columns - n), one)
                                   : _mm512_setzero_si512();
                }
            }
            for (int64_t p = 0; p < 16; p++) _mm512_storeu_si512(at + p * 2 * BF16_COLUMNS, words[p]);
        }
    }
}

#else

bool bf16_can_pack(void) {
    return false;
}

#endif
