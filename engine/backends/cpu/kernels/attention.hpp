// Attention of one item over the paged cache. Included inside a namespace of one instruction set.
//
// Rows are pairs of a query and a head of the group that shares a key/value head. The softmax is computed piece by
// piece with a running maximum (FlashAttention, Dao et al. 2022); partial results of spans are joined in the order of
// the context (FlashDecoding, Dao et al. 2023).

// The memory of one thread.
template <class T>
struct Scratch {
    typename T::Wide* scores;    // [rows, 64]
    typename T::Factor* weights;  // [rows, 64 / pair]
    typename T::Wide* factors;   // [rows]: of the earlier pieces' sums
    typename T::Wide* span;      // [rows, result size]: the result of one span
    typename T::Wide* joined;    // [rows, result size]: the result of the spans before
    const typename T::Factor** queries;  // [rows]
    int64_t* positions;          // [rows]: of the queries
    typename T::Wide* heads;     // two heads of a token, see HeadPreparation
};

// An unfinished result: for each row the maximum of the scores, the sum of exponentials, and [value_dim] sums of
// weighted values. All maxima come first, then all sums of exponentials.
template <class T>
struct Partial {
    typename T::Wide *maxima, *totals, *values;

    Partial(typename T::Wide* at, int64_t num_rows)
        : maxima(at), totals(at + num_rows), values(at + 2 * num_rows) {}
    void clear(int64_t num_rows, int64_t value_dim) {
        for (int64_t r = 0; r < num_rows; ++r) maxima[r] = -INFINITY, totals[r] = 0;
        memset(values, 0, static_cast<size_t>(num_rows * value_dim) * sizeof(typename T::Wide));
    }
};

template <class T>
static inline typename T::Wide exponential_of(typename T::Wide x) {
    typename T::Wide lanes[kLanes];
    store_vector(lanes, exponential(broadcast(x)));
    return lanes[0];
}

// Join `more`, the result of the next span, to `first`.
template <class T>
static void join(Partial<T> first, Partial<T> more, int64_t num_rows, int64_t value_dim) {
    using Wide = typename T::Wide;
    for (int64_t r = 0; r < num_rows; ++r) {
        // A span that the query does not attend to changes nothing.
        if (more.maxima[r] == -INFINITY) continue;
        const Wide best = first.maxima[r] > more.maxima[r] ? first.maxima[r] : more.maxima[r];
        const Wide old = exponential_of<T>(first.maxima[r] - best), added = exponential_of<T>(more.maxima[r] - best);
        first.maxima[r] = best;
        first.totals[r] = first.totals[r] * old + more.totals[r] * added;
        Wide* to = first.values + r * value_dim;
        const Wide* from = more.values + r * value_dim;
        for (int64_t v = 0; v < value_dim; v += kLanes)
            store_vector(to + v, multiply_add(load_vector(from + v), broadcast(added),
                                              multiply(load_vector(to + v), broadcast(old))));
    }
}

template <class T>
class ItemAttention {
    using Storage = typename T::Storage;
    using Wide = typename T::Wide;
    using Vector = typename T::Vector;
    using Factor = typename T::Factor;

public:
    ItemAttention(const LayerArguments& layer, const StepArguments& step, const Factor* queries, Scratch<T> scratch)
        : layer_(layer), step_(step), queries_(queries), scratch_(scratch),
          group_(layer.num_heads / layer.num_kv_heads), value_dim_(round_up(layer.value_dim, kLanes)) {}

    // Compute an item for one key/value head. The result is in `output` [T, H * V], or in the item's partial slot.
    void run(const Item& item, int64_t head, Storage* output, Wide* partials, int64_t partial_stride) {
        prepare_rows(item.sequence, item.first_query, item.num_queries, head);
        Partial<T> span(scratch_.span, num_rows_);
        if (item.partial >= 0) {
            Wide* slot = partials + item.partial * partial_stride;
            span = Partial<T>(slot + head * partial_stride / layer_.num_kv_heads, num_rows_);
        }
        Partial<T> joined(scratch_.joined, num_rows_);
        // One span needs no join, with the same result: 0 * 0 + x * 1.
        const bool joins = item.end_span - item.first_span > 1;
        if (joins) joined.clear(num_rows_, value_dim_);
        for (int64_t index = item.first_span; index < item.end_span; ++index) {
            span.clear(num_rows_, value_dim_);
            attend_span(item.sequence, index, head, span);
            if (joins) join<T>(joined, span, num_rows_, value_dim_);
        }
        if (item.partial < 0) finish(joins ? joined : span, head, output);
    }

    // Join the partial results of some queries, and store the attention.
    void merge(const Merge& merge, int64_t head, Storage* output, Wide* partials, int64_t partial_stride) {
        prepare_rows(merge.sequence, merge.first_query, merge.num_queries, head);
        Partial<T> joined(scratch_.joined, num_rows_);
        joined.clear(num_rows_, value_dim_);
        for (int64_t index = 0; index < merge.num_partials; ++index) {
            Wide* slot = partials + (merge.first_partial + index) * partial_stride;
            join<T>(joined, Partial<T>(slot + head * partial_stride / layer_.num_kv_heads, num_rows_), num_rows_,
                    value_dim_);
        }
        finish(joined, head, output);
    }

private:
    void prepare_rows(int64_t sequence, int64_t first_query, int64_t num_queries, int64_t head) {
        num_rows_ = num_queries * group_;
        first_token_ = step_.starts[sequence] + first_query;
        const int64_t query_dim = round_up(layer_.head_dim, kLanes);
        for (int64_t r = 0; r < num_rows_; ++r) {
            const int64_t token = first_token_ + r / group_;
            scratch_.positions[r] = step_.positions[token];
            scratch_.queries[r] =
                queries_ + (token * layer_.num_heads + head * group_ + r % group_) * query_dim / T::kPair;
        }
    }

    void attend_span(int64_t sequence, int64_t index, int64_t head, Partial<T> result) {
        const int64_t first_position = scratch_.positions[0], last_position = scratch_.positions[num_rows_ - 1];
        const int64_t first_tile = larger(tile_of(first_key(first_position, layer_.window), layer_.block_size),
                                          index * kSpanTiles);
        const int64_t end_tile = smaller(tile_of(last_position, layer_.block_size) + 1, (index + 1) * kSpanTiles);
        last_tile_ = end_tile - 1;
        for (int64_t tile = first_tile; tile < end_tile;) {
            // Pieces start at multiples of 4 tiles, whatever the first tile is.
            const int64_t end = smaller(end_tile, (tile / kPieceTiles + 1) * kPieceTiles);
            const Piece<T> piece = piece_of(sequence, tile, end, head);
            attend_piece(piece, result);
            tile = end;
        }
    }

    Piece<T> piece_of(int64_t sequence, int64_t first, int64_t end, int64_t head) const {
        const int64_t per_block = tiles_per_block(layer_.block_size);
        const int64_t key_size = round_up(layer_.head_dim, T::kPair) * kLanes, value_size = value_dim_ * kLanes;
        const int64_t* table = step_.block_tables + sequence * step_.table_width;
        const Storage* keys = static_cast<const Storage*>(layer_.keys);
        const auto place = [&](int64_t tile) {
            return (table[tile / per_block] * layer_.num_kv_heads + head) * per_block + tile % per_block;
        };
        Piece<T> piece;
        piece.num_tiles = end - first;
        for (int64_t tile = first; tile < end; ++tile) {
            const int64_t at = place(tile);
            piece.keys[tile - first] = keys + at * key_size;
            piece.values[tile - first] = static_cast<const Storage*>(layer_.values) + at * value_size;
            const int64_t further = smaller(end + tile - first, last_tile_);
            piece.next_keys[tile - first] = reinterpret_cast<const char*>(keys + place(further) * key_size);
            piece.starts[tile - first] = tile_start(tile, layer_.block_size);
            piece.sizes[tile - first] = tile_size(tile, layer_.block_size);
        }
        return piece;
    }

    struct ScoreRows {
        const ItemAttention& self;
        const Piece<T>& piece;
        template <int R>
        void rows(int64_t first) const {
            score_rows<T, R>(piece, divide_up(self.layer_.head_dim, T::kPair), self.scratch_.queries + first,
                             self.scratch_.scores + first * kPieceTiles * kLanes);
        }
    };

    struct WeighRows {
        const ItemAttention& self;
        const Piece<T>& piece;
        Partial<T> result;
        template <int R>
        void rows(int64_t first) const {
            const Factor* weights[R];
            for (int r = 0; r < R; ++r)
                weights[r] = self.scratch_.weights + (first + r) * kPieceTiles * kLanes / T::kPair;
            weigh_rows<T, R>(piece, self.value_dim_, weights, self.scratch_.factors + first,
                             result.values + first * self.value_dim_);
        }
    };

    void attend_piece(const Piece<T>& piece, Partial<T> result) {
        for_row_blocks(num_rows_, 0, ScoreRows{*this, piece});
        for (int64_t r = 0; r < num_rows_; ++r) update_softmax(piece, r, result);
        for_row_blocks(num_rows_, 0, WeighRows{*this, piece, result});
    }

    // Turn a row's scores into weights relative to the new maximum, and update maximum and sum.
    void update_softmax(const Piece<T>& piece, int64_t r, Partial<T> result) {
        const int64_t end_key = scratch_.positions[r] + 1;
        const int64_t start_key = first_key(scratch_.positions[r], layer_.window);
        const Wide* scores = scratch_.scores + r * kPieceTiles * kLanes;
        Vector scaled[kPieceTiles];
        Vector best = broadcast(result.maxima[r]);
        for (int64_t tile = 0; tile < piece.num_tiles; ++tile) {
            Vector x = multiply(load_vector(scores + tile * kLanes), broadcast(Wide(layer_.scale)));
            if (layer_.soft_cap != 0) x = capped(x);
            const int64_t first = start_key - piece.starts[tile];
            const int64_t end = smaller(end_key - piece.starts[tile], piece.sizes[tile]);
            if (first > 0 || end < kLanes)
                x = keep(x, smaller(larger(first, 0), kLanes), larger(end, 0), Wide(-INFINITY));
            scaled[tile] = x;
            best = maximum(best, x);
        }
        const Wide highest = maximum(best);
        // Without a key so far, all weights are 0: the exponentials of -inf.
        const Wide base = highest == -INFINITY ? Wide(0) : highest;
        Vector total = broadcast(Wide(0));
        Factor* weights = scratch_.weights + r * kPieceTiles * kLanes / T::kPair;
        for (int64_t tile = 0; tile < piece.num_tiles; ++tile) {
            const Vector weight = exponential(subtract(scaled[tile], broadcast(base)));
            total = add(total, weight);
            T::store_factors(weights + tile * kLanes / T::kPair, weight);
        }
        const Wide factor = result.maxima[r] == base ? Wide(1) : exponential_of<T>(result.maxima[r] - base);
        scratch_.factors[r] = factor;
        result.totals[r] = result.totals[r] * factor + sum(total);
        result.maxima[r] = highest;
    }

    // cap * tanh(x / cap)
    Vector capped(Vector x) const {
        const Vector cap = broadcast(Wide(layer_.soft_cap)), two = broadcast(Wide(2)), one = broadcast(Wide(1));
        const Vector power = exponential(multiply(two, divide(x, cap)));
        return multiply(cap, subtract(one, divide(two, add(power, one))));
    }

    void finish(Partial<T> result, int64_t head, Storage* output) {
        for (int64_t r = 0; r < num_rows_; ++r) {
            const int64_t query_head = head * group_ + r % group_;
            Wide scale = Wide(1) / result.totals[r];
            if (layer_.sinks != nullptr) {
                const Wide sink = static_cast<const Wide*>(layer_.sinks)[query_head];
                const Wide best = sink > result.maxima[r] ? sink : result.maxima[r];
                const Wide kept = exponential_of<T>(result.maxima[r] - best);
                scale = kept / (result.totals[r] * kept + exponential_of<T>(sink - best));
            }
            const Wide* values = result.values + r * value_dim_;
            Storage* to =
                output + ((first_token_ + r / group_) * layer_.num_heads + query_head) * layer_.value_dim;
            int64_t v = 0;
            for (; v + kLanes <= layer_.value_dim; v += kLanes)
                T::store(to + v, multiply(load_vector(values + v), broadcast(scale)));
            if (v < layer_.value_dim) {
                Storage rest[kLanes];
                T::store(rest, multiply(load_vector(values + v), broadcast(scale)));
                memcpy(to + v, rest, static_cast<size_t>(layer_.value_dim - v) * sizeof(Storage));
            }
        }
    }

    const LayerArguments& layer_;
    const StepArguments& step_;
    const Factor* queries_;
    Scratch<T> scratch_;
    int64_t group_, value_dim_;
    int64_t num_rows_ = 0, first_token_ = 0, last_tile_ = 0;
};
