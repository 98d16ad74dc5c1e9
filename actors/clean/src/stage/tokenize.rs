//! The `tokenize` task.

use sixfold_artifact::FileEntry;
use sixfold_cluster::task::{TaskContext, TaskOutput};
use tokenizers::Tokenizer;

use super::{SPLITS, TOKENS, documents_of, options};
use crate::error::CleanError;
use crate::instruct::{BaseTokenizer, MODEL, load_base};
use crate::options::{TokenizeOptions, TokenizerSource};
use crate::progress::Progress;
use crate::segment::pool;
use crate::shards::{HeldOut, SplitWriter, texts, write_splits};
use crate::tokenizer::{self, DocumentEncoder, VOCABULARY_MIN};

pub(super) async fn run(context: &TaskContext) -> Result<TaskOutput, CleanError> {
    let options: TokenizeOptions = options(context)?;
    if !(0.0..=0.5).contains(&options.held_out) {
        return Err(CleanError::Options(format!("held_out is {}, not within 0 to 0.5", options.held_out)));
    }
    let progress = Progress::of(context);
    let mut paths = Vec::new();
    let inputs = context.fetch_inputs().await?;
    let base = load_base(&context.store, &inputs)?;
    if base.is_some() && options.tokenizer == TokenizerSource::Bytes {
        let contradiction = "an input is a model, whose tokenizer is taken, and `tokenizer` is `bytes`";
        return Err(CleanError::Options(contradiction.to_owned()));
    }
    for (id, manifest) in inputs.iter().filter(|(_, manifest)| manifest.kind != MODEL) {
        paths.push(documents_of(&context.store, *id, manifest)?);
    }
    let hashes = texts(&paths).map(|text| text.map(|text| text.hash)).collect::<Result<Vec<u64>, _>>()?;
    if hashes.is_empty() {
        return Err(CleanError::Empty("there is no document to tokenize"));
    }
    let held_out = HeldOut::new(options.held_out, hashes.iter().copied());
    let pool = pool(options.threads)?;
    let Encoding { documents, vocabulary, files } = match base {
        Some(base) => of_base(base)?,
        None => pool.install(|| train(context, &options, &paths, held_out))?,
    };
    progress.check()?;
    let mut splits = SPLITS
        .map(|split| SplitWriter::new(&context.store, split, vocabulary, options.shard_tokens_max.max(1)));
    pool.install(|| write_splits(texts(&paths), &documents, held_out, &mut splits, &progress))?;
    publish(context, files, vocabulary, splits).await
}

/// How documents become tokens.
struct Encoding {
    documents: DocumentEncoder,
    vocabulary: u32,
    /// Those of the tokenizer.
    files: Vec<FileEntry>,
}

/// By a model's own tokenizer.
fn of_base(base: BaseTokenizer) -> Result<Encoding, CleanError> {
    let BaseTokenizer { mut tokenizer, vocabulary, end_of_text, files, .. } = base;
    let unknown = || CleanError::Tokenizer("the model does not say which token ends a text".to_owned());
    tokenizer.set_encode_special_tokens(true);
    let documents =
        DocumentEncoder { tokenizer, end_of_text: end_of_text.ok_or_else(unknown)?, adds_special: true };
    Ok(Encoding { documents, vocabulary, files })
}

/// By a tokenizer that is trained.
fn train(
    context: &TaskContext,
    options: &TokenizeOptions,
    paths: &[std::path::PathBuf],
    held_out: HeldOut,
) -> Result<Encoding, CleanError> {
    let tokenizer = make_tokenizer(options, paths, held_out)?;
    let vocabulary = tokenizer.get_vocab_size(true) as u32;
    let files = vec![context.store.put("tokenizer.json", tokenizer::to_json(&tokenizer)?.as_bytes())?];
    Ok(Encoding { documents: DocumentEncoder::new(tokenizer), vocabulary, files })
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
    tokenizer_files: Vec<FileEntry>,
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
    manifest.files.extend(tokenizer_files);
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
