//! The texts that are asked for, one after another.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::cli::model::EmbedArgs;

/// A text as the model sees it.
pub(super) struct Text {
    /// What errors call it.
    pub(super) name: String,
    /// Nothing where it was given as ids.
    pub(super) text: Option<String>,
    pub(super) tokens: Vec<u32>,
}

/// A line of a `.jsonl` file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Text(String),
    Object { text: String },
}

/// How many texts there are, unless one of them would have to be waited for.
pub(super) fn count(args: &EmbedArgs) -> Result<Option<u64>> {
    let given = args.text.len() + usize::from(!args.ids.is_empty());
    let Some(path) = &args.file else { return Ok(Some(given as u64)) };
    if !path.metadata().with_context(|| path.display().to_string())?.is_file() {
        return Ok(None);
    }
    let lines = open(path)?.split(b'\n').try_fold(0, |count, line| line.map(|_| count + 1));
    Ok(Some(given as u64 + lines.with_context(|| path.display().to_string())?))
}

/// The texts in their order. A file is read as its texts are asked for.
pub(super) fn read<'a>(
    args: &'a EmbedArgs,
    tokenizer: Option<&'a Tokenizer>,
) -> Result<impl Iterator<Item = Result<Text>>> {
    let lines = args.file.as_deref().map(lines).transpose()?;
    let given = args.text.iter().map(|text| Ok((None, text.clone())));
    let texts = given.chain(lines.into_iter().flatten()).enumerate().map(move |(number, text)| {
        let (place, text) = text?;
        let name = match place {
            Some(place) => format!("text {} ({place})", number + 1),
            None => format!("text {}", number + 1),
        };
        let tokenizer = tokenizer.context("there is no tokenizer")?;
        let encoded = tokenizer.encode_fast(text.as_str(), true);
        let encoded = encoded.map_err(|error| anyhow!("{name}: {error}"))?;
        Ok(Text { name, tokens: encoded.get_ids().to_vec(), text: Some(text) })
    });
    let ids = (!args.ids.is_empty())
        .then(|| Ok(Text { name: "the text of --ids".to_owned(), text: None, tokens: args.ids.clone() }));
    Ok(texts.chain(ids))
}

/// Texts of a file, each with the place where it stands.
fn lines(path: &Path) -> Result<impl Iterator<Item = Result<(Option<String>, String)>>> {
    let is_json = path.extension().is_some_and(|ending| ending == "jsonl");
    let name = path.display().to_string();
    let lines = open(path)?.lines().enumerate().map(move |(number, line)| {
        let place = format!("{name}, line {}", number + 1);
        let line = line.with_context(|| place.clone())?;
        let text = if is_json { of_json(&line).with_context(|| place.clone())? } else { line };
        Ok((Some(place), text))
    });
    Ok(lines)
}

fn of_json(line: &str) -> Result<String> {
    match serde_json::from_str(line).context("neither a string nor an object with a `text`")? {
        Line::Text(text) | Line::Object { text } => Ok(text),
    }
}

fn open(path: &Path) -> Result<BufReader<File>> {
    Ok(BufReader::new(File::open(path).with_context(|| path.display().to_string())?))
}
