// What comes before attention: norm and rotation of queries and keys, and the write to the cache. Included inside a
// namespace of one instruction set.

template <class T>
class HeadPreparation {
    using Storage = typename T::Storage;
    using Wide = typename T::Wide;
    using Vector = typename T::Vector;

public:
    HeadPreparation(const LayerArguments& layer, const StepArguments& step, typename T::Factor* queries)
        : layer_(layer), step_(step), queries_(queries), dim_(layer.head_dim),
          padded_(round_up(layer.head_dim, kLanes)) {}

    // Prepare all heads of a token. qkv is [H * D + K * D + K * V]; `memory` has room for two heads.
    void run(int64_t token, const Storage* qkv, Wide* memory) {
        const int64_t num_heads = layer_.num_heads, num_kv_heads = layer_.num_kv_heads;
        const Storage *keys = qkv + num_heads * dim_, *values = keys + num_kv_heads * dim_;
        const Moments<T> query_moments = shared_moments(layer_.query_norm, qkv, num_heads);
        const Moments<T> key_moments = shared_moments(layer_.key_norm, keys, num_kv_heads);
        for (int64_t head = 0; head < num_heads; ++head) {
            const Wide* prepared =
                prepare(layer_.query_norm, query_moments, qkv + head * dim_, head, token, memory);
            const Wide factor =
                step_.query_factors == nullptr ? Wide(1) : static_cast<const Wide*>(step_.query_factors)[token];
            typename T::Factor* to = queries_ + (token * num_heads + head) * padded_ / T::kPair;
            for (int64_t i = 0; i < padded_; i += kLanes)
                T::store_factors(to + i / T::kPair, multiply(load_vector(prepared + i), broadcast(factor)));
        }
        const Slot slot = slot_of(token);
        for (int64_t head = 0; head < num_kv_heads; ++head) {
            write_key(slot, head, prepare(layer_.key_norm, key_moments, keys + head * dim_, head, token, memory));
            write_value(slot, head, values + head * layer_.value_dim);
        }
    }

private:
    // The mean over all heads, if the norm has one.
    Moments<T> shared_moments(const NormArguments& norm, const Storage* heads, int64_t num_heads) const {
        if (!norm.exists || !norm.across_heads) return {Wide(0), Wide(1)};
        const int64_t size = num_heads * dim_;
        Wide mean = 0;
        Vector total = broadcast(Wide(0));
        if (norm.centred) {
            for (int64_t i = 0; i < size; i += kLanes) total = add(total, load_some<T>(heads, i, size));
            mean = sum(total) / Wide(size);
            total = broadcast(Wide(0));
        }
        for (int64_t i = 0; i < size; i += kLanes) {
            Vector x = subtract(load_some<T>(heads, i, size), broadcast(mean));
            if (i + kLanes > size) x = keep(x, 0, size - i, Wide(0));
            total = multiply_add(x, x, total);
        }
        return {mean, Wide(1) / std::sqrt(sum(total) / Wide(size) + Wide(norm.eps))};
    }

    // Return a normalised and rotated head, followed by zeros up to a multiple of 16.
    const Wide* prepare(const NormArguments& norm, Moments<T> both, const Storage* from, int64_t head, int64_t token,
                        Wide* memory) const {
        for (int64_t i = 0; i < dim_; i += kLanes) store_vector(memory + i, load_some<T>(from, i, dim_));
        if (norm.exists) {
            if (!norm.across_heads) both = moments<T>(norm, memory, dim_);
            const Wide* weight = static_cast<const Wide*>(norm.weight);
            if (weight != nullptr && (norm.per_head || norm.across_heads)) weight += head * dim_;
            NormArguments own = norm;
            if (norm.bias != nullptr && norm.across_heads) own.bias = static_cast<const Wide*>(norm.bias) + head * dim_;
            for (int64_t i = 0; i < dim_; i += kLanes) {
                Vector x = normalised<T>(own, both, load_vector(memory + i), weight, i, dim_);
                if (i + kLanes > dim_) x = keep(x, 0, dim_ - i, Wide(0));
                store_vector(memory + i, x);
            }
        }
        if (layer_.rotated == 0) return memory;
        Wide* rotated = memory + padded_;
        memcpy(rotated, memory, static_cast<size_t>(padded_) * sizeof(Wide));
        rotate(memory + layer_.first_rotated, token, rotated + layer_.first_rotated);
        return rotated;
    }

    void rotate(const Wide* __restrict from, int64_t token, Wide* __restrict to) const {
        const int64_t half = layer_.rotated / 2;
        const Wide* __restrict cosines = static_cast<const Wide*>(step_.cosines) + token * half;
        const Wide* __restrict sines = static_cast<const Wide*>(step_.sines) + token * half;
        if (layer_.interleaved) {
            for (int64_t i = 0; i < half; ++i) {
                to[2 * i] = from[2 * i] * cosines[i] - from[2 * i + 1] * sines[i];
                to[2 * i + 1] = from[2 * i + 1] * cosines[i] + from[2 * i] * sines[i];
            }
            return;
        }
        for (int64_t i = 0; i < half; ++i) {
            to[i] = from[i] * cosines[i] - from[half + i] * sines[i];
            to[half + i] = from[half + i] * cosines[i] + from[i] * sines[i];
        }
    }

    // The place of a token in the cache.
    struct Slot {
        int64_t first_tile;  // of the first head
        int64_t lane;
    };
    Slot slot_of(int64_t token) const {
        const int64_t position = step_.positions[token], size = layer_.block_size;
        const int64_t block = step_.block_tables[step_.sequences[token] * step_.table_width + position / size];
        const int64_t per_block = tiles_per_block(size);
        return {block * layer_.num_kv_heads * per_block + position % size / kLanes, position % size % kLanes};
    }

    void write_key(Slot slot, int64_t head, const Wide* key) {
        const int64_t size = round_up(dim_, T::kPair) * kLanes;
        const int64_t tile = slot.first_tile + head * tiles_per_block(layer_.block_size);
        Storage* to = static_cast<Storage*>(layer_.keys) + tile * size + slot.lane * T::kPair;
        Storage narrow[kLanes];
        for (int64_t i = 0; i < dim_; i += kLanes) {
            T::store(narrow, load_vector(key + i));
            const int64_t end = smaller(kLanes, round_up(dim_ - i, T::kPair));
            for (int64_t d = 0; d < end; d += T::kPair)
                memcpy(to + (i + d) * kLanes, narrow + d, T::kPair * sizeof(Storage));
        }
    }

    void write_value(Slot slot, int64_t head, const Storage* value) {
        const int64_t padded = round_up(layer_.value_dim, kLanes);
        const int64_t tile = slot.first_tile + head * tiles_per_block(layer_.block_size);
        Storage* to = static_cast<Storage*>(layer_.values) + tile * padded * kLanes +
                      slot.lane / T::kPair * padded * T::kPair + slot.lane % T::kPair;
        for (int64_t v = 0; v < layer_.value_dim; ++v) to[v * T::kPair] = value[v];
    }

    const LayerArguments& layer_;
    const StepArguments& step_;
    typename T::Factor* queries_;
    int64_t dim_, padded_;
};
