// Weights in fewer bits: cpu/compressed.rs. `format` is 0 for bfloat16, 1 for integers of eight bits, 2 for NF4.
#include "prelude.cuh"

static __device__ inline float expanded(u32 format, const u8 *codes, const float *scales, u64 i) {
    if (format == 0) return __uint_as_float((u32)((const u16 *)codes)[i] << 16);
    float scale = scales[i / 64];
    if (format == 1) return (float)(signed char)codes[i] * scale;
    const float NF4[16] = {-1.0f,         -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
                           -0.091050036f, 0.0f,        0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f,
                           0.44070983f,   0.562617f,   0.72295684f,  1.0f};
    u32 code = codes[i / 2];
    return NF4[i % 2 == 0 ? code & 15 : code >> 4] * scale;
}

extern "C" __global__ void expand(u32 format, const u8 *codes, const float *scales, float *out, u64 count) {
    u64 i = this_element();
    if (i < count) out[i] = expanded(format, codes, scales, i);
}

// Rows of a table of `len` numbers; those of ids outside of it stay as they are.
extern "C" __global__ void embed_compressed(u32 format, const u8 *codes, const float *scales, u64 len, u64 width, u64 first_id,
                                            const u32 *ids, float *out, u64 count) {
    u64 i = this_element();
    if (i >= count) return;
    u64 id = ids[quotient(i, width)];
    if (id < first_id || (id - first_id) * width >= len) return;
    out[i] = expanded(format, codes, scales, (id - first_id) * width + remainder_of(i, width));
}
