//! Kernels of the engine and the fixed order of their additions.
//!
//! Every operation here has **one** order of floating-point operations for each output element, whatever
//! the SIMD level, the number of threads, the tile sizes or the number of rows in the call. So a row's result does
//! not depend on its batch, a trainer and a replica agree to the bit, and a parallel plan can be compared with
//! the serial run by equality. The rules are:
//!
//! - a dot product is one accumulator that goes over `k` in ascending order with a true fused multiply-add;
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

pub mod cpu;
pub mod math;

mod gpu;
mod memory;
mod random;

pub use cpu::{
    AdamW, AttentionGradients, AttentionSaved, AttentionShape, BlockedKeyValues, Gelu, IGNORED_TARGET,
    KEY_BLOCK, KeyValueBlocks, LayerNormSaved, Leaves, Mat, MatMut, NORM_BLOCK, PANEL_COLUMNS, Panels,
    RopeTable, RowsMut, Segment, SimdLevel, Start, ThreadsError, VocabularyShard, adamw_step, add,
    add_assign, add_bias, attention, attention_backward, attention_blocks, bias_gradient,
    cross_entropy_gradient, cross_entropy_loss, dropout, embed, embed_backward, gelu, gelu_backward,
    lane_sum, layer_norm, layer_norm_backward, logit_exp_sums, logit_maxima, matmul, matmul_panels,
    matmul_tree, rms_norm, rms_norm_backward, rope, round_to_bf16, scale, set_threads, simd_level,
    sum_of_squares_blocks, swiglu, swiglu_backward, target_logits, threads, tree_pairs, tree_sum,
    tree_sum_scalars, value_stride, widen_bf16,
};
pub use gpu::{Gpu, gpus};
pub use memory::keep_freed_memory;
pub use random::{Counter, Purpose, philox4x32};
