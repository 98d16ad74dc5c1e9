// Activations of feed-forward layers: cpu/swiglu.rs and cpu/gelu.rs.
#include "prelude.cuh"
#include "math.cuh"

static __device__ inline float sigmoid(float x) { return 1.0f / (1.0f + exp_of(-x)); }

// A block a row: `gate_up` is `[rows][2][columns]`, `out` `[rows][columns]`.
extern "C" __global__ void swiglu(const float* gate_up, u32 columns, float* out) {
    u64 row = blockIdx.x;
    const float* gate = gate_up + row * 2 * columns;
    const float* up = gate + columns;
    for (u32 i = threadIdx.x; i < columns; i += blockDim.x) {
        out[row * columns + i] = gate[i] * sigmoid(gate[i]) * up[i];
    }
}

extern "C" __global__ void swiglu_backward(const float* d_out, const float* gate_up, u32 columns, float* d_gate_up) {
    u64 row = blockIdx.x;
    const float* gates = gate_up + row * 2 * columns;
    float* d_gates = d_gate_up + row * 2 * columns;
    for (u32 i = threadIdx.x; i < columns; i += blockDim.x) {
        float d = d_out[row * columns + i];
        float gate = gates[i];
        float up = gates[columns + i];
        float s = sigmoid(gate);
        d_gates[columns + i] = d * (gate * s);
        d_gates[i] = d * up * (s * fmaf(gate, 1.0f - s, 1.0f));
    }
}

// The logistic gate of the form with tanh, and its product with the rest in `product`.
static __device__ inline float tanh_gate(float x, float* product) {
    float u = 0.7978846f * x * fmaf(x * x, 0.044715f, 1.0f);
    float e = exp_of(-2.0f * magnitude_of(u));
    float upper = 1.0f / (1.0f + e);
    float lower = e * upper;
    *product = upper * lower;
    return u > 0.0f ? upper : lower;
}

extern "C" __global__ void gelu(u32 is_tanh, const float* x, u64 len, float* out) {
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < len; i += (u64)gridDim.x * blockDim.x) {
        float other;
        float gate = is_tanh ? tanh_gate(x[i], &other) : normal_of(x[i], &other);
        out[i] = x[i] * gate;
    }
}

extern "C" __global__ void gelu_backward(u32 is_tanh, const float* d_out, const float* x, u64 len, float* dx) {
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < len; i += (u64)gridDim.x * blockDim.x) {
        float at = x[i];
        float other;
        float derivative;
        if (is_tanh) {
            at = at > 32.0f ? 32.0f : at;
            at = at < -32.0f ? -32.0f : at;
            float gate = tanh_gate(at, &other);
            float slope = 2.0f * 0.7978846f * fmaf(at * at, 3.0f * 0.044715f, 1.0f);
            derivative = fmaf(at * slope, other, gate);
        } else {
            float cdf = normal_of(at, &other);
            derivative = fmaf(at, other, cdf);
        }
        dx[i] = d_out[i] * derivative;
    }
}
