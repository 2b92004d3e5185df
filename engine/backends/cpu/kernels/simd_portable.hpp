// 16 floats or doubles in vectors of 16 bytes, which the compiler maps to SSE2, NEON or plain registers. Included
// inside a namespace of one instruction set.

template <class S>
struct Portable {
    static constexpr int kPartLanes = 16 / sizeof(S);
    static constexpr int kParts = 16 / kPartLanes;
    typedef S Part __attribute__((vector_size(16)));
    Part parts[kParts];
};

using Floats = Portable<float>;
constexpr int kMaxRows = 2;
constexpr int kMaxColumns = 1;

template <class S>
static inline Portable<S> load_vector(const S* from) {
    Portable<S> x;
    memcpy(x.parts, from, sizeof x.parts);
    return x;
}
template <class S>
static inline Portable<S> broadcast(S value) {
    Portable<S> x;
    for (auto& part : x.parts)
        for (int i = 0; i < Portable<S>::kPartLanes; ++i) part[i] = value;
    return x;
}
template <class S>
static inline void store_vector(S* to, Portable<S> x) {
    memcpy(to, x.parts, sizeof x.parts);
}
template <class S>
static inline Portable<S> add(Portable<S> a, Portable<S> b) {
    for (int i = 0; i < Portable<S>::kParts; ++i) a.parts[i] = a.parts[i] + b.parts[i];
    return a;
}
template <class S>
static inline Portable<S> subtract(Portable<S> a, Portable<S> b) {
    for (int i = 0; i < Portable<S>::kParts; ++i) a.parts[i] = a.parts[i] - b.parts[i];
    return a;
}
template <class S>
static inline Portable<S> multiply(Portable<S> a, Portable<S> b) {
    for (int i = 0; i < Portable<S>::kParts; ++i) a.parts[i] = a.parts[i] * b.parts[i];
    return a;
}
template <class S>
static inline Portable<S> divide(Portable<S> a, Portable<S> b) {
    for (int i = 0; i < Portable<S>::kParts; ++i) a.parts[i] = a.parts[i] / b.parts[i];
    return a;
}
template <class S>
static inline Portable<S> multiply_add(Portable<S> a, Portable<S> b, Portable<S> c) {
    for (int i = 0; i < Portable<S>::kParts; ++i) {
#if defined(__ARM_NEON)
        if constexpr (sizeof(S) == 4) {
            c.parts[i] = (typename Portable<S>::Part)vfmaq_f32((float32x4_t)c.parts[i], (float32x4_t)a.parts[i],
                                                               (float32x4_t)b.parts[i]);
            continue;
        }
#endif
        c.parts[i] = a.parts[i] * b.parts[i] + c.parts[i];
    }
    return c;
}
template <class S>
static inline Portable<S> maximum(Portable<S> a, Portable<S> b) {
    for (int i = 0; i < Portable<S>::kParts; ++i) a.parts[i] = a.parts[i] > b.parts[i] ? a.parts[i] : b.parts[i];
    return a;
}
template <class S>
static inline S sum(Portable<S> x) {
    for (int width = Portable<S>::kParts / 2; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) x.parts[i] = x.parts[i] + x.parts[i + width];
    S total = 0;
    for (int i = 0; i < Portable<S>::kPartLanes; ++i) total += x.parts[0][i];
    return total;
}
template <class S>
static inline S maximum(Portable<S> x) {
    for (int i = 1; i < Portable<S>::kParts; ++i)
        x.parts[0] = x.parts[0] > x.parts[i] ? x.parts[0] : x.parts[i];
    S best = x.parts[0][0];
    for (int i = 1; i < Portable<S>::kPartLanes; ++i) best = x.parts[0][i] > best ? x.parts[0][i] : best;
    return best;
}
// Keep lanes [first, end) of x; set the others to `rest`.
template <class S>
static inline Portable<S> keep(Portable<S> x, int64_t first, int64_t end, S rest) {
    for (int64_t i = 0; i < 16; ++i)
        if (i < first || i >= end) x.parts[i / Portable<S>::kPartLanes][i % Portable<S>::kPartLanes] = rest;
    return x;
}
// exp(x); 0 below -87 (float) or -708, the exponential of the largest allowed number above it.
template <class S>
static inline Portable<S> exponential(Portable<S> x) {
    constexpr S limit = sizeof(S) == 4 ? S(87) : S(708);
    S values[16];
    store_vector(values, x);
    for (auto& value : values) value = value < -limit ? S(0) : std::exp(value > limit ? limit : value);
    return load_vector(values);
}

static inline Floats load_bfloat16(const uint16_t* from) {
    uint32_t bits[16];
    for (int i = 0; i < 16; ++i) bits[i] = static_cast<uint32_t>(from[i]) << 16;
    Floats x;
    memcpy(x.parts, bits, sizeof bits);
    return x;
}
// Round to nearest, ties to even; a NaN stays one.
static inline void store_bfloat16(uint16_t* to, Floats x) {
    uint32_t bits[16];
    memcpy(bits, x.parts, sizeof bits);
    for (int i = 0; i < 16; ++i) {
        const bool is_nan = (bits[i] & 0x7fffffffu) > 0x7f800000u;
        to[i] = is_nan ? 0x7fc0 : static_cast<uint16_t>((bits[i] + 0x7fff + ((bits[i] >> 16) & 1)) >> 16);
    }
}
// 16 pairs of bfloat16, as two vectors: the first elements of the pairs, and the second ones.
struct FloatPairs {
    Floats first, second;
};
static inline FloatPairs load_pairs(const uint16_t* from) {
    typedef uint32_t Bits __attribute__((vector_size(16)));
    FloatPairs pairs;
    for (int i = 0; i < 4; ++i) {
        Bits bits;
        memcpy(&bits, from + 8 * i, sizeof bits);
        pairs.first.parts[i] = (Floats::Part)(bits << 16);
        pairs.second.parts[i] = (Floats::Part)(bits & 0xffff0000u);
    }
    return pairs;
}
