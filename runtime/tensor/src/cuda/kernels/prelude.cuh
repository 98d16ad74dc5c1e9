// What all kernels share. They keep to what a compiler of the host takes too (see emulated.cuh): no warp operations, no
// atomics, no functions of CUDA's mathematical library but fmaf and sqrtf. A kernel is `extern "C" __global__ void`.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;
typedef unsigned char u8;

// The element of a thread where each has one.
static __device__ inline u64 this_element() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

static __device__ inline bool is_nan(float x) { return x != x; }

// A number rounded to bfloat16, to the nearest and ties to even; a NaN stays one.
static __device__ inline float rounded_to_bf16(float x) {
    u32 bits = __float_as_uint(x);
    u32 rounded = bits + (0x7fffu + ((bits >> 16) & 1u));
    return __uint_as_float(((bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : rounded) & 0xffff0000u);
}

// What products in bfloat16 make of an operand: zero where it is closer to zero than 2^-56, so that no product is denormal.
static __device__ inline float operand_of_bf16(float x) {
    return (__float_as_uint(x) & 0x7fffffffu) < 0x23800000u ? 0.0f : rounded_to_bf16(x);
}

// Division of numbers that are mostly small: of 32 bits it is much faster.
static __device__ inline u64 quotient(u64 a, u64 b) { return ((a | b) >> 32) == 0 ? (u64)((u32)a / (u32)b) : a / b; }

static __device__ inline u64 remainder_of(u64 a, u64 b) { return a - quotient(a, b) * b; }
