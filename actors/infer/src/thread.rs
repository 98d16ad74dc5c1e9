//! A thread of its own for the engine, and the channels to and from it.
//!
//! Jobs come over a bounded channel, events leave over a bounded channel a request. The thread
//! sleeps when there is nothing to compute; a `Bell` wakes it for a new job, for room in a
//! channel that was full, and for a client that has gone.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::Stream;
use tokio::sync::{mpsc, oneshot, watch};

use crate::engine::{Decoder, Engine, Job, Load, ModelError};
use crate::message::{GenerateRequest, ReplicaError, TokenEvent};
use crate::pulse::Pulse;
use crate::text::EncodedPrompt;

/// Jobs that wait for the engine to look at them, between two steps.
const JOBS_MAX: usize = 64;
/// Fewer events would hold a sequence for ever.
const EVENTS_MIN: usize = 8;

/// Wakes the engine.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }

    fn wait(&self) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rung = self.changed.wait_while(rung, |rung| !*rung).unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}

/// The way to an engine on its thread. Cheap to clone; the thread ends with [`EngineHandle::stop`].
#[derive(Clone)]
pub struct EngineHandle {
    jobs: mpsc::Sender<Job>,
    bell: Arc<Bell>,
    stopping: Arc<AtomicBool>,
    load: watch::Receiver<Load>,
    pulse: Pulse,
    events_max: usize,
}

/// Resolves when the engine's thread has ended: with an error where the model failed or panicked.
pub type EngineEnd = oneshot::Receiver<Result<(), ModelError>>;

/// Starts a thread for an engine. `events_max` events wait for each client before it is held.
///
/// # Errors
/// What the system said, where it gives no thread.
pub fn spawn<D: Decoder>(
    engine: Engine<D>,
    events_max: usize,
) -> Result<(EngineHandle, EngineEnd), std::io::Error> {
    let (jobs, inbox) = mpsc::channel(JOBS_MAX);
    let (report, load) = watch::channel(engine.load());
    let (ended, end) = oneshot::channel();
    let handle = EngineHandle {
        jobs,
        bell: Arc::default(),
        stopping: Arc::default(),
        load,
        pulse: engine.pulse().clone(),
        events_max: events_max.max(EVENTS_MIN),
    };
    let (bell, stopping) = (Arc::clone(&handle.bell), Arc::clone(&handle.stopping));
    std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
        let mut worker = Worker { engine, inbox, bell, stopping, report };
        let result = worker.run();
        // Nobody may be interested any more.
        let _ = ended.send(result);
    })?;
    Ok((handle, end))
}

impl EngineHandle {
    /// Asks for an answer.
    ///
    /// # Errors
    /// [`ReplicaError::Busy`] where too many jobs wait, [`ReplicaError::Lost`] where the engine has ended.
    pub fn submit(
        &self,
        request: GenerateRequest,
        prompt: EncodedPrompt,
    ) -> Result<EngineEvents, ReplicaError> {
        let (events, receiver) = mpsc::channel(self.events_max);
        let sent = self.jobs.try_send(Job { request, prompt, events });
        self.bell.ring();
        match sent {
            Ok(()) => Ok(EngineEvents { receiver, bell: Arc::clone(&self.bell) }),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(ReplicaError::Busy(format!("{JOBS_MAX} requests came at once")))
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                Err(ReplicaError::Lost("the engine has ended".to_owned()))
            }
        }
    }

    /// How full the engine was after its last step.
    pub fn load(&self) -> Load {
        *self.load.borrow()
    }

    /// Follows how full the engine is.
    pub fn watch(&self) -> watch::Receiver<Load> {
        self.load.clone()
    }

    /// Beats while the engine computes.
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Ends the thread after its current step; clients are told that the replica shuts down.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.bell.ring();
    }
}

/// The events of one request. Dropping it cancels the request.
pub struct EngineEvents {
    receiver: mpsc::Receiver<TokenEvent>,
    bell: Arc<Bell>,
}

impl Stream for EngineEvents {
    type Item = TokenEvent;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<TokenEvent>> {
        let event = self.receiver.poll_recv(context);
        if event.is_ready() {
            self.bell.ring();
        }
        event
    }
}

impl Drop for EngineEvents {
    fn drop(&mut self) {
        self.receiver.close();
        self.bell.ring();
    }
}

struct Worker<D: Decoder> {
    engine: Engine<D>,
    inbox: mpsc::Receiver<Job>,
    bell: Arc<Bell>,
    stopping: Arc<AtomicBool>,
    report: watch::Sender<Load>,
}

impl<D: Decoder> Worker<D> {
    fn run(&mut self) -> Result<(), ModelError> {
        while !self.stopping.load(Ordering::Acquire) {
            while let Ok(job) = self.inbox.try_recv() {
                self.engine.submit(job);
            }
            let busy = match self.engine.step() {
                Ok(busy) => busy,
                Err(error) => {
                    self.engine.fail_all(&ReplicaError::Lost(error.to_string()));
                    return Err(error);
                }
            };
            self.report.send_replace(self.engine.load());
            if !busy {
                self.bell.wait();
            }
        }
        self.engine.fail_all(&ReplicaError::Draining);
        Ok(())
    }
}
