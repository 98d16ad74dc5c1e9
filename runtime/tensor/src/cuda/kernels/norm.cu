// Norms of rows: cpu/rms_norm.rs and cpu/layer_norm.rs. Sixteen threads do a row, each a lane of its sums; a block has 256
// threads. Gradients of parameters go over the rows of a leaf in ascending order, a thread a column.
//
// `parts` are the rows of each leaf: `leaves + 1` offsets into the pairs (first row, end) that follow them.
#include "prelude.cuh"
#include "math.cuh"

extern "C" __global__ void rms_norm(const float* x, const float* w, u32 width, u32 rows, float eps, float* out,
                                    float* rstd) {
    __shared__ float lanes[256];
    u32 lane = threadIdx.x % LANES;
    u64 row = (u64)blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    u32 count = row < rows ? width : 0;
    float sum = 0.0f;
    #pragma unroll 4
    for (u32 i = lane; i < count; i += LANES) {
        float value = x[row * width + i];
        sum = fmaf(value, value, sum);
    }
    float mean = fold_threads(lanes, sum) / (float)width;
    float factor = 1.0f / sqrtf(mean + eps);
    if (lane == 0 && row < rows) {
        rstd[row] = factor;
    }
    #pragma unroll 4
    for (u32 i = lane; i < count; i += LANES) {
        out[row * width + i] = x[row * width + i] * factor * w[i];
    }
}

extern "C" __global__ void rms_norm_backward_x(const float* dy, const float* x, const float* w, const float* rstd, u32 width,
                                               u32 rows, float* dx) {
    __shared__ float lanes[256];
    u32 lane = threadIdx.x % LANES;
    u64 row = (u64)blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    u32 count = row < rows ? width : 0;
    float sum = 0.0f;
    #pragma unroll 4
    for (u32 i = lane; i < count; i += LANES) {
        u64 at = row * width + i;
        sum = fmaf(dy[at] * w[i], x[at], sum);
    }
    float dot = fold_threads(lanes, sum);
    float factor = row < rows ? rstd[row] : 0.0f;
    float shift = dot * (factor * factor * factor) / (float)width;
    #pragma unroll 4
    for (u32 i = lane; i < count; i += LANES) {
        u64 at = row * width + i;
        dx[at] = fmaf(-shift, x[at], dy[at] * w[i] * factor);
    }
}

extern "C" __global__ void rms_norm_backward_w(const float* dy, const float* x, const float* rstd, u32 width,
                                               const u32* parts, float* dw) {
    u64 column = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u64 leaf = blockIdx.y;
    if (column >= width || parts[leaf] == parts[leaf + 1]) {
        return;
    }
    float sum = dw[leaf * width + column];
    for (u32 part = parts[leaf]; part < parts[leaf + 1]; part++) {
        const u32* rows = parts + gridDim.y + 1 + 2 * (u64)part;
        #pragma unroll 8
        for (u64 row = rows[0]; row < rows[1]; row++) {
            u64 at = row * width + column;
            sum = fmaf(dy[at], x[at] * rstd[row], sum);
        }
    }
    dw[leaf * width + column] = sum;
}

extern "C" __global__ void layer_norm(const float* x, const float* w, const float* bias, u32 width, u32 rows, float eps,
                                      float* out, float* means, float* rstd) {
    __shared__ float lanes[256];
    u32 lane = threadIdx.x % LANES;
    u64 row = (u64)blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    u32 count = row < rows ? width : 0;
    float sum = 0.0f;
    #pragma unroll 4
    for (u32 i = lane; i < count; i += LANES) {
        sum += x[row * width + i];
    }
    float mean = fold_threads(lanes, sum) / (float)width;
    sum = 0.0f;
    #pragma unroll 4
    for (u32 i = lane; i < count; i += LANES) {
        float difference = x[row * width + i] - mean;
        sum = fmaf(difference, difference, sum);
    }
    float factor = 1.0f / sqrtf(fold_threads(lanes, sum) / (float)width + eps);
    if (lane == 0 && row < rows) {
        means[row] = mean;
        rstd[row] = factor;
    }
    #pragma unroll 4
    for (u32 i = lane; i < count; i += LANES) {
        out[row * width + i] = fmaf((x[row * width + i] - mean) * factor, w[i], bias[i]);
    }
}

extern "C" __global__ void layer_norm_backward_x(const float* dy, const float* x, const float* w, const float* means,
                                                 const float* rstd, u32 width, u32 rows, float* dx) {
    __shared__ float lanes[256];
    u32 lane = threadIdx.x % LANES;
    u64 row = (u64)blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    u32 count = row < rows ? width : 0;
    float mean = row < rows ? means[row] : 0.0f;
    float factor = row < rows ? rstd[row] : 0.0f;
    float shift = 0.0f;
    float tilt = 0.0f;
    #pragma unroll 4
    for (u32 i = lane; i < count; i += LANES) {
        u64 at = row * width + i;
        shift = fmaf(dy[at], w[i], shift);
        tilt = fmaf(dy[at] * w[i], (x[at] - mean) * factor, tilt);
    }
    shift = fold_threads(lanes, shift) / (float)width;
    tilt = fold_threads(lanes, tilt) / (float)width;
    #pragma unroll 4
    for (u32 i = lane; i < count; i += LANES) {
        u64 at = row * width + i;
        float normed = (x[at] - mean) * factor;
        dx[at] = fmaf(-tilt, normed, fmaf(dy[at], w[i], -shift)) * factor;
    }
}

extern "C" __global__ void layer_norm_backward_w(const float* dy, const float* x, const float* means, const float* rstd,
                                                 u32 width, const u32* parts, float* dw, float* d_bias) {
    u64 column = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u64 leaf = blockIdx.y;
    if (column >= width || parts[leaf] == parts[leaf + 1]) {
        return;
    }
    float sum = dw[leaf * width + column];
    float bias_sum = d_bias[leaf * width + column];
    for (u32 part = parts[leaf]; part < parts[leaf + 1]; part++) {
        const u32* rows = parts + gridDim.y + 1 + 2 * (u64)part;
        #pragma unroll 8
        for (u64 row = rows[0]; row < rows[1]; row++) {
            u64 at = row * width + column;
            sum = fmaf(dy[at], (x[at] - means[row]) * rstd[row], sum);
            bias_sum += dy[at];
        }
    }
    dw[leaf * width + column] = sum;
    d_bias[leaf * width + column] = bias_sum;
}
