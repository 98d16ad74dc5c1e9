//! Texts that a model writes after the beginnings of texts that it has not seen.
//!
//! Tokens are chosen as a replica chooses them: by [`sixfold_model::sample`] from (seed, position), so
//! the same prompt and seed give the same text when the model is served.

use sixfold_model::{Chunk, Decoder, KEYS_PER_BLOCK, KvPool, SamplingOptions, Wanted, sample};

use crate::error::EvaluateError;
use crate::options::EvaluateOptions;
use crate::perplexity::Document;

/// A text that a model wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Seed of its random numbers.
    pub seed: u64,
    /// What it begins with.
    pub prompt: Vec<u32>,
    /// What the model wrote, without the end-of-text token.
    pub tokens: Vec<u32>,
    /// Whether the model ended the text; else it was cut at the limit.
    pub ended: bool,
}

/// Writes samples, one at a time.
pub struct Writer<'a> {
    decoder: &'a Decoder,
    pool: KvPool,
    options: &'a EvaluateOptions,
}

impl<'a> Writer<'a> {
    /// A writer with a cache for one text of the model's positions.
    pub fn new(decoder: &'a Decoder, options: &'a EvaluateOptions) -> Self {
        let positions = decoder.geometry().config.max_position_embeddings;
        Self { decoder, pool: decoder.kv_pool(positions.div_ceil(KEYS_PER_BLOCK)), options }
    }

    /// What a sample continues: a document's beginning, or a dialogue up to its first answer. None where the document has no
    /// token to begin with besides its last, or the question no room for an answer behind it.
    pub fn prompt_of<'d>(&self, document: &'d Document) -> &'d [u32] {
        let positions = self.decoder.geometry().config.max_position_embeddings;
        let longest = document.tokens.len().saturating_sub(1).min(positions.saturating_sub(1));
        match document.first_answer() {
            Some(answer) if answer.start > longest => &[],
            Some(answer) => &document.tokens[..answer.start],
            None => &document.tokens[..self.options.prompt_tokens.min(longest)],
        }
    }

    /// Continues `prompt` until the model ends the text, the limit is reached or its positions are
    /// used up; `go_on` is asked before each token.
    ///
    /// # Errors
    /// [`EvaluateError::NotFinite`], [`EvaluateError::Decode`] for a prompt that is empty or has unknown
    /// tokens, or what `go_on` said.
    pub fn write(
        &self,
        prompt: &[u32],
        seed: u64,
        go_on: impl Fn() -> Result<(), EvaluateError>,
    ) -> Result<Sample, EvaluateError> {
        let config = &self.decoder.geometry().config;
        let room =
            config.max_position_embeddings.saturating_sub(prompt.len()).min(self.options.sample_tokens);
        let sampling = SamplingOptions { temperature: self.options.temperature, seed, ..Default::default() };
        let mut sequence = self.pool.sequence();
        let mut text = Sample { seed, prompt: prompt.to_vec(), tokens: Vec::new(), ended: false };
        let mut unread = prompt.to_vec();
        while text.tokens.len() < room && !text.ended {
            go_on()?;
            let chunk = Chunk { tokens: &unread, sequence: &mut sequence, wanted: Wanted::Last };
            let logits = self.decoder.forward(&mut [chunk])?;
            let token = choose(logits.row(0), &sampling, prompt.len() + text.tokens.len())?;
            text.ended = config.eos_token_id == Some(token);
            if !text.ended {
                text.tokens.push(token);
                unread = vec![token];
            }
        }
        Ok(text)
    }
}

fn choose(logits: &[f32], sampling: &SamplingOptions, position: usize) -> Result<u32, EvaluateError> {
    if logits.iter().any(|logit| !logit.is_finite()) {
        return Err(EvaluateError::NotFinite);
    }
    Ok(sample(logits, sampling, position as u64))
}

/// The documents that samples begin with: `samples` of them, spread evenly over all.
pub fn spread(documents: u64, samples: usize) -> impl Iterator<Item = u64> {
    let samples = (samples as u64).min(documents);
    (0..samples).map(move |number| (u128::from(number) * u128::from(documents) / u128::from(samples)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_begin_with_different_documents_from_all_over() {
        assert_eq!(spread(100, 4).collect::<Vec<_>>(), [0, 25, 50, 75]);
        assert_eq!(spread(3, 4).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(spread(0, 4).count() + spread(5, 0).count(), 0);
        assert_eq!(spread(u64::MAX, 2).last(), Some(u64::MAX / 2));
    }
}
