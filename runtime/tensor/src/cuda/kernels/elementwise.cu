// Element by element: cpu/elementwise.rs and cpu/matrix.rs.
#include "prelude.cuh"

extern "C" __global__ void fill(float *to, u64 count, float value) {
    u64 i = this_element();
    if (i < count) to[i] = value;
}

extern "C" __global__ void fill_matrix(float *to, u64 stride, u64 rows, u64 cols, float value) {
    u64 i = this_element();
    if (i < rows * cols) to[quotient(i, cols) * stride + remainder_of(i, cols)] = value;
}

extern "C" __global__ void copy(const float *from, float *to, u64 count) {
    u64 i = this_element();
    if (i < count) to[i] = from[i];
}

extern "C" __global__ void copy_matrix(const float *from, u64 from_stride, float *to, u64 to_stride, u64 rows, u64 cols) {
    u64 i = this_element();
    if (i < rows * cols) to[quotient(i, cols) * to_stride + remainder_of(i, cols)] = from[quotient(i, cols) * from_stride + remainder_of(i, cols)];
}

extern "C" __global__ void add_matrix(float *sum, u64 sum_stride, const float *term, u64 term_stride, u64 rows, u64 cols) {
    u64 i = this_element();
    if (i < rows * cols) sum[quotient(i, cols) * sum_stride + remainder_of(i, cols)] += term[quotient(i, cols) * term_stride + remainder_of(i, cols)];
}

extern "C" __global__ void add_assign(float *sum, const float *term, u64 count) {
    u64 i = this_element();
    if (i < count) sum[i] += term[i];
}

// Of a number and a NaN, the number; of two zeros, the first.
extern "C" __global__ void max_assign(float *max, const float *other, u64 count) {
    u64 i = this_element();
    if (i >= count) return;
    float a = max[i], b = other[i];
    if (b > a || is_nan(a)) max[i] = b;
}

extern "C" __global__ void scale(float *values, u64 count, float factor) {
    u64 i = this_element();
    if (i < count) values[i] *= factor;
}
