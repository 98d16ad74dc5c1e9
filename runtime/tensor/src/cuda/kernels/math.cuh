// The functions of math.rs and the sums of cpu/order.rs, operation by operation: the same bits as on the CPU.
#pragma once

// The lanes of a row's sum; a group of as many threads does one row.
static constexpr u32 LANES = 16u;

static __device__ inline float infinity() { return __uint_as_float(0x7f800000u); }

static __device__ inline float magnitude_of(float x) { return __uint_as_float(__float_as_uint(x) & 0x7fffffffu); }

// `b` if it is larger, else `a`.
static __device__ inline float larger(float a, float b) { return b > a ? b : a; }

static __device__ inline float power_of_two(u32 n) { return __uint_as_float((n + 127u) << 23); }

// `math::exp`
static __device__ inline float exp_of(float x) {
    const float round = 12582912.0f;
    float rounded = fmaf(x, 1.44269504088896340736f, round);
    float n = rounded - round;
    float r = fmaf(n, 2.1219444e-4f, fmaf(n, -0.6933594f, x));
    float p = 1.9875691e-4f;
    p = fmaf(p, r, 1.3981999e-3f);
    p = fmaf(p, r, 8.333452e-3f);
    p = fmaf(p, r, 4.1665796e-2f);
    p = fmaf(p, r, 1.6666665e-1f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p * r, r, r) + 1.0f;
    u32 exponent = __float_as_uint(rounded) - __float_as_uint(round);
    // An arithmetic shift by one.
    u32 half = (exponent >> 1) | (exponent & 0x80000000u);
    float e = p * power_of_two(half) * power_of_two(exponent - half);
    e = x < -87.0f ? 0.0f : e;
    return x > 88.72284f ? infinity() : e;
}

// `math::ln_f64`
static __device__ inline double ln_double(double x) {
    u64 bits = (u64)__double_as_longlong(x);
    int exponent = (int)(bits >> 52) - 1023;
    double m = __longlong_as_double((long long)((bits & 0xfffffffffffffull) | (1023ull << 52)));
    if (m > 1.41421356237309504880168872420969808) {
        m = m * 0.5;
        exponent += 1;
    }
    double s = (m - 1.0) / (m + 1.0);
    double z = s * s;
    double series = 0.0;
    for (int term = 11; term >= 0; term--) {
        series = series * z + 1.0 / (double)(2 * term + 1);
    }
    return (double)exponent * 0.693147180559945309417232121458176568 + 2.0 * s * series;
}

// `math::ln`
static __device__ inline float ln_of(float x) {
    if (x == 0.0f) {
        return -infinity();
    }
    if (!(x > 0.0f)) {
        return __uint_as_float(0x7fc00000u);
    }
    return x == infinity() ? x : (float)ln_double((double)x);
}

// `math::normal`: the distribution function, and the density in `density`.
static __device__ inline float normal_of(float x, float* density) {
    float magnitude = magnitude_of(x);
    magnitude = magnitude > 14.0f ? 14.0f : magnitude;
    float square = magnitude * magnitude;
    float rest = fmaf(magnitude, magnitude, -square);
    float e = exp_of(-0.5f * square);
    e = fmaf(e, -0.5f * rest, e);
    float t = magnitude * 0.707106781186547524400844362104849039f;
    float reciprocal = 1.0f / (t + 3.0f);
    float q = (t - 3.0f) * reciprocal;
    float p = -3.2941395e-4f;
    p = fmaf(p, q, -4.906923e-4f);
    p = fmaf(p, q, 3.0788821e-3f);
    p = fmaf(p, q, -1.2228193e-3f);
    p = fmaf(p, q, -2.6838576e-2f);
    p = fmaf(p, q, 1.195285e-1f);
    p = fmaf(p, q, -3.1046617e-1f);
    p = fmaf(p, q, 5.902283e-1f);
    p = fmaf(p, q, -8.833945e-1f);
    p = fmaf(p, q, 1.0740069f);
    float tail = 0.5f * e * (p * reciprocal);
    *density = e * 0.3989423f;
    return x > 0.0f ? 1.0f - tail : tail;
}

// Philox4x32 with ten rounds, in place: `random::philox4x32`.
static __device__ inline void philox(u32 counter[4], u32 key0, u32 key1) {
    for (int round = 0; round < 10; round++) {
        u64 first = (u64)counter[0] * 0xD2511F53ull;
        u64 second = (u64)counter[2] * 0xCD9E8D57ull;
        u32 words[4];
        words[0] = (u32)(second >> 32) ^ counter[1] ^ key0;
        words[1] = (u32)second;
        words[2] = (u32)(first >> 32) ^ counter[3] ^ key1;
        words[3] = (u32)first;
        for (int i = 0; i < 4; i++) {
            counter[i] = words[i];
        }
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

// The fold of sixteen lanes in halves.
static __device__ inline float fold_lanes(const float* lanes) {
    float a[8];
    for (int i = 0; i < 8; i++) {
        a[i] = lanes[i] + lanes[i + 8];
    }
    for (int i = 0; i < 4; i++) {
        a[i] = a[i] + a[i + 4];
    }
    a[0] = a[0] + a[2];
    a[1] = a[1] + a[3];
    return a[0] + a[1];
}

// The largest of sixteen lanes.
static __device__ inline float largest_lane(const float* lanes) {
    float a[8];
    for (int i = 0; i < 8; i++) {
        a[i] = larger(lanes[i], lanes[i + 8]);
    }
    for (int i = 0; i < 4; i++) {
        a[i] = larger(a[i], a[i + 4]);
    }
    a[0] = larger(a[0], a[2]);
    a[1] = larger(a[1], a[3]);
    return larger(a[0], a[1]);
}

// What the sixteen threads of this thread's row have, folded. `lanes` has one element a thread of the block. All threads of
// the block take part.
static __device__ inline float fold_threads(float* lanes, float value) {
    __syncthreads();
    lanes[threadIdx.x] = value;
    __syncthreads();
    return fold_lanes(lanes + threadIdx.x / LANES * LANES);
}
