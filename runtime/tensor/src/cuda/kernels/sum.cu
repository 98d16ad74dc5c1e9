// Sums in the tree, in lanes, and the search for numbers that are not finite: cpu/order.rs and cpu/finite.rs.
#include "prelude.cuh"

// Adds `parts` parts of `len` elements in the tree; a thread has an element of all parts.
extern "C" __global__ void tree_sum(float *values, u64 len, u64 parts) {
    u64 i = this_element();
    if (i >= len) return;
    for (u64 distance = 1; distance < parts; distance *= 2)
        for (u64 to = 0; to + distance < parts; to += 2 * distance)
            values[to * len + i] += values[(to + distance) * len + i];
}

// Sums of squares of blocks of 4096 elements: sixteen threads do one, each a lane. A block of threads has 256.
extern "C" __global__ void sum_of_squares(const float *values, u64 count, float *sums, u64 blocks) {
    __shared__ float lanes[256];
    u64 block = (u64)blockIdx.x * 16 + threadIdx.x / 16;
    u64 end = block < blocks ? (block + 1) * 4096 : 0;
    end = end < count ? end : count;
    float sum = 0.0f;
    for (u64 i = block * 4096 + threadIdx.x % 16; i < end; i += 16) sum = fmaf(values[i], values[i], sum);
    lanes[threadIdx.x] = sum;
    for (u32 width = 8; width > 0; width /= 2) {
        __syncthreads();
        if (threadIdx.x % 16 < width) lanes[threadIdx.x] += lanes[threadIdx.x + width];
    }
    if (threadIdx.x % 16 == 0 && block < blocks) sums[block] = lanes[threadIdx.x];
}

// Sets `found` where a number is not finite.
extern "C" __global__ void find_not_finite(const float *values, u64 count, u32 *found) {
    u64 step = (u64)gridDim.x * blockDim.x;
    bool wrong = false;
    for (u64 i = this_element(); i < count; i += step) wrong |= (__float_as_uint(values[i]) & 0x7f800000u) == 0x7f800000u;
    if (wrong) *found = 1;
}
