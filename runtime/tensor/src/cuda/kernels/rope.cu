// Rotary position embedding in place: cpu/rope.rs. A block a token, whose row has `heads` heads of twice `half` elements.
#include "prelude.cuh"
#include "math.cuh"

extern "C" __global__ void rope(float* x, u64 stride, u32 heads, u32 half, const u32* positions, const float* cosines,
                                const float* sines, float sign) {
    float* token = x + blockIdx.x * stride;
    u64 first = (u64)positions[blockIdx.x] * half;
    for (u32 pair = threadIdx.x; pair < heads * half; pair += blockDim.x) {
        u32 i = pair % half;
        float* at = token + (u64)(pair / half) * 2 * half + i;
        float a = at[0];
        float b = at[half];
        float cosine = cosines[first + i];
        float sine = sines[first + i] * sign;
        at[0] = fmaf(a, cosine, -(b * sine));
        at[half] = fmaf(b, cosine, a * sine);
    }
}
