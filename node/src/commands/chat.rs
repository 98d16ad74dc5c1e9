//! `sixfold chat`: a model of a folder or file answers in the terminal.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::{Context, Result, anyhow};
use sixfold_infer::error::LoadError;
use sixfold_infer::load::{ModelTexts, start};
use sixfold_infer::message::{ChatMessage, Prompt};
use sixfold_infer::options::Options;
use sixfold_infer::replica::{Replica, ReplicaClient};
use sixfold_tensor::set_threads;

use super::model::{as_folder, opened, read_weights};
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
    let interactive = std::io::stdin().is_terminal() && args.message.is_none();
    if interactive {
        println!("{HELP}");
    }
    let system = args.system.map(|content| message("system", content));
    let mut said: Vec<ChatMessage> = system.iter().cloned().collect();
    let mut given = args.message.into_iter();
    let (wishes, only_one) = ((args.max_tokens, args.temperature, args.seed), given.len() > 0);
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
                match answer(&replica, said.clone(), wishes).await {
                    Ok(answer) => said.push(message("assistant", answer)),
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

/// Prints the answer as it comes, and returns it.
async fn answer(
    replica: &Replica,
    said: Vec<ChatMessage>,
    (tokens_max, temperature, seed): (u32, f32, u64),
) -> Result<String> {
    let model = Some(Options::default().model_name);
    let request = generate(model, Prompt::Chat(said), tokens_max, temperature, seed);
    let events = replica.generate(request).await?;
    let (mut emitted, mut answered) = (Vec::new(), Answered::default());
    let mut print = |piece: &str| {
        print!("{piece}");
        // A closed standard output is noticed by the last line.
        let _ = std::io::stdout().flush();
    };
    let end = read(events, &mut emitted, &mut answered, &mut print).await?;
    println!();
    match end {
        End::Finished => Ok(answered.text),
        End::Lost(why) => Err(anyhow!("the answer broke off: {why}")),
    }
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
