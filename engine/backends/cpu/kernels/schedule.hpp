// The schedule of one step's attention, made once for all layers of one shape.
#pragma once

#include <algorithm>

#include "arguments.hpp"
#include "tiles.hpp"

namespace pagefleet {

struct ScheduleArguments {
    const int64_t* query_lens;    // [S]
    const int64_t* context_lens;  // [S]
    int64_t num_sequences;
    int64_t num_heads;
    int64_t num_kv_heads;
    int64_t block_size;
    int64_t window;
    int64_t num_threads;
};

struct ScheduleSizes {
    int64_t num_items;
    int64_t num_merges;
    int64_t num_partials;
};

// With fewer items a thread than this, long contexts are computed by several threads.
constexpr int64_t kItemsPerThread = 4;

class Scheduler {
public:
    explicit Scheduler(const ScheduleArguments& arguments)
        : arguments_(arguments), num_queries_(queries_per_item(arguments.num_heads, arguments.num_kv_heads)) {}

    // Count the items and merges, and write them if there is memory for them.
    ScheduleSizes run(Item* items, Merge* merges) const {
        ScheduleSizes sizes = {0, 0, 0};
        const bool splits = num_whole_items() * arguments_.num_kv_heads < kItemsPerThread * arguments_.num_threads;
        for (int64_t sequence = 0; sequence < arguments_.num_sequences; ++sequence)
            for (int64_t first = 0; first < arguments_.query_lens[sequence]; first += num_queries_)
                add(sequence, first, splits, items, merges, sizes);
        if (items != nullptr) std::stable_sort(items, items + sizes.num_items, is_larger);
        return sizes;
    }

private:
    int64_t num_whole_items() const {
        int64_t count = 0;
        for (int64_t sequence = 0; sequence < arguments_.num_sequences; ++sequence)
            count += divide_up(arguments_.query_lens[sequence], num_queries_);
        return count;
    }

    void add(int64_t sequence, int64_t first, bool splits, Item* items, Merge* merges, ScheduleSizes& sizes) const {
        const int64_t count = smaller(num_queries_, arguments_.query_lens[sequence] - first);
        const int64_t position = arguments_.context_lens[sequence] + first;
        const int64_t size = arguments_.block_size;
        const int64_t first_span = tile_of(first_key(position, arguments_.window), size) / kSpanTiles;
        const int64_t end_span = tile_of(position + count - 1, size) / kSpanTiles + 1;
        if (!splits || end_span - first_span == 1) {
            if (items != nullptr) items[sizes.num_items] = {sequence, first, count, first_span, end_span, -1};
            ++sizes.num_items;
            return;
        }
        if (merges != nullptr)
            merges[sizes.num_merges] = {sequence, first, count, sizes.num_partials, end_span - first_span};
        ++sizes.num_merges;
        for (int64_t span = first_span; span < end_span; ++span) {
            if (items != nullptr)
                items[sizes.num_items] = {sequence, first, count, span, span + 1, sizes.num_partials};
            ++sizes.num_items;
            ++sizes.num_partials;
        }
    }

    static bool is_larger(const Item& one, const Item& other) {
        return one.num_queries * (one.end_span - one.first_span) >
               other.num_queries * (other.end_span - other.first_span);
    }

    const ScheduleArguments& arguments_;
    const int64_t num_queries_;
};

}  // namespace pagefleet
