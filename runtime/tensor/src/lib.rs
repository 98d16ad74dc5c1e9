//! Devices, their operations, and the fixed order of additions in these.
//!
//! A [`Device`] has memory of its own: [`Buffer`]s, which the host cannot read, and their views. A [`Stream`] enqueues
//! operations on it, and makes the explicit copies by which the host sees data. Whoever computes with them does not know
//! which device it is. There are the CPU, whose kernels over plain slices are in [`cpu`], and GPUs, whose kernels are CUDA C++ and give
//! the same bits in `f32`.
//!
//! Every operation here has **one** order of floating-point operations for each output element, whatever
//! the SIMD level, the number of threads, the tile sizes or the number of rows in the call. So a row's result does
//! not depend on its batch, a trainer and a replica agree to the bit, and a parallel plan can be compared with
//! the serial run by equality. The rules are:
//!
//! - a dot product is one accumulator that goes over `k` in ascending order with a true fused multiply-add, of operands as
//!   they are or rounded to bfloat16 ([`Dtype`]);
//! - a sum over one row (a norm, a softmax) uses sixteen lanes and a fixed fold, see [`cpu::lane_sum`];
//! - a sum over shards, groups or blocks is a balanced binary tree over the logical index, see [`cpu::tree_sum`];
//! - `exp`, `ln`, `sin`, `cos` and what else is made of them is our own ([`math`]), since the platform's differ.
//!
//! Buffers hold `f32`; [`Mat`] and [`MatMut`] add strides to views of them. Shape suffixes in names: `t` tokens, `h` heads,
//! `d` head dim, `n` columns, `k` the summed dim.
//!
//! This crate is not a tensor library: there is no graph, no automatic gradient, no dtype dispatch. It knows no model and no
//! parallel plan. It is the only user of cudarc: for GPUs ([`Device::cuda`]), and to report them ([`gpus`]).
//!
//! A mismatch of shapes is an error of the caller's program and panics; nothing that a peer or a file can send
//! reaches a kernel unchecked by the model that owns the shapes.
//!
//! Read [`Stream`] first, and of the kernels [`cpu::matmul`](cpu::matmul()).

pub mod cpu;
pub mod math;

mod buffer;
mod cuda;
mod device;
mod free_list;
mod gpu;
mod matrix;
mod memory;
mod random;
mod stream;

pub use buffer::{Buffer, IndexBuffer, IndexView, View, ViewMut};
pub use cpu::{
    AdamW, AttentionShape, Compression, Dtype, Gelu, IGNORED_TARGET, KEY_BLOCK, Leaves, NORM_BLOCK, Segment,
    SimdLevel, Start, ThreadsError, VocabularyShard, cross_entropy_loss, pin_threads, set_threads,
    simd_level, threads, tree_pairs, tree_sum_scalars, visible_pairs,
};
pub use cuda::CudaError;
pub use device::{Device, MemoryUse};
pub use gpu::{Gpu, gpus};
pub use matrix::{Mat, MatMut};
pub use memory::keep_freed_memory;
pub use random::{Counter, Purpose, philox4x32};
pub use stream::{
    AttentionSaved, Compressed, KvBlocks, LayerNormSaved, Mirror, Panels, RmsNormSaved, RopeTable, Stream,
};
