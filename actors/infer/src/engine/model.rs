//! The real model under the engine.

use sixfold_model::{Chunk, KEYS_PER_BLOCK, KvPool, KvSequence, Logits, Wanted};

use super::decoder::{Decoder, DecoderShape, LogitRows, ModelError, Rows, Work};
use crate::pulse::Pulse;

/// A trained model and the blocks that its sequences may hold.
pub struct ModelDecoder {
    model: sixfold_model::Decoder,
    pool: KvPool,
}

impl ModelDecoder {
    /// A decoder whose sequences hold at most `kv_bytes_max` of keys and values, one block at least.
    pub fn new(model: sixfold_model::Decoder, kv_bytes_max: usize) -> Self {
        let block_bytes = model.kv_pool(0).block_bytes().max(1);
        let pool = model.kv_pool((kv_bytes_max / block_bytes).max(1));
        Self { model, pool }
    }

    /// Blocks that sequences hold.
    pub fn blocks_in_use(&self) -> usize {
        self.pool.blocks_in_use()
    }
}

impl Decoder for ModelDecoder {
    type Cache = KvSequence;
    type Logits = Logits;

    fn shape(&self) -> DecoderShape {
        let config = &self.model.geometry().config;
        DecoderShape {
            vocabulary: config.vocab_size,
            context_tokens: config.max_position_embeddings,
            block_tokens: KEYS_PER_BLOCK,
            blocks: self.pool.blocks_max(),
        }
    }

    fn cache(&self) -> KvSequence {
        self.pool.sequence()
    }

    fn forward(&mut self, work: &mut [Work<'_, KvSequence>], pulse: &Pulse) -> Result<Logits, ModelError> {
        let mut chunks: Vec<Chunk<'_>> = work
            .iter_mut()
            .map(|work| Chunk { tokens: work.tokens, sequence: work.cache, wanted: wanted(work.rows) })
            .collect();
        let forward = self.model.forward_with(&mut chunks, |_layer| pulse.beat());
        forward.map_err(|error| ModelError(error.to_string()))
    }
}

fn wanted(rows: Rows) -> Wanted {
    match rows {
        Rows::None => Wanted::Nothing,
        Rows::Last => Wanted::Last,
        Rows::All => Wanted::All,
    }
}

impl LogitRows for Logits {
    fn row(&self, row: usize) -> &[f32] {
        Logits::row(self, row)
    }

    fn log_probabilities(&self, row: usize, tokens: &[u32]) -> Vec<f32> {
        let (logits, normalizer) = (Logits::row(self, row), self.normalizer(row));
        let of = |&token: &u32| {
            normalizer.log_probability(logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY))
        };
        tokens.iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use sixfold_model::{Geometry, ModelConfig, ModelSlice, initialize};
    use sixfold_tensor::Device;

    use super::*;

    #[test]
    fn the_pulse_beats_with_every_layer() {
        let config = ModelConfig {
            family: sixfold_model::Family::Llama,
            vocab_size: 16,
            hidden_size: 16,
            intermediate_size: 16,
            num_hidden_layers: 3,
            num_attention_heads: 2,
            num_key_value_heads: 2,
            head_dim: 8,
            max_position_embeddings: 64,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            sliding_window: None,
            full_attention_layers: 0,
            attention_bias: false,
            tie_word_embeddings: true,
            dtype: Default::default(),
            bos_token_id: None,
            eos_token_id: None,
        };
        let geometry = Geometry::new(config, 2).unwrap();
        let parameters = initialize(&geometry, &ModelSlice::whole(&geometry), 1);
        let mut decoder = ModelDecoder::new(
            sixfold_model::Decoder::new(Device::cpu().stream(), geometry, &parameters),
            1 << 20,
        );
        let (mut cache, pulse) = (decoder.cache(), Pulse::default());
        for calls in 1..3 {
            let work = Work { tokens: &[1, 2], start: 0, cache: &mut cache, rows: Rows::None };
            decoder.forward(&mut [work], &pulse).unwrap();
            assert_eq!(pulse.beats(), 3 * calls);
        }
    }
}
