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

// Products over the head dim of 64 rows of work with `count` keys.
static __device__ inline void products_of(float (&sums)[4][4], float* staged, const float* rows_from, u64 rows_stride,
                                          const Rows& rows, u32 first_row, const float* keys_from, u64 keys_stride, u32 count,
                                          u32 head_dim) {
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            sums[i][j] = 0.0f;
        }
    }
    for (u32 d0 = 0; d0 < head_dim; d0 += DEPTH) {
        __syncthreads();
        stage_rows(staged, rows_from, rows_stride, rows, first_row, 64, d0, head_dim);
        stage_keys(staged + DEPTH * PITCH, keys_from, keys_stride, count, d0, head_dim);
        __syncthreads();
        add_products<4>(sums, staged, staged + DEPTH * PITCH, smaller_of(DEPTH, head_dim - d0));
    }
}

// Makes probabilities of scores and score gradients of the gradients of probabilities; zero where a row does not see a key.
static __device__ inline void to_gradients(float (&scores)[4][4], float (&gradients)[4][4], const Rows& rows, u32 first_row,
                                           u32 first_key, u32 q_heads, float scale, const float* lse, const float* delta) {
    u32 tx = threadIdx.x % 16;
    u32 ty = threadIdx.x / 16;
    for (int i = 0; i < 4; i++) {
        u32 row = first_row + ty + 16 * i;
        bool is_there = row < rows.count;
        u32 position = is_there ? position_of(rows, row) : 0;
        u32 first = is_there ? first_visible(rows, position) : 1;
        u64 at = is_there ? token_of(rows, row) * q_heads + head_of(rows, row) : 0;
        float row_lse = lse[at];
        float row_delta = delta[at];
        for (int j = 0; j < 4; j++) {
            u32 key = first_key + tx + 16 * j;
            float p = exp_of(scores[i][j] * scale - row_lse);
            float gradient = p * (gradients[i][j] - row_delta) * scale;
            bool is_visible = first <= key && key <= position;
            scores[i][j] = is_visible ? p : 0.0f;
            gradients[i][j] = is_visible ? gradient : 0.0f;
        }
    }
}

static __device__ inline void store_tile(float* to, const float (&values)[4][4]) {
    u32 tx = threadIdx.x % 16;
    u32 ty = threadIdx.x / 16;
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 4; j++) {
            to[(ty + 16 * i) * PITCH + tx + 16 * j] = values[i][j];
        }
    }
}

// The queries' gradients, a block a tile of rows, KV head and chunk of columns; `tiles` as in attention.cu.
extern "C" __global__ void attention_backward_q(const float* d_out, u64 d_out_stride, const float* q, u64 q_stride,
                                                const float* k, u64 k_stride, const float* v, u64 v_stride, const float* lse,
                                                const float* delta, const u32* tiles, u32 q_heads, u32 group, u32 head_dim,
                                                u64 window, float scale, float* d_q, u64 d_stride) {
    __shared__ float staged[2 * DEPTH * PITCH];
    __shared__ float tile[64 * PITCH];
    Rows rows = rows_of(tiles + 5 * blockIdx.x, group, window, head_dim);
    u32 tx = threadIdx.x % 16;
    u32 ty = threadIdx.x / 16;
    u32 column = column_of_block(head_dim);
    k += rows.key_start * k_stride + (u64)rows.kv_head * head_dim;
    v += rows.key_start * v_stride + (u64)rows.kv_head * head_dim;
    // The keys that the rows' tiles of twelve see.
    u32 starts[4];
    u32 ends[4];
    float sums[4][4];
    for (int i = 0; i < 4; i++) {
        u32 row = rows.first_row + ty + 16 * i;
        u32 first = row / TILE_ROWS * TILE_ROWS;
        bool is_there = row < rows.count;
        starts[i] = is_there ? first_visible(rows, position_of(rows, first)) : 0;
        ends[i] = is_there ? position_of(rows, smaller_of(first + TILE_ROWS, rows.count) - 1) + 1 : 0;
        for (int j = 0; j < 4; j++) {
            sums[i][j] = 0.0f;
        }
    }
    u32 first_tile = rows.first_row / TILE_ROWS * TILE_ROWS;
    u32 last_row = smaller_of(rows.first_row + 64, rows.count) - 1;
    u32 last_tile_end = smaller_of(last_row / TILE_ROWS * TILE_ROWS + TILE_ROWS, rows.count);
    u32 key_end = position_of(rows, last_tile_end - 1) + 1;
    u32 first_block = first_visible(rows, position_of(rows, first_tile)) / KEY_BLOCK;
    for (u32 first_key = first_block * KEY_BLOCK; first_key < key_end; first_key += KEY_BLOCK) {
        u32 count = smaller_of(key_end - first_key, KEY_BLOCK);
        const float* keys = k + first_key * k_stride;
        float p[4][4];
        float ds[4][4];
        products_of(p, staged, q, q_stride, rows, rows.first_row, keys, k_stride, count, head_dim);
        products_of(ds, staged, d_out, d_out_stride, rows, rows.first_row, v + first_key * v_stride, v_stride, count, head_dim);
        to_gradients(p, ds, rows, rows.first_row, first_key, q_heads, scale, lse, delta);
        store_tile(tile, ds);
        __syncthreads();
        stage_key_columns(staged, keys, k_stride, count, column, head_dim);
        __syncthreads();
        for (u32 key = 0; key < count; key++) {
            float values[4];
            for (int j = 0; j < 4; j++) {
                values[j] = staged[key * COLUMNS + tx + 16 * j];
            }
            for (int i = 0; i < 4; i++) {
                if (starts[i] <= first_key + key && first_key + key < ends[i]) {
                    float factor = tile[(ty + 16 * i) * PITCH + key];
                    for (int j = 0; j < 4; j++) {
                        sums[i][j] = fmaf(factor, values[j], sums[i][j]);
                    }
                }
            }
        }
    }
    for (int i = 0; i < 4; i++) {
        u32 row = rows.first_row + ty + 16 * i;
        for (int j = 0; j < 4; j++) {
            u32 d = column + tx + 16 * j;
            if (row < rows.count && d < head_dim) {
                d_q[offset_of(rows, row, d_stride, head_dim) + d] = sums[i][j];
            }
        }
    }
}

// Adds the terms of 64 rows to the sums of keys: thread rows are keys here.
static __device__ inline void add_rows(float (&sums)[4][4], const float* factors, const float* values, u32 first_row,
                                       const u32 (&starts)[4], const u32 (&ends)[4]) {
    u32 tx = threadIdx.x % 16;
    u32 ty = threadIdx.x / 16;
    for (u32 r = 0; r < 64; r++) {
        u32 row = first_row + r;
        float right[4];
        for (int j = 0; j < 4; j++) {
            right[j] = values[r * COLUMNS + tx + 16 * j];
        }
        for (int i = 0; i < 4; i++) {
            if (starts[i] <= row && row < ends[i]) {
                float factor = factors[r * PITCH + ty + 16 * i];
                for (int j = 0; j < 4; j++) {
                    sums[i][j] = fmaf(factor, right[j], sums[i][j]);
                }
            }
        }
    }
}

// The first query of a document at `position` or beyond, at most `queries`.
static __device__ inline u32 query_at(const Rows& rows, u64 position, u32 queries) {
    u64 query = position > rows.first_position ? position - rows.first_position : 0;
    return query < queries ? (u32)query : queries;
}

// The gradients of keys and values, a block a block of keys, KV head and chunk of columns. `tiles` has for each block of keys
// what it has for a tile of rows, with the first key in the place of the first row, and then the document's keys.
extern "C" __global__ void attention_backward_kv(const float* d_out, u64 d_out_stride, const float* q, u64 q_stride,
                                                 const float* k, u64 k_stride, const float* v, u64 v_stride, const float* lse,
                                                 const float* delta, const u32* tiles, u32 q_heads, u32 group, u32 head_dim,
                                                 u64 window, float scale, float* d_k, float* d_v, u64 d_stride) {
    __shared__ float staged[2 * DEPTH * PITCH];
    __shared__ float tile[64 * PITCH];
    const u32* place = tiles + 6 * blockIdx.x;
    Rows rows = rows_of(place, group, window, head_dim);
    u32 first_key = rows.first_row;
    u32 count = smaller_of(place[5] - first_key, KEY_BLOCK);
    u32 queries = rows.count / group;
    u32 tx = threadIdx.x % 16;
    u32 ty = threadIdx.x / 16;
    u32 column = column_of_block(head_dim);
    u64 first = rows.key_start + first_key;
    const float* keys = k + first * k_stride + (u64)rows.kv_head * head_dim;
    const float* values = v + first * v_stride + (u64)rows.kv_head * head_dim;
    // The rows that see any key of the keys' tiles of twelve.
    u32 starts[4];
    u32 ends[4];
    float key_sums[4][4];
    float value_sums[4][4];
    for (int i = 0; i < 4; i++) {
        u32 key = ty + 16 * i;
        u32 tile_start = key / TILE_ROWS * TILE_ROWS;
        u64 last = first_key + smaller_of(tile_start + TILE_ROWS, count) - 1;
        u64 beyond = window > ~0ull - last ? ~0ull : last + window;
        bool is_there = key < count;
        starts[i] = is_there ? query_at(rows, first_key + tile_start, queries) * group : 0;
        ends[i] = is_there ? query_at(rows, beyond, queries) * group : 0;
        for (int j = 0; j < 4; j++) {
            key_sums[i][j] = 0.0f;
            value_sums[i][j] = 0.0f;
        }
    }
    u64 last = (u64)first_key + count - 1;
    u32 row_end = query_at(rows, window > ~0ull - last ? ~0ull : last + window, queries) * group;
    for (u32 row = query_at(rows, first_key, queries) * group; row < row_end; row += 64) {
        float p[4][4];
        float ds[4][4];
        products_of(p, staged, q, q_stride, rows, row, keys, k_stride, count, head_dim);
        products_of(ds, staged, d_out, d_out_stride, rows, row, values, v_stride, count, head_dim);
        to_gradients(p, ds, rows, row, first_key, q_heads, scale, lse, delta);
        store_tile(tile, p);
        __syncthreads();
        stage_row_columns(staged, d_out, d_out_stride, rows, row, column, head_dim);
        __syncthreads();
        add_rows(value_sums, tile, staged, row, starts, ends);
        __syncthreads();
        store_tile(tile, ds);
        stage_row_columns(staged, q, q_stride, rows, row, column, head_dim);
        __syncthreads();
        add_rows(key_sums, tile, staged, row, starts, ends);
    }
    for (int i = 0; i < 4; i++) {
        u32 key = ty + 16 * i;
        for (int j = 0; j < 4; j++) {
            u32 d = column + tx + 16 * j;
            if (key < count && d < head_dim) {
                u64 at = (first + key) * d_stride + (u64)rows.kv_head * head_dim + d;
                d_k[at] = key_sums[i][j];
                d_v[at] = value_sums[i][j];
            }
        }
    }
}
