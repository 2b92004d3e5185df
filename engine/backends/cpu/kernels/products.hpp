// The inner loop of attention. Included inside a namespace of one instruction set.

// Add to `sums[r][c]`, for each row r and each column c, the products of `num_steps` operands of the column with the
// row's factors. A row's sums do not depend on the other rows or columns. Each step fetches a further cache line of
// `next[c]`, which are used soon: tiles are scattered over the cache, so that the processor does not foresee them.
template <class T, int R, int C>
static inline void add_products(const typename T::Storage* const* columns, int64_t stride, int64_t num_steps,
                                const typename T::Factor* const* rows, const char* const* next,
                                typename T::Vector (&sums)[R][C]) {
    for (int64_t step = 0; step < num_steps; ++step) {
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) __builtin_prefetch(next[c] + step * kLineBytes);
        typename T::Operand operands[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) operands[c] = T::operand(columns[c] + step * stride);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) sums[r][c] = T::product(sums[r][c], operands[c], rows[r] + step);
        }
    }
}

// Up to 4 tiles of one key/value head, which the softmax takes as one piece.
template <class T>
struct Piece {
    const typename T::Storage* keys[kPieceTiles];
    const typename T::Storage* values[kPieceTiles];
    int64_t starts[kPieceTiles];  // the position of the first token
    int64_t sizes[kPieceTiles];   // tokens
    int64_t num_tiles;
    const char* next_keys[kPieceTiles];  // of the next piece, to be fetched
};

// Store the scores of R queries with the keys of columns [first, first + C) of a piece: [R, 64].
template <class T, int R, int C>
static inline void score_columns(const Piece<T>& piece, int64_t first, int64_t num_steps,
                                 const typename T::Factor* const* queries, typename T::Wide* scores) {
    typename T::Vector sums[R][C];
    for (auto& row : sums)
        for (auto& each : row) each = broadcast(typename T::Wide(0));
    const char* next[C];
    for (int c = 0; c < C; ++c) next[c] = reinterpret_cast<const char*>(piece.values[first + c]);
    add_products<T, R, C>(piece.keys + first, kLanes * T::kPair, num_steps, queries, next, sums);
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) store_vector(scores + (r * kPieceTiles + first + c) * kLanes, sums[r][c]);
}

template <class T, int R>
static void score_rows(const Piece<T>& piece, int64_t num_steps, const typename T::Factor* const* queries,
                       typename T::Wide* scores) {
    int64_t first = 0;
    if constexpr (kMaxColumns > 1)
        for (; first + kMaxColumns <= piece.num_tiles; first += kMaxColumns)
            score_columns<T, R, kMaxColumns>(piece, first, num_steps, queries, scores);
    for (; first < piece.num_tiles; ++first) score_columns<T, R, 1>(piece, first, num_steps, queries, scores);
}

// Scale columns [first, first + 16 * C) of the R sums by the rows' factors, and add the weighted values of a piece.
template <class T, int R, int C>
static inline void weigh_columns(const Piece<T>& piece, int64_t first, int64_t value_dim,
                                 const typename T::Factor* const* weights, const typename T::Wide* factors,
                                 typename T::Wide* output) {
    typename T::Vector sums[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c)
            sums[r][c] = multiply(load_vector(output + r * value_dim + first + c * kLanes), broadcast(factors[r]));
    for (int64_t tile = 0; tile < piece.num_tiles; ++tile) {
        const typename T::Storage* columns[C];
        const typename T::Factor* rows[R];
        const char* next[C];
        for (int c = 0; c < C; ++c) {
            columns[c] = piece.values[tile] + (first + c * kLanes) * T::kPair;
            next[c] = piece.next_keys[tile] + (first / kLanes + c) * (kLanes / T::kPair) * kLineBytes;
        }
        for (int r = 0; r < R; ++r) rows[r] = weights[r] + tile * kLanes / T::kPair;
        add_products<T, R, C>(columns, value_dim * T::kPair, kLanes / T::kPair, rows, next, sums);
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) store_vector(output + r * value_dim + first + c * kLanes, sums[r][c]);
}

template <class T, int R>
static void weigh_rows(const Piece<T>& piece, int64_t value_dim, const typename T::Factor* const* weights,
                       const typename T::Wide* factors, typename T::Wide* output) {
    int64_t first = 0;
    if constexpr (kMaxColumns > 1)
        for (; first + kMaxColumns * kLanes <= value_dim; first += kMaxColumns * kLanes)
            weigh_columns<T, R, kMaxColumns>(piece, first, value_dim, weights, factors, output);
    for (; first < value_dim; first += kLanes)
        weigh_columns<T, R, 1>(piece, first, value_dim, weights, factors, output);
}

// Call work.template rows<R>(first) for rows [0, num_rows), as many at a time as the registers can hold.
template <class Work, int R = kMaxRows>
static inline void for_row_blocks(int64_t num_rows, int64_t first, const Work& work) {
    for (; first + R <= num_rows; first += R) work.template rows<R>(first);
    if constexpr (R > 1)
        if (first < num_rows) for_row_blocks<Work, R - 1>(num_rows, first, work);
}
