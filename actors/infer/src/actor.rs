//! The replica as an actor: loads the model, answers requests from other processes, and says how
//! it ended.
//!
//! Loading happens on a blocking thread, computing on the engine's, and requests in tasks of their
//! own; the mailbox only gets word of what happened. When its task is cancelled the replica drains:
//! it takes nothing new and finishes what it began, as long as its supervisor gives it. What is
//! left then fails with [`ReplicaError::Draining`], and gateways go on elsewhere.
//!
//! [`ReplicaError::Draining`]: crate::message::ReplicaError::Draining

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use sixfold_cluster::task::{Metric, Metrics, TaskContext, TaskError, TaskOutput};
use sixfold_transport::identity::Role;
use sixfold_transport::{Endpoint, Registration};
use sixfold_wire::id::ArtifactId;
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::engine::ModelError;
use crate::load::{find_model, load};
use crate::message::{ABOUT_ARTIFACT, ABOUT_MODEL};
use crate::options::Options;
use crate::remote;
use crate::replica::Replica;
use crate::thread::EngineEnd;

/// How often figures are reported.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// How long answers may go on while the replica drains; less than its supervisor waits.
const DRAIN_GRACE: Duration = Duration::from_secs(8);

/// The actor of the `infer` role. Its argument is the task, which needs a network to be asked over.
pub struct InferenceReplica;

/// What happened to a replica.
#[derive(Debug)]
pub enum ReplicaEvent {
    /// The actor has started.
    Begin,
    /// The model is ready, or cannot be served.
    Loaded(Result<Box<Loaded>, TaskError>),
    /// The cluster knows of the service, or does not.
    Announced(Result<(), TaskError>),
    /// Time to report figures.
    Report,
    /// The task is to stop.
    Drain,
    /// Nothing runs any more, or the grace period is over.
    Drained,
    /// The engine's thread has ended.
    EngineEnded(Result<(), ModelError>),
}

/// A model that is ready.
pub struct Loaded {
    replica: Replica,
    end: EngineEnd,
    options: Options,
    artifact: ArtifactId,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded").field("artifact", &self.artifact).finish_non_exhaustive()
    }
}

/// What the actor holds.
pub struct ReplicaState {
    context: TaskContext,
    endpoint: Endpoint,
    serving: Option<Serving>,
}

struct Serving {
    replica: Replica,
    open: OpenRequests,
    _streams: [Registration; 2],
}

/// Bounds the requests whose streams are open, and tells when none is.
#[derive(Clone)]
struct OpenRequests {
    places: Arc<Semaphore>,
    most: u32,
}

impl OpenRequests {
    fn new(most: u32) -> Self {
        let places = usize::try_from(most).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { places: Arc::new(Semaphore::new(places)), most }
    }

    /// Waits until every open stream has been written to its end.
    async fn ended(&self) {
        // The semaphore is never closed.
        let _all = self.places.acquire_many(self.most).await;
    }
}

impl Actor for InferenceReplica {
    type Msg = ReplicaEvent;
    type State = ReplicaState;
    type Arguments = TaskContext;

    async fn pre_start(
        &self,
        _myself: ActorRef<ReplicaEvent>,
        context: TaskContext,
    ) -> Result<ReplicaState, ActorProcessingErr> {
        let network = context.network.as_ref().ok_or("a replica needs a network to be asked over")?;
        let endpoint = network.endpoint.clone();
        Ok(ReplicaState { context, endpoint, serving: None })
    }

    async fn post_start(
        &self,
        myself: ActorRef<ReplicaEvent>,
        state: &mut ReplicaState,
    ) -> Result<(), ActorProcessingErr> {
        let cancel = state.context.cancel.clone();
        tell(&myself, async move {
            cancel.cancelled().await;
            ReplicaEvent::Drain
        });
        Ok(myself.cast(ReplicaEvent::Begin)?)
    }

    async fn handle(
        &self,
        myself: ActorRef<ReplicaEvent>,
        event: ReplicaEvent,
        state: &mut ReplicaState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            ReplicaEvent::Begin => {
                let context = state.context.clone();
                tell(
                    &myself,
                    async move { ReplicaEvent::Loaded(fetch_and_load(context).await.map(Box::new)) },
                );
            }
            ReplicaEvent::Loaded(Ok(loaded)) => state.serve(&myself, *loaded)?,
            ReplicaEvent::Announced(Ok(())) => report_regularly(&myself),
            ReplicaEvent::Loaded(Err(error)) | ReplicaEvent::Announced(Err(error)) => {
                state.context.finish(Err(error));
                myself.stop(None);
            }
            ReplicaEvent::Report => state.report(),
            ReplicaEvent::Drain => state.drain(&myself),
            ReplicaEvent::Drained => {
                state.context.finish(Ok(TaskOutput { artifacts: Vec::new(), metrics: state.figures() }));
                myself.stop(None);
            }
            ReplicaEvent::EngineEnded(result) => result?,
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<ReplicaEvent>,
        state: &mut ReplicaState,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(serving) = state.serving.take() {
            serving.replica.engine().stop();
        }
        Ok(())
    }
}

impl ReplicaState {
    /// Opens the door and announces the service.
    fn serve(&mut self, myself: &ActorRef<ReplicaEvent>, loaded: Loaded) -> Result<(), ActorProcessingErr> {
        let Loaded { replica, end, options, artifact } = loaded;
        let open =
            OpenRequests::new((options.batch_max.saturating_add(options.waiting_max)).saturating_mul(2));
        let streams =
            [register(&self.endpoint, &replica, open.clone()), register_load(&self.endpoint, &replica)];
        self.serving = Some(Serving { replica, open, _streams: streams });
        tell(myself, async move {
            let crashed = |_| Err(ModelError("the engine's thread panicked".to_owned()));
            ReplicaEvent::EngineEnded(end.await.unwrap_or_else(crashed))
        });
        let about = Metrics::from([
            (ABOUT_MODEL.to_owned(), Metric::Text(options.model_name)),
            (ABOUT_ARTIFACT.to_owned(), Metric::Text(artifact.to_string())),
        ]);
        let (address, host) = (self.endpoint.local_address()?, Arc::clone(&self.context.host));
        tell(myself, async move {
            ReplicaEvent::Announced(host.serve(address, about).await.map_err(TaskError::from))
        });
        Ok(())
    }

    fn figures(&self) -> Metrics {
        let Some(Serving { replica, .. }) = &self.serving else { return Metrics::new() };
        let mut figures = replica.latencies().figures();
        let load = replica.engine().load();
        let counts = [
            ("requests_running", load.running as u64),
            ("requests_waiting", load.waiting as u64),
            ("kv_blocks_used", load.blocks_used as u64),
            ("kv_blocks", load.blocks as u64),
            ("preemptions", load.preempted),
        ];
        figures.extend(counts.map(|(name, count)| (name.to_owned(), Metric::Count(count))));
        figures
    }

    fn report(&self) {
        if self.serving.is_some() {
            self.context.host.progress(self.figures());
        }
    }

    fn drain(&self, myself: &ActorRef<ReplicaEvent>) {
        let serving = self.serving.as_ref().map(|serving| (serving.replica.clone(), serving.open.clone()));
        tell(myself, async move {
            if let Some((replica, open)) = serving {
                replica.drain();
                // The engine is done before the last tokens have reached their clients: wait for those.
                // A grace period that has ended is as good as that.
                let _ = timeout(DRAIN_GRACE, open.ended()).await;
            }
            ReplicaEvent::Drained
        });
    }
}

/// Lets gateways ask; more requests than batch and queue hold are turned away at once.
fn register(endpoint: &Endpoint, replica: &Replica, open: OpenRequests) -> Registration {
    let (replica, runtime) = (replica.clone(), tokio::runtime::Handle::current());
    endpoint.register_streams(remote::STREAM_KIND, Role::Node, move |incoming| {
        let (replica, place) = (replica.clone(), Arc::clone(&open.places).try_acquire_owned());
        runtime.spawn(async move {
            let from = incoming.from.clone();
            let answered = match place {
                Err(_) => incoming.refuse("busy").await.map_err(remote::StreamError::from),
                Ok(_place) => remote::answer(&replica, incoming).await,
            };
            if let Err(error) = answered {
                tracing::debug!(%from, %error, "a request's stream broke");
            }
        });
    })
}

/// Lets gateways see how full the replica is.
fn register_load(endpoint: &Endpoint, replica: &Replica) -> Registration {
    let (replica, runtime) = (replica.clone(), tokio::runtime::Handle::current());
    endpoint.register_streams(remote::LOAD_STREAM_KIND, Role::Node, move |incoming| {
        let replica = replica.clone();
        runtime.spawn(async move {
            let from = incoming.from.clone();
            if let Err(error) = remote::tell_load(&replica, incoming).await {
                tracing::debug!(%from, %error, "nobody was told the replica's load");
            }
        });
    })
}

/// Runs a future beside the mailbox; its result becomes a message.
fn tell(myself: &ActorRef<ReplicaEvent>, event: impl Future<Output = ReplicaEvent> + Send + 'static) {
    let myself = myself.clone();
    tokio::spawn(async move {
        // An actor that has stopped needs no word.
        let _ = myself.cast(event.await);
    });
}

fn report_regularly(myself: &ActorRef<ReplicaEvent>) {
    let myself = myself.clone();
    tokio::spawn(async move {
        let mut clock = interval(REPORT_EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            if myself.cast(ReplicaEvent::Report).is_err() {
                return;
            }
        }
    });
}

async fn fetch_and_load(context: TaskContext) -> Result<Loaded, TaskError> {
    let options: Options = context.options()?;
    let inputs = context.fetch_inputs().await?;
    let artifact = find_model(&inputs).map_err(TaskError::fatal)?;
    let store = context.store.clone();
    let loading = tokio::task::spawn_blocking(move || {
        set_threads(options.threads)?;
        let (replica, end) = load(&store, artifact, &options).map_err(TaskError::from)?;
        Ok(Loaded { replica, end, options, artifact })
    });
    loading.await.map_err(TaskError::restart)?
}

fn set_threads(threads: u32) -> Result<(), TaskError> {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = if threads == 0 { cores() } else { usize::try_from(threads).unwrap_or(1) };
    sixfold_tensor::set_threads(threads).map_err(TaskError::restart)
}
