//! The monitor on a node's endpoint, told and asked by another node over QUIC.

#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ractor::Actor;
use sixfold_artifact::tokens::{
    ShardEntry, TokenIndex, TokenWriter, encode_boundaries, index_file, shard_file,
};
use sixfold_artifact::{Manifest, Store};
use sixfold_cluster::task::{
    ErrorClass, LinkChoice, LocalHost, Metric, Metrics, Network, Record, TaskContext, TaskResult, TaskSpec,
};
use sixfold_drift::{
    ABOUT_MODEL, ACTOR, DriftMonitor, DriftReply, DriftReport, DriftRequest, DriftState, ROLE,
};
use sixfold_transport::identity::{Authority, Peer};
use sixfold_transport::{ChannelOptions, Endpoint, EndpointOptions, RemoteRef};
use sixfold_wire::id::{ArtifactId, Epoch, JobId, TaskId};
use tokio::sync::oneshot;

const LIFETIME: Duration = Duration::from_secs(3600);
const DEADLINE: Duration = Duration::from_secs(20);
const VOCABULARY: u32 = 300;
const END_OF_TEXT: u32 = 299;
const OPTIONS: &str = r#"{"model_name":"tiny","window_tokens":388,"min_tokens":97,"effect_min":0.1}"#;

/// Text has each of so many words in turn: a sample of whole rounds is exactly like the rest.
const ROUND: u32 = 97;
const WINDOW: u32 = 4 * ROUND;

/// Words of the training text (from 0), or others.
fn text(tokens: u32, from: u32) -> Vec<u32> {
    (0..tokens).map(|at| from + at % ROUND).collect()
}

fn observe(model: &str, tokens: u32, from: u32) -> DriftRequest {
    let counts = text(tokens, from).into_iter().map(|token| (token, 1)).collect();
    DriftRequest::Observe { model: model.to_owned(), counts }
}

fn publish(store: &Store, kind: &str, split: &str, documents: u32) -> ArtifactId {
    let mut writer = TokenWriter::new(Vec::new(), VOCABULARY);
    let mut boundaries = vec![0];
    for _ in 0..documents {
        writer.push(&[text(ROUND, 0), vec![END_OF_TEXT]].concat()).unwrap();
        boundaries.push(writer.tokens());
    }
    let (bytes, count) = writer.finish().unwrap();
    let shard = ShardEntry { file: shard_file(split, 0), tokens: count };
    let index = TokenIndex::new(split, VOCABULARY, u64::from(documents), vec![shard.clone()]);
    let mut manifest = Manifest::new(kind, "tokenize");
    for (name, content) in [
        (index_file(split), index.encode().unwrap()),
        (index.boundaries, encode_boundaries(&boundaries)),
        (shard.file, bytes),
    ] {
        manifest.files.push(store.put(&name, &content).unwrap());
    }
    store.publish(&manifest).unwrap()
}

struct Cluster {
    authority: Authority,
    store: Store,
    /// Where the monitor is hosted.
    node: Endpoint,
    host: Arc<LocalHost>,
    _folder: tempfile::TempDir,
}

impl Cluster {
    fn new() -> Self {
        let authority = Authority::create(SystemTime::now()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let node = endpoint(&authority, &Peer::node("node-1").unwrap());
        let host = Arc::new(LocalHost::new(store.clone()));
        Self { authority, store, node, host, _folder: folder }
    }

    fn task(&self, inputs: Vec<ArtifactId>, options: &str) -> (TaskContext, oneshot::Receiver<TaskResult>) {
        let spec = TaskSpec {
            id: TaskId { job: JobId(1), phase: 0, index: 0 },
            role: ROLE.into(),
            stage: "drift".into(),
            count: 1,
            options_json: options.to_owned(),
            inputs,
            resume: Vec::new(),
        };
        let scratch = self.store.root().join("scratch");
        let host = Arc::clone(&self.host) as _;
        let (context, result) =
            TaskContext::new(spec, Epoch(1), "node-1".into(), self.store.clone(), scratch, host);
        let network = Network { endpoint: self.node.clone(), links: LinkChoice::default() };
        (context.with_network(network), result)
    }

    async fn refusal(&self, inputs: Vec<ArtifactId>, options: &str) -> sixfold_cluster::task::TaskError {
        let (context, result) = self.task(inputs, options);
        let (_actor, stopped) = Actor::spawn(None, DriftMonitor, context).await.unwrap();
        let error = result.await.unwrap().unwrap_err();
        stopped.await.unwrap();
        error
    }

    /// Waits for a record, and gives it.
    async fn recorded<T>(&self, wanted: impl Fn(&Record) -> Option<T>) -> T {
        loop {
            if let Some(found) = self.host.records().iter().find_map(&wanted) {
                return found;
            }
            tokio::task::yield_now().await;
        }
    }

    async fn announced(&self) -> (SocketAddr, Metrics) {
        let service = |record: &Record| match record {
            Record::Service(address, about) => Some((*address, about.clone())),
            _ => None,
        };
        self.recorded(service).await
    }

    fn logged(&self) -> Vec<String> {
        let line = |record| if let Record::Log(line) = record { Some(line) } else { None };
        self.host.records().into_iter().filter_map(line).collect()
    }
}

fn endpoint(authority: &Authority, peer: &Peer) -> Endpoint {
    let identity = authority.issue_identity(peer, SystemTime::now(), LIFETIME).unwrap();
    Endpoint::bind(identity, &EndpointOptions::new((Ipv4Addr::LOCALHOST, 0).into())).unwrap()
}

async fn report(monitor: &RemoteRef<DriftRequest>) -> DriftReport {
    match monitor.call(DriftRequest::Report, DEADLINE).await.unwrap() {
        DriftReply::Report(report) => report,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_tells_and_asks_and_drift_is_told_once() {
    let cluster = Cluster::new();
    let tokens = publish(&cluster.store, "tokens", "train", 100);
    let (context, result) = cluster.task(vec![tokens], OPTIONS);
    let cancel = context.cancel.clone();
    let (_actor, stopped) = Actor::spawn(None, DriftMonitor, context).await.unwrap();
    let (address, about) = cluster.announced().await;
    assert_eq!(about[ABOUT_MODEL], Metric::from("tiny"));
    let gateway = endpoint(&cluster.authority, &Peer::node("node-2").unwrap());
    let connection = gateway.connect(address, Peer::node("node-1").unwrap()).await.unwrap();
    let monitor = connection.actor::<DriftRequest>(ACTOR, ChannelOptions::default()).await.unwrap();

    assert_eq!(report(&monitor).await.state, DriftState::TooFew);
    let accepted = monitor.call(observe("tiny", WINDOW, 0), DEADLINE).await.unwrap();
    assert_eq!(accepted, DriftReply::Accepted);
    assert_eq!(report(&monitor).await.state, DriftState::NoDrift);
    let refused = monitor.call(observe("gpt-9", WINDOW, 150), DEADLINE).await.unwrap();
    assert_eq!(refused, DriftReply::Refused("this monitor watches `tiny`".to_owned()));
    assert_eq!(cluster.logged(), [""; 0]);

    for _ in 0..3 {
        monitor.cast(observe("tiny", WINDOW / 2, 150)).await.unwrap();
        report(&monitor).await;
    }
    let drifted = report(&monitor).await;
    assert_eq!(
        (drifted.state, drifted.alarms, drifted.tokens_asked),
        (DriftState::Drift, 1, u64::from(5 * WINDOW / 2))
    );
    assert!(drifted.js_distance > drifted.js_limit && drifted.kl_nats > 1.0, "{drifted:?}");
    let drift = |record: &Record| match record {
        Record::Progress(figures) if figures["drift_state"] == Metric::from("drift") => Some(figures.clone()),
        _ => None,
    };
    assert_eq!(cluster.recorded(drift).await["drift_alarms"], Metric::Count(1));
    let lines = cluster.logged();
    assert!(lines.len() == 1 && lines[0].starts_with("drift alarm: what is asked of `tiny`"), "{lines:?}");

    monitor.call(observe("tiny", WINDOW, 0), DEADLINE).await.unwrap();
    assert_eq!(report(&monitor).await.state, DriftState::NoDrift);
    assert_eq!(cluster.logged().len(), 2);
    cancel.cancel();
    let output = result.await.unwrap().unwrap();
    assert_eq!(output.metrics["drift_state"], Metric::from("no drift"));
    assert_eq!(output.metrics["drift_alarms"], Metric::Count(1));
    assert_eq!(output.metrics["tokens_asked"], Metric::Count(u64::from(7 * WINDOW / 2)));
    stopped.await.unwrap();
    assert!(monitor.call(DriftRequest::Report, DEADLINE).await.is_err(), "the door is still open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_can_neither_tell_nor_ask() {
    let cluster = Cluster::new();
    let tokens = publish(&cluster.store, "tokens", "train", 100);
    let (context, _result) = cluster.task(vec![tokens], OPTIONS);
    let (actor, _) = Actor::spawn(None, DriftMonitor, context).await.unwrap();
    let (address, _) = cluster.announced().await;
    let user = endpoint(&cluster.authority, &Peer::user("ada").unwrap());
    let connection = user.connect(address, Peer::node("node-1").unwrap()).await.unwrap();
    let refused = connection.actor::<DriftRequest>(ACTOR, ChannelOptions::default()).await.unwrap_err();
    assert!(refused.to_string().contains("`user`"), "{refused}");
    actor.stop(None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_and_options_that_do_not_fit_are_fatal_and_say_why() {
    let cluster = Cluster::new();
    let store = &cluster.store;
    let good = publish(store, "tokens", "train", 100);
    let cases = [
        (vec![], OPTIONS, "one artefact of kind `tokens`"),
        (vec![good, publish(store, "tokens", "train", 90)], OPTIONS, "it has 2"),
        (vec![publish(store, "corpus", "train", 100)], OPTIONS, "one artefact of kind `tokens`"),
        (vec![publish(store, "tokens", "held-out", 100)], OPTIONS, "train.idx.json"),
        (vec![publish(store, "tokens", "train", 3)], OPTIONS, "291 tokens, too few"),
        (vec![good], r#"{"window":1}"#, "unknown field `window`"),
        (vec![good], r#"{"smoothing":0}"#, "smoothing"),
    ];
    for (inputs, options, hint) in cases {
        let error = cluster.refusal(inputs, options).await;
        assert_eq!(error.class, ErrorClass::Fatal, "{error}");
        assert!(error.message.contains(hint), "{error} does not say {hint}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monitor_that_is_cancelled_while_it_reads_ends_well() {
    let cluster = Cluster::new();
    let (context, result) = cluster.task(vec![publish(&cluster.store, "tokens", "train", 100)], OPTIONS);
    context.cancel.cancel();
    let (_actor, stopped) = Actor::spawn(None, DriftMonitor, context).await.unwrap();
    assert!(result.await.unwrap().is_ok());
    stopped.await.unwrap();
}
