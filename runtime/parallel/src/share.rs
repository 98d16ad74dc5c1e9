//! What a rank holds, counted, to show that no rank holds more than its share.

use serde::{Deserialize, Serialize};
use sixfold_model::{Geometry, Tensor, UnitIndex};

/// Bytes of parameters on a rank, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterShare {
    /// Projections of the decoder layers, and the biases that lie with their shards.
    pub layer_bytes: u64,
    /// Key and value projections of which several logical shards hold copies.
    pub kv_copy_bytes: u64,
    /// Embedding, and that of positions.
    pub embedding_bytes: u64,
    /// Head.
    pub head_bytes: u64,
    /// Norms, and biases after a sum over shards, which every rank of a tensor-parallel group holds.
    pub norm_bytes: u64,
}

impl ParameterShare {
    /// Counts the units of `parameters`.
    pub fn of(geometry: &Geometry, parameters: &UnitIndex) -> Self {
        let mut share = Self::default();
        for (unit, range) in parameters.iter() {
            let copied = unit.tensor.is_key_value() && geometry.sharding.is_kv_copied(unit.shard as usize);
            let kind = match unit.tensor {
                Tensor::Embedding | Tensor::PositionEmbedding => &mut share.embedding_bytes,
                Tensor::Head => &mut share.head_bytes,
                tensor if tensor.is_whole() => &mut share.norm_bytes,
                _ if copied => &mut share.kv_copy_bytes,
                _ => &mut share.layer_bytes,
            };
            *kind += (range.len() * size_of::<f32>()) as u64;
        }
        share
    }

    /// All of them.
    pub fn total_bytes(&self) -> u64 {
        self.layer_bytes + self.kv_copy_bytes + self.embedding_bytes + self.head_bytes + self.norm_bytes
    }
}
