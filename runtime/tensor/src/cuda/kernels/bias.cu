// A vector added to every row, and its gradient: cpu/bias.rs.
#include "prelude.cuh"
#include "math.cuh"

// A block a row.
extern "C" __global__ void add_bias(float* x, const float* bias, u32 width) {
    float* row = x + (u64)blockIdx.x * width;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
        row[i] = row[i] + bias[i];
    }
}

// A thread a column and leaf, over the leaf's rows in ascending order; `parts` as in norm.cu.
extern "C" __global__ void bias_gradient(const float* dy, u32 width, const u32* parts, float* sums) {
    u64 column = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u64 leaf = blockIdx.y;
    if (column >= width || parts[leaf] == parts[leaf + 1]) {
        return;
    }
    float sum = sums[leaf * width + column];
    for (u32 part = parts[leaf]; part < parts[leaf + 1]; part++) {
        const u32* rows = parts + gridDim.y + 1 + 2 * (u64)part;
        #pragma unroll 8
        for (u64 row = rows[0]; row < rows[1]; row++) {
            sum += dy[row * width + column];
        }
    }
    sums[leaf * width + column] = sum;
}
