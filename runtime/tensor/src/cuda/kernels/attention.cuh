// What the kernels of attention share: where rows of work and their keys lie, and products of tiles in shared memory.
//
// A row of work is a query with a head of the KV head's group, as in cpu/attention.rs. 256 threads do a tile of 64 rows (or
// 16) against a block of 64 keys: of the rows a thread has four (or one) side by side, by the upper half of its number, of
// keys or columns four, by the lower. Output columns are cut into chunks of 64, a block of threads each, so that no shape
// needs more than a few registers: `blockIdx.y` counts the chunks of the KV heads.
#pragma once
#include "math.cuh"

static constexpr u32 KEY_BLOCK = 64;
static constexpr u32 COLUMNS = 64;
static constexpr u32 TILE = 64;
// Terms of a product over the head dim that are staged at once, as `[term][row]`.
static constexpr u32 DEPTH = 32;
// From a term to the next: rows of four stay aligned, and what a warp stages or stores falls into different banks.
static constexpr u32 PITCH = 68;
// Fours of elements of what is staged, both operands of a product or a tile of columns; and of a tile of scores.
static constexpr u32 STAGED = 2 * DEPTH * PITCH / 4;
static constexpr u32 SCORES = TILE * PITCH / 4;

// A document's rows of work of one KV head.
struct Rows {
    u32 query_start;
    u32 key_start;
    u32 first_position;
    u32 count;
    // The first one, or the first key, of a tile.
    u32 first;
    u32 group;
    u64 window;
    u32 kv_head;
};

// Where the rows of a tile are, and what they see; no token where there is no row.
struct Places {
    u32 token[TILE];
    u32 head[TILE];
    u32 position[TILE];
};

static constexpr u32 NO_ROW = 0xffffffffu;

static __device__ inline u32 chunks_of(u32 head_dim) { return (head_dim + COLUMNS - 1) / COLUMNS; }

// The first column of this block's chunk.
static __device__ inline u32 column_of_block(u32 head_dim) { return blockIdx.y % chunks_of(head_dim) * COLUMNS; }

static __device__ inline Rows rows_of(const u32* tile, u32 group, u64 window, u32 head_dim) {
    Rows rows;
    rows.query_start = tile[0];
    rows.key_start = tile[1];
    rows.first_position = tile[2];
    rows.count = tile[3];
    rows.first = tile[4];
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

static __device__ inline u32 smaller_of(u32 a, u32 b) { return a < b ? a : b; }

static __device__ inline u32 larger_of(u32 a, u32 b) { return a > b ? a : b; }

// How far `value` is beyond `start`.
static __device__ inline u32 beyond(u32 value, u32 start) { return value > start ? value - start : 0; }

// Finds the places of a tile of rows from `first` on, for all threads after the next barrier.
static __device__ inline void find_places(Places& places, const Rows& rows, u32 first) {
    if (threadIdx.x < TILE) {
        u32 row = first + threadIdx.x;
        places.token[threadIdx.x] = row < rows.count ? rows.query_start + row / rows.group : NO_ROW;
        places.head[threadIdx.x] = rows.kv_head * rows.group + row % rows.group;
        places.position[threadIdx.x] = position_of(rows, row);
    }
}

// Where the head of a row begins in a matrix of queries.
static __device__ inline u64 offset_of(const Places& places, u32 row, u64 stride, u32 head_dim) {
    return places.token[row] * stride + (u64)places.head[row] * head_dim;
}

// What a thread stages of terms of rows: a warp takes eight terms of four rows, the block all terms of eight rows at once.
static __device__ inline u32 staged_term() { return threadIdx.x / 32 % 4 * 8 + threadIdx.x % 8; }

static __device__ inline u32 staged_row() { return threadIdx.x / 128 * 4 + threadIdx.x / 8 % 4; }

// Stages terms `d0..d0 + DEPTH` of COUNT rows as `[term][row]`.
template <u32 COUNT>
static __device__ inline void stage_rows(float* to, const float* from, u64 stride, const Places& places, u32 d0, u32 head_dim) {
    u32 term = staged_term();
    bool has_term = d0 + term < head_dim;
    #pragma unroll
    for (u32 i = 0; i < COUNT / 8; i++) {
        u32 row = staged_row() + 8 * i;
        bool is_there = has_term && places.token[row] != NO_ROW;
        to[term * PITCH + row] = is_there ? from[offset_of(places, row, stride, head_dim) + d0 + term] : 0.0f;
    }
}

// Stages the columns from `column` on of a tile of rows, as `[row][column]`.
static __device__ inline void stage_row_columns(float* to, const float* from, u64 stride, const Places& places, u32 column,
                                                u32 head_dim) {
    u32 d = column + threadIdx.x % COLUMNS;
    #pragma unroll
    for (u32 i = 0; i < TILE / 4; i++) {
        u32 row = threadIdx.x / COLUMNS + 4 * i;
        bool is_there = places.token[row] != NO_ROW && d < head_dim;
        to[threadIdx.x + 4 * COLUMNS * i] = is_there ? from[offset_of(places, row, stride, head_dim) + d] : 0.0f;
    }
}

// Stages terms of `count` keys, to whose first one's head `from` points, as `stage_rows` does.
static __device__ inline void stage_keys(float* to, const float* from, u64 stride, u32 count, u32 d0, u32 head_dim) {
    u32 term = staged_term();
    bool has_term = d0 + term < head_dim;
    #pragma unroll
    for (u32 i = 0; i < KEY_BLOCK / 8; i++) {
        u32 key = staged_row() + 8 * i;
        to[term * PITCH + key] = has_term && key < count ? from[key * stride + d0 + term] : 0.0f;
    }
}

// Stages columns of `count` keys, as `[key][column]`.
static __device__ inline void stage_key_columns(float* to, const float* from, u64 stride, u32 count, u32 column, u32 head_dim) {
    u32 d = column + threadIdx.x % COLUMNS;
    #pragma unroll
    for (u32 i = 0; i < KEY_BLOCK / 4; i++) {
        u32 key = threadIdx.x / COLUMNS + 4 * i;
        to[threadIdx.x + 4 * COLUMNS * i] = key < count && d < head_dim ? from[key * stride + d] : 0.0f;
    }
}

// One or four elements of shared memory that lie side by side.
static __device__ inline void load(float (&to)[1], const float* from) { to[0] = from[0]; }

static __device__ inline void load(float (&to)[4], const float* from) {
    float4 four = *(const float4*)from;
    to[0] = four.x;
    to[1] = four.y;
    to[2] = four.z;
    to[3] = four.w;
}

// Adds terms `first..end`, ascending: `factors` are `[term][PITCH]`, of which a thread has `R` from `R ty` on, `values`
// `[term][PITCH2]`, of which it has four. If they are CHECKED, a factor has the terms of its start up to its end only.
template <int R, u32 PITCH2, bool CHECKED>
static __device__ inline void add_terms(float (&sums)[R][4], const float* factors, const float* values, u32 first, u32 end,
                                        const u32 (&starts)[R], const u32 (&ends)[R]) {
    u32 tx = threadIdx.x % 16;
    u32 ty = threadIdx.x / 16;
    for (u32 term = first; term < end; term++) {
        float left[R];
        float right[4];
        load(left, factors + term * PITCH + R * ty);
        load(right, values + term * PITCH2 + 4 * tx);
        for (int i = 0; i < R; i++) {
            if (!CHECKED || (starts[i] <= term && term < ends[i])) {
                for (int j = 0; j < 4; j++) {
                    sums[i][j] = fmaf(left[i], right[j], sums[i][j]);
                }
            }
        }
    }
}

// Continues the products of staged rows with staged keys.
template <int R>
static __device__ inline void add_products(float (&sums)[R][4], const float* staged, u32 depth) {
    u32 none[R];
    add_terms<R, PITCH, false>(sums, staged, staged + DEPTH * PITCH, 0, depth, none, none);
}

// Adds to each sum the terms from its start to its end, all of which lie in `any`; those in `all` belong to every sum.
template <int R>
static __device__ inline void add_visible(float (&sums)[R][4], const float* factors, const float* values, u32 any_start,
                                          u32 any_end, u32 all_start, u32 all_end, const u32 (&starts)[R],
                                          const u32 (&ends)[R]) {
    all_start = smaller_of(all_start, any_end);
    all_end = larger_of(smaller_of(all_end, any_end), all_start);
    add_terms<R, COLUMNS, true>(sums, factors, values, any_start, all_start, starts, ends);
    add_terms<R, COLUMNS, false>(sums, factors, values, all_start, all_end, starts, ends);
    add_terms<R, COLUMNS, true>(sums, factors, values, all_end, any_end, starts, ends);
}

template <int R> static __device__ inline void set_zero(float (&sums)[R][4]) {
    for (int i = 0; i < R; i++) {
        for (int j = 0; j < 4; j++) {
            sums[i][j] = 0.0f;
        }
    }
}

// Stores a thread's values of rows and keys as `[key][row]`.
static __device__ inline void store_by_key(float* to, const float (&values)[1][4]) {
    u32 tx = threadIdx.x % 16;
    for (int j = 0; j < 4; j++) {
        to[(4 * tx + j) * PITCH + threadIdx.x / 16] = values[0][j];
    }
}

static __device__ inline void store_by_key(float* to, const float (&values)[4][4]) {
    u32 tx = threadIdx.x % 16;
    for (int j = 0; j < 4; j++) {
        float4 four = make_float4(values[0][j], values[1][j], values[2][j], values[3][j]);
        *(float4*)(to + (4 * tx + j) * PITCH + threadIdx.x / 16 * 4) = four;
    }
}

// The same as `[row][key]`.
static __device__ inline void store_by_row(float* to, const float (&values)[4][4]) {
    u32 ty = threadIdx.x / 16;
    for (int i = 0; i < 4; i++) {
        float4 four = make_float4(values[i][0], values[i][1], values[i][2], values[i][3]);
        *(float4*)(to + (4 * ty + i) * PITCH + threadIdx.x % 16 * 4) = four;
    }
}
