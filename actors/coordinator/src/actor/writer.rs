//! The thread that owns the log: appends, then lets out what depended on it.

use std::sync::Arc;
use std::thread;

use ractor::{ActorProcessingErr, ActorRef};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::dispatch::Dispatcher;
use super::{CoordinatorMessage, NodeSender, ReplyPort};
use crate::coordinator::{Answer, Send};
use crate::event::Entry;
use crate::log::EventLog;

/// Batches that wait for the log; when it is full, the actor's handler waits.
const QUEUE: usize = 1024;
/// Batches that share a transaction.
const BATCHES_TOGETHER: usize = 256;

/// The effects of one message.
pub(super) struct Batch {
    pub(super) events: Vec<Entry>,
    pub(super) replies: Vec<(ReplyPort, Answer)>,
    pub(super) sends: Vec<Send>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.replies.is_empty() && self.sends.is_empty()
    }
}

/// The queue to the thread.
pub(super) struct Writer {
    queue: Option<mpsc::Sender<Batch>>,
    ended: Option<oneshot::Receiver<()>>,
}

impl Writer {
    pub(super) fn start(
        log: EventLog,
        sender: Arc<dyn NodeSender>,
        actor: ActorRef<CoordinatorMessage>,
    ) -> Result<Self, ActorProcessingErr> {
        let (queue, batches) = mpsc::channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let dispatcher = Dispatcher::new(Handle::current(), sender, actor.clone());
        thread::Builder::new().name("event-log".to_owned()).spawn(move || {
            write_all(log, batches, dispatcher, &actor);
            // Dropped after the log, so that whoever waits may open it again.
            drop(end);
        })?;
        Ok(Self { queue: Some(queue), ended: Some(ended) })
    }

    /// Waits while the queue is full.
    pub(super) async fn write(&self, batch: Batch) -> Result<(), ActorProcessingErr> {
        let queue = self.queue.as_ref().ok_or("the log is closed")?;
        queue.send(batch).await.map_err(|_| "the log has failed".into())
    }

    /// Waits until everything is written and the log is closed.
    pub(super) async fn finish(&mut self) {
        self.queue = None;
        if let Some(ended) = self.ended.take() {
            // It never sends; its end is the signal.
            let _ = ended.await;
        }
    }
}

fn write_all(
    mut log: EventLog,
    mut batches: mpsc::Receiver<Batch>,
    mut dispatcher: Dispatcher,
    actor: &ActorRef<CoordinatorMessage>,
) {
    while let Some(first) = batches.blocking_recv() {
        let mut together = vec![first];
        while together.len() < BATCHES_TOGETHER
            && let Ok(next) = batches.try_recv()
        {
            together.push(next);
        }
        let events: Vec<Entry> =
            together.iter_mut().flat_map(|batch| std::mem::take(&mut batch.events)).collect();
        if let Err(error) = log.append(&events) {
            tracing::error!(%error, "the log failed; nothing more leaves this coordinator");
            let _ = actor.cast(CoordinatorMessage::Failed(error.to_string()));
            return;
        }
        for batch in together {
            batch.replies.into_iter().for_each(|(port, answer)| port.send(answer));
            batch.sends.into_iter().for_each(|send| dispatcher.dispatch(send));
        }
    }
}
