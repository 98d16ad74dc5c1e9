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

// A piece of `k`, of one of a leaf's ranges.
struct Piece {
    u32 k, count;
    // Of the range.
    u32 begin, end;
};

// A warp has four by eight threads; a thread has rows in fours, four threads' apart, and columns in fours, eight threads' apart, so that
// what a warp reads of shared memory lies side by side.
template <int BM, int BN, int DEPTH, int ROWS, int COLS, int ORDER>
static __device__ __forceinline__ void product(const float *__restrict__ a, u32 a_row, const float *__restrict__ b, u32 b_row, float *c,
                                               u64 c_row, u64 leaf_step, u32 m, u32 n, u32 column_tiles,
                                               const u32 *__restrict__ leaves, u32 from_c) {
    const int ROW_WARPS = BM / (4 * ROWS), COL_WARPS = BN / (8 * COLS), THREADS = ROW_WARPS * COL_WARPS * 32;
    const int A_LOADS = (DEPTH * BM / 4 + THREADS - 1) / THREADS, B_LOADS = (DEPTH * BN / 4 + THREADS - 1) / THREADS;
    __shared__ float4 a_tile[2][DEPTH][BM / 4];
    __shared__ float4 b_tile[2][DEPTH][BN / 4];

    u32 thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    u32 leaf = blockIdx.x / column_tiles;
    u32 m0 = blockIdx.y * BM, n0 = blockIdx.x % column_tiles * BN;
    u32 row = warp / COL_WARPS * (4 * ROWS) + lane / 8 * 4, column = warp % COL_WARPS * (8 * COLS) + lane % 8 * 4;
    c += leaf * leaf_step;

    Sums<ROWS, COLS, ORDER> sums;
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < COLS; j++) {
            u32 y = m0 + row + i / 4 * 16 + i % 4, x = n0 + column + j / 4 * 32 + j % 4;
            sums.sum[i][j] = from_c && y < m && x < n ? c[y * c_row + x] : 0.0f;
        }
    sums.begin();

    // Leaf i has the ranges leaves[i] .. leaves[i + 1], pairs of first term and end, which follow all of these.
    const u32 *ranges = leaves + leaves[0] + 2;
    const u32 *last_range = ranges + 2 * leaves[2 + leaf];
    ranges += 2 * leaves[1 + leaf];
    // The piece that begins at the term, or at the next range where this one ends there; without terms after the last.
    auto piece_at = [&](u32 k, u32 begin, u32 end) {
        if (k == end) {
            if (ranges == last_range) return Piece{end, 0, begin, end};
            k = begin = ranges[0];
            end = ranges[1];
            ranges += 2;
        }
        return Piece{k, end - k < DEPTH ? end - k : DEPTH, begin, end};
    };

    float4 a_next[A_LOADS], b_next[B_LOADS];
    const float4 ZERO = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    auto load = [&](Piece piece) {
        const float *a_piece = a + (u64)piece.k * a_row, *b_piece = b + (u64)piece.k * b_row;
#pragma unroll
        for (int i = 0; i < A_LOADS; i++) {
            u32 at = i * THREADS + thread, k = at / (BM / 4), x = m0 + at % (BM / 4) * 4;
            a_next[i] = k < piece.count && x < m ? *(const float4 *)(a_piece + (k * a_row + x)) : ZERO;
        }
#pragma unroll
        for (int i = 0; i < B_LOADS; i++) {
            u32 at = i * THREADS + thread, k = at / (BN / 4), x = n0 + at % (BN / 4) * 4;
            b_next[i] = k < piece.count && x < n ? *(const float4 *)(b_piece + (k * b_row + x)) : ZERO;
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
            float4 four = a_tile[buffer][k][(row + i * 4) / 4];
            a_k[i] = four.x, a_k[i + 1] = four.y, a_k[i + 2] = four.z, a_k[i + 3] = four.w;
        }
#pragma unroll
        for (int j = 0; j < COLS; j += 4) {
            float4 four = b_tile[buffer][k][(column + j * 8) / 4];
            b_k[j] = four.x, b_k[j + 1] = four.y, b_k[j + 2] = four.z, b_k[j + 3] = four.w;
        }
        sums.add(k, a_k, b_k);
    };

    Piece piece = piece_at(0, 0, 0);
    load(piece);
    store(0);
    __syncthreads();
    for (u32 buffer = 0; piece.count > 0; buffer ^= 1) {
        Piece next = piece_at(piece.k + piece.count, piece.begin, piece.end);
        load(next);
        if (piece.count == DEPTH) {
#pragma unroll
            for (int k = 0; k < DEPTH; k++) multiply(buffer, k);
        } else {
            // Not one term more: a zero that is added may change the sign of another.
            for (int k = 0; k < (int)piece.count; k++) multiply(buffer, k);
        }
        u32 end = piece.k + piece.count;
        sums.end_piece(end == piece.end, end - piece.begin);
        store(buffer ^ 1);
        __syncthreads();
        piece = next;
    }

#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < COLS; j++) {
            u32 y = m0 + row + i / 4 * 16 + i % 4, x = n0 + column + j / 4 * 32 + j % 4;
            if (y < m && x < n) c[y * c_row + x] = sums.sum[i][j];
        }
}

#define PARAMETERS                                                                                                      \
    const float *__restrict__ a, u32 a_row, const float *__restrict__ b, u32 b_row, float *c, u64 c_row, u64 leaf_step, u32 m, u32 n, \
        u32 column_tiles, const u32 *__restrict__ leaves, u32 from_c
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
