//! `sixfold model logprobs`.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sixfold_formats::Model;
use sixfold_model::{Chunk, Decoder, Geometry, KEYS_PER_BLOCK, ModelConfig, UnitBuffer, Wanted, greedy};
use sixfold_parallel::Score;
use sixfold_tensor::{Device, set_threads};
use sixfold_topology::ParallelPlan;

use super::{LOGICAL_SHARDS, as_folder, opened, read_weights};
use crate::cli::model::{LogprobsArgs, SourceArgs};
use crate::commands::print_json;

/// Tokens that go through the model together: each has a row of logits as long as the vocabulary.
const TOKENS_AT_ONCE: usize = 64;

pub(super) fn run(args: &LogprobsArgs) -> Result<()> {
    set_threads(args.threads)?;
    let source = SourceArgs { tokenizer: None, no_tokenizer: true };
    let model = opened(&args.model, &source)?;
    let model = as_folder(model, &source, args.json)?;
    let Score { logprobs, next } = match &args.plan {
        None => score(&decoder(&model, None)?, &args.ids)?,
        Some(plan) => score_under(plan, &model, &args.ids)?,
    };
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

pub(crate) fn decoder(model: &Model, adapter: Option<&Path>) -> Result<Decoder> {
    let (geometry, parameters) = read(model, adapter)?;
    Ok(Decoder::new(Device::cpu().stream(), geometry, &parameters))
}

fn read(model: &Model, adapter: Option<&Path>) -> Result<(Geometry, UnitBuffer)> {
    let text = serde_json::to_vec(model.config())?;
    let (config, logical) = ModelConfig::from_hugging_face(&text)?;
    let geometry = Geometry::new(config, logical.unwrap_or(LOGICAL_SHARDS))?;
    let parameters = read_weights(model, &geometry, adapter)?;
    Ok((geometry, parameters))
}

/// What the ranks of a plan say of the tokens.
pub(super) fn score_under(plan: &ParallelPlan, model: &Model, ids: &[u32]) -> Result<Score> {
    let (geometry, parameters) = read(model, None)?;
    check(&geometry, ids)?;
    let scores = sixfold_parallel::score(&Device::cpu().stream(), &geometry, &parameters, plan, &[ids]);
    let scores = scores.with_context(|| format!("--plan {plan}"))?;
    scores.into_iter().next().context("no rank said anything")
}

fn check(geometry: &Geometry, ids: &[u32]) -> Result<()> {
    let vocabulary = geometry.config.vocab_size;
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
        bail!("--ids has {id}; the model's ids end at {}", vocabulary - 1);
    }
    Ok(())
}

/// What the decoder says of the tokens.
pub(crate) fn score(decoder: &Decoder, ids: &[u32]) -> Result<Score> {
    check(decoder.geometry(), ids)?;
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
        Some(next) => Ok(Score { logprobs, next }),
        None => bail!("--ids needs at least one id"),
    }
}
