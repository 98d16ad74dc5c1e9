//! Replicas that answer by rule and die when told to, and a gateway before them.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures::stream::{self, StreamExt};
use serde_json::Value;
use sixfold_cluster::protocol::{ClusterView, KeyRecord, Service};
use sixfold_cluster::task::{Metric, TaskAddress};
use sixfold_infer::engine::Load;
use sixfold_infer::message::{
    ABOUT_MODEL, Alternative, FinishReason, GenerateRequest, Prompt, ROLE, ReplicaError, Score, TokenEvent,
    TokenPiece,
};
use sixfold_infer::replica::{EventStream, ReplicaClient};
use sixfold_wire::id::{Epoch, JobId, TaskId};
use tokio::sync::{Notify, watch};
use tower::ServiceExt;

use super::super::{Dial, GatewayOptions, GatewayParts, Shared, routes};

/// What a fake replica does.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fate {
    /// Answers.
    Lives,
    /// Dies after so many tokens of each answer.
    DiesAfter(usize),
    /// Has no room.
    Busy,
    /// Says nothing more after so many tokens of each answer, until it is killed.
    HangsAfter(usize),
    /// Gives so many signs of life, at this distance, and then answers.
    Thinks(u32, Duration),
    /// Gives so many signs of life, at this distance, and then nothing, until it is killed.
    Freezes(u32, Duration),
}

/// A replica whose answer is a function of the request: token `n` is the word ` wn`, the twelfth the last.
pub(super) struct Fake {
    pub(super) fate: Mutex<Fate>,
    pub(super) asked: AtomicUsize,
    /// Answers whose stream is alive.
    pub(super) alive: Arc<AtomicUsize>,
    /// Ends one answer of a replica that hangs.
    pub(super) kill: Arc<Notify>,
    /// How full it says it is, if it says so.
    pub(super) load: Mutex<Option<Load>>,
}

impl Fake {
    pub(super) fn new(fate: Fate) -> Arc<Self> {
        Arc::new(Self {
            fate: Mutex::new(fate),
            asked: AtomicUsize::new(0),
            alive: Arc::default(),
            kill: Arc::default(),
            load: Mutex::default(),
        })
    }
}

struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

const LAST_TOKEN: u32 = 12;

#[async_trait]
impl ReplicaClient for Fake {
    async fn generate(&self, request: GenerateRequest) -> Result<EventStream, ReplicaError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let fate = self.fate.lock().unwrap().clone();
        if fate == Fate::Busy {
            return Err(ReplicaError::Busy("full".into()));
        }
        let events = events(&request, &fate);
        self.alive.fetch_add(1, Ordering::SeqCst);
        let alive = Alive(Arc::clone(&self.alive));
        let kill = Arc::clone(&self.kill);
        let hangs = matches!(fate, Fate::HangsAfter(_) | Fate::Freezes(..));
        let killed = stream::once(async move {
            kill.notified().await;
            TokenEvent::Failed(ReplicaError::Lost("killed".into()))
        });
        let (signs, every) = match fate {
            Fate::Thinks(signs, every) | Fate::Freezes(signs, every) => (signs, every),
            _ => (0, Duration::ZERO),
        };
        let signs = stream::iter(0..signs).then(move |_| async move {
            tokio::time::sleep(every).await;
            TokenEvent::Alive
        });
        let mut events = stream::iter(events);
        let start = stream::iter(events.next().await);
        let events = start.chain(signs).chain(events).chain(if hangs {
            killed.left_stream()
        } else {
            stream::empty().right_stream()
        });
        Ok(events.inspect(move |_| _ = &alive).boxed())
    }

    async fn load(&self) -> Result<Load, ReplicaError> {
        self.load.lock().unwrap().ok_or_else(|| ReplicaError::Lost("it does not say".into()))
    }
}

fn events(request: &GenerateRequest, fate: &Fate) -> Vec<TokenEvent> {
    let prompt = match &request.prompt {
        Prompt::Tokens(tokens) => tokens.clone(),
        Prompt::Text(text) => text.bytes().map(u32::from).collect(),
        Prompt::Chat(messages) => messages.iter().map(|message| message.content.len() as u32).collect(),
    };
    let first = request.emitted.last().map_or(1, |last| last + 1);
    let mut events = vec![TokenEvent::Started { prompt_tokens: prompt.clone() }];
    if matches!(fate, Fate::Freezes(..)) {
        return events;
    }
    if request.echo && request.emitted.is_empty() {
        let scored = |index: usize| request.logprobs.filter(|_| index > 0);
        let echo = prompt.iter().enumerate().map(|(index, &token)| piece(token, scored(index)));
        events.extend(echo.map(|piece| TokenEvent::Echo(vec![piece])));
    }
    let wanted = request.output_tokens_max.unwrap_or(u32::MAX);
    let last = wanted.min(LAST_TOKEN);
    for token in first..=last {
        let said = (token - first) as usize;
        if *fate == Fate::DiesAfter(said) {
            events.push(TokenEvent::Failed(ReplicaError::Lost("killed".into())));
        }
        if [Fate::DiesAfter(said), Fate::HangsAfter(said)].contains(fate) {
            return events;
        }
        events.push(TokenEvent::Token(piece(token, request.logprobs)));
    }
    let reason = if wanted < LAST_TOKEN { FinishReason::Length } else { FinishReason::Stop };
    events.push(TokenEvent::Finished { reason, text: "!".into() });
    events
}

fn piece(token: u32, top: Option<u8>) -> TokenPiece {
    let score = top.map(|top| Score {
        logprob: -0.5,
        top: (0..u32::from(top))
            .map(|other| Alternative { token: other, surface: format!(" o{other}"), logprob: -1.5 })
            .collect(),
    });
    TokenPiece { token, text: format!(" w{token}"), surface: format!(" w{token}"), score }
}

/// The key that the fake cluster knows.
pub(super) const KEY: &str = "sk-test";

/// Fake replicas by address.
#[derive(Default)]
pub(super) struct FakeDial(Mutex<HashMap<SocketAddr, Arc<Fake>>>);

impl Dial for FakeDial {
    fn replica(&self, at: &TaskAddress) -> Arc<dyn ReplicaClient> {
        Arc::clone(&self.0.lock().unwrap()[&at.address]) as Arc<dyn ReplicaClient>
    }
}

/// The cluster that a gateway sees: fake replicas of one model, `toy` by default, and one key.
pub(super) struct Replicas {
    model: &'static str,
    dial: Arc<FakeDial>,
    view: watch::Sender<ClusterView>,
}

/// A gateway's router before fake replicas.
pub(super) struct Cluster {
    pub(super) router: Router,
    pub(super) shared: Arc<Shared>,
    replicas: Replicas,
}

impl Replicas {
    pub(super) fn new(fakes: &[Arc<Fake>]) -> Self {
        Self::of("toy", fakes)
    }

    pub(super) fn of(model: &'static str, fakes: &[Arc<Fake>]) -> Self {
        let keys = vec![KeyRecord { name: "test".into(), hash: *blake3::hash(KEY.as_bytes()).as_bytes() }];
        let (view, _) = watch::channel(ClusterView { keys, ..ClusterView::default() });
        let replicas = Self { model, dial: Arc::default(), view };
        replicas.serve(fakes);
        replicas
    }

    /// What a gateway before them is given.
    pub(super) fn parts(&self) -> GatewayParts {
        GatewayParts {
            view: self.view.subscribe(),
            dial: Arc::clone(&self.dial) as Arc<dyn Dial>,
            metrics_text: Arc::new(|| "sixfold_up 1\n".to_owned()),
        }
    }

    /// Replaces them.
    pub(super) fn serve(&self, fakes: &[Arc<Fake>]) {
        let version = self.view.borrow().version;
        let addresses =
            (1..).map(|index| SocketAddr::from((Ipv4Addr::LOCALHOST, (version * 100 + index) as u16)));
        let addressed: Vec<_> = addresses.zip(fakes).collect();
        self.dial.0.lock().unwrap().extend(addressed.iter().map(|(at, fake)| (*at, Arc::clone(fake))));
        self.announce(addressed.into_iter().map(|(address, _)| address));
    }

    /// Says that there are replicas at these addresses, all of `node-2`, and no others.
    pub(super) fn announce(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        self.view.send_modify(|view| {
            let service = |(index, address)| Service {
                role: ROLE.into(),
                at: TaskAddress {
                    task: TaskId { job: JobId(1), phase: 0, index },
                    node: "node-2".into(),
                    address,
                },
                epoch: Epoch(view.version),
                about: BTreeMap::from([(ABOUT_MODEL.to_owned(), Metric::from(self.model))]),
            };
            view.services = (0..).zip(addresses).map(service).collect();
            view.version += 1;
        });
    }
}

impl Cluster {
    pub(super) fn new(fakes: &[Arc<Fake>]) -> Self {
        Self::with_options(
            fakes,
            GatewayOptions { replica_wait_ms: 500, event_deadline_ms: 200, ..GatewayOptions::default() },
        )
    }

    pub(super) fn with_options(fakes: &[Arc<Fake>], options: GatewayOptions) -> Self {
        let replicas = Replicas::new(fakes);
        let shared = Arc::new(Shared::new(options, replicas.parts()));
        Self { router: routes::router(Arc::clone(&shared)), shared, replicas }
    }

    /// Replaces the replicas.
    pub(super) fn serve(&self, fakes: &[Arc<Fake>]) {
        self.replicas.serve(fakes);
    }

    pub(super) async fn send(&self, request: Request<Body>) -> (StatusCode, Vec<(String, String)>, String) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let headers =
            parts.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        let headers = headers.collect();
        let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        (parts.status, headers, String::from_utf8(bytes.to_vec()).unwrap())
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> (StatusCode, String) {
        let (status, _, text) = self.send(post(path, body)).await;
        (status, text)
    }

    pub(super) async fn post_json(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let (status, text) = self.post(path, body).await;
        (status, serde_json::from_str(&text).unwrap())
    }
}

pub(super) fn post(path: &str, body: &Value) -> Request<Body> {
    Request::post(path)
        .header("authorization", format!("Bearer {KEY}"))
        .body(Body::from(body.to_string()))
        .unwrap()
}

pub(super) fn get(path: &str) -> Request<Body> {
    Request::get(path).header("authorization", format!("Bearer {KEY}")).body(Body::empty()).unwrap()
}

/// The JSON of each event of a stream; the last must be `[DONE]`.
pub(super) fn sse(text: &str) -> Vec<Value> {
    let mut events: Vec<&str> =
        text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect();
    assert_eq!(events.pop(), Some("[DONE]"));
    events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}
