// What the kernels of attention share: where rows of work and their keys lie, and products of tiles in shared memory.
//
// A row of work is a query with a head of the KV head's group, as in cpu/attention.rs. 256 threads do a tile of 64 rows (or
// 16) against a block of 64 keys: a thread has the rows `ty + 16 i` and the keys or columns `tx + 16 j`. Output columns are
// cut into chunks of 64, a block of threads each, so that no shape needs more than a few registers: `blockIdx.y` counts the
// chunks of the KV heads.
#pragma once
#include "math.cuh"

static constexpr u32 KEY_BLOCK = 64u;
static constexpr u32 COLUMNS = 64u;
// Terms of a product over the head dim that are staged at once, as `[term][row]`.
static constexpr u32 DEPTH = 32u;
static constexpr u32 PITCH = 65u;

// Rows of work of one KV head of one document, from `first_row` on.
struct Rows {
    u32 query_start;
    u32 key_start;
    u32 first_position;
    u32 count;
    u32 first_row;
    u32 group;
    u64 window;
    u32 kv_head;
};

static __device__ inline u32 chunks_of(u32 head_dim) { return (head_dim + COLUMNS - 1) / COLUMNS; }

// The first column of this block's chunk.
static __device__ inline u32 column_of_block(u32 head_dim) { return blockIdx.y % chunks_of(head_dim) * COLUMNS; }

static __device__ inline Rows rows_of(const u32* tile, u32 group, u64 window, u32 head_dim) {
    Rows rows;
    rows.query_start = tile[0];
    rows.key_start = tile[1];
    rows.first_position = tile[2];
    rows.count = tile[3];
    rows.first_row = tile[4];
    rows.group = group;
    rows.window = window;
    rows.kv_head = blockIdx.y / chunks_of(head_dim);
    return rows;
}

static __device__ inline u32 position_of(const Rows& rows, u32 row) { return rows.first_position + row / rows.group; }

// The first key that a query at `position` of its document sees.
static __device__ inline u32 first_visible(const Rows& rows, u32 position) {
    return (u64)position + 1 > rows.window ? (u32)(position + 1 - rows.window) : 0;
}

static __device__ inline u64 token_of(const Rows& rows, u32 row) { return rows.query_start + row / rows.group; }

static __device__ inline u32 head_of(const Rows& rows, u32 row) { return rows.kv_head * rows.group + row % rows.group; }

// Where the head of a row of work begins in a matrix of queries.
static __device__ inline u64 offset_of(const Rows& rows, u32 row, u64 stride, u32 head_dim) {
    return token_of(rows, row) * stride + (u64)head_of(rows, row) * head_dim;
}

static __device__ inline u32 smaller_of(u32 a, u32 b) { return a < b ? a : b; }

static __device__ inline u32 larger_of(u32 a, u32 b) { return a > b ? a : b; }

// Stages terms `d0..d0 + DEPTH` of `tile_rows` rows of work from row `first` on, as `[term][row]`.
static __device__ inline void stage_rows(float* to, const float* from, u64 stride, const Rows& rows, u32 first, u32 tile_rows,
                                         u32 d0, u32 head_dim) {
    for (u32 i = threadIdx.x; i < tile_rows * DEPTH; i += blockDim.x) {
        u32 row = first + i / DEPTH;
        u32 d = d0 + i % DEPTH;
        bool is_there = row < rows.count && d < head_dim;
        to[i % DEPTH * PITCH + i / DEPTH] = is_there ? from[offset_of(rows, row, stride, head_dim) + d] : 0.0f;
    }
}

// Stages the columns from `column` on of 64 rows of work, as `[row][column]`.
static __device__ inline void stage_row_columns(float* to, const float* from, u64 stride, const Rows& rows, u32 first,
                                                u32 column, u32 head_dim) {
    for (u32 i = threadIdx.x; i < 64 * COLUMNS; i += blockDim.x) {
        u32 row = first + i / COLUMNS;
        u32 d = column + i % COLUMNS;
        bool is_there = row < rows.count && d < head_dim;
        to[i] = is_there ? from[offset_of(rows, row, stride, head_dim) + d] : 0.0f;
    }
}

// Stages terms of `count` keys, whose first one's head `from` points to.
static __device__ inline void stage_keys(float* to, const float* from, u64 stride, u32 count, u32 d0, u32 head_dim) {
    for (u32 i = threadIdx.x; i < KEY_BLOCK * DEPTH; i += blockDim.x) {
        u32 key = i / DEPTH;
        u32 d = d0 + i % DEPTH;
        to[i % DEPTH * PITCH + key] = key < count && d < head_dim ? from[key * stride + d] : 0.0f;
    }
}

// Stages columns of `count` keys, as `[key][column]`.
static __device__ inline void stage_key_columns(float* to, const float* from, u64 stride, u32 count, u32 column, u32 head_dim) {
    for (u32 i = threadIdx.x; i < KEY_BLOCK * COLUMNS; i += blockDim.x) {
        u32 key = i / COLUMNS;
        u32 d = column + i % COLUMNS;
        to[i] = key < count && d < head_dim ? from[key * stride + d] : 0.0f;
    }
}

// Continues the products of staged rows with staged keys over `depth` terms, ascending.
template <int R>
static __device__ inline void add_products(float (&sums)[R][4], const float* a, const float* b, u32 depth) {
    u32 tx = threadIdx.x % 16;
    u32 ty = threadIdx.x / 16;
    for (u32 d = 0; d < depth; d++) {
        float left[R];
        float right[4];
        for (int i = 0; i < R; i++) {
            left[i] = a[d * PITCH + ty + 16 * i];
        }
        for (int j = 0; j < 4; j++) {
            right[j] = b[d * PITCH + tx + 16 * j];
        }
        for (int i = 0; i < R; i++) {
            for (int j = 0; j < 4; j++) {
                sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
            }
        }
    }
}
