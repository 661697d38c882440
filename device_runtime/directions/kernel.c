/* The kernel of device_runtime/directions/format.py in C: the same bits as its numpy form, at the speed of memory.
 *
 * The format (streams, chunks, order of sums, rounding) is written down there. This file is plain C with loops that
 * compilers vectorise; where they can, x86-64 gets versions for AVX-512, for AVX2 and a plain one, chosen
 * when the library is loaded. kernel_avx512.h has what they do not find. Compile with -ffp-contract=off: a fused
 * multiply-add would round otherwise.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "words are taken from memory in little-endian order"
#endif

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define VERSIONS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#include "kernel_avx512.h"
#else
#define VERSIONS
#define has_avx512() 0
#define stream_avx512(...) (void)0
#define look_up_avx512(row, size, bits, shift, table, others) (void)(others)
#define add_turned_avx512(...) (void)0
#define end_stores() (void)0
#endif
#define INLINE static inline __attribute__((always_inline))

enum { CHUNK = 1 << 17, PLANES = 32, PLANE = CHUNK / PLANES, TILE = 4096, TOGETHER = 8 };
enum { RADEMACHER = 0, GAUSSIAN = 1 };
enum { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2 };

/* Words are seen as smaller numbers, and numbers as their bits. */
typedef uint64_t __attribute__((may_alias)) word64;
typedef uint32_t __attribute__((may_alias)) word32;
typedef uint16_t __attribute__((may_alias)) word16;

/* Sums of directions, each of which is added on its own, in order; mirrored in native.py. Several are added in place. */
typedef struct {
    const uint64_t *seeds;
    const float *coefficients;
    const int64_t *stops;      /* of each sum: the direction after its last one, which is one at least */
    const uint64_t *roundings; /* of each sum: seed of the rounding of 16-bit weights */
    const float *quantiles;    /* of the normal distribution [256] */
    int64_t sums;
    int32_t distribution;
    int32_t paired; /* whether the last direction is added for plus and subtracted for minus; there is one sum then */
} Sums;

/* One tensor; mirrored in native.py. */
typedef struct {
    const void *weights;
    float *plus;
    float *minus;
    void *stepped; /* where given, instead of plus: the same 16-bit weights, rounded at random */
    int64_t size;
    uint64_t tensor;
    int64_t columns; /* of the tensor as a matrix, where plus is not in order but in panels of some columns; or 0 */
    int64_t panel;   /* columns of a panel: 8, 16, 32 or 64, which fill the matrix; its rows lie one after the other */
    int64_t stride;  /* elements from a panel to the next one */
    int32_t stored;
} Task;

/* Philox4x64-10 (Salmon et al., SC 2011): the four words of a counter. numpy counts from one. */
INLINE void philox(uint64_t counter, uint64_t key0, uint64_t key1, word64 *words) {
    uint64_t a = counter, b = 0, c = 0, d = 0;
    for (int round = 0; round < 10; round++) {
        unsigned __int128 first = (unsigned __int128)a * 0xD2E7470EE14C6C93u;
        unsigned __int128 second = (unsigned __int128)c * 0xCA5A826395121157u;
        a = (uint64_t)(second >> 64) ^ b ^ key0;
        b = (uint64_t)second;
        c = (uint64_t)(first >> 64) ^ d ^ key1;
        d = (uint64_t)first;
        key0 += 0x9E3779B97F4A7C15u;
        key1 += 0xBB67AE8584CAA73Bu;
    }
    words[0] = a, words[1] = b, words[2] = c, words[3] = d;
}

INLINE void stream(uint64_t seed, uint64_t tensor, uint64_t counter, int64_t blocks, void *out) {
    word64 *words = out;
    if (has_avx512()) stream_avx512(seed, tensor, counter, blocks, words);
    else
        for (int64_t i = 0; i < blocks; i++) philox(counter + (uint64_t)i + 1, seed, tensor, words + 4 * i);
}

INLINE float as_float(uint32_t bits) {
    float number;
    memcpy(&number, &bits, 4);
    return number;
}

INLINE uint32_t as_bits(float number) {
    uint32_t bits;
    memcpy(&bits, &number, 4);
    return bits;
}

/* A coefficient, turned where the highest of some bits is set. */
INLINE float turned(word32 coefficient, uint32_t bits) { return as_float((bits & 0x80000000u) ^ coefficient); }

/* Add `count` directions' terms (a constant after inlining), in order, to a row. */
INLINE void add_signs(float *row, int64_t size, int plane, const word32 *words, const word32 *coefficients, int count) {
    for (int64_t j = 0; j < size; j++) {
        float sum = row[j];
        for (int i = 0; i < count; i++) sum += turned(coefficients[i], words[i * TILE + j] << plane);
        row[j] = sum;
    }
}

INLINE void add_some_signs(float *row, int64_t size, int plane, const word32 *words, const word32 *coefficients,
                           int count) {
#define CASE(n) \
    case n: add_signs(row, size, plane, words, coefficients, n); break;
    switch (count) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) }
#undef CASE
}

/* One direction's terms. */
INLINE void write_signs(float *row, int64_t size, int plane, const word32 *words, word32 coefficient) {
    for (int64_t j = 0; j < size; j++) row[j] = turned(coefficient, words[j] << plane);
}

/* Transpose bits: afterwards, bits of eight directions for one element are a byte. Of word i, its byte b, counted from
 * the lowest, has those of plane 31 - 8b - i, direction 0 in its lowest bit.
 */
INLINE void gather_bits(word32 *words, int64_t size) {
    static const uint32_t masks[3] = {0x0F0F0F0F, 0x33333333, 0x55555555};
    for (int64_t j = 0; j < size; j++) {
        uint32_t w[TOGETHER];
        for (int i = 0; i < TOGETHER; i++) w[i] = words[i * TILE + j];
#pragma GCC unroll 3
        for (int level = 0; level < 3; level++)
#pragma GCC unroll 8
            for (int i = 0; i < TOGETHER; i++)
                if (!(i & 4 >> level)) {
                    uint32_t *partner = w + i + (4 >> level);
                    uint32_t swapped = ((w[i] >> (4 >> level)) ^ *partner) & masks[level];
                    *partner ^= swapped, w[i] ^= swapped << (4 >> level);
                }
        for (int i = 0; i < TOGETHER; i++) words[i * TILE + j] = w[i];
    }
}

/* Sums of some terms, in order, for all choices of signs: bit i of the place says that term i is subtracted. */
INLINE void tabulate(float *table, const float *coefficients, int count) {
    table[0] = coefficients[0], table[1] = -coefficients[0];
    for (int i = 1; i < count; i++)
        for (int place = 0; place < 1 << i; place++) {
            table[place + (1 << i)] = table[place] - coefficients[i];
            table[place] += coefficients[i];
        }
}

INLINE void look_up(float *row, int64_t size, const word32 *bits, int shift, const float *table) {
    for (int64_t j = 0; j < size; j++) row[j] = table[bits[j] >> shift & 0xFF];
}

INLINE void add_quantiles(float *row, int64_t size, const uint8_t *picks, const float *table, int more) {
    if (more)
        for (int64_t j = 0; j < size; j++) row[j] += table[picks[j]];
    else
        for (int64_t j = 0; j < size; j++) row[j] = table[picks[j]];
}

INLINE float widen16(uint16_t half) {
    uint32_t below = (uint32_t)(half & 0x7FFF), sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t normal = (below << 13) + (112u << 23) + (below >= 0x7C00 ? 112u << 23 : 0);
    uint32_t small = as_bits((float)(int32_t)below * 0x1p-24f); /* exact, and never subnormal in float32 */
    return as_float((below < 0x0400 ? small : normal) | sign);
}

/* float32 whose lower 13 bits are zero → float16, to the nearest where it is subnormal there. */
INLINE uint16_t narrow16(float exact) {
    uint32_t bits = as_bits(exact), below = bits & 0x7FFFFFFF, sign = bits >> 16 & 0x8000;
    uint32_t normal = (below - (112u << 23)) >> 13;
    uint32_t small = as_bits(as_float(below) + 0.5f) - 0x3F000000u; /* 0.5's spacing is 2^-24, float16's smallest */
    uint32_t half = below < 113u << 23 ? small : normal;
    half = below >= 143u << 23 ? 0x7C00 : half;
    return (uint16_t)((below > 0x7F800000 ? 0x7E00 : half) | sign);
}

INLINE void widen(const void *weights, int32_t stored, int64_t start, int64_t size, float *row) {
    const word16 *halves = (const word16 *)weights + start;
    if (stored == FLOAT16)
        for (int64_t j = 0; j < size; j++) row[j] = widen16(halves[j]);
    else
        for (int64_t j = 0; j < size; j++) row[j] = as_float((uint32_t)halves[j] << 16);
}

/* Elements from `start` on, in order, to where plus has them; for a constant number of columns in a panel. */
INLINE void put_by(int64_t panel, const Task *task, int64_t start, int64_t size, const float *restrict from) {
    int64_t row = start / task->columns, column = start % task->columns;
    for (int64_t j = 0; j < size; j += panel) {
        memcpy(task->plus + column / panel * task->stride + row * panel, from + j, (size_t)panel * 4);
        column += panel;
        if (column == task->columns) column = 0, row++;
    }
}

/* The same of weights and a direction's terms, not by way of memory. */
INLINE void add_turned_by(int64_t panel, const Task *task, int64_t start, int64_t size, const float *restrict weights,
                          const uint32_t *restrict signs, int plane, word32 coefficient) {
    int64_t row = start / task->columns, column = start % task->columns;
    for (int64_t j = 0; j < size; j += panel) {
        float *restrict plus = task->plus + column / panel * task->stride + row * panel;
        for (int64_t i = 0; i < panel; i++) plus[i] = weights[j + i] + turned(coefficient, signs[j + i] << plane);
        column += panel;
        if (column == task->columns) column = 0, row++;
    }
}

#define BY_PANEL(function, ...)                            \
    switch (task->panel) {                                 \
        case 8: function(8, task, __VA_ARGS__); break;     \
        case 16: function(16, task, __VA_ARGS__); break;   \
        case 32: function(32, task, __VA_ARGS__); break;   \
        case 64: function(64, task, __VA_ARGS__); break;   \
    }

/* Add a row's sums to the weights from `start` on; a pair's `term` goes both ways, and its `offset` may be missing. */
INLINE void finish(const Task *task, uint64_t rounding, int64_t start, int64_t size, const float *offset,
                   const float *term) {
    float wide[TILE];
    const float *weights = wide;
    if (task->stored == FLOAT32) weights = (const float *)task->weights + start;
    else widen(task->weights, task->stored, start, size, wide);
    if (task->stepped) {
        uint64_t words[TILE / 4];
        stream(rounding, task->tensor, (uint64_t)start / 16, (size + 15) / 16, words);
        const word16 *random = (const word16 *)words;
        word16 *out = (word16 *)task->stepped + start;
        if (task->stored == FLOAT16)
            for (int64_t j = 0; j < size; j++)
                out[j] = narrow16(as_float((as_bits(weights[j] + offset[j]) + (random[j] >> 3)) & 0xFFFFE000));
        else
            for (int64_t j = 0; j < size; j++) out[j] = (uint16_t)((as_bits(weights[j] + offset[j]) + random[j]) >> 16);
    } else if (!task->minus) {
        float *plus = task->columns ? wide : task->plus + start;
        for (int64_t j = 0; j < size; j++) plus[j] = weights[j] + offset[j];
        if (task->columns) BY_PANEL(put_by, start, size, plus)
    } else {
        float *restrict plus = task->plus + start, *restrict minus = task->minus + start;
        for (int64_t j = 0; j < size; j++) {
            float here = weights[j], step = term[j];
            plus[j] = here + (offset ? offset[j] + step : step);
            minus[j] = offset ? here + (offset[j] - step) : here - step;
        }
    }
}

/* Some columns of all planes of a chunk: with rademacher, element j of plane k takes bit 31 - k of 32-bit word j. */
typedef struct {
    int64_t start;    /* of the chunk in the tensor */
    int64_t size;     /* of the chunk */
    int64_t column;   /* the first */
    int64_t width;    /* their number, TILE at most */
    uint64_t counter; /* of their first word */
} Columns;

INLINE Columns columns_of(const Task *task, int64_t chunk, int64_t column, int64_t width) {
    int64_t start = chunk * CHUNK, size = task->size - start < CHUNK ? task->size - start : CHUNK;
    return (Columns){start, size, column, width, (uint64_t)(chunk * (CHUNK / 256) + column / 8)};
}

/* Elements of a plane among the columns; none where the chunk ends before it. */
INLINE int64_t size_of(const Columns *at, int plane) {
    int64_t left = at->size - ((int64_t)plane * PLANE + at->column);
    return left < at->width ? left : at->width;
}

/* Where a plane's elements start in the tensor. */
INLINE int64_t place_of(const Columns *at, int plane) { return at->start + (int64_t)plane * PLANE + at->column; }

INLINE void stream_signs(const Sums *sums, int64_t direction, const Task *task, const Columns *at, uint32_t *words) {
    stream(sums->seeds[direction], task->tensor, at->counter, (at->width + 7) / 8, words);
}

/* A single direction, straight from weights to sums. */
INLINE void add_direction_of_signs(const Sums *sums, int64_t direction, const Task *task, const Columns *at) {
    _Alignas(64) uint32_t signs[TILE];
    word32 coefficient = as_bits(sums->coefficients[direction]);
    int aligned = task->columns && task->panel > 8 && task->stride % 16 == 0 && (uintptr_t)task->plus % 64 == 0;
    stream_signs(sums, direction, task, at, signs);
    int64_t here;
    for (int plane = 0; plane < PLANES && (here = size_of(at, plane)) > 0; plane++) {
        int64_t place = place_of(at, plane);
        const float *weights = (const float *)task->weights + place;
        if (aligned && has_avx512()) {
            add_turned_avx512(task->plus, task->columns, task->panel, task->stride, place, here, weights, signs, plane,
                              coefficient);
        } else if (task->columns) {
            BY_PANEL(add_turned_by, place, here, weights, signs, plane, coefficient)
        } else {
            float *plus = task->plus + place;
            for (int64_t j = 0; j < here; j++) plus[j] = weights[j] + turned(coefficient, signs[j] << plane);
        }
    }
}

/* Up to TOGETHER directions of a sum on some columns. */
typedef struct {
    _Alignas(64) uint32_t words[TOGETHER * TILE]; /* each one's signs; or, by a table, each plane's bytes of them */
    _Alignas(64) float table[1 << TOGETHER];      /* sums of the first ones' terms for all choices of signs */
    float others[3];                              /* coefficients of those that the table leaves out */
    const word32 *coefficients;
    int count;
} Group;

INLINE void stream_group(Group *group, const Sums *sums, int64_t first, int count, const Task *task,
                         const Columns *at) {
    group->coefficients = (const word32 *)sums->coefficients + first;
    group->count = count;
    for (int i = 0; i < count; i++) stream_signs(sums, first + i, task, at, group->words + i * TILE);
}

/* Make a group's table, for `write_group`; a single direction needs none. */
INLINE void tabulate_group(Group *group, int64_t width) {
    if (group->count < 2) return;
    const float *coefficients = (const float *)group->coefficients;
    int tabulated = has_avx512() && group->count > 5 ? 5 : group->count;
    memset(group->words + group->count * TILE, 0, (size_t)(TOGETHER - group->count) * TILE * 4);
    gather_bits((word32 *)group->words, width);
    tabulate(group->table, coefficients, tabulated);
    for (int i = 0; i < 3; i++) /* -0 may be added to whatever number, it stays */
        group->others[i] = tabulated + i < group->count ? coefficients[tabulated + i] : -0.0f;
}

/* A plane's sums of a group's terms. */
INLINE void write_group(float *row, int64_t size, int plane, const Group *group) {
    const uint32_t *bits = group->words + (31 - plane) % 8 * TILE;
    int shift = (31 - plane) / 8 * 8;
    if (group->count == 1) write_signs(row, size, plane, (const word32 *)group->words, group->coefficients[0]);
    else if (has_avx512()) look_up_avx512(row, size, bits, shift, group->table, group->others);
    else look_up(row, size, (const word32 *)bits, shift, group->table);
}

/* One sum: of its directions the first group by a table, others one after the other; a pair's last one both ways. */
INLINE void add_sum_of_signs(const Sums *sums, int64_t sum, const Task *task, const Columns *at) {
    Group group;
    _Alignas(64) uint32_t signs[TILE];
    _Alignas(64) float totals[PLANES * TILE], term[TILE];
    int64_t from = sum ? sums->stops[sum - 1] : 0, stop = sums->stops[sum] - sums->paired, here;
    if (sums->paired) stream_signs(sums, stop, task, at, signs);
    for (int64_t first = from, last = 0; !last; first += TOGETHER) {
        last = first + TOGETHER >= stop;
        stream_group(&group, sums, first, (int)(last ? stop - first : TOGETHER), task, at);
        if (first == from) tabulate_group(&group, at->width);
        for (int plane = 0; plane < PLANES && (here = size_of(at, plane)) > 0; plane++) {
            float *row = totals + (stop - from > TOGETHER ? plane * TILE : 0);
            if (first > from)
                add_some_signs(row, here, plane, (const word32 *)group.words, group.coefficients, group.count);
            else if (group.count) write_group(row, here, plane, &group);
            if (!last) continue;
            if (sums->paired)
                write_signs(term, here, plane, (const word32 *)signs, ((const word32 *)sums->coefficients)[stop]);
            finish(task, sums->roundings[sum], place_of(at, plane), here, stop > from ? row : NULL, term);
        }
    }
}

/* One sum over some elements in order. */
INLINE void add_sum_of_quantiles(const Sums *sums, int64_t sum, const Task *task, int64_t start, int64_t size) {
    _Alignas(64) uint8_t picks[TILE];
    float total[TILE], term[TILE], table[256];
    int64_t from = sum ? sums->stops[sum - 1] : 0, stop = sums->stops[sum];
    for (int64_t i = from; i < stop; i++) {
        int paired = sums->paired && i == stop - 1;
        for (int k = 0; k < 256; k++) table[k] = sums->quantiles[k] * sums->coefficients[i];
        stream(sums->seeds[i], task->tensor, (uint64_t)start / 32, (size + 31) / 32, picks);
        add_quantiles(paired ? term : total, size, picks, table, i > from && !paired);
    }
    finish(task, sums->roundings[sum], start, size, stop - sums->paired > from ? total : NULL, term);
}

/* All sums on one chunk, a piece that stays in the cache at a time. */
VERSIONS static void add_to_chunk(const Sums *sums, const Task *task, int64_t chunk) {
    Columns at = columns_of(task, chunk, 0, 0);
    int64_t stop = sums->distribution == RADEMACHER && at.size > PLANE ? PLANE : at.size;
    int straight = !sums->paired && !task->stepped && task->stored == FLOAT32;
    for (int64_t place = 0; place < stop; place += TILE) {
        int64_t width = stop - place < TILE ? stop - place : TILE, from = 0;
        at = columns_of(task, chunk, place, width);
        for (int64_t sum = 0; sum < sums->sums; from = sums->stops[sum++])
            if (sums->distribution == GAUSSIAN) add_sum_of_quantiles(sums, sum, task, at.start + place, width);
            else if (straight && sums->stops[sum] == from + 1) add_direction_of_signs(sums, from, task, &at);
            else add_sum_of_signs(sums, sum, task, &at);
    }
}

/* Flush-to-zero, which some library may have switched on for this thread, would change bits. */
#if defined(__x86_64__)
#include <immintrin.h>
static uint64_t exact_arithmetic(void) {
    unsigned before = _mm_getcsr();
    _mm_setcsr(0x1F80);
    return before;
}
static void restore_arithmetic(uint64_t before) { _mm_setcsr((unsigned)before); }
#elif defined(__aarch64__)
static uint64_t exact_arithmetic(void) {
    uint64_t before, none = 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(none));
    return before;
}
static void restore_arithmetic(uint64_t before) { __asm__ volatile("msr fpcr, %0" : : "r"(before)); }
#else
static uint64_t exact_arithmetic(void) { return 0; }
static void restore_arithmetic(uint64_t before) { (void)before; }
#endif

/* A worker's share of the chunks of some tensors. */
void fedspzo_add_directions_1(const Sums *sums, const Task *tasks, int64_t count, int64_t worker, int64_t workers) {
    uint64_t before = exact_arithmetic();
    int64_t chunks = 0, passed = 0;
    for (int64_t i = 0; i < count; i++) chunks += (tasks[i].size + CHUNK - 1) / CHUNK;
    int64_t first = chunks * worker / workers, stop = chunks * (worker + 1) / workers;
    for (int64_t i = 0; i < count; i++) {
        int64_t here = (tasks[i].size + CHUNK - 1) / CHUNK;
        for (int64_t chunk = 0; chunk < here; chunk++)
            if (first <= passed + chunk && passed + chunk < stop) add_to_chunk(sums, &tasks[i], chunk);
        passed += here;
    }
    end_stores();
    restore_arithmetic(before);
}
