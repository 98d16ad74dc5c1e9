//! ONNX, for onnxruntime and what else reads it: written, not read.
//!
//! A graph computes logits and the keys and values that the next call is given back. Its inputs and outputs have the names
//! and dimensions that optimum gives a decoder with past: `input_ids`, `attention_mask`, `position_ids`,
//! `past_key_values.N.key` and `.value`; `logits`, `present.N.key` and `.value`. Operations are plain ones of operator set 17,
//! none of a vendor's, and compute in f32. Weights keep their names, shapes and order of numbers, and lie in a file of their
//! own, so that neither protobuf's limit of 2 GiB nor memory bounds the model. A head that is the embedding is there once.
//!
//! Read [`decoder`] first.

mod computation;
mod decoder;
mod graph;
mod layer;
mod proto;
#[cfg(test)]
mod tests;
mod write;

pub use write::write_onnx;
