/* What a layer computes beside its products, each in one pass over memory, and attention in bfloat16, for a CPU.

   `c_kernels.py` says what each is given; the plain forms lie where that is called from. Letters as in `transformer`. Every
   token is computed alone and in one order, so its bits depend on no other token, nor on the number of threads. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
typedef uint16_t bf16;

INLINE float wide(bf16 half) {
    uint32_t bits = (uint32_t)half << 16;
    float number;
    memcpy(&number, &bits, 4);
    return number;
}

INLINE bf16 narrow(float number) {
    uint32_t bits;
    memcpy(&bits, &number, 4);
    bf16 rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return number != number ? 0x7fc0 : rounded;
}

/* Of numbers whose type is `is16` or float; each kernel is compiled once for either. */
INLINE const void *at(const void *p, int64_t i, int is16) { return (const char *)p + i * (is16 ? 2 : 4); }
INLINE float get(const void *p, int64_t i, int is16) { return is16 ? wide(((const bf16 *)p)[i]) : ((const float *)p)[i]; }
INLINE float rounded(float number, int is16) { return is16 ? wide(narrow(number)) : number; }
INLINE void set(void *p, int64_t i, float number, int is16) {
    if (is16)
        ((bf16 *)p)[i] = narrow(number);
    else
        ((float *)p)[i] = number;
}

/* Each by a thread. The call names its types by literals, so that it is compiled for each. */
#define EACH(one, count, call)                                                                                          \
    do {                                                                                                                \
        _Pragma("omp parallel for num_threads(threads)") for (int64_t one = 0; one < count; one++) call;                \
    } while (0)

/* --- the stream ---------------------------------------------------------------------------------------------------- */

/* The product is rounded before it is added, as the plain form rounds it: where both are of the narrow type. */
INLINE void add_to(float *x, const void *given, const void *gamma, int64_t width, int is16, int gamma16) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++)
        x[i] += rounded(get(given, i, is16) * get(gamma, i, gamma16), is16 && gamma16);
}

/* What `found` of it is the mean and a factor, for who wants them. */
INLINE void norm(
    const float *x, const float *scale, const float *shift, void *made, float *found, int64_t width, float eps, int is16
) {
    float sum = 0, squares = 0;
    for (int64_t i = 0; i < width; i++)
        sum += x[i];
    float mean = sum / width;
    for (int64_t i = 0; i < width; i++)
        squares += (x[i] - mean) * (x[i] - mean);
    float factor = 1 / sqrtf(squares / width + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; i++)
        set(made, i, (x[i] - mean) * factor * scale[i] + shift[i], is16);
    if (found) {
        found[0] = mean;
        found[1] = factor;
    }
}

INLINE void added_norm(
    float *x, const void *given, const void *gamma, const float *scale, const float *shift, void *made, float *found,
    int64_t width, float eps, int is16, int gamma16
) {
    if (given)
        add_to(x, given, gamma, width, is16, gamma16);
    norm(x, scale, shift, made, found, width, eps, is16);
}

/* x (R, L, C), to which `given`, times its gate, is added where it lies, if there is any; then made is what is normed, scaled and
   shifted of it. Vectors are (R, 1, C). */
void modulated(
    int is16, int gamma16, float *x, const void *given, const void *gamma, const float *scale, const float *shift, void *made,
    float *found, int64_t tokens, int64_t length, int64_t width, float eps, int threads
) {
#define MODULATED(is16, gamma16)                                                                                        \
    EACH(token, tokens, added_norm(                                                                                     \
        x + token * width, given ? at(given, token * width, is16) : 0, at(gamma, token / length * width, gamma16),      \
        scale + token / length * width, shift + token / length * width, (void *)at(made, token * width, is16),          \
        found ? found + 2 * token : 0, width, eps, is16, gamma16                                                        \
    ))
    if (is16 && gamma16)
        MODULATED(1, 1);
    else if (is16)
        MODULATED(1, 0);
    else
        MODULATED(0, 0);
}

void add_gated(
    int is16, int gamma16, float *x, const void *given, const void *gamma, int64_t tokens, int64_t length, int64_t width,
    int threads
) {
#define ADD_GATED(is16, gamma16)                                                                                        \
    EACH(token, tokens, add_to(                                                                                         \
        x + token * width, at(given, token * width, is16), at(gamma, token / length * width, gamma16), width, is16,     \
        gamma16                                                                                                         \
    ))
    if (is16 && gamma16)
        ADD_GATED(1, 1);
    else if (is16)
        ADD_GATED(1, 0);
    else
        ADD_GATED(0, 0);
}

/* --- heads --------------------------------------------------------------------------------------------------------- */

/* Of a tensor (R, H, n, c), whose innermost is one. */
typedef struct {
    int64_t row, head, token;
} strides;

INLINE float unit(const void *from, void *into, int64_t size, float times, float shortest, int is16, int into16) {
    float squares = 0;
    for (int64_t i = 0; i < size; i++)
        squares += get(from, i, is16) * get(from, i, is16);
    float length = sqrtf(squares), inverse = 1 / (length < shortest ? shortest : length);
#pragma omp simd
    for (int64_t i = 0; i < size; i++)
        set(into, i, get(from, i, is16) * (times * inverse), into16);
    return inverse;
}

INLINE void unit_heads(
    const void *qkv, const float *times, void *q, void *k, void *v, float *found, int64_t heads, int64_t size,
    int64_t of_q, int64_t of_k, float shortest, int is16, int keys16
) {
    int64_t width = heads * size;
    for (int64_t head = 0; head < heads; head++) {
        int64_t here = head * size, there = head * of_k;
        float inverse[2] = {
            unit(at(qkv, here, is16), (void *)at(q, head * of_q, is16), size, times[head], shortest, is16, is16),
            unit(at(qkv, here + width, is16), (void *)at(k, there, keys16), size, 1, shortest, is16, keys16),
        };
        if (v)
            memcpy((void *)at(v, there, is16), at(qkv, here + 2 * width, is16), size * (is16 ? 2 : 4));
        for (int part = 0; found && part < 2; part++)
            found[part * heads + head] = inverse[part];
    }
}

INLINE int64_t place(strides of, int64_t token, int64_t length) {
    return token / length * of.row + token % length * of.token;
}

/* qkv (R, L, 3, H, c) to q, and to keys, and values where they have a place, of one set of strides. What is found (R, L, 2, H) is
   one through the length of each. */
void unit_queries_and_keys(
    int is16, int keys16, const void *qkv, const float *times, void *q, void *k, void *v, float *found, int64_t tokens,
    int64_t length, int64_t heads, int64_t size, strides of_q, strides of_k, float shortest, int threads
) {
#define UNIT_HEADS(is16, keys16)                                                                                        \
    EACH(token, tokens, {                                                                                               \
        int64_t there = place(of_k, token, length);                                                                     \
        unit_heads(                                                                                                     \
            at(qkv, token * 3 * heads * size, is16), times, (void *)at(q, place(of_q, token, length), is16),            \
            (void *)at(k, there, keys16), v ? (void *)at(v, there, is16) : 0, found ? found + token * 2 * heads : 0,    \
            heads, size, of_q.head, of_k.head, shortest, is16, keys16                                                   \
        );                                                                                                              \
    })
    if (is16 && keys16)
        UNIT_HEADS(1, 1);
    else if (is16)
        UNIT_HEADS(1, 0);
    else
        UNIT_HEADS(0, 0);
}

/* --- backward ------------------------------------------------------------------------------------------------------ */

/* Of what is normed, scaled and shifted; `through` is what else the stream gets. A row's vectors get the sums of its tokens. */
INLINE void norm_back(
    const void *given, const float *through, const float *x, const float *found, const float *scale, float *for_x,
    float *for_scale, float *for_shift, int64_t width, int is16
) {
    float mean = found[0], factor = found[1], sum = 0, along = 0;
    for (int64_t i = 0; i < width; i++) {
        float wanted = get(given, i, is16) * scale[i];
        sum += wanted;
        along += wanted * (x[i] - mean);
    }
    sum /= width;
    along *= factor * factor / width;
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
        float own = get(given, i, is16), centred = x[i] - mean;
        for_x[i] = (through ? through[i] : 0) + factor * (own * scale[i] - sum - centred * along);
        for_scale[i] += own * centred * factor;
        for_shift[i] += own;
    }
}

void modulated_back(
    int is16, const void *given, const float *through, const float *x, const float *found, const float *scale, float *for_x,
    float *for_scale, float *for_shift, int64_t rows, int64_t length, int64_t width, int threads
) {
#define MODULATED_BACK(is16)                                                                                            \
    EACH(row, rows, for (int64_t token = row * length; token < (row + 1) * length; token++) norm_back(                  \
        at(given, token * width, is16), through ? through + token * width : 0, x + token * width, found + 2 * token,    \
        scale + row * width, for_x + token * width, for_scale + row * width, for_shift + row * width, width, is16       \
    ))
    if (is16)
        MODULATED_BACK(1);
    else
        MODULATED_BACK(0);
}

/* x, and what a sub-layer gave, times its gate, in float32. */
INLINE void sum_of(const float *x, const void *given, const float *gamma, float *made, int64_t width, int is16) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++)
        made[i] = x[i] + get(given, i, is16) * gamma[i];
}

void gated_sum(
    int is16, const float *x, const void *given, const float *gamma, float *made, int64_t tokens, int64_t length,
    int64_t width, int threads
) {
#define GATED_SUM(is16)                                                                                                 \
    EACH(token, tokens, sum_of(                                                                                         \
        x + token * width, at(given, token * width, is16), gamma + token / length * width, made + token * width, width, \
        is16                                                                                                            \
    ))
    if (is16)
        GATED_SUM(1);
    else
        GATED_SUM(0);
}

INLINE void sum_back(
    const float *wanted, const void *given, const float *gamma, void *for_given, float *for_gamma, int64_t width, int is16
) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
        for_gamma[i] += wanted[i] * get(given, i, is16);
        set(for_given, i, wanted[i] * gamma[i], is16);
    }
}

void gated_sum_back(
    int is16, const float *wanted, const void *given, const float *gamma, void *for_given, float *for_gamma, int64_t rows,
    int64_t length, int64_t width, int threads
) {
#define GATED_SUM_BACK(is16)                                                                                            \
    EACH(row, rows, for (int64_t token = row * length; token < (row + 1) * length; token++) sum_back(                   \
        wanted + token * width, at(given, token * width, is16), gamma + row * width,                                    \
        (void *)at(for_given, token * width, is16), for_gamma + row * width, width, is16                                \
    ))
    if (is16)
        GATED_SUM_BACK(1);
    else
        GATED_SUM_BACK(0);
}

/* Of a length; gives what its factor gets. */
INLINE float unit_back(
    const void *wanted, const void *from, void *into, int64_t size, float times, float inverse, int is16
) {
    float along = 0;
    for (int64_t i = 0; i < size; i++)
        along += get(wanted, i, is16) * get(from, i, is16);
    along *= inverse;
#pragma omp simd
    for (int64_t i = 0; i < size; i++)
        set(into, i, times * inverse * (get(wanted, i, is16) - along * inverse * get(from, i, is16)), is16);
    return along;
}

/* What q, k and v (R, H, L, c) get goes to qkv, and to the factors (R, H) of queries. */
INLINE void heads_back(
    const void *for_q, const void *for_k, const void *for_v, const void *qkv, const float *times, const float *found,
    void *for_qkv, float *for_times, int64_t row, int64_t length, int64_t heads, int64_t size, int is16
) {
    for (int64_t token = 0; token < length; token++)
        for (int64_t head = 0; head < heads; head++) {
            int64_t from = ((row * heads + head) * length + token) * size;
            int64_t q = ((row * length + token) * 3 * heads + head) * size, k = q + heads * size, v = k + heads * size;
            const float *inverse = found + (row * length + token) * 2 * heads + head;
            for_times[head] += unit_back(
                at(for_q, from, is16), at(qkv, q, is16), (void *)at(for_qkv, q, is16), size, times[head], inverse[0], is16
            );
            unit_back(at(for_k, from, is16), at(qkv, k, is16), (void *)at(for_qkv, k, is16), size, 1, inverse[heads], is16);
            memcpy((void *)at(for_qkv, v, is16), at(for_v, from, is16), size * (is16 ? 2 : 4));
        }
}

void unit_queries_and_keys_back(
    int is16, const void *for_q, const void *for_k, const void *for_v, const void *qkv, const float *times,
    const float *found, void *for_qkv, float *for_times, int64_t rows, int64_t length, int64_t heads, int64_t size, int threads
) {
#define HEADS_BACK(is16)                                                                                                \
    EACH(row, rows, heads_back(                                                                                         \
        for_q, for_k, for_v, qkv, times, found, for_qkv, for_times + row * heads, row, length, heads, size, is16        \
    ))
    if (is16)
        HEADS_BACK(1);
    else
        HEADS_BACK(0);
}

/* --- attention ----------------------------------------------------------------------------------------------------- */

#ifdef __AVX512BF16__
#include <immintrin.h>
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* 0 where this processor cannot, 1 with vectors, 2 with tiles, which a process must ask the system for. */
int attends(void) {
#ifdef __AMX_BF16__
    return syscall(SYS_arch_prctl, 0x1023, 18) ? 0 : 2; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
#else
    return 1;
#endif
}

/* Within a relative 1e-6, between 1e-30 and 1e30 and at those ends beyond: what is smaller than numbers are usually takes a hundred
   times as long. */
INLINE __m512 exponential(__m512 x) {
    __m512 power = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504089f));
    power = _mm512_min_ps(_mm512_set1_ps(100), _mm512_max_ps(_mm512_set1_ps(-100), power)); /* the second, if no number */
    __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_sub_ps(power, whole), sum = _mm512_set1_ps(1.33336498e-3f);
    const float factors[] = {9.61793571e-3f, 5.55041086e-2f, 2.40226507e-1f, 6.93147182e-1f, 1};
    for (int i = 0; i < 5; i++)
        sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(factors[i]));
    return _mm512_scalef_ps(sum, whole);
}

INLINE __m512 load16(const bf16 *from, __mmask16 there) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, from)), 16));
}

/* GELU's tanh form is x s with s = 1 / (1 + exp(-x (a + b x^2))), of bfloat16 numbers. What is `wanted` of it times its slope, which is
   s (1 + x (1 - s) (a + 3 b x^2)), is made where anything is. */
INLINE void gelu_of(const bf16 *x, const bf16 *wanted, bf16 *made, __mmask16 there) {
    const __m512 a = _mm512_set1_ps(1.59576912f), one = _mm512_set1_ps(1);
    __m512 number = load16(x, there), square = _mm512_mul_ps(number, number);
    __m512 rate = _mm512_fmadd_ps(square, _mm512_set1_ps(0.0713548163f), a);
    __m512 power = exponential(_mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(number, rate)));
    /* None where it would be less than numbers are; what is no number stays so. */
    __mmask16 any = _mm512_cmp_ps_mask(power, _mm512_set1_ps(1e30f), _CMP_NGE_UQ);
    __m512 share = _mm512_maskz_rcp14_ps(any, _mm512_add_ps(one, power)), found = _mm512_mul_ps(number, share);
    if (wanted) {
        __m512 slope = _mm512_fmadd_ps(square, _mm512_set1_ps(0.2140644489f), a);
        slope = _mm512_mul_ps(_mm512_mul_ps(found, _mm512_sub_ps(one, share)), slope);
        found = _mm512_mul_ps(_mm512_add_ps(share, slope), load16(wanted, there));
    }
    _mm256_mask_storeu_epi16(made, there, (__m256i)_mm512_cvtneps_pbh(found));
}

void gelu(const bf16 *x, const bf16 *wanted, bf16 *made, int64_t numbers, int threads) {
    EACH(part, (numbers + 15) / 16, {
        int64_t left = numbers - 16 * part;
        gelu_of(x + 16 * part, wanted ? wanted + 16 * part : 0, made + 16 * part, left < 16 ? (1 << left) - 1 : 0xffff);
    });
}

/* Of sixteen rows of sixteen 32-bit numbers. */
INLINE void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0x88);
            t[i + j + 4] = _mm512_shuffle_i32x4(r[i + j], r[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0x88);
        r[j + 8] = _mm512_shuffle_i32x4(t[j], t[j + 8], 0xdd);
    }
}

/* Of two halves of 32 numbers: one of each in turn. */
INLINE __m512i zipped(__m512i halves) {
    const __m512i order = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0
    );
    return _mm512_permutexvar_epi16(order, halves);
}

/* Tiles are set up for a thread, which may have set them up for other work: oneDNN remembers that it did. */
#ifdef __AMX_BF16__
typedef struct {
    uint8_t palette, start, zero[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} tiles;

static void begin_tiles(tiles *before) {
    tiles ours = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        ours.bytes[i] = 64;
        ours.rows[i] = 16;
    }
    _tile_storeconfig(before);
    _tile_loadconfig(&ours);
}

static void end_tiles(const tiles *before) {
    if (before->palette)
        _tile_loadconfig(before);
    else
        _tile_release();
}
#else
typedef struct {
    int none;
} tiles;
static void begin_tiles(tiles *before) { before->none = 0; }
static void end_tiles(const tiles *before) { (void)before; }

INLINE __m512 dot(__m512 sum, __m512i x, const void *pair) {
    int32_t both;
    memcpy(&both, pair, 4);
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)_mm512_set1_epi32(both));
}
#endif

/* A head's work: all that follows is of sixteen queries, side by side in a register, and of pairs of bfloat16 numbers, which are
   multiplied and summed together. n entries are m with those that fill the last 32. */
typedef struct {
    int64_t size, n, m;
    const bf16 *keys, *last; /* whole sixteens where they lie, with their stride; the rest, copied, and nothing after them */
    int64_t stride;
    uint32_t *values;  /* m / 2 pairs of entries, c; for tiles, 16 of each transposed */
    uint32_t *queries; /* c / 2 pairs, 16 */
    float *scores;     /* m, 16; in whose place pairs of shares come */
    float *mixed;      /* c, 16 */
} head;

INLINE const bf16 *key(const head *h, int64_t entry, int64_t *stride) {
    int64_t whole = h->n / 16 * 16;
    *stride = entry < whole ? h->stride : h->size;
    return entry < whole ? h->keys + entry * h->stride : h->last + (entry - whole) * h->size;
}

static void score(const head *h) {
#ifdef __AMX_BF16__
    for (int64_t j = 0; j < h->m; j += 32) {
        int64_t strides[2];
        const bf16 *keys[2] = {key(h, j, strides), key(h, j + 16, strides + 1)};
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t p = 0; p < h->size / 2; p += 16) {
            _tile_loadd(2, h->queries + p * 16, 64);
            _tile_loadd(3, keys[0] + 2 * p, 2 * strides[0]);
            _tile_loadd(4, keys[1] + 2 * p, 2 * strides[1]);
            _tile_dpbf16ps(0, 3, 2);
            _tile_dpbf16ps(1, 4, 2);
        }
        _tile_stored(0, h->scores + j * 16, 64);
        _tile_stored(1, h->scores + (j + 16) * 16, 64);
    }
#else
    for (int64_t j = 0; j < h->m; j += 8) {
        __m512 sums[8];
        int64_t stride;
        const bf16 *keys = key(h, j, &stride);
        for (int t = 0; t < 8; t++)
            sums[t] = _mm512_setzero_ps();
        for (int64_t p = 0; p < h->size / 2; p++) {
            __m512i queries = _mm512_load_si512(h->queries + p * 16);
            for (int t = 0; t < 8; t++)
                sums[t] = dot(sums[t], queries, keys + t * stride + 2 * p);
        }
        for (int t = 0; t < 8; t++)
            _mm512_store_ps(h->scores + (j + t) * 16, sums[t]);
    }
#endif
}

/* Scores become shares, not yet divided by their sum, which is given. */
static __m512 share(const head *h, float scale) {
    __m512 times = _mm512_set1_ps(scale), most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
    for (int64_t j = 0; j < h->n; j++)
        most = _mm512_max_ps(most, _mm512_load_ps(h->scores + 16 * j));
    for (int64_t j = h->n; j < h->m; j++)
        _mm512_store_ps(h->scores + 16 * j, _mm512_set1_ps(-INFINITY));
    for (int64_t j = 0; j < h->m; j += 2) {
        __m512 shares[2];
        for (int t = 0; t < 2; t++) {
            __m512 below = _mm512_sub_ps(_mm512_load_ps(h->scores + 16 * (j + t)), most);
            shares[t] = exponential(_mm512_mul_ps(below, times));
            sum = _mm512_add_ps(sum, shares[t]);
        }
        _mm512_store_si512(h->scores + 8 * j, zipped((__m512i)_mm512_cvtne2ps_pbh(shares[1], shares[0])));
    }
    return sum;
}

static void mix(const head *h) {
    const uint32_t *shares = (const uint32_t *)h->scores;
#ifdef __AMX_BF16__
    for (int64_t d = 0; d < h->size; d += 32) {
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t j = 0; j < h->m / 2; j += 16) {
            _tile_loadd(2, shares + j * 16, 64);
            _tile_loadd(3, h->values + j * h->size + d * 16, 64);
            _tile_loadd(4, h->values + j * h->size + (d + 16) * 16, 64);
            _tile_dpbf16ps(0, 3, 2);
            _tile_dpbf16ps(1, 4, 2);
        }
        _tile_stored(0, h->mixed + d * 16, 64);
        _tile_stored(1, h->mixed + (d + 16) * 16, 64);
    }
#else
    for (int64_t d = 0; d < h->size; d += 16) {
        __m512 sums[16];
        for (int t = 0; t < 16; t++)
            sums[t] = _mm512_setzero_ps();
        for (int64_t j = 0; j < h->m / 2; j++) {
            __m512i both = _mm512_load_si512(shares + j * 16);
            for (int t = 0; t < 16; t++)
                sums[t] = dot(sums[t], both, h->values + j * h->size + d + t);
        }
        for (int t = 0; t < 16; t++)
            _mm512_store_ps(h->mixed + (d + t) * 16, sums[t]);
    }
#endif
}

static void pair_values(const head *h, const bf16 *v, int64_t stride) {
    for (int64_t j = 0; j < h->m / 2; j += 16)
        for (int64_t d = 0; d < h->size; d += 16) {
            __m512i pairs[16];
            for (int t = 0; t < 16; t++) {
                __m256i both[2];
                for (int64_t i = 0; i < 2; i++) {
                    int64_t entry = 2 * (j + t) + i;
                    both[i] = entry < h->n ? _mm256_loadu_si256((const void *)(v + entry * stride + d)) : _mm256_setzero_si256();
                }
                pairs[t] = zipped(_mm512_inserti64x4(_mm512_castsi256_si512(both[0]), both[1], 1));
            }
#ifdef __AMX_BF16__
            transpose(pairs);
            for (int t = 0; t < 16; t++)
                _mm512_store_si512(h->values + j * h->size + (d + t) * 16, pairs[t]);
#else
            for (int t = 0; t < 16; t++)
                _mm512_store_si512(h->values + (j + t) * h->size + d, pairs[t]);
#endif
        }
}

static void take_queries(const head *h, const bf16 *q, int64_t stride, int64_t count) {
    for (int64_t p = 0; p < h->size / 2; p += 16) {
        __m512i pairs[16];
        for (int t = 0; t < 16; t++)
            pairs[t] = t < count ? _mm512_loadu_si512(q + t * stride + 2 * p) : _mm512_setzero_si512();
        transpose(pairs);
        for (int t = 0; t < 16; t++)
            _mm512_store_si512(h->queries + (p + t) * 16, pairs[t]);
    }
}

static void give(const head *h, __m512 sum, bf16 *made, int64_t stride, int64_t count) {
    __m512 factor = _mm512_div_ps(_mm512_set1_ps(1), sum);
    for (int64_t d = 0; d < h->size; d += 16) {
        __m512i tokens[16];
        for (int t = 0; t < 16; t++)
            tokens[t] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(h->mixed + (d + t) * 16), factor));
        transpose(tokens);
        for (int t = 0; t < count; t++)
            _mm256_storeu_si256(
                (void *)(made + t * stride + d), (__m256i)_mm512_cvtneps_pbh(_mm512_castsi512_ps(tokens[t]))
            );
    }
}

/* q (R, H, L, c), k and v (R, H, n, c) to (R, L, H, c); c is a multiple of 32. Scores and softmax are float32, and shares are
   rounded to bfloat16 before they meet the values. */
void attention(
    const bf16 *q, const bf16 *k, const bf16 *v, bf16 *made, int64_t rows, int64_t heads, int64_t length, int64_t n,
    int64_t size, strides of_q, strides of_k, strides of_v, float scale, int threads
) {
    int64_t m = (n + 31) / 32 * 32, whole = n / 16 * 16;
#pragma omp parallel num_threads(threads)
    {
        float *work = aligned_alloc(64, 4 * (m / 2 * size + 8 * size + 16 * m + 16 * size + 16 * size));
        uint32_t *pairs = (uint32_t *)work;
        head h = {.size = size, .n = n, .m = m, .stride = of_k.token, .values = pairs, .queries = pairs + m / 2 * size};
        h.scores = work + m / 2 * size + 8 * size;
        h.mixed = h.scores + 16 * m;
        bf16 *last = (bf16 *)(h.mixed + 16 * size);
        h.last = last;
        memset(last, 0, 2 * 32 * size);
        tiles before;
        begin_tiles(&before);
#pragma omp for
        for (int64_t at = 0; at < rows * heads; at++) {
            int64_t row = at / heads, of_row = at % heads;
            h.keys = k + row * of_k.row + of_row * of_k.head;
            for (int64_t j = whole; j < n; j++)
                memcpy(last + (j - whole) * size, h.keys + j * of_k.token, 2 * size);
            pair_values(&h, v + row * of_v.row + of_row * of_v.head, of_v.token);
            const bf16 *queries = q + row * of_q.row + of_row * of_q.head;
            bf16 *mixed = made + (row * length * heads + of_row) * size;
            for (int64_t i = 0; i < length; i += 16) {
                int64_t count = length - i < 16 ? length - i : 16;
                take_queries(&h, queries + i * of_q.token, of_q.token, count);
                score(&h);
                __m512 sum = share(&h, scale);
                mix(&h);
                give(&h, sum, mixed + i * heads * size, heads * size, count);
            }
        }
        end_tiles(&before);
        free(work);
    }
}
#else
int attends(void) { return 0; }
#endif
