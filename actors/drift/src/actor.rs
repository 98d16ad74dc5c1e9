//! The monitor as an actor: reads the reference, takes observations from gateways, looks once a
//! second, and tells people when drift begins and when it is over.
//!
//! Reading happens on a blocking thread; a look visits the window's tokens and is done in the handler.
//! When its task is cancelled it finishes with its last figures.

use std::future::Future;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use sixfold_cluster::task::{Metric, Metrics, TaskContext, TaskError, TaskOutput};
use sixfold_transport::identity::Role;
use sixfold_transport::{ActorGone, Delivery, Endpoint, Registration};
use tokio::time::{MissedTickBehavior, interval};

use crate::error::DriftError;
use crate::measure;
use crate::message::{DriftReply, DriftReport, DriftRequest};
use crate::monitor::{Change, Monitor};
use crate::options::DriftOptions;
use crate::reference::{Reference, find_tokens};
use crate::{ABOUT_MODEL, ACTOR};

/// How often it looks and reports.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The actor of the `drift` role. Its argument is the task.
#[derive(Clone, Copy, Debug, Default)]
pub struct DriftMonitor;

/// What happens to a monitor.
#[derive(Debug)]
pub enum DriftEvent {
    /// The actor has started.
    Begin,
    /// The reference is ready, or cannot be had.
    Loaded(Result<Box<Loaded>, DriftError>),
    /// The cluster knows of the monitor, or does not.
    Announced(Result<(), DriftError>),
    /// Another process asks something.
    Asked(Box<Delivery<DriftRequest>>),
    /// Time to look and report.
    Look,
    /// The task is to stop.
    Cancelled,
}

/// A monitor that is ready to watch.
#[derive(Debug)]
pub struct Loaded {
    model: String,
    monitor: Monitor,
}

/// What the actor holds.
pub struct DriftActorState {
    context: TaskContext,
    watching: Option<Watching>,
}

struct Watching {
    monitor: Monitor,
    _door: Registration,
}

impl Actor for DriftMonitor {
    type Msg = DriftEvent;
    type State = DriftActorState;
    type Arguments = TaskContext;

    async fn pre_start(
        &self,
        _myself: ActorRef<DriftEvent>,
        context: TaskContext,
    ) -> Result<DriftActorState, ActorProcessingErr> {
        Ok(DriftActorState { context, watching: None })
    }

    async fn post_start(
        &self,
        myself: ActorRef<DriftEvent>,
        state: &mut DriftActorState,
    ) -> Result<(), ActorProcessingErr> {
        let cancel = state.context.cancel.clone();
        tell(&myself, async move {
            cancel.cancelled().await;
            DriftEvent::Cancelled
        });
        Ok(myself.cast(DriftEvent::Begin)?)
    }

    async fn handle(
        &self,
        myself: ActorRef<DriftEvent>,
        event: DriftEvent,
        state: &mut DriftActorState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            DriftEvent::Begin => {
                let context = state.context.clone();
                tell(&myself, async move { DriftEvent::Loaded(load(context).await.map(Box::new)) });
            }
            DriftEvent::Loaded(Err(DriftError::Panicked(message))) => {
                return Err(DriftError::Panicked(message).into());
            }
            DriftEvent::Loaded(Ok(loaded)) => state.watch(*loaded, &myself),
            DriftEvent::Announced(Ok(())) => look_regularly(&myself),
            DriftEvent::Loaded(Err(error)) | DriftEvent::Announced(Err(error)) => {
                state.end(Err(error.into()), &myself);
            }
            DriftEvent::Asked(delivery) => state.answer(*delivery),
            DriftEvent::Look => {
                if let Some(report) = state.look() {
                    state.context.host.progress(figures(&report));
                }
            }
            DriftEvent::Cancelled => {
                let metrics = state.look().map(|report| figures(&report)).unwrap_or_default();
                state.end(Ok(TaskOutput { artifacts: Vec::new(), metrics }), &myself);
            }
        }
        Ok(())
    }
}

impl DriftActorState {
    /// Opens the door and announces the monitor.
    fn watch(&mut self, loaded: Loaded, myself: &ActorRef<DriftEvent>) {
        let Loaded { model, monitor } = loaded;
        let Some(network) = &self.context.network else {
            return self.end(Err(DriftError::NoNetwork.into()), myself);
        };
        let door = register(&network.endpoint, myself);
        self.watching = Some(Watching { monitor, _door: door });
        let (address, host) = (network.endpoint.local_address(), self.context.host.clone());
        let about = Metrics::from([(ABOUT_MODEL.to_owned(), Metric::Text(model))]);
        tell(myself, async move {
            DriftEvent::Announced(match address {
                Ok(address) => host.serve(address, about).await.map_err(DriftError::from),
                Err(error) => Err(error.into()),
            })
        });
    }

    fn answer(&mut self, delivery: Delivery<DriftRequest>) {
        let Some(Watching { monitor, .. }) = &mut self.watching else { return };
        let reply = match &delivery.message {
            DriftRequest::Observe { model, counts } => match monitor.observe(model, counts) {
                Ok(()) => DriftReply::Accepted,
                Err(refused) => DriftReply::Refused(refused.to_string()),
            },
            DriftRequest::Report => match self.look() {
                Some(report) => DriftReply::Report(report),
                None => return,
            },
        };
        if let Some(caller) = delivery.reply {
            caller.send(&reply);
        }
    }

    /// Looks, and tells of what has changed.
    fn look(&mut self) -> Option<DriftReport> {
        let (report, change) = self.watching.as_mut()?.monitor.look();
        measure::record(&report, change);
        if let Some(change) = change {
            self.context.host.log(line_about(&report, change));
        }
        Some(report)
    }

    fn end(&mut self, result: Result<TaskOutput, TaskError>, myself: &ActorRef<DriftEvent>) {
        self.watching = None;
        self.context.finish(result);
        myself.stop(None);
    }
}

/// Lets gateways, which are part of their nodes, tell and ask. A message holds its sender's credits
/// until it has been handled, so the mailbox stays short.
fn register(endpoint: &Endpoint, myself: &ActorRef<DriftEvent>) -> Registration {
    let myself = myself.clone();
    endpoint.register::<DriftRequest>(ACTOR, Role::Node, move |delivery| {
        myself.cast(DriftEvent::Asked(Box::new(delivery))).map_err(|_| ActorGone)
    })
}

fn line_about(report: &DriftReport, change: Change) -> String {
    let DriftReport { model, window_tokens, js_distance, js_limit, kl_nats, .. } = report;
    let figures = format!(
        "Jensen-Shannon distance {js_distance:.3} of the last {window_tokens} tokens asked, limit {js_limit:.3}, divergence {kl_nats:.3} nats"
    );
    match change {
        Change::Alarm => {
            format!("drift alarm: what is asked of `{model}` is unlike what it was trained on: {figures}")
        }
        Change::Recovered => {
            format!("drift is over: what is asked of `{model}` is like what it was trained on: {figures}")
        }
    }
}

fn figures(report: &DriftReport) -> Metrics {
    let figures: [(&str, Metric); 6] = [
        ("kl_nats", report.kl_nats.into()),
        ("js_distance", report.js_distance.into()),
        ("js_limit", report.js_limit.into()),
        ("tokens_asked", report.tokens_asked.into()),
        ("drift_alarms", report.alarms.into()),
        ("drift_state", report.state.to_string().into()),
    ];
    figures.map(|(name, figure)| (name.to_owned(), figure)).into()
}

async fn load(context: TaskContext) -> Result<Loaded, DriftError> {
    let options: DriftOptions = context.options().map_err(|error| DriftError::Options(error.message))?;
    options.validate().map_err(DriftError::Options)?;
    let tokens = find_tokens(&context.fetch_inputs().await?)?;
    let (model, store) = (options.model_name.clone(), context.store.clone());
    let reading = tokio::task::spawn_blocking(move || {
        let reference = Reference::read(&store, tokens, &options)?;
        Ok::<_, DriftError>(Monitor::new(options, reference))
    });
    let monitor = reading.await.map_err(|error| DriftError::Panicked(error.to_string()))??;
    Ok(Loaded { model, monitor })
}

/// Runs a future beside the mailbox; its result becomes a message.
fn tell(myself: &ActorRef<DriftEvent>, event: impl Future<Output = DriftEvent> + Send + 'static) {
    let myself = myself.clone();
    tokio::spawn(async move {
        // An actor that has stopped needs no word.
        let _ = myself.cast(event.await);
    });
}

fn look_regularly(myself: &ActorRef<DriftEvent>) {
    let myself = myself.clone();
    tokio::spawn(async move {
        let mut clock = interval(LOOK_EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            if myself.cast(DriftEvent::Look).is_err() {
                return;
            }
        }
    });
}
