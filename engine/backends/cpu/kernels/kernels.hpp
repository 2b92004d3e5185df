// The kernels of one element type as a table of functions. Included inside a namespace of one instruction set, after
// its vectors and elements.

// The workspace of a call: prepared queries, partial results, and the memory of each thread, one after the other.
template <class T>
struct Workspace {
    using Wide = typename T::Wide;
    int64_t rows, queries, partial_stride, partials, thread, total;  // bytes, but for `rows` and `partial_stride`

    Workspace(const LayerArguments& layer, const StepArguments& step) {
        const int64_t group = layer.num_heads / layer.num_kv_heads;
        const int64_t width = round_up(layer.value_dim, kLanes) + 2, padded = round_up(layer.head_dim, kLanes);
        rows = queries_per_item(layer.num_heads, layer.num_kv_heads) * group;
        queries = round_up(step.num_tokens * layer.num_heads * padded / T::kPair *
                               static_cast<int64_t>(sizeof(typename T::Factor)), 64);
        partial_stride = layer.num_kv_heads * rows * width;
        partials = round_up(step.num_partials * partial_stride * static_cast<int64_t>(sizeof(Wide)), 64);
        thread = scores() + weights() + factors() + 2 * result(width) + 2 * pointers() +
                 round_up(2 * padded * static_cast<int64_t>(sizeof(Wide)), 64);
        total = queries + partials + step.num_threads * thread;
    }
    int64_t scores() const { return rows * kPieceTiles * kLanes * static_cast<int64_t>(sizeof(Wide)); }
    int64_t weights() const {
        return rows * kPieceTiles * kLanes / T::kPair * static_cast<int64_t>(sizeof(typename T::Factor));
    }
    int64_t factors() const { return round_up(rows * static_cast<int64_t>(sizeof(Wide)), 64); }
    int64_t result(int64_t width) const { return round_up(rows * width * static_cast<int64_t>(sizeof(Wide)), 64); }
    int64_t pointers() const { return round_up(rows * 8, 64); }

    Scratch<T> scratch(char* at, int64_t width) const {
        Scratch<T> memory;
        memory.scores = reinterpret_cast<Wide*>(at);
        memory.weights = reinterpret_cast<typename T::Factor*>(at += scores());
        memory.factors = reinterpret_cast<Wide*>(at += weights());
        memory.span = reinterpret_cast<Wide*>(at += factors());
        memory.joined = reinterpret_cast<Wide*>(at += result(width));
        memory.queries = reinterpret_cast<const typename T::Factor**>(at += result(width));
        memory.positions = reinterpret_cast<int64_t*>(at += pointers());
        memory.heads = reinterpret_cast<Wide*>(at += pointers());
        return memory;
    }
};

template <class T>
static int64_t workspace_bytes(const LayerArguments* layer, const StepArguments* step) {
    return Workspace<T>(*layer, *step).total;
}

// Prepare and cache the tokens' heads, then attend. The workspace is aligned to 64 bytes.
template <class T>
static void attend(const LayerArguments* layer, const StepArguments* step, const void* qkv, int64_t stride,
                   void* output) {
    using Storage = typename T::Storage;
    const Workspace<T> sizes(*layer, *step);
    char* const workspace = static_cast<char*>(step->workspace);
    typename T::Factor* const queries = reinterpret_cast<typename T::Factor*>(workspace);
    typename T::Wide* const partials = reinterpret_cast<typename T::Wide*>(workspace + sizes.queries);
    char* const threads = workspace + sizes.queries + sizes.partials;
    const int64_t num_items = step->num_items * layer->num_kv_heads;
    const int64_t width = round_up(layer->value_dim, kLanes) + 2;
    Storage* const to = static_cast<Storage*>(output);
#pragma omp parallel num_threads(static_cast<int>(step->num_threads)) if (num_items > 1)
    {
        const Scratch<T> scratch = sizes.scratch(threads + omp_get_thread_num() * sizes.thread, width);
        HeadPreparation<T> preparation(*layer, *step, queries);
#pragma omp for schedule(static)
        for (int64_t token = 0; token < step->num_tokens; ++token)
            preparation.run(token, static_cast<const Storage*>(qkv) + token * stride, scratch.heads);
        ItemAttention<T> attention(*layer, *step, queries, scratch);
        // The items are in the order of their work, the largest first.
#pragma omp for schedule(dynamic, 1)
        for (int64_t index = 0; index < num_items; ++index)
            attention.run(step->items[index / layer->num_kv_heads], index % layer->num_kv_heads, to, partials,
                          sizes.partial_stride);
        if (step->num_merges > 0) {
#pragma omp for schedule(static)
            for (int64_t index = 0; index < step->num_merges * layer->num_kv_heads; ++index)
                attention.merge(step->merges[index / layer->num_kv_heads], index % layer->num_kv_heads, to, partials,
                                sizes.partial_stride);
        }
    }
}

template <class T>
static constexpr Kernels kernels_of() {
    return {workspace_bytes<T>, attend<T>, add_norm<T>, gate<T>};
}
