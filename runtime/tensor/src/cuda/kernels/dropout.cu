// Dropout by a counter: cpu/dropout.rs. A thread does the four elements of one block of random words.
#include "prelude.cuh"
#include "math.cuh"

extern "C" __global__ void dropout(float* values, u64 len, u32 key0, u32 key1, u32 high0, u32 high1, u64 first,
                                   u32 threshold, float factor) {
    u64 block = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    u64 blocks = (first % 4 + len + 3) / 4;
    if (block >= blocks) {
        return;
    }
    u64 index = first / 4 + block;
    u32 words[4] = {(u32)index, (u32)(index >> 32), high0, high1};
    philox(words, key0, key1);
    for (u32 i = 0; i < 4; i++) {
        // Below the first element this wraps to more than any length.
        u64 at = 4 * block + i - first % 4;
        if (at < len) {
            values[at] = words[i] >= threshold ? values[at] * factor : 0.0f;
        }
    }
}
