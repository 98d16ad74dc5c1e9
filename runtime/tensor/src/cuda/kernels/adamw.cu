// The AdamW update: cpu/adamw.rs, whose coefficients the host computes.
#include "prelude.cuh"
#include "math.cuh"

extern "C" __global__ void adamw_step(float* param, float* m, float* v, const float* grad, u64 len, float beta1, float beta2,
                                      float eps, float gradient_scale, float keep, float step_size,
                                      float root_correction) {
    float rest1 = 1.0f - beta1;
    float rest2 = 1.0f - beta2;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < len; i += (u64)gridDim.x * blockDim.x) {
        float g = grad[i] * gradient_scale;
        float first = fmaf(beta1, m[i], rest1 * g);
        float second = fmaf(beta2, v[i], rest2 * (g * g));
        float root = fmaf(sqrtf(second), root_correction, eps);
        m[i] = first;
        v[i] = second;
        param[i] = fmaf(-step_size, first / root, param[i] * keep);
    }
}
