//! A byte-level tokenizer, a decoder of a few lines and requests, for tests.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::json;
use tokenizers::{AddedToken, Tokenizer};

use crate::engine::{Decoder, DecoderShape, Engine, LogitRows, ModelError, Work};
use crate::message::{GenerateRequest, Prompt, Sampling};
use crate::pulse::Pulse;
use crate::replica::Replica;
use crate::scheduler::Limits;
use crate::text::TextCodec;
use crate::text::chat::ChatTemplate;
use crate::thread;

/// A byte-level BPE tokenizer over all bytes, with merges of neighbours in `text`: each names a byte
/// to start at and how many to merge, across the borders of characters too.
pub(crate) fn byte_tokenizer(text: &str, merges: &[(usize, usize)]) -> Tokenizer {
    let alphabet = byte_alphabet();
    let mut vocabulary: Vec<String> = alphabet.iter().map(char::to_string).collect();
    let mut rules = Vec::new();
    for &(start, length) in merges {
        let bytes = text.as_bytes().iter().skip(start).take(length + 1);
        let mut merged = String::new();
        for &byte in bytes {
            let piece = alphabet[usize::from(byte)].to_string();
            if !merged.is_empty() && !vocabulary.contains(&(merged.clone() + &piece)) {
                rules.push((merged.clone(), piece.clone()));
                vocabulary.push(merged.clone() + &piece);
            }
            merged += &piece;
        }
    }
    let vocabulary: HashMap<String, u32> = vocabulary.into_iter().zip(0..).collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": rules},
    });
    tokenizer.to_string().parse().unwrap()
}

/// The characters that stand for the bytes in GPT-2's vocabulary, by byte.
fn byte_alphabet() -> Vec<char> {
    let printable =
        |byte: u32| (33..=126).contains(&byte) || (161..=172).contains(&byte) || (174..=255).contains(&byte);
    let mut next = 256;
    let mut stand_in = |byte: u32| {
        let code = if printable(byte) { byte } else { next };
        next += u32::from(!printable(byte));
        char::from_u32(code).unwrap()
    };
    (0..256).map(&mut stand_in).collect()
}

/// A codec of bytes and turn tokens; token 256 ends a text.
pub(crate) fn codec() -> TextCodec {
    let mut tokenizer = byte_tokenizer("", &[]);
    let special = ["<|end|>", "<|user|>", "<|assistant|>"].map(|name| AddedToken::from(name, true));
    tokenizer.add_special_tokens(special).unwrap();
    TextCodec::new(Arc::new(tokenizer), ChatTemplate::new(None, None, None).unwrap(), None, vec![END_TOKEN])
}

/// The token that ends a text.
pub(crate) const END_TOKEN: u32 = 256;
const VOCABULARY: usize = 259;

/// A request for 12 sampled tokens after `prompt`.
pub(crate) fn request(prompt: &str) -> GenerateRequest {
    GenerateRequest {
        model: "toy".to_owned(),
        prompt: Prompt::Text(prompt.to_owned()),
        emitted: Vec::new(),
        output_tokens_max: Some(12),
        sampling: Sampling { seed: 7, ..Sampling::default() },
        stop: Vec::new(),
        ignore_eos: true,
        logprobs: None,
        echo: false,
    }
}

/// Logits that are a function of all tokens so far, so that a wrong cache gives wrong text.
pub(crate) struct ToyDecoder {
    pub(crate) context_tokens: usize,
    pub(crate) blocks: usize,
    /// Calls that succeed; the one after them fails.
    pub(crate) calls_left: usize,
}

impl Default for ToyDecoder {
    fn default() -> Self {
        Self { context_tokens: 64, blocks: 32, calls_left: usize::MAX }
    }
}

/// The rows of a call.
pub(crate) struct ToyLogits(Vec<Vec<f32>>);

impl LogitRows for ToyLogits {
    fn row(&self, row: usize) -> &[f32] {
        &self.0[row]
    }

    fn log_probabilities(&self, row: usize, tokens: &[u32]) -> Vec<f32> {
        let sum: f32 = self.0[row].iter().map(|logit| logit.exp()).sum();
        tokens.iter().map(|&token| self.0[row][token as usize] - sum.ln()).collect()
    }
}

impl Decoder for ToyDecoder {
    type Cache = Vec<u32>;
    type Logits = ToyLogits;

    fn shape(&self) -> DecoderShape {
        DecoderShape {
            vocabulary: VOCABULARY,
            context_tokens: self.context_tokens,
            block_tokens: 4,
            blocks: self.blocks,
        }
    }

    fn cache(&self) -> Vec<u32> {
        Vec::new()
    }

    fn forward(&mut self, work: &mut [Work<'_, Vec<u32>>], _: &Pulse) -> Result<ToyLogits, ModelError> {
        self.calls_left =
            self.calls_left.checked_sub(1).ok_or_else(|| ModelError("out of calls".to_owned()))?;
        let mut rows = Vec::new();
        for work in work {
            assert_eq!(work.cache.len(), work.start, "the cache is not where the scheduler thinks");
            let first = work.tokens.len() - work.rows.count(work.tokens.len());
            for (index, &token) in work.tokens.iter().enumerate() {
                work.cache.push(token);
                if index >= first {
                    rows.push(toy_row(work.cache));
                }
            }
        }
        Ok(ToyLogits(rows))
    }
}

fn toy_row(tokens: &[u32]) -> Vec<f32> {
    let mix = |hash: u64, value: u64| (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
    let history = tokens.iter().fold(1, |hash, &token| mix(hash, u64::from(token)));
    (0..VOCABULARY as u64)
        .map(|token| (mix(mix(history, token), 5) >> 40) as f32 / (1 << 22) as f32)
        .collect()
}

/// A replica of the toy model, with an engine on a thread.
pub(crate) fn replica() -> Replica {
    replica_of(ToyDecoder::default())
}

/// A replica of a toy model.
pub(crate) fn replica_of(decoder: ToyDecoder) -> Replica {
    let text = Arc::new(codec());
    let limits = Limits {
        kv_blocks: decoder.blocks,
        block_tokens: 4,
        batch_max: 4,
        waiting_max: 8,
        step_tokens_max: 8,
    };
    let (engine, _end) = thread::spawn(Engine::new(decoder, Arc::clone(&text), limits, 0), 16).unwrap();
    Replica::new("toy".to_owned(), text, engine, 1000)
}
