//! `sixfold model logprobs`.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::json;
use sixfold_formats::Model;
use sixfold_model::{Chunk, Decoder, Geometry, KEYS_PER_BLOCK, ModelConfig, Wanted, greedy};
use sixfold_tensor::{Device, set_threads};

use super::{LOGICAL_SHARDS, as_folder, opened, read_weights};
use crate::cli::model::{LogprobsArgs, SourceArgs};
use crate::commands::print_json;

/// Tokens that go through the model together: each has a row of logits as long as the vocabulary.
const TOKENS_AT_ONCE: usize = 64;

pub(super) fn run(args: &LogprobsArgs) -> Result<()> {
    set_threads(args.threads)?;
    let source = SourceArgs { tokenizer: None, no_tokenizer: true };
    let model = opened(&args.model, &source)?;
    let decoder = decoder(&as_folder(model, &source, args.json)?, None)?;
    let (logprobs, next) = score(&decoder, &args.ids)?;
    if args.json {
        print_json(&json!({"logprobs": logprobs, "next": next}));
    } else {
        for (id, logprob) in args.ids[1..].iter().zip(&logprobs) {
            println!("{id}\t{logprob}");
        }
        println!("next\t{next}");
    }
    Ok(())
}

pub(super) fn decoder(model: &Model, adapter: Option<&Path>) -> Result<Decoder> {
    let text = serde_json::to_vec(model.config())?;
    let (config, logical) = ModelConfig::from_hugging_face(&text)?;
    let geometry = Geometry::new(config, logical.unwrap_or(LOGICAL_SHARDS))?;
    let parameters = read_weights(model, &geometry, adapter)?;
    Ok(Decoder::new(Device::cpu().stream(), geometry, &parameters))
}

/// The log-probability of each token but the first, and the likeliest one after the last.
pub(super) fn score(decoder: &Decoder, ids: &[u32]) -> Result<(Vec<f32>, u32)> {
    let vocabulary = decoder.geometry().config.vocab_size;
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
        bail!("--ids has {id}; the model's ids end at {}", vocabulary - 1);
    }
    let pool = decoder.kv_pool(ids.len().div_ceil(KEYS_PER_BLOCK));
    let mut sequence = pool.sequence();
    let (mut logprobs, mut next) = (Vec::new(), None);
    for (number, tokens) in ids.chunks(TOKENS_AT_ONCE).enumerate() {
        let chunk = Chunk { tokens, sequence: &mut sequence, wanted: Wanted::All };
        let logits = decoder.forward(&mut [chunk])?;
        let following = ids[number * TOKENS_AT_ONCE + 1..].iter().take(tokens.len());
        let scored = following.enumerate().map(|(row, token)| logits.log_probability(row, *token));
        logprobs.extend(scored);
        next = Some(greedy(logits.row(tokens.len() - 1)));
    }
    match next {
        Some(next) => Ok((logprobs, next)),
        None => bail!("--ids needs at least one id"),
    }
}
