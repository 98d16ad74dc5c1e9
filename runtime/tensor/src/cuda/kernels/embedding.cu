// Rows of embedding tables and their gradients: cpu/embedding.rs. A block does a token's row, of `width` columns; `table_rows`
// ids from `first_id` on have rows in the table.
#include "prelude.cuh"
#include "math.cuh"

static constexpr u32 NO_TOKEN = 0xffffffffu;

// The row of the table that belongs to `id`, or `table_rows`.
static __device__ inline u64 row_of(u32 id, u64 first_id, u64 table_rows) {
    u64 row = (u64)id - first_id;
    return id >= first_id && row < table_rows ? row : table_rows;
}

extern "C" __global__ void embed(const float* table, u32 width, u64 table_rows, u64 first_id, const u32* ids, float* out) {
    u64 row = row_of(ids[blockIdx.x], first_id, table_rows);
    if (row == table_rows) {
        return;
    }
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        out[(u64)blockIdx.x * width + i] = table[row * width + i];
    }
}

extern "C" __global__ void embed_add(const float* table, u32 width, u64 table_rows, u64 first_id, const u32* ids, float* out) {
    u64 row = row_of(ids[blockIdx.x], first_id, table_rows);
    if (row == table_rows) {
        return;
    }
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        out[(u64)blockIdx.x * width + i] += table[row * width + i];
    }
}

// For each token the next one with the same id, or NO_TOKEN; and in the second half of `links` whether there is one before.
extern "C" __global__ void embed_links(const u32* ids, u32 tokens, u32* links) {
    u32 token = blockIdx.x * blockDim.x + threadIdx.x;
    if (token >= tokens) {
        return;
    }
    u32 id = ids[token];
    u32 next = token + 1;
    while (next < tokens && ids[next] != id) {
        next++;
    }
    u32 before = 0;
    while (before < token && ids[before] != id) {
        before++;
    }
    links[token] = next < tokens ? next : NO_TOKEN;
    links[tokens + token] = before < token;
}

// Adds the rows of `d_out` to those of the table, the rows of an id one after the other: the block of its first token adds
// them all.
extern "C" __global__ void embed_backward(const float* d_out, u32 width, u64 table_rows, u64 first_id, const u32* ids,
                                          const u32* links, float* d_table) {
    u32 first = blockIdx.x;
    u64 row = row_of(ids[first], first_id, table_rows);
    if (row == table_rows || links[gridDim.x + first]) {
        return;
    }
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = d_table[row * width + i];
        for (u32 token = first; token != NO_TOKEN; token = links[token]) {
            sum += d_out[(u64)token * width + i];
        }
        d_table[row * width + i] = sum;
    }
}

// How deep in the tree over `groups` the node lies below which two groups part, left before right.
static __device__ inline u32 parting(u32 groups, u32 left, u32 right) {
    u32 start = 0;
    u32 end = groups;
    u32 depth = 0;
    for (;;) {
        u32 middle = start + (end - start) / 2;
        if (right < middle) {
            end = middle;
        } else if (left >= middle) {
            start = middle;
        } else {
            return depth;
        }
        depth++;
    }
}

static __device__ inline u32 group_of(u32 token, u32 groups, u32 group_len) {
    u32 group = token / group_len;
    return group < groups ? group : groups - 1;
}

// As `embed_backward`, but an id's rows are summed in each of `groups` of `group_len` tokens and then in the tree over the
// groups; the deeper of two nodes is added first.
extern "C" __global__ void embed_backward_groups(const float* d_out, u32 width, u64 table_rows, u64 first_id, const u32* ids,
                                                 const u32* links, u32 groups, u32 group_len, float* d_table) {
    u32 first = blockIdx.x;
    u64 row = row_of(ids[first], first_id, table_rows);
    if (row == table_rows || links[gridDim.x + first]) {
        return;
    }
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        // Sums that wait for what is to the right of them, and how deep the nodes are that add it.
        float sums[33];
        u32 depths[33];
        u32 waiting = 0;
        u32 group = group_of(first, groups, group_len);
        float sum = 0.0f;
        for (u32 token = first; token != NO_TOKEN; token = links[token]) {
            u32 of_token = group_of(token, groups, group_len);
            if (of_token != group) {
                u32 depth = parting(groups, group, of_token);
                while (waiting > 0 && depths[waiting - 1] > depth) {
                    waiting--;
                    sum = sums[waiting] + sum;
                }
                sums[waiting] = sum;
                depths[waiting] = depth;
                waiting++;
                group = of_token;
                sum = 0.0f;
            }
            sum += d_out[(u64)token * width + i];
        }
        while (waiting > 0) {
            waiting--;
            sum = sums[waiting] + sum;
        }
        d_table[row * width + i] = d_table[row * width + i] + sum;
    }
}
