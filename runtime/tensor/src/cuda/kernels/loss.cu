// Softmax and cross entropy over a shard of the vocabulary: cpu/cross_entropy.rs.
//
// Logits are `[rows][columns]`, of which the first `words` of a row take part. A target is a word of the shard if it is at
// least `first_id` and less than `words` beyond it. In the kernels with lanes sixteen threads do a row, of 256 in a block.
#include "prelude.cuh"
#include "math.cuh"

static constexpr u32 IGNORED_TARGET = 0xffffffffu;

// The column of a target, or `words` if the shard does not hold it.
static __device__ inline u64 column_of(u32 target, u64 first_id, u32 words) {
    u64 column = (u64)target - first_id;
    return target != IGNORED_TARGET && target >= first_id && column < words ? column : words;
}

extern "C" __global__ void logit_maxima(const float* logits, u32 columns, u32 words, u32 rows, float* maxima) {
    __shared__ float lanes[256];
    u32 lane = threadIdx.x % LANES;
    u64 row = (u64)blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    u32 whole = row < rows ? words / LANES * LANES : 0;
    const float* logit = logits + row * columns;
    float maximum = -infinity();
    #pragma unroll 8
    for (u32 i = lane; i < whole; i += LANES) {
        maximum = larger(maximum, logit[i]);
    }
    lanes[threadIdx.x] = maximum;
    __syncthreads();
    if (lane == 0 && row < rows) {
        maximum = largest_lane(lanes + threadIdx.x);
        for (u32 i = whole; i < words; i++) {
            maximum = larger(maximum, logit[i]);
        }
        maxima[row] = maximum;
    }
}

extern "C" __global__ void logit_exp_sums(const float* logits, u32 columns, u32 words, u32 rows, const float* maxima,
                                          float* sums) {
    __shared__ float lanes[256];
    u32 lane = threadIdx.x % LANES;
    u64 row = (u64)blockIdx.x * (blockDim.x / LANES) + threadIdx.x / LANES;
    u32 count = row < rows ? words : 0;
    float maximum = row < rows ? maxima[row] : 0.0f;
    float sum = 0.0f;
    #pragma unroll 8
    for (u32 i = lane; i < count; i += LANES) {
        sum += exp_of(logits[row * columns + i] - maximum);
    }
    sum = fold_threads(lanes, sum);
    if (lane == 0 && row < rows) {
        sums[row] = sum;
    }
}

extern "C" __global__ void target_logits(const float* logits, u32 columns, u32 words, u64 first_id, u32 rows,
                                         const u32* targets, float* out) {
    u64 row = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) {
        u64 column = column_of(targets[row], first_id, words);
        if (column < words) {
            out[row] = logits[row * columns + column];
        }
    }
}

extern "C" __global__ void cross_entropy_losses(const float* maxima, const float* sums, const float* logits,
                                                const u32* targets, u32 rows, float* losses) {
    u64 row = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) {
        losses[row] = targets[row] == IGNORED_TARGET ? 0.0f : (maxima[row] - logits[row]) + ln_of(sums[row]);
    }
}

// A block a row.
extern "C" __global__ void cross_entropy_gradient(float* logits, u32 columns, u32 words, u64 first_id, const u32* targets,
                                                  const float* maxima, const float* sums, float scale) {
    u64 row = blockIdx.x;
    u32 target = targets[row];
    u64 hit = column_of(target, first_id, words);
    float maximum = maxima[row];
    float sum = sums[row];
    for (u32 i = threadIdx.x; i < columns; i += blockDim.x) {
        float value = 0.0f;
        if (target != IGNORED_TARGET && i < words) {
            value = exp_of(logits[row * columns + i] - maximum) / sum * scale;
            value = i == hit ? value - scale : value;
        }
        logits[row * columns + i] = value;
    }
}
