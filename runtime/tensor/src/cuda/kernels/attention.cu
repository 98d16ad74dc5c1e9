// Causal attention forward: cpu/attention/forward.rs, in the order that cpu/attention.rs tells.
#include "prelude.cuh"
#include "attention.cuh"

// Where the keys and values of one KV head of one document are: in matrices, or in the blocks of a cache, which hold keys as
// `[head_dim][64]` and then values as `[64][stride]`.
struct KeyValues {
    const float* k;
    const float* v;
    u64 k_stride;
    u64 v_stride;
    const u64* blocks;
    u64 head_start;
};

template <bool BLOCKS>
static __device__ inline void stage_block_keys(float* to, const KeyValues& from, u32 block, u32 count, u32 d0, u32 head_dim) {
    if (!BLOCKS) {
        stage_keys(to, from.k + (u64)block * KEY_BLOCK * from.k_stride, from.k_stride, count, d0, head_dim);
        return;
    }
    const float* keys = (const float*)from.blocks[block] + from.head_start;
    for (u32 i = threadIdx.x; i < KEY_BLOCK * DEPTH; i += blockDim.x) {
        u32 key = i % KEY_BLOCK;
        u32 d = i / KEY_BLOCK;
        to[d * PITCH + key] = key < count && d0 + d < head_dim ? keys[(u64)(d0 + d) * KEY_BLOCK + key] : 0.0f;
    }
}

template <bool BLOCKS>
static __device__ inline void stage_block_values(float* to, const KeyValues& from, u32 block, u32 count, u32 column,
                                                 u32 head_dim) {
    if (!BLOCKS) {
        stage_key_columns(to, from.v + (u64)block * KEY_BLOCK * from.v_stride, from.v_stride, count, column, head_dim);
        return;
    }
    const float* values = (const float*)from.blocks[block] + from.head_start + (u64)head_dim * KEY_BLOCK;
    stage_key_columns(to, values, from.v_stride, count, column, head_dim);
}

// The keys of a block that a row sees, as places in the block.
static __device__ inline void visible_in(const Rows& rows, u32 row, u32 block, u32* start, u32* end) {
    *start = 0;
    *end = 0;
    if (row < rows.count) {
        u32 position = position_of(rows, row);
        u32 first = first_visible(rows, position);
        u32 block_start = block * KEY_BLOCK;
        *start = first > block_start ? smaller_of(first - block_start, KEY_BLOCK) : 0;
        *end = position + 1 > block_start ? smaller_of(position + 1 - block_start, KEY_BLOCK) : 0;
    }
}

// A tile of `16 R` rows against one block of keys after the other. Four threads do the softmax of a row, each lanes `j`,
// `j + 4`, `j + 8` and `j + 12`, of which it makes the first two folds itself.
template <int R, bool BLOCKS>
static __device__ void attend(float* staged, float* scores, float* folds, float* of_rows, const float* q, u64 q_stride,
                              const KeyValues& from, const Rows& rows, u32 head_dim, float scale, u32 q_heads, float* out,
                              u64 out_stride, float* lse) {
    const u32 tile_rows = 16 * R;
    u32 tx = threadIdx.x % 16;
    u32 ty = threadIdx.x / 16;
    u32 column = column_of_block(head_dim);
    u32 row_end = smaller_of(rows.first_row + tile_rows, rows.count);
    u32 block_end = position_of(rows, row_end - 1) / KEY_BLOCK + 1;
    float outputs[R][4];
    for (int i = 0; i < R; i++) {
        for (int j = 0; j < 4; j++) {
            outputs[i][j] = 0.0f;
        }
    }
    // Of the row whose softmax this thread does.
    u32 softmax_row = threadIdx.x / 4;
    u32 j4 = threadIdx.x % 4;
    float maximum = -infinity();
    float sum = 0.0f;
    for (u32 block = first_visible(rows, position_of(rows, rows.first_row)) / KEY_BLOCK; block < block_end; block++) {
        u32 count = smaller_of(position_of(rows, row_end - 1) + 1 - block * KEY_BLOCK, KEY_BLOCK);
        float products[R][4];
        for (int i = 0; i < R; i++) {
            for (int j = 0; j < 4; j++) {
                products[i][j] = 0.0f;
            }
        }
        for (u32 d0 = 0; d0 < head_dim; d0 += DEPTH) {
            __syncthreads();
            stage_rows(staged, q, q_stride, rows, rows.first_row, tile_rows, d0, head_dim);
            stage_block_keys<BLOCKS>(staged + DEPTH * PITCH, from, block, count, d0, head_dim);
            __syncthreads();
            add_products<R>(products, staged, staged + DEPTH * PITCH, smaller_of(DEPTH, head_dim - d0));
        }
        for (int i = 0; i < R; i++) {
            for (int j = 0; j < 4; j++) {
                scores[(ty + 16 * i) * PITCH + tx + 16 * j] = products[i][j];
            }
        }
        __syncthreads();
        stage_block_values<BLOCKS>(staged, from, block, count, column, head_dim);
        u32 start = 0;
        u32 end = 0;
        if (softmax_row < tile_rows) {
            visible_in(rows, rows.first_row + softmax_row, block, &start, &end);
        }
        bool is_visible = start < end;
        float* row_scores = scores + softmax_row * PITCH;
        u32 first_chunk = start / 16 * 16;
        float lanes[4];
        for (int lane = 0; lane < 4; lane++) {
            lanes[lane] = -infinity();
        }
        if (is_visible) {
            for (u32 chunk = first_chunk; chunk < end; chunk += 16) {
                for (int lane = 0; lane < 4; lane++) {
                    u32 key = chunk + j4 + 4 * lane;
                    float score = row_scores[key] * scale;
                    score = start <= key && key < end ? score : -infinity();
                    row_scores[key] = score;
                    lanes[lane] = larger(lanes[lane], score);
                }
            }
        }
        folds[threadIdx.x] = larger(larger(lanes[0], lanes[2]), larger(lanes[1], lanes[3]));
        __syncthreads();
        const float* fold = folds + softmax_row * 4;
        float of_block = larger(larger(fold[0], fold[2]), larger(fold[1], fold[3]));
        float next = larger(maximum, of_block);
        float alpha = exp_of(maximum - next);
        __syncthreads();
        for (int lane = 0; lane < 4; lane++) {
            lanes[lane] = 0.0f;
        }
        if (is_visible) {
            for (u32 chunk = first_chunk; chunk < end; chunk += 16) {
                for (int lane = 0; lane < 4; lane++) {
                    u32 key = chunk + j4 + 4 * lane;
                    float p = exp_of(row_scores[key] - next);
                    row_scores[key] = p;
                    lanes[lane] += p;
                }
            }
        }
        folds[threadIdx.x] = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
        __syncthreads();
        if (is_visible) {
            maximum = next;
            sum = fmaf(sum, alpha, (fold[0] + fold[2]) + (fold[1] + fold[3]));
        }
        if (j4 == 0 && softmax_row < tile_rows) {
            of_rows[softmax_row] = is_visible ? alpha : 1.0f;
        }
        __syncthreads();
        // A key that a row does not see must not touch it, not even with a factor of zero.
        u32 starts[R];
        u32 ends[R];
        u32 any_start = KEY_BLOCK;
        u32 any_end = 0;
        for (int i = 0; i < R; i++) {
            visible_in(rows, rows.first_row + ty + 16 * i, block, &starts[i], &ends[i]);
            any_start = starts[i] < ends[i] ? smaller_of(any_start, starts[i]) : any_start;
            any_end = larger_of(any_end, ends[i]);
            for (int j = 0; j < 4; j++) {
                outputs[i][j] *= of_rows[ty + 16 * i];
            }
        }
        for (u32 key = any_start; key < any_end; key++) {
            float values[4];
            for (int j = 0; j < 4; j++) {
                values[j] = staged[key * COLUMNS + tx + 16 * j];
            }
            for (int i = 0; i < R; i++) {
                if (starts[i] <= key && key < ends[i]) {
                    float p = scores[(ty + 16 * i) * PITCH + key];
                    for (int j = 0; j < 4; j++) {
                        outputs[i][j] = fmaf(p, values[j], outputs[i][j]);
                    }
                }
            }
        }
    }
    __syncthreads();
    if (j4 == 0 && rows.first_row + softmax_row < row_end) {
        u32 row = rows.first_row + softmax_row;
        of_rows[softmax_row] = sum;
        if (column == 0) {
            lse[token_of(rows, row) * q_heads + head_of(rows, row)] = maximum + ln_of(sum);
        }
    }
    __syncthreads();
    for (int i = 0; i < R; i++) {
        u32 row = rows.first_row + ty + 16 * i;
        for (int j = 0; j < 4; j++) {
            u32 d = column + tx + 16 * j;
            if (row < row_end && d < head_dim) {
                out[offset_of(rows, row, out_stride, head_dim) + d] = outputs[i][j] / of_rows[ty + 16 * i];
            }
        }
    }
}

// A block a tile of rows, KV head and chunk of columns. `tiles` has for each tile the first query and the first key of its
// document in the call, the first query's position in the document, the document's rows of work and the tile's first one.
extern "C" __global__ void attention(const float* q, u64 q_stride, const float* k, u64 k_stride, const float* v, u64 v_stride,
                                     const u32* tiles, u32 q_heads, u32 group, u32 head_dim, u64 window, float scale,
                                     float* out, u64 out_stride, float* lse) {
    __shared__ float staged[2 * DEPTH * PITCH];
    __shared__ float scores[64 * PITCH];
    __shared__ float folds[256];
    __shared__ float of_rows[64];
    Rows rows = rows_of(tiles + 5 * blockIdx.x, group, window, head_dim);
    KeyValues from;
    from.k = k + rows.key_start * k_stride + (u64)rows.kv_head * head_dim;
    from.v = v + rows.key_start * v_stride + (u64)rows.kv_head * head_dim;
    from.k_stride = k_stride;
    from.v_stride = v_stride;
    attend<4, false>(staged, scores, folds, of_rows, q, q_stride, from, rows, head_dim, scale, q_heads, out, out_stride, lse);
}

// As `attention`, over the keys and values of a cache: `blocks` has the address of each block, in which the KV heads of the
// layer begin at `layer_start`, `head_len` elements each. Tiles have 64 rows, or 16 if they are `few`.
extern "C" __global__ void attention_blocks(const float* q, u64 q_stride, const u64* blocks, u64 layer_start, u64 head_len,
                                            u64 value_stride, const u32* tiles, u32 is_few, u32 q_heads, u32 group,
                                            u32 head_dim, u64 window, float scale, float* out, u64 out_stride, float* lse) {
    __shared__ float staged[2 * DEPTH * PITCH];
    __shared__ float scores[64 * PITCH];
    __shared__ float folds[256];
    __shared__ float of_rows[64];
    Rows rows = rows_of(tiles + 5 * blockIdx.x, group, window, head_dim);
    KeyValues from;
    from.blocks = blocks;
    from.head_start = layer_start + rows.kv_head * head_len;
    from.v_stride = value_stride;
    if (is_few) {
        attend<1, true>(staged, scores, folds, of_rows, q, q_stride, from, rows, head_dim, scale, q_heads, out, out_stride, lse);
    } else {
        attend<4, true>(staged, scores, folds, of_rows, q, q_stride, from, rows, head_dim, scale, q_heads, out, out_stride, lse);
    }
}

// Writes keys and values of one layer to a block of a cache, a block of threads a token: token `first + blockIdx.x` of `k` and
// `v` (`[tokens][kv_heads * head_dim]`) to slot `slot + blockIdx.x`.
extern "C" __global__ void write_block(float* block, u64 layer_start, u64 head_len, u32 value_stride, u32 kv_heads,
                                       u32 head_dim, const float* k, const float* v, u32 first, u32 slot) {
    u32 width = kv_heads * head_dim;
    u64 token = (u64)first + blockIdx.x;
    u64 to = (u64)slot + blockIdx.x;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float* head = block + layer_start + i / head_dim * head_len;
        u32 d = i % head_dim;
        head[(u64)d * KEY_BLOCK + to] = k[token * width + i];
        head[(u64)head_dim * KEY_BLOCK + to * value_stride + d] = v[token * width + i];
    }
}
