//! The trainer shard as an actor: starts the rank on a thread of its own and says how it ended.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use sixfold_cluster::task::TaskContext;
use tokio::runtime::Handle;

use crate::error::TrainError;
use crate::host::BlockingHost;
use crate::links::LinkFactory;
use crate::message::TrainerMessage;
use crate::network::{NetworkLinks, NoLinks};
use crate::shard;

/// The actor of the `train` role: one rank of a training job. Its argument is the task, whose index
/// is the rank; it stops when the rank has ended.
///
/// The default gets its links from the task's network; without one it can only be the single rank
/// of a serial plan.
#[derive(Default)]
pub struct TrainerShard {
    links: Option<Arc<dyn LinkFactory>>,
}

impl TrainerShard {
    /// A rank that gets its links from `links`.
    pub fn with_links(links: Arc<dyn LinkFactory>) -> Self {
        Self { links: Some(links) }
    }

    fn links(&self, context: &TaskContext) -> Result<Arc<dyn LinkFactory>, TrainError> {
        Ok(match (&self.links, &context.network) {
            (Some(links), _) => links.clone(),
            (None, Some(network)) => Arc::new(NetworkLinks::bind(network, context.spec.id.job)?),
            (None, None) => Arc::new(NoLinks),
        })
    }

    fn start_thread(&self, context: TaskContext, actor: ActorRef<TrainerMessage>) -> Result<(), TrainError> {
        let links = self.links(&context)?;
        let host = BlockingHost::new(context, Handle::current());
        let work = move || {
            let last = match catch_unwind(AssertUnwindSafe(|| shard::run(&host, links.as_ref()))) {
                Ok(result) => TrainerMessage::Ended(result),
                Err(panic) => TrainerMessage::Panicked(panic_message(&*panic)),
            };
            // An actor that is gone was stopped, and nobody waits for this rank.
            let _ = actor.cast(last);
        };
        let started = std::thread::Builder::new().name("trainer".to_owned()).spawn(work);
        started.map(drop).map_err(|error| TrainError::Thread(error.to_string()))
    }
}

impl Actor for TrainerShard {
    type Msg = TrainerMessage;
    type State = TaskContext;
    type Arguments = TaskContext;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        context: TaskContext,
    ) -> Result<TaskContext, ActorProcessingErr> {
        Ok(context)
    }

    async fn post_start(
        &self,
        myself: ActorRef<Self::Msg>,
        _context: &mut TaskContext,
    ) -> Result<(), ActorProcessingErr> {
        Ok(myself.cast(TrainerMessage::Begin)?)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: TrainerMessage,
        context: &mut TaskContext,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            TrainerMessage::Begin => self.start_thread(context.clone(), myself)?,
            TrainerMessage::Ended(result) => {
                context.finish(result.map_err(Into::into));
                myself.stop(None);
            }
            TrainerMessage::Panicked(message) => return Err(TrainError::Thread(message).into()),
        }
        Ok(())
    }

    /// A rank whose actor is stopped ends before its next step.
    async fn post_stop(
        &self,
        _myself: ActorRef<Self::Msg>,
        context: &mut TaskContext,
    ) -> Result<(), ActorProcessingErr> {
        context.cancel.cancel();
        Ok(())
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}
