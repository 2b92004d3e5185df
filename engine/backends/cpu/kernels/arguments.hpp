// The arguments of the kernels, as plain C structures. native.py declares the same fields in the same order.
//
// Shapes: T tokens of the step, S sequences, H query heads, K key/value heads, D elements of a head, V of a value
// head. "Wide" is the type that a kernel computes in: double for float64, else float.
#pragma once

#include <cstdint>

namespace pagefleet {

// A layer norm or RMS norm.
struct NormArguments {
    const void* weight;  // wide, [size], or [heads, size] if per_head; null: 1
    const void* bias;    // wide, [size]; null: 0
    double eps;
    int64_t exists;
    int64_t centred;       // subtract the mean
    int64_t across_heads;  // one mean over all heads of a token
    int64_t per_head;
};

// The attention of one layer, with its part of the KV cache (tiles.hpp).
struct LayerArguments {
    void* keys;
    void* values;
    const void* sinks;  // wide, [H]; null: none
    NormArguments query_norm;
    NormArguments key_norm;
    double scale;
    double soft_cap;  // 0: none
    int64_t num_heads;
    int64_t num_kv_heads;
    int64_t head_dim;
    int64_t value_dim;
    int64_t block_size;
    int64_t window;       // 0: none
    int64_t rotated;      // rotated elements of a head; 0: none
    int64_t first_rotated;
    int64_t interleaved;  // neighbours are pairs, instead of the halves of the rotated part
};

// A part of the attention of one step, for one key/value head: some queries of a sequence over some spans of its
// context.
struct Item {
    int64_t sequence;
    int64_t first_query;  // within the sequence's tokens of this step
    int64_t num_queries;
    int64_t first_span;
    int64_t end_span;
    int64_t partial;  // the slot of its unfinished result; -1: the item computes the whole context
};

// The items whose unfinished results make the result of the first one's queries: partial slots
// [first_partial, first_partial + num_partials), in the order of the context.
struct Merge {
    int64_t sequence;
    int64_t first_query;
    int64_t num_queries;
    int64_t first_partial;
    int64_t num_partials;
};

// What the layers of one shape share in a step.
struct StepArguments {
    const int64_t* positions;     // [T]
    const int64_t* sequences;     // [T]: the sequence of each token
    const int64_t* starts;        // [S]: the first token of each sequence
    const int64_t* context_lens;  // [S]
    const int64_t* block_tables;  // [S, table_width]
    const void* cosines;          // wide, [T, rotated / 2]
    const void* sines;
    const void* query_factors;  // wide, [T]; null: 1
    const Item* items;
    const Merge* merges;
    void* workspace;
    int64_t num_tokens;
    int64_t table_width;
    int64_t num_items;
    int64_t num_merges;
    int64_t num_partials;
    int64_t num_threads;
};

// The kernels of one element type, compiled for one instruction set.
struct Kernels {
    int64_t (*workspace_bytes)(const LayerArguments*, const StepArguments*);
    void (*attend)(const LayerArguments*, const StepArguments*, const void* qkv, int64_t stride, void* output);
    void (*add_norm)(const NormArguments*, const void* hidden, const void* residual, double scale, void* normed,
                     void* sum, int64_t num_rows, int64_t size, int64_t num_threads);
    void (*gate)(const void* gate_up, void* output, int64_t num_rows, int64_t width, int64_t activation,
                 int64_t num_threads);
};

enum Activation : int64_t { kSilu = 0, kGeluTanh = 1 };

enum Element : int64_t { kBfloat16 = 0, kFloat32 = 1, kFloat64 = 2, kNumElements = 3 };

}  // namespace pagefleet
