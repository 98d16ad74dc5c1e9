//! Decoders of the Llama, Qwen and GPT-2 families on one device: forward, backward, optimizer, KV cache, sampling, files.
//!
//! The arithmetic is cut into [logical shards](Sharding), sequence blocks and data groups that do
//! not depend on any plan, so that the bits of a training run are the same for every way of
//! placing them. Parallelism is applied from outside: a rank owns a [`ModelSlice`], and sums over
//! ranks go through a [`TensorGroup`].
//!
//! It computes on the device of a [`Stream`](sixfold_tensor::Stream) and does not know which that is: numbers lie in its buffers,
//! and are copied to the host and back where files, samplers and groups of ranks ask for them.
//!
//! This crate knows no links, no ranks, no files (bytes in, bytes out) and no tokenizer.
//!
//! To train, read [`Network`], then [`GroupTree`] and [`Optimizer`]. To infer, read [`Decoder`].

mod activation;
mod adapter;
mod attention;
mod batch;
mod bias;
mod branch;
mod config;
mod decoder;
mod embedding;
mod families;
mod feed_forward;
mod frozen;
mod gradient;
mod head;
mod hugging_face;
mod init;
mod layer;
mod linear;
mod lora;
mod network;
mod norm;
mod optimizer;
mod packed;
mod pass;
mod rope;
mod row_parts;
mod sampling;
mod sharding;
mod site;
mod tensor_group;
mod unit;
mod unit_buffer;

#[cfg(test)]
mod testing;

pub use sixfold_tensor::{Compression, Dtype};

pub use attention::KEYS_PER_BLOCK;
pub use batch::{BatchError, MicroBatch, StepSeed};
pub use config::{ConfigError, ModelConfig};
pub use decoder::{
    Chunk, DecodeError, Decoder, HiddenStates, KvPool, KvSequence, Logits, Normalizer, OutOfBlocks, Pooling,
    Wanted,
};
pub use families::Family;
pub use frozen::{FrozenUnits, Parameters};
pub use gradient::{
    GroupSum, GroupTree, finish as finish_gradients, gradient_index, is_finished_by_sum,
    of_parameter as gradient_of, tied_sums,
};
pub use hugging_face::{
    AdaptedWeights, PeftAdapter, WeightFiles, WeightsError, read_parameters, read_sharded_parameters,
    weights_blake3, write_parameters,
};
pub use init::{initialize, initialize_unit};
pub use layer::Recompute;
pub use linear::Onto;
pub use lora::{Lora, LoraError, Projection, merge_adapters};
pub use network::{Network, Output, Surroundings, Tape};
pub use optimizer::{Optimizer, OptimizerOptions, SquareSums, square_sums};
pub use packed::PackedWeights;
pub use pass::Work;
pub use rope::RopeScaling;
pub use sampling::{SamplingOptions, greedy, sample};
pub use sharding::{LOGICAL_SHARDS_MAX, Shard, Sharding, ShardingError, even_part};
pub use site::{Part, Site};
pub use tensor_group::{Alone, GroupError, NOTHING, TensorGroup, sum_shards};
pub use unit::{
    Geometry, GeometryError, ModelSlice, ParseUnitError, Place, Region, Tensor, UnitId, UnitIndex,
};
pub use unit_buffer::{DeviceUnits, HostUnits, UnitBuffer};
