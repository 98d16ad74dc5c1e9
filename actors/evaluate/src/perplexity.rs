//! Held-out perplexity over strided windows.
//!
//! Convention, printed with every figure: per token of the model's own tokenizer; each document by
//! itself; windows of `context` tokens that advance by `stride`, each scoring the tokens that no
//! earlier window scored; a document's first token is never scored, nor are a dialogue's tokens that
//! no model is to learn to say. With `stride = context - 1` windows share one token; smaller strides
//! give each token more context and cost more.

use std::ops::Range;

use sixfold_model::{Chunk, Decoder, KvPool, Wanted};

use crate::error::EvaluateError;

/// A held-out document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its tokens, the one that ends it included.
    pub tokens: Vec<u32>,
    /// Of a dialogue, whether each token is of an answer; nothing of a text, all of which counts.
    pub of_answers: Option<Vec<bool>>,
}

impl Document {
    /// Whether the token at `at` is scored.
    fn counts(&self, at: usize) -> bool {
        at > 0 && self.of_answers.as_ref().is_none_or(|of_answers| of_answers[at])
    }

    /// Where the first answer of a dialogue begins and ends.
    pub fn first_answer(&self) -> Option<Range<usize>> {
        let of_answers = self.of_answers.as_ref()?;
        let begin = of_answers.iter().position(|is_answer| *is_answer)?;
        let length = of_answers[begin..].iter().take_while(|is_answer| **is_answer).count();
        Some(begin..begin + length)
    }
}

/// How text is cut into windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of a window, at least 2.
    pub context: usize,
    /// Tokens that a window advances by, at least 1 and less than `context`.
    pub stride: usize,
}

impl Windows {
    /// The windows of a document of `tokens` tokens: where each begins and ends, and its first scored token.
    fn over(self, tokens: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let mut scored = 1;
        std::iter::from_fn(move || {
            if scored >= tokens {
                return None;
            }
            let end = if scored == 1 { self.context } else { scored + self.stride }.min(tokens);
            let window = (end.saturating_sub(self.context), end, scored);
            scored = end;
            Some(window)
        })
    }
}

impl std::fmt::Display for Windows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { context, stride } = self;
        write!(
            f,
            "per token, strided ctx {context} / stride {stride} within documents, first token of a document not scored"
        )
    }
}

/// What scoring some text gave.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    /// Tokens scored.
    pub tokens: u64,
    /// Sum of their negative log-likelihoods, in nats.
    pub negative_log_likelihood: f64,
}

impl Score {
    /// `exp` of the mean negative log-likelihood.
    pub fn perplexity(&self) -> f64 {
        (self.negative_log_likelihood / self.tokens.max(1) as f64).exp()
    }

    fn add(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.negative_log_likelihood += other.negative_log_likelihood;
    }
}

/// Scores documents until `tokens_max` tokens have been scored; `scored` is told the count after each
/// and may stop the evaluation.
///
/// # Errors
/// [`EvaluateError::Decode`] where a token is outside the model's vocabulary, or what `scored` said.
pub fn score(
    decoder: &Decoder,
    windows: Windows,
    documents: impl Iterator<Item = Result<Document, EvaluateError>>,
    tokens_max: u64,
    mut scored: impl FnMut(u64) -> Result<(), EvaluateError>,
) -> Result<Score, EvaluateError> {
    let pool = decoder.kv_pool(windows.context.div_ceil(sixfold_model::KEYS_PER_BLOCK) + 1);
    let mut total = Score::default();
    for document in documents {
        if total.tokens >= tokens_max {
            break;
        }
        let document = document?;
        for (begin, end, first) in windows.over(document.tokens.len()) {
            if (first..end).any(|at| document.counts(at)) {
                let counts = |at| document.counts(begin + at);
                total.add(score_window(decoder, &pool, &document.tokens[begin..end], first - begin, counts)?);
                scored(total.tokens)?;
            }
        }
    }
    Ok(total)
}

/// Scores the tokens of a window from its `first` one on that count, each from those before it.
fn score_window(
    decoder: &Decoder,
    pool: &KvPool,
    window: &[u32],
    first: usize,
    counts: impl Fn(usize) -> bool,
) -> Result<Score, EvaluateError> {
    let mut sequence = pool.sequence();
    let (context, rest) = window[..window.len() - 1].split_at(first - 1);
    if !context.is_empty() {
        let chunk = Chunk { tokens: context, sequence: &mut sequence, wanted: Wanted::Nothing };
        decoder.forward(&mut [chunk])?;
    }
    let logits =
        decoder.forward(&mut [Chunk { tokens: rest, sequence: &mut sequence, wanted: Wanted::All }])?;
    let mut score = Score::default();
    for (row, &token) in window[first..].iter().enumerate().filter(|(row, _)| counts(first + row)) {
        let log_probability = f64::from(logits.log_probability(row, token));
        score.add(Score { tokens: 1, negative_log_likelihood: -log_probability });
    }
    Ok(score)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sixfold_model::{Geometry, ModelConfig, ModelSlice, initialize};

    /// A model with random weights: two layers, 50 tokens.
    fn random_decoder() -> Decoder {
        let config = ModelConfig {
            family: sixfold_model::Family::Llama,
            vocab_size: 50,
            hidden_size: 16,
            intermediate_size: 32,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 4,
            head_dim: 4,
            max_position_embeddings: 256,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            sliding_window: None,
            full_attention_layers: 0,
            attention_bias: false,
            tie_word_embeddings: false,
            dtype: Default::default(),
            bos_token_id: None,
            eos_token_id: None,
        };
        let geometry = Geometry::new(config, 4).unwrap();
        let parameters = initialize(&geometry, &ModelSlice::whole(&geometry), 1);
        Decoder::new(sixfold_tensor::Device::cpu().stream(), geometry, &parameters)
    }

    fn text(tokens: &[u32]) -> Document {
        Document { tokens: tokens.to_vec(), of_answers: None }
    }

    #[test]
    fn every_token_but_the_first_is_scored_once() {
        for (context, stride) in [(2, 1), (8, 3), (8, 7), (64, 32)] {
            let windows = Windows { context, stride };
            for tokens in 0..40 {
                let mut next = 1;
                for (begin, end, first) in windows.over(tokens) {
                    assert_eq!(first, next, "windows leave no gap");
                    assert!(begin < first && first < end && end - begin <= context);
                    next = end;
                }
                assert_eq!(next.max(1), tokens.max(1));
            }
        }
    }

    #[test]
    fn windows_that_hold_the_document_agree_with_one_pass() {
        let decoder = random_decoder();
        let document: Vec<u32> = (0..30).map(|i| (i * 7 + 3) % 50).collect();
        let pool = decoder.kv_pool(8);
        let whole = score_window(&decoder, &pool, &document, 1, |_| true).unwrap();
        let windows = Windows { context: 40, stride: 20 };
        let documents = || [Ok(text(&document)), Ok(text(&document))].into_iter();
        let twice = score(&decoder, windows, documents(), u64::MAX, |_| Ok(())).unwrap();
        assert_eq!(twice.tokens, 2 * 29);
        assert_eq!(twice.perplexity(), whole.perplexity());
        let bounded = score(&decoder, windows, documents(), 10, |_| Ok(())).unwrap();
        assert_eq!(bounded.tokens, 29, "whole documents are scored");
    }

    #[test]
    fn answers_alone_are_scored_after_all_that_comes_before_them() {
        let decoder = random_decoder();
        let tokens: Vec<u32> = (0..30).map(|i| (i * 7 + 3) % 50).collect();
        let is_answer = |at: usize| (5..9).contains(&at) || at >= 20;
        let dialogue =
            Document { tokens: tokens.clone(), of_answers: Some((0..30).map(is_answer).collect()) };
        assert_eq!(dialogue.first_answer(), Some(5..9));
        let windows = Windows { context: 40, stride: 20 };
        let score = |document| score(&decoder, windows, [Ok(document)].into_iter(), u64::MAX, |_| Ok(()));
        let answers = score(dialogue).unwrap();
        assert_eq!(answers.tokens, 4 + 10);
        let until = |end: usize| score(text(&tokens[..end])).unwrap().negative_log_likelihood;
        let expected = until(9) - until(5) + until(30) - until(20);
        assert!((answers.negative_log_likelihood - expected).abs() < 1e-4, "{answers:?} {expected}");
    }

    #[test]
    fn a_random_model_is_about_as_good_as_guessing() {
        let decoder = random_decoder();
        let document: Vec<u32> = (0..200).map(|i: u32| i.wrapping_mul(2_654_435_761) % 50).collect();
        let windows = Windows { context: 32, stride: 16 };
        let score =
            score(&decoder, windows, [Ok(text(&document))].into_iter(), u64::MAX, |_| Ok(())).unwrap();
        let vocabulary = decoder.geometry().config.vocab_size as f64;
        assert!((score.perplexity() / vocabulary - 1.0).abs() < 0.3, "{}", score.perplexity());
    }
}
