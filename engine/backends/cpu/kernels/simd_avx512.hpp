// 16 floats in one AVX-512 register. Included inside a namespace of one instruction set.

using Floats = __m512;

constexpr int kMaxRows = 6;  // 6 x 4 sums, 4 operands and a broadcast fit into 32 registers
constexpr int kMaxColumns = 4;

static inline Floats broadcast(float x) { return _mm512_set1_ps(x); }
static inline Floats load_vector(const float* from) { return _mm512_loadu_ps(from); }
static inline void store_vector(float* to, Floats x) { _mm512_storeu_ps(to, x); }
static inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
static inline Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
static inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
static inline Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
static inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
static inline Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }
static inline float sum(Floats x) { return _mm512_reduce_add_ps(x); }
static inline float maximum(Floats x) { return _mm512_reduce_max_ps(x); }

// Keep lanes [first, end) of x; set the others to `rest`.
static inline Floats keep(Floats x, int64_t first, int64_t end, float rest) {
    const uint32_t mask = ((1u << end) - 1) & ~((1u << first) - 1);
    return _mm512_mask_blend_ps(static_cast<__mmask16>(mask), _mm512_set1_ps(rest), x);
}

// exp(x) within 2 units in the last place; 0 below -87, exp(88) above 88. Cephes' polynomial.
static inline Floats exponential(Floats x) {
    const __mmask16 is_positive = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    // In this order of the arguments, a NaN stays one.
    x = _mm512_max_ps(_mm512_set1_ps(-87.0f), _mm512_min_ps(_mm512_set1_ps(88.0f), x));
    const Floats n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    Floats r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    Floats p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    return _mm512_maskz_scalef_ps(is_positive, p, n);
}

static inline Floats load_bfloat16(const uint16_t* from) {
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}

#ifdef PAGEFLEET_BFLOAT16_PRODUCTS
static inline void store_bfloat16(uint16_t* to, Floats x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(x));
}
#else
// Round to nearest, ties to even; a NaN stays one.
static inline void store_bfloat16(uint16_t* to, Floats x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
#endif

// 16 pairs of bfloat16, as two vectors: the first elements of the pairs, and the second ones.
struct FloatPairs {
    Floats first, second;
};
static inline FloatPairs load_pairs(const uint16_t* from) {
    const __m512i pairs = _mm512_loadu_si512(from);
    const __m512i second = _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)), _mm512_castsi512_ps(second)};
}
