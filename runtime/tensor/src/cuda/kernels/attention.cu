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
static __device__ inline void stage_block_keys(float* to, const KeyValues& from, u32 first, u32 count, u32 d0, u32 head_dim) {
    if (!BLOCKS) {
        stage_keys(to, from.k + first * from.k_stride, from.k_stride, count, d0, head_dim);
        return;
    }
    const float* keys = (const float*)from.blocks[first / KEY_BLOCK] + from.head_start;
    u32 key = threadIdx.x % KEY_BLOCK;
    #pragma unroll
    for (u32 i = 0; i < DEPTH / 4; i++) {
        u32 d = threadIdx.x / KEY_BLOCK + 4 * i;
        to[d * PITCH + key] = key < count && d0 + d < head_dim ? keys[(u64)(d0 + d) * KEY_BLOCK + key] : 0.0f;
    }
}

template <bool BLOCKS>
static __device__ inline void stage_block_values(float* to, const KeyValues& from, u32 first, u32 count, u32 column,
                                                 u32 head_dim) {
    if (!BLOCKS) {
        stage_key_columns(to, from.v + first * from.v_stride, from.v_stride, count, column, head_dim);
        return;
    }
    const float* values = (const float*)from.blocks[first / KEY_BLOCK] + from.head_start + (u64)head_dim * KEY_BLOCK;
    stage_key_columns(to, values, from.v_stride, count, column, head_dim);
}

// A tile of `16 R` rows against one block of keys after the other. Four threads do the softmax of a row, each lanes `lane4`,
// `lane4 + 4`, `lane4 + 8` and `lane4 + 12`, of which it makes the first two folds itself.
template <int R, bool BLOCKS>
static __device__ void attend(float* staged, float* scores, float* folds, float* of_rows, Places& places, const float* q,
                              u64 q_stride, const KeyValues& from, const Rows& rows, u32 head_dim, float scale, u32 q_heads,
                              float* out, u64 out_stride, float* lse) {
    constexpr u32 tile_rows = 16 * R;
    u32 tx = threadIdx.x % 16;
    u32 ty = threadIdx.x / 16;
    u32 column = column_of_block(head_dim);
    u32 row_end = smaller_of(rows.first + tile_rows, rows.count);
    u32 first_position = position_of(rows, rows.first);
    u32 last_position = position_of(rows, row_end - 1);
    find_places(places, rows, rows.first);
    __syncthreads();
    float outputs[R][4];
    set_zero(outputs);
    // Keys of the document that this thread's rows see, none for those that are not there.
    u32 row_starts[R];
    u32 row_ends[R];
    for (int i = 0; i < R; i++) {
        bool is_there = places.token[R * ty + i] != NO_ROW;
        u32 position = places.position[R * ty + i];
        row_starts[i] = is_there ? first_visible(rows, position) : 0;
        row_ends[i] = is_there ? position + 1 : 0;
    }
    // Of the row whose softmax this thread does.
    u32 row = threadIdx.x % tile_rows;
    u32 lane4 = threadIdx.x / tile_rows;
    bool has_row = lane4 < 4 && places.token[row] != NO_ROW;
    u32 softmax_start = has_row ? first_visible(rows, places.position[row]) : 0;
    u32 softmax_end = has_row ? places.position[row] + 1 : 0;
    float maximum = -infinity();
    float sum = 0.0f;
    for (u32 first = first_visible(rows, first_position) / KEY_BLOCK * KEY_BLOCK; first <= last_position; first += KEY_BLOCK) {
        u32 count = smaller_of(last_position + 1 - first, KEY_BLOCK);
        float products[R][4];
        set_zero(products);
        for (u32 d0 = 0; d0 < head_dim; d0 += DEPTH) {
            __syncthreads();
            stage_rows<tile_rows>(staged, q, q_stride, places, d0, head_dim);
            stage_block_keys<BLOCKS>(staged + DEPTH * PITCH, from, first, count, d0, head_dim);
            __syncthreads();
            add_products(products, staged, smaller_of(DEPTH, head_dim - d0));
        }
        store_by_key(scores, products);
        __syncthreads();
        stage_block_values<BLOCKS>(staged, from, first, count, column, head_dim);
        u32 start = beyond(softmax_start, first);
        u32 end = smaller_of(beyond(softmax_end, first), KEY_BLOCK);
        bool is_visible = start < end;
        float lanes[4];
        for (int lane = 0; lane < 4; lane++) {
            lanes[lane] = -infinity();
        }
        if (is_visible) {
            for (u32 chunk = start / 16 * 16; chunk < end; chunk += 16) {
                for (int lane = 0; lane < 4; lane++) {
                    u32 key = chunk + lane4 + 4 * lane;
                    float score = scores[key * PITCH + row] * scale;
                    score = start <= key && key < end ? score : -infinity();
                    scores[key * PITCH + row] = score;
                    lanes[lane] = larger(lanes[lane], score);
                }
            }
        }
        const float* fold = folds + row;
        folds[threadIdx.x] = larger(larger(lanes[0], lanes[2]), larger(lanes[1], lanes[3]));
        __syncthreads();
        float of_block = larger(larger(fold[0], fold[2 * tile_rows]), larger(fold[tile_rows], fold[3 * tile_rows]));
        float next = larger(maximum, of_block);
        float alpha = exp_of(maximum - next);
        __syncthreads();
        for (int lane = 0; lane < 4; lane++) {
            lanes[lane] = 0.0f;
        }
        if (is_visible) {
            for (u32 chunk = start / 16 * 16; chunk < end; chunk += 16) {
                for (int lane = 0; lane < 4; lane++) {
                    u32 key = chunk + lane4 + 4 * lane;
                    float p = exp_of(scores[key * PITCH + row] - next);
                    scores[key * PITCH + row] = p;
                    lanes[lane] += p;
                }
            }
        }
        folds[threadIdx.x] = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
        if (lane4 == 0) {
            of_rows[row] = is_visible ? alpha : 1.0f;
        }
        __syncthreads();
        if (is_visible) {
            maximum = next;
            sum = fmaf(sum, alpha, (fold[0] + fold[2 * tile_rows]) + (fold[tile_rows] + fold[3 * tile_rows]));
        }
        // A key that a row does not see must not touch it, not even with a factor of zero.
        u32 starts[R];
        u32 ends[R];
        for (int i = 0; i < R; i++) {
            starts[i] = beyond(row_starts[i], first);
            ends[i] = beyond(row_ends[i], first);
            for (int j = 0; j < 4; j++) {
                outputs[i][j] *= of_rows[R * ty + i];
            }
        }
        u32 any_start = beyond(first_visible(rows, first_position), first);
        u32 all_start = beyond(first_visible(rows, last_position), first);
        add_visible(outputs, scores, staged, any_start, count, all_start, beyond(first_position + 1, first), starts, ends);
    }
    __syncthreads();
    if (lane4 == 0 && has_row) {
        of_rows[row] = sum;
        if (column == 0) {
            lse[(u64)places.token[row] * q_heads + places.head[row]] = maximum + ln_of(sum);
        }
    }
    __syncthreads();
    for (int i = 0; i < R; i++) {
        u32 of_tile = R * ty + i;
        for (int j = 0; j < 4; j++) {
            u32 d = column + 4 * tx + j;
            if (places.token[of_tile] != NO_ROW && d < head_dim) {
                out[offset_of(places, of_tile, out_stride, head_dim) + d] = outputs[i][j] / of_rows[of_tile];
            }
        }
    }
}

// A block a tile of rows, KV head and chunk of columns. `tiles` has for each tile the first query and the first key of its
// document in the call, the first query's position in the document, the document's rows of work and the tile's first one.
extern "C" __global__ __launch_bounds__(256, 2) void attention(
    const float* q, u64 q_stride, const float* k, u64 k_stride, const float* v, u64 v_stride, const u32* tiles, u32 q_heads,
    u32 group, u32 head_dim, u64 window, float scale, float* out, u64 out_stride, float* lse) {
    __shared__ float4 staged[STAGED];
    __shared__ float4 scores[SCORES];
    __shared__ float folds[256];
    __shared__ float of_rows[TILE];
    __shared__ Places places;
    Rows rows = rows_of(tiles + 5 * blockIdx.x, group, window, head_dim);
    KeyValues from;
    from.k = k + rows.key_start * k_stride + (u64)rows.kv_head * head_dim;
    from.v = v + rows.key_start * v_stride + (u64)rows.kv_head * head_dim;
    from.k_stride = k_stride;
    from.v_stride = v_stride;
    attend<4, false>((float*)staged, (float*)scores, folds, of_rows, places, q, q_stride, from, rows, head_dim, scale,
                     q_heads, out, out_stride, lse);
}

// As `attention`, over the keys and values of a cache: `blocks` has the address of each block, in which the KV heads of the
// layer begin at `layer_start`, `head_len` elements each. Tiles have 64 rows, or 16 if they are `few`.
extern "C" __global__ __launch_bounds__(256, 2) void attention_blocks(
    const float* q, u64 q_stride, const u64* blocks, u64 layer_start, u64 head_len, u64 value_stride, const u32* tiles,
    u32 is_few, u32 q_heads, u32 group, u32 head_dim, u64 window, float scale, float* out, u64 out_stride, float* lse) {
    __shared__ float4 staged[STAGED];
    __shared__ float4 scores[SCORES];
    __shared__ float folds[256];
    __shared__ float of_rows[TILE];
    __shared__ Places places;
    Rows rows = rows_of(tiles + 5 * blockIdx.x, group, window, head_dim);
    KeyValues from;
    from.blocks = blocks;
    from.head_start = layer_start + rows.kv_head * head_len;
    from.v_stride = value_stride;
    if (is_few) {
        attend<1, true>((float*)staged, (float*)scores, folds, of_rows, places, q, q_stride, from, rows, head_dim, scale,
                     q_heads, out, out_stride, lse);
    } else {
        attend<4, true>((float*)staged, (float*)scores, folds, of_rows, places, q, q_stride, from, rows, head_dim, scale,
                     q_heads, out, out_stride, lse);
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
