//! `sixfold model embed`.

mod table;
mod texts;
mod vector_file;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use sixfold_model::Decoder;
use sixfold_tensor::set_threads;
use table::Table;
use texts::Text;
use tokenizers::Tokenizer;
use vector_file::VectorFile;

use super::{as_folder, logprobs, opened};
use crate::cli::model::{EmbedArgs, SourceArgs};

/// A text and its vector.
struct Embedded {
    text: Text,
    /// The vector's length before it was divided by it.
    length: f64,
    vector: Vec<f32>,
}

/// A line of output.
#[derive(Serialize)]
struct Line<'a> {
    text: Option<&'a str>,
    tokens: usize,
    embedding: &'a [f32],
}

pub(super) fn run(args: &EmbedArgs) -> Result<()> {
    set_threads(args.threads)?;
    let needs_tokenizer = !args.text.is_empty() || args.file.is_some();
    let source = SourceArgs { tokenizer: None, no_tokenizer: !needs_tokenizer };
    let model = as_folder(opened(&args.model, &source)?, &source, args.json)?;
    let tokenizer = needs_tokenizer.then(|| {
        let missing = || format!("{} has no tokenizer; --ids needs none", args.model.display());
        tokenizer_of(model.text("tokenizer.json").with_context(missing)?)
    });
    let tokenizer = tokenizer.transpose()?;
    let decoder = logprobs::decoder(&model, args.adapter.as_deref())?;
    drop(model);

    let width = decoder.geometry().config.hidden_size;
    let mut file = args.to.as_deref().map(|to| VectorFile::create(to, width)).transpose()?;
    let (mut table, bar) = (Table::default(), text_bar(texts::count(args)?, args.json));
    let texts = texts::read(args, tokenizer.as_ref())?;
    let count = embed_all(&decoder, args, texts, |embedded| {
        bar.inc(1);
        if let Some(file) = &mut file {
            file.push(&embedded.vector)?;
        }
        if args.json {
            let (text, tokens) = (embedded.text.text.as_deref(), embedded.text.tokens.len());
            println!("{}", serde_json::to_string(&Line { text, tokens, embedding: &embedded.vector })?);
        } else {
            table.push(embedded);
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    file.map(VectorFile::finish).transpose()?;
    if !args.json {
        table.print();
        if let Some(to) = &args.to {
            println!("{}: {count} vectors of {width} numbers", to.display());
        }
    }
    Ok(())
}

/// Texts as they are: one that is too long is an error, and none is filled up.
fn tokenizer_of(bytes: &[u8]) -> Result<Tokenizer> {
    let unusable = |error: tokenizers::Error| anyhow::anyhow!("tokenizer.json: {error}");
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(unusable)?;
    tokenizer.with_padding(None).with_truncation(None).map_err(unusable)?;
    Ok(tokenizer)
}

/// Hands over each text with its vector, in order, and returns how many they were.
fn embed_all(
    decoder: &Decoder,
    args: &EmbedArgs,
    mut texts: impl Iterator<Item = Result<Text>>,
    mut done: impl FnMut(Embedded) -> Result<()>,
) -> Result<usize> {
    let mut count = 0;
    loop {
        let together = texts.by_ref().take(Decoder::TEXTS_AT_ONCE).collect::<Result<Vec<_>>>()?;
        if together.is_empty() {
            break;
        }
        for text in &together {
            decoder.check(&text.tokens).with_context(|| text.name.clone())?;
        }
        let tokens: Vec<&[u32]> = together.iter().map(|text| text.tokens.as_slice()).collect();
        let vectors = decoder.embed(&tokens, args.pooling.into())?;
        count += together.len();
        for (text, mut vector) in together.into_iter().zip(vectors) {
            let length = length(&vector);
            if !length.is_finite() {
                bail!("{}: the model computes numbers that are not finite", text.name);
            }
            if !args.no_normalize && length > 0.0 {
                vector.iter_mut().for_each(|value| *value = (f64::from(*value) / length) as f32);
            }
            done(Embedded { text, length, vector })?;
        }
    }
    if count == 0 {
        bail!("there are no texts");
    }
    Ok(count)
}

fn length(vector: &[f32]) -> f64 {
    vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

/// A bar over texts on standard error; nobody knows how many a pipe has.
fn text_bar(count: Option<u64>, hidden: bool) -> ProgressBar {
    if hidden {
        return ProgressBar::hidden();
    }
    let (bar, template) = match count {
        Some(count) => (ProgressBar::new(count), "[{bar:24}] {pos}/{len} texts {per_sec} {eta} left"),
        None => (ProgressBar::no_length(), "{pos} texts {per_sec}"),
    };
    let style = ProgressStyle::with_template(template);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "))
}
