//! Kernels of the engine and the fixed order of their additions.
//!
//! Every operation here has **one** order of floating-point operations for each output element, whatever
//! the SIMD level, the number of threads, the tile sizes or the number of rows in the call. So a row's result does
//! not depend on its batch, a trainer and a replica agree to the bit, and a parallel plan can be compared with
//! the serial run by equality. The rules are:
//!
//! - a dot product is one accumulator that goes over `k` in ascending order with a true fused multiply-add, of operands as
//!   they are or rounded to bfloat16 ([`Dtype`]);
//! - a sum over one row (a norm, a softmax) uses sixteen lanes and a fixed fold, see [`lane_sum`];
//! - a sum over shards, groups or blocks is a balanced binary tree over the logical index, see [`tree_sum`];
//! - `exp`, `ln`, `sin`, `cos` and what else is made of them is our own ([`math`]), since the platform's differ.
//!
//! Tensors are plain `f32` slices; [`Mat`], [`MatMut`] and [`RowsMut`] add strides. Shape suffixes in names: `t` tokens, `h` heads,
//! `d` head dim, `n` columns, `k` the summed dim.
//!
//! This crate is not a tensor library: there is no graph, no automatic gradient, no dtype dispatch. It knows no model and no
//! parallel plan. It is the only user of cudarc, which so far reports devices ([`gpus`]).
//!
//! A mismatch of shapes is an error of the caller's program and panics; nothing that a peer or a file can send
//! reaches a kernel unchecked by the model that owns the shapes.
//!
//! Read [`matmul`] and [`Panels`] first.

pub mod math;

mod adamw;
mod attention;
mod bf16;
mod bias;
mod cross_entropy;
mod device;
mod dropout;
mod elementwise;
mod gelu;
mod layer_norm;
mod matmul;
mod matrix;
mod memory;
mod order;
mod panels;
mod random;
mod rms_norm;
mod rope;
mod simd;
mod swiglu;
mod threads;
mod tile;
mod transpose;

pub use adamw::{AdamW, adamw_step};
pub use attention::{
    AttentionGradients, AttentionSaved, AttentionShape, BlockedKeyValues, KEY_BLOCK, KeyValueBlocks,
    attention, attention_backward, attention_blocks, value_stride,
};
pub use bf16::{round_to_bf16, widen_bf16};
pub use bias::{add_bias, bias_gradient};
pub use cross_entropy::{
    IGNORED_TARGET, VocabularyShard, cross_entropy_gradient, cross_entropy_loss, logit_exp_sums,
    logit_maxima, target_logits,
};
pub use device::{Gpu, gpus};
pub use dropout::dropout;
pub use elementwise::{add, add_assign, embed, embed_backward, scale};
pub use gelu::{Gelu, gelu, gelu_backward};
pub use layer_norm::{LayerNormSaved, layer_norm, layer_norm_backward};
pub use matmul::{Leaves, matmul, matmul_panels, matmul_tree};
pub use matrix::{Mat, MatMut, RowsMut, Start};
pub use memory::keep_freed_memory;
pub use order::{NORM_BLOCK, lane_sum, sum_of_squares_blocks, tree_pairs, tree_sum, tree_sum_scalars};
pub use panels::{Dtype, PANEL_COLUMNS, Panels};
pub use random::{Counter, Purpose, philox4x32};
pub use rms_norm::{Segment, rms_norm, rms_norm_backward};
pub use rope::{RopeTable, rope};
pub use simd::{SimdLevel, simd_level};
pub use swiglu::{swiglu, swiglu_backward};
pub use threads::{ThreadsError, set_threads, threads};
