// The gradients of attention: cpu/attention/backward.rs. Probabilities and score gradients are recomputed, once for the
// queries' gradients and once for those of keys and values.
//
// A sum has the terms that any element of its tile of twelve sees, zeros among them, as on the CPU.
#include "prelude.cuh"
#include "attention.cuh"

static constexpr u32 TILE_ROWS = 12u;

// The sum over d of d_out * out of each row of work, in lanes: sixteen threads a head of a token.
extern "C" __global__ void attention_delta(const float* d_out, u64 d_out_stride, const float* out, u64 out_stride, u32 q_heads,
                                           u32 head_dim, u64 count, float* delta) {
    __shared__ float lanes[256];
    u32 lane = threadIdx.x % LANES;
    u64 index = (u64)blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    u32 terms = index < count ? head_dim : 0;
    u64 token = index / q_heads;
    u64 start = index % q_heads * head_dim;
    float sum = 0.0f;
    for (u32 i = lane; i < terms; i += LANES) {
        sum = fmaf(d_out[token * d_out_stride + start + i], out[token * out_stride + start + i], sum);
    }
    sum = fold_threads(lanes, sum);
    if (lane == 0 && index < count) {
        delta[index] = sum;
    }
}

// Products over the head dim of a tile of rows with `count` keys.
static __device__ inline void products_of(float (&sums)[4][4], float* staged, const float* rows_from, u64 rows_stride,
                                          const Places& places, const float* keys_from, u64 keys_stride, u32 count,
                                          u32 head_dim) {
    set_zero(sums);
    for (u32 d0 = 0; d0 < head_dim; d0 += DEPTH) {
        __syncthreads();
        stage_rows<TILE>(staged, rows_from, rows_stride, places, d0, head_dim);
        stage_keys(staged + DEPTH * PITCH, keys_from, keys_stride, count, d0, head_dim);
        __syncthreads();
        add_products(sums, staged, smaller_of(DEPTH, head_dim - d0));
    }
}

// Makes probabilities of scores and score gradients of the gradients of probabilities; zero where a row does not see a key.
static __device__ inline void to_gradients(float (&scores)[4][4], float (&gradients)[4][4], const Rows& rows,
                                           const Places& places, u32 first_key, u32 q_heads, float scale, const float* lse,
                                           const float* delta) {
    u32 tx = threadIdx.x % 16;
    u32 ty = threadIdx.x / 16;
    for (int i = 0; i < 4; i++) {
        u32 row = 4 * ty + i;
        bool is_there = places.token[row] != NO_ROW;
        u32 first = first_visible(rows, places.position[row]);
        u32 end = is_there ? places.position[row] + 1 : 0;
        u64 at = is_there ? (u64)places.token[row] * q_heads + places.head[row] : 0;
        float row_lse = lse[at];
        float row_delta = delta[at];
        for (int j = 0; j < 4; j++) {
            u32 key = first_key + 4 * tx + j;
            float p = exp_of(scores[i][j] * scale - row_lse);
            float gradient = p * (gradients[i][j] - row_delta) * scale;
            bool is_visible = first <= key && key < end;
            scores[i][j] = is_visible ? p : 0.0f;
            gradients[i][j] = is_visible ? gradient : 0.0f;
        }
    }
}

// The queries' gradients, a block a tile of rows, KV head and chunk of columns; `tiles` as in attention.cu.
extern "C" __global__ __launch_bounds__(256, 2) void attention_backward_q(
    const float* d_out, u64 d_out_stride, const float* q, u64 q_stride, const float* k, u64 k_stride, const float* v,
    u64 v_stride, const float* lse, const float* delta, const u32* tiles, u32 q_heads, u32 group, u32 head_dim, u64 window,
    float scale, float* d_q, u64 d_stride) {
    __shared__ float4 staged_fours[STAGED];
    __shared__ float4 tile_fours[SCORES];
    __shared__ Places places;
    float* staged = (float*)staged_fours;
    float* tile = (float*)tile_fours;
    Rows rows = rows_of(tiles + 5 * blockIdx.x, group, window, head_dim);
    u32 tx = threadIdx.x % 16;
    u32 ty = threadIdx.x / 16;
    u32 column = column_of_block(head_dim);
    k += rows.key_start * k_stride + (u64)rows.kv_head * head_dim;
    v += rows.key_start * v_stride + (u64)rows.kv_head * head_dim;
    find_places(places, rows, rows.first);
    __syncthreads();
    // The keys that the rows' tiles of twelve see.
    u32 row_starts[4];
    u32 row_ends[4];
    for (int i = 0; i < 4; i++) {
        u32 row = rows.first + 4 * ty + i;
        u32 first = row / TILE_ROWS * TILE_ROWS;
        bool is_there = row < rows.count;
        row_starts[i] = is_there ? first_visible(rows, position_of(rows, first)) : 0;
        row_ends[i] = is_there ? position_of(rows, smaller_of(first + TILE_ROWS, rows.count) - 1) + 1 : 0;
    }
    // The same of the first row and of the last.
    u32 first_tile = rows.first / TILE_ROWS * TILE_ROWS;
    u32 last_tile = (smaller_of(rows.first + TILE, rows.count) - 1) / TILE_ROWS * TILE_ROWS;
    u32 any_start = first_visible(rows, position_of(rows, first_tile));
    u32 any_end = position_of(rows, smaller_of(last_tile + TILE_ROWS, rows.count) - 1) + 1;
    u32 all_start = first_visible(rows, position_of(rows, last_tile));
    u32 all_end = position_of(rows, smaller_of(first_tile + TILE_ROWS, rows.count) - 1) + 1;
    float sums[4][4];
    set_zero(sums);
    for (u32 first = any_start / KEY_BLOCK * KEY_BLOCK; first < any_end; first += KEY_BLOCK) {
        u32 count = smaller_of(any_end - first, KEY_BLOCK);
        const float* keys = k + first * k_stride;
        float p[4][4];
        float ds[4][4];
        products_of(p, staged, q, q_stride, places, keys, k_stride, count, head_dim);
        products_of(ds, staged, d_out, d_out_stride, places, v + first * v_stride, v_stride, count, head_dim);
        to_gradients(p, ds, rows, places, first, q_heads, scale, lse, delta);
        store_by_key(tile, ds);
        __syncthreads();
        stage_key_columns(staged, keys, k_stride, count, column, head_dim);
        __syncthreads();
        u32 starts[4];
        u32 ends[4];
        for (int i = 0; i < 4; i++) {
            starts[i] = beyond(row_starts[i], first);
            ends[i] = beyond(row_ends[i], first);
        }
        add_visible(sums, tile, staged, beyond(any_start, first), count, beyond(all_start, first), beyond(all_end, first),
                    starts, ends);
    }
    for (int i = 0; i < 4; i++) {
        u32 row = 4 * ty + i;
        for (int j = 0; j < 4; j++) {
            u32 d = column + 4 * tx + j;
            if (places.token[row] != NO_ROW && d < head_dim) {
                d_q[offset_of(places, row, d_stride, head_dim) + d] = sums[i][j];
            }
        }
    }
}

// The first position of a query that does not see `key` any more.
static __device__ inline u64 out_of_sight(const Rows& rows, u32 key) {
    return rows.window > 0xffffffffull ? 0xffffffffull + key : rows.window + key;
}

// The first row of work of the queries at `position` or beyond, at most all rows.
static __device__ inline u32 row_at(const Rows& rows, u64 position) {
    u64 row = position > rows.first_position ? (position - rows.first_position) * rows.group : 0;
    return row < rows.count ? (u32)row : rows.count;
}

// The gradients of keys and values, a block a block of keys, KV head and chunk of columns. `tiles` has for each block of keys
// what it has for a tile of rows, with the first key in the place of the first row, and then the document's keys.
extern "C" __global__ __launch_bounds__(256, 2) void attention_backward_kv(
    const float* d_out, u64 d_out_stride, const float* q, u64 q_stride, const float* k, u64 k_stride, const float* v,
    u64 v_stride, const float* lse, const float* delta, const u32* tiles, u32 q_heads, u32 group, u32 head_dim, u64 window,
    float scale, float* d_k, float* d_v, u64 d_stride) {
    __shared__ float4 staged_fours[STAGED];
    __shared__ float4 tile_fours[SCORES];
    __shared__ Places places;
    float* staged = (float*)staged_fours;
    float* tile = (float*)tile_fours;
    const u32* place = tiles + 6 * blockIdx.x;
    Rows rows = rows_of(place, group, window, head_dim);
    u32 count = smaller_of(place[5] - rows.first, KEY_BLOCK);
    u32 tx = threadIdx.x % 16;
    u32 ty = threadIdx.x / 16;
    u32 column = column_of_block(head_dim);
    u64 first_key = rows.key_start + rows.first;
    const float* keys = k + first_key * k_stride + (u64)rows.kv_head * head_dim;
    const float* values = v + first_key * v_stride + (u64)rows.kv_head * head_dim;
    // The rows that see any key of the keys' tiles of twelve.
    u32 key_starts[4];
    u32 key_ends[4];
    for (int i = 0; i < 4; i++) {
        u32 key = 4 * ty + i;
        u32 first = key / TILE_ROWS * TILE_ROWS;
        bool is_there = key < count;
        key_starts[i] = is_there ? row_at(rows, rows.first + first) : 0;
        key_ends[i] = is_there ? row_at(rows, out_of_sight(rows, rows.first + smaller_of(first + TILE_ROWS, count) - 1)) : 0;
    }
    // The same of the first key and of the last.
    u32 any_start = row_at(rows, rows.first);
    u32 any_end = row_at(rows, out_of_sight(rows, rows.first + count - 1));
    u32 all_start = row_at(rows, rows.first + (count - 1) / TILE_ROWS * TILE_ROWS);
    u32 all_end = row_at(rows, out_of_sight(rows, rows.first + smaller_of(TILE_ROWS, count) - 1));
    float key_sums[4][4];
    float value_sums[4][4];
    set_zero(key_sums);
    set_zero(value_sums);
    for (u32 first = any_start; first < any_end; first += TILE) {
        __syncthreads();
        find_places(places, rows, first);
        float p[4][4];
        float ds[4][4];
        products_of(p, staged, q, q_stride, places, keys, k_stride, count, head_dim);
        products_of(ds, staged, d_out, d_out_stride, places, values, v_stride, count, head_dim);
        to_gradients(p, ds, rows, places, rows.first, q_heads, scale, lse, delta);
        store_by_row(tile, p);
        __syncthreads();
        stage_row_columns(staged, d_out, d_out_stride, places, column, head_dim);
        __syncthreads();
        u32 starts[4];
        u32 ends[4];
        for (int i = 0; i < 4; i++) {
            starts[i] = beyond(key_starts[i], first);
            ends[i] = beyond(key_ends[i], first);
        }
        u32 end = smaller_of(any_end - first, TILE);
        u32 inner_start = beyond(all_start, first);
        u32 inner_end = beyond(all_end, first);
        add_visible(value_sums, tile, staged, 0, end, inner_start, inner_end, starts, ends);
        __syncthreads();
        store_by_row(tile, ds);
        stage_row_columns(staged, q, q_stride, places, column, head_dim);
        __syncthreads();
        add_visible(key_sums, tile, staged, 0, end, inner_start, inner_end, starts, ends);
    }
    for (int i = 0; i < 4; i++) {
        u32 key = 4 * ty + i;
        for (int j = 0; j < 4; j++) {
            u32 d = column + 4 * tx + j;
            if (key < count && d < head_dim) {
                u64 at = (first_key + key) * d_stride + (u64)rows.kv_head * head_dim + d;
                d_k[at] = key_sums[i][j];
                d_v[at] = value_sums[i][j];
            }
        }
    }
}
