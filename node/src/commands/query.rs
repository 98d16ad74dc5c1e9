//! `sixfold query`: asks a served model through any node, and prints the answer as it comes.

use std::io::Write;

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use serde_json::json;
use sixfold_infer::message::{ChatMessage, GenerateRequest, Prompt, Sampling, TokenEvent};
use sixfold_infer::remote;
use sixfold_infer::replica::EventStream;
use sixfold_transport::identity::{Expected, Peer};

use super::{connect, print_json};
use crate::cli::QueryArgs;
use crate::client::Client;
use crate::daemon::ASK_STREAM;

/// What was answered.
#[derive(Default)]
pub(crate) struct Answered {
    pub(crate) text: String,
    pub(crate) tokens: usize,
    pub(crate) prompt_tokens: usize,
}

/// `sixfold query TEXT`.
pub(crate) async fn run(args: QueryArgs) -> Result<()> {
    let as_json = args.client.json;
    let client = connect(&args.client)?;
    let events = ask(&client, request(&args)).await?;
    let answered = read(events, |piece| {
        if !as_json {
            print!("{piece}");
            // A closed standard output is noticed by the last line.
            let _ = std::io::stdout().flush();
        }
    })
    .await?;
    if as_json {
        print_json(&json!({"answer": answered.text, "tokens": answered.tokens, "prompt_tokens": answered.prompt_tokens}));
    } else {
        println!();
    }
    client.close().await;
    Ok(())
}

fn request(args: &QueryArgs) -> GenerateRequest {
    let prompt = if args.complete {
        Prompt::Text(args.text.clone())
    } else {
        Prompt::Chat(vec![ChatMessage { role: "user".to_owned(), content: args.text.clone() }])
    };
    generate(args.model.clone(), prompt, args.max_tokens, args.temperature, args.seed)
}

/// A request with these and no other wishes. Without a model's name, the one that is served.
pub(crate) fn generate(
    model: Option<String>,
    prompt: Prompt,
    tokens_max: u32,
    temperature: f32,
    seed: u64,
) -> GenerateRequest {
    GenerateRequest {
        model: model.unwrap_or_default(),
        prompt,
        emitted: Vec::new(),
        output_tokens_max: Some(tokens_max),
        sampling: Sampling { temperature, seed, ..Sampling::default() },
        stop: Vec::new(),
        ignore_eos: false,
        logprobs: None,
        echo: false,
    }
}

/// Asks the nodes in turn until one takes the question.
pub(crate) async fn ask(client: &Client, request: GenerateRequest) -> Result<EventStream> {
    let nodes = client.nodes().await?;
    let live = nodes.iter().filter(|node| node.state == "live");
    let mut last = anyhow::anyhow!("no node is up; `sixfold nodes` lists them");
    for node in live {
        let asked = async {
            let expected = Expected::Peer(Peer::node(node.node.node.as_str())?);
            let connection = client.endpoint().connect(node.node.address, expected).await?;
            let stream = connection.open_stream(ASK_STREAM, &()).await?;
            Ok(remote::ask(&request, stream.recv, stream.send).await?)
        };
        match asked.await {
            Ok(events) => return Ok(events),
            Err(error) => last = error,
        }
    }
    Err(last).context("no node takes the question")
}

/// Reads an answer to its end; `piece` gets the text as it comes.
pub(crate) async fn read(mut events: EventStream, mut piece: impl FnMut(&str)) -> Result<Answered> {
    let mut answered = Answered::default();
    while let Some(event) = events.next().await {
        match event {
            TokenEvent::Started { prompt_tokens } => answered.prompt_tokens = prompt_tokens.len(),
            TokenEvent::Token(token) => {
                piece(&token.text);
                answered.text.push_str(&token.text);
                answered.tokens += 1;
            }
            TokenEvent::Echo(_) => {}
            TokenEvent::Finished { text, .. } => {
                piece(&text);
                answered.text.push_str(&text);
                return Ok(answered);
            }
            TokenEvent::Failed(error) => bail!("no answer: {error}"),
        }
    }
    bail!("the answer was cut off")
}
