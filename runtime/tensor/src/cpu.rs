//! The kernels of the CPU, over plain slices.
//!
//! What a device that is the CPU does. Code above the
//! boundary of devices does not call them; what computes on the host's own numbers, such as sums over ranks, does.
//! [`Mat`], [`MatMut`] and [`RowsMut`] add strides to slices.
//!
//! Read [`matmul`] and [`Panels`] first.

pub(crate) mod adamw;
pub(crate) mod attention;
mod bf16;
mod bias;
mod compressed;
mod cores;
mod cross_entropy;
pub(crate) mod dropout;
mod elementwise;
mod embedding;
mod finite;
mod gelu;
mod layer_norm;
mod matmul;
mod matrix;
mod order;
mod panels;
pub(crate) mod pool;
mod rms_norm;
mod rope;
pub(crate) mod segment;
pub(crate) mod simd;
mod swiglu;
mod threads;
mod tile;
mod transpose;

pub use adamw::{AdamW, adamw_step};
pub use attention::{
    AttentionGradients, AttentionSaved, AttentionShape, BlockedKeyValues, KEY_BLOCK, KeyValueBlocks,
    attention, attention_backward, attention_blocks, value_stride, visible_pairs,
};
pub use bf16::{round_to_bf16, widen_bf16};
pub use bias::{add_bias, bias_gradient};
pub use compressed::{COMPRESSED_BLOCK, Compressed, Compression};
pub use cross_entropy::{
    IGNORED_TARGET, VocabularyShard, cross_entropy_gradient, cross_entropy_loss, cross_entropy_losses,
    logit_exp_sums, logit_maxima, target_logits,
};
pub use dropout::dropout;
pub(crate) use elementwise::copy;
pub use elementwise::{add, add_assign, max_assign, scale};
pub use embedding::{embed, embed_add, embed_backward, embed_backward_groups};
pub use finite::are_finite;
pub use gelu::{Gelu, gelu, gelu_backward};
pub use layer_norm::{LayerNormSaved, layer_norm, layer_norm_backward};
pub(crate) use matmul::NOTHING;
pub use matmul::{Leaves, matmul, matmul_leaf, matmul_panels, matmul_tree};
pub use matrix::{Mat, MatMut, RowsMut, Start, add_matrix, copy_matrix};
pub use order::{NORM_BLOCK, lane_sum, sum_of_squares_blocks, tree_pairs, tree_sum, tree_sum_scalars};
pub use panels::{Dtype, PANEL_COLUMNS, Panels};
pub use rms_norm::{rms_norm, rms_norm_backward};
pub use rope::{RopeTable, rope};
pub use segment::Segment;
pub use simd::{SimdLevel, simd_level};
pub use swiglu::{swiglu, swiglu_backward};
pub use threads::{ThreadsError, pin_threads, set_threads, threads};

use crate::random::Counter;
#[cfg(test)]
use crate::random::Purpose;
