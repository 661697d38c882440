/* What compilers do not find by themselves for AVX-512: Philox on sixteen counters at a time, table look-ups in
 * registers, and stores past the caches. They have the bits of their plain forms in kernel.c, which chooses by
 * `has_avx512()`.
 */
#include <immintrin.h>
#include <stdint.h>

#define AVX512 __attribute__((target("arch=x86-64-v4")))
#define AVX512_INLINE AVX512 static inline __attribute__((always_inline))

static int has_avx512(void) { return __builtin_cpu_supports("x86-64-v4"); }

/* The low halves of eight products of 128 bits, from products of 32 bits; the high halves go to `high`. */
AVX512_INLINE __m512i multiply(__m512i a, uint64_t b, __m512i *high) {
    __m512i low_b = _mm512_set1_epi64((int64_t)b), high_b = _mm512_set1_epi64((int64_t)(b >> 32));
    __m512i high_a = _mm512_srli_epi64(a, 32), low32 = _mm512_set1_epi64(0xFFFFFFFF);
    __m512i bottom = _mm512_mul_epu32(a, low_b);
    __m512i middle = _mm512_add_epi64(_mm512_mul_epu32(high_a, low_b), _mm512_srli_epi64(bottom, 32));
    __m512i other = _mm512_add_epi64(_mm512_mul_epu32(a, high_b), _mm512_and_si512(middle, low32));
    __m512i top = _mm512_add_epi64(_mm512_mul_epu32(high_a, high_b), _mm512_srli_epi64(middle, 32));
    *high = _mm512_add_epi64(top, _mm512_srli_epi64(other, 32));
    return _mm512_mask_blend_epi32(0xAAAA, bottom, _mm512_slli_epi64(other, 32));
}

AVX512_INLINE __m512i xor3(__m512i a, __m512i b, uint64_t c) {
    return _mm512_ternarylogic_epi64(a, b, _mm512_set1_epi64((int64_t)c), 0x96);
}

/* Words of the counters after `counter`, as `stream` makes them, in whole groups of 16 blocks. */
AVX512 static void stream_avx512(uint64_t seed, uint64_t tensor, uint64_t counter, int64_t blocks, uint64_t *words) {
    /* Lanes take counters in such an order that two shuffles put words into theirs. */
    const __m512i lanes = _mm512_setr_epi64(1, 5, 2, 6, 3, 7, 4, 8);
    const __m512i lower = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i upper = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for (int64_t block = 0; block < blocks; block += 16) {
        __m512i a[2], b[2], c[2], d[2]; /* two groups of eight, to keep the multipliers busy */
        for (int i = 0; i < 2; i++) {
            a[i] = _mm512_add_epi64(lanes, _mm512_set1_epi64((int64_t)counter + block + 8 * i));
            b[i] = c[i] = d[i] = _mm512_setzero_si512();
        }
#pragma GCC unroll 10
        for (uint64_t round = 0; round < 10; round++)
            for (int i = 0; i < 2; i++) {
                __m512i first, second, low = multiply(a[i], 0xD2E7470EE14C6C93u, &first);
                __m512i other = multiply(c[i], 0xCA5A826395121157u, &second);
                a[i] = xor3(second, b[i], seed + round * 0x9E3779B97F4A7C15u);
                c[i] = xor3(first, d[i], tensor + round * 0xBB67AE8584CAA73Bu);
                b[i] = other, d[i] = low;
            }
        for (int i = 0; i < 2; i++) {
            __m512i *out = (__m512i *)(words + 4 * block) + 4 * i;
            for (int half = 0; half < 2; half++) {
                __m512i ab = half ? _mm512_unpackhi_epi64(a[i], b[i]) : _mm512_unpacklo_epi64(a[i], b[i]);
                __m512i cd = half ? _mm512_unpackhi_epi64(c[i], d[i]) : _mm512_unpacklo_epi64(c[i], d[i]);
                _mm512_storeu_si512(out + 2 * half, _mm512_permutex2var_epi64(ab, lower, cd));
                _mm512_storeu_si512(out + 2 * half + 1, _mm512_permutex2var_epi64(ab, upper, cd));
            }
        }
    }
}

/* Sums of eight directions over a row, in whole groups of 16: `table[32]` has those of the first five by the low bits
 * of a byte of `bits`, to which the other three are added.
 */
AVX512 static void look_up_avx512(float *row, int64_t size, const uint32_t *bits, int shift, const float *table,
                                  const float *others) {
    const __m512 low = _mm512_loadu_ps(table), high = _mm512_loadu_ps(table + 16);
    const __m512i sign = _mm512_set1_epi32(INT32_MIN);
    for (int64_t j = 0; j < size; j += 16) {
        __m512i here = _mm512_srl_epi32(_mm512_loadu_si512(bits + j), _mm_cvtsi32_si128(shift));
        __m512 sum = _mm512_permutex2var_ps(low, here, high);
#pragma GCC unroll 3
        for (unsigned i = 0; i < 3; i++) {
            __m512i other = _mm512_castps_si512(_mm512_set1_ps(others[i]));
            __m512i term = _mm512_ternarylogic_epi32(_mm512_slli_epi32(here, 26 - i), sign, other, 0x6A); /* and, xor */
            sum = _mm512_add_ps(sum, _mm512_castsi512_ps(term));
        }
        _mm512_storeu_ps(row + j, sum);
    }
}

/* A direction's terms and weights, to panels of 16, 32 or 64 columns at multiples of 64 bytes: `add_turned_by`. A line
 * there is written whole, and is not read before: this saves a third of the way to memory.
 */
AVX512 static void add_turned_avx512(float *plus, int64_t columns, int64_t panel, int64_t stride, int64_t start,
                                     int64_t size, const float *weights, const uint32_t *signs, int plane,
                                     uint32_t coefficient) {
    const __m512i sign = _mm512_set1_epi32(INT32_MIN), one = _mm512_set1_epi32((int)coefficient);
    int64_t row = start / columns, column = start % columns;
    for (int64_t j = 0; j < size; j += panel) {
        float *out = plus + column / panel * stride + row * panel;
        for (int64_t i = 0; i < panel; i += 16) {
            __m512i bits = _mm512_sll_epi32(_mm512_loadu_si512(signs + j + i), _mm_cvtsi32_si128(plane));
            __m512 term = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(bits, sign, one, 0x6A)); /* and, xor */
            _mm512_stream_ps(out + i, _mm512_add_ps(_mm512_loadu_ps(weights + j + i), term));
        }
        column += panel;
        if (column == columns) column = 0, row++;
    }
}

/* Other threads shall see what was stored past the caches. */
static void end_stores(void) { _mm_sfence(); }
