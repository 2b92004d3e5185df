// Layer norm and RMS norm, and the sum before them. Included inside a namespace of one instruction set.

// The mean (0 for an RMS norm) and the reciprocal of the standard deviation.
template <class T>
struct Moments {
    typename T::Wide mean, rate;
};

// The moments of `size` wide numbers; those after them, up to a multiple of 16, are 0.
template <class T>
static Moments<T> moments(const NormArguments& norm, const typename T::Wide* values, int64_t size) {
    using Wide = typename T::Wide;
    Wide mean = 0;
    auto total = broadcast(Wide(0));
    if (norm.centred) {
        for (int64_t i = 0; i < size; i += kLanes) total = add(total, load_vector(values + i));
        mean = sum(total) / Wide(size);
        total = broadcast(Wide(0));
    }
    for (int64_t i = 0; i < size; i += kLanes) {
        auto x = subtract(load_vector(values + i), broadcast(mean));
        if (i + kLanes > size) x = keep(x, 0, size - i, Wide(0));
        total = multiply_add(x, x, total);
    }
    return {mean, Wide(1) / std::sqrt(sum(total) / Wide(size) + Wide(norm.eps))};
}

// Read 16 of `size` numbers from `at`; those after the end are 0.
template <class T>
static inline typename T::Vector load_some(const typename T::Storage* from, int64_t at, int64_t size) {
    if (at + kLanes <= size) return T::load(from + at);
    typename T::Storage some[kLanes] = {};
    memcpy(some, from + at, static_cast<size_t>(size - at) * sizeof some[0]);
    return T::load(some);
}
template <class T>
static inline void store_some(typename T::Storage* to, int64_t at, int64_t size, typename T::Vector x) {
    if (at + kLanes <= size) return T::store(to + at, x);
    typename T::Storage some[kLanes];
    T::store(some, x);
    memcpy(to + at, some, static_cast<size_t>(size - at) * sizeof some[0]);
}
// The same for wide numbers.
template <class W>
static inline auto load_some_wide(const W* from, int64_t at, int64_t size) {
    if (at + kLanes <= size) return load_vector(from + at);
    W some[kLanes] = {};
    memcpy(some, from + at, static_cast<size_t>(size - at) * sizeof some[0]);
    return load_vector(static_cast<const W*>(some));
}

// (x - mean) * rate * weight + bias
template <class T>
static inline typename T::Vector normalised(const NormArguments& norm, const Moments<T>& moments,
                                            typename T::Vector x, const typename T::Wide* weight, int64_t at,
                                            int64_t size) {
    x = multiply(subtract(x, broadcast(moments.mean)), broadcast(moments.rate));
    if (weight != nullptr) x = multiply(x, load_some_wide(weight, at, size));
    if (norm.bias != nullptr) x = add(x, load_some_wide(static_cast<const typename T::Wide*>(norm.bias), at, size));
    return x;
}

// Rows of less work than this are not worth a second thread.
constexpr int64_t kParallelElements = 1 << 16;

// sum = residual + scale * hidden, rounded to the element type; normed = norm(sum). Without `hidden`, the sum is the
// residual and is not stored; without `norm`, only the sum is.
template <class T>
static void add_norm(const NormArguments* norm, const void* hidden, const void* residual, double scale, void* normed,
                     void* sum, int64_t num_rows, int64_t size, int64_t num_threads) {
    using Storage = typename T::Storage;
    using Wide = typename T::Wide;
    const int64_t padded = round_up(size, kLanes);
    const bool is_parallel = num_rows > 1 && num_rows * size > kParallelElements;
#pragma omp parallel num_threads(static_cast<int>(num_threads)) if (is_parallel)
    {
        Wide* values = static_cast<Wide*>(aligned_alloc(64, static_cast<size_t>(padded) * 16));
#pragma omp for schedule(static)
        for (int64_t row = 0; row < num_rows; ++row) {
            const Storage* from = static_cast<const Storage*>(residual) + row * size;
            Storage* to = static_cast<Storage*>(sum) + row * size;
            for (int64_t i = 0; i < size; i += kLanes) {
                auto x = load_some<T>(from, i, size);
                if (hidden != nullptr) {
                    const auto more = load_some<T>(static_cast<const Storage*>(hidden) + row * size, i, size);
                    x = multiply_add(more, broadcast(Wide(scale)), x);
                    store_some<T>(to, i, size, x);
                    // The norm is that of the rounded sum, as if they were two operations.
                    x = load_some<T>(to, i, size);
                }
                store_vector(values + i, x);
            }
            if (norm == nullptr) continue;
            const Moments<T> both = moments<T>(*norm, values, size);
            for (int64_t i = 0; i < size; i += kLanes)
                store_some<T>(static_cast<Storage*>(normed) + row * size, i, size,
                              normalised<T>(*norm, both, load_vector(values + i),
                                            static_cast<const Wide*>(norm->weight), i, size));
        }
        free(values);
    }
}
