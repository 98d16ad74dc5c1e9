// CUDA's words for the host's compiler, and the threads of a block as fibers.

#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define __constant__ static const

struct Dim {
    unsigned x, y, z;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }

static thread_local Dim blockIdx, threadIdx, blockDim, gridDim;

template <class To, class From> static inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}
static inline unsigned __float_as_uint(float x) { return bits_as<unsigned>(x); }
static inline int __float_as_int(float x) { return bits_as<int>(x); }
static inline float __uint_as_float(unsigned x) { return bits_as<float>(x); }
static inline float __int_as_float(int x) { return bits_as<float>(x); }
static inline long long __double_as_longlong(double x) { return bits_as<long long>(x); }
static inline double __longlong_as_double(long long x) { return bits_as<double>(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)(((unsigned long long)a * b) >> 32); }

namespace emulated {

// A fiber's stack pointer while another runs; what a call must keep lies on its stack.
asm(R"(
.text
.type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulated_switch, .-emulated_switch
)");
extern "C" void emulated_switch(void **save, void *to) __attribute__((visibility("hidden")));

const unsigned THREADS = 1024;
const size_t STACK = 64 << 10;

struct Block {
    char *stacks = nullptr;
    void *fibers[THREADS];
    bool finished[THREADS];
    void *scheduler;
    unsigned running;
    void (*call)(void **);
    void **arguments;
    ~Block() {
        if (stacks) munmap(stacks, THREADS * STACK);
    }
};
static thread_local Block block;

static void set_thread(unsigned thread) {
    threadIdx = {thread % blockDim.x, thread / blockDim.x, 0};
    block.running = thread;
}

static void __attribute__((noinline)) fiber() {
    block.call(block.arguments);
    block.finished[block.running] = true;
    emulated_switch(&block.fibers[block.running], block.scheduler);
    __builtin_trap();
}

static void __attribute__((noinline)) run_block() {
    unsigned threads = blockDim.x * blockDim.y;
    if (threads > THREADS) __builtin_trap();
    if (!block.stacks) {
        void *stacks = mmap(nullptr, THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (stacks == MAP_FAILED) __builtin_trap();
        block.stacks = (char *)stacks;
    }
    for (unsigned thread = 0; thread < threads; thread++) {
        // Six registers, the address to return to, and one that makes the stack as a call leaves it.
        void **top = (void **)(block.stacks + (thread + 1) * STACK) - 8;
        memset(top, 0, 8 * sizeof(void *));
        top[6] = (void *)fiber;
        block.fibers[thread] = top;
        block.finished[thread] = false;
    }
    unsigned left = threads;
    for (unsigned phase = 0; left > 0; phase++) {
        for (unsigned turn = 0; turn < threads; turn++) {
            unsigned thread = phase % 2 ? threads - 1 - turn : turn;
            if (block.finished[thread]) continue;
            set_thread(thread);
            emulated_switch(&block.scheduler, block.fibers[thread]);
            left -= block.finished[thread];
        }
    }
}

template <class... P, size_t... I> static void call_with(void (*kernel)(P...), void **arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<P> *)arguments[I]...);
}

template <class... P> static void call_kernel(void (*kernel)(P...), void **arguments) {
    call_with(kernel, arguments, std::index_sequence_for<P...>());
}

static void launch(void (*call)(void **), const unsigned *dims, void **arguments) {
    gridDim = {dims[0], dims[1], 1};
    blockDim = {dims[2], dims[3], 1};
    block.call = call;
    block.arguments = arguments;
    for (unsigned y = 0; y < gridDim.y; y++)
        for (unsigned x = 0; x < gridDim.x; x++) {
            blockIdx = {x, y, 0};
            run_block();
        }
}

} // namespace emulated

static inline void __syncthreads() {
    emulated::emulated_switch(&emulated::block.fibers[emulated::block.running], emulated::block.scheduler);
}

#define EMULATED_KERNEL(name)                                                                                             \
    static void call_##name(void **arguments) { emulated::call_kernel(name, arguments); }                                 \
    extern "C" void run_##name(const unsigned *dims, void **arguments) { emulated::launch(call_##name, dims, arguments); }
