//! The `tokenize` task.

use sixfold_cluster::task::{TaskContext, TaskOutput};
use tokenizers::Tokenizer;

use super::{TOKENS, documents_of, options};
use crate::error::CleanError;
use crate::options::{TokenizeOptions, TokenizerSource};
use crate::progress::Progress;
use crate::segment::pool;
use crate::shards::{HeldOut, SplitWriter, texts, write_splits};
use crate::tokenizer::{self, VOCABULARY_MIN};

/// The splits, in the order of [`SplitWriter`]s.
const SPLITS: [&str; 2] = ["train", "held-out"];

pub(super) async fn run(context: &TaskContext) -> Result<TaskOutput, CleanError> {
    let options: TokenizeOptions = options(context)?;
    if !(0.0..=0.5).contains(&options.held_out) {
        return Err(CleanError::Options(format!("held_out is {}, not within 0 to 0.5", options.held_out)));
    }
    let progress = Progress::of(context);
    let mut paths = Vec::new();
    for (id, manifest) in context.fetch_inputs().await? {
        paths.push(documents_of(&context.store, id, &manifest)?);
    }
    let hashes = texts(&paths).map(|text| text.map(|text| text.hash)).collect::<Result<Vec<u64>, _>>()?;
    if hashes.is_empty() {
        return Err(CleanError::Empty("there is no document to tokenize"));
    }
    let held_out = HeldOut::new(options.held_out, hashes.iter().copied());
    let pool = pool(options.threads)?;
    let tokenizer = pool.install(|| make_tokenizer(&options, &paths, held_out))?;
    progress.check()?;
    let vocabulary = tokenizer.get_vocab_size(true) as u32;
    let mut splits = SPLITS
        .map(|split| SplitWriter::new(&context.store, split, vocabulary, options.shard_tokens_max.max(1)));
    pool.install(|| write_splits(texts(&paths), &tokenizer, held_out, &mut splits, &progress))?;
    publish(context, &tokenizer, vocabulary, splits).await
}

/// Trains on the training documents alone.
fn make_tokenizer(
    options: &TokenizeOptions,
    paths: &[std::path::PathBuf],
    held_out: HeldOut,
) -> Result<Tokenizer, CleanError> {
    if options.tokenizer == TokenizerSource::Bytes {
        return tokenizer::train(Vec::new(), VOCABULARY_MIN, options.pair_count_min);
    }
    let mut training = Vec::new();
    let mut bytes = 0;
    for text in texts(paths) {
        let text = text?;
        if !held_out.holds(text.hash) {
            bytes += text.text.len() as u64;
            if bytes > options.training_bytes_max && !training.is_empty() {
                break;
            }
            training.push(text.text);
        }
    }
    tokenizer::train(training, options.vocabulary, options.pair_count_min)
}

async fn publish(
    context: &TaskContext,
    tokenizer: &Tokenizer,
    vocabulary: u32,
    splits: [SplitWriter; 2],
) -> Result<TaskOutput, CleanError> {
    let [train, held_out] = &splits;
    let figures = [
        ("vocabulary", u64::from(vocabulary)),
        ("documents", train.documents() + held_out.documents()),
        ("documents_train", train.documents()),
        ("documents_held_out", held_out.documents()),
        ("tokens_train", train.tokens()),
        ("tokens_held_out", held_out.tokens()),
        ("text_bytes_train", train.text_bytes),
        ("text_bytes_held_out", held_out.text_bytes),
    ];
    let mut manifest = context.manifest(TOKENS);
    for (name, count) in figures {
        manifest = manifest.with(name, count);
    }
    manifest.files.push(context.store.put("tokenizer.json", tokenizer::to_json(tokenizer)?.as_bytes())?);
    for split in splits {
        manifest.files.extend(split.finish()?);
    }
    let mut metrics: sixfold_cluster::task::Metrics =
        figures.map(|(name, count)| (name.to_owned(), count.into())).into();
    let tokenizer_hash =
        manifest.file("tokenizer.json").map(|file| file.hash.to_string()).unwrap_or_default();
    metrics.insert("tokenizer_blake3".to_owned(), tokenizer_hash.into());
    let artifacts = vec![context.host.publish(manifest).await?];
    Ok(TaskOutput { artifacts, metrics })
}
