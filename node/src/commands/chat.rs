//! `sixfold chat`: a model of a folder or file answers in the terminal.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, Result, bail};
use serde_json::json;
use sixfold_infer::error::LoadError;
use sixfold_infer::load::{ModelTexts, start};
use sixfold_infer::message::{ChatMessage, Prompt};
use sixfold_infer::options::Options;
use sixfold_infer::replica::{Replica, ReplicaClient};
use sixfold_tensor::set_threads;

use super::model::{as_folder, opened, read_weights};
use super::print_json;
use super::query::{Answered, End, generate, read};
use crate::cli::ChatArgs;
use crate::cli::model::SourceArgs;

/// What people may type instead of a message.
const HELP: &str = "/reset forgets what was said, /quit or Ctrl-D ends";

/// `sixfold chat MODEL`.
///
/// # Errors
/// Where the model cannot be read or computed with.
pub(crate) async fn run(args: ChatArgs) -> Result<()> {
    let loading = args.clone();
    let loaded = tokio::task::spawn_blocking(move || load(&loading)).await?;
    let replica = loaded?;
    let interactive = std::io::stdin().is_terminal() && args.message.is_none() && !args.json;
    if interactive {
        println!("{HELP}");
    }
    let system = args.system.map(|content| message("system", content));
    let mut said: Vec<ChatMessage> = system.iter().cloned().collect();
    let mut given = args.message.into_iter();
    let only_one = given.len() > 0;
    let wishes = Wishes {
        tokens_max: args.max_tokens,
        temperature: args.temperature,
        seed: args.seed,
        json: args.json,
    };
    loop {
        let next = match given.next() {
            Some(text) => Some(text),
            None if only_one => None,
            None => typed(interactive)?,
        };
        match next.as_deref().map(str::trim) {
            None | Some("/quit") => return Ok(()),
            Some("/reset") => said = system.iter().cloned().collect(),
            Some("") => {}
            Some(text) => {
                said.push(message("user", text.to_owned()));
                match answer(&replica, said.clone(), &wishes).await {
                    Ok((answered, _)) => said.push(message("assistant", answered.text)),
                    Err(error) if interactive => {
                        eprintln!("error: {error:#}; {HELP}");
                        said.pop();
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

fn message(role: &str, content: String) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content }
}

/// The next line, or nothing at the end.
fn typed(interactive: bool) -> Result<Option<String>> {
    if interactive {
        print!("> ");
        std::io::stdout().flush()?;
    }
    let mut line = String::new();
    let bytes = std::io::stdin().lock().read_line(&mut line).context("standard input")?;
    Ok((bytes > 0).then_some(line))
}

/// How answers are made and shown.
struct Wishes {
    tokens_max: u32,
    temperature: f32,
    seed: u64,
    json: bool,
}

/// Prints the answer as it comes, or an object once it is whole, and returns it with the ids of its tokens.
async fn answer(replica: &Replica, said: Vec<ChatMessage>, wishes: &Wishes) -> Result<(Answered, Vec<u32>)> {
    let Wishes { tokens_max, temperature, seed, json } = *wishes;
    let model = Some(Options::default().model_name);
    let mut request = generate(model, Prompt::Chat(said), tokens_max, temperature, seed);
    request.logprobs = json.then_some(0);
    let events = replica.generate(request).await?;
    let (mut ids, mut answered) = (Vec::new(), Answered::default());
    let mut print = |piece: &str| {
        if !json {
            print!("{piece}");
            // A closed standard output is noticed by the last line.
            let _ = std::io::stdout().flush();
        }
    };
    let end = read(events, &mut ids, &mut answered, &mut print).await?;
    if !json {
        println!();
    }
    if let End::Lost(why) = end {
        bail!("the answer broke off: {why}");
    }
    if json {
        let Answered { text, prompt_ids, logprobs, .. } = &answered;
        print_json(&json!({"answer": text, "prompt_ids": prompt_ids, "ids": ids, "logprobs": logprobs}));
    }
    Ok((answered, ids))
}

fn load(args: &ChatArgs) -> Result<Replica> {
    set_threads(args.threads)?;
    let source = SourceArgs { tokenizer: None, no_tokenizer: false };
    let model = as_folder(opened(&args.model, &source)?, &source, false)?;
    let text = |name: &str| model.text(name).map(<[u8]>::to_vec);
    let missing = || format!("{} has no tokenizer, without which nothing can be said", args.model.display());
    let texts = ModelTexts {
        config: serde_json::to_vec(model.config())?,
        tokenizer: text("tokenizer.json").with_context(missing)?,
        tokenizer_config: text("tokenizer_config.json"),
        chat_template: text("chat_template.jinja"),
    };
    let mut failed = None;
    let options = Options { kv_cache_mib: args.kv_cache_mib, ..Options::default() };
    let started = start(&texts, &options, |geometry| {
        read_weights(&model, geometry, args.adapter.as_deref()).map_err(|error| {
            let why = LoadError::Model(format!("{error:#}"));
            failed = Some(error);
            why
        })
    });
    match (started, failed) {
        (_, Some(error)) => Err(error),
        (started, None) => Ok(started?.0),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::commands::model::logprobs;

    #[tokio::test(flavor = "multi_thread")]
    async fn ids_and_log_probabilities_are_those_that_the_decoder_computes() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../runtime/formats/tests/golden/llama.gguf");
        let chat = ["sixfold", "chat", &golden.display().to_string(), "--temperature", "0", "--json"];
        let Command::Chat(args) = Cli::try_parse_from(chat).unwrap().command else {
            panic!("another command")
        };
        let replica = load(&args).unwrap();
        let wishes =
            Wishes { tokens_max: 5, temperature: args.temperature, seed: args.seed, json: args.json };
        let (answered, ids) = answer(&replica, vec![message("user", "a".into())], &wishes).await.unwrap();
        assert_eq!((ids.len(), answered.logprobs.len()), (answered.tokens, answered.tokens));
        assert!((1..=5).contains(&ids.len()));

        let source = SourceArgs { tokenizer: None, no_tokenizer: true };
        let model = as_folder(opened(&golden, &source).unwrap(), &source, true).unwrap();
        let decoder = logprobs::decoder(&model, None).unwrap();
        let whole = [answered.prompt_ids.clone(), ids.clone()].concat();
        let score = logprobs::score(&decoder, &whole).unwrap();
        assert_eq!(answered.logprobs, score.logprobs[answered.prompt_ids.len() - 1..]);
        for (at, id) in ids.iter().enumerate() {
            let before = &whole[..answered.prompt_ids.len() + at];
            assert_eq!(logprobs::score(&decoder, before).unwrap().next, *id, "token {at}");
        }
    }
}
