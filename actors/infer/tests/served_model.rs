//! A real model from a `model` artefact, served by the actor and asked over QUIC.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::future::join_all;
use ractor::Actor;
use serde_json::json;
use sixfold_artifact::model::{ADAPTER_CONFIG, ADAPTERS, WEIGHTS};
use sixfold_artifact::{Manifest, Store};
use sixfold_cluster::task::{
    ErrorClass, LinkChoice, LocalHost, Metric, Network, Record, TaskContext, TaskError, TaskOutput, TaskSpec,
};
use sixfold_infer::actor::InferenceReplica;
use sixfold_infer::engine::Load;
use sixfold_infer::message::{
    ChatMessage, FinishReason, GenerateRequest, Prompt, ReplicaError, Sampling, TokenEvent, TokenPiece,
};
use sixfold_infer::remote::RemoteReplica;
use sixfold_infer::replica::ReplicaClient;
use sixfold_model::{
    Geometry, Lora, ModelConfig, ModelSlice, Projection, initialize, merge_adapters, read_parameters,
    write_parameters,
};
use sixfold_transport::identity::{Authority, Identity, Peer};
use sixfold_transport::{Endpoint, EndpointOptions};
use sixfold_wire::id::{ArtifactId, Epoch, JobId, TaskId};
use tokio::sync::oneshot;

const LIFETIME: Duration = Duration::from_secs(3600);

/// A tokenizer of bytes: `a` is token 97.
fn tokenizer() -> String {
    let mut stand_in = 256;
    let vocabulary: HashMap<String, u32> = (0..=255_u32)
        .map(|byte| {
            let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
            let code = if printable { byte } else { stand_in };
            stand_in += u32::from(!printable);
            (char::from_u32(code).unwrap().to_string(), byte)
        })
        .collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "normalized": false, "single_word": false,
            "lstrip": false, "rstrip": false})
    };
    json!({
        "version": "1.0",
        "added_tokens": [special(256, "<|user|>"), special(257, "<|assistant|>")],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    })
    .to_string()
}

fn tiny() -> ModelConfig {
    ModelConfig {
        family: sixfold_model::Family::Llama,
        vocab_size: 258,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        max_position_embeddings: 192,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        sliding_window: None,
        full_attention_layers: 0,
        attention_bias: false,
        tie_word_embeddings: true,
        dtype: Default::default(),
        bos_token_id: None,
        eos_token_id: None,
    }
}

fn publish_model(store: &Store, config: ModelConfig) -> ArtifactId {
    let config_json = serde_json::to_vec(&config.to_hugging_face(4)).unwrap();
    let geometry = Geometry::new(config, 4).unwrap();
    let mut parameters = initialize(&geometry, &ModelSlice::whole(&geometry), 5);
    // A fresh model is nearly indifferent: larger weights make answers that depend on the prompt.
    parameters.values_mut().iter_mut().for_each(|value| *value *= 8.0);
    let mut manifest = Manifest::new("model", "train");
    manifest.files.push(store.put("config.json", &config_json).unwrap());
    manifest
        .files
        .push(store.put("model.safetensors", &write_parameters(&geometry, &parameters).unwrap()).unwrap());
    manifest.files.push(store.put("tokenizer.json", tokenizer().as_bytes()).unwrap());
    store.publish(&manifest).unwrap()
}

/// A model of adapters alone beside `base`, which has the shape of [`tiny`], and one of the weights that both come to.
fn publish_adapted(store: &Store, base: ArtifactId) -> [ArtifactId; 2] {
    let geometry = Geometry::new(tiny(), 4).unwrap();
    let whole = ModelSlice::whole(&geometry);
    let lora = Lora { rank: 2, alpha: 4.0, projections: [Projection::Query, Projection::Down].into() };
    let adapted = geometry.clone().with_lora(lora.clone()).unwrap();
    let mut adapters = initialize(&adapted, &whole, 1);
    adapters.values_mut().iter_mut().for_each(|value| *value += 0.25);
    let weights = read_parameters(&geometry, &whole, &store.read(base, WEIGHTS).unwrap()).unwrap();
    let merged = write_parameters(&geometry, &merge_adapters(&adapted, &weights, &adapters)).unwrap();
    let adapters = write_parameters(&adapted, &adapters).unwrap();
    let config = lora.to_peft(&geometry.config, "base", 0.0).to_string().into_bytes();
    let publish = |needs: &[ArtifactId], files: &[(&str, &[u8])]| {
        let mut manifest = Manifest { needs: needs.to_vec(), ..store.manifest(base).unwrap() };
        manifest.files.retain(|file| file.name != WEIGHTS);
        manifest.files.extend(files.iter().map(|(name, content)| store.put(name, content).unwrap()));
        store.publish(&manifest).unwrap()
    };
    [
        publish(&[base], &[(ADAPTER_CONFIG, &config), (ADAPTERS, &adapters)]),
        publish(&[], &[(WEIGHTS, &merged)]),
    ]
}

struct Cluster {
    authority: Authority,
    store: Store,
    model: ArtifactId,
    gateway: Endpoint,
    _folder: tempfile::TempDir,
}

fn endpoint(identity: Identity) -> Endpoint {
    Endpoint::bind(identity, &EndpointOptions::new(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))).unwrap()
}

impl Cluster {
    fn new() -> Self {
        Self::of(tiny())
    }

    fn of(config: ModelConfig) -> Self {
        let authority = Authority::create(SystemTime::now()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let model = publish_model(&store, config);
        let gateway = Self::identity(&authority, "node-1");
        Self { gateway: endpoint(gateway), authority, store, model, _folder: folder }
    }

    fn identity(authority: &Authority, node: &str) -> Identity {
        authority.issue_identity(&Peer::node(node).unwrap(), SystemTime::now(), LIFETIME).unwrap()
    }

    async fn replica(&self, options: &str) -> ReplicaProcess {
        let worker = Self::identity(&self.authority, "node-2").worker_authority().unwrap();
        let endpoint = endpoint(worker.issue_identity("replica", SystemTime::now(), LIFETIME).unwrap());
        let spec = TaskSpec {
            id: TaskId { job: JobId(1), phase: 0, index: 0 },
            role: "infer".into(),
            stage: "serve".into(),
            count: 1,
            options_json: options.to_owned(),
            inputs: vec![self.model],
            resume: Vec::new(),
        };
        let host = Arc::new(LocalHost::new(self.store.clone()));
        let scratch = self.store.root().join("scratch");
        let (context, result) = TaskContext::new(
            spec,
            Epoch(1),
            "node-2".into(),
            self.store.clone(),
            scratch,
            Arc::clone(&host) as _,
        );
        let context = context.with_network(Network { endpoint: endpoint.clone(), links: LinkChoice::Auto });
        let cancel = context.cancel.clone();
        let (actor, _) = Actor::spawn(None, InferenceReplica, context).await.unwrap();
        ReplicaProcess { endpoint, host, cancel, result, actor: actor.get_cell() }
    }
}

struct ReplicaProcess {
    endpoint: Endpoint,
    host: Arc<LocalHost>,
    cancel: tokio_util::sync::CancellationToken,
    result: oneshot::Receiver<Result<TaskOutput, TaskError>>,
    actor: ractor::ActorCell,
}

impl ReplicaProcess {
    async fn announced(&self) {
        let service =
            |record: &Record| matches!(record, Record::Service(_, about) if about.contains_key("model"));
        while !self.host.records().iter().any(service) {
            tokio::task::yield_now().await;
        }
    }

    fn client(&self, cluster: &Cluster) -> RemoteReplica {
        RemoteReplica::new(cluster.gateway.clone(), "node-2", self.endpoint.local_address().unwrap())
    }
}

fn request(prompt: &str) -> GenerateRequest {
    GenerateRequest {
        model: "tiny".into(),
        prompt: Prompt::Text(prompt.into()),
        emitted: Vec::new(),
        output_tokens_max: Some(24),
        sampling: Sampling { seed: prompt.len() as u64, temperature: 1.2, ..Sampling::default() },
        stop: Vec::new(),
        ignore_eos: true,
        logprobs: Some(1),
        echo: true,
    }
}

async fn answer(client: &dyn ReplicaClient, request: GenerateRequest) -> Vec<TokenEvent> {
    let events = client.generate(request).await.unwrap();
    events.filter(|event| std::future::ready(*event != TokenEvent::Alive)).collect().await
}

/// An answer whatever events it came in: pieces of prompt and answer, the last text, and the end.
fn told(events: Vec<TokenEvent>) -> (Vec<TokenPiece>, Option<(FinishReason, String)>) {
    let (mut pieces, mut end) = (Vec::new(), None);
    for event in events {
        match event {
            TokenEvent::Echo(more) => pieces.extend(more),
            TokenEvent::Token(piece) => pieces.push(piece),
            TokenEvent::Finished { reason, text } => end = Some((reason, text)),
            TokenEvent::Started { .. } | TokenEvent::Alive => {}
            TokenEvent::Failed(error) => panic!("{error}"),
        }
    }
    (pieces, end)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_do_not_depend_on_the_batch_and_continue_on_another_replica() {
    let cluster = Cluster::new();
    let options = |more: &str| format!(r#"{{"model_name":"tiny","threads":1{more}}}"#);
    let alone = cluster.replica(&options(r#","batch_max":1"#)).await;
    let together = cluster.replica(&options(r#","batch_max":4,"kv_cache_mib":1,"step_tokens_max":16"#)).await;
    let (roomy, crowded) = (alone.client(&cluster), together.client(&cluster));
    alone.announced().await;
    together.announced().await;
    let prompts = ["a", "今天天气很好", "a prompt that is longer than the others and is cut into chunks"];
    let serial: Vec<_> =
        futures::stream::iter(prompts).then(|prompt| answer(&roomy, request(prompt))).collect().await;
    let batched = join_all(prompts.map(|prompt| answer(&crowded, request(prompt)))).await;
    for (serial, batched) in serial.iter().zip(&batched) {
        let tokens = |events: &[TokenEvent]| {
            events.iter().filter(|e| matches!(e, TokenEvent::Token(_))).cloned().collect::<Vec<_>>()
        };
        assert_eq!(tokens(serial).len(), 24);
        assert_eq!(tokens(serial), tokens(batched), "{batched:?}");
        assert!(matches!(serial.last(), Some(TokenEvent::Finished { reason: FinishReason::Length, .. })));
        let emitted: Vec<u32> = tokens(serial)[..10]
            .iter()
            .filter_map(|event| if let TokenEvent::Token(piece) = event { Some(piece.token) } else { None })
            .collect();
        let prompt = match &serial[0] {
            TokenEvent::Started { prompt_tokens } => Prompt::Tokens(prompt_tokens.clone()),
            other => panic!("{other:?}"),
        };
        let asked = prompts.iter().map(|prompt| request(prompt)).find(|r| matches!(&r.prompt, Prompt::Text(text) if Prompt::Tokens(text.bytes().map(u32::from).collect()) == prompt)).unwrap();
        let resumed = answer(&crowded, GenerateRequest { emitted, ..asked }).await;
        assert_eq!(tokens(&resumed), tokens(serial)[10..]);
    }
    let chat = Prompt::Chat(vec![ChatMessage { role: "user".into(), content: "hi".into() }]);
    let events = answer(&roomy, GenerateRequest { prompt: chat, echo: false, ..request("") }).await;
    assert!(matches!(&events[0], TokenEvent::Started { prompt_tokens } if prompt_tokens.contains(&257)));
    let other = answer(&roomy, GenerateRequest { model: "gpt-9".into(), ..request("a") }).await;
    assert_eq!(other, [TokenEvent::Failed(ReplicaError::OtherModel { serves: "tiny".into() })]);
}

/// Prompts of less than a block whose answers need a second one, in a cache of four blocks: blocks run
/// out while the batch decodes, never before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_runs_out_while_decoding_changes_no_answer() {
    let heads = ModelConfig { num_attention_heads: 8, num_key_value_heads: 8, head_dim: 32, ..tiny() };
    let cluster = Cluster::of(heads);
    let roomy = cluster.replica(r#"{"model_name":"tiny","threads":1,"batch_max":1}"#).await;
    let tight = cluster.replica(r#"{"model_name":"tiny","threads":1,"batch_max":4,"kv_cache_mib":1}"#).await;
    roomy.announced().await;
    tight.announced().await;
    let (alone, together) = (roomy.client(&cluster), tight.client(&cluster));
    assert_eq!(together.load().await.unwrap(), Load { blocks: 4, ..Load::default() });
    let requests: Vec<_> = (0..8_usize)
        .map(|index| GenerateRequest {
            output_tokens_max: Some(64),
            ..request(
                &"the blocks run out in the middle of this text, again".repeat(2)[index..40 + 2 * index],
            )
        })
        .collect();
    let expected: Vec<_> = futures::stream::iter(requests.clone())
        .then(|request| async { told(answer(&alone, request).await) })
        .collect()
        .await;
    assert!(expected.iter().all(|(pieces, end)| pieces.len() > 64 && end.is_some()));
    let answers = join_all(requests.into_iter().map(|request| answer(&together, request))).await;
    for (index, (answer, expected)) in answers.into_iter().zip(expected).enumerate() {
        assert_eq!(told(answer), expected, "answer {index}");
    }
    assert_eq!(alone.load().await.unwrap().preempted, 0);
    // The last event is sent within a step, and the load is told after it.
    let load = loop {
        let load = together.load().await.unwrap();
        if load.blocks_used == 0 {
            break load;
        }
    };
    assert!(load.preempted > 0, "{load:?}");
    assert_eq!(load, Load { blocks: 4, preempted: load.preempted, ..Load::default() });
    let reported = |record: &Record| matches!(record, Record::Progress(figures) if figures["preemptions"] == Metric::Count(load.preempted));
    while !tight.host.records().iter().any(reported) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapters_beside_their_base_answer_as_the_merged_model_does() {
    let mut cluster = Cluster::new();
    let base = cluster.model;
    let mut answers = Vec::new();
    for model in [base].into_iter().chain(publish_adapted(&cluster.store, base)) {
        cluster.model = model;
        let process = cluster.replica(r#"{"model_name":"tiny","threads":1}"#).await;
        process.announced().await;
        answers.push(told(answer(&process.client(&cluster), request("a prompt")).await));
    }
    let [of_base, adapted, merged] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(adapted, merged);
    assert_ne!(adapted, of_base);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_task_finishes_what_it_began() {
    let cluster = Cluster::new();
    let process = cluster.replica(r#"{"model_name":"tiny","threads":1}"#).await;
    process.announced().await;
    let client = process.client(&cluster);
    let mut begun = client.generate(request("begun before the end")).await.unwrap();
    assert!(matches!(begun.next().await, Some(TokenEvent::Started { .. })));
    process.cancel.cancel();
    let rest: Vec<_> = begun.collect().await;
    assert!(matches!(rest.last(), Some(TokenEvent::Finished { .. })), "{rest:?}");
    let output = process.result.await.unwrap().unwrap();
    assert_eq!(output.metrics["answers"], Metric::Count(1));
    process.actor.wait(None).await.unwrap();
    assert!(matches!(client.generate(request("late")).await, Err(ReplicaError::Lost(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stage_without_a_model_is_a_fatal_error() {
    let mut cluster = Cluster::new();
    cluster.model = cluster.store.publish(&Manifest::new("tokens", "tokenize")).unwrap();
    let process = cluster.replica("{}").await;
    let error = process.result.await.unwrap().unwrap_err();
    assert_eq!(error.class, ErrorClass::Fatal);
    assert!(error.message.contains("one `model` artefact"), "{error}");
}
