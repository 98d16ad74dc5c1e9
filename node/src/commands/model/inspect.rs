//! `sixfold model inspect`.

use anyhow::Result;
use serde_json::json;
use sixfold_formats::Summary;

use super::{byte_bar, judged, opened};
use crate::cli::model::InspectArgs;
use crate::commands::{print_json, table};

/// Letters of a template's beginning that are shown.
const TEMPLATE_SHOWN: usize = 160;

pub(super) fn run(args: &InspectArgs) -> Result<()> {
    let model = opened(&args.model, &args.opened)?;
    let summary = model.summary()?;
    // A reason not to compute it is a part of what it is, and no failure.
    let computed = judged(&model).map(|_| ()).map_err(|error| format!("{error:#}"));
    let hash = (!args.no_hash).then(|| {
        let bar = byte_bar(model.file_bytes(), args.json);
        let hash = model.hash(|bytes| bar.inc(bytes));
        bar.finish_and_clear();
        hash.to_hex().to_string()
    });
    if args.json {
        let mut value = serde_json::to_value(&summary)?;
        value["blake3"] = json!(hash);
        value["computed_here"] = json!(computed.is_ok());
        value["not_computed_because"] = json!(computed.err());
        print_json(&value);
        return Ok(());
    }
    let mut rows = described(&summary);
    rows.push(row(
        "computed here",
        computed.map_or_else(|reason| format!("no: {reason}"), |()| "yes".into()),
    ));
    rows.extend(hash.map(|hash| row("BLAKE3 of weights", hash)));
    table::print(&["", ""], &rows);
    if args.tensors {
        println!();
        let rows = summary
            .tensors
            .iter()
            .map(|tensor| vec![tensor.name.clone(), format!("{:?}", tensor.shape), tensor.dtype.to_owned()]);
        table::print(&["tensor", "shape", "dtype"], &rows.collect::<Vec<_>>());
    }
    Ok(())
}

fn row(name: &str, value: String) -> Vec<String> {
    vec![name.to_owned(), value]
}

fn described(summary: &Summary) -> Vec<Vec<String>> {
    let mut rows = vec![
        row("model", summary.path.clone()),
        row("format", format!("{}, {} of weights", summary.format, files(summary))),
        row("family", summary.family.unwrap_or("unknown").to_owned()),
        row("parameters", summary.parameters.to_string()),
    ];
    rows.extend(summary.sizes.iter().map(|(name, size)| row(name, size.to_string())));
    rows.extend(summary.tied.map(|tied| row("tie_word_embeddings", tied.to_string())));
    rows.extend(summary.positions.iter().map(|(name, value)| row(name, value.to_string())));
    for (name, share) in &summary.encodings {
        let value = format!(
            "{} tensors, {} numbers, {:.1} MiB",
            share.tensors,
            share.numbers,
            share.bytes as f64 / super::MIB as f64
        );
        rows.push(row(name, value));
    }
    match &summary.tokenizer {
        None => rows.push(row("tokenizer", "none".to_owned())),
        Some(tokenizer) => {
            let bytes = if tokenizer.byte_fallback { ", bytes for unknown letters" } else { "" };
            let special = tokenizer.special.len();
            let value = format!("{}, {} tokens, {special} special{bytes}", tokenizer.kind, tokenizer.tokens);
            rows.push(row("tokenizer", value));
            rows.extend(tokenizer.named.iter().map(|(name, text)| row(name, text.clone())));
            rows.push(row("ends with", format!("{:?}", tokenizer.ends)));
        }
    }
    let template = summary.chat_template.as_deref().map(|template| {
        let begin: String = template.chars().take(TEMPLATE_SHOWN).collect();
        let dots = if begin.len() < template.len() { " ..." } else { "" };
        format!("{}{dots}", begin.replace('\n', "\\n"))
    });
    rows.push(row("chat template", template.unwrap_or_else(|| "none".to_owned())));
    rows
}

fn files(summary: &Summary) -> String {
    match summary.files {
        1 => "one file".to_owned(),
        count => format!("{count} files"),
    }
}
