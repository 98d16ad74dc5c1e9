//! The `instruct` task.

use std::collections::BTreeSet;

use rayon::prelude::*;
use sixfold_chat::{Answers, Builtin, ChatTemplate, Message};
use sixfold_cluster::task::{Metrics, TaskContext, TaskOutput};

use super::{SPLITS, TOKENS, options};
use crate::error::CleanError;
use crate::instruct::record::read;
use crate::instruct::rows::{Counted, Row, read as read_rows};
use crate::instruct::{BaseTokenizer, Encoded, Encoder, load_base};
use crate::options::{InstructOptions, TooLong};
use crate::progress::Progress;
use crate::segment::pool;
use crate::shards::{HeldOut, SplitWriter, hash_of};

/// Dialogues tokenized together.
const BATCH: usize = 256;
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// A dialogue, with where it stands and a number that depends on what was said alone.
struct Dialogue {
    place: String,
    messages: Vec<Message>,
    hash: u64,
}

pub(super) async fn run(context: &TaskContext) -> Result<TaskOutput, CleanError> {
    let options: InstructOptions = options(context)?;
    options.validate().map_err(CleanError::Options)?;
    let inputs = context.fetch_inputs().await?;
    let no_model = || CleanError::Options("an instruct stage needs a model among its inputs".to_owned());
    let base = load_base(&context.store, &inputs)?.ok_or_else(no_model)?;
    let (name, source) = template_of(&options, &base)?;
    let encoder = encoder(&options, &base, &source)?;
    let progress = Progress::of(context);
    let mut counted = Counted::default();
    let (dialogues, rows) = dialogues(&options, &mut counted)?;
    let held_out = HeldOut::new(options.held_out, dialogues.iter().map(|dialogue| dialogue.hash));
    let new_split = |split| {
        SplitWriter::new(&context.store, split, base.vocabulary, options.shard_tokens_max.max(1)).with_mask()
    };
    let mut splits = SPLITS.map(new_split);
    let (mut learned, mut cut) = (0, 0);
    let pool = pool(options.threads)?;
    for batch in dialogues.chunks(BATCH) {
        progress.check()?;
        let encoded: Vec<_> =
            pool.install(|| batch.par_iter().map(|dialogue| encoder.encode(&dialogue.messages)).collect());
        let mut tokens = 0;
        for (dialogue, encoded) in batch.iter().zip(encoded) {
            match encoded {
                Ok(Encoded { ids, learned: mask, cut: is_cut }) => {
                    let said: usize = dialogue.messages.iter().map(|message| message.content.len()).sum();
                    splits[usize::from(held_out.holds(dialogue.hash))].push_masked(said, &ids, &mask)?;
                    learned += mask.iter().filter(|&&learned| learned).count() as u64;
                    cut += u64::from(is_cut);
                    tokens += ids.len() as u64;
                }
                Err(refused) => counted.add(refused.kind(), &dialogue.place, &refused),
            }
        }
        progress.add(batch.len() as u64, tokens);
    }
    for (kind, count, example) in counted.iter() {
        context.host.log(format!("{count} rows are left out ({kind}), the first: {example}"));
    }
    if splits[0].documents() == 0 {
        return Err(CleanError::Options(match counted.iter().next() {
            Some((_, _, example)) => format!("none of {rows} rows can be used; {example}"),
            None => "the files have no rows".to_owned(),
        }));
    }
    let turns = dialogues.iter().flat_map(|dialogue| &dialogue.messages);
    let answers = turns.filter(|message| message.role == "assistant").count() as u64;
    let figures =
        vec![("rows", rows), ("answers", answers), ("tokens_learned", learned), ("dialogues_cut", cut)];
    publish(context, Made { base, name, source, splits, counted, figures }).await
}

/// The template's name, and the template.
fn template_of(options: &InstructOptions, base: &BaseTokenizer) -> Result<(String, String), CleanError> {
    let builtin = |name: &str| Builtin::of_name(name).map(|one| (name.to_owned(), one.source().to_owned()));
    let own = || base.chat.template.clone().map(|source| ("the model's own".to_owned(), source));
    let found = if options.template.is_empty() { own() } else { builtin(&options.template) };
    found.ok_or_else(|| {
        let names: Vec<&str> = Builtin::ALL.into_iter().map(Builtin::name).collect();
        let what =
            if options.template.is_empty() { "the model has no chat template" } else { "no such template" };
        CleanError::Options(format!("{what}; give `template` one of {}", names.join(", ")))
    })
}

fn encoder(options: &InstructOptions, base: &BaseTokenizer, source: &str) -> Result<Encoder, CleanError> {
    let today = options.today.parse().map_err(CleanError::Options)?;
    let template = ChatTemplate::new(source, base.chat.tokens.clone(), today);
    let template = template.map_err(|error| CleanError::Options(error.to_string()))?;
    refuse_unknown_tokens(&template, base)?;
    // One row fewer than tokens: the last token of a dialogue is only a target.
    let tokens_max = match options.tokens_max {
        0 => base.positions.map_or(usize::MAX, |positions| positions + 1),
        tokens => tokens,
    };
    Ok(Encoder {
        template,
        tokenizer: base.for_rendered_text(),
        special_tokens: base.special_tokens.clone(),
        tokens_max,
        cuts: options.too_long == TooLong::Cut,
    })
}

/// A dialogue of two questions shows whether the answers can be found by a template, and whether the marks of turns that it
/// writes are tokens of the model's.
fn refuse_unknown_tokens(template: &ChatTemplate, base: &BaseTokenizer) -> Result<(), CleanError> {
    let turn = |(role, content): (&str, &str)| Message { role: role.to_owned(), content: content.to_owned() };
    let probe = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")].map(turn);
    let found = Answers::find(template, &probe, &base.special_tokens);
    let Answers { text, .. } = found.map_err(|error| CleanError::Options(error.to_string()))?;
    let written = text.match_indices("<|").filter_map(|(start, _)| {
        let length = text[start..].find("|>")? + 2;
        Some(&text[start..start + length])
    });
    let unknown: BTreeSet<&str> = written.filter(|mark| base.tokenizer.token_to_id(mark).is_none()).collect();
    match unknown.is_empty() {
        true => Ok(()),
        false => Err(CleanError::Options(format!(
            "the chat template writes {}, which the model's tokenizer does not know as tokens",
            unknown.into_iter().collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// The dialogues of all rows that have one, and how many rows there are.
fn dialogues(options: &InstructOptions, counted: &mut Counted) -> Result<(Vec<Dialogue>, u64), CleanError> {
    let (mut dialogues, mut rows) = (Vec::new(), 0);
    let most = if options.rows_max == 0 { u64::MAX } else { options.rows_max };
    read_rows(&options.files, options.file_bytes_max, |Row { place, value }| {
        if rows == most {
            return Ok(());
        }
        rows += 1;
        match value.and_then(|value| read(&value, options.form)) {
            Ok(mut messages) => {
                if !options.system.is_empty() && messages[0].role != "system" {
                    messages
                        .insert(0, Message { role: "system".to_owned(), content: options.system.clone() });
                }
                let hash = hash_of(&said(&messages));
                dialogues.push(Dialogue { place, messages, hash });
            }
            Err(broken) => counted.add(broken.kind(), &place, &broken),
        }
        Ok(())
    })?;
    Ok((dialogues, rows))
}

/// All that was said, in a form that no two dialogues share.
fn said(messages: &[Message]) -> String {
    let turn = |message: &Message| format!("{}\0{}\0", message.role, message.content);
    messages.iter().map(turn).collect()
}

/// What becomes an artefact.
struct Made {
    base: BaseTokenizer,
    name: String,
    source: String,
    splits: [SplitWriter; 2],
    counted: Counted,
    figures: Vec<(&'static str, u64)>,
}

async fn publish(context: &TaskContext, made: Made) -> Result<TaskOutput, CleanError> {
    let Made { base, name, source, splits, counted, mut figures } = made;
    let [train, held_out] = &splits;
    figures.extend([
        ("vocabulary", u64::from(base.vocabulary)),
        ("documents", train.documents() + held_out.documents()),
        ("documents_train", train.documents()),
        ("documents_held_out", held_out.documents()),
        ("tokens_train", train.tokens()),
        ("tokens_held_out", held_out.tokens()),
        ("text_bytes_train", train.text_bytes),
        ("text_bytes_held_out", held_out.text_bytes),
        ("rows_left_out", counted.total()),
    ]);
    let reasons = counted.iter().map(|(kind, count, _)| (format!("left_out_{kind}"), count));
    let figures: Vec<(String, u64)> =
        figures.into_iter().map(|(name, count)| (name.to_owned(), count)).chain(reasons).collect();
    let mut manifest = context.manifest(TOKENS).with("chat_template", name.as_str());
    for (name, count) in &figures {
        manifest = manifest.with(name, *count);
    }
    manifest.files.extend(base.files.into_iter().filter(|file| file.name != TEMPLATE_FILE));
    // The model that is trained is asked in the same form.
    manifest.files.push(context.store.put(TEMPLATE_FILE, source.as_bytes())?);
    for split in splits {
        manifest.files.extend(split.finish()?);
    }
    let mut metrics: Metrics = figures.into_iter().map(|(name, count)| (name, count.into())).collect();
    metrics.insert("chat_template".to_owned(), name.into());
    let artifacts = vec![context.host.publish(manifest).await?];
    Ok(TaskOutput { artifacts, metrics })
}
