// float32 and bfloat16: how they are loaded, stored and multiplied. Included inside a namespace of one instruction
// set, after its vectors.
//
// A product takes an operand from the cache, 16 elements or 16 pairs of them, and a factor, which all 16 share.

struct Float32 {
    using Storage = float;
    using Wide = float;
    using Vector = Floats;
    using Operand = Floats;
    using Factor = float;
    static constexpr int kPair = 1;

    static Vector load(const Storage* from) { return load_vector(from); }
    static void store(Storage* to, Vector x) { store_vector(to, x); }
    static Operand operand(const Storage* from) { return load_vector(from); }
    static Vector product(Vector sums, Operand operand, const Factor* factor) {
        return multiply_add(operand, broadcast(*factor), sums);
    }
    static void store_factors(Factor* to, Vector x) { store_vector(to, x); }
};

struct Bfloat16 {
    using Storage = uint16_t;
    using Wide = float;
    using Vector = Floats;
    static constexpr int kPair = 2;

    static Vector load(const Storage* from) { return load_bfloat16(from); }
    static void store(Storage* to, Vector x) { store_bfloat16(to, x); }
#ifdef PAGEFLEET_BFLOAT16_PRODUCTS
    using Operand = __m512i;
    using Factor = uint32_t;
    static Operand operand(const Storage* from) { return _mm512_loadu_si512(from); }
    static Vector product(Vector sums, Operand operand, const Factor* factor) {
        return _mm512_dpbf16_ps(sums, (__m512bh)operand, (__m512bh)_mm512_set1_epi32(static_cast<int>(*factor)));
    }
    static void store_factors(Factor* to, Vector x) { store_bfloat16(reinterpret_cast<uint16_t*>(to), x); }
#else
    using Operand = FloatPairs;
    struct Factor {
        float first, second;
    };
    static Operand operand(const Storage* from) { return load_pairs(from); }
    static Vector product(Vector sums, Operand operand, const Factor* factor) {
        sums = multiply_add(operand.first, broadcast(factor->first), sums);
        return multiply_add(operand.second, broadcast(factor->second), sums);
    }
    static void store_factors(Factor* to, Vector x) { store_vector(reinterpret_cast<float*>(to), x); }
#endif
};
