//! `sixfold query`: asks a served model through any node, and prints the answer as it comes.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use serde_json::json;
use sixfold_infer::message::{ChatMessage, GenerateRequest, Prompt, ReplicaError, Sampling, TokenEvent};
use sixfold_infer::remote;
use sixfold_infer::replica::EventStream;
use sixfold_transport::identity::{Expected, Peer};

use super::{connect, print_json};
use crate::cli::QueryArgs;
use crate::client::Client;
use crate::daemon::ASK_STREAM;

/// How long nodes are asked again where none takes the question.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one node may take to accept it.
const NODE_PATIENCE: Duration = Duration::from_secs(2);
/// Pause between two rounds.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// What was answered.
#[derive(Default)]
pub(crate) struct Answered {
    pub(crate) text: String,
    pub(crate) tokens: usize,
    /// Ids of the prompt as the model reads it.
    pub(crate) prompt_ids: Vec<u32>,
    /// Of each token of the answer, where asked for.
    pub(crate) logprobs: Vec<f32>,
}

/// `sixfold query TEXT`.
pub(crate) async fn run(args: QueryArgs) -> Result<()> {
    let as_json = args.client.json;
    let client = connect(&args.client)?;
    let answered = answer(&client, request(&args), |piece| {
        if !as_json {
            print!("{piece}");
            // A closed standard output is noticed by the last line.
            let _ = std::io::stdout().flush();
        }
    })
    .await?;
    if as_json {
        print_json(
            &json!({"answer": answered.text, "tokens": answered.tokens, "prompt_tokens": answered.prompt_ids.len()}),
        );
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

/// Asks, and goes on through another node where one is lost in the middle; `piece` gets the text as
/// it comes, each part once.
pub(crate) async fn answer(
    client: &Client,
    mut request: GenerateRequest,
    mut piece: impl FnMut(&str),
) -> Result<Answered> {
    let mut answered = Answered::default();
    let mut lost_at = None;
    loop {
        let events = ask(client, &request).await?;
        match read(events, &mut request.emitted, &mut answered, &mut piece).await? {
            End::Finished => return Ok(answered),
            // What was emitted since the last loss is progress, and another chance.
            End::Lost(why) if lost_at == Some(answered.tokens) => bail!("no answer: {why}"),
            End::Lost(why) => {
                tracing::warn!("a node was lost in the middle of the answer ({why}); another goes on");
                lost_at = Some(answered.tokens);
            }
        }
    }
}

/// How a stream of events ended.
pub(super) enum End {
    Finished,
    Lost(String),
}

/// Asks the nodes in turn until one takes the question. Nodes that do not all answer at once may be on
/// their way back, with the coordinator that has just been started again.
async fn ask(client: &Client, request: &GenerateRequest) -> Result<EventStream> {
    let since = Instant::now();
    loop {
        match ask_once(client, request).await {
            Ok(events) => return Ok(events),
            Err(error) if since.elapsed() >= PATIENCE => {
                return Err(error).context("no node takes the question");
            }
            Err(error) => tracing::debug!("no node takes the question: {error:#}"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn ask_once(client: &Client, request: &GenerateRequest) -> Result<EventStream> {
    let mut nodes = client.nodes().await?;
    nodes.retain(|node| !["dead", "left"].contains(&node.state.as_str()));
    nodes.sort_by_key(|node| node.state != "live");
    let mut last = anyhow::anyhow!("no node is up; `sixfold nodes` lists them");
    for node in &nodes {
        let asked = async {
            let expected = Expected::Peer(Peer::node(node.node.node.as_str())?);
            let connection = client.endpoint().connect(node.node.address, expected).await?;
            let stream = connection.open_stream(ASK_STREAM, &()).await?;
            Ok(remote::ask(request, stream.recv, stream.send).await?)
        };
        match tokio::time::timeout(NODE_PATIENCE, asked).await {
            Ok(Ok(events)) => return Ok(events),
            Ok(Err(error)) => last = error,
            Err(_) => last = anyhow::anyhow!("node {} does not answer", node.node.node),
        }
    }
    Err(last)
}

/// Reads an answer to its end, or as far as it came.
pub(super) async fn read(
    mut events: EventStream,
    emitted: &mut Vec<u32>,
    answered: &mut Answered,
    piece: &mut impl FnMut(&str),
) -> Result<End> {
    while let Some(event) = events.next().await {
        let text = match event {
            TokenEvent::Started { prompt_tokens } => {
                answered.prompt_ids = prompt_tokens;
                continue;
            }
            TokenEvent::Token(token) => {
                emitted.push(token.token);
                answered.tokens += 1;
                answered.logprobs.extend(token.score.map(|score| score.logprob));
                token.text
            }
            TokenEvent::Echo(_) | TokenEvent::Alive => continue,
            TokenEvent::Finished { text, .. } => {
                piece(&text);
                answered.text.push_str(&text);
                return Ok(End::Finished);
            }
            TokenEvent::Failed(ReplicaError::Lost(why)) => return Ok(End::Lost(why)),
            TokenEvent::Failed(error) => bail!("no answer: {error}"),
        };
        piece(&text);
        answered.text.push_str(&text);
    }
    Ok(End::Lost("the answer was cut off".to_owned()))
}
