// Products: cpu/matmul.rs. Both operands are packed first, `[k][m]` and `[k][n]`, so that all loads are of four numbers side by
// side. A block has a tile of the output, a thread some rows and columns of it, in registers; pieces of `k` go through shared
// memory, the next one on its way while one is multiplied. Each output element has one accumulator, over ascending `k`; a leaf of
// the tree is an output of its own.
#include "prelude.cuh"

// What the orders of a product differ in.
#define F32_ORDER 0
#define BF16_ORDER 1

// Terms that products of bfloat16 add up apart: even and odd ones from zero, then their sum is added to the accumulator.
#define BF16_TERMS 32

// Writes `from[k * k_step + x * x_step]` to `to[k * row + x]`; what a row has beyond `count` is zero. A block of 32 x 8 threads does
// 32 by 32 numbers.
extern "C" __global__ void pack(const float *from, u64 k_step, u64 x_step, float *to, u64 row, u64 terms, u64 count, u32 bf16) {
    __shared__ float tile[32][33];
    u64 x0 = (u64)blockIdx.x * 32, k0 = (u64)blockIdx.y * 32;
    // Reads go along what lies side by side.
    bool along_k = x_step != 1;
    for (u32 i = threadIdx.y; i < 32; i += 8) {
        u64 k = k0 + (along_k ? threadIdx.x : i), x = x0 + (along_k ? i : threadIdx.x);
        float value = k < terms && x < count ? from[k * k_step + x * x_step] : 0.0f;
        if (bf16) value = operand_of_bf16(value);
        tile[along_k ? threadIdx.x : i][along_k ? i : threadIdx.x] = value;
    }
    __syncthreads();
    for (u32 i = threadIdx.y; i < 32; i += 8) {
        u64 k = k0 + i, x = x0 + threadIdx.x;
        if (k < terms && x < row) to[k * row + x] = tile[i][threadIdx.x];
    }
}

// The sums that a thread keeps.
template <int ROWS, int COLS, int ORDER> struct Sums;

template <int ROWS, int COLS> struct Sums<ROWS, COLS, F32_ORDER> {
    float sum[ROWS][COLS];

    __device__ __forceinline__ void begin() {}
    __device__ __forceinline__ void add(int k, const float *a, const float *b) {
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLS; j++) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
    }
    __device__ __forceinline__ void end_piece(bool last, u32 terms) {}
};

template <int ROWS, int COLS> struct Sums<ROWS, COLS, BF16_ORDER> {
    float sum[ROWS][COLS], even[ROWS][COLS], odd[ROWS][COLS];

    __device__ __forceinline__ void begin() {
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLS; j++) even[i][j] = odd[i][j] = 0.0f;
    }
    __device__ __forceinline__ void add(int k, const float *a, const float *b) {
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLS; j++)
                if (k % 2 == 0)
                    even[i][j] = fmaf(a[i], b[j], even[i][j]);
                else
                    odd[i][j] = fmaf(a[i], b[j], odd[i][j]);
    }
    // `terms` have gone by since the range began.
    __device__ __forceinline__ void end_piece(bool last, u32 terms) {
        if (!last && terms % BF16_TERMS != 0) return;
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < COLS; j++) sum[i][j] = sum[i][j] + (even[i][j] + odd[i][j]);
        begin();
    }
};

// A piece of `k` within one range of a leaf.
struct Piece {
    u32 range;
    u32 k;
    u32 count;
};

// The piece after one that ends at term `k` of range `range`; `count` is 0 after the last.
template <int DEPTH> __device__ __forceinline__ Piece piece_at(const u32 *ranges, u32 range, u32 last, u32 k) {
    if (k == ranges[2 * range + 1]) {
        range++;
        if (range == last) return {range, 0, 0};
        k = ranges[2 * range];
    }
    u32 left = ranges[2 * range + 1] - k;
    return {range, k, left < DEPTH ? left : DEPTH};
}

// Four rows side by side and four `BM / (ROWS / 4)` further on, and so on for all rows of a thread; columns alike.
template <int BM, int BN, int DEPTH, int ROWS, int COLS, int ORDER>
static __device__ __forceinline__ void product(const float *a, u64 a_row, const float *b, u64 b_row, float *c, u64 c_row,
                                               u64 leaf_step, u64 m, u64 n, u64 column_tiles, const u32 *leaves, u32 from_c) {
    const int THREADS = (BM / ROWS) * (BN / COLS);
    const int A_LOADS = (DEPTH * BM / 4 + THREADS - 1) / THREADS, B_LOADS = (DEPTH * BN / 4 + THREADS - 1) / THREADS;
    const int ROW_GROUP = BM / (ROWS / 4), COL_GROUP = BN / (COLS / 4);
    __shared__ float4 a_tile[2][DEPTH][BM / 4];
    __shared__ float4 b_tile[2][DEPTH][BN / 4];

    u32 thread = threadIdx.x;
    u32 leaf = blockIdx.x / column_tiles;
    u64 m0 = (u64)blockIdx.y * BM, n0 = blockIdx.x % column_tiles * BN;
    u32 row = thread / (BN / COLS) * 4, column = thread % (BN / COLS) * 4;
    c += leaf * leaf_step;

    Sums<ROWS, COLS, ORDER> sums;
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < COLS; j++) {
            u64 y = m0 + i / 4 * ROW_GROUP + row + i % 4, x = n0 + j / 4 * COL_GROUP + column + j % 4;
            sums.sum[i][j] = from_c && y < m && x < n ? c[y * c_row + x] : 0.0f;
        }
    sums.begin();

    // Leaf i has the ranges leaves[i] .. leaves[i + 1], pairs of first term and end, which follow all of these.
    u32 count = leaves[0], first_range = leaves[1 + leaf], last_range = leaves[2 + leaf];
    const u32 *ranges = leaves + count + 2;

    float4 a_next[A_LOADS], b_next[B_LOADS];
    const float4 ZERO = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    auto load = [&](Piece piece) {
#pragma unroll
        for (int i = 0; i < A_LOADS; i++) {
            u32 at = i * THREADS + thread, k = at / (BM / 4), x = at % (BM / 4) * 4;
            bool inside = k < piece.count && m0 + x < a_row;
            a_next[i] = inside ? *(const float4 *)(a + (piece.k + k) * a_row + m0 + x) : ZERO;
        }
#pragma unroll
        for (int i = 0; i < B_LOADS; i++) {
            u32 at = i * THREADS + thread, k = at / (BN / 4), x = at % (BN / 4) * 4;
            bool inside = k < piece.count && n0 + x < b_row;
            b_next[i] = inside ? *(const float4 *)(b + (piece.k + k) * b_row + n0 + x) : ZERO;
        }
    };
    auto store = [&](u32 buffer) {
#pragma unroll
        for (int i = 0; i < A_LOADS; i++) {
            u32 at = i * THREADS + thread;
            if (at < DEPTH * BM / 4) a_tile[buffer][at / (BM / 4)][at % (BM / 4)] = a_next[i];
        }
#pragma unroll
        for (int i = 0; i < B_LOADS; i++) {
            u32 at = i * THREADS + thread;
            if (at < DEPTH * BN / 4) b_tile[buffer][at / (BN / 4)][at % (BN / 4)] = b_next[i];
        }
    };
    auto multiply = [&](u32 buffer, int k) {
        float a_k[ROWS], b_k[COLS];
#pragma unroll
        for (int i = 0; i < ROWS; i += 4) {
            float4 four = a_tile[buffer][k][(i / 4 * ROW_GROUP + row) / 4];
            a_k[i] = four.x, a_k[i + 1] = four.y, a_k[i + 2] = four.z, a_k[i + 3] = four.w;
        }
#pragma unroll
        for (int j = 0; j < COLS; j += 4) {
            float4 four = b_tile[buffer][k][(j / 4 * COL_GROUP + column) / 4];
            b_k[j] = four.x, b_k[j + 1] = four.y, b_k[j + 2] = four.z, b_k[j + 3] = four.w;
        }
        sums.add(k, a_k, b_k);
    };

    Piece piece = piece_at<DEPTH>(ranges, first_range, last_range, ranges[2 * first_range]);
    load(piece);
    store(0);
    __syncthreads();
    for (u32 buffer = 0; piece.count > 0; buffer ^= 1) {
        Piece next = piece_at<DEPTH>(ranges, piece.range, last_range, piece.k + piece.count);
        load(next);
        if (piece.count == DEPTH) {
#pragma unroll
            for (int k = 0; k < DEPTH; k++) multiply(buffer, k);
        } else {
            // Not one term more: a zero that is added may change the sign of another.
            for (int k = 0; k < (int)piece.count; k++) multiply(buffer, k);
        }
        sums.end_piece(next.range != piece.range, piece.k + piece.count - ranges[2 * piece.range]);
        store(buffer ^ 1);
        __syncthreads();
        piece = next;
    }

#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < COLS; j++) {
            u64 y = m0 + i / 4 * ROW_GROUP + row + i % 4, x = n0 + j / 4 * COL_GROUP + column + j % 4;
            if (y < m && x < n) c[y * c_row + x] = sums.sum[i][j];
        }
}

#define PARAMETERS                                                                                                      \
    const float *a, u64 a_row, const float *b, u64 b_row, float *c, u64 c_row, u64 leaf_step, u64 m, u64 n, u64 column_tiles, \
        const u32 *leaves, u32 from_c
#define ARGUMENTS a, a_row, b, b_row, c, c_row, leaf_step, m, n, column_tiles, leaves, from_c

extern "C" __global__ __launch_bounds__(256, 2) void product_large(PARAMETERS) {
    product<128, 128, 8, 8, 8, F32_ORDER>(ARGUMENTS);
}

extern "C" __global__ __launch_bounds__(256) void product_medium(PARAMETERS) {
    product<64, 64, 16, 4, 4, F32_ORDER>(ARGUMENTS);
}

extern "C" __global__ __launch_bounds__(64) void product_small(PARAMETERS) {
    product<16, 64, 32, 4, 4, F32_ORDER>(ARGUMENTS);
}

extern "C" __global__ __launch_bounds__(256) void product_large_bf16(PARAMETERS) {
    product<64, 128, 8, 4, 8, BF16_ORDER>(ARGUMENTS);
}

extern "C" __global__ __launch_bounds__(256) void product_medium_bf16(PARAMETERS) {
    product<64, 64, 16, 4, 4, BF16_ORDER>(ARGUMENTS);
}

extern "C" __global__ __launch_bounds__(64) void product_small_bf16(PARAMETERS) {
    product<16, 64, 32, 4, 4, BF16_ORDER>(ARGUMENTS);
}

// The sums of leaves, `[leaf][m][n]`, in the order of `pairs` (the number of additions, then where to and where from), and the
// first of them to `c`, or added to what is there.
extern "C" __global__ void add_leaves(float *sums, u64 leaf_step, const u32 *pairs, float *c, u64 c_row, u64 n, u64 count, u32 from_c) {
    u64 i = this_element();
    if (i >= count) return;
    for (u32 pair = 0; pair < pairs[0]; pair++)
        sums[pairs[1 + 2 * pair] * leaf_step + i] += sums[pairs[2 + 2 * pair] * leaf_step + i];
    float *to = c + quotient(i, n) * c_row + remainder_of(i, n);
    *to = from_c ? *to + sums[i] : sums[i];
}
