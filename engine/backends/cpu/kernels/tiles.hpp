// The layout of the KV cache, and the fixed pieces that attention reduces over.
//
// A tile is 16 tokens of one key/value head. A block of the cache has ceil(block_size / 16) tiles for each head:
//
//   keys    [block, K, tile, D / P, 16, P]   the 16 tokens lie side by side: one vector has one (or P) elements of
//                                            16 keys, and a product with a query needs no sum across a vector
//   values  [block, K, tile, 16 / P, V, P]   the elements lie side by side, for the sum over tokens
//
// P is 2 for bfloat16, whose products take pairs, and 1 otherwise. D is rounded up to a multiple of P, and V to a
// multiple of 16.
//
// The softmax of a query runs over pieces of 4 tiles within spans of 64 tiles. Both count from the first token of
// the sequence. So the order of all sums depends on the query's position only: not on the batch, on how the prompt
// is cut into steps, on cached prefixes or on the number of threads.
#pragma once

#include <cstdint>

#include "arguments.hpp"

namespace pagefleet {

constexpr int64_t kLanes = 16;         // tokens of a tile, and elements of a vector
constexpr int64_t kLineBytes = 64;     // of the processor's caches
constexpr int64_t kPieceTiles = 4;     // tiles between two updates of the softmax
constexpr int64_t kSpanTiles = 64;     // tiles that are reduced to one partial result
constexpr int64_t kTargetRows = 60;    // queries times heads of a group that share a pass over the keys

static inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }
static inline int64_t round_up(int64_t value, int64_t to) { return divide_up(value, to) * to; }
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t tiles_per_block(int64_t block_size) { return divide_up(block_size, kLanes); }

// The tile of the token at `position`, counted from the start of the sequence.
static inline int64_t tile_of(int64_t position, int64_t block_size) {
    return position / block_size * tiles_per_block(block_size) + position % block_size / kLanes;
}

// The position of the first token of a tile.
static inline int64_t tile_start(int64_t tile, int64_t block_size) {
    const int64_t per_block = tiles_per_block(block_size);
    return tile / per_block * block_size + tile % per_block * kLanes;
}

// How many tokens a tile has: fewer than 16 at the end of a block whose size is no multiple of 16.
static inline int64_t tile_size(int64_t tile, int64_t block_size) {
    return smaller(kLanes, block_size - tile % tiles_per_block(block_size) * kLanes);
}

// How many queries of a sequence share a pass over the keys.
static inline int64_t queries_per_item(int64_t num_heads, int64_t num_kv_heads) {
    return larger(1, kTargetRows / (num_heads / num_kv_heads));
}

// The first position that the query at `position` attends to.
static inline int64_t first_key(int64_t position, int64_t window) {
    return window == 0 ? 0 : larger(0, position + 1 - window);
}

}  // namespace pagefleet
